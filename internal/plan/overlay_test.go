package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestOverlay compiles a network over two hosts, one of whose endpoints a document names and one a control plane.
func TestOverlay(t *testing.T) {
	vsid := []hcn.SubnetPolicy{hcn.NewSubnetPolicy(hcn.VSID, hcn.VsidPolicySetting{IsolationId: 5000})}
	net := &Network{
		Switch: 1, Uplink: "nic1", GatewayMAC: MAC{2, 0, 0, 0, 0, 1},
		Doc: hcn.HostComputeNetwork{ID: "N", Name: "n", Type: hcn.Overlay, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{
			{IpAddressPrefix: "10.1.0.0/24", Policies: vsid, Routes: []hcn.Route{{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"}}},
			{IpAddressPrefix: "fd00:1::/64", Policies: vsid, Routes: []hcn.Route{{NextHop: "fd00:1::1", DestinationPrefix: "::/0"}}},
		}}}, Policies: []hcn.NetworkPolicy{
			hcn.NewNetworkPolicy(hcn.RemoteSubnetRoute, hcn.RemoteSubnetRoutePolicySetting{
				DestinationPrefix: "10.2.0.9/24", IsolationId: 5001, ProviderAddress: "192.0.2.3", DistributedRouterMacAddress: "0E-2A-00-00-00-03",
			}),
		}},
	}
	row := &Endpoint{MAC: MAC{2, 0, 0, 0, 0, 7}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.7/24")}}
	row.Doc.ID, row.Doc.HostComputeNetwork, row.Doc.Flags, row.Doc.Name = "R", "N", hcn.RemoteEndpoint, "Web"
	row.Doc.Policies = []hcn.EndpointPolicy{hcn.NewEndpointPolicy(hcn.ProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: "192.0.2.2"})}
	in := &Intent{
		Networks:  map[hcn.GUID]*Network{"N": net},
		Endpoints: map[hcn.GUID]*Endpoint{"R": row},
		Remotes: map[hcn.GUID]*Remote{
			"F": {Endpoint: "F", Network: "N", MAC: MAC{2, 0, 0, 0, 0, 8}, Provider: netip.MustParseAddr("192.0.2.3"), Host: "c", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.8"), netip.MustParseAddr("fd00:1::8"), netip.MustParseAddr("10.9.0.8")}},
			"O": {Endpoint: "O", Network: "N", Provider: netip.MustParseAddr("192.0.2.1"), Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}, // told of ourselves
			"X": {Endpoint: "X", Network: "elsewhere", Provider: netip.MustParseAddr("192.0.2.3"), Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.9")}},
		},
	}
	f := &Facts{UplinkMTU: 1500, NICs: []NIC{{Name: "nic1", MTU: 9000, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}}}
	text := Compile(in, f).Text()
	var got []string
	for line := range strings.Lines(text) {
		for _, mark := range []string{"switch ", "    subnet", "    overlay", "    remote", "remote ", "port bhv"} {
			if strings.HasPrefix(line, mark) {
				got = append(got, strings.TrimRight(line, "\n"))
			}
		}
	}
	want := []string{
		`switch 1 "n" overlay mtu 8950`,
		"    subnet 10.1.0.0/24 gateway 10.1.0.1 vni 5000",
		"    subnet fd00:1::/64 gateway fd00:1::1 vni 5000",
		"    overlay port 4789 dev nic1 provider 192.0.2.1 router 02:00:00:00:00:01",
		"    remote 10.2.0.0/24 vni 5001 via 192.0.2.3 router 0e:2a:00:00:00:03",
		"port " + DeviceName(TunnelPrefix, TunnelPortID(4789)) + " tunnel udp 4789 underlay nic1",
		"remote F network N mac 02:00:00:00:00:08 via 192.0.2.3 addr 10.1.0.8 vni 5000 addr fd00:1::8 vni 5000 host c",
		"remote R network N mac 02:00:00:00:00:07 via 192.0.2.2 addr 10.1.0.7 vni 5000 names web",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("plan (-want +got):\n%s\n%s", d, text)
	}
}
