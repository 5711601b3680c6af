package engine

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func (e *env) route(doc string) (hcn.HostComputeRoute, error) {
	return e.e.CreateRoute(context.Background(), "", decode[hcn.HostComputeRoute](e, doc))
}

// turned tells whether what the endpoint sends there goes to the host.
func (e *env) turned(ep hcn.GUID, dst string) bool {
	e.t.Helper()
	e.settle()
	port := e.e.view.port(plan.EndpointPortID(ep))
	if port == nil {
		e.t.Fatalf("endpoint %s has no port", ep)
	}
	return port.TurnOf(netip.MustParseAddr(dst))
}

// TestRoutes: a route holds at the ports of its endpoints, over a restart, beside and behind their own policies, and goes with its deletion;
// an endpoint that goes leaves it.
func TestRoutes(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		n := must(e.network(netDoc("b", "L2Bridge", 9)))(e)
		one, two := must(e.endpoint(epDoc(n.ID, "")))(e), must(e.endpoint(epDoc(n.ID, "")))(e)
		for _, ep := range []hcn.GUID{one.ID, two.ID} {
			ns := must(e.namespace(`{` + v2 + `}`))(e)
			e.ok(e.attach(ns.ID, ep))
		}
		made := must(e.route(`{"HostComputeEndpoints":["` + string(one.ID) + `","` + string(two.ID) + `","` + string(one.ID) + `"],"Setting":[{"DestinationPrefix":"10.99.1.2/16","NeedEncap":true}],` + v2 + `}`))(e)
		if len(made.HostComputeEndpoints) != 2 || len(made.Routes) != 1 {
			e.t.Errorf("made %+v", made)
		}
		for _, ep := range []hcn.GUID{one.ID, two.ID} {
			if !e.turned(ep, "10.99.7.7") || e.turned(ep, "10.98.0.1") {
				e.t.Errorf("endpoint %s does not go by the route, or by more", ep)
			}
		}
		e.restart()
		e.onLAN()
		if got := e.e.Routes(filter(e, `{"ID":"`+string(made.ID)+`"}`)); !slices.Equal(got, []hcn.GUID{made.ID}) {
			e.t.Errorf("after the restart: %v", got)
		}
		e.ok(e.e.DeleteEndpoint(context.Background(), two.ID))
		if got := must(e.e.Route(made.ID))(e); !slices.Equal(got.HostComputeEndpoints, []hcn.GUID{one.ID}) {
			e.t.Errorf("after an endpoint went: %v", got.HostComputeEndpoints)
		}
		if !e.turned(one.ID, "10.99.7.7") {
			e.t.Error("the other endpoint lost it too")
		}
		e.ok(e.e.DeleteRoute(context.Background(), made.ID))
		if e.turned(one.ID, "10.99.7.7") {
			e.t.Error("it holds after its deletion")
		}
		e.wantCode(e.e.DeleteRoute(context.Background(), made.ID), hcn.ErrElementNotFound)
		must(e.route(`{"ID":"` + string(made.ID) + `","HostComputeEndpoints":["` + string(one.ID) + `"],"Routes":[{"DestinationPrefix":"10.99.0.0/16","NeedEncap":true}],` + v2 + `}`))(e)
		e.ok(e.e.DeleteNetwork(context.Background(), n.ID))
		if got := must(e.e.Route(made.ID))(e); len(got.HostComputeEndpoints) != 0 {
			e.t.Errorf("after the network went: %v", got.HostComputeEndpoints)
		}
	})
}

