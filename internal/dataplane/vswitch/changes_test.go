package vswitch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// stream sends through a TCP connection as fast as it goes until the test ends, and
// counts what arrives.
func (p *pair) stream(t *testing.T, family int) *atomic.Int64 {
	t.Helper()
	l, err := p.hostB.Listen("tcp", netip.AddrPortFrom(p.b.Addrs[family], 80).String())
	if err != nil {
		t.Fatal(err)
	}
	arrived := new(atomic.Int64)
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			arrived.Add(int64(n))
		}
	})
	conn, err := p.hostA.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		// Its last data may never arrive: no lingering.
		_ = conn.(*net.TCPConn).SetLinger(0)
		l.Close()
		conn.Close()
		wg.Wait()
	})
	return arrived
}

func flows(arrived *atomic.Int64) error {
	before := arrived.Load()
	<-time.After(5 * time.Millisecond)
	if arrived.Load() == before {
		return errors.New("nothing arrives")
	}
	return nil
}

// TestStreamIsCut: of a running stream no packet passes after the change that blocks it,
// by a rule of either end or by an address that joins a set, and it goes on after the
// change that takes the block away.
func TestStreamIsCut(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		families(t, func(t *testing.T, family int) {
			w := newWire(t, mode)
			inward := list(plan.Block)
			block := list(plan.Allow, to(plan.Block, unix.IPPROTO_TCP, 80))
			bySet := list(plan.Allow, plan.Rule{Action: plan.Block, Remote: plan.Addresses{Sets: []string{"bad"}}})
			whole := netip.PrefixFrom(w.b.Addrs[family], w.b.Addrs[family].BitLen())
			w.rulesA(bySet, inward)
			arrived := w.stream(t, family)
			for _, c := range []struct {
				name        string
				block, free func()
			}{
				{"a rule of the sender", func() { w.rulesA(block, inward) }, func() { w.rulesA(nil, inward) }},
				{"a rule of the receiver", func() { w.rulesB(nil, list(plan.Block)) }, func() { w.rulesB(nil, nil) }},
				{
					"isolation",
					func() { w.b = w.replace(w.b, func(p *plan.Port) { p.Policy.Isolated = true }) },
					func() { w.b = w.replace(w.b, func(p *plan.Port) { p.Policy.Isolated = false }) },
				},
				{"the sender's rules once more", func() { w.rulesA(block, inward) }, func() { w.rulesA(bySet, inward) }},
				{
					"an address that joins a set",
					func() { w.sets(map[string][]netip.Prefix{"bad": {whole}}) },
					func() { w.sets(map[string][]netip.Prefix{"bad": nil}) },
				},
			} {
				th.Eventually(t, 20*time.Second, func() error { return flows(arrived) })
				c.block()
				quiesce() // the packets that were there before have passed
				before := w.received(w.b)
				<-time.After(250 * time.Millisecond) // long enough for retransmissions
				if n := w.received(w.b) - before; n != 0 {
					t.Errorf("%s: %d packets passed after the change", c.name, n)
				}
				c.free()
			}
			th.Eventually(t, 20*time.Second, func() error { return flows(arrived) })
		})
	})
}

func (w *wire) received(p *plan.Port) uint64 {
	w.t.Helper()
	c, err := w.lab.a.Counters(p.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.RxPackets
}

// filler makes a list long, so that it takes a while to write.
func filler(n int) []plan.Rule {
	rules := make([]plan.Rule, n)
	for i := range rules {
		rules[i] = plan.Rule{
			Action: plan.Block, Protocols: []uint8{unix.IPPROTO_UDP},
			Remote:      plan.Addresses{Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 32)}},
			RemotePorts: []plan.PortRange{{First: uint16(i + 1), Last: uint16(i + 100)}},
		}
	}
	return rules
}

