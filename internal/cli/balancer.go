package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func newBalancerCmd(a *app) *cobra.Command {
	cmd := group("loadbalancer", "Load balancers: one address for several endpoints",
		`A load balancer has virtual addresses, or is at all addresses of the host. A connection to it
goes to one of its back ends, and stays there.`,
		"  bulkhead loadbalancer create --name web --vip 10.96.0.10 --port 80:8080 web1 web2\n  bulkhead loadbalancer ls",
		newBalancerLsCmd(a), a.planned(newBalancerCreateCmd(a)), newInspectKindCmd(a, "load balancer", kindBalancer),
		a.planned(newBalancerSetCmd(a)), a.planned(newBalancerRmCmd(a)))
	cmd.Aliases = []string{"lb"}
	return cmd
}

func newBalancerLsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List load balancers",
		Long:    "Lists load balancers. SERVICES are what clients ask for, and BACK ENDS who answers.",
		Example: "  bulkhead loadbalancer ls",
		Args:    noArgs,
	}
	a.shows(cmd, func(c *client.Client, form string, _ []string) error {
		list, err := c.LoadBalancers(cmd.Context())
		if err != nil {
			return err
		}
		eps, err := c.Endpoints(cmd.Context())
		if err != nil {
			return err
		}
		names := map[hcn.GUID]string{}
		for _, e := range eps {
			names[e.ID] = e.Name
		}
		return show(a, form, listing[hcn.HostComputeLoadBalancer]{
			items: list,
			name:  func(l hcn.HostComputeLoadBalancer) string { return nameOr(l.Name, l.ID) },
			head:  []string{"LOAD BALANCER ID", "NAME", "SERVICES", "BACK ENDS"},
			row: func(l hcn.HostComputeLoadBalancer) []any {
				var ends []string
				for _, id := range l.HostComputeEndpoints {
					name := names[id]
					if name == "" {
						name = shortGUID(id)
					}
					ends = append(ends, name)
				}
				to := cell{strings.Join(ends, ", "), plain}
				if len(ends) == 0 {
					to = cell{"none", red}
				}
				return []any{shortGUID(l.ID), orDash(l.Name), orDash(strings.Join(services(&l), ", ")), to}
			},
		})
	})
	return cmd
}

// services are what clients ask for, with the back ends' port where that is another.
func services(l *hcn.HostComputeLoadBalancer) []string {
	var out []string
	at := l.FrontendVIPs
	if len(at) == 0 {
		at = []string{"*"} // the host's own
	}
	for _, vip := range at {
		if strings.Contains(vip, ":") {
			vip = "[" + vip + "]"
		}
		for _, m := range l.PortMappings {
			s := vip + ":" + strconv.Itoa(int(m.External()))
			if m.Behind() != m.External() {
				s += "→" + strconv.Itoa(int(m.Behind()))
			}
			out = append(out, s+"/"+strings.ToLower(m.Protocol.String()))
		}
	}
	return out
}

// balancerFlags are those of a document.
type balancerFlags struct {
	name, network, source, affinity, expose string
	vips, ports                             []string
	preserve                                bool
}

func (f *balancerFlags) add(a *app, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name")
	flags.StringVar(&f.network, "network", "", "network whose endpoints are the clients; that of the back ends without it")
	flags.StringArrayVar(&f.vips, "vip", nil, "virtual address that clients connect to; without any, with --expose lan, all addresses of the host")
	flags.StringVar(&f.expose, "expose", exposeNetwork, "whose connections: those of the network's endpoints alone (network), or the host's and those from outside as well (lan)")
	flags.StringArrayVarP(&f.ports, "port", "p", nil, "port of the virtual addresses, and the back ends' where that is another: PORT[:BACKEND][/udp]")
	flags.StringVar(&f.affinity, "affinity", "none", "what connections of one client have in common: none, source (the back end), source-protocol (the same for each protocol)")
	flags.StringVar(&f.source, "source-vip", "", "address as which a back end sees itself when it is its own client; the virtual one without it. That of an endpoint in no container: also as which back ends that are not on this host see who comes by it")
	flags.BoolVar(&f.preserve, "preserve-dip", false, "deliver packets as they are: the back ends have the virtual address")
	completeFlag(cmd, "network", a.completeNetworks)
	complete(cmd, "expose", exposeNetwork, exposeLAN)
	complete(cmd, "affinity", "none", "source", "source-protocol")
}

