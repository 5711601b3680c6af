package hcn

import (
	"encoding/json"
	"reflect"
	"testing"
)

// TestVersion1 translates documents both ways; the golden files show them.
func TestVersion1(t *testing.T) {
	n, err := NetworkFromV1(readDoc[HNSNetwork](t, "v1-network"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
	golden(t, "v1-network.v2", n)
	golden(t, "v1-network.v1", NetworkToV1(n))

	e, err := EndpointFromV1(readDoc[HNSEndpoint](t, "v1-endpoint"))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.validateSchema(); err != nil {
		t.Error(err)
	}
	golden(t, "v1-endpoint.v2", e)
	n.Flags |= EnableDnsProxy
	golden(t, "v1-endpoint.v1", EndpointToV1(e, n))

	ns := readDoc[HostComputeNamespace](t, "namespace")
	golden(t, "v1-namespace.v1", NamespaceToV1(ns))
	back := NamespaceFromV1(NamespaceToV1(ns))
	if back.Type != NamespaceTypeHostDefault || back.ID != ns.ID || back.NamespaceId != 7 {
		t.Errorf("namespace came back as %+v", back)
	}
}

// TestVersion1RoundTrip: what went to version 1 and back means the same.
func TestVersion1RoundTrip(t *testing.T) {
	n := natNetwork(t, NAT)
	for i := range n.AllSubnets() {
		n.AllSubnets()[i].IpSubnets = nil // version 1 has no such thing
	}
	n.Dns.Domain, n.Dns.Options = "", nil
	n.Owner, n.SchemaVersion = "", V2()
	back, err := NetworkFromV1(NetworkToV1(n))
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, back, n)

	e := readDoc[HostComputeEndpoint](t, "endpoint-full")
	e.Defaults(n)
	eBack, err := EndpointFromV1(EndpointToV1(e, n))
	if err != nil {
		t.Fatal(err)
	}
	for i := range e.IpConfigurations {
		e.IpConfigurations[i].IpSubnetId = ""
	}
	e.Dns.Options = nil
	if len(eBack.Policies) != len(e.Policies) {
		t.Fatalf("%d policies, want %d", len(eBack.Policies), len(e.Policies))
	}
	for i, p := range e.Policies {
		if !EqualEndpointPolicies(p, eBack.Policies[i]) {
			t.Errorf("policy %d: got %s %s, want %s %s", i, eBack.Policies[i].Type, eBack.Policies[i].Settings, p.Type, p.Settings)
		}
	}
	eBack.Policies = e.Policies
	sameJSON(t, eBack, e)
}

// TestVersion1OnALAN: a Transparent network without a subnet has addresses from its LAN, and the VLAN that the network names comes back
// where it was named. What was read can be written again.
func TestVersion1OnALAN(t *testing.T) {
	for _, tc := range []struct{ v1, ipams, policies string }{
		{`{"Type":"Transparent"}`, `[{"Type":"Dhcp"}]`, `null`},
		{`{"Type":"Transparent","Subnets":[{"AddressPrefix":"0.0.0.0/0"}]}`, `[{"Type":"Dhcp"}]`, `null`},
		{
			`{"Type":"Transparent","Policies":[{"Type":"VLAN","VLAN":7}]}`,
			`[{"Type":"Dhcp","Subnets":[{"ID":"11111111-0000-0000-0000-000000000000","Policies":[{"Type":"VLAN","Settings":{"IsolationId":7}}]}]}]`,
			`[{"Type":"VLAN","VLAN":7}]`,
		},
		{
			`{"Type":"Transparent","Subnets":[{"AddressPrefix":"10.1.0.0/24"}],"Policies":[{"Type":"VLAN","VLAN":7}]}`,
			`[{"Type":"Static","Subnets":[{"ID":"11111111-0000-0000-0000-000000000000","IpAddressPrefix":"10.1.0.0/24","Policies":[{"Type":"VLAN","Settings":{"IsolationId":7}}]}]}]`,
			`[{"Type":"VLAN","VLAN":7}]`,
		},
		{
			`{"Type":"Transparent","Subnets":[{"AddressPrefix":"10.1.0.0/24","Policies":[{"Type":"VLAN","VLAN":7}]},{"AddressPrefix":"10.2.0.0/24"}]}`,
			`[{"Type":"Static","Subnets":[{"ID":"11111111-0000-0000-0000-000000000000","IpAddressPrefix":"10.1.0.0/24","Policies":[{"Type":"VLAN","Settings":{"IsolationId":7}}]},` +
				`{"ID":"11111111-0000-0000-0000-000000000000","IpAddressPrefix":"10.2.0.0/24"}]}]`,
			`null`,
		},
	} {
		v, err := Decode[HNSNetwork]([]byte(tc.v1))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			n, err := NetworkFromV1(v)
			if err != nil {
				t.Fatal(err)
			}
			n.Defaults(func() GUID { return "11111111-0000-0000-0000-000000000000" })
			sameJSON(t, n.Ipams, json.RawMessage(tc.ipams))
			v = NetworkToV1(n)
			sameJSON(t, v.Policies, json.RawMessage(tc.policies))
		}
	}
}

