package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newNetworkCmd(a *app) *cobra.Command {
	return group("network", "Networks and their switches",
		"A network is an address space with a virtual switch. The network nat is there from the start.",
		"  bulkhead network create lan --subnet 10.7.0.0/24\n  bulkhead network ls",
		newNetworkLsCmd(a), a.planned(newNetworkCreateCmd(a)), newInspectKindCmd(a, "network", kindNetwork), a.planned(newNetworkRmCmd(a)),
		a.planned(a.tentative(newNetworkConnectCmd(a), lastArg)), a.planned(newNetworkDisconnectCmd(a)), a.planned(newNetworkPruneCmd(a)))
}

func newNetworkLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List networks",
		Long:    "Lists the networks of this host, whoever made them.",
		Example: "  bulkhead network ls\n  bulkhead network ls -o json",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, err := c.Networks(cmd.Context())
		if err != nil {
			return err
		}
		used := map[hcn.GUID]int{}
		for _, n := range list {
			users, err := c.EnumerateEndpoints(cmd.Context(), onNetwork(n.ID))
			if err != nil {
				return err
			}
			used[n.ID] = len(users)
		}
		slices.SortFunc(list, func(x, y hcn.HostComputeNetwork) int { return strings.Compare(x.Name, y.Name) })
		return show(a, form, listing[hcn.HostComputeNetwork]{
			items: list,
			name:  func(n hcn.HostComputeNetwork) string { return nameOr(n.Name, n.ID) },
			head:  []string{"NETWORK ID", "NAME", "TYPE", "SUBNETS", "ENDPOINTS", "OWNER"},
			row: func(n hcn.HostComputeNetwork) []any {
				return []any{shortGUID(n.ID), n.Name, n.Type, orDash(strings.Join(prefixesOf(n), ", ")), used[n.ID], orDash(n.Owner)}
			},
		})
	})
	return cmd
}

// shortGUID is the part of a GUID that people read, and that find takes.
func shortGUID(g hcn.GUID) string { return string(g[:min(13, len(g))]) }

func prefixesOf(n hcn.HostComputeNetwork) []string {
	var out []string
	for _, ipam := range n.Ipams {
		for _, s := range ipam.Subnets {
			if s.IpAddressPrefix != "" {
				out = append(out, s.IpAddressPrefix)
			}
		}
		if ipam.Type == hcn.IpamDhcp {
			out = append(out, "DHCP")
		}
	}
	return out
}

func newNetworkRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME…",
		Short: "Remove networks",
		Long: `Removes networks with their switches. A network that has endpoints is not removed: the
error names them.`,
		Example:           "  bulkhead network rm lan",
		Args:              needNames("network"),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, a.removeNetwork)
		},
	}
}

// removeNetwork refuses by itself while there are endpoints: HCN would delete them.
func (a *app) removeNetwork(ctx context.Context, c *client.Client, name string) error {
	n, err := networks(c).find(ctx, name)
	if err != nil {
		return orUnreadable(ctx, name, err, c.DeleteNetwork)
	}
	list, err := endpoints(c).all(ctx, onNetwork(n.ID))
	if err != nil {
		return err
	}
	if len(list) > 0 {
		users := make([]string, len(list))
		for i, e := range list {
			users[i] = nameOr(e.Name, e.ID)
		}
		return api.Errorf(api.KindConflict, "network %s has %s: %s", n.Name, plural(len(users), "endpoint"), cut(strings.Join(users, ", "), 200)).
			Hint("bulkhead rm -f CONTAINER, bulkhead network disconnect %s CONTAINER, or bulkhead endpoint rm ENDPOINT", n.Name)
	}
	return c.DeleteNetwork(ctx, n.ID)
}

