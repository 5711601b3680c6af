package hcn

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func setPolicy(id, kind, values string) string {
	return fmt.Sprintf(`{"Type":"SetPolicy","Settings":{"Id":%q,"PolicyType":%q,"Values":%q}}`, id, kind, values)
}

func decodePolicies(t *testing.T, list ...string) []NetworkPolicy {
	t.Helper()
	n, err := Decode[HostComputeNetwork]([]byte(policies(list...)))
	if err != nil {
		t.Fatal(err)
	}
	return n.Policies
}

// TestSetReferences: who names a set needs it to be there, whoever made the change.
func TestSetReferences(t *testing.T) {
	a, b, both := setPolicy("a", "IPSET", "10.0.0.1,fd00::/64"), setPolicy("b", "IPSET", ""), setPolicy("both", "NESTEDIPSET", "a,b")
	rule := `{"Type":"NetworkACL","Settings":{"Id":"r","Action":"Block","Direction":"In","RemoteAddresses":"10.0.0.0/8,b"}}`
	for _, tc := range []struct {
		name, current, what, request string
		code                         ErrorCode
		where                        string
	}{
		{"sets and what names them at once", "", "Add", strings.Join([]string{rule, both, a, b}, ","), 0, ""},
		{"nested set of one that is not there", a, "Add", both, ErrInvalidPolicy, `"b"`},
		{"nested set of a nested one", a + "," + b + "," + both, "Add", setPolicy("x", "NESTEDIPSET", "both"), ErrInvalidPolicy, "nested set itself"},
		{"network rule of a set that is not there", a, "Add", rule, ErrInvalidPolicy, `"b"`},
		{"remove a member", a + "," + b + "," + both, "Remove", b, ErrEntityHasReferences, `set "both"`},
		{"remove a set of a network rule", a + "," + b + "," + rule, "Remove", b, ErrEntityHasReferences, "NetworkACL"},
		{"remove the nested one first", a + "," + b + "," + both, "Remove", both, 0, ""},
		{"remove all at once, in any order", a + "," + b + "," + both, "Remove", a + "," + both + "," + b, 0, ""},
		{"remove a set nobody names", a + "," + b, "Remove", a, 0, ""},
		{"reset under a rule", a + "," + b + "," + rule, "Reset", `{"Type":"SetPolicy"}`, ErrEntityHasReferences, `"b"`},
		{"update of one set leaves the others", a + "," + b + "," + both, "Update", setPolicy("b", "IPSET", "10.0.0.2"), 0, ""},
		{"update to a kind that its holder cannot hold", a + "," + b + "," + both, "Update", setPolicy("b", "NESTEDIPSET", "a"), ErrInvalidPolicy, "nested set itself"},
		{"the case of an Id counts", setPolicy("B", "IPSET", ""), "Add", rule, ErrInvalidPolicy, `"b"`},
		{"an Id that rules cannot name", "", "Add", setPolicy("10.0.0.1", "IPSET", ""), ErrInvalidPolicy, "could not name"},
		{"an Id with a comma", "", "Add", setPolicy("x,y", "IPSET", ""), ErrInvalidPolicy, "could not name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := natNetwork(t, NAT)
			if tc.current != "" {
				n.Policies = decodePolicies(t, tc.current)
			}
			r, err := Decode[ModifyNetworkSettingRequest]([]byte(fmt.Sprintf(`{"ResourceType":"Policy","RequestType":%q,"Settings":%s}`, tc.what, policies(tc.request))))
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.Apply(n, NewGUID)
			checkErr(t, err, tc.code, tc.where)
		})
	}
}

// TestEndpointSetReferences: the rules of an endpoint, tiers included, are held against the network.
func TestEndpointSetReferences(t *testing.T) {
	n := natNetwork(t, NAT)
	n.Policies = decodePolicies(t, setPolicy("peers", "IPSET", ""))
	for _, tc := range []struct {
		policy, where string
		code          ErrorCode
		uses          string
	}{
		{`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","RemoteAddresses":"10.0.0.1,peers"}}`, "", 0, "peers"},
		{`{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","LocalAddresses":"other"}}`, "Policies[0].Settings.LocalAddresses", ErrInvalidPolicy, ""},
		{`{"Type":"TierAcl","Settings":{"Name":"t","Direction":"In","TierAclRules":[{"TierAclRuleAction":"Pass"},{"TierAclRuleAction":"Pass","RemoteAddresses":"other"}]}}`, "TierAclRules[1].RemoteAddresses", ErrInvalidPolicy, ""},
		{`{"Type":"TierAcl","Settings":{"Name":"t","Direction":"In","TierAclRules":[{"TierAclRuleAction":"Pass","LocalAddresses":"peers"}]}}`, "", 0, "peers"},
	} {
		e, err := Decode[HostComputeEndpoint]([]byte(policies(tc.policy)))
		if err != nil {
			t.Fatal(err)
		}
		checkErr(t, e.ValidateFor(n), tc.code, tc.where)
		if got := e.UsesSet([]string{"nobody's", "peers"}); got != tc.uses {
			t.Errorf("%s uses %q, want %q", tc.policy, got, tc.uses)
		}
	}
}

