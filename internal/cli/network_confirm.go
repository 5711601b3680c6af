package cli

import (
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
		Use:   "confirm [NETWORK]",
		Short: "Keep a network that was made with --confirm-within",
		Long: `Keeps a network on a NIC that waits for that. Without it the network is undone when its
time is over, so that who was cut off by it is not for long: confirm it by a new
connection to this host. Without a name it is the one that waits.`,
		Example: "  bulkhead network create --type transparent --uplink eth0 --subnet 192.168.1.0/24 --gateway 192.168.1.1 --confirm-within 2m lan\n" +
			"  bulkhead confirm lan",
		Args:              needArgs(0, 1, "network"),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return c.ConfirmNetwork(cmd.Context(), args[0])
			}
			list, err := c.Unconfirmed(cmd.Context())
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return api.Errorf(api.KindConflict, "no network waits to be confirmed: it was undone, or confirmed before").Hint("bulkhead network ls")
			}
			var names []string
			for _, n := range list {
				if err := c.ConfirmNetwork(cmd.Context(), string(n.Network)); err != nil {
					return err
				}
				names = append(names, clean(n.Name))
			}
			_, err = fmt.Fprintln(a.Stdout, strings.Join(names, "\n"))
			return err
		},
	}
}
