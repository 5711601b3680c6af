package vswitch

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

const (
	policyOut = "policy-out"
	policyIn  = "policy-in"
)

func tcp(src, dst uint16, flags string) []th.Layer {
	return []th.Layer{th.TCP{SrcPort: src, DstPort: dst, Flags: flags}}
}

func datagram(src, dst uint16) []th.Layer { return []th.Layer{udp(src, dst)} }

func ping(id uint16, reply bool) []th.Layer { return []th.Layer{th.Echo{ID: id, Reply: reply}} }

// handshake opens a TCP connection from a to b.
func handshake(src, dst uint16) []step {
	return []step{
		{"SYN", false, tcp(src, dst, "S"), delivery},
		{"SYN-ACK", true, tcp(dst, src, "SA"), delivery},
		{"ACK", false, tcp(src, dst, "A"), delivery},
	}
}

// TestAnswersPass: a may open connections and receive none, so all that reaches it are
// answers.
func TestAnswersPass(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		w.rulesA(nil, list(plan.Block))
		families(t, func(t *testing.T, family int) {
			w.play(t, family, []step{
				{"SYN from outside", true, tcp(80, 1000, "S"), policyIn},
				{"SYN-ACK without a SYN", true, tcp(80, 1000, "SA"), policyIn},
				{"ACK without a connection", true, tcp(80, 1000, "A"), policyIn},
				{"FIN without a connection", true, tcp(80, 1000, "FA"), policyIn},
				{"RST without a connection", true, tcp(80, 1000, "R"), policyIn},
				{"no flags at all", true, tcp(80, 1000, ""), policyIn},
				{"all flags", true, tcp(80, 1000, "FSRPAU"), policyIn},
			})
			w.play(t, family, handshake(1000, 80))
			w.play(t, family, []step{
				{"data back", true, tcp(80, 1000, "PA"), delivery},
				{"to another port of a", true, tcp(80, 1001, "A"), policyIn},
				{"from another port of b", true, tcp(81, 1000, "A"), policyIn},
				{"a new connection on the ports of this one", true, tcp(80, 1000, "S"), policyIn},
				{"data after that", true, tcp(80, 1000, "PA"), delivery},

				{"datagram from outside", true, datagram(53, 2000), policyIn},
				{"question", false, datagram(2000, 53), delivery},
				{"answer", true, datagram(53, 2000), delivery},
				{"another answer", true, datagram(53, 2000), delivery},
				{"answer from another port", true, datagram(54, 2000), policyIn},

				{"echo from outside", true, ping(5, false), policyIn},
				{"echo reply without a request", true, ping(5, true), policyIn},
				{"echo", false, ping(5, false), delivery},
				{"its reply", true, ping(5, true), delivery},
				{"reply to another", true, ping(6, true), policyIn},
				{"echo from outside with the identifier", true, ping(5, false), policyIn},
				{"reply after that", true, ping(5, true), delivery},
			})
		})
	})
}

// TestReuse closes a connection and opens another one on its ports, from either side.
func TestReuse(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.rulesA(nil, list(plan.Block, own(plan.Allow, unix.IPPROTO_TCP, 1000)))
	families(t, func(t *testing.T, family int) {
		w.play(t, family, handshake(1000, 80))
		closing := []step{
			{"FIN", false, tcp(1000, 80, "FA"), delivery},
			{"FIN back", true, tcp(80, 1000, "FA"), delivery},
			{"last ACK", false, tcp(1000, 80, "A"), delivery},
		}
		w.play(t, family, closing)
		w.play(t, family, handshake(1000, 80))
		w.play(t, family, closing)
		w.play(t, family, []step{
			{"SYN of the other side", true, tcp(80, 1000, "S"), delivery},
			{"SYN-ACK", false, tcp(1000, 80, "SA"), delivery},
			{"ACK", true, tcp(80, 1000, "A"), delivery},
			{"RST", true, tcp(80, 1000, "R"), delivery},
			{"SYN after a reset", false, tcp(1000, 80, "S"), delivery},
			{"SYN-ACK", true, tcp(80, 1000, "SA"), delivery},
		})
		if n := len(w.flowsOf(w.ga[family], w.gb[family])); n != 1 {
			t.Errorf("%d flows, want one", n)
		}
	})
}

