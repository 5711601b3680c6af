package engine

import (
	"context"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// met is an applier that says when its Update began, and waits for another's to begin.
type met struct {
	Applier
	began chan struct{}
	other chan struct{}
	wait  time.Duration
	met   bool
}

func (m *met) Update(context.Context, *plan.Plan, *plan.Delta) error {
	close(m.began)
	if m.other == nil {
		return nil
	}
	select {
	case <-m.other:
		m.met = true
	case <-time.After(m.wait):
	}
	return nil
}

// A small change is applied on one thread, a large one by all appliers of a stage at a time.
func TestAppliersOfAStageWorkAtATime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		objects int
		wait    time.Duration
		want    bool
	}{"one endpoint": {1, 20 * time.Millisecond, false}, "many": {sideBySide, time.Minute, true}} {
		delta := &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{}, Namespaces: map[hcn.GUID]plan.Change[plan.Namespace]{}}
		for range c.objects {
			delta.Ports[plan.EndpointPortID(hcn.NewGUID())] = plan.Change[plan.Port]{}
		}
		a, b := &met{began: make(chan struct{})}, &met{began: make(chan struct{})}
		a.other, a.wait = b.began, c.wait
		e := &Engine{opt: Options{Step: func(string) {}}}
		for _, err := range e.updateStage(t.Context(), Stage{a, b}, 0, delta) {
			if err != nil {
				t.Error(err)
			}
		}
		if a.met != c.want {
			t.Errorf("%s: worked at a time %v, want %v", name, a.met, c.want)
		}
		<-b.began // it has worked in any case
	}
}
