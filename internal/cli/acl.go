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

func newACLCmd(a *app) *cobra.Command {
	return group("acl", "Rules about what a container may send and receive",
		`An ACL rule allows or blocks packets at an endpoint's port of the switch, where nothing in
the container can reach it. The first rule of a direction turns its default: from then on
what no rule allows there is blocked. A change applies at once, to connections that exist
too. bulkhead rules shows all rules as they are evaluated, those of tiers and of the
network among them; bulkhead explain says what becomes of a packet.`,
		"  bulkhead acl add db --direction in --action allow --proto tcp --ports 5432 --remote 10.246.0.0/24\n  bulkhead acl rm db allow-in-tcp-5432",
		a.planned(newACLAddCmd(a)), newACLLsCmd(a), a.planned(newACLRmCmd(a)))
}

// aclFlags are the flags of a rule.
type aclFlags struct {
	network, id, direction, action, protocols, local, remote, ports, sourcePorts, ruleType string
	priority                                                                               uint16
}

func newACLAddCmd(a *app) *cobra.Command {
	var f aclFlags
	cmd := &cobra.Command{
		Use:   "add [flags] NAME",
		Short: "Add a rule to an endpoint",
		Long: `Adds a rule to a container's or an endpoint's port, and prints its ID. What is not given
matches everything. --ports are the destination's: the endpoint's own for --direction in,
the peer's for out. A prefix matches its own family only. The lower priority is asked first.

A rule of type host comes before all others, and has no priority: block goes before allow. The
first one brings its layer's default, by which TCP, UDP, ICMP and IGMP come in and other
protocols do not; what the layer lets pass the other rules judge.`,
		Example: `  bulkhead acl add db --action allow --proto tcp --ports 5432 --remote 10.246.0.0/24
  bulkhead acl add web --direction out --action block --remote 198.51.100.0/24,2001:db8::/32 --id no-lab
  bulkhead acl add web --direction out --action allow --priority 65500
  bulkhead acl add pbx --rule-type host --action allow --proto sctp`,
		Args: needArgs(1, 1, "container or endpoint"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.EqualFold(f.ruleType, string(hcn.RuleTypeHost)) && !cmd.Flags().Changed("priority") {
				f.priority = 0
			}
			rule, err := f.setting()
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			e, err := policyEndpoint(cmd.Context(), c, args[0], f.network)
			if err != nil {
				return err
			}
			for _, have := range aclsOf(e) {
				if have.setting.Id == rule.Id && have.setting != rule {
					return api.Errorf(api.KindConflict, "%s has a rule with the ID %s already", args[0], rule.Id).
						Hint("give it another --id, or bulkhead acl rm %s %s", args[0], rule.Id)
				}
			}
			if err := changePolicies(cmd.Context(), c, e.ID, hcn.RequestTypeAdd, hcn.NewEndpointPolicy(hcn.ACL, rule)); err != nil {
				return f.inFlags(err)
			}
			_, err = fmt.Fprintln(a.Stdout, clean(rule.Id))
			return err
		},
	}
	cmd.ValidArgsFunction = a.completeFirst(a.completeEndpoints)
	flags := cmd.Flags()
	flags.StringVar(&f.direction, "direction", "in", "in: what the endpoint receives; out: what it sends")
	flags.StringVar(&f.action, "action", "", "allow or block")
	flags.StringVar(&f.protocols, "proto", "", "tcp, udp, icmp, icmpv6, sctp or numbers, comma separated")
	flags.StringVar(&f.remote, "remote", "", "the peer's addresses: addresses, prefixes and IDs of address sets, comma separated")
	flags.StringVar(&f.local, "local", "", "the endpoint's own addresses, likewise")
	flags.StringVar(&f.ports, "ports", "", "destination ports and ranges, comma separated")
	flags.StringVar(&f.sourcePorts, "source-ports", "", "source ports, likewise")
	flags.Uint16Var(&f.priority, "priority", 100, "the lower is asked first; not of a rule of type host")
	flags.StringVar(&f.ruleType, "rule-type", "switch", "switch, or host for the layer before the others")
	flags.StringVar(&f.id, "id", "", "name of the rule (default made of what it says)")
	flags.StringVar(&f.network, "network", "", "which of the container's endpoints, by its network")
	complete(cmd, "direction", "in", "out")
	complete(cmd, "action", "allow", "block")
	complete(cmd, "rule-type", "switch", "host")
	completeFlag(cmd, "network", a.completeNetworks)
	return cmd
}

// inFlags names the flag that made a member of the rule which is refused.
func (f *aclFlags) inFlags(err error) error {
	e, ok := errors.AsType[*hcn.Error](err)
	if !ok {
		return err
	}
	rest, ok := strings.CutPrefix(e.Detail, "Settings.Policies[0].Settings.")
	member, what, hasMember := strings.Cut(rest, ": ")
	if !ok || !hasMember {
		return err
	}
	ports, source := "LocalPorts", "RemotePorts"
	if strings.EqualFold(f.direction, "out") {
		ports, source = source, ports
	}
	flag := map[string]string{
		"LocalAddresses": "local", "RemoteAddresses": "remote", ports: "ports", source: "source-ports", "Protocols": "proto", "Id": "id", "Priority": "priority",
	}[member]
	if flag == "" {
		return err
	}
	return api.Errorf(api.KindInvalid, "--%s: %s", flag, what).Hint("bulkhead acl add --help")
}

