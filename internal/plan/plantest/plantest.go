// Package plantest draws plans and packets for property tests: plans full of rules that
// overlap, and packets that hit where the rules end. The same plans drive the model of
// the switch ([plan.Plan.Trace]) and the program in the kernel, so that the two can be
// held to one verdict.
package plantest

import (
	"fmt"
	"net/netip"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// mostEndpoints that a drawn plan has. Their IDs are the same in every plan, and so are
// their devices' names: a test that needs the devices makes them once.
const mostEndpoints = 6

// Networks are the IDs of the networks that drawn plans have.
func Networks() []hcn.GUID { return []hcn.GUID{guid("A", 1), guid("A", 2)} }

// Endpoints are the IDs of the endpoints that drawn plans have.
func Endpoints() []hcn.GUID {
	out := make([]hcn.GUID, mostEndpoints)
	for i := range out {
		out[i] = guid("B", i+1)
	}
	return out
}

func guid(kind string, n int) hcn.GUID {
	return hcn.GUID(fmt.Sprintf("%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s%[1]s-0000-4000-8000-%012[2]d", kind, n))
}

// Plan draws a plan of one or two switches with two to six container ports.
func Plan(t *rapid.T) *plan.Plan { return plan.Compile(Intent(t), Facts()) }

// Facts are those of a host that has the NICs of drawn networks on a LAN.
func Facts() *plan.Facts {
	f := &plan.Facts{UplinkMTU: 1500}
	for i := range Networks() {
		f.NICs = append(f.NICs, plan.NIC{
			Name: nic(i + 1), Index: i + 1, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, byte(i + 1)},
			Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)}), 24)},
		})
	}
	return f
}

func nic(network int) string { return fmt.Sprintf("nic%d", network) }

// Intent draws what [Plan] compiles.
func Intent(t *rapid.T) *plan.Intent {
	in := &plan.Intent{
		Networks: map[hcn.GUID]*plan.Network{}, Endpoints: map[hcn.GUID]*plan.Endpoint{}, Namespaces: map[hcn.GUID]*plan.NamespaceRow{},
		Remotes: map[hcn.GUID]*plan.Remote{}, Balancers: map[hcn.GUID]*plan.LoadBalancer{},
	}
	if rapid.Bool().Draw(t, "keys") {
		in.Secure = &plan.Secure{Problem: rapid.SampledFrom([]string{"", "", "it does not start"}).Draw(t, "problem")}
	}
	networks := Networks()[:rapid.IntRange(1, 2).Draw(t, "networks")]
	for i, id := range networks {
		in.Networks[id] = network(t, id, i+1)
		if in.Networks[id].Doc.Type == hcn.Overlay {
			remotes(t, in, id, i+1)
		}
	}
	ids := Endpoints()
	for i, id := range ids[:rapid.IntRange(2, len(ids)).Draw(t, "endpoints")] {
		on := rapid.SampledFrom(networks).Draw(t, "network")
		ns := guid("C", i+1)
		in.Namespaces[ns] = &plan.NamespaceRow{Doc: hcn.HostComputeNamespace{ID: ns}}
		e := endpoint(t, id, i+1)
		e.Doc.HostComputeNetwork = on
		if plan.OnLAN(in.Networks[on].Doc.Type) && rapid.IntRange(0, 4).Draw(t, "tagged") == 0 {
			e.Doc.Policies = append(e.Doc.Policies, hcn.NewEndpointPolicy(hcn.EndpointVLAN, hcn.VlanPolicySetting{IsolationId: 5}))
		}
		if in.Networks[on].Doc.Type == hcn.Overlay && rapid.IntRange(0, 2).Draw(t, "routed") > 0 {
			e.Doc.Policies = append(e.Doc.Policies, hops(t)...)
		}
		e.Attach = &plan.Attachment{Namespace: ns, Interface: "eth0"}
		in.Endpoints[id] = e
	}
	balancers(t, in)
	return in
}

// All networks have the same prefixes: rules written for one fit the other, and an
// address alone does not tell whose it is.
const (
	prefix4 = "10.1.0.0/24"
	prefix6 = "fd00:1::/64"
)

func network(t *rapid.T, id hcn.GUID, number int) *plan.Network {
	doc := hcn.HostComputeNetwork{
		ID: id, Name: fmt.Sprintf("net%d", number), Type: rapid.SampledFrom([]hcn.NetworkType{hcn.NAT, hcn.Internal, hcn.Private, hcn.Transparent, hcn.L2Bridge, hcn.L2Tunnel, hcn.Overlay}).Draw(t, "type"),
		Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{
			{IpAddressPrefix: prefix4, Routes: []hcn.Route{{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"}}},
			{IpAddressPrefix: prefix6, Routes: []hcn.Route{{NextHop: "fd00:1::1", DestinationPrefix: "::/0"}}},
		}}},
		Policies: networkPolicies(t),
	}
	n := &plan.Network{Doc: doc, Switch: uint32(number), GatewayMAC: plan.MAC{2, 0, 0, 0, byte(number), 1}}
	if doc.Type == hcn.Overlay {
		overlay(t, n, number)
	}
	if plan.HasUplink(doc.Type) {
		n.Uplink = nic(rapid.IntRange(1, number).Draw(t, "NIC"))
	}
	return n
}

// Addresses of the endpoint with a number.
func addresses(n int) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{10, 1, 0, byte(9 + n)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", 9+n))
}

func endpoint(t *rapid.T, id hcn.GUID, number int) *plan.Endpoint {
	e := &plan.Endpoint{MAC: plan.MAC{2, 0, 0, 0, 0, byte(0x10 + number)}}
	e.Doc.ID, e.Doc.Name = id, fmt.Sprintf("c%d", number)
	v4, v6 := addresses(number)
	families := rapid.IntRange(0, 5).Draw(t, "families")
	if families != 0 {
		e.Addrs = append(e.Addrs, netip.PrefixFrom(v4, 24))
	}
	if families != 1 {
		e.Addrs = append(e.Addrs, netip.PrefixFrom(v6, 64))
	}
	if rapid.IntRange(0, 7).Draw(t, "isolated") == 0 {
		e.Doc.Flags |= hcn.DisableInterComputeCommunication
	}
	e.Doc.Policies = append(endpointPolicies(t), outboundPolicies(t)...)
	return e
}
