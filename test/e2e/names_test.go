package e2e

import (
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// nameServer is a server on the LAN that knows one name, intranet.corp.example.
const nameServer = "198.51.100.80:53"

// serveNames answers there until the test ends. What it does not know, it denies.
func serveNames(lan *testhost.Host, cleanup func(func())) error {
	conn, err := lan.ListenPacket("udp", nameServer)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	cleanup(func() {
		_ = conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if reply := nameReply(b[:n]); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	return nil
}

func nameReply(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: m.Questions,
	}
	switch {
	case q.Name.String() != "intranet.corp.example.":
		reply.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		reply.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr("203.0.113.7").As4()},
		}}
	}
	b, err := reply.Pack()
	if err != nil {
		return nil
	}
	return b
}
