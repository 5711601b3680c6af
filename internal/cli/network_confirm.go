package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// createTentative makes a network that has to be confirmed, and says how.
func (a *app) createTentative(ctx context.Context, c *client.Client, doc *hcn.HostComputeNetwork, within time.Duration) error {
	made, err := c.CreateNetworkFor(ctx, doc, within)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stderr, "it is undone in %s unless you confirm it: bulkhead confirm %s\n", within, clean(made.Network.Name))
	_, err = fmt.Fprintln(a.Stdout, made.Network.ID)
	return err
}

func newConfirmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm [NAME]",
		Short: "Keep what was made with --confirm-within",
		Long: `Keeps a network on a NIC, or the attachment of a container or an endpoint to one, that
waits for that. Without it that is undone when its time is over, so that who was cut
off by it is not for long: confirm it by a new connection to this host. Without a name
it is the one that waits.`,
		Example: "  bulkhead network create --type transparent --uplink eth0 --subnet 192.168.1.0/24 --gateway 192.168.1.1 --confirm-within 2m lan\n" +
			"  bulkhead confirm lan\n  bulkhead network connect --confirm-within 2m lan web\n  bulkhead confirm web",
		Args:              needArgs(0, 1, "network, container or endpoint"),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return c.Confirm(cmd.Context(), args[0])
			}
			list, err := c.Unconfirmed(cmd.Context())
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return api.Errorf(api.KindConflict, "nothing waits to be confirmed: it was undone, or confirmed before").Hint("bulkhead network ls")
			}
			var names []string
			for _, n := range list {
				if err := c.Confirm(cmd.Context(), string(cmp.Or(n.Endpoint, n.Network))); err != nil {
					return err
				}
				names = append(names, clean(n.Name))
			}
			_, err = fmt.Fprintln(a.Stdout, strings.Join(names, "\n"))
			return err
		},
	}
}

// tentative gives a command that attaches an endpoint --confirm-within: on a network on a NIC it is detached again unless somebody says
// that the host can still be reached.
func (a *app) tentative(cmd *cobra.Command, name func(args []string) string) *cobra.Command {
	run := cmd.RunE
	if verb, rest, _ := strings.Cut(cmd.Use, " "); !strings.Contains(rest, "[flags]") {
		cmd.Use = strings.TrimSpace(verb + " [flags] " + rest)
	}
	within := cmd.Flags().Duration("confirm-within", 0, "undo the attachment to a network on a NIC unless bulkhead confirm is called within this time, like 2m")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("confirm-within") {
			return run(cmd, args)
		}
		if *within <= 0 {
			return api.Errorf(api.KindInvalid, "--confirm-within %s is no time to wait", *within).Hint("write it like 2m")
		}
		a.within = *within
		defer func() { a.within = 0 }()
		err := run(cmd, args)
		if err == nil && a.plans == nil {
			fmt.Fprintf(a.Stderr, "it is undone in %s unless you confirm it: bulkhead confirm %s\n", *within, clean(name(args)))
		}
		return err
	}
	return cmd
}

func firstArg(args []string) string { return args[0] }
func lastArg(args []string) string  { return args[len(args)-1] }
