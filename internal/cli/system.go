package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newDoctorCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host and the daemon",
		Long: `Checks what the kernel can do, forwarding, other firewalls, leftovers and the daemon
itself, and says what to do about what is wrong. The exit code is 1 if something
is.`,
		Example: "  bulkhead doctor",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		checks, err := c.Doctor(cmd.Context())
		if err != nil {
			return err
		}
		if err := a.showChecks(form, checks); err != nil {
			return err
		}
		for _, check := range checks {
			if check.Status == "fail" {
				return &exitError{code: 1}
			}
		}
		return nil
	})
	return cmd
}

func (a *app) showChecks(form string, checks []api.Check) error {
	if form != outputTable {
		return show(a, form, listing[api.Check]{items: checks, name: func(c api.Check) string { return c.Name }})
	}
	colours := map[string]style{"ok": green, "warn": yellow, "fail": red}
	for _, c := range checks {
		line := paint(pad(clean(c.Status), 4), colours[c.Status], a.colour()) + "  " + clean(c.Name)
		if c.Detail != "" {
			line += ": " + clean(c.Detail)
		}
		if c.Next != "" {
			line += "\n      next: " + clean(c.Next)
		}
		if _, err := fmt.Fprintln(a.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}

func newInfoCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "info",
		Short:   "Show what the daemon is and holds",
		Long:    "Shows the daemon's version, the host it runs on, and how many objects it holds.",
		Example: "  bulkhead info",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		i, err := c.Info(cmd.Context())
		if err != nil {
			return err
		}
		if form == outputJSON {
			return writeJSON(a.Stdout, i)
		}
		t := newTable("DAEMON", i.Version)
		for _, line := range [][2]any{
			{"kernel", "Linux " + i.Kernel + " " + i.Arch},
			{"system", i.OS},
			{"HCN version", fmt.Sprintf("%d.%d", i.HCN.Major, i.HCN.Minor)},
			{"state", i.StateDir},
			{"runtime", i.Runtime},
			{"programs attached by", i.AttachMode},
			{"cgroups", i.CgroupMode},
			{"uplink", fmt.Sprintf("%s, MTU %d", orDash(i.Uplink), i.UplinkMTU)},
			{"containers", fmt.Sprintf("%d, %d running", i.Containers, i.Running)},
			{"networks", i.Networks},
			{"endpoints", i.Endpoints},
			{"images", i.Images},
			{"revision", i.Revision},
		} {
			t.row(line[0], line[1])
		}
		return t.write(a.Stdout, a.colour())
	})
	return cmd
}

// versions is what version shows.
type versions struct {
	Client string    `json:"client"`
	Commit string    `json:"commit,omitempty"`
	Go     string    `json:"go"`
	Daemon *api.Info `json:"daemon,omitempty"`
	// Error says why the daemon is not there.
	Error string `json:"error,omitempty"`
}

func newVersionCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of this command and of the daemon",
		Long:    "Shows the versions of this command and of the daemon, if it runs.",
		Example: "  bulkhead version",
		Args:    noArgs,
	}
	form := outputFlag(cmd, outputTable)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { // it has an answer without a daemon, too
		if err := checkOutput(*form); err != nil {
			return err
		}
		v := versions{Client: orDash(a.Version), Commit: a.commit(), Go: runtime.Version()}
		c, err := a.client()
		if err == nil {
			var i api.Info
			if i, err = c.Info(cmd.Context()); err == nil {
				v.Daemon = &i
			}
		}
		if err != nil {
			v.Error = err.Error()
		}
		if *form == outputJSON {
			return writeJSON(a.Stdout, v)
		}
		fmt.Fprintf(a.Stdout, "bulkhead %s, built with %s\n", clean(v.Client), v.Go)
		if v.Daemon == nil {
			_, err = fmt.Fprintf(a.Stdout, "daemon   not reached: %s\n", clean(v.Error))
			return err
		}
		_, err = fmt.Fprintf(a.Stdout, "daemon   %s, HCN version %d.%d\n", clean(v.Daemon.Version), v.Daemon.HCN.Major, v.Daemon.HCN.Minor)
		return err
	}
	return cmd
}

// commit is the one given, or what the toolchain recorded.
func (a *app) commit() string {
	if a.Commit != "" {
		return a.Commit
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}
