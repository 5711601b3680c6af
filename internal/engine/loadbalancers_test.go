package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// lbDoc is the load balancer with a number, of some back ends.
func lbDoc(n int, ends ...hcn.GUID) string {
	return fmt.Sprintf(`{"Name":"lb%d",%s,"FrontendVIPs":["10.96.0.%d","fd00:96::%d"],"HostComputeEndpoints":%s,
		"PortMappings":[{"Protocol":6,"ExternalPort":80,"InternalPort":8080}]}`, n, v2, n+1, n+1, toJSON(ends))
}

func TestLoadBalancers(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		web := must(e.endpoint(epDoc(n.ID, "")))(e)
		other := must(e.endpoint(epDoc(n.ID, "")))(e)
		lb := must(e.balancer(lbDoc(1, web.ID, web.ID)))(e)
		if len(lb.HostComputeEndpoints) != 1 || lb.SchemaVersion.Major != 2 {
			e.t.Errorf("document %s: want one back end", toJSON(lb))
		}
		backends := func() (out []string) {
			p := e.e.plan.Balancers[lb.ID]
			if p == nil {
				return []string{"no switch"}
			}
			for _, s := range p.Services {
				out = append(out, fmt.Sprintf("%s %v", s.VIP, s.Backends))
			}
			return out
		}
		// A back end that is nowhere answers nobody: it counts once it is attached.
		e.settle()
		if got := backends(); !slices.Equal(got, []string{"10.96.0.2 []", "fd00:96::2 []"}) {
			e.t.Errorf("before it is attached: %q", got)
		}
		e.ok(e.attach(ns.ID, web.ID))
		if got := backends(); !slices.Equal(got, []string{"10.96.0.2 [10.7.0.2:8080]", "fd00:96::2 [[fd00:7::2]:8080]"}) {
			e.t.Errorf("attached: %q", got)
		}
		if ids := e.e.LoadBalancers(filter(e, `{"Name":"lb1"}`)); len(ids) != 1 || ids[0] != lb.ID {
			e.t.Errorf("found by name: %v", ids)
		}
		for what, tc := range map[string]struct {
			doc  string
			code hcn.ErrorCode
		}{
			"a service of another": {lbDoc(1, other.ID), hcn.ErrPortAlreadyExists},
			"no such back end":     {lbDoc(2, "AAAAAAAA-0000-4000-8000-00000000000A"), hcn.ErrEndpointNotFound},
			"no network":           {lbDoc(2), hcn.ErrInvalidParameter},
			"an address on the link": {fmt.Sprintf(`{%s,"HostComputeEndpoints":[%q],"FrontendVIPs":["10.7.0.99"],"PortMappings":[{"Protocol":6,"InternalPort":80}]}`,
				v2, web.ID), hcn.ErrInvalidIP},
			"back ends of two networks": {lbDoc(2, web.ID, must(e.endpoint(epDoc(e.e.Networks(filter(e, `{"Name":"nat"}`))[0], "")))(e).ID), hcn.ErrInvalidEndpoint},
		} {
			if _, err := e.balancer(tc.doc); hcn.CodeOf(err) != tc.code {
				e.t.Errorf("%s: %v, want %s", what, err, tc.code.Name())
			}
		}
		lb.HostComputeEndpoints = []hcn.GUID{web.ID, other.ID}
		e.ok(e.e.ModifyLoadBalancer(bg, lb.ID, lb))
		e.restart()
		if got := must(e.e.LoadBalancer(lb.ID))(e); len(got.HostComputeEndpoints) != 2 || got.Version != 1 {
			e.t.Errorf("after a restart: %s", toJSON(got))
		}
		// A back end that is deleted leaves; without any the load balancer stays.
		e.ok(e.e.DeleteEndpoint(bg, web.ID))
		e.ok(e.e.DeleteEndpoint(bg, other.ID))
		if got := must(e.e.LoadBalancer(lb.ID))(e); len(got.HostComputeEndpoints) != 0 {
			e.t.Errorf("after its back ends were deleted: %s", toJSON(got))
		}
		e.settle()
		if got := backends(); !slices.Equal(got, []string{"10.96.0.2 []", "fd00:96::2 []"}) {
			e.t.Errorf("without back ends: %q", got)
		}
		e.ok(e.e.DeleteLoadBalancer(bg, lb.ID))
		e.wantCode(e.e.DeleteLoadBalancer(bg, lb.ID), hcn.ErrElementNotFound)
		again := must(e.endpoint(epDoc(n.ID, "")))(e)
		must(e.balancer(lbDoc(1, again.ID)))(e) // the same service at once
		e.check()
	})
}

func TestLoadBalancerEvents(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		after := e.e.LastEvent()
		lb := must(e.balancer(lbDoc(1, ep.ID)))(e)
		e.ok(e.e.DeleteEndpoint(bg, ep.ID))
		e.ok(e.e.DeleteLoadBalancer(bg, lb.ID))
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		ch, err := e.e.Subscribe(ctx, after)
		e.ok(err)
		var got []string
		for ev := range ch {
			if ev.Kind == "loadbalancer" {
				got = append(got, ev.Action+" "+ev.Name)
			}
			if len(got) == 3 {
				break
			}
		}
		if want := []string{"create lb1", "modify lb1", "delete lb1"}; !slices.Equal(got, want) {
			e.t.Errorf("events %q, want %q", got, want)
		}
	})
}

// TestCutBalancers kills the daemon at every step of making, changing and deleting a load balancer: it is there whole, or not.
func TestCutBalancers(t *testing.T) {
	for name, op := range map[string]func(e *env, lb, ep hcn.GUID) error{
		"create": func(e *env, _, ep hcn.GUID) error { return second(e.balancer(lbDoc(2, ep))) },
		"modify": func(e *env, lb, _ hcn.GUID) error {
			doc := must(e.e.LoadBalancer(lb))(e)
			doc.HostComputeEndpoints = nil
			return e.e.ModifyLoadBalancer(bg, lb, doc)
		},
		"delete":          func(e *env, lb, _ hcn.GUID) error { return e.e.DeleteLoadBalancer(bg, lb) },
		"delete back end": func(e *env, _, ep hcn.GUID) error { return e.e.DeleteEndpoint(bg, ep) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for cut := 1; cut < 100; cut++ {
				passed := false
				run(t, func(e *env) {
					n := must(e.network(netDoc("a", "NAT", 7)))(e)
					ns := must(e.namespace(`{` + v2 + `}`))(e)
					ep := must(e.endpoint(epDoc(n.ID, "")))(e)
					e.ok(e.attach(ns.ID, ep.ID))
					lb := must(e.balancer(lbDoc(1, ep.ID)))(e)
					e.settle()
					e.cutAt("*", cut)
					err := op(e, lb.ID, ep.ID)
					e.w.mu.Lock()
					passed = e.cutIn > 0
					e.cut = ""
					e.w.mu.Unlock()
					if passed {
						e.ok(err)
					}
					e.restart()
					e.check()
				})
				if passed || t.Failed() {
					return
				}
			}
			t.Fatal("the operation has no end")
		})
	}
}
