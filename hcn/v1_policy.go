package hcn

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A policy of version 1 is one flat object. Most differ from version 2 in the names of members only, so a translation is a
// list of renamings, plus a function where values change as well.

// renames are pairs of names, version 1 first.
type renames [][2]string

// v1Policy says which policy of version 2 a type of version 1 became.
type v1Policy struct {
	v1      string
	v2      EndpointPolicyType
	members renames
	in, out func(m map[string]any)
}

// v1Policies are the endpoint policies that have another shape in version 1.
var v1Policies = []v1Policy{
	{v1: "NAT", v2: PortMapping, in: dropReserved, out: natToV1},
	{v1: "OutBoundNAT", v2: OutBoundNAT, members: renames{{"VIP", "VirtualIP"}, {"ExceptionList", "Exceptions"}}},
	{v1: "ROUTE", v2: SDNRoute},
	{v1: "PA", v2: ProviderAddress, members: renames{{"PA", "ProviderAddress"}}},
	{v1: "PROXY", v2: L4Proxy, members: renames{{"ExceptionList", "Exceptions"}}},
	{v1: "ACL", v2: ACL, in: aclFromV1},
	{v1: "VLAN", v2: EndpointVLAN, members: renames{{"VLAN", "IsolationId"}}},
}

// flatMembers reads a flat policy: its type, and the other members.
func flatMembers(raw json.RawMessage) (string, map[string]any, error) {
	v, err := jsonValue(raw)
	m, ok := v.(map[string]any)
	if err != nil || !ok {
		return "", nil, Errorf(ErrInvalidPolicy, "a policy must be a JSON object")
	}
	typ := ""
	for k, x := range m {
		if strings.EqualFold(k, "Type") {
			typ, _ = x.(string)
			delete(m, k)
		}
	}
	return typ, m, nil
}

// rename moves members to other names; from and to are indexes into the pairs.
func (r renames) rename(m map[string]any, from, to int) {
	for _, pair := range r {
		if v, ok := takeMember(m, pair[from]); ok {
			m[pair[to]] = v
		}
	}
}

// takeMember removes a member whatever the case of its name.
func takeMember(m map[string]any, name string) (any, bool) {
	for k, v := range m {
		if strings.EqualFold(k, name) {
			delete(m, k)
			return v, true
		}
	}
	return nil, false
}

// EndpointPolicyFromV1 translates a flat policy to version 2.
func EndpointPolicyFromV1(raw json.RawMessage) (EndpointPolicy, error) {
	typ, m, err := flatMembers(raw)
	if err != nil {
		return EndpointPolicy{}, err
	}
	p := EndpointPolicy{Type: canonicalType(EndpointPolicyType(typ), endpointSettings)}
	// Clients mix the versions, and a widely used one writes the members into a Value.
	for _, name := range []string{"Settings", "Value"} {
		if s, ok := m[name].(map[string]any); ok && len(m) == 1 {
			m = s
		}
	}
	for _, t := range v1Policies {
		if strings.EqualFold(t.v1, typ) {
			p.Type = t.v2
			t.members.rename(m, 0, 1)
			if t.in != nil {
				t.in(m)
			}
		}
	}
	known, ok := endpointSettings[p.Type]
	if !ok {
		return p, unknownPolicy(p.Type, endpointSettings)
	}
	p.Settings = canonicalize(mustSettings(m), known)
	return p, nil
}

// EndpointPolicyToV1 translates a policy to its flat form.
func EndpointPolicyToV1(p EndpointPolicy) json.RawMessage {
	for _, t := range v1Policies {
		if t.v2 != p.Type {
			continue
		}
		m := settingsMap(p.Settings)
		t.members.rename(m, 1, 0)
		if t.out != nil {
			t.out(m)
		}
		return mustSettings(withType(m, t.v1))
	}
	return flatten(string(p.Type), p.Settings)
}

// flatten puts a policy's settings beside its type.
func flatten(typ string, settings json.RawMessage) json.RawMessage {
	return mustSettings(withType(settingsMap(settings), typ))
}

