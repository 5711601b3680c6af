package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// planned gives a command that changes something --dry-run: its changes become questions, and
// what the daemon answers is printed instead of what the command prints.
func (a *app) planned(cmd *cobra.Command) *cobra.Command {
	run := cmd.RunE
	if verb, rest, _ := strings.Cut(cmd.Use, " "); !strings.Contains(rest, "[flags]") {
		cmd.Use = strings.TrimSpace(verb + " [flags] " + rest)
	}
	dry, form := PlanFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !*dry {
			if cmd.Flags().Changed("output") {
				return api.Errorf(api.KindInvalid, "--output is for what --dry-run prints").Hint("add --dry-run, or drop it")
			}
			return run(cmd, args)
		}
		if err := CheckPlanForm(*form); err != nil {
			return err
		}
		var plans []api.Plan
		a.plans = func(p api.Plan) { plans = append(plans, p) }
		defer func() { a.plans = nil }()
		err := notPlanned(run(cmd, args))
		if len(plans) == 0 && err == nil {
			plans = []api.Plan{{Objects: []api.PlanObject{}}}
		}
		for _, p := range plans {
			if werr := WritePlan(a.Stdout, *form, p); werr != nil {
				return errors.Join(err, werr)
			}
		}
		return err
	}
	return cmd
}

// PlanFlags gives a command --dry-run, and the form of what that prints.
func PlanFlags(cmd *cobra.Command) (dry *bool, form *string) {
	dry = cmd.Flags().Bool("dry-run", false, "change nothing: print what would change in the kernel")
	form = cmd.Flags().StringP("output", "o", outputTable, "form of what --dry-run prints: table or json")
	complete(cmd, "output", outputTable, outputJSON)
	return dry, form
}

// CheckPlanForm refuses a form that [WritePlan] does not have.
func CheckPlanForm(form string) error {
	if form != outputTable && form != outputJSON {
		return api.Errorf(api.KindInvalid, "--output %q is not known", form).Hint("use table or json")
	}
	return nil
}

// notPlanned takes out of an error what only says that nothing was changed.
func notPlanned(err error) error {
	if !errors.Is(err, client.ErrPlanned) {
		return err
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var rest []error
	for _, e := range joined.Unwrap() {
		rest = append(rest, notPlanned(e))
	}
	return errors.Join(rest...)
}

// WritePlan prints what would change in the kernel: for eyes, or as JSON when form is "json".
func WritePlan(w io.Writer, form string, p api.Plan) error {
	if form == outputJSON {
		b, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	}
	if len(p.Objects) == 0 {
		_, err := fmt.Fprintln(w, "nothing would change in the kernel")
		return err
	}
	for _, o := range p.Objects {
		if _, err := fmt.Fprintln(w, clean(o.Object)); err != nil {
			return err
		}
		last := ""
		for _, c := range o.Changes {
			owner := ""
			if c.For != nil {
				owner = c.For.Kind + " " + cmp.Or(c.For.Name, c.For.ID)
			}
			note := ""
			if owner != last && owner != "" {
				note = "    (" + clean(owner) + ")"
			}
			last = owner
			if _, err := fmt.Fprintf(w, "  %s %s%s\n", signOf(c.Action), clean(c.Text), note); err != nil {
				return err
			}
		}
	}
	return nil
}

func signOf(action string) string {
	switch action {
	case "add":
		return "+"
	case "remove":
		return "-"
	}
	return "~"
}
