package engine

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func flowText(f *api.Flow) string {
	return fmt.Sprintf("%s:%d > %s:%d %s", f.Source.Name, f.Source.Port, f.Destination.Name, f.Destination.Port, f.State)
}

// TestFlowLines has live flows, ended ones and a blocked one, and asks for parts of them.
func TestFlowLines(t *testing.T) {
	run(t, func(e *env) {
		netw := must(e.network(`{"Name": "n"}`))(e)
		ns := must(e.namespace(`{}`))(e)
		a := must(e.endpoint(fmt.Sprintf(`{"Name": "a", "HostComputeNetwork": %q}`, netw.ID)))(e)
		b := must(e.endpoint(fmt.Sprintf(`{"Name": "b", "HostComputeNetwork": %q}`, netw.ID)))(e)
		e.ok(e.attach(ns.ID, a.ID))
		e.ok(e.attach(ns.ID, b.ID))
		pa, pb := e.e.view.port(plan.PortID(a.ID)), e.e.view.port(plan.PortID(b.ID))
		outside := netip.MustParseAddr("198.51.100.7")
		host := FlowEnd{plan.HostPortID(netw.ID), outside, 443}
		record := func(from, to FlowEnd, proto uint8, bytes uint64) FlowRecord {
			return FlowRecord{Switch: pa.Switch, Protocol: proto, Opener: from, Peer: to, State: api.FlowEstablished, Opened: time.Now(), Bytes: [2]uint64{bytes}}
		}
		endA, endB := FlowEnd{pa.ID, pa.Addrs[0], 1}, FlowEnd{pb.ID, pb.Addrs[0], 2}
		live := []FlowRecord{record(endA, endB, 6, 10), record(endB, host, 17, 30), record(endA, host, 6, 20)}
		e.e.opt.Flows.Each = func(_ plan.PortID, each func(FlowRecord) bool) error {
			for _, r := range live {
				each(r)
			}
			return nil
		}
		ended := record(endB, endA, 6, 5)
		ended.State = api.FlowClosed
		e.e.flows.add(keptFlow{flow: e.e.describeFlow(ended, false)})
		e.e.drops.add(pb.ID, api.Drop{
			Reason: "policy-in", Direction: api.DirectionIn, Name: "b", Endpoint: b.ID, NetworkID: netw.ID, Protocol: "tcp",
			Source: netip.AddrPortFrom(pa.Addrs[0], 9).String(), Destination: netip.AddrPortFrom(pb.Addrs[0], 9).String(),
		})
		e.e.drops.add(pb.ID, api.Drop{Reason: "martian", Name: "b"})
		for _, c := range []struct {
			o    api.FlowOptions
			want []string
		}{
			{api.FlowOptions{}, []string{"b:2 > :443 established", "a:1 > :443 established", "a:1 > b:2 established"}},
			{api.FlowOptions{Limit: 1}, []string{"b:2 > :443 established", "2 not shown"}},
			{api.FlowOptions{Endpoints: []string{"b"}, Protocol: "tcp"}, []string{"a:1 > b:2 established"}},
			{api.FlowOptions{Endpoints: []string{outside.String()}}, []string{"b:2 > :443 established", "a:1 > :443 established"}},
			{api.FlowOptions{Port: 443, Protocol: "udp"}, []string{"b:2 > :443 established"}},
			{
				api.FlowOptions{Endpoints: []string{"b"}, Protocol: "tcp", Recent: true},
				[]string{"a:1 > b:2 established", "b:2 > a:1 closed", "a:9 > b:9 blocked"},
			},
		} {
			var got []string
			e.ok(e.e.FlowLines(context.Background(), c.o, func(l api.FlowLine) error {
				if l.Flow == nil {
					got = append(got, fmt.Sprintf("%d not shown", l.NotShown))
				} else {
					got = append(got, flowText(l.Flow))
				}
				return nil
			}))
			if d := cmp.Diff(c.want, got); d != "" {
				e.t.Errorf("%+v (-want +got):\n%s", c.o, d)
			}
		}
		for _, o := range []api.FlowOptions{{Endpoints: []string{"nobody"}}, {Sort: "size"}, {Limit: -1}} {
			if err := e.e.FlowLines(context.Background(), o, nil); err == nil {
				e.t.Errorf("%+v is taken", o)
			}
		}
	})
}

// TestFlowLogIsBounded: a flood of one port leaves room for others, and is counted.
func TestFlowLogIsBounded(t *testing.T) {
	l, now := newFlowLog(), time.Unix(1000, 0)
	for range 3 * flowsPerSecond {
		if l.budget("flood", now) {
			l.add(keptFlow{})
		}
	}
	if kept, _, skipped := l.after(0); len(kept) != flowsPerSecond || skipped != 2*flowsPerSecond || !l.budget("other", now) || !l.budget("flood", now.Add(time.Second)) {
		t.Errorf("%d kept, %d skipped", len(kept), skipped)
	}
	for i := range 2*keptFlows + 5 {
		l.add(keptFlow{flow: api.Flow{BytesSent: uint64(i)}})
	}
	kept, _, _ := l.after(0)
	if len(kept) != keptFlows || kept[len(kept)-1].flow.BytesSent != 2*keptFlows+4 {
		t.Errorf("%d are kept, the last is %d", len(kept), kept[len(kept)-1].flow.BytesSent)
	}
}

// TestLostFlows: what the switch had no room for is told with those that have ended, from when the daemon began.
func TestLostFlows(t *testing.T) {
	run(t, func(e *env) {
		lost := uint64(5)
		e.e.opt.Flows.Each = func(plan.PortID, func(FlowRecord) bool) error { return nil }
		e.e.opt.Flows.Lost = func() (uint64, error) { return lost, nil }
		e.ok(e.e.beginLost())
		ask := func(o api.FlowOptions) (out []api.FlowLine) {
			e.ok(e.e.FlowLines(context.Background(), o, func(l api.FlowLine) error {
				out = append(out, l)
				return nil
			}))
			return out
		}
		if got := ask(api.FlowOptions{Recent: true}); len(got) != 0 {
			t.Errorf("nothing was lost: %+v", got)
		}
		lost += 7
		if got := ask(api.FlowOptions{Recent: true}); len(got) != 1 || got[0] != (api.FlowLine{Lost: 7}) {
			t.Errorf("7 were lost: %+v", got)
		}
		if got := ask(api.FlowOptions{}); len(got) != 0 {
			t.Errorf("those that have ended were not asked for: %+v", got)
		}
		lost = 2 // the switch was made anew
		if n, _, err := e.e.MissingFlows(); n != 2 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	})
}
