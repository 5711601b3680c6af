package plan

import (
	"net/netip"
	"slices"
)

// judge runs a port's list over the packet, notes what it found, and tells whether the
// packet goes on.
func (t *tracer) judge(layer string, port *Port, list *RuleList, reason string, decided **Rule) bool {
	if list == nil {
		t.step(layer, port.ID, nil, "no rules")
		return true
	}
	k := &t.pkt
	q := question{sets: t.sw.Sets, protocol: k.Protocol, local: k.Src, remote: k.Dst}
	if k.Protocol == protoTCP || k.Protocol == protoUDP {
		q.localPort, q.remotePort = k.SrcPort, k.DstPort
	}
	if layer == "rules in" {
		q.local, q.remote, q.localPort, q.remotePort = q.remote, q.local, q.remotePort, q.localPort
	}
	action, rule := q.decide(list)
	*decided = rule
	if rule != nil {
		t.Rule = rule
	}
	text := "no rule matches, and the default is to " + action.String()
	if rule != nil {
		text = rule.Source.Text
	}
	if action != Allow {
		t.Rule = rule
		t.drop(layer, port.ID, reason, "%s", text)
		return false
	}
	t.step(layer, port.ID, rule, "%s", text)
	return true
}

// question is what a list is asked about a packet, from the endpoint's side.
type question struct {
	sets                  map[string][]netip.Prefix
	protocol              uint8
	local, remote         netip.Addr
	localPort, remotePort uint16
}

// decide walks the list: the first match decides, a Pass goes on behind its layer. The
// rule is nil when the default decides.
func (q *question) decide(l *RuleList) (Action, *Rule) {
	for i := 0; i < len(l.Rules); {
		r := &l.Rules[i]
		switch {
		case !q.matches(r):
			i++
		case r.Action == Pass:
			i = max(r.Next, i+1) // never back, whatever the list says
		default:
			return r.Action, r
		}
	}
	return l.Default, nil
}

func (q *question) matches(r *Rule) bool {
	if len(r.Protocols) > 0 && !slices.Contains(r.Protocols, q.protocol) {
		return false
	}
	return q.inPorts(r.LocalPorts, q.localPort) && q.inPorts(r.RemotePorts, q.remotePort) &&
		q.inAddresses(r.Local, q.local) && q.inAddresses(r.Remote, q.remote)
}

// inPorts: a rule with ports is about protocols that have some.
func (q *question) inPorts(list []PortRange, port uint16) bool {
	if len(list) == 0 {
		return true
	}
	return (q.protocol == protoTCP || q.protocol == protoUDP) &&
		slices.ContainsFunc(list, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

// inAddresses: a prefix holds addresses of its own family only, and a set that is empty
// or gone holds none.
func (q *question) inAddresses(a Addresses, addr netip.Addr) bool {
	holds := func(p netip.Prefix) bool { return p.Contains(addr) }
	return a.Any() || slices.ContainsFunc(a.Prefixes, holds) ||
		slices.ContainsFunc(a.Sets, func(id string) bool { return slices.ContainsFunc(q.sets[id], holds) })
}
