// Package cli is the command line: it turns arguments into calls of the JSON
// API, and answers into text. It decides nothing that the daemon does not decide
// for its other clients.
//
// Every command is made by a constructor that takes the app, which holds what a
// process would otherwise take from its surroundings, so that a test is a call of
// Main with buffers. What comes from the daemon is somebody else's text: it passes
// clean before it is put on a terminal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// Deps are what the commands need of the world around them.
type Deps struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Env looks up an environment variable, as os.LookupEnv does; nil: none is set.
	Env func(name string) (string, bool)
	// Version and Commit of this binary.
	Version, Commit string
	// Extra are further commands of the binary, such as the daemon.
	Extra []*cobra.Command
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Width of the terminal in columns; 0 finds out.
	Width int
}

// The exit codes that are not a container's own.
const (
	exitFailed    = 125 // the command line or the daemon failed
	exitCannotRun = 126 // the container's command cannot be run
	exitNotFound  = 127 // the container's command is not there
)

// defaultHost is where the daemon listens.
const defaultHost = "unix://" + client.DefaultSocket

// app is what the commands share: Deps and the values of the global flags.
type app struct {
	Deps
	host    string
	base    string // where the daemon is that the name of a host of containers is one of
	certs   string
	noColor bool
	// plans is set while a command only asks what it would change (--dry-run).
	plans func(api.Plan)
	// within is set while a command's attachment has to be confirmed (--confirm-within).
	within time.Duration
}

// exitError ends the program with a code of its own. A nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Main runs the command that args name and returns the exit code.
func Main(ctx context.Context, deps Deps, args []string) int {
	root := New(deps)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return report(root.ErrOrStderr(), err)
}

