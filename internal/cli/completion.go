package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// completer gives what may stand at a place of the command line.
type completer = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective)

// completionTimeout bounds the wait for a daemon that does not answer: a shell is
// waiting, with somebody's finger on the tab key.
const completionTimeout = 2 * time.Second

// refuseUnknownShells has completion fail for a shell that it does not know, where it would show its help and succeed.
func refuseUnknownShells(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Args, cmd.RunE = cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return api.Errorf(api.KindInvalid, "there is no completion for the shell %q", args[0]).Hint("use bash, zsh, fish or powershell")
		}
	}
}

// complete gives a flag a fixed list of values.
func complete(cmd *cobra.Command, flag string, values ...string) {
	completeFlag(cmd, flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	})
}

func completeFlag(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic("cli: " + err.Error()) // the flag does not exist: a programming error
	}
}

// live completes with names that the daemon knows. Without a daemon there are
// none, which is no error worth disturbing a shell with.
func (a *app) live(list func(ctx context.Context, c *client.Client) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, n := range names {
			// A name with other characters would need quoting, which differs by shell.
			if strings.HasPrefix(n, begun) && !slices.Contains(args, n) && clean(n) == n && !strings.ContainsAny(n, " \t") {
				out = append(out, n)
			}
		}
		slices.Sort(out)
		return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
	}
}

func running(c api.Container) bool { return c.State.Status == api.StatusRunning }

func notRunning(c api.Container) bool { return !running(c) }

// completeContainers gives the names of the containers that a verb can work on.
func (a *app) completeContainers(wanted func(api.Container) bool) completer {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Containers(ctx)
		var names []string
		for _, one := range list {
			if wanted == nil || wanted(one) {
				names = append(names, one.Name)
			}
		}
		return names, err
	})
}

func (a *app) completeNetworks(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Networks(ctx)
		var names []string
		for _, n := range list {
			names = append(names, nameOr(n.Name, n.ID))
		}
		return names, err
	})(cmd, args, begun)
}

func (a *app) completeEndpoints(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Endpoints(ctx)
		var names []string
		for _, e := range list {
			names = append(names, nameOr(e.Name, e.ID))
		}
		return names, err
	})(cmd, args, begun)
}

func (a *app) completeBalancers(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.LoadBalancers(ctx)
		var names []string
		for _, l := range list {
			names = append(names, nameOr(l.Name, l.ID))
		}
		return names, err
	})(cmd, args, begun)
}

func (a *app) completeNamespaces(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Namespaces(ctx)
		var names []string
		for _, n := range list {
			names = append(names, nameOr(n.Name, n.ID))
		}
		return names, err
	})(cmd, args, begun)
}

func (a *app) completeImages(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Images(ctx)
		var names []string
		for _, i := range list {
			names = append(names, i.Names...)
		}
		return names, err
	})(cmd, args, begun)
}

func (a *app) completeVolumes(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Volumes(ctx)
		names := make([]string, len(list))
		for i, v := range list {
			names[i] = v.Name
		}
		return names, err
	})(cmd, args, begun)
}

// completeAny gives every name there is, for inspect.
func (a *app) completeAny(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, f := range []completer{a.completeContainers(nil), a.completeNetworks, a.completeEndpoints, a.completeNamespaces, a.completeImages} {
		names, _ := f(cmd, args, begun)
		out = append(out, names...)
	}
	slices.Sort(out)
	return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
}

// completeFirst completes the first argument only; what follows is not ours.
func (a *app) completeFirst(f completer) completer {
	return a.completeEach(f)
}

// completeEach completes each argument in its own way.
func (*app) completeEach(each ...completer) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(each) {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return each[len(args)](cmd, nil, begun)
	}
}

func completeSignals(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2"}, cobra.ShellCompDirectiveNoFileComp
}

// describeDefaults gives cobra's own commands the words that all ours have.
func describeDefaults(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.GroupID = groupSystem
			cmd.Short = "Explain a command"
			cmd.Long = "Explains a command, as its --help does."
			cmd.Example = "  bulkhead help run"
		case "completion":
			cmd.GroupID = groupSystem
			cmd.Short = "Write a completion script for a shell"
			cmd.Long = "Writes a script that completes commands, flags and the names of what is there."
			cmd.Example = "  source <(bulkhead completion bash)"
			for _, shell := range cmd.Commands() {
				shell.Short = "Write the completion script for " + shell.Name()
				shell.Example = "  bulkhead completion " + shell.Name()
			}
		}
	}
}
