package nat

import (
	"maps"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestPreview: what is told of a change is what it does to the sets, element by element.
func TestPreview(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	web := tp.plan.Ports["web"]
	published, moved := *web, *web
	published.Forwards = []plan.Forward{forward(6, "127.0.0.1", 8080, addr("10.77.1.2"), 80), forward(6, "all", 8081, addr("fd77:1::2"), 80)}
	moved.Forwards = []plan.Forward{forward(6, "127.0.0.1", 8080, addr("10.77.1.2"), 81)}
	old := web
	for _, step := range []struct {
		name string
		port *plan.Port
		want int
	}{{"publish", &published, 3}, {"move", &moved, 4}, {"nothing", &moved, 0}, {"unpublish", web, 1}} {
		d := &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"web": {Old: old, New: step.port}}}
		tp.plan.Ports["web"] = step.port
		before, gen := maps.Clone(tp.a.applied), tp.generation()
		told, err := tp.a.Preview(t.Context(), tp.plan, d)
		if err != nil {
			t.Fatal(err)
		}
		if tp.generation() != gen || len(tp.a.applied.without(before)) > 0 {
			t.Errorf("%s: telling changed something", step.name)
		}
		if err := tp.a.Update(t.Context(), tp.plan, d); err != nil {
			t.Fatal(err)
		}
		have, err := tp.a.k.list()
		if err != nil {
			t.Fatal(err)
		}
		done := append(elementSteps(before.without(have.elements), plan.Removes), elementSteps(tp.a.applied.without(before), plan.Adds)...)
		if len(told) != len(done) || len(told) != step.want {
			t.Errorf("%s: told %v, done %v, want %d", step.name, told, done, step.want)
			continue
		}
		for i := range told {
			if told[i] != done[i] {
				t.Errorf("%s: told %v, done %v", step.name, told[i], done[i])
			}
		}
		old = step.port
	}
}
