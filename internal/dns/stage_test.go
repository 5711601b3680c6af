package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The tests with a stage run over real sockets on loopback, whose 127.0.0.0/8
// is a network with as many clients as one likes.

// stage is a resolver with sockets, on ports that the kernel picks.
type stage struct {
	*world
	mu    sync.Mutex
	addrs map[string]netip.AddrPort // by network, "udp" and "tcp"
	conns []interface{ Close() error }
	opens int
	fail  error
}

func newStage(t *testing.T, cfg Config) *stage {
	t.Helper()
	s := &stage{addrs: map[string]netip.AddrPort{}}
	cfg.ListenUDP = func(_ context.Context, _, _ string, a netip.AddrPort) (net.PacketConn, error) {
		if s.fail != nil {
			return nil, s.fail
		}
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.Addr(), 0)))
		if err == nil {
			s.opened("udp", c, c.LocalAddr())
		}
		return c, err
	}
	cfg.ListenTCP = func(_ context.Context, _, _ string, a netip.AddrPort) (net.Listener, error) {
		if s.fail != nil {
			return nil, s.fail
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Addr(), 0)))
		if err == nil {
			s.opened("tcp", l, l.Addr())
		}
		return l, err
	}
	r := New(cfg)
	t.Cleanup(r.Close)
	s.world = newWorld(t, r)
	return s
}

func (s *stage) opened(network string, c interface{ Close() error }, a net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs[network] = netip.MustParseAddrPort(a.String())
	s.conns = append(s.conns, c)
	s.opens++
}

// net makes the network "blue" on loopback.
func (s *stage) net(words ...string) {
	s.t.Helper()
	a := parseArgs(append([]string{"id=blue", "num=1", "mode=nat", "subnet=127.0.0.0/8,127.0.0.1", "domain=blue.internal"}, words...))
	sw := testSwitch(s.t, a)
	sw.DNS.Listen = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	s.setSwitch("blue", sw)
}

func (s *stage) port(words ...string) {
	a := parseArgs(append([]string{"net=blue"}, words...))
	s.setPort(plan.PortID(a.get("id")), testPort(a))
}

func (s *stage) stats() Stats {
	s.t.Helper()
	st, ok := s.r.Stats("blue")
	if !ok {
		s.t.Fatal("no resolver")
	}
	return st
}

// send asks over UDP from a client's address; nil for no answer in time.
func (s *stage) send(from string, msg []byte, wait time.Duration) []byte {
	s.t.Helper()
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IP(netip.MustParseAddr(from).AsSlice())}, net.UDPAddrFromAddrPort(s.addrs["udp"]))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(msg); err != nil {
		s.t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 65536)
	n, err := c.Read(b)
	if err != nil {
		return nil
	}
	return b[:n]
}

func (s *stage) ask(q clientQuery) []byte {
	s.t.Helper()
	b := s.send("127.0.0.2", q.pack(s.t), 6*time.Second)
	if b == nil {
		s.t.Fatalf("no answer for %s", q.name)
	}
	return b
}

func (s *stage) dialTCP(from string) net.Conn {
	s.t.Helper()
	c, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.IP(netip.MustParseAddr(from).AsSlice())}, net.TCPAddrFromAddrPort(s.addrs["tcp"]))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(6 * time.Second))
	return c
}

func (s *stage) askTCP(q clientQuery) []byte {
	s.t.Helper()
	c := s.dialTCP("127.0.0.2")
	defer c.Close()
	if err := writeTCP(c, q.pack(s.t)); err != nil {
		s.t.Fatal(err)
	}
	b, err := readTCP(c, maxTCP)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// upstream is a name server on loopback, UDP and TCP on one port. Its handler
// gives the replies to send, none for silence.
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int32
}

func newUpstream(t *testing.T, handle func(m dnsmessage.Message, tcp bool) [][]byte) *upstream {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: netip.MustParseAddrPort(ln.Addr().String())}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(u.addr))
	if err != nil {
		ln.Close()
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { pc.Close(); ln.Close(); wg.Wait() })
	wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			u.udp.Add(1)
			var m dnsmessage.Message
			if err := m.Unpack(b[:n]); err != nil {
				t.Errorf("upstream got %x: %v", b[:n], err)
				return
			}
			for _, r := range handle(m, false) {
				_, _ = pc.WriteToUDPAddrPort(r, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			u.tcp.Add(1)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if b, err := readTCP(c, maxTCP); err == nil {
				var m dnsmessage.Message
				if err := m.Unpack(b); err != nil {
					t.Errorf("upstream got %x: %v", b, err)
				}
				for _, r := range handle(m, true) {
					_ = writeTCP(c, r)
				}
			}
			c.Close()
		}
	})
	return u
}

func (u *upstream) word() string { return "upstream=" + u.addr.String() }

// respond answers a question with n addresses.
func respond(m dnsmessage.Message, rcode dnsmessage.RCode, n int) []byte {
	r := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true, RCode: rcode},
		Questions: m.Questions,
	}
	for i := range n {
		r.Answers = append(r.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{198, 51, 100, byte(i + 1)}},
		})
	}
	opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
	_ = opt.Header.SetEDNS0(4096, dnsmessage.RCodeSuccess, false)
	r.Additionals = append(r.Additionals, opt)
	b, err := r.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func answering(n int) func(m dnsmessage.Message, tcp bool) [][]byte {
	return func(m dnsmessage.Message, _ bool) [][]byte { return [][]byte{respond(m, 0, n)} }
}

func silent(dnsmessage.Message, bool) [][]byte { return nil }

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 5 seconds", what)
		}
	}
}