func newNetworkConnectCmd(a *app) *cobra.Command {
	var n networkFlags
	var iface string
	var priority int
	var isolated, dnsFirst bool
	var rateOut, rateIn rateValue
	cmd := &cobra.Command{
		Use:   "connect [flags] NETWORK CONTAINER",
		Short: "Connect a container with a further network",
		Long: `Gives a container a vNIC on a further network, also while it runs. Which network has
the default route is decided by --gw-priority: the highest wins, and among equal ones the
network that was joined first. Where that decides, it is said on standard error.`,
		Example: `  bulkhead network connect lan web
  bulkhead network connect --ip 10.7.0.9 --alias www --gw-priority 10 lan web`,
		Args:              needArgs(2, 2, "network or container"),
		ValidArgsFunction: a.completeEach(a.completeNetworks, a.completeContainers(nil)),
		RunE: func(cmd *cobra.Command, args []string) error {
			n.networks = args[:1]
			mode, list, err := n.parse()
			if err != nil {
				return err
			}
			if mode != "" {
				return api.Errorf(api.KindInvalid, "%q is not a network", mode).Hint("bulkhead network ls")
			}
			to := list[0]
			if iface != "" {
				to.Interface = iface
			}
			if cmd.Flags().Changed("gw-priority") {
				to.GatewayPriority = priority
			}
			to.Isolated = to.Isolated || isolated
			to.DNSFirst = to.DNSFirst || dnsFirst
			to.RateOut, to.RateIn = cmp.Or(uint64(rateOut), to.RateOut), cmp.Or(uint64(rateIn), to.RateIn)
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.ConnectContainer(cmd.Context(), args[1], to); err != nil || a.plans != nil {
				return err
			}
			a.warnGateways(cmd.Context(), c, args[1])
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&n.ip, "ip", "", "IPv4 address on the network")
	flags.StringVar(&n.ip6, "ip6", "", "IPv6 address on the network")
	flags.StringVar(&n.mac, "mac-address", "", "MAC on the network")
	flags.StringArrayVar(&n.aliases, "alias", nil, "further DNS name on the network")
	flags.StringVar(&iface, "interface", "", "name of the interface in the container")
	flags.IntVar(&priority, "gw-priority", 0, "priority for the default route")
	flags.BoolVar(&isolated, "isolated", false, isolatedUsage)
	flags.Var(&rateOut, "rate-out", rateOutUsage)
	flags.Var(&rateIn, "rate-in", rateInUsage)
	flags.BoolVar(&dnsFirst, "dns-first", false, dnsFirstUsage+", from the container's next start")
	return cmd
}

func newNetworkDisconnectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "disconnect NETWORK CONTAINER",
		Short:             "Take a container off a network",
		Long:              "Removes a container's vNIC on a network, also while it runs. Its address is free again.",
		Example:           "  bulkhead network disconnect lan web",
		Args:              needArgs(2, 2, "network or container"),
		ValidArgsFunction: a.completeEach(a.completeNetworks, a.completeContainers(nil)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.DisconnectContainer(cmd.Context(), args[1], args[0])
		},
	}
}

func newNetworkPruneCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove networks that nothing uses",
		Long: `Removes the networks made with bulkhead network create that have no endpoints. Networks
of other HCN clients and the network nat stay.`,
		Example: "  bulkhead network prune\n  bulkhead network prune -f",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			unused, err := unusedNetworks(cmd.Context(), c)
			if err != nil || len(unused) == 0 {
				return err
			}
			names := make([]string, len(unused))
			for i, n := range unused {
				names[i] = clean(n.Name)
			}
			if !force && !a.confirm("remove "+strings.Join(names, ", ")+"?") {
				return api.Errorf(api.KindConflict, "nothing is removed without a yes").Hint("bulkhead network prune -f")
			}
			var failed []error
			for i, n := range unused {
				if err := c.DeleteNetwork(cmd.Context(), n.ID); err != nil {
					failed = append(failed, err)
					continue
				}
				fmt.Fprintln(a.Stdout, names[i])
			}
			return errors.Join(failed...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func unusedNetworks(ctx context.Context, c *client.Client) ([]hcn.HostComputeNetwork, error) {
	list, err := c.Networks(ctx)
	if err != nil {
		return nil, err
	}
	var out []hcn.HostComputeNetwork
	for _, n := range list {
		if n.Name == defaultNetwork || n.Owner != owner {
			continue
		}
		users, err := c.EnumerateEndpoints(ctx, onNetwork(n.ID))
		if err != nil {
			return nil, err
		}
		if len(users) == 0 {
			out = append(out, n)
		}
	}
	return out, nil
}