// TestSimultaneousOpen: both ends send a SYN, though only one of them may open.
func TestSimultaneousOpen(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.rulesA(nil, list(plan.Block))
	families(t, func(t *testing.T, family int) {
		w.play(t, family, []step{
			{"SYN of a", false, tcp(1000, 80, "S"), delivery},
			{"SYN of b", true, tcp(80, 1000, "S"), policyIn},
			{"SYN-ACK of b", true, tcp(80, 1000, "SA"), delivery},
			{"SYN-ACK of a", false, tcp(1000, 80, "SA"), delivery},
			{"ACK of b", true, tcp(80, 1000, "A"), delivery},
		})
	})
	w.rulesA(nil, nil)
	families(t, func(t *testing.T, family int) {
		w.play(t, family, []step{
			{"SYN of a", false, tcp(1001, 80, "S"), delivery},
			{"SYN of b", true, tcp(80, 1001, "S"), delivery},
			{"SYN-ACK of a", false, tcp(1001, 80, "SA"), delivery},
			{"SYN-ACK of b", true, tcp(80, 1001, "SA"), delivery},
			{"data of a", false, tcp(1001, 80, "PA"), delivery},
			{"data of b", true, tcp(80, 1001, "PA"), delivery},
		})
	})
}

// TestNoWayInByHalves: what is no opening does not give the other side the right to
// answer. Else whoever may send to a would open what a itself may not.
func TestNoWayInByHalves(t *testing.T) {
	w := newWire(t, AttachAuto)
	families(t, func(t *testing.T, family int) {
		w.rulesA(list(plan.Allow, to(plan.Block, unix.IPPROTO_TCP, 80)), nil)
		w.play(t, family, []step{
			{"a opens", false, tcp(1000, 80, "S"), policyOut},
			{"b sends in the middle of nothing", true, tcp(80, 1000, "A"), delivery},
			{"a answers", false, tcp(1000, 80, "A"), policyOut},
			{"b sends SYN-ACK", true, tcp(80, 1000, "SA"), delivery},
			{"a answers", false, tcp(1000, 80, "A"), policyOut},
			{"b opens", true, tcp(80, 1001, "S"), delivery},
			{"a answers", false, tcp(1001, 80, "SA"), delivery},
		})
		// Picked up where both ways are open, by the one who had not opened: a rule that
		// comes later still means the one who had.
		w.rulesA(nil, nil)
		w.play(t, family, []step{
			{"b in the middle", true, tcp(80, 1002, "A"), delivery},
			{"a in the middle", false, tcp(1002, 80, "A"), delivery},
		})
		w.rulesA(list(plan.Allow, to(plan.Block, unix.IPPROTO_TCP, 80)), nil)
		w.play(t, family, []step{{"a goes on", false, tcp(1002, 80, "A"), policyOut}})
	})
}

// TestCutAndLetGoOn: a rule that comes cuts connections in both directions, and when it
// goes they go on, as long as they still live at their ends.
func TestCutAndLetGoOn(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		inward := list(plan.Block)
		block := list(plan.Allow, to(plan.Block, unix.IPPROTO_TCP, 80), to(plan.Block, unix.IPPROTO_UDP, 53))
		families(t, func(t *testing.T, family int) {
			port := uint16(1000 + family)
			w.rulesA(nil, inward)
			w.play(t, family, handshake(port, 80))
			w.play(t, family, []step{
				{"question", false, datagram(port, 53), delivery},
				{"answer", true, datagram(53, port), delivery},
			})
			w.rulesA(block, inward)
			w.play(t, family, []step{
				{"data of a", false, tcp(port, 80, "PA"), policyOut},
				{"data of b", true, tcp(80, port, "PA"), policyOut},
				{"SYN of a", false, tcp(port, 80, "S"), policyOut},
				{"FIN of b", true, tcp(80, port, "FA"), policyOut},
				{"RST of b", true, tcp(80, port, "R"), policyOut},
				{"question", false, datagram(port, 53), policyOut},
				{"answer", true, datagram(53, port), policyOut},
			})
			w.rulesA(nil, inward)
			w.play(t, family, []step{
				{"data of b, after the rule is gone", true, tcp(80, port, "PA"), delivery},
				{"data of a", false, tcp(port, 80, "PA"), delivery},
				{"answer, after the rule is gone", true, datagram(53, port), delivery},
			})
			// The same by b's rules.
			w.rulesB(nil, list(plan.Block, own(plan.Allow, unix.IPPROTO_UDP)))
			w.play(t, family, []step{
				{"data of a", false, tcp(port, 80, "PA"), policyIn},
				{"data of b", true, tcp(80, port, "PA"), policyIn},
				{"question", false, datagram(port, 53), delivery},
			})
			w.rulesB(nil, nil)
			w.play(t, family, []step{
				{"data of b", true, tcp(80, port, "PA"), delivery},
				{"data of a", false, tcp(port, 80, "PA"), delivery},
			})
		})
	})
}

