package hcn

import (
	"encoding/json"
	"strings"
	"testing"
)

// show prints policies one a word: type and settings.
func show[P any](list []P, typ func(P) string, settings func(P) json.RawMessage) string {
	var out []string
	for _, p := range list {
		out = append(out, typ(p)+string(settings(p)))
	}
	return strings.Join(out, " ")
}

func TestEndpointPolicyAlgebra(t *testing.T) {
	const (
		web   = `{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080}}`
		dns   = `{"Type":"PortMapping","Settings":{"Protocol":17,"InternalPort":53,"ExternalPort":53}}`
		nat   = `{"Type":"OutBoundNAT","Settings":{}}`
		aclA  = `{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","Priority":100}}`
		aclB  = `{"Type":"ACL","Settings":{"Action":"Block","Direction":"In","Priority":200}}`
		tier  = `{"Type":"TierAcl","Settings":{"Name":"t","Direction":"In","Order":1}}`
		tier2 = `{"Type":"TierAcl","Settings":{"Name":"t","Direction":"In","Order":2}}`
	)
	for _, tc := range []struct {
		name, current string
		what          RequestType
		request, want string
		code          ErrorCode
	}{
		{"add", web, RequestTypeAdd, dns, web + "," + dns, 0},
		{"add again", web, RequestTypeAdd, web, web, 0},
		{"add again in other words", web, RequestTypeAdd, `{"type":"portmapping","data":{"externalport":8080,"Flags":0,"VIP":"","internalport":80,"protocol":"TCP"}}`, web, 0},
		{"add a tier of the same name", tier, RequestTypeAdd, tier2, "", ErrPolicyAlreadyExists},
		{"remove", web + "," + nat + "," + dns, RequestTypeRemove, web, nat + "," + dns, 0},
		{"remove by meaning", web + "," + nat, RequestTypeRemove, `{"Type":"PortMapping","Settings":{"ExternalPort":8080,"InternalPort":80,"Protocol":6,"VIP":""}}`, nat, 0},
		{"remove other settings", web, RequestTypeRemove, dns, "", ErrPolicyNotFound},
		{"remove second one missing", web, RequestTypeRemove, web + "," + dns, "", ErrPolicyNotFound},
		{"remove tier by name", tier + "," + web, RequestTypeRemove, tier2, web, 0},
		{"update leaves other types", web + "," + aclA + "," + nat, RequestTypeUpdate, aclB, web + "," + nat + "," + aclB, 0},
		{"update to a set", aclA, RequestTypeUpdate, aclB + "," + aclA, aclB + "," + aclA, 0},
		{"update of nothing", web, RequestTypeUpdate, "", web, 0},
		{"refresh", web + "," + nat, RequestTypeRefresh, dns, web + "," + nat, 0},
		{"reset", web + "," + nat + "," + dns, RequestTypeReset, `{"Type":"PortMapping"}`, nat, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list := func(s string) []EndpointPolicy {
				e, err := Decode[HostComputeEndpoint]([]byte(policies(s)))
				if err != nil {
					t.Fatal(err)
				}
				return e.Policies
			}
			current := list(tc.current)
			got, err := ModifyEndpointPolicies(current, tc.what, list(tc.request))
			checkErr(t, err, tc.code, "Policies[")
			text := func(l []EndpointPolicy) string {
				return show(l, endpointPolicyKind.typ, endpointPolicyKind.settings)
			}
			if err == nil && text(got) != text(list(tc.want)) {
				t.Errorf("got\n%s\nwant\n%s", text(got), text(list(tc.want)))
			}
			if text(current) != text(list(tc.current)) {
				t.Error("the old list was changed")
			}
		})
	}
}

