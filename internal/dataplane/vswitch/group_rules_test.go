package vswitch

import (
	"bytes"
	"context"
	"maps"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// copies sends a frame to everybody on a's switch and tells whether b and the host get
// it. It waits for those that should.
func (w *wire) copies(frame []byte, toB, toHost bool) (b, host bool) {
	w.t.Helper()
	got := func(id plan.PortID) bool {
		for _, f := range w.heard[id].Frames() {
			if !f.Outgoing && bytes.Equal(f.Data[14:], frame[14:]) {
				return true
			}
		}
		return false
	}
	w.hostA.SendFrame("eth0", frame)
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) && (toB && !got(w.b.ID) || toHost && !got(w.gateway.ID)) {
		<-time.After(5 * time.Millisecond)
	}
	<-time.After(20 * time.Millisecond) // for those that should not
	return got(w.b.ID), got(w.gateway.ID)
}

// TestGroupFramesMeetRules: a broadcast or multicast is judged by its sender's rules once
// and by each receiver's for its copy. ARP, neighbour discovery and DHCP are exempt.
func TestGroupFramesMeetRules(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		all4, all6 := addr("255.255.255.255"), addr("ff02::1")
		mc4, mc6 := addr("239.1.2.3"), addr("ff02::1234")
		seq := uint16(100)
		frame := func(dst netip.Addr, port uint16) []byte {
			seq++ // each is another one
			mac := th.MulticastMAC(dst)
			if dst == all4 {
				mac = th.Broadcast()
			}
			src := w.ga[0]
			if dst.Is6() {
				src = w.ga[1]
			}
			return th.Frame(eth(w.ma, mac), ip(src, dst), udp(seq, port))
		}
		destinations := []netip.Addr{all4, mc4, all6, mc6}
		block := list(plan.Allow, to(plan.Block, unix.IPPROTO_UDP, 2000))
		for _, c := range []struct {
			name         string
			out, in      *plan.RuleList // of a, of b
			port         uint16
			b, gateway   bool
			reason       Reason
			dropped      plan.PortID
			alsoIsolated bool
		}{
			{name: "no rules", port: 2000, b: true, gateway: true},
			{name: "the sender blocks", out: block, port: 2000, reason: ReasonPolicyOut, dropped: w.a.ID},
			{name: "the sender blocks another port", out: block, port: 2001, b: true, gateway: true},
			{name: "a receiver blocks", in: list(plan.Allow, own(plan.Block, unix.IPPROTO_UDP, 2000)), port: 2000, gateway: true, reason: ReasonPolicyIn, dropped: w.b.ID},
			{name: "a receiver blocks all", in: list(plan.Block), port: 2000, gateway: true, reason: ReasonPolicyIn, dropped: w.b.ID},
			{name: "the receiver is isolated", port: 2000, gateway: true, alsoIsolated: true},
		} {
			w.rulesA(c.out, nil)
			w.b = w.replace(w.b, func(p *plan.Port) { p.Policy = plan.Policy{In: c.in, Isolated: c.alsoIsolated} })
			for _, dst := range destinations {
				before := uint64(0)
				if c.reason != 0 {
					before = w.drops(c.dropped, c.reason)
				}
				b, gateway := w.copies(frame(dst, c.port), c.b, c.gateway)
				if b != c.b || gateway != c.gateway {
					t.Errorf("%s, to %s: b got it: %t, the host: %t; want %t and %t", c.name, dst, b, gateway, c.b, c.gateway)
				}
				if c.reason != 0 && w.drops(c.dropped, c.reason) != before+1 {
					t.Errorf("%s, to %s: not counted as %s of %s", c.name, dst, c.reason, c.dropped)
				}
			}
		}
		// Pieces have no ports, and group frames no flow that remembers them.
		w.rulesA(block, nil)
		w.b = w.replace(w.b, func(p *plan.Port) { p.Policy = plan.Policy{} })
		rest := th.Frame(eth(w.ma, th.Broadcast()), th.IPv4{Src: w.ga[0], Dst: all4, ID: 7, FragmentOffset: 1480, Protocol: 17}, th.Text("rest"))
		if b, gateway := w.copies(rest, false, false); b || gateway {
			t.Error("a later fragment of a broadcast passes the sender's rules")
		}
	})
}

// TestLinkKeepsWorking: with everything blocked, addresses are still found, and a DHCP
// client's question reaches the host.
func TestLinkKeepsWorking(t *testing.T) {
	w := newWire(t, AttachAuto)
	nothing := list(plan.Block)
	w.rulesA(nothing, nothing)
	w.rulesB(nothing, nothing)
	for family, target := range w.b.Addrs[:2] {
		if err := w.hostA.Silent(target); err != nil {
			t.Error(err)
		}
		mac := w.hostA.Run(t, "ip", "neigh", "show", "to", target.String(), "dev", "eth0")
		if !bytes.Contains([]byte(mac), []byte(w.mb.String())) {
			t.Errorf("a did not find b's MAC in family %d: %q", family, mac)
		}
	}
	question := th.Frame(eth(w.ma, th.Broadcast()), v4(addr("0.0.0.0"), addr("255.255.255.255")), udp(68, 67), th.Text("discover"))
	if _, gateway := w.copies(question, true, true); !gateway {
		t.Error("a DHCP client's question does not reach the host")
	}
	// Between isolated ports such frames would carry anything.
	w.a = w.replace(w.a, func(p *plan.Port) { p.Policy.Isolated = true })
	before := w.losses()
	question = th.Frame(eth(w.ma, th.Broadcast()), v4(addr("0.0.0.0"), addr("255.255.255.255")), udp(68, 67), th.Text("from an isolated port"))
	if b, gateway := w.copies(question, false, true); b || !gateway {
		t.Errorf("a DHCP client's question from an isolated port reaches b: %t, and the host: %t", b, gateway)
	}
	if after := w.losses(); !maps.Equal(before, after) {
		t.Errorf("it counts as a drop: %v, and before %v", after, before)
	}
	reply := th.Frame(eth(w.ma, w.mb), th.ARP{Reply: true, SenderMAC: w.ma, SenderIP: w.ga[0], TargetMAC: w.mb, TargetIP: w.gb[0]})
	if got := w.send(w.a, w.b, reply); got != ReasonIsolated.String() {
		t.Errorf("an answer of ARP from an isolated port to b: %s", got)
	}
	w.a = w.replace(w.a, func(p *plan.Port) { p.Policy.Isolated = false })
	conn, err := w.hostA.DialContext(context.Background(), "udp", netip.AddrPortFrom(gateway4(1), 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dropped := w.drops(w.a.ID, ReasonPolicyOut)
	_, _ = conn.Write([]byte("x"))
	th.Eventually(t, 3*time.Second, func() error {
		if w.drops(w.a.ID, ReasonPolicyOut) == dropped {
			return context.DeadlineExceeded
		}
		return nil
	})
}
