package engine

import (
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func TestFirewallCommand(t *testing.T) {
	src, dst := netip.MustParseAddr("10.246.0.2"), netip.MustParseAddrPort("198.51.100.7:443")
	src6, dst6 := netip.MustParseAddr("fd00::2"), netip.MustParseAddrPort("[2001:db8::7]:53")
	for _, c := range []struct {
		name     string
		v        plan.HostVerdict
		protocol uint8
		want     string
	}{
		{"a rule", plan.HostVerdict{Table: "inet corp", Chain: "fw", Handle: 4}, 6, "nft delete rule inet corp fw handle 4"},
		{"a policy", plan.HostVerdict{Table: "inet corp", Chain: "fw", Src: src, Dst: dst}, 6, "nft insert rule inet corp fw ip saddr 10.246.0.2 ip daddr 198.51.100.7 accept"},
		{"a policy, IPv6", plan.HostVerdict{Table: "inet corp", Chain: "fw", Src: src6, Dst: dst6}, 17, "nft insert rule inet corp fw ip6 saddr fd00::2 ip6 daddr 2001:db8::7 accept"},
		{"a policy, nothing known", plan.HostVerdict{Table: "inet corp", Chain: "fw"}, 6, "nft -a list chain inet corp fw"},
		{"ufw, forwarded", plan.HostVerdict{Table: "ip filter", Chain: "ufw-user-forward", Keeper: "ufw", Handle: 9, Src: src, Dst: dst}, 6, "ufw route prepend allow proto tcp from 10.246.0.2 to 198.51.100.7 port 443"},
		{"ufw, to the host", plan.HostVerdict{Table: "ip6 filter", Chain: "ufw6-user-input", Keeper: "ufw", Handle: 9, Src: src6, Dst: dst6}, 17, "ufw prepend allow proto udp from fd00::2 to 2001:db8::7 port 53"},
		{"ufw's policy", plan.HostVerdict{Table: "ip filter", Chain: "FORWARD", Keeper: "ufw", Src: src, Dst: dst}, 6, "ufw route prepend allow proto tcp from 10.246.0.2 to 198.51.100.7 port 443"},
		{"ufw's policy for the host", plan.HostVerdict{Table: "ip filter", Chain: "OUTPUT", Keeper: "ufw", Src: src, Dst: dst}, 6, "ufw prepend allow out proto tcp from 10.246.0.2 to 198.51.100.7 port 443"},
		{"iptables-legacy", plan.HostVerdict{Tool: "ip6tables-legacy", Table: "filter", Chain: "FORWARD", Handle: 2, Src: src6, Dst: dst6}, 6, "ip6tables-legacy -t filter -L FORWARD -n -v --line-numbers"},
		{"firewalld, from a container", plan.HostVerdict{Table: "inet firewalld", Chain: "filter_FWD_public", Handle: 9, Src: src, Dst: dst}, 6, "firewall-cmd --zone=trusted --add-source=10.246.0.2"},
		{"firewalld", plan.HostVerdict{Table: "inet firewalld", Chain: "filter_FWD_public_deny", Handle: 9, Src: src6, Dst: dst6}, 6, "firewall-cmd --list-all-policies && firewall-cmd --list-all-zones"},
		{"iptables", plan.HostVerdict{Table: "ip filter", Chain: "FORWARD", Src: src, Dst: dst}, 6, "iptables -t filter -L FORWARD -n -v --line-numbers"},
		{"ip6tables", plan.HostVerdict{Table: "ip6 raw", Chain: "OUTPUT", Handle: 3}, 6, "ip6tables -t raw -L OUTPUT -n -v --line-numbers"},
		{"our own", plan.HostVerdict{Table: "inet bulkhead", Chain: "forward", Handle: 3}, 6, "nft -a list chain inet bulkhead forward"},
	} {
		if got := firewallCommand(&c.v, c.protocol, c.v.Src == src); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestAddVerdicts puts what the kernel traced where the explanation had a doubt.
func TestAddVerdicts(t *testing.T) {
	doc := func() *api.ExplainPath {
		return &api.ExplainPath{Reachable: true, Next: "x", Probe: &api.ExplainProbe{}, Doubts: []string{"table inet corp, chain fw (hook forward) has rules", "other"}, Steps: []api.ExplainStep{
			{Layer: "route", Pass: true}, {Layer: firewallLayer, Pass: true}, {Layer: "mtu", Pass: true},
		}}
	}
	accept := plan.HostVerdict{Table: "inet corp", Chain: "fw", Verdict: "accept"}
	drop := plan.HostVerdict{Table: "inet corp", Chain: "fw", Handle: 4, Rule: "tcp dport 80 drop", Verdict: "drop"}
	late := drop
	late.Answer = true
	layers := func(d *api.ExplainPath) (out string) {
		for _, s := range d.Steps {
			out += s.Layer
			if !s.Pass {
				out += "!"
			}
			out += " "
		}
		return out
	}
	for _, c := range []struct {
		name      string
		reachable bool
		list      []plan.HostVerdict
		steps     string
		arrives   bool
		doubts    int
	}{
		{"nothing was seen", true, nil, "route firewall mtu ", true, 2},
		{"accepted", true, []plan.HostVerdict{accept}, "route firewall firewall mtu ", true, 1},
		{"dropped", true, []plan.HostVerdict{accept, drop}, "route firewall firewall firewall! ", false, 1},
		{"the answer dropped", true, []plan.HostVerdict{accept, late}, "route firewall mtu firewall firewall! ", false, 1},
	} {
		d := doc()
		addVerdicts(d, &plan.Explanation{Reachable: c.reachable}, c.list, 6)
		if layers(d) != c.steps || d.Reachable != c.arrives || len(d.Doubts) != c.doubts || len(d.Probe.Firewalls) != len(c.list) {
			t.Errorf("%s: %s, %+v", c.name, layers(d), d)
		}
		if !c.arrives && d.Next != "nft delete rule inet corp fw handle 4" {
			t.Errorf("%s: next is %s", c.name, d.Next)
		}
	}
	d := doc()
	d.Reachable = false
	addVerdicts(d, &plan.Explanation{}, []plan.HostVerdict{drop}, 6)
	if layers(d) != layers(doc()) || d.Next != "x" || len(d.Probe.Firewalls) != 1 {
		t.Errorf("unreachable anyway: %+v", d)
	}
}
