package vswitch

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/plan/plantest"
)

// TestTraceAgrees holds what explain says to what the loaded program does: the same
// verdict, for the same reason, by the same rules, over drawn plans and packets. Each plan
// is written over the one before, as a change of rules is. BULKHEAD_TRACE_PACKETS says how
// many packets meet each of the plans, of which there are a hundred.
func TestTraceAgrees(t *testing.T) {
	packets := 40
	if s := os.Getenv("BULKHEAD_TRACE_PACKETS"); s != "" {
		var err error
		if packets, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t, AttachAuto)
	made := map[string]bool{}
	rapid.Check(t, func(r *rapid.T) {
		l.plan = plantest.Plan(r)
		l.pairs(made)
		l.sync()
		for range packets {
			compare(r, l, plantest.Packet(r, l.plan))
		}
	})
}

func compare(t *rapid.T, l *lab, pkt plan.Packet) {
	want := l.plan.Trace(pkt)
	if want.Verdict == plan.NotTraced || !pkt.Buildable() {
		return
	}
	got := l.runAt(Place{Port: pkt.From, Host: pkt.Host}, pkt.Frame())
	if got.Outcome == Passed && l.plan.Ports[pkt.From].Kind == plan.PortTunnel && !unpacks(t) {
		return
	}
	outcome := map[plan.Verdict]Outcome{
		plan.Delivered: Delivered, plan.ToHost: Delivered, plan.Flooded: Replicated, plan.Dropped: Dropped,
		plan.ToWire: ToWire, plan.Passed: Passed, plan.ToRemote: Delivered,
	}[want.Verdict]
	if got.Outcome != outcome || got.To != want.To || outcome == Dropped && got.Reason.String() != want.Reason || got.rules() != ruleNumbers(&want) {
		t.Fatalf("%+v\nprogram: %s %s to %q by rules %v\ntrace: %+v", pkt, got.Outcome, got.Reason, got.To, got.rules(), want)
	}
}

// unpacks tells whether the kernel lets a program take outer headers off.
func unpacks(t *rapid.T) bool {
	v, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	return v >= 6<<16|3<<8
}

// rules are the numbers that a run names, where they have a meaning.
func (r Result) rules() [2]uint32 {
	if r.Outcome == Replicated {
		return [2]uint32{}
	}
	return [2]uint32{r.RuleOut, r.Rule}
}

func ruleNumbers(t *plan.Trace) [2]uint32 {
	n := func(r *plan.Rule) uint32 {
		if r == nil {
			return 0
		}
		return r.Number
	}
	if t.Verdict == plan.Flooded {
		return [2]uint32{}
	}
	if t.Verdict == plan.Dropped && t.Reason == "policy-out" {
		return [2]uint32{0, n(t.Out)}
	}
	return [2]uint32{n(t.Out), n(t.In)}
}

// pairs makes the devices of the plan's ports that are not there yet. Nothing is sent.
func (l *lab) pairs(made map[string]bool) {
	for _, p := range l.plan.Ports {
		if made[p.Device] {
			continue
		}
		made[p.Device] = true
		far := p.VNIC.Device
		if p.Kind != plan.PortHost {
			far = "f" + p.Device[1:]
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues = p.Device, 1, 1
		if err := l.host.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far}); err != nil {
			l.t.Fatal(fmt.Errorf("make %s: %w", p.Device, err))
		}
	}
}
