package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// fakeDrops is a switch that drops on command.
type fakeDrops struct {
	mu     sync.Mutex
	out    chan DropSample
	counts map[dropKey]uint64
}

func newFakeDrops() *fakeDrops {
	return &fakeDrops{out: make(chan DropSample), counts: map[dropKey]uint64{}}
}

func (f *fakeDrops) source() Drops {
	return Drops{
		Samples: func(context.Context) (<-chan DropSample, error) { return f.out, nil },
		Counts: func() ([]DropCount, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			var out []DropCount
			for k, n := range f.counts {
				out = append(out, DropCount{Port: k.port, Reason: k.reason, Quiet: k.reason == "quiet", Packets: n})
			}
			return out, nil
		},
		Reasons: []DropReason{{Name: "martian"}, {Name: "policy"}, {Name: "quiet", Quiet: true}},
	}
}

// drop counts a frame, and samples it if it is to be told of.
func (f *fakeDrops) drop(sampled bool, s DropSample) {
	f.mu.Lock()
	f.counts[dropKey{s.Port, s.Drop.Reason}]++
	f.mu.Unlock()
	if sampled {
		f.out <- s
	}
}

func runDrops(t *testing.T, fn func(e *env, f *fakeDrops)) {
	t.Helper()
	run(t, func(e *env) {
		e.stop()
		f := newFakeDrops()
		f.counts[dropKey{"", "martian"}] = 1000 // of an earlier run of the daemon
		e.prepare()
		e.e.opt.Drops = f.source()
		e.launch()
		<-e.e.Ready()
		synctest.Wait() // until it has read where counting starts
		fn(e, f)
		close(f.out)
	})
}

func dropTexts(lines []api.DropLine) []string {
	var out []string
	for _, l := range lines {
		if l.Drop == nil {
			out = append(out, fmt.Sprintf("%d not shown", l.NotShown))
			continue
		}
		s := strings.Join([]string{l.Drop.Name, l.Drop.Network, l.Drop.Direction, l.Drop.Reason}, " ")
		if l.Drop.Rule != nil {
			s += fmt.Sprintf(" rule %d %s", l.Drop.Rule.Number, l.Drop.Rule.ID)
		}
		out = append(out, s+": "+l.Drop.Next)
	}
	return out
}

func (e *env) drops(o api.DropOptions) []string {
	e.t.Helper()
	var lines []api.DropLine
	e.ok(e.e.DropLines(context.Background(), o, func(l api.DropLine) error { lines = append(lines, l); return nil }))
	return dropTexts(lines)
}

