package vswitch

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

const toHost = "to the host"

// detours gives a detours of both families and some protocols.
func (w *wire) detours(protocols ...uint8) {
	w.t.Helper()
	w.a = w.replace(w.a, func(p *plan.Port) {
		p.Detours = nil
		for _, proto := range protocols {
			for _, d := range []plan.Detour{
				{To: netip.MustParseAddrPort("192.0.2.1:3128"), Destinations: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
				{To: netip.MustParseAddrPort("[2001:db8::1]:3128"), Destinations: []netip.Prefix{netip.MustParsePrefix("::/0")}},
			} {
				d.Protocol = proto
				p.Detours = append(p.Detours, d)
			}
		}
	})
}

// turns plays steps in which what a sends may go to the host instead of to b, whatever MAC it bears, and what comes from the host
// bears b's address.
func (w *wire) turns(t *testing.T, family int, steps []step) {
	t.Helper()
	for i, s := range steps {
		from, to, src, dst := w.a, w.b, w.ga[family], w.gb[family]
		mac, want := w.b.MAC, s.want
		if s.back {
			from, to, src, dst, mac = w.b, w.a, dst, src, w.a.MAC
		}
		switch {
		case want == toHost && s.back:
			from, want = w.gateway, delivery
		case want == toHost:
			to, want = w.gateway, delivery
		}
		frame := th.Frame(append([]th.Layer{eth(hw(from.MAC), hw(mac)), ip(src, dst)}, s.l4...)...)
		if got := w.send(from, to, frame); got != want {
			t.Errorf("step %d, %s: %s, want %s: %s", i+1, s.name, got, s.want, th.Describe(frame))
			continue
		}
		if to == w.gateway {
			w.bearsMAC(t, s.name, frame)
		}
	}
}

// bearsMAC checks that a frame came to the host under the host's MAC, without which its stack would not take it.
func (w *wire) bearsMAC(t *testing.T, name string, frame []byte) {
	t.Helper()
	for _, f := range w.heard[w.gateway.ID].Frames() {
		if bytes.Equal(f.Data[14:], frame[14:]) && !bytes.Equal(f.Data[:6], w.gateway.MAC[:]) {
			t.Errorf("%s: the host got it under the MAC %x, which is not its own", name, f.Data[:6])
		}
	}
}

func TestSteer(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		families(t, func(t *testing.T, family int) {
			port := uint16(1000 + 100*family)
			w.detours(6)
			w.turns(t, family, []step{
				{"SYN", false, tcp(port, 80, "S"), toHost},
				{"SYN-ACK of the proxy", true, tcp(80, port, "SA"), toHost},
				{"ACK", false, tcp(port, 80, "A"), toHost},
				{"data", false, tcp(port, 80, "PA"), toHost},
				{"data of the proxy", true, tcp(80, port, "PA"), toHost},

				{"SYN of b", true, tcp(80, port+1, "S"), delivery},
				{"SYN-ACK to b", false, tcp(port+1, 80, "SA"), delivery},
				{"data to b", false, tcp(port+1, 80, "PA"), delivery},

				{"a datagram", false, datagram(port, 53), delivery},
				{"an echo", false, ping(port, false), delivery},
				{"in the middle of nothing", false, tcp(port+2, 80, "PA"), toHost},
				{"b in the middle of nothing", true, tcp(80, port+3, "PA"), delivery},
				{"which gives no right to answer", false, tcp(port+3, 80, "PA"), toHost},
			})
			// Flows are judged again, and stay what they are.
			w.rulesA(list(plan.Allow, to(plan.Block, 6, 81)), list(plan.Block, own(plan.Allow, 6, port+1)))
			w.turns(t, family, []step{
				{"data after a change of rules", false, tcp(port, 80, "PA"), toHost},
				{"data of the proxy", true, tcp(80, port, "PA"), toHost},
				{"data to b", false, tcp(port+1, 80, "PA"), delivery},
				{"data of b", true, tcp(80, port+1, "PA"), delivery},
				{"what a rule blocks", false, tcp(port, 81, "S"), policyOut},
				{"a new connection", false, tcp(port+4, 80, "S"), toHost},
				{"its answer, by no rule but as one", true, tcp(80, port+4, "SA"), toHost},
				{"a connection from outside", true, tcp(80, port+5, "S"), policyIn},
			})
			w.rulesA(nil, nil)
			w.detours()
			w.turns(t, family, []step{
				{"data without the detour", false, tcp(port, 80, "PA"), delivery},
				{"a new connection", false, tcp(port+6, 80, "S"), delivery},
			})
			w.detours(6)
			w.turns(t, family, []step{{"and with it again", false, tcp(port+6, 80, "A"), toHost}})
			w.detours()
		})
	})
}