// exposeNetwork is for the endpoints of a network alone.
const exposeNetwork = "network"

// internal says that the load balancer is for the endpoints of its network.
func (f *balancerFlags) internal() (bool, error) {
	switch {
	case f.expose == exposeLAN && f.preserve:
		return false, api.Errorf(api.KindInvalid, "--preserve-dip delivers to endpoints of the network alone, and --expose lan is for others, too").Hint("leave one of them out")
	case f.expose == exposeLAN:
		return false, nil
	case f.expose != exposeNetwork:
		return false, api.Errorf(api.KindInvalid, "--expose %q is not known", f.expose).Hint("use network or lan")
	}
	return true, nil
}

// document reads the flags and finds the back ends.
func (f *balancerFlags) document(ctx context.Context, c *client.Client, ends []string) (*hcn.HostComputeLoadBalancer, error) {
	doc := &hcn.HostComputeLoadBalancer{Name: f.name, Owner: owner, FrontendVIPs: f.vips, SourceVIP: f.source, SchemaVersion: hcn.V2()}
	spread := slices.Index([]string{"none", "source-protocol", "source"}, f.affinity)
	if spread < 0 {
		return nil, api.Errorf(api.KindInvalid, "--affinity %q is not known", f.affinity).Hint("use none, source or source-protocol")
	}
	internal, err := f.internal()
	if err != nil {
		return nil, err
	}
	for _, text := range f.ports {
		m, err := parseBalancedPort(text)
		if err != nil {
			return nil, err
		}
		m.DistributionType = hcn.DistributionType(spread)
		switch {
		case f.preserve: // which is for nobody else, either
			m.Flags |= hcn.EnablePreserveDip
		case internal:
			m.Flags |= hcn.EnableInternalLoadBalancer
		}
		doc.PortMappings = append(doc.PortMappings, m)
	}
	if internal && len(f.vips) == 0 {
		return nil, api.Errorf(api.KindInvalid, "it has no address: there is no --vip").Hint("give one, or --expose lan to be at all addresses of the host")
	}
	if f.network != "" {
		n, err := networks(c).find(ctx, f.network)
		if err != nil {
			return nil, err
		}
		doc.HostComputeNetwork = n.ID
	}
	doc.HostComputeEndpoints, err = findBackends(ctx, c, ends)
	return doc, err
}

func findBackends(ctx context.Context, c *client.Client, names []string) ([]hcn.GUID, error) {
	var out []hcn.GUID
	for _, name := range names {
		e, err := endpoints(c).find(ctx, name)
		if isNotFound(err) {
			id, elsewhere := findElsewhere(ctx, c, name)
			if elsewhere == nil {
				out = append(out, id)
				continue
			}
			err = cmp.Or(elsewhere, err)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e.ID)
	}
	return out, nil
}

// findElsewhere is the endpoint that a word names on another host of the cluster.
func findElsewhere(ctx context.Context, c *client.Client, word string) (hcn.GUID, error) {
	list, err := c.Addresses(ctx)
	if err != nil {
		return "", err
	}
	found := map[hcn.GUID]string{}
	for _, a := range list {
		if a.Kind == "remote" && (a.Name == word || string(a.Endpoint) == strings.ToUpper(word)) {
			found[a.Endpoint] = a.Network
		}
	}
	switch len(found) {
	case 0:
		return "", api.Errorf(api.KindNotFound, "no endpoint is called %q or has such an ID, here or on another host", word).Hint("bulkhead endpoint ls, or bulkhead address ls")
	case 1:
		return slices.Collect(maps.Keys(found))[0], nil
	}
	return "", api.Errorf(api.KindConflict, "%q means endpoints of other hosts on %d networks", word, len(found)).Hint("use the ID; bulkhead address ls -o json shows it")
}

