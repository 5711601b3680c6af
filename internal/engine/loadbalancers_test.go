package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// lbDoc is the load balancer with a number, of some back ends.
func lbDoc(n int, ends ...hcn.GUID) string {
	return fmt.Sprintf(`{"Name":"lb%d",%s,"FrontendVIPs":["10.96.0.%d","fd00:96::%d"],"HostComputeEndpoints":%s,
		"PortMappings":[{"Protocol":6,"ExternalPort":80,"InternalPort":8080}]}`, n, v2, n+1, n+1, toJSON(ends))
}

// TestBackendsByTheHost: what is outside of a network can be a back end, too, an address of the host included; other networks' endpoints
// that are remote cannot be.
func TestBackendsByTheHost(t *testing.T) {
	run(t, func(e *env) {
		e.w.facts.HostAddrs = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}
		e.e.Wake("addresses")
		e.settle()
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		far := func(ip string) (*hcn.HostComputeEndpoint, error) {
			ep, err := e.endpoint(fmt.Sprintf(`{"HostComputeNetwork":%q,%s,"Flags":1,"IpConfigurations":[{"IpAddress":%q}]}`, n.ID, v2, ip))
			return &ep, err
		}
		own := "192.0.2.1"
		ends := []hcn.GUID{must(far(own))(e).ID, must(far("203.0.113.9"))(e).ID, must(far("2001:db8:9::9"))(e).ID}
		if _, err := far("203.0.113.9"); hcn.CodeOf(err) != hcn.ErrAddrInvalidOrReserved {
			e.t.Errorf("the same again: %v", err)
		}
		if _, err := far("10.7.0.99"); hcn.CodeOf(err) != hcn.ErrRequestUnsupported {
			e.t.Errorf("one in a subnet: %v", err)
		}
		lb := must(e.balancer(lbDoc(1, ends...)))(e)
		e.settle()
		var got []string
		for _, s := range e.e.plan.Balancers[lb.ID].Services {
			if !s.Host {
				for _, b := range s.Backends {
					got = append(got, b.String())
				}
			}
		}
		slices.Sort(got)
		want := []string{own + ":8080", "203.0.113.9:8080", "[2001:db8:9::9]:8080"}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			e.t.Errorf("back ends %q, want %q", got, want)
		}
	})
}

