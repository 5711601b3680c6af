package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newAddressCmd(a *app) *cobra.Command {
	return group("address", "Who has which address",
		"Reports every address that is in use or reserved, and who has it.",
		"  bulkhead address ls\n  bulkhead address who 10.7.0.9",
		newAddressLsCmd(a), newAddressWhoCmd(a))
}

func addressListing(list []api.Address) listing[api.Address] {
	return listing[api.Address]{
		items: list,
		name:  func(r api.Address) string { return r.Address },
		head:  []string{"ADDRESS", "NETWORK", "KIND", "HOLDER", "CONTAINER", "MAC", "STATE"},
		row: func(r api.Address) []any {
			holder := cmp.Or(r.Name, string(r.Endpoint), r.Owner, "-")
			return []any{r.Address, orDash(r.Network), r.Kind, holder, orDash(r.Container), orDash(r.MAC), orDash(r.State)}
		},
	}
}

func newAddressLsCmd(a *app) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List addresses and their holders",
		Long:    "Lists the addresses of gateways and endpoints. Reserved ones belong to what is not attached now.",
		Example: "  bulkhead address ls --network nat",
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&network, "network", "", "only those of one network")
	completeFlag(cmd, "network", a.completeNetworks)
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, err := c.Addresses(cmd.Context())
		if err != nil {
			return err
		}
		if network != "" {
			n, err := networks(c).find(cmd.Context(), network)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(r api.Address) bool { return r.NetworkID != n.ID })
		}
		return show(a, form, addressListing(list))
	})
	return cmd
}

func newAddressWhoCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "who ADDRESS",
		Short:   "Tell who has an address",
		Long:    "Tells which endpoint or gateway has an address, or that nobody has it.",
		Example: "  bulkhead address who 10.7.0.9",
		Args:    needArgs(1, 1, "address"),
	}
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		addr, err := netip.ParseAddr(args[0])
		if err != nil {
			return api.Errorf(api.KindInvalid, "%q is not an IP address", args[0]).Hint("write it like 10.7.0.9 or fd00:7::9")
		}
		list, err := c.Addresses(cmd.Context())
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(r api.Address) bool {
			have, err := netip.ParseAddr(r.Address)
			return err != nil || have != addr
		})
		if len(list) == 0 {
			return api.Errorf(api.KindNotFound, "nobody has %s on a network of this host", addr).Hint("bulkhead address ls")
		}
		return show(a, form, addressListing(list))
	})
	return cmd
}

func newExposedCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exposed",
		Short: "Show who can reach each published port",
		Long: `Shows every published port of this host, and who can reach it: this host alone, the
LAN, or one address. So are the ports of load balancers that are exposed to the LAN. A firewall
of the host may allow less; it is obeyed.`,
		Example: "  bulkhead exposed\n  bulkhead exposed -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, err := c.Published(cmd.Context())
		if err != nil {
			return err
		}
		return show(a, form, listing[api.Published]{
			items: list,
			name:  func(p api.Published) string { return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol) },
			head:  []string{"PORT", "REACHABLE FROM", "GOES TO", "CONTAINER", "ENDPOINT", "STATE"},
			row: func(p api.Published) []any {
				state := cell{"active", green}
				if !p.Active {
					state = cell{"reserved", dim}
				}
				who, st := reach(p.Expose)
				name, to := cmp.Or(p.Name, shortGUID(p.Endpoint)), cell{p.Target, plain}
				if p.LoadBalancer != "" {
					name = "load balancer " + cmp.Or(p.Name, shortGUID(p.LoadBalancer))
					if p.Target == "" {
						to = cell{"no back end", red}
					}
				}
				return []any{
					fmt.Sprintf("%d/%s", p.HostPort, p.Protocol),
					cell{who, st},
					to, orDash(p.Container), name, state,
				}
			},
		})
	})
	return cmd
}

// reach says in words who a scope lets in.
func reach(expose string) (string, style) {
	switch expose {
	case exposeLoopback:
		return "this host only", green
	case exposeLAN:
		return "every address of this host but loopback", yellow
	case exposeAll:
		return "every address of this host", yellow
	}
	if a, err := netip.ParseAddr(expose); err == nil && a.IsLoopback() {
		return "this host only, at " + a.String(), green
	}
	return "who can reach " + expose, yellow
}
