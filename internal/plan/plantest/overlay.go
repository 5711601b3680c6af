package plantest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Hosts of drawn overlays; the last one has nothing of any.
var hosts = parse("192.0.2.101", "192.0.2.102", "2001:db8::66", "192.0.2.103")

// Inside WireGuard they have others.
var inside = parse("fd99::101", "fd99::102", "fd99::66", "fd99::103")

// overlay completes the document of a network over several hosts. Its virtual network goes with its number.
func overlay(t *rapid.T, n *plan.Network, number int) {
	doc := &n.Doc
	vni := uint32(5000 + number)
	for _, s := range doc.AllSubnets() {
		s.Policies = []hcn.SubnetPolicy{hcn.NewSubnetPolicy(hcn.VSID, hcn.VsidPolicySetting{IsolationId: vni})}
	}
	if rapid.IntRange(0, 2).Draw(t, "host route") == 0 {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.HostRoute, hcn.EmptySetting{}))
	}
	if rapid.Bool().Draw(t, "multicast") {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.Multicast, hcn.EmptySetting{}))
	}
	if rapid.IntRange(0, 2).Draw(t, "encrypted") == 0 {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.NetworkEncryption, hcn.NetworkEncryptionSetting{EncryptionMethodType: hcn.EncryptionMethodWireGuard}))
		n.Cluster, n.Inner = true, netip.MustParseAddr("fd99::1")
		return // and has no routes
	}
	for i, prefix := range []string{"10.7.0.0/16", "10.7.8.0/24", "fd00:7::/64"} {
		if rapid.Bool().Draw(t, "route") {
			doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.RemoteSubnetRoute, hcn.RemoteSubnetRoutePolicySetting{
				DestinationPrefix: prefix, IsolationId: vni, ProviderAddress: hosts[i%2].String(),
				DistributedRouterMacAddress: hcn.MACFrom(plan.MAC{2, 0, 0, 0, 0xdd, byte(i)}),
			}))
		}
	}
}

// remotes are endpoints on other hosts, with one of which the host shares no family.
func remotes(t *rapid.T, in *plan.Intent, network hcn.GUID, number int) {
	sealed := plan.Encrypted(&in.Networks[network].Doc)
	for i := range rapid.IntRange(0, 3).Draw(t, "remotes") {
		id := guid("D", 10*number+i)
		in.Remotes[id] = &plan.Remote{
			Endpoint: id, Network: network, MAC: plan.MAC{2, 0, 0, 0, 0xcc, byte(i)}, Provider: hosts[i],
			Addrs: parse(fmt.Sprintf("10.1.0.%d", 50+i), fmt.Sprintf("fd00:1::%x", 50+i)),
		}
		if sealed {
			in.Remotes[id].Provider, in.Remotes[id].Keyless = inside[i], seldom(t, "no key")
		}
	}
}

// elsewhere are addresses on other hosts.
func elsewhere(p *plan.Plan, v6 bool) []netip.Addr {
	var out []netip.Addr
	for _, id := range slices.Sorted(maps.Keys(p.Remotes)) {
		for _, a := range p.Remotes[id].Addrs {
			if a.Is6() == v6 {
				out = append(out, a)
			}
		}
	}
	for _, sw := range p.Switches {
		if sw.Overlay != nil && len(sw.Overlay.Routes) > 0 {
			if v6 {
				return append(out, parse("fd00:7::1", "fd00:8::1")...)
			}
			return append(out, parse("10.7.1.1", "10.7.8.1", "10.8.0.1")...)
		}
	}
	return out
}

// tunnelled makes a packet one that comes in from another host.
func tunnelled(t *rapid.T, p *plan.Plan, from *plan.Port, k *plan.Packet, v6 bool) {
	of := map[uint32]*plan.Switch{}
	for _, id := range slices.Sorted(maps.Keys(p.Switches)) {
		if sw := p.Switches[id]; sw.Overlay != nil && sw.Overlay.Tunnel != "" && sw.Overlay.Port == from.UDPPort {
			for _, vni := range sw.VNIs() {
				of[vni] = sw
			}
		}
	}
	k.VNI = rapid.SampledFrom(slices.Sorted(maps.Keys(of))).Draw(t, "VNI")
	if seldom(t, "other VNI") {
		k.VNI = 4999
	}
	if sw := of[k.VNI]; sw != nil && sw.Overlay.Encrypted && (sw.Overlay.Tunnel != from.ID || rapid.Bool().Draw(t, "in clear text")) {
		k.OuterSrc, k.OuterDst = hosts[rapid.IntRange(0, 1).Draw(t, "host")], sw.Overlay.Clear[0]
		return
	}
	all := elsewhere(p, v6)
	strange := len(all) == 0 || rapid.IntRange(0, 4).Draw(t, "other source") == 3
	if !strange {
		k.Src = rapid.SampledFrom(all).Draw(t, "source elsewhere")
	}
	if strange || seldom(t, "other host") {
		k.OuterSrc = rapid.SampledFrom(hosts).Draw(t, "host")
	}
}
