package vswitch

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// wire is a pair whose containers have one more address in each family that no stack
// answers for: what is sent under those is sent by the test alone, frame by frame.
type wire struct {
	*pair
	ga, gb  [2]netip.Addr // of a and b, by family
	gateway *plan.Port
	heard   map[plan.PortID]*th.Capture
}

const delivery = "delivered"

func newWire(t *testing.T, mode AttachMode) *wire {
	t.Helper()
	w := &wire{pair: newPair(t, mode), heard: map[plan.PortID]*th.Capture{}}
	w.ga = [2]netip.Addr{addr("10.1.7.10"), addr("fd00:1::7:10")}
	w.gb = [2]netip.Addr{addr("10.1.7.11"), addr("fd00:1::7:11")}
	w.a = w.replace(w.a, func(p *plan.Port) { p.Addrs = append(p.Addrs[:2:2], w.ga[:]...) })
	w.b = w.replace(w.b, func(p *plan.Port) { p.Addrs = append(p.Addrs[:2:2], w.gb[:]...) })
	w.gateway = w.plan.Ports[plan.HostPortID(network(1))]
	w.heard[w.a.ID] = w.hostA.Capture("eth0", "")
	w.heard[w.b.ID] = w.hostB.Capture("eth0", "")
	w.heard[w.gateway.ID] = w.host.Capture(w.gateway.VNIC.Device, "")
	return w
}

// replace changes a port the way a compiled plan does: by another one.
func (l *lab) replace(old *plan.Port, fn func(*plan.Port)) *plan.Port {
	l.t.Helper()
	next := *old
	fn(&next)
	l.plan.Ports[next.ID] = &next
	l.update(change(old, &next))
	return &next
}

// rulesA and rulesB give a or b other rules.
func (w *wire) rulesA(out, in *plan.RuleList) {
	w.t.Helper()
	w.a = w.replace(w.a, func(p *plan.Port) { p.Policy.Out, p.Policy.In = out, in })
}

func (w *wire) rulesB(out, in *plan.RuleList) {
	w.t.Helper()
	w.b = w.replace(w.b, func(p *plan.Port) { p.Policy.Out, p.Policy.In = out, in })
}

// sets gives switch 1 other address sets, in a plan whose ports stay as they are.
func (l *lab) sets(sets map[string][]netip.Prefix) {
	l.t.Helper()
	old := l.plan.Switches[network(1)]
	next := *old
	next.Sets = sets
	l.plan.Switches[network(1)] = &next
	l.update(&plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(1): {Old: old, New: &next}}})
}

// list is a list of rules, numbered from 1.
func list(fallback plan.Action, rules ...plan.Rule) *plan.RuleList {
	for i := range rules {
		if rules[i].Number == 0 {
			rules[i].Number = uint32(i + 1)
		}
	}
	return &plan.RuleList{Rules: rules, Default: fallback, Hash: md5.Sum(fmt.Appendf(nil, "%d %+v", fallback, rules))}
}

// to matches packets of a protocol to ports of the peer.
func to(action plan.Action, protocol uint8, ports ...uint16) plan.Rule {
	r := plan.Rule{Action: action, Protocols: []uint8{protocol}}
	for _, p := range ports {
		r.RemotePorts = append(r.RemotePorts, plan.PortRange{First: p, Last: p})
	}
	return r
}

// own matches packets of a protocol to the endpoint's own ports.
func own(action plan.Action, protocol uint8, ports ...uint16) plan.Rule {
	r := to(action, protocol, ports...)
	r.LocalPorts, r.RemotePorts = r.RemotePorts, nil
	return r
}

