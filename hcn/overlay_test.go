package hcn

import (
	"encoding/json"
	"testing"
)

// overlayV1 is a network as a controller that drives HNS by version 1 writes it.
const overlayV1 = `{"Name":"vxlan0","Type":"Overlay","NetworkAdapterName":"eth0","Subnets":[
	{"AddressPrefix":"10.61.1.0/24","GatewayAddress":"10.61.1.1","Policies":[{"Type":"VSID","VSID":4096}]}]}`

func overlayNetwork(t *testing.T, policies ...NetworkPolicy) *HostComputeNetwork {
	t.Helper()
	var v HNSNetwork
	if err := json.Unmarshal([]byte(overlayV1), &v); err != nil {
		t.Fatal(err)
	}
	n, err := NetworkFromV1(&v)
	if err != nil {
		t.Fatal(err)
	}
	n.ID = fixedIDs()()
	n.Policies = append(n.Policies, policies...)
	if err := n.Validate(); err != nil {
		t.Fatal(err)
	}
	if vsid := n.AllSubnets()[0].VSID(); vsid != 4096 {
		t.Fatalf("the subnet's virtual network is %d", vsid)
	}
	return n
}

func TestOverlayNetworkPolicies(t *testing.T) {
	n := overlayNetwork(t)
	for _, tc := range []struct {
		policy string
		code   ErrorCode
	}{
		{`{"Type":"HostRoute","Settings":{}}`, 0},
		{`{"Type":"Bulkhead.Multicast","Settings":{}}`, 0},
		{`{"Type":"Bulkhead.Encryption","Settings":{"EncryptionMethodType":"WireGuard"}}`, 0},
		{`{"Type":"Bulkhead.Encryption","Settings":{"EncryptionMethodType":"IPsec"}}`, ErrInvalidPolicy},
		{`{"Type":"Bulkhead.Encryption","Settings":{}}`, ErrInvalidPolicy},
		{`{"Type":"VxlanPort","Settings":{"Port":8472}}`, 0},
		{`{"Type":"DrMacAddress","Settings":{"Address":"00-15-5D-01-02-03"}}`, 0},
		{`{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.1"}}`, 0},
		{`{"Type":"RemoteSubnetRoute","Settings":{"DestinationPrefix":"10.61.2.0/24","IsolationId":4096,"ProviderAddress":"192.0.2.2","DistributedRouterMacAddress":"00:15:5d:01:02:04"}}`, 0},
		{`{"Type":"RemoteSubnetRoute","Settings":{"DestinationPrefix":"10.61.2.0/24","IsolationId":4096,"ProviderAddress":"192.0.2.2"}}`, ErrInvalidPolicy},
		{`{"Type":"VxlanPort","Settings":{}}`, ErrInvalidPolicy},
		{`{"Type":"SourceMacAddress","Settings":{"SourceMacAddress":"00-15-5D-01-02-03"}}`, ErrRequestUnsupported},
	} {
		p, err := Decode[NetworkPolicy]([]byte(tc.policy))
		if err != nil {
			t.Fatal(err)
		}
		doc := n.Clone()
		doc.Policies = append(doc.Policies, *p)
		t.Run(tc.policy, func(t *testing.T) { checkErr(t, doc.Validate(), tc.code, "Policies[1]") })
	}
}