func TestDropsNameThings(t *testing.T) {
	runDrops(t, func(e *env, f *fakeDrops) {
		netw := must(e.network(`{"Name": "n"}`))(e)
		ns := must(e.namespace(`{}`))(e)
		a := must(e.endpoint(fmt.Sprintf(`{"Name": "a", "HostComputeNetwork": %q}`, netw.ID)))(e)
		b := must(e.endpoint(fmt.Sprintf(`{"Name": "b", "HostComputeNetwork": %q}`, netw.ID)))(e)
		e.ok(e.attach(ns.ID, a.ID))
		e.ok(e.attach(ns.ID, b.ID))
		pa, pb := e.e.view.port(plan.PortID(a.ID)), e.e.view.port(plan.PortID(b.ID))
		if pa == nil || pb == nil || pa.MAC == pb.MAC {
			t.Fatalf("ports %v and %v", pa, pb)
		}
		// The receiver's rules, as the compiler would have made them.
		ruled := *pb
		ruled.Policy.In = &plan.RuleList{Rules: []plan.Rule{{Number: 7, Action: plan.Block, Source: plan.RuleSource{
			Layer: plan.LayerEndpoint, ID: "no-ping", Priority: 100, Text: "block in icmp",
		}}}}
		e.e.view.apply(&plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{pb.ID: {Old: pb, New: &ruled}}})

		f.drop(true, DropSample{Port: pa.ID, Switch: pa.Switch, SrcMAC: pa.MAC, DstMAC: pb.MAC, Drop: api.Drop{Reason: "martian"}})
		f.drop(true, DropSample{Port: pa.ID, Switch: pa.Switch, SrcMAC: pa.MAC, DstMAC: pb.MAC, Rule: 7, Drop: api.Drop{Reason: "policy"}})
		f.drop(true, DropSample{Port: pa.ID, Switch: pa.Switch, SrcMAC: pa.MAC, Rule: 8, Drop: api.Drop{Reason: "policy"}})
		f.drop(true, DropSample{Port: plan.HostPortID(netw.ID), Dst: netip.MustParseAddr("10.0.0.9"), Drop: api.Drop{Reason: "martian"}})
		f.drop(true, DropSample{Drop: api.Drop{Reason: "martian"}})
		f.drop(false, DropSample{Port: pa.ID, Drop: api.Drop{Reason: "martian"}})
		f.drop(false, DropSample{Port: pa.ID, Drop: api.Drop{Reason: "quiet"}})
		time.Sleep(time.Second) // until the log has them: time is fake

		see := "bulkhead endpoint inspect "
		want := []string{
			"a n out martian: " + see + string(a.ID),
			"b n in policy rule 7 no-ping: bulkhead rules " + string(b.ID),
			"a n out policy rule 8 : bulkhead rules " + string(a.ID),
			"host n out martian: bulkhead network inspect " + string(netw.ID),
			"  out martian: bulkhead doctor",
			"1 not shown",
		}
		if d := cmp.Diff(want, e.drops(api.DropOptions{Tail: -1})); d != "" {
			t.Error(d)
		}
		for name, tc := range map[string]struct {
			o    api.DropOptions
			want []string
		}{
			"tail":      {api.DropOptions{Tail: 1}, []string{want[4], "5 not shown"}},
			"receiver":  {api.DropOptions{Tail: -1, Endpoints: []string{"b"}}, want[1:2]},
			"host":      {api.DropOptions{Tail: -1, Endpoints: []string{"host"}}, want[3:4]},
			"reason":    {api.DropOptions{Tail: -1, Reasons: []string{"policy"}}, want[1:3]},
			"both":      {api.DropOptions{Tail: -1, Endpoints: []string{string(a.ID)}, Reasons: []string{"martian"}}, []string{want[0], "1 not shown"}},
			"quiet too": {api.DropOptions{Tail: -1, Reasons: []string{"quiet"}}, []string{"1 not shown"}},
		} {
			if d := cmp.Diff(tc.want, e.drops(tc.o)); d != "" {
				t.Errorf("%s: %s", name, d)
			}
		}
		none := func(api.DropLine) error { return nil }
		e.wantKind(e.e.DropLines(t.Context(), api.DropOptions{Endpoints: []string{"nobody"}}, none), api.KindNotFound)
		e.wantKind(e.e.DropLines(t.Context(), api.DropOptions{Reasons: []string{"whim"}}, none), api.KindInvalid)
	})
}