// TestSourceVIP: back ends outside of the network count for the host when the SourceVIP is an endpoint's that is in no compartment, whichever
// comes first, and for as long.
func TestSourceVIP(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		far := must(e.endpoint(epDoc(n.ID, `"Flags":1,"IpConfigurations":[{"IpAddress":"203.0.113.9"}]`)))(e)
		here := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, here.ID))
		doc := lbDoc(1, far.ID, here.ID)
		lb := must(e.balancer(strings.Replace(doc, `"FrontendVIPs"`, `"SourceVIP":"10.7.0.99","FrontendVIPs"`, 1)))(e)
		check := func(what, source string, ends ...string) {
			e.t.Helper()
			e.settle()
			p := e.e.plan
			var got []string
			as := ""
			for _, s := range p.Balancers[lb.ID].Services {
				if !s.Host && s.Self != s.VIP {
					e.t.Errorf("%s: a back end that is its own client sees %s, for which nobody on the link answers", what, s.Self)
				}
				if !s.Host || s.VIP.Is6() {
					continue
				}
				for _, b := range s.Backends {
					got = append(got, b.Addr().String())
				}
				if s.Source != nil {
					as = s.Source.Addr.String()
				}
			}
			known := slices.ContainsFunc(p.Ports[p.Switches[n.ID].HostPort].VNIC.Neighbours, func(k plan.Neighbour) bool { return k.Addr.String() == "10.7.0.99" })
			if !slices.Equal(got, ends) || as != source || known != (source != "") {
				e.t.Errorf("%s: back ends %v as %q, and the host knows it: %v; want %v as %q", what, got, as, known, ends, source)
			}
		}
		own := here.IpConfigurations[0].IpAddress
		check("nobody has it", "", own)
		source := must(e.endpoint(epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.7.0.99"}]`)))(e)
		check("an endpoint has it", "10.7.0.99", own, "203.0.113.9")
		e.ok(e.attach(ns.ID, source.ID))
		check("it is attached", "", own)
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(source.ID)))
		check("it is detached", "10.7.0.99", own, "203.0.113.9")
		e.restart()
		check("after a restart", "10.7.0.99", own, "203.0.113.9")
		e.ok(e.e.DeleteEndpoint(bg, source.ID))
		check("it is deleted", "", own)
		other := must(e.balancer(strings.Replace(lbDoc(2, here.ID), `"FrontendVIPs"`, `"SourceVIP":"10.99.0.99","FrontendVIPs"`, 1)))(e)
		e.settle()
		for _, s := range e.e.plan.Balancers[other.ID].Services {
			if want := "10.99.0.99"; !s.Host && s.VIP.Is4() && s.Self.String() != want {
				e.t.Errorf("a back end that is its own client sees %s, want %s", s.Self, want)
			}
		}
	})
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
				if s.Host {
					continue
				}
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
		e.onLAN()
		macvlan := must(e.network(strings.Replace(netDoc("lan", "Transparent", 9), `"Ipams"`, `"Policies":[{"Type":"Bulkhead.Macvlan","Settings":{}}],"Ipams"`, 1)))(e)
		for what, tc := range map[string]struct {
			doc  string
			code hcn.ErrorCode
		}{
			"devices without a switch": {fmt.Sprintf(`{%s,"HostComputeNetwork":%q,"FrontendVIPs":["10.96.0.9"],"PortMappings":[{"Protocol":6,"InternalPort":80}]}`,
				v2, macvlan.ID), hcn.ErrRequestUnsupported},
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

// nodePort is a load balancer at the host's own addresses.
func nodePort(name, more string, ends ...hcn.GUID) string {
	return fmt.Sprintf(`{"Name":%q,%s,%s"HostComputeEndpoints":%s,"PortMappings":[{"Protocol":6,"ExternalPort":30080,"InternalPort":8080}]}`, name, v2, more, toJSON(ends))
}

// TestLoadBalancersAtTheHost: their ports are held like published ones, in both families or in one for each of two, and who has one is named.
func TestLoadBalancersAtTheHost(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		internal := must(e.network(netDoc("b", "Internal", 8)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		web := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, web.ID))
		forwards := func(id hcn.GUID) (out []string) {
			e.settle()
			p := e.e.plan.Balancers[id]
			for _, f := range p.Forwards {
				out = append(out, f.String())
			}
			for _, s := range p.Services {
				if s.Host {
					out = append(out, fmt.Sprintf("%s to %v", &s, s.Backends))
				}
			}
			return out
		}
		lb := must(e.balancer(nodePort("web", "", web.ID)))(e)
		sw := e.e.plan.Switches[n.ID].Number
		in4, in6 := plan.Inside(sw, false), plan.Inside(sw, true)
		want := []string{
			fmt.Sprintf("publish tcp all:30080 to %s:1", in4), fmt.Sprintf("publish tcp all:30080 to [%s]:1", in6),
			fmt.Sprintf("TCP %s:1 to [10.7.0.2:8080]", in4), fmt.Sprintf("TCP [%s]:1 to [[fd00:7::2]:8080]", in6),
		}
		if got := forwards(lb.ID); len(got) != 4 || got[2] != want[2] || got[3] != want[3] {
			e.t.Errorf("at the host: %q, want %q", got, want)
		}
		if host := e.e.plan.Ports[plan.HostPortID(n.ID)]; len(host.VNIC.Routes) != 2 || len(host.Acquaintance()) != 2 {
			e.t.Errorf("the host's vNIC has routes %v and neighbours %v", host.VNIC.Routes, host.Acquaintance())
		}
		published := `"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":30080}}]`
		_, err := e.endpoint(epDoc(n.ID, published))
		e.wantCode(err, hcn.ErrPortAlreadyExists)
		if !strings.Contains(fmt.Sprint(err), "load balancer web") {
			e.t.Errorf("the holder is not named: %v", err)
		}
		_, err = e.balancer(nodePort("other", "", web.ID))
		e.wantCode(err, hcn.ErrPortAlreadyExists)
		_, err = e.balancer(fmt.Sprintf(`{%s,"HostComputeNetwork":%q,"PortMappings":[{"Protocol":6,"InternalPort":80}]}`, v2, internal.ID))
		e.wantCode(err, hcn.ErrRequestUnsupported)
		_, err = e.balancer(fmt.Sprintf(`{%s,"HostComputeNetwork":%q,"FrontendVIPs":["10.96.0.7"],"PortMappings":[{"Protocol":6,"InternalPort":80,"Flags":"LocalRoutedVip"}]}`, v2, internal.ID))
		e.wantCode(err, hcn.ErrRequestUnsupported)
		e.w.host[hostPort{6, netip.IPv4Unspecified(), 80}] = "nginx"
		_, err = e.balancer(strings.Replace(nodePort("nginx's", "", web.ID), "30080", "80", 1))
		e.wantCode(err, hcn.ErrPortAlreadyExists)
		must(e.balancer(lbDoc(1, web.ID)))(e) // an address that is none of the host's is nobody's to bind

		// A client makes one for IPv6, whichever comes first.
		six := must(e.balancer(nodePort("web6", `"Flags":"IPv6",`, web.ID)))(e)
		if got := forwards(lb.ID); len(got) != 2 || got[1] != want[2] {
			e.t.Errorf("beside one for IPv6: %q", got)
		}
		if got := forwards(six.ID); len(got) != 2 || !strings.HasPrefix(got[1], fmt.Sprintf("TCP [%s]:", in6)) {
			e.t.Errorf("the one for IPv6: %q", got)
		}
		e.ok(e.e.DeleteLoadBalancer(bg, lb.ID))
		lb = must(e.balancer(nodePort("web", "", web.ID)))(e)
		if got := forwards(lb.ID); len(got) != 2 {
			e.t.Errorf("made after one for IPv6: %q", got)
		}
		e.ok(e.e.DeleteLoadBalancer(bg, six.ID))
		e.ok(e.e.ModifyLoadBalancer(bg, lb.ID, must(e.e.LoadBalancer(lb.ID))(e)))
		if got := forwards(lb.ID); len(got) != 4 {
			e.t.Errorf("after the one for IPv6: %q", got)
		}
		before := forwards(lb.ID)
		e.restart()
		if got := forwards(lb.ID); !slices.Equal(got, before) {
			e.t.Errorf("after a restart: %q, want %q", got, before)
		}
		e.check()
		e.ok(e.e.DeleteLoadBalancer(bg, lb.ID))
		must(e.endpoint(epDoc(n.ID, published)))(e) // free at once
		for _, id := range e.e.LoadBalancers(hcn.Filter{}) {
			e.ok(e.e.DeleteLoadBalancer(bg, id))
		}
		e.settle()
		if host := e.e.plan.Ports[plan.HostPortID(n.ID)]; len(host.VNIC.Routes)+len(host.KnownOn) != 0 {
			e.t.Errorf("routes of nobody: %v", host.VNIC.Routes)
		}
		e.check()
	})
}