func TestRuleMatch(t *testing.T) {
	for _, tc := range []struct{ settings, want string }{
		{`{}`, "[] [] [] [] [] [] []"},
		{
			`{"Protocols":"6,17","LocalAddresses":"10.1.2.3/8, web","RemoteAddresses":"fd00::1","LocalPorts":"80, 90-99","RemotePorts":"1"}`,
			"[6 17] [10.0.0.0/8] [web] [fd00::1/128] [] [{80 80} {90 99}] [{1 1}]",
		},
		{`{"Protocols":"6,256"}`, "[] [] [] [] [] [] []"},
		{`{"Protocols":"0,252,255"}`, "[0 252 255] [] [] [] [] [] []"},
	} {
		var s AclPolicySetting
		if err := json.Unmarshal([]byte(tc.settings), &s); err != nil {
			t.Fatal(err)
		}
		m, err := s.Match()
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%v %v %v %v %v %v %v", m.Protocols, m.Local.Prefixes, m.Local.Sets, m.Remote.Prefixes, m.Remote.Sets, m.LocalPorts, m.RemotePorts); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.settings, got, tc.want)
		}
	}
}

// TestACLFromVersion1: the single forms of version 1 become lists, at an endpoint and at a network.
func TestACLFromVersion1(t *testing.T) {
	for _, tc := range []struct{ v1, want string }{
		{
			`{"Type":"ACL","Protocol":6,"Action":"Allow","Direction":"In","LocalPort":80,"RemoteAddresses":"10.0.0.0/8","Priority":100}`,
			"6|10.0.0.0/8|80|",
		},
		{`{"Type":"ACL","Protocols":"6,17","Protocol":1,"Action":"Block","Direction":"Out","RemotePort":53,"RemotePorts":"53,54"}`, "6,17|||53,54"},
		{`{"Type":"ACL","Protocol":17,"Action":"Allow","Direction":"In","InternalPort":53}`, "17||53|"},
		{`{"Type":"ACL","Protocol":256,"Action":"Allow","Direction":"In","LocalPort":0}`, "256|||"},
	} {
		p, err := EndpointPolicyFromV1([]byte(tc.v1))
		if err != nil {
			t.Fatal(err)
		}
		n, err := NetworkFromV1(&HNSNetwork{Type: NAT, Policies: []json.RawMessage{[]byte(strings.Replace(tc.v1, `"ACL"`, `"NetworkACL"`, 1))}})
		if err != nil {
			t.Fatal(err)
		}
		for _, settings := range [][]byte{p.Settings, n.Policies[0].Settings} {
			var s AclPolicySetting
			if err := json.Unmarshal(settings, &s); err != nil {
				t.Fatal(err)
			}
			if err := s.validate("Settings"); err != nil {
				t.Errorf("%s: %v", tc.v1, err)
			}
			if got := strings.Join([]string{s.Protocols, s.RemoteAddresses, s.LocalPorts, s.RemotePorts}, "|"); got != tc.want {
				t.Errorf("%s: got %s, want %s", tc.v1, got, tc.want)
			}
		}
	}
}

// TestLargeUpdate: the whole rule set again, as policy engines send it, is compared by look-up. Each with each would be fifty
// million comparisons.
func TestLargeUpdate(t *testing.T) {
	var list []EndpointPolicy
	for i := range 10_000 {
		list = append(list, NewEndpointPolicy(ACL, AclPolicySetting{Id: fmt.Sprint(i), Action: ActionTypeAllow, Direction: DirectionTypeIn}))
	}
	for _, what := range []RequestType{RequestTypeUpdate, RequestTypeAdd} {
		got, err := ModifyEndpointPolicies(list, what, list)
		if err != nil || len(got) != len(list) {
			t.Errorf("%s: %d policies, %v", what, len(got), err)
		}
	}
	got, err := ModifyEndpointPolicies(list, RequestTypeRemove, list)
	if err != nil || len(got) != 0 {
		t.Errorf("remove: %d policies, %v", len(got), err)
	}
}

func TestTurnedDefaults(t *testing.T) {
	in, out := `{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","Protocols":"6"}}`, `{"Type":"ACL","Settings":{"Action":"Block","Direction":"Out","RemoteAddresses":"10.0.0.0/8"}}`
	allOut := `{"Type":"ACL","Settings":{"Action":"Allow","Direction":"Out","Protocols":"256","Priority":65500}}`
	host := `{"Type":"ACL","Settings":{"Action":"Block","Direction":"In","RuleType":"Host"}}`
	tier := `{"Type":"TierAcl","Settings":{"Name":"t","Direction":"In","TierAclRules":[{"TierAclRuleAction":"Pass"}]}}`
	for _, tc := range []struct{ before, after, want string }{
		{"", in, "[In]"},
		{"", in + "," + out, "[In Out]"},
		{"", out + "," + allOut, "[]"},
		{in, in + "," + out, "[Out]"},
		{in, in + "," + in, "[]"},
		{"", host, "[]"},
		{host, host + "," + tier, "[In]"},
		{in, "", "[]"},
	} {
		list := func(s string) []EndpointPolicy {
			e, err := Decode[HostComputeEndpoint]([]byte(policies(s)))
			if err != nil {
				t.Fatal(err)
			}
			return e.Policies
		}
		if got := fmt.Sprint(TurnedDefaults(list(tc.before), list(tc.after))); got != tc.want {
			t.Errorf("%s → %s: %s, want %s", tc.before, tc.after, got, tc.want)
		}
		network := func(s string) []NetworkPolicy {
			return decodePolicies(t, strings.ReplaceAll(s, `"ACL"`, `"NetworkACL"`))
		}
		if !strings.Contains(tc.before+tc.after, "TierAcl") {
			if got := fmt.Sprint(TurnedNetworkDefaults(network(tc.before), network(tc.after))); got != tc.want {
				t.Errorf("network %s → %s: %s, want %s", tc.before, tc.after, got, tc.want)
			}
		}
	}
}
