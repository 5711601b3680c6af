package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// firewallLayer is the layer of other people's tables.
const firewallLayer = "firewall"

// addProbe sends the packet and tells what it met. What the kernel says of the host's tables goes where the explanation had
// only named them.
func (e *Engine) addProbe(ctx context.Context, doc *api.ExplainPath, q *plan.Inquiry, way *plan.Explanation) {
	p, verdicts := e.probe(ctx, q, way)
	doc.Probe = p
	addVerdicts(doc, way, verdicts, q.Protocol)
}

func addVerdicts(doc *api.ExplainPath, way *plan.Explanation, verdicts []plan.HostVerdict, protocol uint8) {
	var steps []api.ExplainStep
	for i := range verdicts {
		v := &verdicts[i]
		doc.Probe.Firewalls = append(doc.Probe.Firewalls, api.FirewallVerdict{
			Table: v.Table, Chain: v.Chain, Tool: v.Tool, Counted: v.Counted, Handle: v.Handle, Rule: v.Rule, Verdict: v.Verdict, Answer: v.Answer,
		})
		if !way.Reachable { // the explanation has an end already, and the probe's text says the rest
			continue
		}
		text := "probe: " + verdictText(v)
		if v.Answer {
			text = "probe, the answer: " + verdictText(v)
		}
		steps = append(steps, api.ExplainStep{Layer: firewallLayer, Pass: !v.Drops(), Text: text})
		doc.Doubts = slices.DeleteFunc(doc.Doubts, func(d string) bool { // settled
			return strings.HasPrefix(d, v.Where()+" ")
		})
		if !v.Drops() {
			continue
		}
		doc.Steps = insertFirewall(doc.Steps, steps, !v.Answer)
		doc.Reachable, doc.Reason, doc.Rule = false, "", nil
		doc.Summary, doc.Next = "stopped by the host's firewall: "+verdictText(v), firewallCommand(v, protocol, len(way.Legs) > 0 && v.Src == way.Legs[0].Packet.Src)
		if v.Counted > 0 {
			doc.Summary = "by all signs stopped by the host's firewall: " + verdictText(v)
		}
		if v.Answer {
			doc.Summary = "it arrives, but the host's firewall stops the answer: " + verdictText(v)
		}
		return
	}
	doc.Steps = insertFirewall(doc.Steps, steps, false)
}

// insertFirewall puts steps behind the last that speaks of firewalls; what would come after a stop does not happen.
func insertFirewall(all, steps []api.ExplainStep, stop bool) []api.ExplainStep {
	if len(steps) == 0 {
		return all
	}
	at := len(all)
	for i, s := range all {
		if s.Layer == firewallLayer {
			at = i + 1
		}
	}
	if stop {
		return append(slices.Clone(all[:at]), steps...)
	}
	if last := len(all) - 1; last >= 0 && !steps[len(steps)-1].Pass {
		at = len(all) // the answer comes last
	}
	return slices.Insert(slices.Clone(all), at, steps...)
}

// verdictText says who decided, and what.
func verdictText(v *plan.HostVerdict) string {
	does := map[string]string{"drop": "drops it", "accept": "accepts it", "queue": "gives it to a program", "stolen": "takes it away"}[v.Verdict]
	switch {
	case v.Tool != "":
		rule := "the policy DROP"
		if v.Handle != 0 {
			rule = fmt.Sprintf("rule %d (%s)", v.Handle, v.Rule)
		}
		return fmt.Sprintf("%s: %s has counted %d while the probe had no answer", v.Where(), rule, v.Counted)
	case v.Handle == 0:
		return v.Where() + ": the policy " + does
	case v.Rule == "":
		return fmt.Sprintf("%s: the rule with handle %d %s", v.Where(), v.Handle, does)
	}
	return fmt.Sprintf("%s: rule %q (handle %d) %s", v.Where(), v.Rule, v.Handle, does)
}

// firewallCommand is what changes a drop by a table that is not ours, in the words of the tool whose table it is. A rule of a
// tool that keeps rules of its own is not taken away behind its back. inside says that the packet is a container's.
func firewallCommand(v *plan.HostVerdict, protocol uint8, inside bool) string {
	family, name, _ := strings.Cut(v.Table, " ")
	match := ""
	if v.Src.IsValid() && v.Dst.Addr().IsValid() {
		match = fmt.Sprintf("from %s to %s", v.Src, v.Dst.Addr())
		if port := v.Dst.Port(); port != 0 {
			match = fmt.Sprintf("proto %s %s port %d", protocolWord(protocol), match, port)
		}
	}
	switch {
	case v.Tool != "":
		return v.Tool + " -t " + v.Table + " -L " + v.Chain + " -n -v --line-numbers"
	case v.Own():
		return "nft -a list chain " + v.Table + " " + v.Chain
	case byFirewalld(name, v.Chain) && v.Src.IsValid() && inside:
		return "firewall-cmd --zone=trusted --add-source=" + v.Src.String()
	case byFirewalld(name, v.Chain):
		return "firewall-cmd --list-all-policies && firewall-cmd --list-all-zones"
	case v.Keeper == "ufw" && match != "":
		return ufwCommand(v.Chain) + match
	case family == "ip" && isIPTables(name):
		return "iptables -t " + name + " -L " + v.Chain + " -n -v --line-numbers"
	case family == "ip6" && isIPTables(name):
		return "ip6tables -t " + name + " -L " + v.Chain + " -n -v --line-numbers"
	case v.Handle != 0:
		return fmt.Sprintf("nft delete rule %s %s handle %d", v.Table, v.Chain, v.Handle)
	case v.Src.IsValid():
		word := "ip"
		if v.Src.Is6() {
			word = "ip6"
		}
		return fmt.Sprintf("nft insert rule %s %s %s saddr %s %s daddr %s accept", v.Table, v.Chain, word, v.Src, word, v.Dst.Addr())
	}
	return "nft -a list chain " + v.Table + " " + v.Chain
}

// byFirewalld tells that a chain is firewalld's: it has a table of its own, or with its older backend chains of zones among those
// of iptables.
func byFirewalld(table, chain string) bool {
	return table == "firewalld" || isIPTables(table) && strings.HasPrefix(chain, "FWD_")
}

// ufwCommand puts a rule before all others of the same direction.
func ufwCommand(chain string) string {
	switch chain = strings.ToLower(chain); {
	case strings.Contains(chain, "forward"):
		return "ufw route prepend allow "
	case strings.Contains(chain, "output"):
		return "ufw prepend allow out "
	}
	return "ufw prepend allow "
}

func isIPTables(table string) bool {
	return slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, table)
}
