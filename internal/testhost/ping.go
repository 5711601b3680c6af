package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Ping sends echo requests until one is answered, for two seconds.
func (h *Host) Ping(addr netip.Addr) error {
	h.t.Helper()
	return h.ping(addr, 20, 100*time.Millisecond)
}

// Silent sends three echo requests and returns an error if one is answered within 300 ms.
func (h *Host) Silent(addr netip.Addr) error {
	h.t.Helper()
	if err := h.ping(addr, 3, 100*time.Millisecond); err == nil {
		return fmt.Errorf("%s: %s answers, want silence", h.name, addr)
	}
	return nil
}

func (h *Host) ping(addr netip.Addr, count int, interval time.Duration) error {
	network, echo, proto := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), 1
	reply := icmp.Type(ipv4.ICMPTypeEchoReply)
	if addr.Is6() {
		network, echo, proto, reply = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, 58, ipv6.ICMPTypeEchoReply
	}
	conn, err := h.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer conn.Close()
	dst := &net.IPAddr{IP: addr.AsSlice()}
	if addr.Zone() != "" {
		// Package net would look the name up in the test's own namespace; a number needs no looking up.
		dst.Zone = strconv.Itoa(h.Link(addr.Zone()).Attrs().Index)
	}
	// A raw socket sees the replies to everybody's requests: know ours by a payload of its own.
	cookie := fmt.Appendf(nil, "testhost %s %p", h.id, conn)
	var last error
	for seq := range count {
		msg := icmp.Message{Type: echo, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: seq, Data: cookie}}
		b, err := msg.Marshal(nil)
		if err != nil {
			return err
		}
		deadline := time.Now().Add(interval)
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if _, last = conn.WriteTo(b, dst); last != nil {
			// No route, or no neighbour: this may pass, so use up the interval.
			waitUntil(h.t.Context(), deadline)
			continue
		}
		if last = readReply(conn, proto, reply, cookie); last == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: ping %s: no answer to %d requests: %w", h.name, addr, count, last)
}

func readReply(conn net.PacketConn, proto int, reply icmp.Type, cookie []byte) error {
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("time is over")
		}
		if err != nil {
			return err
		}
		msg, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || msg.Type != reply {
			continue
		}
		if e, ok := msg.Body.(*icmp.Echo); ok && bytes.Equal(e.Data, cookie) {
			return nil
		}
	}
}

func waitUntil(ctx context.Context, deadline time.Time) {
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	<-ctx.Done()
}
