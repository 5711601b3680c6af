package plantest

import (
	"fmt"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// The pools overlap on purpose, and each has an entry that ends right beside one that
// packets use.
var pools = struct{ prefixes, sets, ports, protocols []string }{
	prefixes: []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/24", "10.1.0.8/29", "10.1.0.10/31", "10.1.0.11", "10.1.0.12", "10.1.0.1", "10.1.0.128/25",
		"192.0.2.0/24", "192.0.2.128/25", "192.0.2.1", "0.0.0.0/1", "128.0.0.0/1",
		"::/0", "fd00::/8", "fd00:1::/64", "fd00:1::8/125", "fd00:1::a/127", "fd00:1::b", "fd00:1::c", "fd00:1::1", "fe80::/10",
		"2001:db8::/32", "2001:db8::8000/113", "2001:db8::1", "8000::/1",
	},
	sets:      []string{"first", "second", "empty", "both"},
	ports:     []string{"80", "443", "53", "80-90", "79-81", "0-1023", "1024-65535", "65535", "0", "0-65535", "8000-8010"},
	protocols: []string{"", "", "256", "6", "6", "17", "6,17", "1", "58", "1,58", "132", "6,132,47", "255"},
}

func networkPolicies(t *rapid.T) []hcn.NetworkPolicy {
	set := func(id string, kind hcn.SetPolicyType, values string) hcn.NetworkPolicy {
		return hcn.NewNetworkPolicy(hcn.SetPolicy, hcn.SetPolicySetting{Id: id, PolicyType: kind, Values: values})
	}
	values := rapid.SliceOfN(rapid.SampledFrom(pools.prefixes), 1, 6)
	out := []hcn.NetworkPolicy{
		set("both", hcn.SetPolicyTypeNestedIpSet, "first,second"),
		set("first", hcn.SetPolicyTypeIpSet, strings.Join(values.Draw(t, "first"), ",")),
		set("second", hcn.SetPolicyTypeIpSet, strings.Join(values.Draw(t, "second"), ",")),
		set("empty", hcn.SetPolicyTypeIpSet, ""),
	}
	if rapid.IntRange(0, 3).Draw(t, "network rules") == 0 {
		for range rapid.IntRange(1, 4).Draw(t, "count") {
			out = append(out, hcn.NewNetworkPolicy(hcn.NetworkACL, acl(t)))
		}
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "network proxies") {
		out = append(out, hcn.NewNetworkPolicy(hcn.NetworkL4Proxy, proxy(t)))
	}
	return out
}

// proxy draws an L4Proxy policy: on the network, its gateway, or outside.
func proxy(t *rapid.T) hcn.L4ProxyPolicySetting {
	s := hcn.L4ProxyPolicySetting{
		IP:          rapid.SampledFrom([]string{"10.1.0.10", "10.1.0.1", "192.0.2.1", "fd00:1::a", "fd00:1::1", "2001:db8::1"}).Draw(t, "proxy"),
		Port:        rapid.SampledFrom([]string{"", "3128"}).Draw(t, "proxy port"),
		Protocol:    rapid.SampledFrom([]hcn.Protocol{0, 6, 17}).Draw(t, "proxied"),
		OutboundNat: rapid.Bool().Draw(t, "hidden"),
	}
	some := func(label string, sizes ...int) (out []string) {
		for range rapid.SampledFrom(sizes).Draw(t, label) {
			if p := rapid.SampledFrom(pools.prefixes).Draw(t, label); strings.Contains(p, ":") == strings.Contains(s.IP, ":") {
				out = append(out, p)
			}
		}
		return out
	}
	s.Destination, s.ExceptionList = strings.Join(some("destinations", 0, 0, 1, 3), ","), some("exceptions", 0, 0, 1, 3)
	return s
}

// endpointPolicies draws from none to more rules than one word of a bit vector holds.
func endpointPolicies(t *rapid.T) []hcn.EndpointPolicy {
	var out []hcn.EndpointPolicy
	count := rapid.SampledFrom([]int{0, 0, 1, 2, 3, 4, 5, 8, 12, 70, 140}).Draw(t, "rules")
	for range count {
		out = append(out, hcn.NewEndpointPolicy(hcn.ACL, acl(t)))
	}
	for i := range rapid.SampledFrom([]int{0, 0, 1, 2, 3}).Draw(t, "tiers") {
		out = append(out, hcn.NewEndpointPolicy(hcn.TierAcl, tier(t, i)))
	}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "proxies") {
		out = append(out, hcn.NewEndpointPolicy(hcn.L4Proxy, proxy(t)))
	}
	return out
}