// TestLoadBalancersOnLAN: the ports by which the host reaches load balancers of networks on a LAN are on one switch of its own; it is in no VLAN.
func TestLoadBalancersOnLAN(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		inside := map[uint16]bool{}
		var last hcn.GUID
		for i, kind := range []string{"L2Bridge", "Transparent"} {
			n := must(e.network(netDoc(kind, kind, 9+i)))(e)
			ep := must(e.endpoint(epDoc(n.ID, "")))(e)
			e.ok(e.attach(ns.ID, ep.ID))
			lb := must(e.balancer(fmt.Sprintf(`{%s,"HostComputeEndpoints":[%q],"PortMappings":[{"Protocol":6,"ExternalPort":%d,"InternalPort":80,"Flags":18}]}`, v2, ep.ID, 30080+i)))(e)
			inside[e.e.st.balancers[lb.ID].Inside[0]], last = true, lb.ID
		}
		check := func(what string) {
			e.t.Helper()
			e.settle()
			b := e.e.plan.Balancers[last]
			if len(inside) != 2 || e.e.plan.Switches[plan.ServicesNetwork] == nil || b == nil || len(b.Forwards) != 2 || !inside[b.Forwards[0].To.Port()] {
				e.t.Errorf("%s: inside ports %v, the last one %+v", what, inside, b)
			}
		}
		check("made")
		e.restart()
		check("after a restart")
		tagged := must(e.network(strings.ReplaceAll(netDoc("tagged", "L2Bridge", 20), `"IpAddressPrefix"`, `"Policies":[{"Type":"VLAN","Settings":{"IsolationId":7}}],"IpAddressPrefix"`)))(e)
		_, err := e.balancer(fmt.Sprintf(`{%s,"HostComputeNetwork":%q,"PortMappings":[{"Protocol":6,"ExternalPort":30090,"InternalPort":80}]}`, v2, tagged.ID))
		if hcn.CodeOf(err) != hcn.ErrRequestUnsupported {
			e.t.Errorf("in a VLAN: %v", err)
		}
		for _, id := range e.e.LoadBalancers(hcn.Filter{}) {
			e.ok(e.e.DeleteLoadBalancer(bg, id))
		}
		e.settle()
		if e.e.plan.Switches[plan.ServicesNetwork] != nil || len(e.e.st.inside) > 0 {
			e.t.Errorf("left: %+v, %v", e.e.plan.Switches[plan.ServicesNetwork], e.e.st.inside)
		}
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

		lb = must(e.balancer(lbDoc(2, must(e.endpoint(epDoc(n.ID, "")))(e).ID)))(e)
		e.restart()
		told := e.watch()
		e.ok(e.e.DeleteLoadBalancer(bg, lb.ID))
		if got := told(); !slices.Contains(got, "loadbalancer delete lb2") {
			e.t.Errorf("of one that is older than the daemon: %q", got)
		}
	})
}

