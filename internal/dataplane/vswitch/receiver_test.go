package vswitch

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestDropsAreTheirs: a drop is counted at the port whose doing it is, the sender's or the receiver's, and nowhere else.
func TestDropsAreTheirs(t *testing.T) {
	w := newWire(t, AttachAuto)
	isolate := func(a, b bool) {
		w.a = w.replace(w.a, func(p *plan.Port) { p.Policy = plan.Policy{Isolated: a} })
		w.b = w.replace(w.b, func(p *plan.Port) { p.Policy = plan.Policy{Isolated: b} })
	}
	rules := func(out, in *plan.RuleList) func() {
		return func() {
			isolate(false, false)
			w.rulesA(out, nil)
			w.rulesB(nil, in)
		}
	}
	families(t, func(t *testing.T, family int) {
		port := uint16(1000 * (family + 1))
		plain := func() []byte {
			port++
			return th.Frame(append([]th.Layer{eth(w.ma, w.mb), ip(w.ga[family], w.gb[family])}, datagram(port, 53)...)...)
		}
		rest := func() []byte {
			port++
			return w.fragment(family, frag{id: uint32(port), offset: 64, proto: unix.IPPROTO_UDP}, th.Text("the rest of a packet"))
		}
		for _, c := range []struct {
			name   string
			set    func()
			frame  func() []byte
			reason Reason
			at     plan.PortID
		}{
			{"the receiver is isolated", func() { isolate(false, true) }, plain, ReasonIsolated, w.b.ID},
			{"the sender is isolated", func() { isolate(true, false) }, plain, ReasonIsolated, w.a.ID},
			{"both are", func() { isolate(true, true) }, plain, ReasonIsolated, w.a.ID},
			{"the receiver's rules", rules(nil, list(plan.Block)), plain, ReasonPolicyIn, w.b.ID},
			{"the sender's rules", rules(list(plan.Block), nil), plain, ReasonPolicyOut, w.a.ID},
			{"both rules", rules(list(plan.Block), list(plan.Block)), plain, ReasonPolicyOut, w.a.ID},
			{"a fragment for the receiver's rules", rules(nil, list(plan.Allow)), rest, ReasonFragment, w.b.ID},
			{"a fragment for the sender's rules", rules(list(plan.Allow), nil), rest, ReasonFragment, w.a.ID},
			{"a fragment for both", rules(list(plan.Allow), list(plan.Allow)), rest, ReasonFragment, w.a.ID},
		} {
			c.set()
			w.lost(t, c.name, w.a, w.b, c.frame(), c.reason, c.at)
		}
		// The gateway routes, also between two ports; who is isolated speaks with it, and with what is behind it, alone.
		gateway, far := [2]netip.Addr{gateway4(1), gateway6(1)}[family], [2]netip.Addr{addr("192.0.2.7"), addr("2001:db8::7")}[family]
		frame := func(from, to th.MAC, src, dst netip.Addr) []byte {
			port++
			return th.Frame(append([]th.Layer{eth(from, to), ip(src, dst)}, datagram(port, 53)...)...)
		}
		isolate(true, false)
		w.lost(t, "by the gateway, the sender is isolated", w.a, w.gateway, frame(w.ma, w.mg, w.ga[family], w.gb[family]), ReasonIsolated, w.a.ID)
		if got := w.send(w.a, w.gateway, frame(w.ma, w.mg, w.ga[family], far)); got != delivery {
			t.Errorf("an isolated port to the outside: %s", got)
		}
		isolate(false, true)
		w.lost(t, "from the gateway, the receiver is isolated", w.gateway, w.b, frame(w.mg, w.mb, w.ga[family], w.gb[family]), ReasonIsolated, w.b.ID)
		for _, src := range []netip.Addr{gateway, far} {
			if got := w.send(w.gateway, w.b, frame(w.mg, w.mb, src, w.gb[family])); got != delivery {
				t.Errorf("%s to an isolated port: %s", src, got)
			}
		}
	})
}

// lost sends a frame, and wants it to be counted at one port.
func (w *wire) lost(t *testing.T, name string, from, to *plan.Port, frame []byte, reason Reason, at plan.PortID) {
	t.Helper()
	before, count := w.losses(), w.droppedAt(at, at == to.ID)
	if got := w.send(from, to, frame); got != reason.String() {
		t.Errorf("%s: %s, want %s", name, got, reason)
	}
	for k, n := range w.losses() {
		want := before[k]
		if k == (loss{at, reason}) {
			want++
		}
		if n != want {
			t.Errorf("%s: %s of %s were %d and are %d, want %d", name, k.Reason, k.Port, before[k], n, want)
		}
	}
	if n := w.droppedAt(at, at == to.ID) - count; n != 1 {
		t.Errorf("%s: the counters of %s went up by %d", name, at, n)
	}
}

func (w *wire) droppedAt(id plan.PortID, incoming bool) uint64 {
	w.t.Helper()
	c, err := w.lab.a.Counters(id)
	if err != nil {
		w.t.Fatal(err)
	}
	if incoming {
		return c.RxDropped
	}
	return c.TxDropped
}

// TestFullShareIsTheReceivers: what the host cannot send because the receiver's share of the table is used up is the receiver's.
func TestFullShareIsTheReceivers(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.rulesB(list(plan.Block), nil) // its answers need the flow
	w.full(10)
	refused := false
	before := w.losses()
	for i := range 20 {
		frame := th.Frame(append([]th.Layer{eth(hw(w.gateway.MAC), w.mb), ip(netip.MustParseAddr("198.51.100.9"), w.gb[0])}, datagram(uint16(3000+i), 53)...)...)
		if got := w.send(w.gateway, w.b, frame); got == "flow-table" {
			refused = true
		} else if got != delivery {
			t.Fatalf("frame %d: %s", i, got)
		}
	}
	now := w.losses()
	at := loss{w.b.ID, ReasonFlowTable}
	if !refused || now[at] == before[at] || now[loss{w.gateway.ID, ReasonFlowTable}] != before[loss{w.gateway.ID, ReasonFlowTable}] {
		t.Errorf("refused: %t; drops %v, before %v", refused, now, before)
	}
}

// TestLostFlowsAreCounted has more connections end than the log has room for, with nobody who reads it: what is not in the log is
// counted.
func TestLostFlowsAreCounted(t *testing.T) {
	w := newWire(t, AttachAuto)
	const workers, each = 4, 2500
	var wg sync.WaitGroup
	for worker := range workers {
		to := w.hostB.TCPEcho(netip.AddrPortFrom(w.b.Addrs[worker%2], uint16(80+worker)))
		wg.Go(func() {
			w.hostA.Do(func() {
				for i := range each {
					if err := once(t.Context(), to, true); err != nil {
						t.Errorf("connection %d of worker %d: %v", i, worker, err)
						return
					}
				}
			})
		})
	}
	wg.Wait()
	var lost uint64
	th.Eventually(t, 20*time.Second, func() (err error) {
		for k := range w.flowTable() {
			if k.Proto == unix.IPPROTO_TCP {
				return fmt.Errorf("%v is in the table still", k)
			}
		}
		lost, err = w.lab.a.LostFlows()
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	logged := uint64(0)
	if err := w.lab.a.EndedFlows(ctx, func(f Flow) {
		if f.Protocol == unix.IPPROTO_TCP {
			logged++
		}
	}); err != nil {
		t.Fatal(err)
	}
	if lost == 0 || logged == 0 || logged+lost < workers*each || logged+lost > workers*each+100 {
		t.Errorf("%d connections ended: %d are in the log, %d are counted as lost", workers*each, logged, lost)
	}
}
