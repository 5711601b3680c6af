package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// This file and its neighbours follow a packet from one end to the other: through the
// compartment's routes, the switch ([Plan.Trace]), and the host's stack with its
// translation and other people's firewalls. A way over the host has two legs on
// switches; each is a packet that the loaded program can be asked about too.

// PartyKind says what one side of an inquiry is.
type PartyKind uint8

// The kinds of party.
const (
	PartyPorts   PartyKind = iota + 1 // a container or an endpoint
	PartyHost                         // the host's own stack
	PartyOutside                      // an address that is neither
)

// Party is one side of an inquiry.
type Party struct {
	Kind PartyKind
	// Name as it was asked for.
	Name string
	// Ports of a container or endpoint; all are of one compartment.
	Ports []*Port
	// Compartment names theirs where there is no container in it.
	Compartment string
	// Addr that was asked for; invalid: any that fits.
	Addr netip.Addr
	// Remote is the endpoint on another host that is meant, which has Addr. Its Kind is PartyOutside.
	Remote *Remote
}

// Inquiry is a question about the first packet of a flow.
type Inquiry struct {
	From, To Party
	Protocol uint8 // ICMP stands for an echo, in either family
	Port     uint16
	V6       bool
}

// HostView is what is known of the host's stack.
type HostView struct {
	// Addrs of the host on devices that are not ours.
	Addrs []netip.Prefix
	// Route asks the host's tables.
	Route func(netip.Addr) (HostRoute, error)
	// Forwards tells whether packets that come in by a device are forwarded.
	Forwards func(device string, v6 bool) bool
	// Chains of others that may stop a packet.
	Chains []ForeignChain
	// Unread says why tables of iptables-legacy could not be read, in IPv4 and in IPv6.
	Unread [2]string
	// BridgeFilter tells that br_netfilter passes bridged frames to these chains.
	BridgeFilter bool
}

// HostRoute is a way out of the host's stack.
type HostRoute struct {
	Device string
	Via    netip.Addr // invalid: on-link
	Src    netip.Addr
	// Broadcast: the address is that of everybody on the device's link.
	Broadcast bool
}

// ForeignChain is a base chain of somebody else's firewall.
type ForeignChain struct {
	Table, Chain string // the table with its family
	// Tool is what shows the chain where nft does not: "iptables-legacy" or "ip6tables-legacy". The table has no family then.
	Tool       string
	Hook       string // "forward", "input", "output", "prerouting" or "postrouting"
	V4, V6     bool   // the families that it sees
	DropPolicy bool
	Rules      int
	// Drops: one of its rules, or of a chain of its table, drops or rejects.
	Drops bool
}

// Explanation is the way of one packet.
type Explanation struct {
	Src, Dst  netip.Addr
	Reachable bool
	// Summary is the verdict in a sentence.
	Summary string
	Steps   []Step
	// Doubts are what may stop the packet all the same.
	Doubts []string
	// Outside says that a switch outside decides whether it arrives: a probe that does not is no contradiction.
	Outside bool
	// Reason of a drop, and who decided: a rule of a port, or nil for its default.
	Reason string
	At     PortID
	Rule   *Rule
	// Next is the command that changes it, where no rule is to blame.
	Next string
	// NoProbe says why a packet of the kind cannot be sent.
	NoProbe string
	// Legs are the parts of the way that lead over a switch.
	Legs []Leg
	// Tunnel is set where the packet leaves for an endpoint on another host.
	Tunnel *Tunnelled
}

// Tunnelled is a packet that another host gets.
type Tunnelled struct {
	To       *Remote
	Src, Dst netip.Addr
	Port     uint16
}

// Leg is a packet on one switch, and what becomes of it.
type Leg struct {
	Packet Packet
	Trace  Trace
}

type explainer struct {
	Explanation
	plan *Plan
	host *HostView
	q    Inquiry
}

// The layers of an explanation that are not the switch's.
const (
	layerName     = "name"
	layerRoute    = "route"
	layerNAT      = "nat"
	layerHost     = "host"
	layerFirewall = "firewall"
	layerMTU      = "mtu"
	layerRedirect = "redirect"
)

// Explain follows the first packet of a flow from end to end.
func (p *Plan) Explain(q Inquiry, host *HostView) Explanation {
	e := &explainer{plan: p, host: host, q: q}
	switch q.From.Kind {
	case PartyPorts:
		e.fromContainer()
	case PartyHost:
		e.fromHost()
	default:
		e.fromOutside()
	}
	return e.Explanation
}

func (e *explainer) step(layer string, port PortID, format string, args ...any) {
	e.Steps = append(e.Steps, Step{Layer: layer, Port: port, Pass: true, Text: fmt.Sprintf(format, args...)})
}

// fail ends the way.
func (e *explainer) fail(layer string, port PortID, next, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	e.Steps = append(e.Steps, Step{Layer: layer, Port: port, Text: text})
	e.Summary, e.Next, e.At = text, next, port
}

func (e *explainer) arrive(format string, args ...any) {
	e.Reachable = true
	e.Summary = fmt.Sprintf(format, args...)
}

func (e *explainer) fits(a netip.Addr) bool { return a.IsValid() && a.Is6() == e.q.V6 }

func (e *explainer) family() string {
	if e.q.V6 {
		return "IPv6"
	}
	return "IPv4"
}