// TestLoadBalancersGoWithTheirNetwork: with a network that is deleted, or ends with the run of the host, its load balancers go, those
// without back ends too, and their services are free. A back end that ended with the store in memory is one no more.
func TestLoadBalancersGoWithTheirNetwork(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		must(e.balancer(lbDoc(1, ep.ID)))(e)
		empty := strings.Replace(lbDoc(2), `"HostComputeEndpoints":null`, fmt.Sprintf(`"HostComputeNetwork":%q`, n.ID), 1)
		must(e.balancer(empty))(e)
		e.ok(e.e.DeleteNetwork(bg, n.ID))
		if left := e.e.LoadBalancers(hcn.Filter{}); len(left) != 0 {
			e.t.Errorf("load balancers of a network that is deleted: %v", left)
		}

		doc := decode[hcn.HostComputeNetwork](e, netDoc("passing", "NAT", 7))
		doc.Flags |= hcn.EnableNonPersistent
		n = must(e.e.CreateNetwork(bg, "", doc))(e)
		ep = must(e.endpoint(epDoc(n.ID, "")))(e)
		must(e.balancer(lbDoc(1, ep.ID)))(e)
		e.reboot()
		if left := e.e.LoadBalancers(hcn.Filter{}); len(left) != 0 {
			e.t.Errorf("load balancers of a network that ended with the host: %v", left)
		}

		n = must(e.network(netDoc("a", "NAT", 7)))(e)
		e.w.netns["/run/netns/c1"] = 11
		s := foreign("c1")
		s.Network = "a"
		passing := must(e.attachForeign(s))(e)
		stays := must(e.endpoint(epDoc(n.ID, "")))(e)
		lb := must(e.balancer(lbDoc(1, passing.ID, stays.ID)))(e)
		e.kill()
		e.ok(os.Remove(e.path + ".run"))
		e.start()
		if got := must(e.e.LoadBalancer(lb.ID))(e); !slices.Equal(got.HostComputeEndpoints, []hcn.GUID{stays.ID}) || got.Version != lb.Version+1 {
			e.t.Errorf("back ends without the store in memory: %s", toJSON(got))
		}
	})
}