func TestNetworkPolicyAlgebra(t *testing.T) {
	set := func(id, values string) string {
		return `{"Type":"SetPolicy","Settings":{"Id":"` + id + `","PolicyType":"IPSET","Values":"` + values + `"}}`
	}
	route := func(p, pa string) string {
		return `{"Type":"RemoteSubnetRoute","Settings":{"DestinationPrefix":"` + p + `","IsolationId":4096,"ProviderAddress":"` + pa + `"}}`
	}
	for _, tc := range []struct {
		name, current string
		what          RequestType
		request, want string
		code          ErrorCode
	}{
		{"update one set", set("a", "10.0.0.1") + "," + set("b", "10.0.0.2"), RequestTypeUpdate, set("a", "10.0.0.9"), set("b", "10.0.0.2") + "," + set("a", "10.0.0.9"), 0},
		{"remove set by id", set("a", "10.0.0.1") + "," + set("b", "10.0.0.2"), RequestTypeRemove, set("a", ""), set("b", "10.0.0.2"), 0},
		{"add set twice", set("a", "10.0.0.1"), RequestTypeAdd, set("a", "10.0.0.2"), "", ErrPolicyAlreadyExists},
		{"remove route by prefix", route("10.0.0.0/24", "192.0.2.1"), RequestTypeRemove, route("10.0.0.1/24", "192.0.2.9"), "", 0},
		{"host route twice", `{"Type":"HostRoute","Settings":{}}`, RequestTypeAdd, `{"Type":"HostRoute"}`, `{"Type":"HostRoute","Settings":{}}`, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list := func(s string) []NetworkPolicy {
				n, err := Decode[HostComputeNetwork]([]byte(policies(s)))
				if err != nil {
					t.Fatal(err)
				}
				return n.Policies
			}
			got, err := ModifyNetworkPolicies(list(tc.current), tc.what, list(tc.request))
			checkErr(t, err, tc.code, "Policies[")
			text := func(l []NetworkPolicy) string { return show(l, networkPolicyKind.typ, networkPolicyKind.settings) }
			if err == nil && text(got) != text(list(tc.want)) {
				t.Errorf("got\n%s\nwant\n%s", text(got), text(list(tc.want)))
			}
		})
	}
}

func TestJSONEqual(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{`{"a":1,"b":[1,2]}`, ` { "b":[1, 2], "a":1 }`, true},
		{``, `{}`, true},
		{`{"a":[1,2]}`, `{"a":[2,1]}`, false},
		{`{"a":18446744073709551615}`, `{"a":18446744073709551614}`, false},
		{`{"a":"1"}`, `{"a":1}`, false},
		{`{`, `}`, false},
	} {
		if got := jsonEqual([]byte(tc.a), []byte(tc.b)); got != tc.want {
			t.Errorf("%s and %s: got %v", tc.a, tc.b, got)
		}
	}
}

func TestModifyEndpoint(t *testing.T) {
	n := natNetwork(t, NAT)
	e := readDoc[HostComputeEndpoint](t, "endpoint-full")
	for _, tc := range []struct {
		name, doc string
		code      ErrorCode
		where     string
		want      int // policies after it
	}{
		{"add", `{"ResourceType":"policy","RequestType":"add","Settings":{"Policies":[{"Type":"L2Driver"}]}}`, 0, "", 7},
		{"numbers", `{"ResourceType":1,"RequestType":0,"Settings":{"Policies":[{"Type":"L2Driver"}]}}`, 0, "", 7},
		{"update", `{"ResourceType":"Policy","RequestType":"Update","Settings":{"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80}}]}}`, 0, "", 5},
		{"reset", `{"ResourceType":"Policy","RequestType":"Reset","Settings":{"Policies":[{"Type":"PortMapping"}]}}`, 0, "", 4},
		{"refresh", `{"ResourceType":"Policy","RequestType":"Refresh"}`, 0, "", 6},
		{"clash", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"L2Driver"},{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":81,"ExternalPort":8080}}]}}`, ErrPortAlreadyExists, "Settings.Policies[1]: port 8080", 0},
		{"second parameters", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"InterfaceParameters","Settings":{"Mtu":1500}}]}}`, ErrInterfaceParametersAlreadyApplied, "", 0},
		{"not enforced", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"SDNRoute","Settings":{"DestinationPrefix":"10.0.0.0/8"}}]}}`, ErrRequestUnsupported, "SDNRoute", 0},
		{"rule of a set that is not there", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","RemoteAddresses":"peers"}}]}}`, ErrInvalidPolicy, `Settings.Policies[0].Settings.RemoteAddresses: "peers"`, 0},
		{"too small for what is there", `{"ResourceType":"Policy","RequestType":"Remove","Settings":{"Policies":[{"Type":"QOS"}]}}`, ErrPolicyNotFound, "Settings.Policies[0]", 0},
		{"a list of words", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":["ACL"]}}`, ErrInvalidPolicy, `Settings.Policies[0]: a policy is {"Type":name,"Settings":object}: a string stands where an object is wanted`, 0},
		{"settings that are a list", `{"ResourceType":"Policy","RequestType":"Add","Settings":[]}`, ErrInvalidJSON, "Settings", 0},
		{"a word for a number", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"L2Driver"},{"Type":"ACL","Settings":{"Priority":"high"}}]}}`, ErrInvalidPolicy, "Settings.Policies[1].Settings.Priority: a string stands where a whole number from 0 to 65535 is wanted", 0},
		{"bad", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"QOS","Settings":{"MaximumOutgoingBandwidthInBytes":-1}}]}}`, ErrInvalidPolicy, "Settings.Policies[0]", 0},
		{"port", `{"ResourceType":"Port","RequestType":"Add","Settings":{"PortId":"c0ffee00-0000-4000-8000-000000000001"}}`, 0, "", 6},
		{"port without an ID", `{"ResourceType":"Port","RequestType":"Reset"}`, 0, "", 6},
		{"port without settings", `{"ResourceType":"Port","RequestType":"Add"}`, ErrInvalidJSON, "Settings", 0},
		{"port of a NIC with a bell", `{"ResourceType":"Port","RequestType":"Add","Settings":{"VirtualNicName":"a\u0007"}}`, ErrInvalidParameter, "Settings.VirtualNicName", 0},
		{"port of no VM", `{"ResourceType":"Port","RequestType":"Add","Settings":{"VirtualMachineId":"one"}}`, ErrGUIDConversionFailure, "VirtualMachineId", 0},
		{"no resource", `{"RequestType":"Add","Settings":{}}`, ErrInvalidJSON, "ResourceType", 0},
		{"no settings", `{"ResourceType":"Policy","RequestType":"Add"}`, ErrInvalidJSON, "Settings", 0},
		{"unknown request", `{"ResourceType":"Policy","RequestType":"Shake"}`, ErrInvalidJSON, "Shake", 0},
		{"unknown resource", `{"ResourceType":"Soul","RequestType":"Add"}`, ErrInvalidJSON, "Soul", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, _ := json.Marshal(e)
			r, err := Decode[ModifyEndpointSettingRequest]([]byte(tc.doc))
			var got *HostComputeEndpoint
			if err == nil {
				got, err = r.Apply(e, n)
			}
			checkErr(t, err, tc.code, tc.where)
			if err == nil && len(got.Policies) != tc.want {
				t.Errorf("%d policies, want %d", len(got.Policies), tc.want)
			}
			if after, _ := json.Marshal(e); string(after) != string(before) {
				t.Error("the old document was changed")
			}
		})
	}
}