// addrOf is a port's address of the family, the one that was asked for if it is one of them.
func (e *explainer) addrOf(p *Port, asked netip.Addr) netip.Addr {
	if slices.Contains(p.Addrs, asked) {
		return asked
	}
	for _, a := range p.Addrs {
		if e.fits(a) {
			return a
		}
	}
	return netip.Addr{}
}

// gateway is a switch's gateway address of the family.
func (e *explainer) gateway(sw *Switch) netip.Addr {
	for _, s := range sw.Subnets {
		if e.fits(s.Gateway) {
			return s.Gateway
		}
	}
	return netip.Addr{}
}

// sourcePort is one that a stack might have picked.
const sourcePort = 40000

// leg judges a packet on a switch, and tells whether it goes on.
func (e *explainer) leg(k Packet) *Trace {
	k.Protocol = e.q.Protocol
	switch {
	case k.Protocol == protoTCP || k.Protocol == protoUDP:
		k.SrcPort = sourcePort
	case k.Protocol == protoICMP && e.q.V6:
		k.Protocol, k.ICMPType = protoICMPv6, 128
	case k.Protocol == protoICMP:
		k.ICMPType = 8
	}
	k = e.plan.Complete(k)
	t := e.plan.Trace(k)
	e.Legs = append(e.Legs, Leg{k, t})
	e.Steps = append(e.Steps, t.Steps...)
	if t.Verdict != Dropped {
		return &t
	}
	last := t.Steps[len(t.Steps)-1]
	e.Reason, e.Rule, e.At = t.Reason, t.Rule, last.Port
	e.Summary = fmt.Sprintf("dropped at %s: %s", last.Layer, last.Text)
	return nil
}

// foreign asks the chains of others on a hook, and tells whether the packet goes on. What
// their rules match is not looked into.
func (e *explainer) foreign(hook string) bool {
	e.legacy()
	hooks := map[string][]string{
		"input": {"prerouting", "input"}, "forward": {"prerouting", "forward", "postrouting"}, "output": {"output", "postrouting"},
	}[hook]
	before := len(e.Steps)
	for _, c := range e.host.Chains {
		if !slices.Contains(hooks, c.Hook) || e.q.V6 && !c.V6 || !e.q.V6 && !c.V4 {
			continue
		}
		name := fmt.Sprintf("%s (hook %s)", chainTitle(c.Tool, c.Table, c.Chain), c.Hook)
		list := "nft list chain " + c.Table + " " + c.Chain
		evaluated := "which are not evaluated without --probe"
		if c.Tool != "" {
			list = c.Tool + " -t " + c.Table + " -S " + c.Chain
			evaluated = "which are not evaluated, and of which --probe knows the counters only"
		}
		switch {
		case c.DropPolicy && c.Rules == 0:
			e.fail(layerFirewall, "", list, "%s drops everything: it has no rules, and its policy is drop", name)
			return false
		case c.DropPolicy:
			e.doubt("%s drops what none of its %d rules accepts, %s: %s", name, c.Rules, evaluated, list)
		case c.Drops:
			e.doubt("%s has rules that drop, %s: %s", name, evaluated, list)
		default:
			e.step(layerFirewall, "", "%s drops nothing", name)
		}
	}
	if e.host.BridgeFilter {
		e.step(layerFirewall, "", "br_netfilter shows frames in other tools' bridges to these chains; ours are in no bridge")
	}
	if len(e.Steps) == before {
		e.step(layerFirewall, "", "no other table has chains on %s", strings.Join(hooks, ", "))
	}
	return true
}

// chainTitle names a chain; tool is empty for those of nftables.
func chainTitle(tool, table, chain string) string {
	if tool != "" {
		tool += " "
	}
	return tool + "table " + table + ", chain " + chain
}

// legacy names tables of iptables-legacy that could not be read: they may stop anything.
func (e *explainer) legacy() {
	i, tool := 0, "iptables-legacy"
	if e.q.V6 {
		i, tool = 1, "ip6tables-legacy"
	}
	if e.host.Unread[i] == "" {
		return
	}
	text := fmt.Sprintf("%s has tables, which may drop and cannot be read (%s): %s -S", tool, e.host.Unread[i], tool)
	if !slices.Contains(e.Doubts, text) {
		e.doubt("%s", text)
	}
}

func (e *explainer) doubt(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	e.Doubts = append(e.Doubts, text)
	e.step(layerFirewall, "", "%s", text)
}

// forwarding is the host's own setting.
func (e *explainer) forwarding(device string) bool {
	setting := "net.ipv4.conf." + device + ".forwarding"
	if e.q.V6 {
		setting = strings.Replace(setting, "ipv4", "ipv6", 1)
	}
	if !e.host.Forwards(device, e.q.V6) {
		e.fail(layerHost, "", "sysctl -w "+setting+"=1", "the host does not forward %s that comes in by %s: %s is 0", e.family(), device, setting)
		return false
	}
	e.step(layerHost, "", "%s is 1", setting)
	return true
}

// hostAddress tells whether an address is the host's own, gateways included.
func (e *explainer) hostAddress(a netip.Addr) bool {
	if a.IsLoopback() || slices.ContainsFunc(e.host.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
		return true
	}
	for _, p := range e.plan.Ports {
		if p.Kind == PortHost && (slices.Contains(p.Addrs, a) || p.LinkLocal == a) {
			return true
		}
	}
	return false
}