func settingsMap(raw json.RawMessage) map[string]any {
	v, err := jsonValue(raw)
	m, ok := v.(map[string]any)
	if err != nil || !ok {
		return map[string]any{}
	}
	return maps.Clone(m)
}

func withType(m map[string]any, typ string) map[string]any {
	takeMember(m, "Type")
	m["Type"] = typ
	return m
}

// dropReserved: version 1 says by ExternalPortReserved whether the client holds the port already; we always reserve it.
func dropReserved(m map[string]any) { takeMember(m, "ExternalPortReserved") }

// natToV1 writes the protocol as a name, which is how clients of version 1 read it.
func natToV1(m map[string]any) {
	if v, ok := takeMember(m, "Protocol"); ok {
		m["Protocol"] = v
		if n, ok := v.(json.Number); ok {
			if i, err := n.Int64(); err == nil && i >= 0 && i < 256 {
				m["Protocol"] = Protocol(i).String()
			}
		}
	}
	m["ExternalPortReserved"] = false
}

// aclFromV1 turns the single forms into lists. The list wins where both are given.
func aclFromV1(m map[string]any) {
	for _, pair := range []struct{ single, list string }{
		{"Protocol", "Protocols"}, {"LocalPort", "LocalPorts"}, {"RemotePort", "RemotePorts"}, {"InternalPort", "LocalPorts"},
	} {
		v, ok := takeMember(m, pair.single)
		if !ok {
			continue
		}
		text := scalarOf(v)
		list, _ := takeMember(m, pair.list)
		if s := scalarOf(list); s != "" {
			text = s
		}
		if text != "" && text != "0" {
			m[pair.list] = text
		}
	}
	for _, list := range []string{"Protocols", "LocalPorts", "RemotePorts"} {
		if v, ok := takeMember(m, list); ok {
			m[list] = scalarOf(v)
		}
	}
}

func scalarOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

func subnetPolicyFromV1(raw json.RawMessage) (SubnetPolicy, error) {
	typ, m, err := flatMembers(raw)
	if err != nil {
		return SubnetPolicy{}, err
	}
	t := canonicalType(SubnetPolicyType(typ), subnetSettings)
	known, ok := subnetSettings[t]
	if !ok {
		return SubnetPolicy{}, unknownPolicy(t, subnetSettings)
	}
	renames{{string(t), "IsolationId"}}.rename(m, 0, 1)
	return SubnetPolicy{Type: t, Settings: canonicalize(mustSettings(m), known)}, nil
}

func subnetPolicyToV1(p SubnetPolicy) json.RawMessage {
	m := settingsMap(p.Settings)
	renames{{string(p.Type), "IsolationId"}}.rename(m, 1, 0)
	return mustSettings(withType(m, string(p.Type)))
}

// networkPolicyFromV1 adds a flat policy to the network; in version 1 the isolation of all subnets stands there too.
func networkPolicyFromV1(n *HostComputeNetwork, subnets []Subnet, raw json.RawMessage) error {
	typ, m, err := flatMembers(raw)
	if err != nil {
		return err
	}
	if strings.EqualFold(typ, string(VLAN)) || strings.EqualFold(typ, string(VSID)) {
		p, err := subnetPolicyFromV1(raw)
		if err != nil {
			return err
		}
		if len(subnets) == 0 {
			return Errorf(ErrInvalidSubnet, "%s needs a subnet to apply to", p.Type)
		}
		for i := range subnets { // a document that was read from us says it in both places
			if !slices.ContainsFunc(subnets[i].Policies, func(o SubnetPolicy) bool { return o.Type == p.Type && bytes.Equal(o.Settings, p.Settings) }) {
				subnets[i].Policies = append(subnets[i].Policies, p)
			}
		}
		return nil
	}
	t := canonicalType(NetworkPolicyType(typ), networkSettings)
	known, ok := networkSettings[t]
	if !ok {
		return unknownPolicy(t, networkSettings)
	}
	if t == NetworkACL {
		aclFromV1(m)
	}
	n.Policies = append(n.Policies, NetworkPolicy{Type: t, Settings: canonicalize(mustSettings(m), known)})
	return nil
}
