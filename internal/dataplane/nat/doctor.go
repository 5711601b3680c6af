package nat

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
)

// Foreign describes what other firewalls on the host do to forwarded traffic, one sentence each. Nothing of it is
// changed by us: a drop of theirs stays a drop.
func (a *Applier) Foreign(context.Context) ([]string, error) {
	c, err := nftables.New(nftables.WithNetNSFd(a.k.netns))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var out []string
	for _, t := range tables {
		if t.Family != nftables.TableFamilyBridge && isIptables(t.Name) {
			out = append(out, fmt.Sprintf("table %s %s: written by iptables-nft or compatible with it", familyName(t.Family), t.Name))
		}
	}
	for _, ch := range chains {
		if ours(ch.Table) {
			continue
		}
		if ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			out = append(out, fmt.Sprintf("table %s %s, chain %s: drops forwarded traffic unless a rule of it accepts; containers and published ports need one",
				familyName(ch.Table.Family), ch.Table.Name, ch.Name))
		}
	}
	err = a.inNetns(func() error {
		out = append(out, foreignSettings()...)
		return nil
	})
	return out, err
}

func isIptables(name string) bool {
	switch name {
	case "filter", "nat", "mangle", "raw", "security":
		return true
	}
	return false
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyBridge:
		return "bridge"
	default:
	}
	return fmt.Sprint(f)
}

// foreignSettings looks at what is not nftables: the old iptables tables, br_netfilter, route_localnet for all.
func foreignSettings() []string {
	var out []string
	for _, f := range legacyFamilies() {
		tables, err := legacyTables(&f)
		if err != nil {
			out = append(out, f.tool+": there are tables that cannot be read, and may decide: "+err.Error())
		}
		if text := legacyText(&f, tables); text != "" {
			out = append(out, text)
		}
	}
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if settingIs("net/bridge/"+name, "1") {
			out = append(out, "br_netfilter is loaded and "+name+" is 1: frames inside other tools' bridges pass the host's firewall")
		}
	}
	if settingIs("net/ipv4/conf/all/route_localnet", "1") {
		out = append(out, "net.ipv4.conf.all.route_localnet is 1: other hosts on the link can send to services that listen on 127.0.0.1 only")
	}
	return out
}

func settingIs(name, want string) bool {
	b, err := os.ReadFile("/proc/sys/" + name)
	return err == nil && strings.TrimSpace(string(b)) == want
}
