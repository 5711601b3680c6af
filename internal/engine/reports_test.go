package engine

import (
	"context"
	"slices"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func TestDoctorFindsLeftovers(t *testing.T) {
	run(t, func(e *env) {
		check := func() api.Check {
			all := e.e.Doctor(bg)
			i := slices.IndexFunc(all, func(c api.Check) bool { return c.Name == "leftovers" })
			if i < 0 {
				e.t.Fatalf("no line on leftovers in %v", all)
			}
			return all[i]
		}
		if c := check(); c.Status != "ok" {
			e.t.Errorf("nothing is left, and the doctor says %+v", c)
		}
		looks := 0
		e.e.opt.Leftovers = func(_ context.Context, p *plan.Plan) ([]string, error) {
			if len(p.Switches) == 0 {
				e.t.Errorf("the doctor compares with an empty plan")
			}
			if looks++; looks == 1 {
				return []string{"link going", "link staying"}, nil
			}
			return []string{"link staying", "link coming"}, nil
		}
		if c := check(); c.Status != "warn" || c.Detail != "link staying" {
			e.t.Errorf("one link stays, and the doctor says %+v", c)
		}
	})
}
