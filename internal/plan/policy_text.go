package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// mostInText bounds the entries of a list in a rule's line.
const mostInText = 8

// String is the action's name.
func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Block:
		return "block"
	case Pass:
		return "pass"
	}
	return fmt.Sprintf("action %d", a)
}

// text is the rule in one line: what it does, with which packets, and where it was
// written. The sides are those that it is evaluated with.
func (w *written) text(r *Rule) string {
	from, fromPorts, to, toPorts := r.Local, r.LocalPorts, r.Remote, r.RemotePorts
	if w.dir == hcn.DirectionTypeIn {
		from, fromPorts, to, toPorts = r.Remote, r.RemotePorts, r.Local, r.LocalPorts
	}
	return fmt.Sprintf("%s %s %s%s%s (%s)", w.action, w.dir, protocolsText(r.Protocols),
		sideText("from", from, fromPorts), sideText("to", to, toPorts), w.origin())
}

func (w *written) origin() string {
	if w.implied {
		return "default of the host layer"
	}
	s := w.policy
	if w.tier != "" {
		s = "tier " + strconv.Quote(w.tier)
	}
	if w.id != "" && w.tier != "" {
		s += " rule"
	}
	if w.id != "" {
		s += " " + strconv.Quote(w.id)
	}
	if w.priority != 0 {
		s += fmt.Sprintf(" priority %d", w.priority)
	}
	return s
}

// ProtocolName names an IP protocol, by its number where it has no common name.
func ProtocolName(p uint8) string {
	switch p {
	case 1:
		return "ICMP"
	case 2:
		return "IGMP"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 58:
		return "ICMPv6"
	case 132:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", p)
}

func protocolsText(list []uint8) string {
	if len(list) == 0 {
		return "any"
	}
	return shortList(list, ProtocolName)
}

func sideText(word string, a Addresses, ports []PortRange) string {
	var out []string
	if len(a.Prefixes) > 0 {
		out = append(out, shortList(a.Prefixes, addressText))
	}
	if len(a.Sets) > 0 {
		out = append(out, shortList(a.Sets, func(id string) string { return "set " + strconv.Quote(id) }))
	}
	s := strings.Join(out, ",")
	if len(ports) > 0 {
		s = strings.TrimPrefix(s+" port "+shortList(ports, PortRange.String), " ")
	}
	return optional(" "+word+" ", s)
}

// addressText leaves out the length of a host's prefix.
func addressText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// String is one port or both ends.
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// shortList joins a list, and only counts what is too much for a line.
func shortList[T any](list []T, text func(T) string) string {
	out := make([]string, 0, mostInText+1)
	for i, v := range list {
		if i == mostInText {
			out = append(out, fmt.Sprintf("… (%d in all)", len(list)))
			break
		}
		out = append(out, text(v))
	}
	return strings.Join(out, ",")
}

// text writes the policy below its port.
func (p *Policy) text(b *strings.Builder) {
	if p.Isolated {
		b.WriteString("    isolated\n")
	}
	if p.RateOut > 0 {
		fmt.Fprintf(b, "    rate out %d bytes/s\n", p.RateOut)
	}
	if p.RateIn > 0 {
		fmt.Fprintf(b, "    rate in %d bytes/s\n", p.RateIn)
	}
	p.Out.text(b, "out")
	p.In.text(b, "in")
}

func (l *RuleList) text(b *strings.Builder, dir string) {
	if l == nil {
		return
	}
	fmt.Fprintf(b, "    rules %s, default %s\n", dir, l.Default)
	for i := range l.Rules {
		r := &l.Rules[i]
		action := r.Action.String()
		if r.Action == Pass {
			action += fmt.Sprintf(" to %d", r.Next)
		}
		fmt.Fprintf(b, "        %d #%08x %s: %s\n", i, r.Number, action, r.Source.Text)
	}
}

func (s *Switch) setsText(b *strings.Builder) {
	for _, id := range slices.Sorted(maps.Keys(s.Sets)) {
		addrs := shortList(s.Sets[id], addressText)
		if addrs == "" {
			addrs = "is empty"
		}
		fmt.Fprintf(b, "    set %q %s\n", id, addrs)
	}
}