func sameJSON(t *testing.T, got, want any) {
	t.Helper()
	g, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(g) != string(w) {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func TestVersion1Errors(t *testing.T) {
	network := func(s string) error {
		v, err := Decode[HNSNetwork]([]byte(s))
		if err == nil {
			_, err = NetworkFromV1(v)
		}
		return err
	}
	checkErr(t, network(`{"Type":"nat","Subnets":[{"AddressPrefix":"0.0.0.0/0"}]}`), 0, "")
	checkErr(t, network(`{"Type":"nat","Subnets":[{"AddressPrefix":"ten"}]}`), ErrInvalidPrefix, "Subnets[0]: AddressPrefix")
	checkErr(t, network(`{"Type":"bridge"}`), ErrInvalidNetworkType, "bridge")
	checkErr(t, network(`{"Policies":[{"Type":"VLAN","VLAN":5}]}`), ErrInvalidSubnet, "Policies[0]")
	checkErr(t, network(`{"Policies":[{"Type":"Magic"}]}`), ErrInvalidPolicyType, "Policies[0]")
	checkErr(t, network(`{"Policies":[5]}`), ErrInvalidPolicy, "Policies[0]")
	_, err := EndpointFromV1(&HNSEndpoint{Policies: []json.RawMessage{json.RawMessage(`{"Type":"Magic"}`)}})
	checkErr(t, err, ErrInvalidPolicyType, "Policies[0]")
}

func TestUpdatePoliciesV1(t *testing.T) {
	e := readDoc[HostComputeEndpoint](t, "endpoint-full")
	e.Policies = append(e.Policies, NewEndpointPolicy(ACL, AclPolicySetting{Action: ActionTypeAllow, Direction: DirectionTypeIn}))
	count := func(list []EndpointPolicy, typ EndpointPolicyType) (n int) {
		for _, p := range list {
			if p.Type == typ {
				n++
			}
		}
		return n
	}
	got, err := UpdatePoliciesV1(e.Policies, nil)
	if err != nil || count(got, ACL) != 0 || len(got) != len(e.Policies)-1 {
		t.Errorf("an empty list: %v, %v", got, err)
	}
	got, err = UpdatePoliciesV1(e.Policies, []json.RawMessage{json.RawMessage(`{"Type":"NAT","Protocol":"UDP","InternalPort":9}`)})
	if err != nil || count(got, PortMapping) != 1 || count(got, ACL) != 1 {
		t.Errorf("one mapping: %v, %v", got, err)
	}
}

// TestOutBoundNATFromV1: the forms in which network plugins write it.
func TestOutBoundNATFromV1(t *testing.T) {
	for in, want := range map[string]OutboundNatPolicySetting{
		`{"Type":"OutBoundNAT"}`: {},
		`{"Type":"OutBoundNAT","ExceptionList":["10.0.0.0/8"],"VIP":"192.0.2.1"}`: {Exceptions: []string{"10.0.0.0/8"}, VirtualIP: "192.0.2.1"},
		`{"Type":"OutBoundNAT","Destinations":["10.1.0.5"]}`:                      {Destinations: []string{"10.1.0.5"}},
		`{"Type":"OutBoundNAT","Value":{"Destinations":["10.1.0.5"]}}`:            {Destinations: []string{"10.1.0.5"}},
		`{"Type":"OutBoundNAT","Settings":{"ExceptionList":["10.0.0.0/8"]}}`:      {Exceptions: []string{"10.0.0.0/8"}},
	} {
		p, err := EndpointPolicyFromV1(json.RawMessage(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		got, err := SettingsOf[OutboundNatPolicySetting]([]EndpointPolicy{p})
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
	}
}
