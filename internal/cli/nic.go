package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newNICCmd(a *app) *cobra.Command {
	return group("nic", "The host's NICs, which carry networks on a LAN",
		"Reports the NICs of the host that a network can have for its uplink.",
		"  bulkhead nic ls",
		newNICLsCmd(a))
}

func newNICLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List NICs",
		Long: `Lists the host's NICs with the networks that are on them, and what keeps one from
carrying any. --uplink of network create takes a name, a NIC ID or an address of
the host on it.`,
		Example: "  bulkhead nic ls\n  bulkhead nic ls -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, err := c.NICs(cmd.Context())
		if err != nil {
			return err
		}
		return show(a, form, listing[api.NIC]{
			items: list,
			name:  func(n api.NIC) string { return n.Name },
			head:  []string{"NAME", "NIC ID", "STATE", "ADDRESSES", "NETWORKS", "PROBLEM"},
			row: func(n api.NIC) []any {
				return []any{n.Name, n.ID, n.State, orDash(strings.Join(n.Addresses, ", ")), orDash(strings.Join(n.Networks, ", ")), orDash(n.Problem)}
			},
		})
	})
	return cmd
}