// TestLoadBalancerOfAHostThatIsAway: a back end on a host that is away just now stays one when the rest is changed.
func TestLoadBalancerOfAHostThatIsAway(t *testing.T) {
	run(t, func(e *env) {
		e.underlay()
		n := must(e.network(overlayDoc("blue", 61, 5001, "")))(e)
		here, there := must(e.endpoint(epDoc(n.ID, "")))(e), hcn.NewGUID()
		r := plan.Remote{Endpoint: there, Network: n.ID, Addrs: []netip.Addr{netip.MustParseAddr("10.61.0.9")}, MAC: plan.MAC{2, 9}, Provider: netip.MustParseAddr("192.0.2.9")}
		e.e.ReplaceRemotes("test", n.ID, []plan.Remote{r})
		lb := must(e.balancer(lbDoc(1, here.ID, there)))(e)
		e.e.ReplaceRemotes("test", n.ID, nil)
		lb.Name = "renamed"
		e.ok(e.e.ModifyLoadBalancer(bg, lb.ID, lb))
		e.ok(e.e.DeleteEndpoint(bg, here.ID))
		lb = must(e.e.LoadBalancer(lb.ID))(e)
		e.ok(e.e.ModifyLoadBalancer(bg, lb.ID, lb)) // and none is left by which the network could be found
		if got := must(e.e.LoadBalancer(lb.ID))(e); !slices.Equal(got.HostComputeEndpoints, []hcn.GUID{there}) || got.Name != "renamed" {
			e.t.Errorf("changed to %s", toJSON(got))
		}
		lb.HostComputeEndpoints = append(lb.HostComputeEndpoints, hcn.NewGUID())
		e.wantCode(e.e.ModifyLoadBalancer(bg, lb.ID, lb), hcn.ErrEndpointNotFound)
		e.ok(e.e.DeleteLoadBalancer(bg, lb.ID))
	})
}

// TestLoadBalancerUndo: a change that the kernel refuses is taken back, and nothing that came after it.
func TestLoadBalancerUndo(t *testing.T) {
	for name, tc := range map[string]struct {
		meanwhile func(e *env, lb hcn.HostComputeLoadBalancer) func(*txn) error
		want      string // the load balancer's name
	}{
		"nothing": {func(*env, hcn.HostComputeLoadBalancer) func(*txn) error { return nil }, "lb1"},
		"another change": {func(_ *env, lb hcn.HostComputeLoadBalancer) func(*txn) error {
			return func(t *txn) error {
				row := *t.st.balancers[lb.ID]
				row.Doc.Name = "newer"
				t.changeBalancer(&row)
				return nil
			}
		}, "newer"},
		"what it gave up is taken": {func(e *env, lb hcn.HostComputeLoadBalancer) func(*txn) error {
			doc := decode[hcn.HostComputeLoadBalancer](e, lbDoc(1, lb.HostComputeEndpoints...))
			return func(t *txn) error { return second(t.newBalancer("", doc)) }
		}, "moved"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				ep := must(e.endpoint(epDoc(n.ID, "")))(e)
				lb := must(e.balancer(lbDoc(1, ep.ID)))(e)
				fails := time.Now().Add(time.Second)
				e.w.mu.Lock()
				e.w.fail = func(_ int, k *object) error {
					if k == nil || *k != balancerObject(lb.ID) || time.Now().After(fails) {
						return nil
					}
					return errors.New("no buffer space available")
				}
				if fn := tc.meanwhile(e, lb); fn != nil {
					e.onStep = map[string]func(){"apply-switch": func() { e.ok(second(e.e.commitOnce(fn))) }}
				}
				e.w.mu.Unlock()
				next := decode[hcn.HostComputeLoadBalancer](e, lbDoc(5, ep.ID))
				next.Name = "moved"
				if err := e.e.ModifyLoadBalancer(bg, lb.ID, next); err == nil {
					e.t.Error("a change that cannot be made succeeds")
				}
				e.settle()
				if got := must(e.e.LoadBalancer(lb.ID))(e); got.Name != tc.want {
					e.t.Errorf("it is %q, want %q", got.Name, tc.want)
				}
			})
		})
	}
}