// TestOtherRulesChange: a connection and its flow stay what they are when rules change
// that it does not meet.
func TestOtherRulesChange(t *testing.T) {
	w := newWire(t, AttachAuto)
	families(t, func(t *testing.T, family int) {
		w.rulesA(nil, list(plan.Block))
		w.play(t, family, handshake(1000, 80))
		before := w.flowsOf(w.ga[family], w.gb[family])
		for i := range 3 {
			w.rulesA(list(plan.Allow, to(plan.Block, unix.IPPROTO_TCP, uint16(81+i))), list(plan.Block, own(plan.Allow, unix.IPPROTO_UDP, uint16(i))))
			w.play(t, family, []step{
				{"data of b", true, tcp(80, 1000, "PA"), delivery},
				{"data of a", false, tcp(1000, 80, "PA"), delivery},
			})
		}
		after := w.flowsOf(w.ga[family], w.gb[family])
		for k, f := range before {
			if g := after[k]; len(after) != 1 || g.Opened != f.Opened || g.Packets[0] != 5 || g.Packets[1] != 4 {
				t.Errorf("the flow was\n%+v\nand is\n%+v\nwant the same one, with 5 packets one way and 4 back", f, after)
			}
		}
	})
}

// TestClosedFlowsGo: two seconds after both ends have closed, or one has reset.
func TestClosedFlowsGo(t *testing.T) {
	w := newWire(t, AttachAuto)
	base := w.share(w.a)
	w.play(t, 0, handshake(1000, 80))
	w.play(t, 0, []step{
		{"FIN", false, tcp(1000, 80, "FA"), delivery},
		{"FIN back", true, tcp(80, 1000, "FA"), delivery},
	})
	w.play(t, 1, handshake(1000, 80))
	w.play(t, 1, []step{
		{"RST", true, tcp(80, 1000, "R"), delivery},
		{"ACK that the RST has overtaken", true, tcp(80, 1000, "A"), delivery},
	})
	w.play(t, 1, handshake(1001, 80))
	w.play(t, 1, []step{
		{"blind RST", true, tcp(80, 1001, "R"), delivery},
		{"data after it", false, tcp(1001, 80, "PA"), delivery},
		{"ACK of that", true, tcp(80, 1001, "A"), delivery},
	})
	if n := w.share(w.a); n != base+3 {
		t.Errorf("a's share holds %d flows, want three more than %d", n, base)
	}
	th.Eventually(t, 6*time.Second, func() error {
		n := len(w.flowsOf(w.ga[0], w.gb[0])) + len(w.flowsOf(w.ga[1], w.gb[1]))
		if got := w.share(w.a); n != 1 || got != base+1 {
			return fmt.Errorf("%d flows, share %d, want one and %d", n, got, base+1)
		}
		return nil
	})
	flows := w.flowsOf(w.ga[1], w.gb[1])
	w.play(t, 1, []step{{"data later", false, tcp(1001, 80, "PA"), delivery}})
	if after := w.flowsOf(w.ga[1], w.gb[1]); len(flows) != 1 || len(after) != 1 {
		t.Errorf("the connection that a blind reset did not end has the flows %v, then %v", flows, after)
	}
}

// TestCutConnectionsThatEnd: of a connection that the rules have cut its ends may still say that they have ended it. Then
// it is gone three minutes after the last try, and not a quarter of an hour.
func TestCutConnectionsThatEnd(t *testing.T) {
	w := newWire(t, AttachAuto)
	for family, last := range []string{"FA", "R"} {
		w.play(t, family, handshake(1000, 80))
		w.play(t, family, handshake(1001, 80))
		w.rulesA(list(plan.Block), nil)
		w.play(t, family, []step{
			{"data of the one", false, tcp(1000, 80, "PA"), policyOut},
			{"data of the other", false, tcp(1001, 80, "PA"), policyOut},
			{"its end", false, tcp(1001, 80, last), policyOut},
		})
		w.rulesA(nil, nil)
	}
	for k, f := range w.flowTable() {
		if k.Proto == unix.IPPROTO_TCP {
			f.Seen -= uint64(200 * time.Second)
			w.in(func() error { return w.lab.a.objs.BhFlowsV4.Put(&k, &f) })
		}
	}
	th.Eventually(t, 6*time.Second, func() error {
		for family := range 2 {
			left := w.flowsOf(w.ga[family], w.gb[family])
			for k := range left {
				if k.Aport == 1001 || k.Bport == 1001 {
					return fmt.Errorf("there is %+v", k)
				}
			}
			if len(left) != 1 {
				t.Fatalf("family %d: %d flows are left, want the one whose ends go on trying", family, len(left))
			}
		}
		return nil
	})
}