// parseBalancedPort reads PORT[:BACKEND][/PROTOCOL].
func parseBalancedPort(text string) (hcn.LoadBalancerPortMapping, error) {
	bad := func() (hcn.LoadBalancerPortMapping, error) {
		return hcn.LoadBalancerPortMapping{}, api.Errorf(api.KindInvalid, "--port %q is no port of a load balancer", text).
			Hint("write PORT, or PORT:BACKEND where the back ends listen on another, and /udp for UDP: --port 80:8080")
	}
	ports, protocol, _ := strings.Cut(text, "/")
	m := hcn.LoadBalancerPortMapping{Protocol: hcn.ProtocolTCP}
	switch protocol {
	case "", "tcp":
	case "udp":
		m.Protocol = hcn.ProtocolUDP
	default:
		return bad()
	}
	outside, inside, both := strings.Cut(ports, ":")
	if !both {
		inside = outside
	}
	for _, p := range []struct {
		text string
		to   *uint16
	}{{outside, &m.ExternalPort}, {inside, &m.InternalPort}} {
		n, err := strconv.ParseUint(p.text, 10, 16)
		if err != nil || n == 0 {
			return bad()
		}
		*p.to = uint16(n)
	}
	return m, nil
}

func newBalancerCreateCmd(a *app) *cobra.Command {
	var f balancerFlags
	cmd := &cobra.Command{
		Use:   "create [flags] ENDPOINT…",
		Short: "Create a load balancer",
		Long: `Creates a load balancer of endpoints on one network and prints its ID. Those of containers
are endpoints, too. Without any it refuses connections until it gets one.`,
		Example: `  bulkhead loadbalancer create --name web --vip 10.96.0.10 --vip fd00:96::10 --port 80:8080 web1 web2
  bulkhead loadbalancer create --vip 10.96.0.11 --port 53/udp --affinity source dns1 dns2
  bulkhead loadbalancer create --name site --expose lan --port 30080:8080 web1 web2`,
		ValidArgsFunction: a.completeEndpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			doc, err := f.document(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			made, err := c.CreateLoadBalancer(cmd.Context(), doc)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, made.ID)
			return err
		},
	}
	f.add(a, cmd)
	return cmd
}

func newBalancerSetCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set NAME ENDPOINT…",
		Short: "Give a load balancer other back ends",
		Long: `Gives a load balancer the back ends that are named, in place of those that it has. Connections
to those that stay go on; those to others are reset.`,
		Example: "  bulkhead loadbalancer set web web1 web3",
		Args:    needArgs(2, -1, "load balancer or back end"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeBalancers(cmd, args, begun)
			}
			return a.completeEndpoints(cmd, args, begun)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			doc, err := balancers(c).find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if doc.HostComputeEndpoints, err = findBackends(cmd.Context(), c, args[1:]); err != nil {
				return err
			}
			return c.ModifyLoadBalancer(cmd.Context(), doc.ID, doc)
		},
	}
	return cmd
}

func newBalancerRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME…",
		Short:             "Remove load balancers",
		Long:              "Removes load balancers. Their addresses lead to nobody then; the back ends stay.",
		Example:           "  bulkhead loadbalancer rm web",
		Args:              needNames("load balancer"),
		ValidArgsFunction: a.completeBalancers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error {
				return balancers(c).remove(ctx, name, func(l *hcn.HostComputeLoadBalancer) hcn.GUID { return l.ID }, c.DeleteLoadBalancer)
			})
		},
	}
}