// TestRemoteRoutesAreReplaced: a controller takes the old value away by its prefix and adds the new one.
func TestRemoteRoutesAreReplaced(t *testing.T) {
	route := func(pa string) NetworkPolicy {
		return NewNetworkPolicy(RemoteSubnetRoute, RemoteSubnetRoutePolicySetting{
			DestinationPrefix: "10.61.2.0/24", IsolationId: 4096, ProviderAddress: pa, DistributedRouterMacAddress: "00-15-5D-01-02-04",
		})
	}
	list, err := ModifyNetworkPolicies(nil, RequestTypeAdd, []NetworkPolicy{route("192.0.2.2")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = ModifyNetworkPolicies(list, RequestTypeAdd, []NetworkPolicy{route("192.0.2.3")})
	checkErr(t, err, ErrPolicyAlreadyExists, "10.61.2.0/24")
	if list, err = ModifyNetworkPolicies(list, RequestTypeRemove, []NetworkPolicy{route("192.0.2.2")}); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
}

// TestEncryptedNetwork: ways to other hosts that nobody has a key for are refused.
func TestEncryptedNetwork(t *testing.T) {
	n := overlayNetwork(t, NewNetworkPolicy(NetworkEncryption, NetworkEncryptionSetting{EncryptionMethodType: EncryptionMethodWireGuard}))
	checkErr(t, n.Validate(), 0, "")
	twice := n.Clone()
	twice.Policies = append(twice.Policies, n.Policies[len(n.Policies)-1])
	checkErr(t, twice.Validate(), ErrPolicyAlreadyExists, string(NetworkEncryption))
	routed := n.Clone()
	routed.Policies = append(routed.Policies, NewNetworkPolicy(RemoteSubnetRoute, RemoteSubnetRoutePolicySetting{
		DestinationPrefix: "10.61.2.0/24", IsolationId: 4096, ProviderAddress: "192.0.2.2", DistributedRouterMacAddress: "00-15-5D-01-02-04",
	}))
	checkErr(t, routed.Validate(), ErrRequestUnsupported, "have no key")
	e, err := Decode[HostComputeEndpoint]([]byte(`{"Flags":1,"MacAddress":"02-11-0A-3D-01-09","IpConfigurations":[{"IpAddress":"10.61.1.9"}],"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.2"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	checkErr(t, e.ValidateFor(n), ErrRequestUnsupported, "make the endpoint on its host")
	for _, kind := range []NetworkType{NAT, Internal, Private, Transparent, L2Bridge, L2Tunnel} {
		local := natNetwork(t, NAT)
		local.Type, local.Flags, local.Policies = kind, 0, n.Policies[len(n.Policies)-1:]
		checkErr(t, local.Validate(), ErrRequestUnsupported, string(NetworkEncryption))
	}
}

func TestOverlayEndpoints(t *testing.T) {
	hostRoute := NewNetworkPolicy(HostRoute, EmptySetting{})
	pa := `{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.2"}}`
	for _, tc := range []struct {
		name, doc string
		network   *HostComputeNetwork
		code      ErrorCode
		where     string
	}{
		{"remote", `{"Flags":1,"MacAddress":"02-11-0A-3D-01-09","IpConfigurations":[{"IpAddress":"10.61.1.9"}],"Policies":[` + pa + `]}`, overlayNetwork(t), 0, ""},
		{"remote behind another router", `{"Flags":1,"MacAddress":"02-11-0A-3D-02-09","IpConfigurations":[{"IpAddress":"10.61.2.9"}],"Policies":[` + pa + `]}`, overlayNetwork(t), 0, ""},
		{"remote nowhere", `{"Flags":1,"MacAddress":"02-11-0A-3D-01-09","IpConfigurations":[{"IpAddress":"10.61.1.9"}]}`, overlayNetwork(t), ErrInvalidEndpoint, "ProviderAddress"},
		{"remote without MAC", `{"Flags":1,"IpConfigurations":[{"IpAddress":"10.61.1.9"}],"Policies":[` + pa + `]}`, overlayNetwork(t), ErrInvalidEndpoint, "MacAddress"},
		{"remote without address", `{"Flags":1,"MacAddress":"02-11-0A-3D-01-09","Policies":[` + pa + `]}`, overlayNetwork(t), ErrInvalidEndpoint, "IpConfigurations"},
		{"remote with rules", `{"Flags":1,"MacAddress":"02-11-0A-3D-01-09","IpConfigurations":[{"IpAddress":"10.61.1.9"}],"Policies":[` + pa + `,{"Type":"QOS","Settings":{"MaximumOutgoingBandwidthInBytes":1}}]}`, overlayNetwork(t), ErrInvalidRemoteEndpointOperation, "Policies[1]"},
		{"remote on NAT", `{"Flags":1,"MacAddress":"02-11-0A-3D-01-09","IpConfigurations":[{"IpAddress":"172.20.0.9"}]}`, natNetwork(t, NAT), ErrRequestUnsupported, "RemoteEndpoint"},
		{"by the host of a NAT", `{"Flags":1,"IpConfigurations":[{"IpAddress":"192.0.2.9"},{"IpAddress":"2001:db8::9"}]}`, natNetwork(t, NAT), 0, ""},
		{"by the host of a NAT, and in it", `{"Flags":1,"IpConfigurations":[{"IpAddress":"192.0.2.9"},{"IpAddress":"172.20.0.9"}]}`, natNetwork(t, NAT), ErrRequestUnsupported, "RemoteEndpoint"},
		{"by the host of an Internal one", `{"Flags":1,"IpConfigurations":[{"IpAddress":"192.0.2.9"}]}`, natNetwork(t, Internal), ErrRequestUnsupported, "RemoteEndpoint"},
		{"by the host", `{"Flags":1,"IpConfigurations":[{"IpAddress":"192.0.2.9"}]}`, overlayNetwork(t, hostRoute), 0, ""},
		{"by the host, with no way there", `{"Flags":1,"IpConfigurations":[{"IpAddress":"192.0.2.9"}]}`, overlayNetwork(t), ErrInvalidEndpoint, "ProviderAddress"},
		{"by the host, with a limit", `{"Flags":1,"IpConfigurations":[{"IpAddress":"192.0.2.9"}],"Policies":[{"Type":"QOS","Settings":{"MaximumOutgoingBandwidthInBytes":1}}]}`, overlayNetwork(t, hostRoute), ErrInvalidRemoteEndpointOperation, "Policies[0]"},
		{"local elsewhere", `{"Policies":[` + pa + `]}`, overlayNetwork(t), ErrInvalidPolicy, "Policies[0]"},
		{"local, told what is so", `{"Policies":[` + pa + `]}`, overlayNetwork(t, NewNetworkPolicy(NetworkProviderAddress, ProviderAddressPolicySetting{"192.0.2.2"})), 0, ""},
		{"local, told another", `{"Policies":[` + pa + `]}`, overlayNetwork(t, NewNetworkPolicy(NetworkProviderAddress, ProviderAddressPolicySetting{"192.0.2.1"})), ErrInvalidPolicy, "Policies[0]"},
		{"routed by the host, with no way there", `{"Policies":[{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.96.0.0/12","NeedEncap":true}}]}`, overlayNetwork(t), ErrInvalidPolicy, "Policies[0].Settings.NextHop"},
		{"routed by the host", `{"Policies":[{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.96.0.0/12","NeedEncap":true}}]}`, overlayNetwork(t, hostRoute), 0, ""},
		{"routed to somebody", `{"Policies":[{"Type":"SDNRoute","Settings":{"DestinationPrefix":"169.254.169.254/24","NextHop":"127.10.0.33"}}]}`, overlayNetwork(t), 0, ""},
		{"routed, and watched", `{"Policies":[{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.0.0.0/8","NextHop":"10.61.1.9","AutomaticEndpointMonitor":true}}]}`, overlayNetwork(t), ErrRequestUnsupported, "AutomaticEndpointMonitor"},
		{"local out of its subnet", `{"IpConfigurations":[{"IpAddress":"10.61.2.9"}]}`, overlayNetwork(t), ErrInvalidIP, "10.61.2.9"},
		{"outside with no way there", `{"Policies":[{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.61.0.0/16"]}}]}`, overlayNetwork(t), ErrInvalidPolicy, "HostRoute"},
		{"outside", `{"Policies":[{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.61.0.0/16"]}}]}`, overlayNetwork(t, hostRoute), 0, ""},
		{"published", `{"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}]}`, overlayNetwork(t, hostRoute), 0, ""},
		{"published with no way there", `{"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}]}`, overlayNetwork(t), ErrMappingNotSupported, "HostRoute"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := Decode[HostComputeEndpoint]([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			checkErr(t, e.ValidateFor(tc.network), tc.code, tc.where)
		})
	}
	var v HNSEndpoint
	if err := json.Unmarshal([]byte(`{"IsRemoteEndpoint":true,"MacAddress":"02-11-0A-3D-01-09","IPAddress":"10.61.1.9","Policies":[{"Type":"PA","PA":"192.0.2.2"}]}`), &v); err != nil {
		t.Fatal(err)
	}
	e, err := EndpointFromV1(&v)
	if err != nil {
		t.Fatal(err)
	}
	checkErr(t, e.ValidateFor(overlayNetwork(t)), 0, "")
}