// setting is the HCN rule that the flags ask for.
func (f *aclFlags) setting() (hcn.AclPolicySetting, error) {
	s := hcn.AclPolicySetting{LocalAddresses: f.local, RemoteAddresses: f.remote, Priority: f.priority}
	switch strings.ToLower(f.ruleType) {
	case "switch":
		s.RuleType = hcn.RuleTypeSwitch
	case "host":
		s.RuleType = hcn.RuleTypeHost
	default:
		return s, api.Errorf(api.KindInvalid, "--rule-type %q is not known", f.ruleType).Hint("use switch or host")
	}
	switch strings.ToLower(f.direction) {
	case "in":
		s.Direction, s.LocalPorts, s.RemotePorts = hcn.DirectionTypeIn, f.ports, f.sourcePorts
	case "out":
		s.Direction, s.LocalPorts, s.RemotePorts = hcn.DirectionTypeOut, f.sourcePorts, f.ports
	default:
		return s, api.Errorf(api.KindInvalid, "--direction %q is not known", f.direction).Hint("use in or out")
	}
	switch strings.ToLower(f.action) {
	case "allow":
		s.Action = hcn.ActionTypeAllow
	case "block":
		s.Action = hcn.ActionTypeBlock
	case "":
		return s, api.Errorf(api.KindInvalid, "the --action is missing").Hint("use --action allow or --action block")
	default:
		return s, api.Errorf(api.KindInvalid, "--action %q is not known", f.action).Hint("use allow or block")
	}
	s.Protocols = protocolNumbers(f.protocols)
	words := []string{strings.ToLower(f.action), strings.ToLower(f.direction), f.protocols, f.remote, f.ports}
	if s.RuleType == hcn.RuleTypeHost {
		words = slices.Insert(words, 0, "host") // it differs from one of the switch that says the same
	}
	s.Id = cmp.Or(f.id, strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), "-"))
	return s, nil
}

// protocolNumbers turns names into HCN's numbers; what it does not know the daemon judges.
func protocolNumbers(list string) string {
	names := map[string]string{"tcp": "6", "udp": "17", "icmp": "1", "icmpv6": "58", "sctp": "132", "igmp": "2", "any": "256"}
	words := strings.Split(list, ",")
	for i, w := range words {
		w = strings.TrimSpace(w)
		words[i] = cmp.Or(names[strings.ToLower(w)], w)
	}
	return strings.Join(words, ",")
}

// policyEndpoint finds the endpoint that a word means: one of a container, or by itself.
func policyEndpoint(ctx context.Context, c *client.Client, word, network string) (*hcn.HostComputeEndpoint, error) {
	one, err := c.Container(ctx, word)
	if isNotFound(err) {
		return endpoints(c).find(ctx, word)
	}
	if err != nil {
		return nil, err
	}
	var found, all []string
	for _, e := range one.Endpoints {
		all = append(all, e.Network)
		if network == "" || e.Network == network {
			found = append(found, string(e.ID))
		}
	}
	switch {
	case len(found) == 1:
		return c.Endpoint(ctx, hcn.GUID(found[0]))
	case len(all) == 0:
		return nil, api.Errorf(api.KindConflict, "container %s has no endpoint of its own", word).Hint("bulkhead inspect %s", word)
	case len(found) == 0:
		return nil, api.Errorf(api.KindNotFound, "container %s is not on network %s, but on %s", word, network, strings.Join(all, ", "))
	}
	return nil, api.Errorf(api.KindConflict, "container %s is on several networks: %s", word, strings.Join(all, ", ")).Hint("say which with --network")
}

func changePolicies(ctx context.Context, c *client.Client, id hcn.GUID, what hcn.RequestType, policies ...hcn.EndpointPolicy) error {
	r, err := hcn.NewEndpointPolicyRequest(what, policies)
	if err != nil {
		return err
	}
	return c.ModifyEndpoint(ctx, id, r)
}

// acl is a rule as it stands in its endpoint.
type acl struct {
	policy  hcn.EndpointPolicy
	setting hcn.AclPolicySetting
}

func aclsOf(e *hcn.HostComputeEndpoint) []acl {
	var out []acl
	for _, p := range e.Policies {
		if p.Type != hcn.ACL {
			continue
		}
		if v, err := p.Decode(); err == nil {
			if s, ok := v.(hcn.AclPolicySetting); ok {
				out = append(out, acl{p, s})
			}
		}
	}
	return out
}

