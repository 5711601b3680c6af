package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newRulesCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules NAME",
		Short: "Show the rules of a container or an endpoint as the switch evaluates them",
		Long: `Shows the rules of each of its ports in the order of evaluation, for what it sends (out)
and for what it receives (in): the first one that matches decides, and one that passes
goes on at the next layer. The last line of a direction is its default. MATCHES counts how
often a rule decided: once for each connection, and for each packet that belongs to none.`,
		Example: "  bulkhead rules web\n  bulkhead rules web -o json",
		Args:    needArgs(1, 1, "container or endpoint"),
	}
	cmd.ValidArgsFunction = a.completeFirst(a.completeEndpoints)
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		list, err := c.Rules(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if form == outputJSON {
			return writeJSON(a.Stdout, list)
		}
		return a.showRules(form, list)
	})
	return cmd
}

func (a *app) showRules(form string, list []api.EndpointRules) error {
	for i := range list {
		e := &list[i]
		if form == outputTable {
			if i > 0 {
				fmt.Fprintln(a.Stdout)
			}
			fmt.Fprintln(a.Stdout, clean(rulesHead(e)))
		}
		items := withDefaults(e)
		if form == outputName {
			items = e.Rules
		}
		err := show(a, form, listing[api.Rule]{
			items: items,
			name:  func(r api.Rule) string { return ruleName(&r.DropRule) },
			head:  []string{"WAY", "LAYER", "PRIORITY", "ID", "ACTION", "MATCHES", "PACKETS", "BYTES", "RULE"},
			row:   ruleRow,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func rulesHead(e *api.EndpointRules) string {
	s := fmt.Sprintf("%s on network %s, endpoint %s", e.Name, e.Network, e.Endpoint)
	if e.Isolated {
		s += "; isolated from other containers"
	}
	if e.RateOut > 0 {
		s += "; sends at most " + size(int64(e.RateOut)) + "/s"
	}
	if e.RateIn > 0 {
		s += "; receives at most " + size(int64(e.RateIn)) + "/s"
	}
	return s
}

// withDefaults adds a line for what each direction does in the end.
func withDefaults(e *api.EndpointRules) []api.Rule {
	var out []api.Rule
	for _, d := range []struct{ way, fallback string }{{api.DirectionOut, e.DefaultOut}, {api.DirectionIn, e.DefaultIn}} {
		for _, r := range e.Rules {
			if r.Direction == d.way {
				out = append(out, r)
			}
		}
		out = append(out, api.Rule{DropRule: api.DropRule{Text: "everything else", Default: true}, Direction: d.way, Action: d.fallback})
	}
	return out
}

func ruleRow(r api.Rule) []any {
	if r.Number == 0 { // the default, which counts nothing
		return []any{r.Direction, "default", "-", "-", actionCell(r.Action), "-", "-", "-", r.Text}
	}
	layer, priority := r.Layer, "-"
	if r.Tier != "" {
		layer += " " + r.Tier
	}
	if r.Priority > 0 {
		priority = fmt.Sprint(r.Priority)
	}
	return []any{r.Direction, layer, priority, orDash(r.ID), actionCell(r.Action), r.Matches, r.Packets, size(int64(r.Bytes)), r.Text}
}

func actionCell(action string) cell {
	switch action {
	case "block":
		return cell{action, red}
	case "allow":
		return cell{action, green}
	}
	return cell{action, plain}
}