// TestSubnetAroundAVIP: a subnet that is added may not have a virtual address of the network in it.
func TestSubnetAroundAVIP(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		must(e.balancer(lbDoc(1, ep.ID)))(e)
		add := func(prefix, gateway, all string) error {
			r := decode[hcn.ModifyNetworkSettingRequest](e, fmt.Sprintf(
				`{"ResourceType":"Subnet","RequestType":"Add","Settings":{"Subnets":[{"IpAddressPrefix":%q,"Routes":[{"NextHop":%q,"DestinationPrefix":%q}]}]}}`, prefix, gateway, all))
			return e.e.ModifyNetwork(bg, n.ID, &r)
		}
		for _, err := range []error{add("10.96.0.0/24", "10.96.0.1", "0.0.0.0/0"), add("fd00:96::/64", "fd00:96::1", "::/0")} {
			e.wantCode(err, hcn.ErrInvalidSubnet)
			if !strings.Contains(err.Error(), `load balancer "lb1"`) {
				e.t.Errorf("%v does not name the load balancer", err)
			}
		}
		e.ok(add("10.97.0.0/24", "10.97.0.1", "0.0.0.0/0"))
	})
}

// TestLoadBalancersOfAHost: all of them together have no more than the tables of the switch hold.
func TestLoadBalancersOfAHost(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		made := 0
		_, err := e.e.commitOnce(func(t *txn) error {
			for ; made < 100; made++ {
				doc := hcn.HostComputeLoadBalancer{HostComputeEndpoints: []hcn.GUID{ep.ID}, FrontendVIPs: []string{fmt.Sprintf("10.96.0.%d", made)}, SchemaVersion: hcn.V2()}
				for port := range 4096 {
					doc.PortMappings = append(doc.PortMappings, hcn.LoadBalancerPortMapping{Protocol: hcn.ProtocolTCP, InternalPort: uint16(port + 1), Flags: hcn.EnableInternalLoadBalancer})
				}
				if _, err := t.newBalancer("", doc); err != nil {
					return err
				}
			}
			return nil
		})
		e.wantCode(err, hcn.ErrInvalidParameter)
		if made != 16 || !strings.Contains(err.Error(), "65536 is the limit") {
			e.t.Errorf("%d load balancers, then %v", made, err)
		}
		row := &plan.LoadBalancer{Network: n.ID, Doc: decode[hcn.HostComputeLoadBalancer](e, lbDoc(1, ep.ID))}
		_, err = e.e.commitOnce(func(t *txn) error {
			t.st.served += mostServed - 1
			defer func() { t.st.served -= mostServed - 1 }()
			return t.checkBalancer(row, nil)
		})
		e.wantCode(err, hcn.ErrInvalidParameter)
	})
}

// TestCutBalancers kills the daemon at every step of making, changing and deleting a load balancer: it is there whole, or not.
func TestCutBalancers(t *testing.T) {
	for name, op := range map[string]func(e *env, lb, ep hcn.GUID) error{
		"create":      func(e *env, _, ep hcn.GUID) error { return second(e.balancer(lbDoc(2, ep))) },
		"at the host": func(e *env, _, ep hcn.GUID) error { return second(e.balancer(nodePort("node", "", ep))) },
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
					passed = e.uncut()
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
