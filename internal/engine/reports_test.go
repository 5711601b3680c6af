package engine

import (
	"context"
	"slices"
	"strings"
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

// TestDoctorTellsMTU: what the uplink and each network carry, as it is now.
func TestDoctorTellsMTU(t *testing.T) {
	run(t, func(e *env) {
		says := func(want string) {
			e.t.Helper()
			all := e.e.Doctor(bg)
			if !slices.ContainsFunc(all, func(c api.Check) bool { return c.Name == "MTU" && strings.Contains(c.Detail, want) }) {
				e.t.Errorf("the doctor does not say %q: %s", want, toJSON(all))
			}
		}
		says("there is no default route; networks that reach out are taken to carry 1500; containers send up to: nat 1500")
		e.w.mu.Lock()
		e.w.facts.Uplink, e.w.facts.UplinkMTU = "eth0", 1400
		e.w.mu.Unlock()
		says("the uplink eth0 carries packets of 1400 bytes; containers send up to: nat 1400")
	})
}
