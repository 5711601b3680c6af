package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// This file turns the policies of an endpoint and its network into what the switch
// decides at the endpoint's port: one flat list of rules for each direction.
//
// The list is the layers one after the other: the Host rules, the tiers by their
// order, the network's rules, the endpoint's own. The first match decides, and a
// Pass goes on behind the layer that it is in. docs/policy.md says the same to
// those who write rules.

// written is a rule as its author wrote it.
type written struct {
	layer    Layer
	policy   string // the policy that it stands in, for people
	tier     string
	id       string
	dir      hcn.DirectionType
	action   hcn.ActionType
	priority uint16
	implied  bool
	// fields as they were written: the rule's number follows from them.
	fields [5]string
	match  hcn.RuleMatch
}

func aclRule(s hcn.AclPolicySetting, layer Layer) (written, error) {
	w := written{
		layer: layer, policy: "ACL", id: s.Id, dir: s.Direction, action: s.Action, priority: s.Priority,
		fields: [5]string{s.Protocols, s.LocalAddresses, s.RemoteAddresses, s.LocalPorts, s.RemotePorts},
	}
	if layer == LayerNetwork {
		w.policy = "NetworkACL"
	}
	if s.RuleType == hcn.RuleTypeHost {
		w.layer, w.policy = LayerHost, "Host "+w.policy
	}
	var err error
	w.match, err = s.Match()
	return w, err
}

func tierRule(t hcn.TierAclPolicySetting, r hcn.TierAclRule) (written, error) {
	w := written{
		layer: LayerTier, policy: "TierAcl", tier: t.Name, id: r.Id, dir: t.Direction, action: r.TierAclRuleAction, priority: r.Priority,
		fields: [5]string{r.Protocols, r.LocalAddresses, r.RemoteAddresses, r.LocalPorts, r.RemotePorts},
	}
	var err error
	w.match, err = r.Match()
	return w, err
}

// endpointRules are the rules of an endpoint's own policies, in groups that are
// evaluated one after the other.
type endpointRules struct {
	host, own []written
	tiers     [][]written // of both directions
}

func readEndpointRules(e *Endpoint) (endpointRules, error) {
	var r endpointRules
	acls, err := hcn.SettingsOf[hcn.AclPolicySetting](e.Doc.Policies)
	if err != nil {
		return r, err
	}
	for _, s := range acls {
		w, err := aclRule(s, LayerEndpoint)
		if err != nil {
			return r, err
		}
		if w.layer == LayerHost {
			r.host = append(r.host, w)
		} else {
			r.own = append(r.own, w)
		}
	}
	tiers, err := hcn.SettingsOf[hcn.TierAclPolicySetting](e.Doc.Policies)
	if err != nil {
		return r, err
	}
	slices.SortStableFunc(tiers, func(a, b hcn.TierAclPolicySetting) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name))
	})
	for _, t := range tiers {
		var group []written
		for _, s := range t.TierAclRules {
			w, err := tierRule(t, s)
			if err != nil {
				return r, err
			}
			group = append(group, w)
		}
		r.tiers = append(r.tiers, group)
	}
	return r, nil
}

// endpointPolicy is what the last compile made of an endpoint's policies, and what
// it made it of.
type endpointPolicy struct {
	row  *Endpoint
	acls *networkACLs
	// refs are the sets that the rules name, holds which of them hold an address of
	// the endpoint: all that the lists depend on of a set's content.
	refs   []string
	holds  []bool
	policy Policy
}

// endpointPolicy compiles the policy of an endpoint's port, or finds that it is what
// it was: an endpoint may have thousands of rules.
func (p *Plan) endpointPolicy(e *Endpoint, n *networkRules) Policy {
	id := e.Doc.ID
	if old := p.policies[id]; old != nil && old.row == e && old.acls == n.acls && slices.Equal(old.holds, n.hold(old.refs, e)) {
		return old.policy
	}
	c := &endpointPolicy{row: e, acls: n.acls}
	c.compile(n)
	p.policies[id] = c
	return c.policy
}

func (n *networkRules) hold(refs []string, e *Endpoint) []bool {
	var out []bool
	addrs := addrsOf(e)
	for _, id := range refs {
		out = append(out, n.sets[id].holds(addrs))
	}
	return out
}

func addrsOf(e *Endpoint) []netip.Addr {
	out := make([]netip.Addr, len(e.Addrs))
	for i, a := range e.Addrs {
		out[i] = a.Addr()
	}
	return out
}

