package cli

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
)

// The exit codes of explain.
const (
	exitUnreachable = 1
	exitNoAnswer    = 2 // neither reachable nor not: an error
)

func newExplainCmd(a *app) *cobra.Command {
	o := api.ExplainOptions{}
	var only4, only6 bool
	cmd := &cobra.Command{
		Use:   "explain [flags] FROM TO [PROTOCOL[/PORT]]",
		Short: "Explain whether a packet arrives, layer after layer",
		Long: `Follows the first packet of a flow from end to end, in each family: names, routes of the
compartment, source guard, rules, isolation, translation, and the host's own and other
people's firewalls; says which rule decides, and the command that changes it. FROM and TO
are containers, endpoints, addresses, host, or outside. Without a protocol it is an echo.
The loaded program is asked about the same packet, and a difference is told as a fault of
ours. --probe sends a real packet too. Exit codes: 0 it arrives in every family, 1 it does
not, 2 an error.`,
		Example: `  bulkhead explain web db tcp/5432
  bulkhead explain web 198.51.100.7 udp/53 -4
  bulkhead explain outside web tcp/8080
  bulkhead explain host web --probe`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := needArgs(2, 3, "other end of the way")(cmd, args); err != nil {
				return &exitError{exitNoAnswer, err}
			}
			return nil
		},
	}
	cmd.ValidArgsFunction = a.completeEach(a.completeEndpoints, a.completeEndpoints)
	form := outputFlag(cmd, outputTable)
	flags := cmd.Flags()
	flags.BoolVarP(&only4, "ipv4", "4", false, "only IPv4")
	flags.BoolVarP(&only6, "ipv6", "6", false, "only IPv6")
	flags.BoolVar(&o.Probe, "probe", false, "send a real packet from the compartment or from the host")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		x, err := func() (api.Explanation, error) {
			if err := checkOutput(*form); err != nil {
				return api.Explanation{}, err
			}
			if err := explainArgs(&o, args, only4, only6); err != nil {
				return api.Explanation{}, err
			}
			c, err := a.client()
			if err != nil {
				return api.Explanation{}, err
			}
			return c.Explain(cmd.Context(), o)
		}()
		if err == nil {
			err = a.showExplanation(*form, &x)
		}
		if err != nil {
			return &exitError{exitNoAnswer, err}
		}
		return explainCode(&x)
	}
	return cmd
}

func explainArgs(o *api.ExplainOptions, args []string, only4, only6 bool) error {
	o.From, o.To = args[0], args[1]
	switch {
	case only4 && only6:
		return api.Errorf(api.KindInvalid, "-4 and -6 exclude each other").Hint("leave both out for both families")
	case only4:
		o.Family = 4
	case only6:
		o.Family = 6
	}
	if len(args) < 3 {
		return nil
	}
	proto, port, ok := strings.Cut(args[2], "/")
	o.Protocol = proto
	if !ok {
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return api.Errorf(api.KindInvalid, "%q is not a port", port).Hint("write tcp/80, udp/53 or icmp")
	}
	o.Port = uint16(n)
	return nil
}

// explainCode is an error for a fault of ours, and says no without a word.
func explainCode(x *api.Explanation) error {
	for _, p := range x.Paths {
		if len(p.Disagreements) > 0 {
			return &exitError{exitNoAnswer, api.Errorf(api.KindInternal, "the explanation is wrong: %s", p.Disagreements[0]).
				Hint("try again when nothing is being changed; if it stays, please report it with the output of -o json")}
		}
	}
	if !x.Reachable {
		return &exitError{code: exitUnreachable}
	}
	return nil
}

func (a *app) showExplanation(form string, x *api.Explanation) error {
	switch form {
	case outputJSON:
		return writeJSON(a.Stdout, x)
	case outputName:
		_, err := fmt.Fprintln(a.Stdout, verdictWord(x.Reachable))
		return err
	}
	for i := range x.Paths {
		if i > 0 {
			fmt.Fprintln(a.Stdout)
		}
		if err := a.showPath(x, &x.Paths[i]); err != nil {
			return err
		}
	}
	return nil
}

func verdictWord(ok bool) string {
	if ok {
		return "reachable"
	}
	return "unreachable"
}

func (a *app) showPath(x *api.Explanation, p *api.ExplainPath) error {
	colour := a.colour()
	what := x.Protocol
	if x.Port != 0 {
		what += fmt.Sprintf("/%d", x.Port)
	}
	w := a.Stdout
	fmt.Fprintf(w, "%s → %s %s, IPv%d: %s → %s\n", clean(x.From), clean(x.To), clean(what), p.Family,
		clean(cmp.Or(p.Source, "?")), clean(cmp.Or(p.Destination, "?")))
	t := newTable("  LAYER", "AT", "", "WHAT HAPPENS")
	for _, s := range p.Steps {
		mark := cell{"ok", green}
		if !s.Pass {
			mark = cell{"STOP", red}
		}
		at := orDash(s.At)
		if s.Host != "" {
			at += " on " + s.Host
		}
		t.row("  "+s.Layer, at, mark, s.Text+ruleNote(s.Rule))
	}
	if err := t.write(w, colour); err != nil {
		return err
	}
	st := green
	if !p.Reachable {
		st = red
	}
	writeFact(w, "verdict", paint(verdictWord(p.Reachable), st, colour)+": "+clean(p.Summary))
	if p.Unasked != "" {
		writeFact(w, "not asked", clean(p.Unasked))
	}
	if p.Reachable {
		for _, d := range p.Doubts {
			if d == p.Unasked {
				continue
			}
			writeFact(w, "unless", clean(d))
		}
	}
	if p.Confirmed > 0 && len(p.Disagreements) == 0 {
		writeFact(w, "confirmed", "the loaded program does the same on "+plural(p.Confirmed, "switch leg"))
	}
	if p.Probe != nil {
		text := clean(p.Probe.Text)
		if !p.Probe.Agrees {
			text += paint(" (the explanation says otherwise)", red, colour)
		}
		writeFact(w, "probe", text)
		if p.Probe.Untraced != "" {
			writeFact(w, "untraced", clean(p.Probe.Untraced))
		}
	}
	if p.Next != "" {
		next := "next"
		if p.Host != "" {
			next += " on " + p.Host
		}
		writeFact(w, next, clean(p.Next))
	}
	return nil
}

func writeFact(w io.Writer, name, text string) { fmt.Fprintf(w, "  %s: %s\n", name, text) }

// ruleNote is a rule's ID and what it has counted; its text is the step's.
func ruleNote(r *api.Rule) string {
	if r == nil {
		return ""
	}
	s := fmt.Sprintf(" [rule %08x", r.Number)
	if r.ID != "" {
		s = " [rule " + r.ID
	}
	return s + fmt.Sprintf(", decided %s, %s]", plural(int(r.Matches), "time"), size(int64(r.Bytes)))
}
