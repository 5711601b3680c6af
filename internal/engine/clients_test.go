package engine

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestDocumentsOfClients: the documents by which clients on Windows make networks on a LAN, and endpoints there, as those of version 1
// and 2 write them; and what they look for afterwards: the NIC and its address, a pool of MACs, IDs of subnets, what they named themselves.
func TestDocumentsOfClients(t *testing.T) {
	const nicMAC = "02-00-00-00-EE-01"
	type client struct {
		name, network, endpoint string // in endpoint, NET is the network's ID
		kind                    hcn.NetworkType
		address                 string // of the endpoint; "" for one that its LAN gives
		policies                []hcn.EndpointPolicyType
		refused                 string
	}
	for _, c := range []client{
		{
			name: "L2Bridge, a prefix of its own, 1", kind: hcn.L2Bridge, address: "10.244.1.9",
			network: `{"Name":"cbr0","Type":"L2Bridge","Subnets":[{"AddressPrefix":"10.244.1.0/24","GatewayAddress":"10.244.1.1"}]}`,
			endpoint: `{"Name":"pod","VirtualNetwork":"NET","IPAddress":"10.244.1.9","GatewayAddress":"10.244.1.2","DNSServerList":"10.96.0.10","DNSSuffix":"svc.cluster.local","Policies":[` +
				`{"Type":"OutBoundNAT","ExceptionList":["10.244.0.0/16","10.96.0.0/12"]},{"Type":"ROUTE","DestinationPrefix":"10.96.0.0/12","NeedEncap":true},{"Type":"ROUTE","DestinationPrefix":"10.9.0.1/32","NeedEncap":true}]}`,
			policies: []hcn.EndpointPolicyType{hcn.OutBoundNAT, hcn.SDNRoute, hcn.SDNRoute},
		},
		{
			name: "L2Bridge, a prefix of its own, 2", kind: hcn.L2Bridge, address: "10.244.1.9",
			network: `{"Name":"cbr0","Type":"l2bridge","Ipams":[{"Type":"Static","Subnets":[{"IpAddressPrefix":"10.244.1.0/24","Routes":[{"NextHop":"10.244.1.1","DestinationPrefix":"0.0.0.0/0"}]}]}],"Flags":0,` + v2 + `}`,
			endpoint: `{"Name":"pod","HostComputeNetwork":"NET","HostComputeNamespace":"00000000-0000-0000-0000-000000000000","Dns":{"Domain":"svc.cluster.local","Search":["svc.cluster.local"],"ServerList":["10.96.0.10"]},` +
				`"Routes":[{"NextHop":"10.244.1.2","DestinationPrefix":"0.0.0.0/0"}],"IpConfigurations":[{"IpAddress":"10.244.1.9","PrefixLength":24}],"Policies":[` +
				`{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.244.0.0/16"]}},{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.9.0.1/32","NeedEncap":true}},` +
				`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","Protocols":"6","LocalPorts":"80","RuleType":"Switch","Priority":200}}],` + v2 + `}`,
			policies: []hcn.EndpointPolicyType{hcn.OutBoundNAT, hcn.SDNRoute, hcn.ACL},
		},
		{
			name: "L2Bridge, the LAN's own prefix, empty members", kind: hcn.L2Bridge, address: "10.9.0.20",
			network: `{"ID":"","Name":"azure","Type":"L2Bridge","NetworkAdapterName":"eth1","SourceMac":"","Policies":null,"MacPools":null,"Subnets":[{"AddressPrefix":"10.9.0.0/24","GatewayAddress":"10.9.0.254"}],` +
				`"DNSSuffix":"","DNSServerList":"","DNSServerCompartment":0,"ManagementIP":"","AutomaticDNS":false}`,
			endpoint: `{"Name":"web","VirtualNetwork":"NET","IPAddress":"10.9.0.20","Policies":[{"Type":"NAT","Protocol":"TCP","InternalPort":80,"ExternalPort":8080},{"Type":"QOS","MaximumOutgoingBandwidthInBytes":1000000}]}`,
			policies: []hcn.EndpointPolicyType{hcn.PortMapping, hcn.QOS},
		},
		{
			name: "L2Tunnel, of a cloud", kind: hcn.L2Tunnel, address: "10.9.0.20",
			network:  `{"Name":"azure","Type":"l2tunnel","NetworkAdapterName":"eth1","Subnets":[{"AddressPrefix":"10.9.0.0/24","GatewayAddress":"10.9.0.254"}]}`,
			endpoint: `{"Name":"pod","VirtualNetwork":"NET","IPAddress":"10.9.0.20","Policies":[{"Type":"OutBoundNAT","ExceptionList":["10.9.0.0/24"]},{"Type":"ROUTE","DestinationPrefix":"10.0.0.0/16","NeedEncap":true}]}`,
			policies: []hcn.EndpointPolicyType{hcn.OutBoundNAT, hcn.SDNRoute},
		},
		{
			name: "L2Tunnel, 2", kind: hcn.L2Tunnel, address: "10.9.0.20",
			network: `{"Name":"azure","Type":"L2Tunnel","Policies":[{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"eth1"}}],"MacPool":{"Ranges":[{"StartMacAddress":"00-15-5D-52-C0-00","EndMacAddress":"00-15-5D-52-CF-FF"}]},` +
				`"Ipams":[{"Type":"Static","Subnets":[{"IpAddressPrefix":"10.9.0.0/24","Routes":[{"NextHop":"10.9.0.254","DestinationPrefix":"0.0.0.0/0"}]}]}],` + v2 + `}`,
			endpoint: `{"Name":"pod","HostComputeNetwork":"NET","IpConfigurations":[{"IpAddress":"10.9.0.20"}],"Policies":[{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.9.0.0/24"]}}],` + v2 + `}`,
			policies: []hcn.EndpointPolicyType{hcn.OutBoundNAT},
		},
		{
			name: "Transparent with an address from the LAN, 1", kind: hcn.Transparent,
			network:  `{"Name":"tnet","Type":"transparent","Subnets":[{"AddressPrefix":"0.0.0.0/0","GatewayAddress":"0.0.0.0"}],"NetworkAdapterName":"eth1","Policies":[]}`,
			endpoint: `{"Name":"c","VirtualNetwork":"NET","MacAddress":"00-15-5D-01-02-03","DNSServerList":"10.9.0.2","Policies":[]}`,
		},
		{
			name: "Transparent in a VLAN, 1", kind: hcn.Transparent, address: "10.9.0.20",
			network:  `{"Name":"tnet","Type":"transparent","NetworkAdapterName":"eth1","Policies":[{"Type":"VLAN","VLAN":7}],"Subnets":[{"AddressPrefix":"10.9.0.0/24","GatewayAddress":"10.9.0.254"}]}`,
			endpoint: `{"Name":"c","VirtualNetwork":"NET","MacAddress":"00-15-5D-01-02-03","IPAddress":"10.9.0.20"}`,
		},
		{
			name: "Transparent, with the adapter's own address and MAC", kind: hcn.Transparent, address: "10.88.1.5",
			network: `{"Name":"pods","Type":"Transparent","NetworkAdapterName":"eth1","Subnets":[{"AddressPrefix":"10.88.1.0/24","GatewayAddress":"10.88.1.1"}],"ManagementIP":"10.9.0.1/24","SourceMac":"` + strings.ToLower(strings.ReplaceAll(nicMAC, "-", ":")) + `",` +
				`"Extensions":[{"Id":"583CC151-73EC-4A6A-8B47-578297AD7623","IsEnabled":true}]}`,
			endpoint: `{"Name":"pod","VirtualNetwork":"NET","IPAddress":"10.88.1.5"}`,
		},
		{
			name: "Transparent, with another MAC", kind: hcn.Transparent, refused: "keeps its MAC, " + nicMAC,
			network: `{"Name":"pods","Type":"Transparent","NetworkAdapterName":"eth1","Subnets":[{"AddressPrefix":"10.88.1.0/24","GatewayAddress":"10.88.1.1"}],"SourceMac":"02:00:00:00:ee:99"}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(e *env) {
				e.w.mu.Lock()
				e.w.facts.NICs = []plan.NIC{{
					Name: "eth1", Index: 3, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 1}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")},
				}}
				e.w.mu.Unlock()
				first := !strings.Contains(c.network, "SchemaVersion")
				doc := decode[hcn.HostComputeNetwork]
				if first {
					doc = func(e *env, text string) hcn.HostComputeNetwork {
						v := decode[hcn.HNSNetwork](e, text)
						return *must(hcn.NetworkFromV1(&v))(e)
					}
				}
				made, err := e.e.CreateNetwork(bg, "", doc(e, c.network))
				if c.refused != "" {
					if err == nil || !strings.Contains(err.Error(), c.refused) {
						t.Errorf("%v, want %q", err, c.refused)
					}
					return
				}
				e.ok(err)
				n := must(e.e.Network(made.ID))(e)
				v1 := hcn.NetworkToV1(&n)
				if n.Type != c.kind || v1.ManagementIP != "10.9.0.1" || v1.NetworkAdapterName != "eth1" || len(n.MacPool.Ranges) == 0 {
					t.Errorf("%s, management IP %q on %q, MACs %v", n.Type, v1.ManagementIP, v1.NetworkAdapterName, n.MacPool)
				}
				for _, s := range n.AllSubnets() {
					if s.ID.IsZero() {
						t.Errorf("a subnet without ID: %+v", s)
					}
				}
				text := strings.ReplaceAll(c.endpoint, "NET", string(n.ID))
				ep := hcn.HostComputeEndpoint{}
				if first {
					v := decode[hcn.HNSEndpoint](e, text)
					ep = *must(hcn.EndpointFromV1(&v))(e)
				} else {
					ep = decode[hcn.HostComputeEndpoint](e, text)
				}
				created := must(e.e.CreateEndpoint(bg, "", "", ep))(e)
				var kinds []hcn.EndpointPolicyType
				for _, p := range created.Policies {
					kinds = append(kinds, p.Type)
				}
				if !slices.Equal(kinds, c.policies) || ep.MacAddress != "" && !created.MacAddress.Equal(ep.MacAddress) {
					t.Errorf("the endpoint has %v and %s, want %v and %s", kinds, created.MacAddress, c.policies, ep.MacAddress)
				}
				if has := len(created.IpConfigurations) > 0; has != (c.address != "") || has && created.IpConfigurations[0].IpAddress != c.address {
					t.Errorf("addresses %v, want %q", created.IpConfigurations, c.address)
				}
				ns := must(e.namespace(`{` + v2 + `}`))(e)
				e.ok(e.attach(ns.ID, created.ID))
				if now := must(e.e.Endpoint(created.ID))(e); now.State != hcn.EndpointAttached || now.HostComputeNamespace != ns.ID {
					t.Errorf("attached it is %v in %s", now.State, now.HostComputeNamespace)
				}
			})
		})
	}
}