func (c *endpointPolicy) compile(n *networkRules) {
	e := c.row
	c.policy.Isolated = e.Doc.Flags&hcn.DisableInterComputeCommunication != 0
	own, err := readEndpointRules(e)
	if err = cmp.Or(err, n.acls.err); err != nil {
		// The documents were checked when they came in. Should one be unreadable all
		// the same, its author wanted a filter, and no rules must not mean no filter.
		c.policy.In, c.policy.Out = newList(nil, Block), newList(nil, Block)
		return
	}
	if s, err := hcn.SettingsOf[hcn.QosPolicySetting](e.Doc.Policies); err == nil && len(s) > 0 {
		c.policy.RateOut = s[0].MaximumOutgoingBandwidthInBytes
	}
	if s, err := hcn.SettingsOf[hcn.IncomingQosSetting](e.Doc.Policies); err == nil && len(s) > 0 {
		c.policy.RateIn = s[0].MaximumIncomingBandwidthInBytes
	}
	host := slices.Clone(own.host)
	var network []written
	for _, w := range n.acls.rules {
		if w.layer == LayerHost {
			host = append(host, w)
		} else {
			network = append(network, w)
		}
	}
	if len(host) > 0 {
		host = append(host, impliedHostRules()...)
	}
	groups := slices.Concat([][]written{host}, own.tiers, [][]written{network, own.own})
	c.refs = setRefs(groups)
	c.holds = n.hold(c.refs, e)
	side := sides{addrs: addrsOf(e), sets: n.sets}
	numbers := map[uint32]bool{}
	c.policy.In = flatten(hcn.DirectionTypeIn, groups, side, numbers)
	c.policy.Out = flatten(hcn.DirectionTypeOut, groups, side, numbers)
}

// impliedHostRules are the host layer's default (HCN, "ACL semantics"): TCP, UDP,
// ICMP and IGMP pass, other protocols do not come in. What leaves passes anyway,
// because a layer without a match goes on to the next.
func impliedHostRules() []written {
	common := []uint8{1, 2, 6, 17, 58}
	return []written{
		{layer: LayerHost, implied: true, dir: hcn.DirectionTypeIn, action: hcn.ActionTypeAllow, match: hcn.RuleMatch{Protocols: common}},
		{layer: LayerHost, implied: true, dir: hcn.DirectionTypeIn, action: hcn.ActionTypeBlock},
	}
}

func setRefs(groups [][]written) []string {
	var out []string
	for _, g := range groups {
		for _, w := range g {
			out = append(out, w.match.Local.Sets...)
			out = append(out, w.match.Remote.Sets...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// flatten makes one direction's list of the groups, or nil when none has a rule for
// it. As soon as a rule of the switch exists, what no rule matches is blocked; a Host
// rule alone does not turn the default.
func flatten(dir hcn.DirectionType, groups [][]written, side sides, numbers map[uint32]bool) *RuleList {
	var rules []Rule
	fallback := Allow
	for _, g := range groups {
		var group []*written
		for i := range g {
			if g[i].dir == dir {
				group = append(group, &g[i])
			}
		}
		slices.SortStableFunc(group, compareWritten)
		end := len(rules) + len(group)
		for _, w := range group {
			if w.layer != LayerHost {
				fallback = Block
			}
			r := w.rule(side)
			if r.Action == Pass {
				r.Next = end
			}
			r.Number = number(w, numbers)
			rules = append(rules, r)
		}
	}
	if len(rules) == 0 {
		return nil
	}
	return newList(rules, fallback)
}

// compareWritten is the order in a layer: the lower priority number first, rules
// without one last, and at the same priority Block before Allow before Pass. The
// rules that nobody wrote are behind them all, in their own order.
func compareWritten(a, b *written) int {
	rank := func(w *written) (int, int, int) {
		switch {
		case w.implied:
			return 2, 0, 0
		case w.priority == 0:
			return 1, 0, actionRank(w.action)
		}
		return 0, int(w.priority), actionRank(w.action)
	}
	a1, a2, a3 := rank(a)
	b1, b2, b3 := rank(b)
	return cmp.Or(cmp.Compare(a1, b1), cmp.Compare(a2, b2), cmp.Compare(a3, b3))
}

func actionRank(a hcn.ActionType) int {
	switch a {
	case hcn.ActionTypeBlock:
		return 0
	case hcn.ActionTypeAllow:
		return 1
	default:
		return 2
	}
}

// rule is the rule as the switch evaluates it.
func (w *written) rule(side sides) Rule {
	r := Rule{Protocols: w.match.Protocols, LocalPorts: portRanges(w.match.LocalPorts), RemotePorts: portRanges(w.match.RemotePorts)}
	r.Local, r.Remote = side.of(w)
	switch {
	case w.action == hcn.ActionTypeBlock:
		r.Action = Block
	case w.action == hcn.ActionTypePass, w.layer == LayerHost:
		r.Action = Pass // what the host's firewall allows, the switch's rules still judge
	default:
		r.Action = Allow
	}
	r.Source = RuleSource{Layer: w.layer, Tier: w.tier, ID: w.id, Priority: w.priority, Implied: w.implied}
	r.Source.Text = w.text(&r)
	return r
}

func portRanges(in []hcn.PortRange) []PortRange {
	var out []PortRange
	for _, p := range in {
		out = append(out, PortRange(p))
	}
	return out
}