// TestSteerByPrefix: the longest prefix counts, IPv6's widest one says nothing of IPv4, and a destination that is nobody's is
// as good as one that is somebody's.
func TestSteerByPrefix(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.a = w.replace(w.a, func(p *plan.Port) {
		p.Detours = []plan.Detour{
			{Protocol: 6, To: netip.MustParseAddrPort("[2001:db8::1]:1"), Destinations: []netip.Prefix{netip.MustParsePrefix("::/0")}, Except: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")}},
			{Protocol: 6, To: netip.MustParseAddrPort("[2001:db8::1]:1"), Destinations: []netip.Prefix{netip.PrefixFrom(w.gb[1], 128)}},
			{Protocol: 17, To: netip.MustParseAddrPort("192.0.2.1:1"), Destinations: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Except: []netip.Prefix{netip.PrefixFrom(w.gb[0], 32)}},
		}
	})
	for _, tc := range []struct {
		name     string
		dst      netip.Addr
		l4       []th.Layer
		receiver *plan.Port
	}{
		{"IPv4 beside a detour of all IPv6", w.gb[0], tcp(1, 80, "S"), w.b},
		{"in an exception, and in another detour", w.gb[1], tcp(1, 80, "S"), w.gateway},
		{"in the exception alone", addr("fd00:1::99"), tcp(1, 80, "S"), w.b},
		{"an address behind b", addr("2001:db8::99"), tcp(1, 80, "S"), w.gateway},
		{"an excepted datagram", w.gb[0], datagram(1, 53), w.b},
		{"a datagram", addr("10.1.9.9"), datagram(1, 53), w.gateway},
	} {
		src := w.ga[0]
		if tc.dst.Is6() {
			src = w.ga[1]
		}
		frame := th.Frame(append([]th.Layer{eth(hw(w.a.MAC), hw(w.b.MAC)), ip(src, tc.dst)}, tc.l4...)...)
		if got := w.send(w.a, tc.receiver, frame); got != delivery {
			t.Errorf("%s: %s at port %s", tc.name, got, tc.receiver.ID)
		}
	}
	w.sync()
}

// TestSteerFragments: the rest of a packet goes where its first part went.
func TestSteerFragments(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.detours(17)
	rest, body := th.Text("the rest of it.."), th.Text("the body")
	families(t, func(t *testing.T, family int) {
		w.turns(t, family, []step{{"a question of b", true, datagram(1000, 9), delivery}})
		for i, c := range []struct {
			name string
			frag frag
			l4   []th.Layer
			to   *plan.Port
		}{
			{"first part of the answer", frag{1, 0, true, 17}, []th.Layer{udp(9, 1000), body}, w.b},
			{"its rest", frag{1, 16, false, 17}, []th.Layer{rest}, w.b},
			{"first part of a question", frag{2, 0, true, 17}, []th.Layer{udp(9, 1001), body}, w.gateway},
			{"its rest", frag{2, 16, false, 17}, []th.Layer{rest}, w.gateway},
			{"rest of nothing", frag{3, 16, false, 17}, []th.Layer{rest}, w.gateway},
		} {
			if got := w.send(w.a, c.to, w.fragment(family, c.frag, c.l4...)); got != delivery {
				t.Errorf("%d, %s: %s", i, c.name, got)
			}
		}
	})
}

// TestSteerRepaired: entries that somebody takes away are missed and put back.
func TestSteerRepaired(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.detours(6)
	w.sync()
	var k bpfSteerKey
	var v bpfSteer
	it := w.lab.a.objs.BhSteerV2.Iterate()
	var all []bpfSteerKey
	for it.Next(&k, &v) {
		all = append(all, k)
	}
	if len(all) == 0 {
		t.Fatal("no entries")
	}
	for _, k := range all {
		if err := w.lab.a.objs.BhSteerV2.Delete(&k); err != nil {
			t.Fatal(err)
		}
	}
	drift := w.sync()
	if len(drift) != 1 || drift[0].ID != string(w.a.ID) || drift[0].Object != "map "+bpfMapBhSteerV2 {
		t.Errorf("drift %v", drift)
	}
	w.turns(t, 0, []step{{"SYN", false, tcp(1, 80, "S"), toHost}})
	w.detours()
	if err := w.lab.a.objs.BhSteerV2.NextKey(nil, &k); err == nil {
		t.Errorf("left: %+v", k)
	}
}
