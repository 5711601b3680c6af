package vswitch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

const mbit = 1_000_000 / 8

// setRates changes a port's rates, as the engine does.
func (p *pair) setRates(port **plan.Port, out, in uint64) {
	p.t.Helper()
	old, next := *port, **port
	next.Policy.RateOut, next.Policy.RateIn = out, in
	*port = &next
	p.plan.Ports[next.ID] = &next
	p.update(change(old, &next))
}

// load is traffic that somebody receives.
type load struct{ got atomic.Uint64 }

// stream sends by TCP as fast as it goes, until the test ends.
func stream(t *testing.T, from, to *th.Host, at netip.AddrPort) *load {
	t.Helper()
	return streamBy(t, from, to, at, at)
}

// streamBy does so to a server that is asked at another address.
func streamBy(t *testing.T, from, to *th.Host, at, ask netip.AddrPort) *load {
	t.Helper()
	l, err := to.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	out := &load{}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := c.Read(buf)
			out.got.Add(uint64(n))
			if err != nil {
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp", ask.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1<<17)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	return out
}

// blast sends datagrams at a rate, whatever becomes of them.
func blast(t *testing.T, from, to *th.Host, at netip.AddrPort, bytes int) *load {
	t.Helper()
	rx, err := to.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	out := &load{}
	t.Cleanup(func() { rx.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := rx.ReadFrom(buf)
			if err != nil {
				return
			}
			out.got.Add(uint64(n) + 42) // the frame's and the headers' share, less 20 in IPv6
		}
	}()
	c, err := from.DialContext(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		payload := make([]byte, 1200)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		begin, sent := time.Now(), 0
		for range tick.C {
			for ; sent < int(time.Since(begin).Seconds()*float64(bytes)); sent += len(payload) {
				if _, err := c.Write(payload); err != nil {
					return
				}
			}
		}
	}()
	return out
}

// measure gives the bytes per second of the next while. What was saved up has passed before.
func (l *load) measure(d time.Duration) float64 {
	settle := time.NewTimer(700 * time.Millisecond)
	<-settle.C
	begin, before := time.Now(), l.got.Load()
	settle.Reset(d)
	<-settle.C
	return float64(l.got.Load()-before) / time.Since(begin).Seconds()
}

// settles wants the load to be at the bound. A bound without a queue makes TCP send in bursts with its time-out between
// them, a time-out that doubles leaves a gap, and a busy machine another: not every window has to hit, but none may exceed.
func settles(t *testing.T, l *load, want uint64) {
	t.Helper()
	for range 4 {
		got := l.measure(4 * time.Second)
		t.Logf("%.2f Mbit/s of %.0f", got/mbit, float64(want)/mbit)
		switch ratio := got / float64(want); {
		case ratio > 1.1:
			t.Errorf("%.2f Mbit/s of %.0f", got/mbit, float64(want)/mbit)
			return
		case ratio >= 0.7:
			return
		}
	}
	t.Errorf("never came up to %.0f Mbit/s", float64(want)/mbit)
}

// TestRates measures what passes a bounded port, by TCP and UDP, and counts what does not.
func TestRates(t *testing.T) {
	p := newPair(t, AttachAuto)
	port := uint16(7000)
	bounds := []uint64{10 * mbit, 100 * mbit}
	for family := range 2 {
		for _, side := range []string{"out", "in"} {
			bound := bounds[(family+len(side))%2] // each side and each family meets either
			t.Run(fmt.Sprintf("%s/%s/%d Mbit", p.b.Addrs[family], side, bound/mbit), func(t *testing.T) {
				p.t = t
				dropper, reason := p.a.ID, ReasonRateOut
				if side == "out" {
					p.setRates(&p.a, bound, 0)
				} else {
					p.setRates(&p.b, 0, bound)
					dropper, reason = p.b.ID, ReasonRateIn
				}
				defer p.setRates(&p.a, 0, 0)
				defer p.setRates(&p.b, 0, 0)
				before := p.drops(dropper, reason)
				port++
				t.Run("TCP", func(t *testing.T) {
					settles(t, stream(t, p.hostA, p.hostB, netip.AddrPortFrom(p.b.Addrs[family], port)), bound)
				})
				t.Run("UDP", func(t *testing.T) {
					settles(t, blast(t, p.hostA, p.hostB, netip.AddrPortFrom(p.b.Addrs[family], port), int(2*bound)), bound)
				})
				if p.drops(dropper, reason) == before {
					t.Errorf("no drop for %s was counted", reason)
				}
			})
		}
	}
}

// TestRateChange bounds a running connection, unbounds it, and bounds the answers of one
// that was opened from the other side.
func TestRateChange(t *testing.T) {
	p := newPair(t, AttachAuto)
	l := stream(t, p.hostA, p.hostB, netip.AddrPortFrom(p.b.Addrs[0], 7001))
	if got := l.measure(300 * time.Millisecond); got < 500*mbit {
		t.Errorf("%.0f Mbit/s without a bound", got/mbit)
	}
	for _, bound := range []uint64{20 * mbit, 60 * mbit} {
		p.setRates(&p.a, bound, 0)
		settles(t, l, bound)
	}
	if err := p.lab.a.objs.BhRatesV1.Delete(bpfRateKey{Port: p.lab.a.applied[p.a.ID].index, Side: rateOut}); err != nil {
		t.Fatal(err)
	}
	if drift := p.sync(); len(drift) != 1 || drift[0].Object != "map "+bpfMapBhRatesV1 || drift[0].ID != string(p.a.ID) {
		t.Errorf("drift %v after somebody removed the rate", drift)
	}
	if drift := p.sync(); len(drift) != 0 || rateKeys(t, p) != 1 {
		t.Errorf("drift %v and %d rates after the repair", drift, rateKeys(t, p))
	}
	p.setRates(&p.a, 0, 0)
	p.setRates(&p.b, 0, 40*mbit)
	settles(t, l, 40*mbit)
	p.setRates(&p.b, 0, 0)
	if got := l.measure(300 * time.Millisecond); got < 500*mbit {
		t.Errorf("%.0f Mbit/s after the bound is gone", got/mbit)
	}
	if keys := rateKeys(t, p); keys != 0 {
		t.Errorf("%d rates left", keys)
	}
}

// TestRateRaised: what a low rate has used up is no debt under a higher one, nor under one that comes after none.
func TestRateRaised(t *testing.T) {
	p := newPair(t, AttachAuto)
	const low, high = 10_000, 5_000_000
	l := blast(t, p.hostA, p.hostB, netip.AddrPortFrom(p.b.Addrs[0], 7009), 300_000)
	usedUp := func() {
		t.Helper()
		before := p.drops(p.a.ID, ReasonRateOut)
		th.Eventually(t, 10*time.Second, func() error {
			if n := p.drops(p.a.ID, ReasonRateOut) - before; n < 10 {
				return fmt.Errorf("%d drops", n)
			}
			return nil
		})
	}
	flows := func() {
		t.Helper()
		before := l.got.Load()
		th.Eventually(t, 3*time.Second, func() error {
			if n := l.got.Load() - before; n < 100_000 {
				return fmt.Errorf("%d bytes since the rate is higher", n)
			}
			return nil
		})
	}
	p.setRates(&p.a, low, 0)
	usedUp()
	p.setRates(&p.a, high, 0)
	flows()
	p.setRates(&p.a, low, 0)
	usedUp()
	p.setRates(&p.a, 0, 0)
	p.setRates(&p.a, high, 0)
	flows()
}

// TestRatesAcrossTheHost: flows that pass by the host's stack obey the same bounds.
func TestRatesAcrossTheHost(t *testing.T) {
	e := newEdge(t, AttachAuto)
	was := e.plan.Ports[e.c.ID]
	is := *was
	is.Policy.RateOut, is.Policy.RateIn = 30*mbit, 60*mbit
	e.plan.Ports[e.c.ID] = &is
	e.update(change(was, &is))
	for _, f := range e.flows()[:4] {
		t.Run(f.name, func(t *testing.T) {
			bound := uint64(60 * mbit)
			if f.from == e.inner {
				bound = 30 * mbit
			}
			settles(t, streamBy(t, f.from, f.at, f.listen, f.ask), bound)
		})
	}
	e.plan.Ports[e.c.ID] = was
	e.update(change(&is, was))
	for _, f := range e.flows()[:2] {
		conn := e.open(f)
		e.carried(conn) // without bounds both ways are carried again
		conn.Close()
	}
}

func rateKeys(t *testing.T, p *pair) int {
	t.Helper()
	m := newTable[bpfRateKey, bpfRate](bpfMapBhRatesV1, p.lab.a.objs.BhRatesV1, new(int))
	if _, err := m.list(); err != nil {
		t.Fatal(err)
	}
	return len(m.have)
}

// TestRateOfBroadcast: group frames are bounded where they are sent, and each copy where it arrives.
func TestRateOfBroadcast(t *testing.T) {
	for _, side := range []string{"out", "in"} {
		t.Run(side, func(t *testing.T) {
			p := newPair(t, AttachAuto)
			if side == "out" {
				p.setRates(&p.a, 4*mbit, 0)
			} else {
				p.setRates(&p.b, 0, 4*mbit)
			}
			l := blast(t, p.hostA, p.hostB, netip.AddrPortFrom(netip.MustParseAddr("10.1.255.255"), 7002), 12*mbit)
			settles(t, l, 4*mbit)
		})
	}
}

// TestRateMarks: a sender that knows ECN is told before anything is dropped.
func TestRateMarks(t *testing.T) {
	p := newPair(t, AttachAuto)
	p.setRates(&p.a, 4*mbit, 0) // a bucket of 131,072 bytes
	for _, to := range p.b.Addrs {
		rx, err := p.hostB.ListenPacket("udp", netip.AddrPortFrom(to, 7003).String())
		if err != nil {
			t.Fatal(err)
		}
		defer rx.Close()
		tx, err := p.hostA.DialContext(t.Context(), "udp", netip.AddrPortFrom(to, 7003).String())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Close()
		level, set, receive, kind := unix.IPPROTO_IP, unix.IP_TOS, unix.IP_RECVTOS, unix.IP_TOS
		if to.Is6() {
			level, set, receive, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.IPV6_RECVTCLASS, unix.IPV6_TCLASS
		}
		setOption(t, tx.(*net.UDPConn), level, set, 2) // "capable of ECN"
		setOption(t, rx.(*net.UDPConn), level, receive, 1)
		marked, plain := 0, 0
		payload, oob := make([]byte, 1200), make([]byte, 100)
		for range 90 { // 111 kB: more than half of the bucket, and no more than all
			if _, err := tx.Write(payload); err != nil {
				t.Fatal(err)
			}
			_ = rx.SetReadDeadline(time.Now().Add(2 * time.Second))
			_, n, _, _, err := rx.(*net.UDPConn).ReadMsgUDP(payload, oob)
			if err != nil {
				t.Fatalf("%s: after %d datagrams: %v", to, marked+plain, err)
			}
			messages, err := unix.ParseSocketControlMessage(oob[:n])
			if err != nil || len(messages) != 1 || int(messages[0].Header.Type) != kind {
				t.Fatalf("control messages %v, %v", messages, err)
			}
			if messages[0].Data[0]&3 == 3 {
				marked++
			} else {
				plain++
			}
		}
		t.Logf("%s: %d unmarked, %d marked", to, plain, marked)
		if plain < 20 || marked < 5 { // on a slow machine the bucket fills between two of them
			t.Errorf("%s: %d unmarked, %d marked", to, plain, marked)
		}
		p.setRates(&p.a, 0, 0)
		p.setRates(&p.a, 4*mbit, 0) // full again
	}
}

func setOption(t *testing.T, c *net.UDPConn, level, name, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}
