package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// containerCommands are the verbs; each call makes new ones, for they stand both
// at the root and under container.
func (a *app) containerCommands() []*cobra.Command {
	return []*cobra.Command{
		a.planned(newRunCmd(a)), a.planned(newCreateCmd(a)), a.planned(a.tentative(newStartCmd(a), firstArg)), a.planned(newStopCmd(a)), a.planned(newRestartCmd(a)), newKillCmd(a), newPauseCmd(a), newUnpauseCmd(a), a.planned(newRmCmd(a)),
		newWaitCmd(a), newExecCmd(a), newAttachCmd(a), newLogsCmd(a), newPsCmd(a), newStatsCmd(a), newPortCmd(a),
	}
}

func newContainerCmd(a *app) *cobra.Command {
	subs := append(a.containerCommands(), a.planned(newIsolationCmd(a)), newInspectKindCmd(a, "container", kindContainer))
	return group("container", "Everything that can be done with containers",
		"The verbs for containers, which also stand alone: bulkhead container run is bulkhead run.",
		"  bulkhead container ps -a\n  bulkhead container inspect web", subs...)
}

// forEach does the same to several containers, prints the name of each that it was
// done to, and goes on after a failure.
func (a *app) forEach(ctx context.Context, names []string, do func(ctx context.Context, c *client.Client, name string) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		if err := do(ctx, c, name); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintln(a.Stdout, clean(name))
	}
	return errors.Join(failed...)
}

func newStartCmd(a *app) *cobra.Command {
	var attach, interactive bool
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "start [flags] NAME…",
		Short: "Start containers that are created or have ended",
		Long: `Starts containers again, with the addresses and ports that they had. With --attach
it shows what the container writes and ends with its exit code.`,
		Example:           "  bulkhead start web db\n  bulkhead start -a -i shell",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(notRunning),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !attach && !interactive {
				return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
					return c.StartContainer(ctx, name)
				})
			}
			if len(args) > 1 {
				return api.Errorf(api.KindInvalid, "only one container can be attached to").Hint("start the others without -a and -i")
			}
			keys, err := parseDetachKeys(detachKeys)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			found, err := c.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s := session{
				app: a, client: c, id: found.ID, tty: found.Spec.TTY, stdin: interactive && found.Spec.OpenStdin,
				keys: keys, proxySignals: true, started: running(found), autoRemove: found.Spec.AutoRemove,
			}
			return s.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "show the output and end with the container's exit code")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "also connect the input")
	addDetachKeys(cmd, &detachKeys)
	return cmd
}

// stopFlags are the flags of stop and restart.
type stopFlags struct {
	signal  string
	timeout int
}

func (f *stopFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVarP(&f.timeout, "timeout", "t", 10, "seconds to wait before SIGKILL; the container's own --stop-timeout is the default")
	cmd.Flags().StringVarP(&f.signal, "signal", "s", "", "signal to ask with; the container's own --stop-signal is the default")
	completeFlag(cmd, "signal", completeSignals)
}

func (f *stopFlags) request(cmd *cobra.Command) (api.StopRequest, error) {
	r := api.StopRequest{Signal: f.signal}
	if cmd.Flags().Changed("timeout") {
		if f.timeout < 0 {
			return r, api.Errorf(api.KindInvalid, "--timeout %d is negative", f.timeout).Hint("use 0 to kill at once")
		}
		r.Timeout = &f.timeout
	}
	return r, nil
}

