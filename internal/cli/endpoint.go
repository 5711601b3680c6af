package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newEndpointCmd(a *app) *cobra.Command {
	return group("endpoint", "Endpoints: vNICs with their addresses and policies",
		`An endpoint is the identity of one vNIC. Containers bring theirs along; this is for
compartments of other runtimes.`,
		"  bulkhead endpoint create --network nat --name web0\n  bulkhead namespace attach pod web0",
		newEndpointLsCmd(a), a.planned(newEndpointCreateCmd(a)), newInspectKindCmd(a, "endpoint", kindEndpoint), a.planned(newEndpointRmCmd(a)))
}

func newEndpointLsCmd(a *app) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List endpoints",
		Long:    "Lists endpoints, those of containers too. NAMESPACE is the compartment that an endpoint is attached to.",
		Example: "  bulkhead endpoint ls\n  bulkhead endpoint ls --network nat",
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&network, "network", "", "only those of one network")
	completeFlag(cmd, "network", a.completeNetworks)
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, names, err := endpointsAndNetworks(cmd.Context(), c, network)
		if err != nil {
			return err
		}
		return show(a, form, listing[hcn.HostComputeEndpoint]{
			items: list,
			name:  func(e hcn.HostComputeEndpoint) string { return nameOr(e.Name, e.ID) },
			head:  []string{"ENDPOINT ID", "NAME", "NETWORK", "ADDRESSES", "MAC", "STATE", "NAMESPACE"},
			row: func(e hcn.HostComputeEndpoint) []any {
				var addrs []string
				for _, ip := range e.IpConfigurations {
					addrs = append(addrs, ip.IpAddress)
				}
				return []any{
					shortGUID(e.ID), orDash(e.Name), orDash(names[e.HostComputeNetwork]), orDash(strings.Join(addrs, ", ")),
					orDash(string(e.MacAddress)),
					cell{e.State.String(), endpointStyle(e.State)},
					orDash(shortGUID(e.HostComputeNamespace)),
				}
			},
		})
	})
	return cmd
}

func endpointStyle(s hcn.EndpointState) style {
	switch s {
	case hcn.EndpointAttached, hcn.EndpointAttachedSharing:
		return green
	case hcn.EndpointDegraded:
		return red
	default:
		return dim
	}
}

// endpointsAndNetworks lists endpoints, of one network if it is named, and the
// names of networks.
func endpointsAndNetworks(ctx context.Context, c *client.Client, network string) ([]hcn.HostComputeEndpoint, map[hcn.GUID]string, error) {
	var which hcn.HostComputeQuery
	if network != "" {
		n, err := networks(c).find(ctx, network)
		if err != nil {
			return nil, nil, err
		}
		which = onNetwork(n.ID)
	}
	list, err := endpoints(c).all(ctx, which)
	if err != nil {
		return nil, nil, err
	}
	all, err := c.Networks(ctx)
	if err != nil {
		return nil, nil, err
	}
	names := map[hcn.GUID]string{}
	for _, n := range all {
		names[n.ID] = n.Name
	}
	return list, names, nil
}