func TestModifyNetwork(t *testing.T) {
	const ext = "c0ffee00-0000-4000-8000-00000000000e"
	for _, tc := range []struct {
		name, doc string
		code      ErrorCode
		where     string
		want      func(n *HostComputeNetwork) bool
	}{
		{
			"dns add", `{"ResourceType":"DNS","RequestType":"Add","Settings":{"ServerList":["192.0.2.99"]}}`, 0, "",
			func(n *HostComputeNetwork) bool { return len(n.Dns.ServerList) == 3 && n.Dns.Domain == "example.test" },
		},
		{
			"dns update", `{"ResourceType":"dns","RequestType":"Update","Settings":{"ServerList":["192.0.2.99"]}}`, 0, "",
			func(n *HostComputeNetwork) bool { return len(n.Dns.ServerList) == 1 && n.Dns.Domain == "" },
		},
		{
			"dns remove", `{"ResourceType":"DNS","RequestType":"Remove","Settings":{"ServerList":["192.0.2.53"],"Domain":"example.test"}}`, 0, "",
			func(n *HostComputeNetwork) bool { return len(n.Dns.ServerList) == 1 && n.Dns.Domain == "" },
		},
		{"dns bad", `{"ResourceType":"DNS","RequestType":"Update","Settings":{"ServerList":["x"]}}`, ErrInvalidNetwork, "Settings.ServerList[0]", nil},
		{
			"subnet add", `{"ResourceType":"Subnet","RequestType":"Add","Settings":{"Subnets":[` + subnet4 + `]}}`, 0, "",
			func(n *HostComputeNetwork) bool {
				s := n.AllSubnets()
				return len(s) == 3 && s[2].IpAddressPrefix == "10.1.0.0/24" && !s[2].ID.IsZero()
			},
		},
		{"subnet add overlapping", `{"ResourceType":"Subnet","RequestType":"Add","Settings":{"Subnets":[` + prefix("172.20.0.0/16", "172.20.0.1") + `]}}`, ErrInvalidSubnet, "overlaps", nil},
		{
			"subnet remove", `{"ResourceType":"Subnet","RequestType":"Remove","Settings":{"Subnets":[{"ID":"00000000-0000-0000-0000-0000000000a1"}]}}`, 0, "",
			func(n *HostComputeNetwork) bool { return len(n.AllSubnets()) == 1 },
		},
		{"subnet remove unknown", `{"ResourceType":"Subnet","RequestType":"Remove","Settings":{"Subnets":[{"ID":"c0ffee00-0000-4000-8000-000000000001"}]}}`, ErrSubnetNotFound, "Settings.Subnets[0].ID", nil},
		{"subnet reset", `{"ResourceType":"Subnet","RequestType":"Reset"}`, ErrRequestUnsupported, "Remove", nil},
		{
			"block add", `{"ResourceType":"IPSubnet","RequestType":"Add","Settings":{"SubnetId":"00000000-0000-0000-0000-0000000000a1","IpSubnets":[{"IpAddressPrefix":"172.20.0.0/26"}]}}`, 0, "",
			func(n *HostComputeNetwork) bool {
				b := n.AllSubnets()[0].IpSubnets
				return len(b) == 2 && !b[1].ID.IsZero()
			},
		},
		{
			"block remove", `{"ResourceType":"IPSubnet","RequestType":"Remove","Settings":{"SubnetId":"00000000-0000-0000-0000-0000000000a1","IpSubnets":[{"ID":"F1F1F1F1-0000-4000-8000-000000000001"}]}}`, 0, "",
			func(n *HostComputeNetwork) bool { return len(n.AllSubnets()[0].IpSubnets) == 0 },
		},
		{"block of unknown subnet", `{"ResourceType":"IPSubnet","RequestType":"Add","Settings":{"SubnetId":"c0ffee00-0000-4000-8000-000000000001"}}`, ErrSubnetNotFound, "SubnetId", nil},
		{
			"extension", `{"ResourceType":"Extension","RequestType":"Update","Settings":{"Id":"` + ext + `","IsEnabled":true}}`, 0, "",
			func(n *HostComputeNetwork) bool { return n.Policies[len(n.Policies)-1].Type == VSwitchExtension },
		},
		{"extension unknown", `{"ResourceType":"Extension","RequestType":"Remove","Settings":{"Id":"` + ext + `"}}`, ErrSwitchExtensionNotFound, "Settings.Id", nil},
		{"policy not enforced", `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"HostRoute"}]}}`, ErrRequestUnsupported, "HostRoute", nil},
		{
			"policy removed", `{"ResourceType":"Policy","RequestType":"Remove","Settings":{"Policies":[{"Type":"AutomaticDNS","Settings":{"Enable":true}}]}}`, 0, "",
			func(n *HostComputeNetwork) bool { return len(n.Policies) == 0 },
		},
		{"no resource", `{"RequestType":"Add"}`, ErrInvalidJSON, "ResourceType", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := natNetwork(t, NAT)
			before, _ := json.Marshal(n)
			r, err := Decode[ModifyNetworkSettingRequest]([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Apply(n, NewGUID)
			checkErr(t, err, tc.code, tc.where)
			if err == nil && !tc.want(got) {
				b, _ := json.MarshalIndent(got, "", " ")
				t.Errorf("got %s", b)
			}
			if after, _ := json.Marshal(n); string(after) != string(before) {
				t.Error("the old document was changed")
			}
		})
	}
}

func TestModifyNamespace(t *testing.T) {
	for _, tc := range []struct {
		doc, want string
		code      ErrorCode
	}{
		{`{"ResourceType":"Endpoint","RequestType":"Add","Settings":{"EndpointId":"c0ffee00-0000-4000-8000-000000000001"}}`, "Endpoint C0FFEE00-0000-4000-8000-000000000001", 0},
		{`{"ResourceType":1,"RequestType":"Remove","Settings":{"endpointid":"{c0ffee00-0000-4000-8000-000000000001}"}}`, "Endpoint C0FFEE00-0000-4000-8000-000000000001", 0},
		{`{"ResourceType":"Container","RequestType":"Add","Settings":{"ContainerId":"abc"}}`, "Container abc", 0},
		{`{"ResourceType":"Endpoint","RequestType":"Refresh"}`, "Endpoint ", 0},
		{`{"ResourceType":"Endpoint","RequestType":"Add","Settings":{}}`, "", ErrInvalidJSON},
		{`{"ResourceType":"Endpoint","RequestType":"Add","Settings":{"EndpointId":"abc"}}`, "", ErrGUIDConversionFailure},
		{`{"ResourceType":"Endpoint","RequestType":"Add","Settings":{"EndpointId":"00000000-0000-0000-0000-000000000000"}}`, "", ErrGUIDConversionFailure},
		{`{"RequestType":"Add","Settings":{"EndpointId":"c0ffee00-0000-4000-8000-000000000001"}}`, "", ErrInvalidJSON},
		{`{"ResourceType":"Container","RequestType":"Add","Settings":{"ContainerId":"a\nb"}}`, "", ErrInvalidParameter},
	} {
		r, err := Decode[ModifyNamespaceSettingRequest]([]byte(tc.doc))
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Resource()
		checkErr(t, err, tc.code, "")
		if err == nil && got.Type.String()+" "+got.Data.ID != tc.want {
			t.Errorf("%s: got %v", tc.doc, got)
		}
	}
}
