package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
)

func newExecCmd(a *app) *cobra.Command {
	var spec api.ExecSpec
	var env, envFiles []string
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME COMMAND [ARG…]",
		Short: "Run a further command in a container",
		Long: `Runs a command in a container that runs. The exit code is the command's; 126 and 127 say
that it cannot be run or is not there.`,
		Example: `  bulkhead exec -it web sh
  bulkhead exec -e LEVEL=debug web /bin/reload`,
		Args:              needArgs(2, -1, "container or command"),
		ValidArgsFunction: a.completeFirst(a.completeContainers(running)),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Args = args[1:]
			for _, path := range envFiles {
				own, err := readEnvFile(path)
				if err != nil {
					return err
				}
				env = append(own, env...)
			}
			var err error
			if spec.Env, err = parseEnv(env, a.Env); err != nil {
				return err
			}
			keys, err := parseDetachKeys(detachKeys)
			if err != nil {
				return err
			}
			return a.exec(cmd, args[0], spec, keys)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&spec.Detach, "detach", "d", false, "do not wait for the command")
	flags.BoolVarP(&spec.OpenStdin, "interactive", "i", false, "connect the input")
	flags.BoolVarP(&spec.TTY, "tty", "t", false, "give the command a terminal")
	flags.StringArrayVarP(&env, "env", "e", nil, "set a variable NAME=VALUE; NAME alone takes the value from here")
	flags.StringArrayVar(&envFiles, "env-file", nil, "read variables from a file of NAME=VALUE lines")
	flags.StringVarP(&spec.User, "user", "u", "", "run as USER[:GROUP]")
	flags.StringVarP(&spec.WorkingDir, "workdir", "w", "", "directory to start in")
	flags.BoolVar(&spec.Privileged, "privileged", false, "give the command every right")
	addDetachKeys(cmd, &detachKeys)
	return cmd
}

func (a *app) exec(cmd *cobra.Command, name string, spec api.ExecSpec, keys []byte) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if spec.Detach {
		if spec.TTY || spec.OpenStdin {
			return api.Errorf(api.KindInvalid, "-d goes with neither -i nor -t: there is nobody to talk to").Hint("drop -d, or the others")
		}
		if _, err := c.ExecContainer(cmd.Context(), name, spec, api.Streams{}); err != nil {
			return startFailed(err)
		}
		return nil
	}
	streams, detached, restore, err := a.streams(spec.TTY, spec.OpenStdin, keys)
	if err != nil {
		return err
	}
	defer restore()
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := c.ExecContainer(cmd.Context(), name, spec, streams)
		ended <- result{code, err}
	}()
	select {
	case <-detached:
		restore()
		fmt.Fprintln(a.Stderr, "detached")
		return nil
	case r := <-ended:
		restore()
		if r.err != nil {
			return startFailed(r.err)
		}
		return exitWith(r.code)
	}
}
