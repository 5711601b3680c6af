package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// defaultHostImage is what scripts/host-image.sh makes.
const defaultHostImage = "bulkhead-host"

func newHostCmd(a *app) *cobra.Command {
	return group("host", "Hosts of containers, in VMs",
		`A host of containers is a VM in which Bulkhead runs, with networks and switches of its own. Its uplink is
an endpoint of a network here. What stands behind --host NAME is done there:

  bulkhead --host NAME run …

It is a container, too: start, stop, logs, stats, publish, acl and network connect take it by its name.`,
		"  bulkhead host create edge --network lan\n  bulkhead --host edge run -d --name web registry.example/web\n  bulkhead host ls",
		newHostCreateCmd(a), newHostLsCmd(a), newHostRmCmd(a), newHostShellCmd(a))
}

func newHostCreateCmd(a *app) *cobra.Command {
	var f specFlags
	var host api.ContainerHost
	var image string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "create [flags] NAME [DAEMON-FLAG…]",
		Short: "Make a host of containers, and start it",
		Long: `Makes a VM in which Bulkhead runs, starts it, and waits until its daemon answers. Flags end at NAME: what
follows it are flags of that daemon, instead of those that the image has for it.

The image brings what the daemon needs; scripts/host-image.sh makes one. What the host keeps (images,
containers, state) is on a disk of its own, a file that takes the space of what is on it.`,
		Example: `  bulkhead host create edge
  bulkhead host create --network lan:ip=10.0.0.7 --memory 2g --disk 20g --image registry.example/bulkhead-host edge
  bulkhead host create inner --pool 10.99.0.0/16`,
		Args:              needArgs(1, -1, "name"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.build(a, cmd, append([]string{image}, args[1:]...))
			if err != nil {
				return err
			}
			spec.Name, spec.Host = args[0], &host
			return a.createHost(cmd.Context(), spec, f, wait)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.StringVar(&image, "image", defaultHostImage, "image of the host")
	flags.StringVar(&f.pull, "pull", pullMissing, "when to pull the image: always, missing or never")
	flags.VarP(bytesValue{n: &f.spec.Resources.Memory}, "memory", "m", "memory of the VM, like 2g (default 1g)")
	flags.Float64Var(&f.spec.Resources.CPUs, "cpus", 0, "limit of processors, like 1.5")
	flags.Var(bytesValue{n: &host.Disk}, "disk", "size of its disk, like 20g (default 8g)")
	flags.StringVar(&f.spec.GuestKernel, "guest-kernel", "", "image of its kernel (default the one that is installed for VMs)")
	flags.StringVar(&f.restart, "restart", "unless-stopped", "restart it when it ends: no, on-failure[:N], always or unless-stopped")
	flags.DurationVar(&wait, "wait", 5*time.Minute, "how long its daemon may take to answer; 0 to not wait for it")
	n := &f.network
	flags.StringArrayVar(&n.networks, "network", nil, "its uplink: NAME[:ip=…,ip6=…,mac=…,alias=…,interface=…,gw-priority=N,isolated=true,dns-first=true,rate-out=10mbit,rate-in=10mbit]")
	flags.StringVar(&n.ip, "ip", "", "IPv4 address on the only network")
	flags.StringVar(&n.ip6, "ip6", "", "IPv6 address on the only network")
	flags.StringVar(&n.mac, "mac-address", "", "MAC on the only network")
	addPublishFlags(cmd, &f.ports)
	complete(cmd, "pull", pullAlways, pullMissing, pullNever)
	complete(cmd, "restart", "no", "on-failure", "always", "unless-stopped")
	completeFlag(cmd, "network", a.completeNetworks)
	completeFlag(cmd, "image", a.completeImages)
	completeFlag(cmd, "guest-kernel", a.completeKernels)
	return cmd
}

// hostStop is how long the containers of a host have to end when it is stopped.
const hostStop = 60

func (a *app) createHost(ctx context.Context, spec api.ContainerSpec, f specFlags, wait time.Duration) error {
	seconds := hostStop
	spec.Isolation, spec.StopTimeout = "vm", &seconds
	if wait < 0 {
		return api.Errorf(api.KindInvalid, "--wait %v is negative", wait).Hint("use 0 to not wait")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if err := a.ensureHostImage(ctx, c, spec.Image, f.pull); err != nil {
		return err
	}
	created, err := c.CreateContainer(ctx, spec)
	if err != nil {
		return err
	}
	for _, w := range created.Warnings {
		fmt.Fprintln(a.Stderr, "warning:", cleanLines(w))
	}
	_, asked, _ := f.ports.parse()
	announce(a.Stderr, spec.Publish, func(p api.PublishedPort) string { return asked[p] })
	if err := c.StartContainer(ctx, created.ID); err != nil {
		// It may be gone already. One that has never run is of no use.
		_ = c.RemoveContainer(context.WithoutCancel(ctx), created.ID, true)
		return err
	}
	if wait > 0 {
		if err := awaitHost(ctx, c, created, wait); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(a.Stdout, clean(created.Name))
	return err
}

// ensureHostImage does not ask a registry of the whole world for an image that everybody makes for themselves.
func (a *app) ensureHostImage(ctx context.Context, c *client.Client, ref, policy string) error {
	if ref != defaultHostImage {
		return a.ensureImage(ctx, c, ref, policy)
	}
	_, err := c.Image(ctx, ref)
	if isNotFound(err) {
		return api.Errorf(api.KindNotFound, "there is no image %s here", ref).
			Hint("make it with scripts/host-image.sh and bulkhead image import, or name one of a registry with --image")
	}
	return err
}

// awaitHost waits until the daemon in a host answers.
func awaitHost(ctx context.Context, c *client.Client, made api.ContainerCreated, wait time.Duration) error {
	const pause = 500 * time.Millisecond
	deadline := time.Now().Add(wait)
	for {
		h, err := c.Host(ctx, made.ID)
		switch {
		case err != nil:
			return err
		case h.Ready:
			return nil
		case h.State != api.StatusRunning && h.State != api.StatusStarting:
			return api.Errorf(api.KindInternal, "host %s has ended: it is %s: %s", made.Name, h.State, orDash(h.Problem)).
				Hint("bulkhead logs %s; bulkhead host rm -f %s", made.Name, made.Name)
		case time.Now().After(deadline):
			return api.Errorf(api.KindUnavailable, "host %s runs, and is not ready after %v: %s", made.Name, wait, orDash(h.Problem)).
				Hint("bulkhead logs %s; bulkhead host ls shows when it is", made.Name)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func newHostLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the hosts of containers",
		Long:    "Lists the hosts of containers. Each that runs is asked for its version; one that does not answer has none.",
		Example: "  bulkhead host ls\n  bulkhead host ls -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		hosts, err := c.Hosts(cmd.Context())
		if err != nil {
			return err
		}
		return show(a, form, listing[api.Host]{
			items: hosts,
			name:  func(h api.Host) string { return h.Name },
			head:  []string{"NAME", "STATE", "ADDRESSES", "VERSION", "KERNEL", "DISK", "IMAGE"},
			row: func(h api.Host) []any {
				state := cell{h.State, statusStyle(h.State)}
				if h.State == api.StatusRunning && !h.Ready {
					state = cell{"running, not ready", yellow}
				}
				var addresses []string
				for _, p := range h.Addresses {
					addr, _, _ := strings.Cut(p, "/")
					addresses = append(addresses, addr)
				}
				return []any{h.Name, state, orDash(strings.Join(addresses, ", ")), orDash(h.Version), orDash(h.Kernel), size(h.Disk), cut(h.Image, 40)}
			},
		})
	})
	return cmd
}

func newHostRmCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm [flags] NAME…",
		Short:             "Remove hosts of containers",
		Long:              "Removes hosts, with their disks and all that is on them. One that runs is removed with -f only.",
		Example:           "  bulkhead host rm -f edge",
		Args:              needNames("host"),
		ValidArgsFunction: a.completeContainerHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				if err := needHost(ctx, c, name); err != nil {
					return err
				}
				return c.RemoveContainer(ctx, name, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end hosts that run, and their containers")
	return cmd
}

// needHost refuses a container that is no host, for what is meant for hosts.
func needHost(ctx context.Context, c *client.Client, name string) error {
	found, err := c.Container(ctx, name)
	switch {
	case isNotFound(err):
		return api.Errorf(api.KindNotFound, "host %q does not exist", name).Hint("bulkhead host ls")
	case err != nil:
		return err
	case found.Spec.Host == nil:
		return api.Errorf(api.KindInvalid, "container %s is no host of containers", found.Name).Hint("bulkhead host ls")
	}
	return nil
}

func newHostShellCmd(a *app) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "shell [flags] NAME [COMMAND [ARG…]]",
		Short: "Open a shell in a host of containers",
		Long: `Opens a shell in a host, or runs a command there, with every right that there is in its VM and none here. For
what its daemon does, bulkhead --host NAME is shorter.`,
		Example:           "  bulkhead host shell edge\n  bulkhead host shell edge nft list ruleset",
		Args:              needArgs(1, -1, "host"),
		ValidArgsFunction: a.completeFirst(a.completeContainerHosts),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := needHost(cmd.Context(), c, args[0]); err != nil {
				return err
			}
			_, tty := terminal(a.Stdin)
			spec := api.ExecSpec{Args: slices.Clone(args[1:]), User: user, TTY: tty, OpenStdin: true, Privileged: true}
			if len(spec.Args) == 0 {
				spec.Args = []string{"sh"}
			}
			keys, err := parseDetachKeys("")
			if err != nil {
				return err
			}
			return a.exec(cmd, args[0], spec, keys)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&user, "user", "u", "", "run as USER[:GROUP]")
	return cmd
}

// completeContainerHosts gives the names of the hosts of containers.
func (a *app) completeContainerHosts(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.completeContainers(func(c api.Container) bool { return c.Spec.Host != nil })(cmd, args, begun)
}