// New makes the root command.
func New(deps Deps) *cobra.Command {
	if deps.Env == nil {
		deps.Env = func(string) (string, bool) { return "", false }
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	a := &app{Deps: deps}
	root := &cobra.Command{
		Use:   "bulkhead",
		Short: "Containers and their networks",
		Long: `Bulkhead runs containers, each in a compartment of its own, with a vNIC on a
virtual switch. This command talks to the daemon over its unix socket, or with
-H tcp://HOST:PORT and a certificate to a daemon elsewhere.`,
		Example: `  bulkhead run -d --name web -p 8080:80 registry.example/web
  bulkhead topology`,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SuggestionsMinimumDistance = 2
	root.SetIn(deps.Stdin)
	root.SetOut(deps.Stdout)
	root.SetErr(deps.Stderr)
	root.SetFlagErrorFunc(flagError)
	host := defaultHost
	if h, ok := deps.Env("BULKHEAD_HOST"); ok && h != "" {
		host = h
	}
	a.base = defaultHost
	address := hostValue{a}
	_ = address.Set(host) // never fails
	flags := root.PersistentFlags()
	flags.VarP(address, "host", "H", "socket of the daemon, tcp://HOST:PORT, or the NAME of a host of containers, behind its daemon's address if that is given; the environment's BULKHEAD_HOST is the default")
	completeFlag(root, "host", a.completeContainerHosts)
	flags.Lookup("host").DefValue = defaultHost // the reference is the same on every machine
	certs, _ := deps.Env("BULKHEAD_CERTS")
	flags.StringVar(&a.certs, "certs", certs, "directory with ca.pem, cert.pem and key.pem, for a daemon elsewhere; the environment's BULKHEAD_CERTS is the default")
	flags.Lookup("certs").DefValue = ""
	flags.BoolVar(&a.noColor, "no-color", false, "write no colours; so does NO_COLOR in the environment")
	a.addCommands(root)
	for _, cmd := range deps.Extra {
		a.local(cmd)
		root.AddCommand(grouped(groupSystem, cmd))
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	refuseUnknownShells(root)
	describeDefaults(root)
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	root.AddGroup(
		&cobra.Group{ID: groupContainers, Title: "Containers:"},
		&cobra.Group{ID: groupNetworks, Title: "Networks:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupSystem, Title: "Host:"},
	)
	for _, cmd := range a.containerCommands() {
		root.AddCommand(grouped(groupContainers, cmd))
	}
	root.AddCommand(
		grouped(groupContainers, newContainerCmd(a)),
		grouped(groupContainers, newInspectCmd(a)),
		grouped(groupContainers, newVolumeCmd(a)),
		grouped(groupContainers, newHostCmd(a)),
		grouped(groupNetworks, newNetworkCmd(a)),
		grouped(groupNetworks, newConfirmCmd(a)),
		grouped(groupNetworks, newEndpointCmd(a)),
		grouped(groupNetworks, newClusterCmd(a)),
		grouped(groupNetworks, newJoinCmd(a)),
		grouped(groupNetworks, newBalancerCmd(a)),
		grouped(groupNetworks, newNamespaceCmd(a)),
		grouped(groupNetworks, newPublishCmd(a)),
		grouped(groupNetworks, newAddressCmd(a)),
		grouped(groupNetworks, newNICCmd(a)),
		grouped(groupNetworks, newExposedCmd(a)),
		grouped(groupNetworks, newTopologyCmd(a)),
		grouped(groupNetworks, newDropsCmd(a)),
		grouped(groupNetworks, newExplainCmd(a)),
		grouped(groupNetworks, newFlowsCmd(a)),
		grouped(groupNetworks, newRulesCmd(a)),
		grouped(groupNetworks, newACLCmd(a)),
		grouped(groupNetworks, newRateCmd(a)),
		grouped(groupNetworks, newCaptureCmd(a)),
		grouped(groupImages, newImageCmd(a)),
		grouped(groupImages, newPullCmd(a)),
		grouped(groupImages, newPushCmd(a)),
		grouped(groupImages, newImagesCmd(a)),
		grouped(groupImages, newLoginCmd(a)),
		grouped(groupImages, newLogoutCmd(a)),
		grouped(groupSystem, newEventsCmd(a)),
		grouped(groupSystem, newDoctorCmd(a)),
		grouped(groupSystem, newInfoCmd(a)),
		grouped(groupSystem, newVersionCmd(a)),
	)
}

// The groups of the help text.
const (
	groupContainers = "containers"
	groupNetworks   = "networks"
	groupImages     = "images"
	groupSystem     = "system"
)

func grouped(group string, cmd *cobra.Command) *cobra.Command {
	cmd.GroupID = group
	return cmd
}

// noCommand refuses what is no command: cobra would print the help and succeed.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("%q is not a command of %s", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return api.Errorf(api.KindInvalid, "%s", msg).Hint("%s --help", cmd.CommandPath())
}

// group makes a command that only holds others.
func group(use, short, long, example string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(subs...)
	return cmd
}

// hostValue is the flag --host. Given twice, it is the address of a daemon and the name of a host of containers there.
type hostValue struct{ a *app }

func (v hostValue) String() string {
	if v.a == nil {
		return ""
	}
	return v.a.host
}

func (v hostValue) Set(s string) error {
	if v.a.host = s; !isHostName(s) {
		v.a.base = s
	}
	return nil
}

func (hostValue) Type() string { return "string" }

// isHostName tells the name of a host of containers from the address of a daemon.
func isHostName(host string) bool {
	return host != "" && !strings.ContainsAny(host, "/:")
}

// local refuses --host NAME for a command that works on this machine and asks no daemon.
func (a *app) local(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if isHostName(a.host) {
			return api.Errorf(api.KindInvalid, "bulkhead %s works on the machine that it runs on, and not on host %s", cmd.Name(), a.host).
				Hint("bulkhead host shell %s bulkhead %s", a.host, cmd.Name())
		}
		return run(cmd, args)
	}
}

// client connects to the daemon of --host.
func (a *app) client() (*client.Client, error) {
	address := a.host
	if isHostName(address) {
		address = a.base
	}
	dial := client.New
	if strings.HasPrefix(address, "tcp://") {
		dial = func(address string) (*client.Client, error) { return client.NewRemote(address, a.certs) }
	}
	c, err := dial(address)
	if err != nil {
		return nil, err
	}
	if isHostName(a.host) {
		c = c.OnHost(a.host)
	}
	c.Planned, c.ConfirmWithin = a.plans, a.within
	c.Warn = func(text string) { fmt.Fprintln(a.Stderr, "warning:", cleanLines(text)) }
	return c, nil
}

// env looks a variable up, "" when it is not set.
func (a *app) env(name string) string {
	v, _ := a.Env(name)
	return v
}

// terminal gives the file behind a stream if it is a terminal.
func terminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// report prints an error with its next step and gives the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code := exitFailed
	if exit, ok := errors.AsType[*exitError](err); ok {
		code = exit.code
		if exit.err == nil {
			return code
		}
	}
	fmt.Fprintln(w, "bulkhead:", cleanLines(err.Error()))
	var e *api.Error
	if errors.As(err, &e) && e.Next != "" {
		fmt.Fprintln(w, "  next:", cleanLines(e.Next))
	}
	return code
}