// TestRoutesOnOverlay: the switch goes by them there, and the compartment has a route to it.
func TestRoutesOnOverlay(t *testing.T) {
	run(t, func(e *env) {
		e.underlay()
		n := must(e.network(overlayDoc("o", 61, 5001, "")))(e)
		one := must(e.endpoint(epDoc(n.ID, "")))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		e.ok(e.attach(ns.ID, one.ID))
		route := func(settings string) (hcn.HostComputeRoute, error) {
			return e.route(`{"HostComputeEndpoints":["` + string(one.ID) + `"],"Setting":[` + settings + `],` + v2 + `}`)
		}
		made := must(route(`{"DestinationPrefix":"169.254.169.254/24","NextHop":"127.10.0.33"}`))(e)
		e.settle()
		port := e.e.view.port(plan.EndpointPortID(one.ID))
		want := plan.Hop{Prefix: netip.MustParsePrefix("169.254.169.0/24"), Via: netip.MustParseAddr("127.10.0.33")}
		if !slices.Equal(port.Hops, []plan.Hop{want}) || !slices.ContainsFunc(port.VNIC.Routes, func(r plan.Route) bool { return r.Dst == want.Prefix && r.Via.String() == "10.61.0.1" }) {
			e.t.Errorf("hops %v, routes %v", port.Hops, port.VNIC.Routes)
		}
		e.ok(e.e.DeleteRoute(context.Background(), made.ID))
		_, err := route(`{"DestinationPrefix":"10.96.0.0/12","NeedEncap":true}`)
		e.wantCode(err, hcn.ErrInvalidPolicy)
		host := func(request string) error {
			return e.modifyNetwork(n.ID, `{"ResourceType":"Policy","RequestType":"`+request+`","Settings":{"Policies":[`+hostRoute+`]}}`)
		}
		e.ok(host("Add"))
		made = must(route(`{"DestinationPrefix":"10.96.0.0/12","NeedEncap":true}`))(e)
		e.wantCode(host("Remove"), hcn.ErrEntityHasReferences)
		e.ok(e.e.DeleteRoute(context.Background(), made.ID))
		_, err = route(`{"DestinationPrefix":"10.96.0.0/12","NeedEncap":true,"AutomaticEndpointMonitor":true}`)
		e.wantCode(err, hcn.ErrRequestUnsupported)
		e.ok(host("Remove"))
	})
}

// TestRoutesRefuse what would have no effect.
func TestRoutesRefuse(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		bridge := must(e.network(netDoc("b", "L2Bridge", 9)))(e)
		nat := must(e.network(netDoc("n", "NAT", 7)))(e)
		on, off := must(e.endpoint(epDoc(bridge.ID, "")))(e), must(e.endpoint(epDoc(nat.ID, "")))(e)
		to := func(rest string, eps ...hcn.GUID) error {
			list := ""
			for i, ep := range eps {
				if i > 0 {
					list += ","
				}
				list += `"` + string(ep) + `"`
			}
			_, err := e.route(`{` + rest + `"HostComputeEndpoints":[` + list + `],"Routes":[{"DestinationPrefix":"10.99.0.0/16","NeedEncap":true}],` + v2 + `}`)
			return err
		}
		e.wantCode(to("", off.ID), hcn.ErrRequestUnsupported)
		e.wantCode(to("", on.ID, off.ID), hcn.ErrRequestUnsupported)
		e.wantCode(to("", hcn.NewGUID()), hcn.ErrEndpointNotFound)
		e.wantCode(to(`"HostComputeNetwork":"`+string(nat.ID)+`",`, on.ID), hcn.ErrInvalidParameter)
		e.wantCode(to(`"HostComputeNetwork":"`+string(hcn.NewGUID())+`",`, on.ID), hcn.ErrNetworkNotFound)
		if got := e.e.Routes(hcn.Filter{}); len(got) != 0 {
			e.t.Errorf("something of what was refused is there: %v", got)
		}
		_, err := e.route(`{"HostComputeEndpoints":["` + string(on.ID) + `"],"Routes":[{"DestinationPrefix":"10.99.0.0/16","NextHop":"127.10.0.33"}],` + v2 + `}`)
		e.wantCode(err, hcn.ErrInvalidPolicy) // which no LAN has
		host := must(e.e.HostNamespace(context.Background()))(e)
		e.ok(e.attach(host, on.ID))
		e.wantCode(to("", on.ID), hcn.ErrRequestUnsupported)
		e.ok(e.modifyNamespace(host, "Remove", "Endpoint", string(on.ID)))
		e.ok(to(`"HostComputeNetwork":"`+string(bridge.ID)+`",`, on.ID))
		e.wantCode(e.attach(must(e.e.HostNamespace(context.Background()))(e), on.ID), hcn.ErrRequestUnsupported)
	})
}