// send puts a frame on from's wire and tells what became of it: delivery to the port it
// is for, or the reason of its drop.
func (w *wire) send(from, to *plan.Port, frame []byte) string {
	w.t.Helper()
	copies := func() int {
		n := 0
		for _, f := range w.heard[to.ID].Frames() {
			if !f.Outgoing && bytes.Equal(f.Data[14:], frame[14:]) {
				n++
			}
		}
		return n
	}
	had, before := copies(), w.losses()
	dev := "eth0"
	if from.Kind == plan.PortHost {
		dev = from.VNIC.Device
	}
	w.ns[from.ID].SendFrame(dev, frame)
	verdict := ""
	th.Eventually(w.t, 3*time.Second, func() error {
		if copies() > had {
			verdict = delivery
			return nil
		}
		for k, n := range w.losses() {
			if n > before[k] {
				verdict = k.Reason.String()
				return nil
			}
		}
		return fmt.Errorf("neither delivered nor dropped: %s", th.Describe(frame))
	})
	return verdict
}

type loss struct {
	Port   plan.PortID
	Reason Reason
}

// losses are the drops on switch 1 that are no everyday noise.
func (w *wire) losses() map[loss]uint64 {
	w.t.Helper()
	all, err := w.lab.a.Drops()
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[loss]uint64{}
	for _, d := range all {
		if d.Reason < ReasonRouterSolicit && (d.Port == w.a.ID || d.Port == w.b.ID || d.Port == w.gateway.ID) {
			out[loss{d.Port, d.Reason}] = d.Packets
		}
	}
	return out
}

// step is one frame of a conversation. The ends say by which way it goes.
type step struct {
	name string
	back bool // from b to a
	l4   []th.Layer
	want string
}

// play sends the steps between the silent addresses of one family.
func (w *wire) play(t *testing.T, family int, steps []step) {
	t.Helper()
	for i, s := range steps {
		from, to, src, dst := w.a, w.b, w.ga[family], w.gb[family]
		if s.back {
			from, to, src, dst = to, from, dst, src
		}
		frame := th.Frame(append([]th.Layer{eth(hw(from.MAC), hw(to.MAC)), ip(src, dst)}, s.l4...)...)
		if got := w.send(from, to, frame); got != s.want {
			t.Errorf("step %d, %s: %s, want %s: %s", i+1, s.name, got, s.want, th.Describe(frame))
		}
	}
}

func ip(src, dst netip.Addr) th.Layer {
	if src.Is4() {
		return v4(src, dst)
	}
	return v6(src, dst)
}

// families runs a test in both.
func families(t *testing.T, fn func(t *testing.T, family int)) {
	t.Helper()
	for i, name := range []string{"IPv4", "IPv6"} {
		t.Run(name, func(t *testing.T) { fn(t, i) })
	}
}

// flowTable is the flow table as it is in the kernel.
func (l *lab) flowTable() map[bpfFlowKey]bpfFlow {
	l.t.Helper()
	out := map[bpfFlowKey]bpfFlow{}
	var k bpfFlowKey
	var f bpfFlow
	it := l.a.objs.BhFlowsV4.Iterate()
	for it.Next(&k, &f) {
		out[k] = f
	}
	if err := it.Err(); err != nil {
		l.t.Fatal(err)
	}
	return out
}

// flowsOf are the flows between two addresses.
func (l *lab) flowsOf(x, y netip.Addr) map[bpfFlowKey]bpfFlow {
	l.t.Helper()
	out := l.flowTable()
	maps.DeleteFunc(out, func(k bpfFlowKey, _ bpfFlow) bool {
		a, b := netip.AddrFrom16(k.A).Unmap(), netip.AddrFrom16(k.B).Unmap()
		return (a != x || b != y) && (a != y || b != x)
	})
	return out
}

// share is how many flows are charged to a port.
func (l *lab) share(p *plan.Port) int64 {
	l.t.Helper()
	l.a.mu.Lock()
	index := l.a.applied[p.ID].index
	l.a.mu.Unlock()
	var s bpfShare
	if err := l.a.objs.BhSharesV4.Lookup(&index, &s); err != nil {
		l.t.Fatal(err)
	}
	return int64(s.Flows)
}