func newStopCmd(a *app) *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use:   "stop [flags] NAME…",
		Short: "Stop containers",
		Long: `Asks containers to end with their stop signal, and kills those that do not. A stopped
container keeps its addresses and ports reserved, and no restart policy starts it.`,
		Example:           "  bulkhead stop web\n  bulkhead stop -t 60 db",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(cmd)
			if err != nil {
				return err
			}
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.StopContainer(ctx, name, r)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func newRestartCmd(a *app) *cobra.Command {
	var f stopFlags
	cmd := &cobra.Command{
		Use:               "restart [flags] NAME…",
		Short:             "Stop containers and start them again",
		Long:              "Stops containers as stop does, and starts them. Addresses, MACs and ports stay the same.",
		Example:           "  bulkhead restart web",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(cmd)
			if err != nil {
				return err
			}
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.RestartContainer(ctx, name, r)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func newIsolationCmd(a *app) *cobra.Command {
	var f stopFlags
	var kernel string
	cmd := &cobra.Command{
		Use:   "isolation [flags] NAME process|vm",
		Short: "Change a container's isolation",
		Long: `Gives a container a kernel of its own, in a VM, or takes it away. Everything else of the container
stays: its files, names, addresses, MACs, rules and published ports. One that runs is stopped as
stop does, and started again; its restart policy does not matter.`,
		Example: "  bulkhead container isolation web vm\n  bulkhead container isolation -t 60 db process",
		Args:    needArgs(2, 2, "container, or the isolation"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.completeContainers(nil)(cmd, args, begun)
			case 1:
				return []string{"process", "vm"}, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			how, err := f.request(cmd)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			change, err := c.IsolateContainer(cmd.Context(), args[0], api.IsolationRequest{Isolation: args[1], GuestKernel: kernel, Signal: how.Signal, Timeout: how.Timeout})
			if err != nil {
				return err
			}
			for _, w := range change.Warnings {
				fmt.Fprintln(a.Stderr, "warning:", cleanLines(w))
			}
			what := "has it from its next start on"
			switch {
			case !change.Changed:
				what = "has it already"
			case change.Restarted:
				what = "was stopped and started again with it"
			}
			fmt.Fprintf(a.Stdout, "isolation %s: %s %s\n", clean(change.Isolation), clean(change.Name), what)
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&kernel, "guest-kernel", "", "image of the kernel that it is to have, as with run; changes the kernel of one that has VM isolation")
	completeFlag(cmd, "guest-kernel", a.completeKernels)
	return cmd
}

func newKillCmd(a *app) *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:               "kill [flags] NAME…",
		Short:             "Send a signal to containers",
		Long:              "Sends a signal to the first process of containers, SIGKILL if none is named.",
		Example:           "  bulkhead kill web\n  bulkhead kill -s HUP web",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.KillContainer(ctx, name, signal)
			})
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "SIGKILL", "signal, by name or number")
	completeFlag(cmd, "signal", completeSignals)
	return cmd
}

func newPauseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pause NAME…",
		Short: "Freeze the processes of containers",
		Long: `Freezes the processes of containers. Addresses, ports and connections stay, and nothing
answers until unpause. A signal that ends the container lets it go on: so do stop and kill.`,
		Example:           "  bulkhead pause db",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(func(c api.Container) bool { return running(c) && !c.State.Paused }),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.PauseContainer(ctx, name)
			})
		},
	}
}

func newUnpauseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "unpause NAME…",
		Short:             "Let paused containers go on",
		Long:              "Lets the processes of paused containers go on, where they were.",
		Example:           "  bulkhead unpause db",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(func(c api.Container) bool { return c.State.Paused }),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.UnpauseContainer(ctx, name)
			})
		},
	}
}

func newRmCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm [flags] NAME…",
		Short: "Remove containers",
		Long: `Removes containers and everything that belongs to them: endpoints, addresses, ports,
files, logs and unnamed volumes. Named volumes stay.`,
		Example:           "  bulkhead rm web\n  bulkhead rm -f -v db",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return c.RemoveContainer(ctx, name, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill containers that run")
	cmd.Flags().BoolP("volumes", "v", true, "for the habit: unnamed volumes always go with their container")
	return cmd
}

func newWaitCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "wait NAME…",
		Short: "Wait until containers end and print their exit codes",
		Long: `Waits until each container has ended, and prints its exit code. The exit code of the
command is that of the last container.`,
		Example:           "  bulkhead wait backup",
		Args:              needNames("container"),
		ValidArgsFunction: a.completeContainers(running),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			code := 0
			for _, name := range args {
				r, err := c.WaitContainer(cmd.Context(), name, "")
				if err != nil {
					return err
				}
				fmt.Fprintln(a.Stdout, r.ExitCode)
				code = r.ExitCode
			}
			return exitWith(code)
		},
	}
}

// exitWith ends the program with a container's exit code.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// needNames refuses a command line without names.
func needNames(what string) cobra.PositionalArgs {
	return needArgs(1, -1, what)
}

// needArgs refuses a command line with too few or too many arguments.
func needArgs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return api.Errorf(api.KindInvalid, "%s: the %s is missing", cmd.Name(), what).Hint("%s --help", cmd.CommandPath())
		case most >= 0 && len(args) > most:
			return api.Errorf(api.KindInvalid, "%s: %q is too much", cmd.Name(), args[most]).Hint("%s --help", cmd.CommandPath())
		}
		for _, arg := range args {
			if most >= 0 && strings.TrimSpace(arg) == "" {
				return api.Errorf(api.KindInvalid, "%s: the %s is empty", cmd.Name(), what).Hint("%s --help", cmd.CommandPath())
			}
		}
		return nil
	}
}

// noArgs refuses a command line with any.
func noArgs(cmd *cobra.Command, args []string) error {
	return needArgs(0, 0, "")(cmd, args)
}
