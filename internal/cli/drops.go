package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newDropsCmd(a *app) *cobra.Command {
	o := api.DropOptions{}
	cmd := &cobra.Command{
		Use:   "drops [flags] [NAME…]",
		Short: "Show which frames were dropped, why, and by which rule",
		Long: `Shows what the switches dropped lately, at the containers or endpoints named (host and
resolver are names too), or anywhere: when, whose, on the way out or in, the packet, the
reason, the rule that decided, and the command that shows it. Of a flood only samples are
shown; how many frames there were besides is told.`,
		Example:           "  bulkhead drops\n  bulkhead drops -f web\n  bulkhead drops --reason source-address --reason source-mac",
		ValidArgsFunction: a.completeEndpoints,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is dropped, until interrupted")
	flags.IntVarP(&o.Tail, "tail", "n", 20, "number of past drops; negative: all that are kept")
	flags.StringSliceVar(&o.Reasons, "reason", nil, "only for these reasons, by the word in the listing")
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		o.Endpoints = args
		p := dropPrinter{a: a, form: form, follow: o.Follow}
		if err := c.Drops(cmd.Context(), o, p.line); err != nil {
			return err
		}
		return p.end()
	})
	return cmd
}

// dropPrinter prints lines: at once when it follows, else when all are there, so that
// columns fit.
type dropPrinter struct {
	a      *app
	form   string
	follow bool
	drops  []api.Drop
	rest   uint64
	at     []api.DropRest
}

func (p *dropPrinter) line(l api.DropLine) error {
	if !p.follow {
		if l.Drop != nil {
			p.drops = append(p.drops, *l.Drop)
		}
		p.rest += l.NotShown
		p.at = append(p.at, l.NotShownAt...)
		return nil
	}
	w := p.a.Stdout
	switch {
	case p.form == outputJSON: // one line each, for programs that follow
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, string(b))
		return err
	case l.Drop == nil && p.form == outputTable:
		_, err := fmt.Fprintln(w, notShown(l.NotShown)+restText(l.NotShownAt))
		return err
	case l.Drop == nil:
		return nil
	case p.form == outputName:
		_, err := fmt.Fprintln(w, clean(l.Drop.Name))
		return err
	}
	_, err := fmt.Fprintln(w, dropLine(l.Drop, p.a.colour()))
	return err
}

func (p *dropPrinter) end() error {
	if p.follow {
		return nil
	}
	if p.form == outputJSON {
		return writeJSON(p.a.Stdout, struct {
			Drops      []api.Drop     `json:"drops"`
			NotShown   uint64         `json:"notShown"`
			NotShownAt []api.DropRest `json:"notShownAt"`
		}{append([]api.Drop{}, p.drops...), p.rest, append([]api.DropRest{}, p.at...)})
	}
	err := show(p.a, p.form, listing[api.Drop]{
		items: p.drops,
		name:  func(d api.Drop) string { return d.Name },
		head:  []string{"TIME", "ENDPOINT", "NETWORK", "WAY", "PACKET", "REASON", "RULE", "NEXT"},
		row: func(d api.Drop) []any {
			return []any{
				d.Time.UTC().Format(dropTime), cmp.Or(d.Name, "-"), cmp.Or(d.Network, "-"), d.Direction, packetText(&d),
				cell{d.Reason + ": " + d.Explanation, yellow},
				cmp.Or(ruleText(d.Rule), "-"),
				cell{d.Next, dim},
			}
		},
	})
	if err == nil && p.rest > 0 && p.form == outputTable {
		_, err = fmt.Fprintln(p.a.Stdout, notShown(p.rest)+restText(p.at))
	}
	return err
}

const dropTime = "2006-01-02T15:04:05.000Z"

func notShown(n uint64) string { return fmt.Sprintf("%d more not shown", n) }

// restText says of the most numerous where and why.
func restText(at []api.DropRest) string {
	const most = 4
	var parts []string
	for _, r := range at[:min(len(at), most)] {
		parts = append(parts, fmt.Sprintf("%s %s %d", cmp.Or(r.Name, "-"), r.Reason, r.Packets))
	}
	if len(at) > most {
		parts = append(parts, "…")
	}
	if len(parts) == 0 {
		return ""
	}
	return clean(": " + strings.Join(parts, ", "))
}

func dropLine(d *api.Drop, colour bool) string {
	parts := []string{
		d.Time.UTC().Format(dropTime), clean(cmp.Or(d.Name, "-")), d.Direction, clean(packetText(d)),
		paint(clean(d.Reason+": "+d.Explanation), yellow, colour),
	}
	if r := ruleText(d.Rule); r != "" {
		parts = append(parts, clean(r))
	}
	if d.Next != "" {
		parts = append(parts, paint(clean("("+d.Next+")"), dim, colour))
	}
	return strings.Join(parts, "  ")
}

// packetText is a packet in a few words.
func packetText(d *api.Drop) string {
	s := d.Source + " → " + d.Destination + " " + d.Protocol
	if d.ICMPType != nil {
		s += fmt.Sprintf(" type %d", *d.ICMPType)
	}
	return s
}

// ruleText names a rule as its author did.
func ruleText(r *api.DropRule) string {
	switch {
	case r == nil:
		return ""
	case r.Default:
		return "default of the " + cmp.Or(r.Tier, r.Layer) + " rules"
	case r.ID != "" && r.Text != "":
		return r.ID + " (" + r.Text + ")"
	}
	return cmp.Or(r.ID, r.Text, fmt.Sprintf("rule %d, removed since", r.Number))
}