func newACLLsCmd(a *app) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "ls [flags] NAME",
		Aliases: []string{"list"},
		Short:   "List an endpoint's own rules as they were written, and what each has decided",
		Long: `Lists the ACL rules that an endpoint has of its own. MATCHES counts how often a rule
decided: once for each connection, and for each packet that belongs to none; PACKETS and
BYTES are of those, both ways. An endpoint that is not attached counts nothing. bulkhead
rules shows all rules that apply to it, in their order.`,
		Example: "  bulkhead acl ls web\n  bulkhead acl ls web -o json",
		Args:    needArgs(1, 1, "container or endpoint"),
	}
	cmd.ValidArgsFunction = a.completeFirst(a.completeEndpoints)
	cmd.Flags().StringVar(&network, "network", "", "which of the container's endpoints, by its network")
	completeFlag(cmd, "network", a.completeNetworks)
	a.shows(cmd, func(c *client.Client, form string, args []string) error {
		e, err := policyEndpoint(cmd.Context(), c, args[0], network)
		if err != nil {
			return err
		}
		rules, err := c.Rules(cmd.Context(), string(e.ID))
		if err != nil && !isNotFound(err) && !api.IsKind(err, api.KindConflict) { // it is not attached
			return err
		}
		return show(a, form, aclListing(countACLs(e, rules)))
	})
	return cmd
}

// countedACL is a rule and what it has counted; nil where it is on no switch.
type countedACL struct {
	hcn.AclPolicySetting
	Counters *ruleCounters `json:",omitempty"`
}

type ruleCounters struct{ Matches, Packets, Bytes uint64 }

// countACLs finds each rule of an endpoint among those of its port. Two that are written alike are found in their order.
func countACLs(e *hcn.HostComputeEndpoint, ports []api.EndpointRules) []countedACL {
	var rules []api.Rule
	for _, p := range ports {
		if strings.EqualFold(string(p.Endpoint), string(e.ID)) {
			rules = append(rules, p.Rules...)
		}
	}
	var out []countedACL
	for _, one := range aclsOf(e) {
		s := one.setting
		layer := "endpoint"
		if s.RuleType == hcn.RuleTypeHost {
			layer = "host"
		}
		row := countedACL{AclPolicySetting: s}
		i := slices.IndexFunc(rules, func(r api.Rule) bool {
			return r.Layer == layer && r.ID == s.Id && r.Priority == s.Priority &&
				strings.EqualFold(r.Direction, string(s.Direction)) && strings.EqualFold(r.Action, string(s.Action))
		})
		if i >= 0 {
			row.Counters = &ruleCounters{rules[i].Matches, rules[i].Packets, rules[i].Bytes}
			rules = slices.Delete(rules, i, i+1)
		}
		out = append(out, row)
	}
	return out
}

func aclListing(list []countedACL) listing[countedACL] {
	return listing[countedACL]{
		items: list,
		name:  func(s countedACL) string { return s.Id },
		head: []string{
			"ID", "DIRECTION", "ACTION", "PRIORITY", "PROTOCOLS", "LOCAL", "LOCAL PORTS", "REMOTE", "REMOTE PORTS", "TYPE", "MATCHES", "PACKETS", "BYTES",
		},
		row: func(s countedACL) []any {
			priority := "-"
			if s.Priority != 0 {
				priority = fmt.Sprint(s.Priority)
			}
			row := []any{
				orDash(s.Id), string(s.Direction), actionCell(strings.ToLower(string(s.Action))), priority, orDash(s.Protocols),
				orDash(s.LocalAddresses), orDash(s.LocalPorts), orDash(s.RemoteAddresses), orDash(s.RemotePorts),
				cmp.Or(string(s.RuleType), string(hcn.RuleTypeSwitch)),
			}
			if s.Counters == nil {
				return append(row, "-", "-", "-")
			}
			return append(row, s.Counters.Matches, s.Counters.Packets, size(int64(s.Counters.Bytes)))
		},
	}
}

func newACLRmCmd(a *app) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "rm [flags] NAME ID…",
		Short:   "Remove rules from an endpoint, by their IDs",
		Long:    "Removes an endpoint's own rules. With the last rule of a direction its default is to allow again.",
		Example: "  bulkhead acl rm web no-lab",
		Args:    needArgs(2, -1, "name, or the ID of a rule,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			e, err := policyEndpoint(cmd.Context(), c, args[0], network)
			if err != nil {
				return err
			}
			var gone []hcn.EndpointPolicy
			for _, id := range args[1:] {
				n := len(gone)
				for _, one := range aclsOf(e) {
					if one.setting.Id == id {
						gone = append(gone, one.policy)
					}
				}
				if len(gone) == n {
					return api.Errorf(api.KindNotFound, "%s has no rule of its own with the ID %q", args[0], id).Hint("bulkhead acl ls %s", args[0])
				}
			}
			return changePolicies(cmd.Context(), c, e.ID, hcn.RequestTypeRemove, gone...)
		},
	}
	cmd.ValidArgsFunction = a.completeFirst(a.completeEndpoints)
	cmd.Flags().StringVar(&network, "network", "", "which of the container's endpoints, by its network")
	completeFlag(cmd, "network", a.completeNetworks)
	return cmd
}
