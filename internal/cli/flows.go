package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newFlowsCmd(a *app) *cobra.Command {
	o := api.FlowOptions{}
	cmd := &cobra.Command{
		Use:   "flows [flags] [NAME…]",
		Short: "Show which connections there are, and which rules let them pass",
		Long: `Shows the live connections over the switches, of the containers or endpoints named (host
is a name too, and so is any address), or all: who opened them, how far they have come,
their age, how long they have been silent, how much went each way, and the rules that let
them out of the source and into the destination. --recent adds those that have ended, and
those that a policy blocked.`,
		Example:           "  bulkhead flows\n  bulkhead flows web --proto tcp --port 80 --recent\n  bulkhead flows -f 198.51.100.7",
		ValidArgsFunction: a.completeEndpoints,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on with what begins, ends and is blocked, until interrupted")
	flags.BoolVar(&o.Recent, "recent", false, "also those that have ended, and those that were blocked")
	flags.StringVar(&o.Protocol, "proto", "", "only tcp, udp, icmp, icmpv6, sctp or a number")
	flags.Uint16Var(&o.Port, "port", 0, "only this port, at either end")
	flags.StringVar(&o.Sort, "sort", api.SortBytes, "bytes: the largest first; age: the youngest first")
	flags.IntVarP(&o.Limit, "limit", "n", 50, "at most so many")
	complete(cmd, "proto", "icmp", "icmpv6", "sctp", "tcp", "udp")
	complete(cmd, "sort", api.SortBytes, api.SortAge)
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		o.Endpoints = args
		p := flowPrinter{a: a, form: form, follow: o.Follow}
		if err := c.Flows(cmd.Context(), o, p.line); err != nil {
			return err
		}
		return p.end()
	})
	return cmd
}

// flowPrinter prints lines: at once when it follows, else when all are there.
type flowPrinter struct {
	a      *app
	form   string
	follow bool
	flows  []api.Flow
	rest   uint64
	lost   uint64
}

func (p *flowPrinter) line(l api.FlowLine) error {
	if !p.follow {
		if l.Flow != nil {
			p.flows = append(p.flows, *l.Flow)
		}
		p.rest += l.NotShown
		p.lost += l.Lost
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
	case l.Flow == nil && p.form == outputTable:
		return p.missing(l.NotShown, l.Lost)
	case l.Flow == nil:
		return nil
	case p.form == outputName:
		_, err := fmt.Fprintln(w, clean(flowName(*l.Flow)))
		return err
	}
	_, err := fmt.Fprintln(w, flowLine(l.Flow, p.a.colour()))
	return err
}

func (p *flowPrinter) end() error {
	if p.follow {
		return nil
	}
	if p.form == outputJSON {
		return writeJSON(p.a.Stdout, struct {
			Flows    []api.Flow `json:"flows"`
			NotShown uint64     `json:"notShown"`
			Lost     uint64     `json:"lost"`
		}{append([]api.Flow{}, p.flows...), p.rest, p.lost})
	}
	now := p.a.Now()
	err := show(p.a, p.form, listing[api.Flow]{
		items: p.flows,
		name:  flowName,
		head:  []string{"NETWORK", "PROTOCOL", "FROM", "TO", "STATE", "AGE", "IDLE", "SENT", "RECEIVED", "VERDICT"},
		row: func(f api.Flow) []any {
			return []any{
				orDash(f.Network), f.Protocol, endText(&f.Source, f.Protocol), endText(&f.Destination, f.Protocol),
				cell{f.State, flowStyle(&f)},
				shortTime(now.Sub(f.Opened)), shortTime(now.Sub(f.Seen)), size(int64(f.BytesSent)), size(int64(f.BytesReceived)), verdictText(&f),
			}
		},
	})
	if err == nil && p.form == outputTable {
		err = p.missing(p.rest, p.lost)
	}
	return err
}

// missing tells how many flows have no line.
func (p *flowPrinter) missing(rest, lost uint64) error {
	if rest > 0 {
		if _, err := fmt.Fprintln(p.a.Stdout, notShown(rest)); err != nil {
			return err
		}
	}
	if lost == 0 {
		return nil
	}
	_, err := fmt.Fprintf(p.a.Stdout, "%d that ended were lost: the kernel's buffer was full, so nobody knows whose they were\n", lost)
	return err
}

func flowName(f api.Flow) string { return cmp.Or(f.Source.Name, f.Source.Address) }

func flowStyle(f *api.Flow) style {
	switch {
	case f.State == api.FlowBlocked:
		return yellow
	case f.Live:
		return green
	}
	return dim
}

func flowLine(f *api.Flow, colour bool) string {
	return strings.Join([]string{
		f.Seen.UTC().Format(dropTime), clean(orDash(f.Network)), clean(f.Protocol),
		clean(endText(&f.Source, f.Protocol)) + " → " + clean(endText(&f.Destination, f.Protocol)),
		paint(clean(f.State), flowStyle(f), colour), size(int64(f.BytesSent)) + " sent", size(int64(f.BytesReceived)) + " received", clean(verdictText(f)),
	}, "  ")
}

// endText is an end by its name, else by its address. The identifier of an echo is no port.
func endText(e *api.FlowEnd, protocol string) string {
	name := cmp.Or(e.Name, e.Address)
	if e.Port == 0 || strings.HasPrefix(protocol, "icmp") {
		return name
	}
	return withPorts(name, e.Port)
}

// verdictText says which rules decided.
func verdictText(f *api.Flow) string {
	out, in := ruleName(f.RuleOut), ruleName(f.RuleIn)
	switch {
	case f.State == api.FlowBlocked && f.Reason == "isolated":
		return "blocked: the endpoint is isolated"
	case f.State == api.FlowBlocked:
		return "blocked by " + cmp.Or(in, out, "the default of "+f.Reason)
	case out == "" && in == "":
		return "allowed"
	case out == "" || in == "":
		return "allowed by " + cmp.Or(out, in)
	}
	return "allowed by " + out + " and " + in
}

// ruleName is short enough for a column.
func ruleName(r *api.DropRule) string {
	if r != nil && r.ID != "" {
		return r.ID
	}
	return ruleText(r)
}

// shortTime is a span in one or two units.
func shortTime(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	case d < 24*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
