package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// onLAN is a network on a LAN with two containers, the second of which is in a VLAN if one is given, and a load balancer of both.
func onLAN(kind hcn.NetworkType, vlan uint32) (*plan.Intent, *plan.LoadBalancer) {
	const network = hcn.GUID("AAAAAAAA-0000-4000-8000-000000000001")
	in := &plan.Intent{
		Networks: map[hcn.GUID]*plan.Network{}, Endpoints: map[hcn.GUID]*plan.Endpoint{}, Namespaces: map[hcn.GUID]*plan.NamespaceRow{},
		Balancers: map[hcn.GUID]*plan.LoadBalancer{},
	}
	in.Networks[network] = &plan.Network{Switch: 1, Uplink: "nic1", Doc: hcn.HostComputeNetwork{
		ID: network, Name: "lan", Type: kind, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{IpAddressPrefix: "10.1.0.0/24"}}}},
	}}
	b := &plan.LoadBalancer{Network: network, Inside: []uint16{7}, Apart: true}
	b.Doc = hcn.HostComputeLoadBalancer{
		ID: "EEEEEEEE-0000-4000-8000-000000000001", Name: "lb",
		PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: 6, InternalPort: 8080, ExternalPort: 30080}},
	}
	for i, name := range []string{"one", "two"} {
		id := hcn.GUID("BBBBBBBB-0000-4000-8000-00000000000" + string('1'+rune(i)))
		ns := hcn.GUID("CCCCCCCC-0000-4000-8000-00000000000" + string('1'+rune(i)))
		in.Namespaces[ns] = &plan.NamespaceRow{Doc: hcn.HostComputeNamespace{ID: ns}}
		e := &plan.Endpoint{MAC: plan.MAC{2, 0, 0, 0, 0, byte(10 + i)}, Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(10 + i)}), 24)}}
		e.Doc.ID, e.Doc.Name, e.Doc.HostComputeNetwork = id, name, network
		e.Attach = &plan.Attachment{Namespace: ns, Interface: "eth0"}
		if i == 1 && vlan != 0 {
			e.Doc.Policies = []hcn.EndpointPolicy{hcn.NewEndpointPolicy(hcn.EndpointVLAN, hcn.VlanPolicySetting{IsolationId: vlan})}
		}
		in.Endpoints[id] = e
		b.Doc.HostComputeEndpoints = append(b.Doc.HostComputeEndpoints, id)
	}
	in.Balancers[b.Doc.ID] = b
	return in, b
}

// TestServicesOnLAN: the host has a switch of its own for the load balancers of networks on a LAN while there is one that is for it, from
// which all back ends are elsewhere; those in a VLAN, where the host is not, do not count.
func TestServicesOnLAN(t *testing.T) {
	facts := &plan.Facts{UplinkMTU: 1500, NICs: []plan.NIC{{Name: "nic1", MAC: plan.MAC{2, 9}, MTU: 1500}}}
	for _, c := range []struct {
		kind hcn.NetworkType
		vlan uint32
		ends []string
	}{
		{hcn.L2Bridge, 0, []string{"10.1.0.10:8080", "10.1.0.11:8080"}},
		{hcn.Transparent, 7, []string{"10.1.0.10:8080"}},
	} {
		in, b := onLAN(c.kind, c.vlan)
		p := plan.Compile(in, facts)
		host := p.Ports[plan.HostPortID(plan.ServicesNetwork)]
		if sw := p.Switches[plan.ServicesNetwork]; sw == nil || host == nil || len(sw.Subnets) > 0 || !p.Host.Forward4 || p.Host.Forward6 {
			t.Fatalf("%s: no way for the host\n%s", c.kind, p.Text())
		}
		if n := len(host.VNIC.Routes); n != 2 {
			t.Errorf("%s: %d routes, want those to the services and their source", c.kind, n)
		}
		got := p.Balancers[b.Doc.ID]
		if len(got.Services) != 1 || len(got.Forwards) != 1 {
			t.Fatalf("%s: %+v", c.kind, got)
		}
		s := &got.Services[0]
		var ends []string
		for _, e := range s.Backends {
			ends = append(ends, e.String())
		}
		if !slices.Equal(ends, c.ends) || s.Source == nil || got.SwitchOf(s) != host.Switch || host.Switch <= plan.MaxSwitch {
			t.Errorf("%s: back ends %q by %+v on switch %d, want %q on the host's", c.kind, ends, s.Source, got.SwitchOf(s), c.ends)
		}
		if _, found := p.ServiceAt(plan.ServicesNetwork, 6, got.Forwards[0].To, true); found == nil {
			t.Errorf("%s: the host does not find it at %s", c.kind, got.Forwards[0].To)
		}
		explainsOnLAN(t, p, c.kind)
		// Nobody else has the switch: it goes with the last one.
		delete(in.Balancers, b.Doc.ID)
		dirty := plan.NoDirt()
		dirty.Balancers[b.Doc.ID] = struct{}{}
		p.Recompile(in, facts, dirty)
		if p.Switches[plan.ServicesNetwork] != nil || p.Ports[host.ID] != nil || p.Host.Forward4 {
			t.Errorf("%s: it is left\n%s", c.kind, p.Text())
		}
	}
}

func explainsOnLAN(t *testing.T, p *plan.Plan, kind hcn.NetworkType) {
	t.Helper()
	view := &plan.HostView{
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}, Forwards: func(string, bool) bool { return true },
		Route: func(netip.Addr) (plan.HostRoute, error) {
			return plan.HostRoute{Device: "nic1", Src: netip.MustParseAddr("10.1.0.1")}, nil
		},
	}
	for _, from := range []plan.Party{{Kind: plan.PartyOutside, Addr: netip.MustParseAddr("10.1.0.99")}, {Kind: plan.PartyHost}} {
		q := plan.Inquiry{Protocol: 6, Port: 30080, From: from, To: plan.Party{Kind: plan.PartyHost, Addr: netip.MustParseAddr("10.1.0.1")}}
		x := p.Explain(q, view)
		var steps strings.Builder
		for _, s := range x.Steps {
			steps.WriteString(s.Text + "\n")
		}
		if !x.Reachable || !strings.HasPrefix(x.Summary, "delivered to ") || !strings.Contains(steps.String(), "the source becomes the host's, 10.1.0.1") {
			t.Errorf("%s: %s\n%s", kind, x.Summary, steps.String())
		}
	}
}