// outboundPolicies draws what sends packets by the host: it matters on L2Bridge and L2Tunnel.
func outboundPolicies(t *rapid.T) []hcn.EndpointPolicy {
	some := func(label string, sizes ...int) (out []string) {
		for range rapid.SampledFrom(sizes).Draw(t, label) {
			out = append(out, rapid.SampledFrom(pools.prefixes).Draw(t, label))
		}
		return out
	}
	var out []hcn.EndpointPolicy
	if rapid.IntRange(0, 3).Draw(t, "hidden") == 0 {
		out = append(out, hcn.OutboundNatPolicySetting{Exceptions: some("kept", 0, 1, 3)}.Policy())
	}
	if rapid.IntRange(0, 3).Draw(t, "hidden from some") == 0 {
		out = append(out, hcn.OutboundNatPolicySetting{Destinations: some("chosen", 1, 3), Exceptions: some("not chosen", 0, 0, 1)}.Policy())
	}
	for _, prefix := range some("routes", 0, 0, 1, 2) {
		if !strings.Contains(prefix, "/") {
			prefix += map[bool]string{true: "/128", false: "/32"}[strings.Contains(prefix, ":")]
		}
		out = append(out, hcn.NewEndpointPolicy(hcn.SDNRoute, hcn.SDNRoutePolicySetting{DestinationPrefix: prefix, NeedEncap: true}))
	}
	return out
}

// hops draws the next hops of an endpoint on an overlay: those of others there, here or elsewhere, the gateway's, nobody's, or the host.
func hops(t *rapid.T) (out []hcn.EndpointPolicy) {
	for i, prefix := range [][]string{{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.50/32"}, {"::/0", "fd00::/16", "fd00:1::32/128"}} {
		next := [][]string{{"", "127.10.0.33", "10.1.0.10", "10.1.0.11", "10.1.0.50", "10.1.0.1"}, {"", "fd00:9::9", "fd00:1::a", "fd00:1::b", "fd00:1::32", "fd00:1::1"}}[i]
		out = append(out, hcn.NewEndpointPolicy(hcn.SDNRoute, hcn.SDNRoutePolicySetting{
			DestinationPrefix: rapid.SampledFrom(prefix).Draw(t, "prefix"), NextHop: rapid.SampledFrom(next).Draw(t, "next hop"), NeedEncap: true,
		}))
	}
	return out
}

type match struct{ protocols, local, remote, localPorts, remotePorts string }

func rule(t *rapid.T) match {
	m := match{protocols: rapid.SampledFrom(pools.protocols).Draw(t, "protocols"), local: addressList(t, "local"), remote: addressList(t, "remote")}
	if slices.Contains([]string{"6", "17", "6,17"}, m.protocols) {
		m.localPorts, m.remotePorts = portList(t, "local ports"), portList(t, "remote ports")
	}
	return m
}

// addressList is empty as often as not: rules whose every field says something match
// next to nothing.
func addressList(t *rapid.T, label string) string {
	n := rapid.SampledFrom([]int{0, 0, 0, 1, 1, 2, 4}).Draw(t, label)
	out := make([]string, n)
	for i := range out {
		pool := pools.prefixes
		if rapid.IntRange(0, 3).Draw(t, "set") == 0 {
			pool = pools.sets
		}
		out[i] = rapid.SampledFrom(pool).Draw(t, label)
	}
	return strings.Join(out, ",")
}

func portList(t *rapid.T, label string) string {
	n := rapid.SampledFrom([]int{0, 0, 1, 1, 3}).Draw(t, label)
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom(pools.ports), n, n).Draw(t, label), ",")
}

func direction(t *rapid.T) hcn.DirectionType {
	return rapid.SampledFrom([]hcn.DirectionType{hcn.DirectionTypeIn, hcn.DirectionTypeOut}).Draw(t, "direction")
}

func priority(t *rapid.T) uint16 {
	return rapid.SampledFrom([]uint16{0, 100, 100, 200, 300, 65500}).Draw(t, "priority")
}

func acl(t *rapid.T) hcn.AclPolicySetting {
	m := rule(t)
	s := hcn.AclPolicySetting{
		Id: rapid.SampledFrom([]string{"", "x"}).Draw(t, "id"), Direction: direction(t), Priority: priority(t),
		Action:    rapid.SampledFrom([]hcn.ActionType{hcn.ActionTypeAllow, hcn.ActionTypeAllow, hcn.ActionTypeBlock}).Draw(t, "action"),
		Protocols: m.protocols, LocalAddresses: m.local, RemoteAddresses: m.remote, LocalPorts: m.localPorts, RemotePorts: m.remotePorts,
	}
	if rapid.IntRange(0, 9).Draw(t, "host rule") == 0 {
		s.RuleType, s.Priority = hcn.RuleTypeHost, 0
	}
	return s
}

func tier(t *rapid.T, n int) hcn.TierAclPolicySetting {
	s := hcn.TierAclPolicySetting{Name: fmt.Sprintf("t%d", n), Direction: direction(t), Order: uint16(rapid.IntRange(0, 2).Draw(t, "order"))}
	actions := []hcn.ActionType{hcn.ActionTypeAllow, hcn.ActionTypeBlock, hcn.ActionTypePass, hcn.ActionTypePass}
	for range rapid.IntRange(0, 4).Draw(t, "tier rules") {
		m := rule(t)
		s.TierAclRules = append(s.TierAclRules, hcn.TierAclRule{
			TierAclRuleAction: rapid.SampledFrom(actions).Draw(t, "action"), Priority: priority(t),
			Protocols: m.protocols, LocalAddresses: m.local, RemoteAddresses: m.remote, LocalPorts: m.localPorts, RemotePorts: m.remotePorts,
		})
	}
	return s
}
