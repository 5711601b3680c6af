package hcn

import (
	"encoding/json"
	"slices"
	"testing"
)

// TestProxyFormsOfVersion1: both policies come in flat, and go out as they were.
func TestProxyFormsOfVersion1(t *testing.T) {
	for _, tc := range []struct{ v1, v2 string }{
		{
			`{"Type":"PROXY","IP":"10.0.0.9","Port":"3128","ExceptionList":["10.1.0.0/16"],"Destination":"10.0.0.0/8","OutboundNat":true}`,
			`{"Type":"L4Proxy","Settings":{"IP":"10.0.0.9","Port":"3128","Exceptions":["10.1.0.0/16"],"Destination":"10.0.0.0/8","OutboundNat":true}}`,
		},
		{
			`{"Type":"L4WFPPROXY","OutboundProxyPort":"15001","UserSID":"S-1-5-18","FilterTuple":{"Protocols":"6"}}`,
			`{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"15001","UserSID":"S-1-5-18","FilterTuple":{"Protocols":"6"}}}`,
		},
	} {
		p, err := EndpointPolicyFromV1(json.RawMessage(tc.v1))
		if err != nil {
			t.Fatal(err)
		}
		var want EndpointPolicy
		if err := json.Unmarshal([]byte(tc.v2), &want); err != nil {
			t.Fatal(err)
		}
		if p.Type != want.Type || !jsonEqual(p.Settings, want.Settings) {
			t.Errorf("%s became %s %s", tc.v1, p.Type, p.Settings)
		}
		if back := EndpointPolicyToV1(p); !jsonEqual(back, json.RawMessage(tc.v1)) {
			t.Errorf("%s went out as %s", tc.v1, back)
		}
		if EqualEndpointPolicies(p, want) == false {
			t.Errorf("%s and %s are not the same policy", tc.v1, tc.v2)
		}
	}
}

// TestProxySpellings: what clients send in other spellings means the same, and is shown as the schema has it.
func TestProxySpellings(t *testing.T) {
	read := func(text string) EndpointPolicy {
		var p EndpointPolicy
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return p
	}
	for _, same := range [][2]string{
		{
			`{"Type":"L4Proxy","Settings":{"IP":"10.0.0.9","Port":"80","ExceptionList":["10.1.0.0/16"],"OutboundNat":true,"Protocol":6}}`,
			`{"Type":"l4proxy","Settings":{"ip":"10.0.0.9","port":80,"Exceptions":["10.1.0.0/16"],"OutboundNAT":true,"Protocol":"TCP"}}`,
		},
		{
			`{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"81","FilterTuple":{"Protocols":"6","RemotePorts":"80"},"OutboundExceptions":{"IpAddressExceptions":["10.0.0.1","10.0.0.2"],"PortExceptions":["22","23"]}}}`,
			`{"Type":"L4WfpProxy","Settings":{"Port":81,"FilterTuple":{"Protocols":6,"RemotePorts":80},"OutboundExceptions":{"IpAddressExceptions":"10.0.0.1, 10.0.0.2","PortExceptions":[22,"23"]}}}`,
		},
	} {
		if a, b := read(same[0]), read(same[1]); a.Type != b.Type || !EqualEndpointPolicies(a, b) {
			t.Errorf("%s\nand\n%s differ", a.Settings, b.Settings)
		}
	}
	s, err := read(`{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"81","FilterTuple":{"Protocols":"17,6,6"}}}`).Decode()
	if err != nil {
		t.Fatal(err)
	}
	sel, err := s.(L4WfpProxyPolicySetting).FilterTuple.Selection()
	if err != nil || !slices.Equal(sel.Protocols, []uint8{6, 17}) {
		t.Errorf("protocols %v, %v", sel.Protocols, err)
	}
}

func TestProxyUser(t *testing.T) {
	for text, want := range map[string]ProxyUser{
		"1337": {ID: 1337}, "uid:7": {ID: 7}, "GID:8": {ID: 8, Group: true}, "S-1-5-18": {}, "s-1-22-1-1000": {ID: 1000}, "S-1-22-2-5": {ID: 5, Group: true},
	} {
		if u, ok := (L4WfpProxyPolicySetting{UserSID: text}).User(); !ok || u != want {
			t.Errorf("%s is %+v, %t", text, u, ok)
		}
	}
	for _, text := range []string{"", "envoy", "-1", "uid:", "gid:x", "S-1-5-19", "S-1-22-1-", "4294967295", "S-1-22-1-99999999999"} {
		if u, ok := (L4WfpProxyPolicySetting{UserSID: text}).User(); ok {
			t.Errorf("%q is %+v", text, u)
		}
	}
}

// TestProxyOnInternal: an Internal network leads to no proxy elsewhere, whether an endpoint or the network names it.
func TestProxyOnInternal(t *testing.T) {
	const away = `{"Type":"L4Proxy","Settings":{"IP":"203.0.113.7","Port":"80"}}`
	n := natNetwork(t, Internal)
	e, err := Decode[HostComputeEndpoint]([]byte(policies(away)))
	if err != nil {
		t.Fatal(err)
	}
	checkErr(t, e.ValidateFor(n), ErrInvalidPolicy, "is not on network")
	checkErr(t, e.ValidateFor(natNetwork(t, NAT)), 0, "")
	checkErr(t, e.ValidateFor(natNetwork(t, Private)), ErrRequestUnsupported, "L4Proxy")
	n.Policies = []NetworkPolicy{{Type: NetworkL4Proxy, Settings: json.RawMessage(`{"IP":"203.0.113.7","Port":"80"}`)}}
	checkErr(t, n.Validate(), ErrInvalidPolicy, "is not on network")
	gw, _ := n.AllSubnets()[0].Gateway()
	n.Policies[0].Settings = json.RawMessage(`{"IP":"` + gw.String() + `","Port":"80"}`)
	checkErr(t, n.Validate(), 0, "")
}
