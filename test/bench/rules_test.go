package bench

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// rule is one packet filter rule in no tool's words; all that are measured side by side hold the same ones.
type rule struct {
	proto    uint8  // 0: any
	remote   string // prefix, or "@" and a set; "": any
	from, to uint16 // ports of the server; 0: any
	allow    bool
}

// mixed makes n rules of different kinds, none of which is for the traffic that is measured, but for the last: it lets
// everything pass. seed makes another list of the same kind.
func mixed(n, seed int) []rule {
	list := make([]rule, 0, n)
	for i := range n - 1 {
		k := i + seed*7
		switch i % 4 {
		case 0:
			list = append(list, rule{remote: fmt.Sprintf("172.%d.%d.0/24", 16+k>>8&15, k&255)})
		case 1:
			list = append(list, rule{proto: 6, from: uint16(1000 + k/4), to: uint16(1000 + k/4)})
		case 2:
			list = append(list, rule{proto: 17, remote: fmt.Sprintf("10.%d.%d.%d/32", 64+k>>16, k>>8&255, k&255), from: 3000, to: 3100, allow: true})
		default:
			list = append(list, rule{proto: 1, remote: fmt.Sprintf("198.18.%d.0/24", k&255), allow: true})
		}
	}
	return append(list, rule{allow: true})
}

// acl are the rules as policies of an endpoint, in their order.
func acl(rules []rule, direction hcn.DirectionType) []hcn.EndpointPolicy {
	out := make([]hcn.EndpointPolicy, 0, len(rules))
	for i, r := range rules {
		s := hcn.AclPolicySetting{
			Action: hcn.ActionTypeBlock, Direction: direction, RuleType: hcn.RuleTypeSwitch, Priority: uint16(100 + i),
			RemoteAddresses: strings.TrimPrefix(r.remote, "@"),
		}
		if r.allow {
			s.Action = hcn.ActionTypeAllow
		}
		if r.proto != 0 {
			s.Protocols = fmt.Sprint(r.proto)
		}
		ports := &s.LocalPorts // the server's are the local ones of what comes in
		if direction == hcn.DirectionTypeOut {
			ports = &s.RemotePorts
		}
		if r.from != 0 {
			*ports = fmt.Sprintf("%d-%d", r.from, r.to)
		}
		out = append(out, hcn.NewEndpointPolicy(hcn.ACL, s))
	}
	return out
}

// addRules gives an endpoint rules, in documents of a size that the API takes.
func (f *fleet) addRules(i int, direction hcn.DirectionType, rules []rule) {
	f.d.b.Helper()
	policies := acl(rules, direction)
	for len(policies) > 0 {
		n := min(len(policies), 5000)
		f.modify(i, hcn.RequestTypeAdd, policies[:n])
		policies = policies[n:]
	}
}

// modify asks for a change of an endpoint's policies.
func (f *fleet) modify(i int, t hcn.RequestType, policies []hcn.EndpointPolicy) {
	f.d.b.Helper()
	r, err := hcn.NewEndpointPolicyRequest(t, policies)
	if err != nil {
		f.d.b.Fatal(err)
	}
	f.d.call(http.MethodPost, "/hcn/v2/endpoints/"+string(f.made[i].endpoint.ID)+"/modify", r, nil)
}

// nftRules are the rules in a chain of nftables, behind the one that every firewall begins with.
func nftRules(rules []rule) string {
	var b strings.Builder
	names := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp"}
	b.WriteString("\t\tct state established,related accept\n")
	for _, r := range rules {
		b.WriteString("\t\t")
		if r.remote != "" {
			fmt.Fprintf(&b, "ip saddr %s ", r.remote)
		}
		switch {
		case r.from != 0:
			fmt.Fprintf(&b, "%s dport %d-%d ", names[r.proto], r.from, r.to)
		case r.proto != 0:
			fmt.Fprintf(&b, "ip protocol %s ", names[r.proto])
		}
		if r.allow {
			b.WriteString("accept\n")
		} else {
			b.WriteString("drop\n")
		}
	}
	return b.String()
}

// iptablesRules are the same as input for iptables-restore.
func iptablesRules(rules []rule) string {
	var b strings.Builder
	b.WriteString("*filter\n:FORWARD ACCEPT\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n")
	for _, r := range rules {
		b.WriteString("-A FORWARD ")
		if set, ok := strings.CutPrefix(r.remote, "@"); ok {
			fmt.Fprintf(&b, "-m set --match-set %s src ", set)
		} else if r.remote != "" {
			fmt.Fprintf(&b, "-s %s ", r.remote)
		}
		if r.proto != 0 {
			fmt.Fprintf(&b, "-p %d ", r.proto)
		}
		if r.from != 0 {
			fmt.Fprintf(&b, "--dport %d:%d ", r.from, r.to)
		}
		if r.allow {
			b.WriteString("-j ACCEPT\n")
		} else {
			b.WriteString("-j DROP\n")
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}