// TestSwap changes between two lists of rules under traffic. Both let port 1000 pass and
// stop port 2000, each by another of its rules; each stops one of ports 3001 and 3002. No
// packet may meet a mixture.
func TestSwap(t *testing.T) {
	const swaps = 500
	w := newWire(t, AttachAuto)
	block := func(ports ...uint16) plan.Rule { return to(plan.Block, unix.IPPROTO_UDP, ports...) }
	one := list(plan.Allow, append(filler(20), block(2000), to(plan.Allow, unix.IPPROTO_UDP, 1000), block(3001))...)
	two := list(plan.Allow, append([]plan.Rule{block(3002), to(plan.Allow, unix.IPPROTO_UDP, 1000)}, append(filler(30), block(1999, 2000))...)...)
	w.rulesA(one, nil)

	dropped := func() int64 {
		return int64(w.losses()[loss{w.a.ID, ReasonPolicyOut}])
	}
	// A CPU whose queue is full drops frames of a veth before any program has them.
	never := func() int64 { return int64(w.hostA.Link("eth0").Attrs().Statistics.TxDropped) }
	stopped, base, received, unsent := int64(0), dropped(), w.received(w.b), never()
	var sent [2]atomic.Int64
	leaks := new(atomic.Int64)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for family := range 2 {
		wg.Go(func() { w.pester(stop, family, 2000, &sent[0]) })
		wg.Go(func() { w.pester(stop, family, 1000, &sent[1]) })
		for _, port := range []uint16{1000, 2000} {
			conn, err := w.hostB.ListenPacket("udp", netip.AddrPortFrom(w.b.Addrs[family], port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if port == 2000 {
				go func() {
					for {
						if _, _, err := conn.ReadFrom(make([]byte, 100)); err != nil {
							return
						}
						leaks.Add(1)
					}
				}()
			}
		}
	}
	names := [2]string{delivery, policyOut}
	for i := range swaps {
		next := two
		if i%2 == 1 {
			next = one
		}
		w.rulesA(next, nil)
		// What has been sent since meets the new list.
		if i%10 < 2 {
			stopped += w.expect(t, 3001, names[i%2]) + w.expect(t, 3002, names[1-i%2])
		}
	}
	close(stop)
	wg.Wait()
	th.Eventually(t, 10*time.Second, func() error {
		lost := dropped() - base - stopped
		passed := int64(w.received(w.b) - received)
		most := never() - unsent
		if lost > sent[0].Load() || lost < sent[0].Load()-most || passed < sent[1].Load()-most {
			return fmt.Errorf("%d packets to the blocked port, %d dropped; %d to the open one, %d passed; at most %d met no program; all losses: %v",
				sent[0].Load(), lost, sent[1].Load(), passed, most, w.losses())
		}
		return nil
	})
	if n := leaks.Load(); n != 0 {
		t.Errorf("%d packets passed that both lists stop", n)
	}
	t.Logf("%d swaps, %d packets to the open port and %d to the blocked one", swaps, sent[1].Load(), sent[0].Load())
}

// expect sends a datagram while others do, and tells how many were stopped.
func (w *wire) expect(t *testing.T, port uint16, want string) int64 {
	t.Helper()
	frame := th.Frame(eth(w.ma, w.mb), v4(w.ga[0], w.gb[0]), udp(port, port))
	had := len(w.heard[w.b.ID].Frames())
	w.hostA.SendFrame("eth0", frame)
	end := th.Frame(eth(w.ma, w.mb), v4(w.ga[0], w.gb[0]), udp(port, 1000))
	w.hostA.SendFrame("eth0", end) // comes behind it
	got := policyOut
	th.Eventually(t, 5*time.Second, func() error {
		for _, f := range w.heard[w.b.ID].Frames()[had:] {
			if bytes.Equal(f.Data, frame) {
				got = delivery
			}
			if bytes.Equal(f.Data, end) {
				return nil
			}
		}
		return errors.New("port 1000 is lost")
	})
	if got != want {
		t.Errorf("port %d: %s, want %s", port, got, want)
	}
	if got == policyOut {
		return 1
	}
	return 0
}

// pester sends datagrams to a port of b, some over one flow and some over new ones.
func (w *wire) pester(stop <-chan struct{}, family int, port uint16, sent *atomic.Int64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dst := netip.AddrPortFrom(w.b.Addrs[family], port).String()
	old, err := w.hostA.DialContext(ctx, "udp", dst)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer old.Close()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		conn := old
		if i%4 == 0 {
			if conn, err = w.hostA.DialContext(ctx, "udp", dst); err != nil {
				w.t.Error(err)
				return
			}
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			w.t.Error(err)
			return
		}
		sent.Add(1)
		if conn != old {
			conn.Close()
		}
		<-time.After(200 * time.Microsecond)
	}
}
