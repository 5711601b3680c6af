package plantest

import (
	"maps"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// vips are the addresses of drawn services. They have the ports of drawn packets.
var vips = parse("10.96.0.1", "10.96.0.2", "fd00:96::1", "fd00:96::2")

// balancers draws load balancers, with back ends here, elsewhere, or nowhere.
func balancers(t *rapid.T, in *plan.Intent) {
	for i := range rapid.IntRange(0, 3).Draw(t, "load balancers") {
		network := rapid.SampledFrom(slices.Sorted(maps.Keys(in.Networks))).Draw(t, "network of a load balancer")
		b := &plan.LoadBalancer{Network: network}
		b.Doc.ID = guid("E", i+1)
		for _, id := range slices.Sorted(maps.Keys(in.Endpoints)) {
			if in.Endpoints[id].Doc.HostComputeNetwork == network && rapid.IntRange(0, 2).Draw(t, "back end") > 0 {
				b.Doc.HostComputeEndpoints = append(b.Doc.HostComputeEndpoints, id)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(in.Remotes)) {
			if in.Remotes[id].Network == network && rapid.Bool().Draw(t, "back end elsewhere") {
				b.Doc.HostComputeEndpoints = append(b.Doc.HostComputeEndpoints, id)
			}
		}
		// Each has addresses of its own.
		b.Doc.FrontendVIPs = []string{vips[i%2].String(), vips[2+i%2].String()}
		ports := [][]uint16{{80, 53}, {80, 443}, {22, 81}}[i]
		for _, port := range ports {
			m := hcn.LoadBalancerPortMapping{
				Protocol: rapid.SampledFrom([]hcn.Protocol{hcn.ProtocolTCP, hcn.ProtocolUDP}).Draw(t, "protocol"), ExternalPort: port,
				InternalPort:     rapid.SampledFrom([]uint16{port, 80, 8005, 67}).Draw(t, "internal port"),
				DistributionType: rapid.SampledFrom([]hcn.DistributionType{0, 1, 2}).Draw(t, "distribution"),
			}
			if rapid.IntRange(0, 3).Draw(t, "kept") == 0 {
				m.Flags, m.InternalPort = hcn.EnablePreserveDip, port
			}
			b.Doc.PortMappings = append(b.Doc.PortMappings, m)
		}
		switch rapid.IntRange(0, 3).Draw(t, "source") {
		case 0:
			b.Doc.SourceVIP = "10.96.0.9"
		case 1, 2:
			b.Doc.SourceVIP = sources[rapid.IntRange(0, 1).Draw(t, "source's family")].String()
			reserve(in, network)
		}
		if in.Networks[network].Doc.ByHost() && rapid.Bool().Draw(t, "back end by the host") {
			b.Doc.HostComputeEndpoints = append(b.Doc.HostComputeEndpoints, outside(in, network))
		}
		if rapid.Bool().Draw(t, "for the host") {
			b.Inside, b.Apart = []uint16{uint16(2*i + 1), uint16(2*i + 2)}, plan.BalancesApart(&in.Networks[network].Doc)
			if rapid.Bool().Draw(t, "at its addresses") {
				b.Doc.FrontendVIPs = nil
			}
		}
		in.Balancers[b.Doc.ID] = b
	}
}

// sources are addresses of an endpoint that is in no compartment.
var sources = parse("10.1.0.99", "fd00:1::99")

// reserve makes that endpoint.
func reserve(in *plan.Intent, network hcn.GUID) {
	number := int(in.Networks[network].Switch)
	e := &plan.Endpoint{MAC: plan.MAC{2, 0, 0, 0, 0xab, byte(number)}, Addrs: []netip.Prefix{netip.PrefixFrom(sources[0], 24), netip.PrefixFrom(sources[1], 64)}}
	e.Doc.ID, e.Doc.HostComputeNetwork = guid("F", number), network
	in.Endpoints[e.Doc.ID] = e
}

// outside makes an endpoint that stands for a machine outside of the network.
func outside(in *plan.Intent, network hcn.GUID) hcn.GUID {
	number := int(in.Networks[network].Switch)
	e := &plan.Endpoint{Addrs: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32"), netip.MustParsePrefix("2001:db8:9::9/128")}}
	e.Doc.ID, e.Doc.HostComputeNetwork, e.Doc.Flags = guid("F", 10+number), network, hcn.RemoteEndpoint
	in.Endpoints[e.Doc.ID] = e
	return e.Doc.ID
}

// served makes a packet one for a service.
func served(t *rapid.T, p *plan.Plan, k *plan.Packet, v6 bool) {
	var all []plan.Service
	for _, id := range slices.Sorted(maps.Keys(p.Balancers)) {
		b := p.Balancers[id]
		for _, s := range b.Services {
			if at := p.Ports[k.From].Network; at == b.Network || s.Host && at == b.DoorID() {
				all = append(all, s)
			}
		}
	}
	all = slices.DeleteFunc(all, func(s plan.Service) bool { return s.VIP.Is6() != v6 })
	// Others than containers and the host ask for none, or seldom.
	if p.Ports[k.From].Kind == plan.PortHost && !seldom(t, "of containers") {
		all = slices.DeleteFunc(all, func(s plan.Service) bool { return !s.Host })
	}
	if rare := p.Ports[k.From].Kind != plan.PortContainer && p.Ports[k.From].Kind != plan.PortHost; len(all) == 0 || rare && !seldom(t, "of others") || rapid.IntRange(0, 3).Draw(t, "to a service") != 1 {
		return
	}
	s := rapid.SampledFrom(all).Draw(t, "service")
	k.Protocol, k.Dst, k.DstPort = s.Protocol, s.VIP, s.Port
	k.SrcPort = rapid.SampledFrom([]uint16{1, 53, 68, 1024, 40000, 40001, 65535}).Draw(t, "client's port")
	k.ICMPType = 0
}
