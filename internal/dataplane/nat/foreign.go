package nat

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// ForeignFilters are the base chains of others, and what else of theirs may stop packets in
// the host's stack. Nothing is changed, and what their rules match is not looked into.
type ForeignFilters struct {
	Chains []plan.ForeignChain
	// Unread says why tables of iptables-legacy could not be read, in IPv4 and in IPv6.
	Unread [2]string
	// BridgeFilter: br_netfilter shows bridged frames to the chains.
	BridgeFilter bool
}

// ForeignFilters reads them.
func (a *Applier) ForeignFilters(context.Context) (ForeignFilters, error) {
	var out ForeignFilters
	c, err := nftables.New(nftables.WithNetNSFd(a.k.netns))
	if err != nil {
		return out, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return out, fmt.Errorf("list chains: %w", err)
	}
	drops := map[string]bool{} // by table
	rules := map[*nftables.Chain]int{}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ours(ch.Table) || !seesIP(ch.Table.Family) })
	for _, ch := range chains {
		list, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return out, fmt.Errorf("list rules of table %s, chain %s: %w", tableTitle(ch.Table), ch.Name, err)
		}
		rules[ch] = len(list)
		if slices.ContainsFunc(list, ruleDrops) {
			drops[tableTitle(ch.Table)] = true
		}
	}
	for _, ch := range chains {
		if ch.Hooknum == nil {
			continue
		}
		out.Chains = append(out.Chains, plan.ForeignChain{
			Table: tableTitle(ch.Table), Chain: ch.Name, Hook: hookName(*ch.Hooknum), Rules: rules[ch],
			V4: ch.Table.Family != nftables.TableFamilyIPv6, V6: ch.Table.Family != nftables.TableFamilyIPv4,
			DropPolicy: ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop,
			Drops:      drops[tableTitle(ch.Table)] && rules[ch] > 0,
		})
	}
	slices.SortFunc(out.Chains, func(x, y plan.ForeignChain) int {
		return cmp.Or(cmp.Compare(x.Table, y.Table), cmp.Compare(x.Chain, y.Chain))
	})
	return out, a.inNetns(func() error {
		for i, f := range legacyFamilies() {
			tables, err := legacyTables(&f)
			if err != nil {
				out.Unread[i] = err.Error()
			}
			for _, t := range tables {
				out.Chains = append(out.Chains, t.chains(&f)...)
			}
		}
		out.BridgeFilter = settingIs("net/bridge/bridge-nf-call-iptables", "1") || settingIs("net/bridge/bridge-nf-call-ip6tables", "1")
		return nil
	})
}

func ours(t *nftables.Table) bool {
	return t.Family == nftables.TableFamilyINet && (t.Name == TableName || t.Name == TraceTable)
}

func seesIP(f nftables.TableFamily) bool {
	return f == nftables.TableFamilyINet || f == nftables.TableFamilyIPv4 || f == nftables.TableFamilyIPv6
}

func tableTitle(t *nftables.Table) string { return familyName(t.Family) + " " + t.Name }

func hookName(h nftables.ChainHook) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting"}
	if int(h) < len(names) {
		return names[h]
	}
	return fmt.Sprintf("hook %d", h)
}

func ruleDrops(r *nftables.Rule) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Verdict:
			return e.Kind == expr.VerdictDrop
		case *expr.Reject:
			return true
		case *expr.Target: // by iptables-nft
			return e.Name == "REJECT"
		}
		return false
	})
}