// TestDropsNameLayers has a rule of each layer and direction: it is named with its layer, ID and priority, at whose it is.
func TestDropsNameLayers(t *testing.T) {
	runDrops(t, func(e *env, f *fakeDrops) {
		netw := must(e.network(`{"Name": "n"}`))(e)
		ns := must(e.namespace(`{}`))(e)
		a := must(e.endpoint(fmt.Sprintf(`{"Name": "a", "HostComputeNetwork": %q}`, netw.ID)))(e)
		b := must(e.endpoint(fmt.Sprintf(`{"Name": "b", "HostComputeNetwork": %q}`, netw.ID)))(e)
		e.ok(e.attach(ns.ID, a.ID))
		e.ok(e.attach(ns.ID, b.ID))
		pa, pb := e.e.view.port(plan.PortID(a.ID)), e.e.view.port(plan.PortID(b.ID))
		layers := []plan.Layer{plan.LayerTier, plan.LayerNetwork, plan.LayerEndpoint}
		var out, in plan.RuleList
		var want []string
		for i, l := range layers {
			for k, list := range []*plan.RuleList{&out, &in} {
				number := uint32(10*i + k + 1)
				list.Rules = append(list.Rules, plan.Rule{Number: number, Action: plan.Block, Source: plan.RuleSource{Layer: l, ID: fmt.Sprint("r", number), Priority: uint16(number)}})
			}
			want = append(want, fmt.Sprintf("a out %s r%d %d", layerWord(l), 10*i+1, 10*i+1), fmt.Sprintf("b in %s r%d %d", layerWord(l), 10*i+2, 10*i+2))
		}
		from, to := *pa, *pb
		from.Policy.Out, to.Policy.In = &out, &in
		e.e.view.apply(&plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{pa.ID: {Old: pa, New: &from}, pb.ID: {Old: pb, New: &to}}})
		for i := range layers {
			for k := range 2 {
				f.drop(true, DropSample{Port: pa.ID, Switch: pa.Switch, SrcMAC: pa.MAC, DstMAC: pb.MAC, Rule: uint32(10*i + k + 1), Drop: api.Drop{Reason: "policy"}})
			}
		}
		time.Sleep(time.Second) // until the log has them: time is fake
		var got []string
		e.ok(e.e.DropLines(context.Background(), api.DropOptions{Tail: -1}, func(l api.DropLine) error {
			if d := l.Drop; d != nil && d.Rule != nil {
				got = append(got, fmt.Sprintf("%s %s %s %s %d", d.Name, d.Direction, d.Rule.Layer, d.Rule.ID, d.Rule.Priority))
			}
			return nil
		}))
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// TestDropsFollow has a reader that stays, beyond what is kept.
func TestDropsFollow(t *testing.T) {
	runDrops(t, func(e *env, f *fakeDrops) {
		const flood = keptDrops + 500
		for range flood {
			f.drop(true, DropSample{Drop: api.Drop{Reason: "martian"}})
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var mu sync.Mutex
		var lines []api.DropLine
		done := make(chan error)
		go func() {
			done <- e.e.DropLines(ctx, api.DropOptions{Tail: 2, Follow: true}, func(l api.DropLine) error {
				mu.Lock()
				defer mu.Unlock()
				lines = append(lines, l)
				return nil
			})
		}()
		time.Sleep(3 * time.Second)
		f.drop(true, DropSample{Drop: api.Drop{Reason: "policy"}})
		f.drop(false, DropSample{Drop: api.Drop{Reason: "policy"}})
		f.drop(false, DropSample{Drop: api.Drop{Reason: "policy"}})
		time.Sleep(5 * time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ends with %v", err)
		}
		martian := "  out martian: bulkhead doctor"
		want := []string{martian, martian, fmt.Sprintf("%d not shown", flood-2), "  out policy: bulkhead doctor", "2 not shown"}
		if d := cmp.Diff(want, dropTexts(lines)); d != "" {
			t.Error(d)
		}
		if n := len(e.e.drops.ring); n != keptDrops {
			t.Errorf("%d drops are kept, want %d", n, keptDrops)
		}
	})
}

// TestDropsSaySide: a drop at the receiver's port is told as one on the way in, whatever MACs the frame has; what its sender is
// dropped for is on the way out.
func TestDropsSaySide(t *testing.T) {
	at := &plan.Port{ID: "b", Kind: plan.PortContainer, MAC: plan.MAC{2, 0, 0, 0, 0, 2}}
	other, group := plan.MAC{2, 0, 0, 0, 0, 1}, plan.MAC{1, 0, 0x5e, 1, 2, 3}
	for _, c := range []struct {
		reason   string
		src, dst plan.MAC
		want     bool
	}{
		{"policy-in", other, at.MAC, true},
		{"policy-in", other, group, true},
		{"rate-in", other, group, true},
		{"isolated", other, group, true},
		{"isolated", at.MAC, other, false},
		{"fragment", other, at.MAC, true},
		{"fragment", at.MAC, other, false},
		{"flow-table", other, at.MAC, true},
		{"policy-out", at.MAC, group, false},
		{"source-mac", other, group, false},
		{"martian", at.MAC, other, false},
	} {
		if got := isReceiver(at, &DropSample{SrcMAC: c.src, DstMAC: c.dst, Drop: api.Drop{Reason: c.reason}}); got != c.want {
			t.Errorf("%s from %v to %v: on its way in is %t, want %t", c.reason, c.src, c.dst, got, c.want)
		}
	}
}

// TestDropsSayWhere: what no line tells of is told by port and reason.
func TestDropsSayWhere(t *testing.T) {
	runDrops(t, func(e *env, f *fakeDrops) {
		netw := must(e.network(`{"Name": "n"}`))(e)
		ns := must(e.namespace(`{}`))(e)
		a := must(e.endpoint(fmt.Sprintf(`{"Name": "a", "HostComputeNetwork": %q}`, netw.ID)))(e)
		e.ok(e.attach(ns.ID, a.ID))
		for range 3 {
			f.drop(false, DropSample{Port: plan.PortID(a.ID), Drop: api.Drop{Reason: "policy"}})
		}
		f.drop(false, DropSample{Drop: api.Drop{Reason: "martian"}})
		var got []api.DropRest
		e.ok(e.e.DropLines(context.Background(), api.DropOptions{Tail: -1}, func(l api.DropLine) error {
			got = append(got, l.NotShownAt...)
			return nil
		}))
		want := []api.DropRest{{Endpoint: a.ID, Name: "a", Network: "n", Reason: "policy", Packets: 3}, {Reason: "martian", Packets: 1}}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}