func newEndpointCreateCmd(a *app) *cobra.Command {
	var name, network, iface, elsewhere string
	var n networkFlags
	var ports publishFlags
	var priority int
	var isolated, dnsFirst, byHost bool
	var rateOut, rateIn rateValue
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Create an endpoint on a network",
		Long: `Creates an endpoint and prints its ID. Its address and MAC are its own until it is
removed; namespace attach gives a compartment the vNIC.`,
		Example: `  bulkhead endpoint create --network nat --name web0
  bulkhead endpoint create --network lan --ip 10.7.0.9 --mac-address 00-15-5D-00-00-09 -p 8080:80`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			published, asked, err := ports.parse()
			if err != nil {
				return err
			}
			n.networks = []string{network}
			mode, list, err := n.parse()
			if err != nil {
				return err
			}
			if mode != "" {
				return api.Errorf(api.KindInvalid, "%q is not a network", mode).Hint("bulkhead network ls")
			}
			to := list[0]
			to.Interface, to.GatewayPriority, to.Isolated, to.DNSFirst = iface, priority, isolated, dnsFirst
			to.RateOut, to.RateIn = uint64(rateOut), uint64(rateIn)
			c, err := a.client()
			if err != nil {
				return err
			}
			in, err := networks(c).find(cmd.Context(), to.Network)
			if err != nil {
				return err
			}
			doc := endpointDocument(name, in.ID, to, published)
			if byHost {
				doc.Flags |= hcn.RemoteEndpoint
			}
			if elsewhere != "" {
				doc.Flags |= hcn.RemoteEndpoint
				doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.ProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: elsewhere}))
			}
			made, err := c.CreateEndpoint(cmd.Context(), doc)
			if err != nil {
				return err
			}
			announce(a.Stderr, published, func(p api.PublishedPort) string { return asked[p] })
			_, err = fmt.Fprintln(a.Stdout, made.ID)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "name, also in DNS")
	flags.StringVar(&network, "network", defaultNetwork, "network to be on")
	flags.StringVar(&n.ip, "ip", "", "IPv4 address; one is picked without it")
	flags.StringVar(&n.ip6, "ip6", "", "IPv6 address; one is picked without it")
	flags.StringVar(&n.mac, "mac-address", "", "MAC; it is derived from the ID without it")
	flags.StringArrayVar(&n.aliases, "alias", nil, "further DNS name")
	flags.StringVar(&iface, "interface", "", "name of the interface in the compartment")
	flags.IntVar(&priority, "gw-priority", 0, "priority for the default route of the compartment")
	flags.StringVar(&elsewhere, "remote-host", "", "the endpoint is on another host of an overlay, which has this address; give its --ip and --mac-address there")
	flags.BoolVar(&byHost, "by-host", false, "the endpoint is a machine outside of the network, which is reached by the host at --ip and --ip6: as a back end of load balancers")
	flags.BoolVar(&isolated, "isolated", false, isolatedUsage)
	flags.Var(&rateOut, "rate-out", rateOutUsage)
	flags.Var(&rateIn, "rate-in", rateInUsage)
	flags.BoolVar(&dnsFirst, "dns-first", false, dnsFirstUsage)
	addPublishFlags(cmd, &ports)
	completeFlag(cmd, "network", a.completeNetworks)
	return cmd
}

// endpointDocument builds the HCN document of an endpoint.
func endpointDocument(name string, network hcn.GUID, to api.NetworkAttachment, ports []api.PublishedPort) *hcn.HostComputeEndpoint {
	doc := &hcn.HostComputeEndpoint{
		Name: name, Owner: owner, HostComputeNetwork: network, MacAddress: hcn.MAC(to.MAC), SchemaVersion: hcn.V2(),
	}
	for _, a := range to.Addresses {
		doc.IpConfigurations = append(doc.IpConfigurations, hcn.IpConfig{IpAddress: a})
	}
	if to.Interface != "" {
		doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.InterfaceName, hcn.InterfaceNameSetting{Name: to.Interface}))
	}
	if to.GatewayPriority != 0 {
		doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.GatewayPriority, hcn.GatewayPrioritySetting{Priority: to.GatewayPriority}))
	}
	if to.Isolated {
		doc.Flags |= hcn.DisableInterComputeCommunication
	}
	if to.DNSFirst {
		doc.Flags |= hcn.OverrideDNSServerOrder
	}
	if len(to.Aliases) > 0 {
		doc.Policies = append(doc.Policies, hcn.NewEndpointPolicy(hcn.Aliases, hcn.AliasesSetting{Names: to.Aliases}))
	}
	doc.Policies = append(doc.Policies, hcn.RatePolicies(to.RateOut, to.RateIn)...)
	for _, p := range ports {
		doc.Policies = append(doc.Policies, portMappings(p)...)
	}
	return doc
}

// portMappings are the HCN policies of a published port: one for each port of a
// range, and for loopback one for each family.
func portMappings(p api.PublishedPort) []hcn.EndpointPolicy {
	var out []hcn.EndpointPolicy
	for i := range max(p.Count, 1) {
		s := hcn.PortMappingPolicySetting{Protocol: hcn.ProtocolTCP, InternalPort: p.ContainerPort + i}
		if p.Protocol == "udp" {
			s.Protocol = hcn.ProtocolUDP
		}
		if p.HostPort != 0 {
			s.ExternalPort = p.HostPort + i
		}
		switch p.Expose {
		case exposeLoopback:
			for _, vip := range []string{"127.0.0.1", "::1"} {
				s.VIP = vip
				out = append(out, s.Policy())
			}
			continue
		case exposeLAN:
			s.Scope = hcn.ScopeLAN
		case exposeAll:
		default:
			s.VIP = p.Expose
		}
		out = append(out, s.Policy())
	}
	return out
}

func newEndpointRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME…",
		Short:             "Remove endpoints",
		Long:              "Removes endpoints, detaching those that are attached. Their addresses are free again.",
		Example:           "  bulkhead endpoint rm web0",
		Args:              needNames("endpoint"),
		ValidArgsFunction: a.completeEndpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return endpoints(c).remove(ctx, name, func(e *hcn.HostComputeEndpoint) hcn.GUID { return e.ID }, c.DeleteEndpoint)
			})
		},
	}
}
