package plan_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func backends(n int) []netip.AddrPort {
	out := make([]netip.AddrPort, n)
	for i := range out {
		out[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080)
	}
	return out
}

// TestPlaces: each back end has its share, and keeps nearly all of it when another comes or goes.
func TestPlaces(t *testing.T) {
	if plan.Places(nil) != nil {
		t.Error("places without a back end")
	}
	for _, n := range []int{1, 2, 3, 7, 16, 17, 100} {
		all := backends(n)
		places := plan.Places(all)
		if len(places)&(len(places)-1) != 0 {
			t.Errorf("%d back ends have %d places, no power of two", n, len(places))
		}
		count := make([]int, n)
		for _, p := range places {
			count[p]++
		}
		if least, most := slices.Min(count), slices.Max(count); most-least > 1 {
			t.Errorf("%d back ends have between %d and %d of %d places", n, least, most, len(places))
		}
		if n < 3 || n == 17 { // a smaller table is another one
			continue
		}
		fewer := plan.Places(all[1:])
		moved, gone := 0, 0
		for i, p := range places {
			switch {
			case p == 0:
				gone++
			case all[p] != all[1:][fewer[i]]:
				moved++
			}
		}
		if moved > len(places)/4 {
			t.Errorf("of %d back ends one went with %d of %d places, and %d others moved", n, gone, len(places), moved)
		}
	}
}

// TestSpread: what connections of a client have in common.
func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := func(label string) netip.Addr {
			if rapid.Bool().Draw(t, label+" is v6") {
				return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)))
			}
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)))
		}
		port := rapid.Uint16()
		src, dst := addr("client"), addr("service")
		a := netip.AddrPortFrom(src, port.Draw(t, "port"))
		b := netip.AddrPortFrom(src, port.Draw(t, "another"))
		to, also := netip.AddrPortFrom(dst, 80), netip.AddrPortFrom(dst, 443)
		if plan.Place(plan.SpreadSource, 6, a, to) != plan.Place(plan.SpreadSource, 17, b, also) {
			t.Error("by source: another place for another port or protocol")
		}
		if plan.Place(plan.SpreadSourceProtocol, 6, a, to) != plan.Place(plan.SpreadSourceProtocol, 6, b, also) {
			t.Error("by source and protocol: another place for another port")
		}
	})
	// And connections of one client are spread evenly.
	count := make([]int, 4)
	for port := range 4000 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, 10}), uint16(20000+port))
		count[plan.Place(plan.SpreadFlow, 6, src, netip.MustParseAddrPort("10.96.0.1:80"))%4]++
	}
	if slices.Min(count) < 850 || slices.Max(count) > 1150 {
		t.Errorf("4000 connections were spread as %v", count)
	}
}

// TestExplainService follows a packet to a service, to its back end, to the client itself, and to nobody.
func TestExplainService(t *testing.T) {
	in := &plan.Intent{
		Networks: map[hcn.GUID]*plan.Network{}, Endpoints: map[hcn.GUID]*plan.Endpoint{}, Namespaces: map[hcn.GUID]*plan.NamespaceRow{},
		Balancers: map[hcn.GUID]*plan.LoadBalancer{},
	}
	const network = hcn.GUID("AAAAAAAA-0000-4000-8000-000000000001")
	doc := hcn.HostComputeNetwork{ID: network, Name: "nat", Type: hcn.NAT, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{
		{IpAddressPrefix: "10.1.0.0/24", Routes: []hcn.Route{{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"}}},
	}}}}
	in.Networks[network] = &plan.Network{Doc: doc, Switch: 1, GatewayMAC: plan.MAC{2, 0, 0, 0, 1, 1}}
	for i, name := range []string{"client", "web"} {
		id := hcn.GUID("BBBBBBBB-0000-4000-8000-00000000000" + string('1'+rune(i)))
		ns := hcn.GUID("CCCCCCCC-0000-4000-8000-00000000000" + string('1'+rune(i)))
		in.Namespaces[ns] = &plan.NamespaceRow{Doc: hcn.HostComputeNamespace{ID: ns}}
		e := &plan.Endpoint{MAC: plan.MAC{2, 0, 0, 0, 0, byte(10 + i)}, Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(10 + i)}), 24)}}
		e.Doc.ID, e.Doc.Name, e.Doc.HostComputeNetwork = id, name, network
		e.Doc.Routes = doc.Ipams[0].Subnets[0].Routes
		e.Attach = &plan.Attachment{Namespace: ns, Interface: "eth0"}
		in.Endpoints[id] = e
	}
	for ends, want := range map[string]string{
		"BBBBBBBB-0000-4000-8000-000000000002": "delivered to web, 10.1.0.11",
		"BBBBBBBB-0000-4000-8000-000000000001": "delivered to client, 10.1.0.10",
		"":                                     "dropped at load balancer: TCP 10.96.0.1:80 is a service of load balancer \"lb\", which has no back end: the sender is told",
	} {
		b := &plan.LoadBalancer{Network: network}
		b.Doc = hcn.HostComputeLoadBalancer{
			ID: "EEEEEEEE-0000-4000-8000-000000000001", Name: "lb", FrontendVIPs: []string{"10.96.0.1"},
			PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: 6, InternalPort: 8080, ExternalPort: 80}},
		}
		if ends != "" {
			b.Doc.HostComputeEndpoints = []hcn.GUID{hcn.GUID(ends)}
		}
		in.Balancers[b.Doc.ID] = b
		p := plan.Compile(in, &plan.Facts{UplinkMTU: 1500})
		q := plan.Inquiry{Protocol: 6, Port: 80, To: plan.Party{Kind: plan.PartyOutside, Addr: netip.MustParseAddr("10.96.0.1")}}
		q.From = plan.Party{Kind: plan.PartyPorts, Name: "client", Ports: []*plan.Port{p.Ports["BBBBBBBB-0000-4000-8000-000000000001"]}}
		x := p.Explain(q, &plan.HostView{})
		if x.Summary != want {
			t.Errorf("%q: %q, want %q\n%s", ends, x.Summary, want, p.Text())
		}
	}
	// Another host's, of which this one has a service itself.
	own := in.Balancers["EEEEEEEE-0000-4000-8000-000000000001"]
	theirs := &plan.LoadBalancer{Network: network, Host: "beta", Doc: *own.Doc.Clone()}
	theirs.Doc.ID, theirs.Doc.FrontendVIPs = "EEEEEEEE-0000-4000-8000-000000000002", []string{"10.96.0.1", "10.96.0.2"}
	in.Shared = map[hcn.GUID]*plan.LoadBalancer{theirs.Doc.ID: theirs}
	p := plan.Compile(in, &plan.Facts{UplinkMTU: 1500})
	for vip, want := range map[string]string{"10.96.0.1": "EEEEEEEE-0000-4000-8000-000000000001", "10.96.0.2": "EEEEEEEE-0000-4000-8000-000000000002"} {
		if b, s := p.ServiceAt(network, 6, netip.AddrPortFrom(netip.MustParseAddr(vip), 80), false); s == nil || string(b.ID) != want {
			t.Errorf("%s is a service of %+v, want %s\n%s", vip, b, want, p.Text())
		}
	}
}
