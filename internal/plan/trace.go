package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// This file and its neighbours are the switch told in Go: what its program does with a
// packet, layer by layer, from the same plan that the program's maps are filled from.
// It is what `explain` prints. It is written for reading, with plain loops over the
// plan, and owes nothing to the look-ups of the kernel's side; a property test holds
// the two to one verdict.

// Packet is the first packet of a flow, with a unicast destination, as a vNIC sends it.
type Packet struct {
	// From is the port whose vNIC sends. What is from an uplink port comes from the wire,
	// or, with Host, from the host's own stack; VLAN is its tag there.
	From PortID
	Host bool
	VLAN uint16
	// SrcMAC and DstMAC that are zero are the right ones: the sender's, and that of
	// whoever has Dst on the switch, or else the gateway's.
	SrcMAC, DstMAC MAC
	// What is from a tunnel port came in a packet of the virtual network VNI, from one address in the underlay to another; one
	// that is not valid is the right one.
	VNI                uint32
	OuterSrc, OuterDst netip.Addr
	OuterPort          uint16
	// EtherType 0 is that of Src's family.
	EtherType uint16
	Src, Dst  netip.Addr
	// Protocol is that of the transport header. Extension headers of IPv6 have no say
	// in a verdict, so there are none here.
	Protocol           uint8
	SrcPort, DstPort   uint16 // TCP and UDP
	ICMPType, ICMPCode uint8  // ICMP and ICMPv6
}

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts.
const (
	// NotTraced: no IP packet, or neighbour discovery. The switch answers or checks
	// those itself, by more than a Packet holds.
	NotTraced Verdict = iota
	// Delivered to the vNIC behind To, in a compartment.
	Delivered
	// ToHost: delivered to the host's stack, by the port To.
	ToHost
	// Flooded: a copy to each other port, judged there by that port's own rules.
	Flooded
	// Dropped, for Reason.
	Dropped
	// ToWire: out of the uplink, To.
	ToWire
	// Passed: what is at the uplink is for nobody on the switch, and goes where it went
	// without one.
	Passed
	// ToRemote: to another host, by the tunnel port To.
	ToRemote
)

// RouterMAC stands for that of any machine on the wire.
func RouterMAC() MAC { return MAC{0x02, 0xb0, 0x1c, 0, 0, 1} }

// String is the verdict's name.
func (v Verdict) String() string {
	names := []string{"not traced", "delivered", "to host", "flooded", "dropped", "to wire", "passed", "to another host"}
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("verdict %d", v)
}

// Trace is the way of a packet through the switch.
type Trace struct {
	Verdict Verdict
	// To is the port that a delivered packet leaves by.
	To PortID
	// Reason of a drop: the short name that the switch counts it under.
	Reason string
	// Out and In are the rules that decided in the sender's and in the receiver's
	// list. Nil: no list, or none matched and the list's default decided.
	Out, In *Rule
	// Backend is the one that a load balancer has chosen; not valid without one.
	Backend netip.AddrPort
	// Rule is the one that the verdict is due to: the rule that blocked, or the last
	// one that allowed.
	Rule *Rule
	// Steps in the order in which the switch takes them; the last one is where a
	// dropped packet ended.
	Steps []Step
}

// Number of the rule that decided, 0 for none.
func (t *Trace) Number() uint32 {
	if t.Rule == nil {
		return 0
	}
	return t.Rule.Number
}

// Step is one layer's part.
type Step struct {
	// Layer is "source guard", "load balancer", "switching", "isolation", "rules out" or "rules in".
	Layer string
	// Port whose layer it is.
	Port PortID
	// Pass says that the packet goes on.
	Pass bool
	Rule *Rule // that decided here
	Text string
}

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
	etherARP  = 0x0806
)

const (
	protoICMP   = 1
	protoIGMP   = 2
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// Complete fills in what a packet leaves to the plan: its EtherType and its MACs.
func (p *Plan) Complete(pkt Packet) Packet {
	t := &tracer{plan: p, pkt: pkt, from: p.Ports[pkt.From]}
	if t.from != nil {
		t.sw = p.Switches[t.from.Network]
		if t.from.Kind == PortTunnel {
			t.sw = p.byVNI(t.from, pkt.VNI)
		}
		if t.from.Kind == PortUplink {
			for _, sw := range p.onNIC(t.from) {
				if t.sw = sw; t.owner(pkt.Dst) != nil {
					break
				}
			}
		}
	}
	if t.sw != nil {
		t.complete()
	}
	return t.pkt
}

// Trace follows a packet through the switch of the port that sends it.
func (p *Plan) Trace(pkt Packet) Trace {
	t := &tracer{plan: p, pkt: pkt, from: p.Ports[pkt.From]}
	if t.from != nil {
		t.sw = p.Switches[t.from.Network]
	}
	if t.from != nil && t.from.Kind == PortTunnel {
		return p.traceTunnel(t)
	}
	if t.sw == nil {
		t.drop("switching", pkt.From, "unknown-port", "port %s is on no switch", pkt.From)
		return t.Trace
	}
	if t.from.Kind == PortUplink {
		return p.traceNIC(t)
	}
	t.complete()
	if !t.isIP() {
		return t.Trace
	}
	if reason := t.guard(); reason != "" {
		t.drop("source guard", pkt.From, reason, "the sender may not send this: %s", reason)
		return t.Trace
	}
	t.step("source guard", pkt.From, nil, "%s from %s is the sender's own", t.pkt.SrcMAC, t.pkt.Src)
	if t.icmp6(ndSolicit) || t.icmp6(ndAdvert) {
		return t.Trace
	}
	if t.pkt.DstMAC[0]&1 != 0 {
		t.flood()
		return t.Trace
	}
	if t.balance() {
		t.unicast()
	}
	return t.Trace
}

// onNIC are the switches whose uplink a port is, in the order in which they are asked.
func (p *Plan) onNIC(nic *Port) []*Switch {
	var out []*Switch
	for _, sw := range p.Switches {
		if sw.UplinkPort == nic.ID {
			out = append(out, sw)
		}
	}
	slices.SortFunc(out, func(a, b *Switch) int {
		if own := nic.Switch; (a.Number == own) != (b.Number == own) {
			if a.Number == own {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Number, b.Number)
	})
	return out
}

// traceNIC follows what is at a NIC: it is the first switch's that it means something to.
func (p *Plan) traceNIC(t *tracer) Trace {
	var first *Trace
	for _, sw := range p.onNIC(t.from) {
		next := &tracer{plan: p, pkt: t.pkt, from: t.from, sw: sw}
		next.complete()
		next.fromNIC()
		switch {
		case next.Verdict != Passed && next.Verdict != Flooded:
			return next.Trace
		case first == nil || first.Verdict == Passed && next.Verdict == Flooded:
			first = &next.Trace
		}
	}
	if first == nil {
		return t.Trace
	}
	return *first
}

type tracer struct {
	Trace
	plan *Plan
	pkt  Packet
	from *Port
	sw   *Switch
	// hop is how a packet gets to another host.
	hop *hop
	// tunnelled says that the packet is for another port, and takes the way by the wire.
	tunnelled bool
	// turned says that the host takes what is for others on the LAN.
	turned bool
	// backend is the address of the back end that the packet goes to; self says that this is the sender itself.
	backend  netip.Addr
	self     bool
	balancer *Balancer
}

func (t *tracer) step(layer string, port PortID, r *Rule, format string, args ...any) {
	t.Steps = append(t.Steps, Step{Layer: layer, Port: port, Pass: true, Rule: r, Text: fmt.Sprintf(format, args...)})
}

func (t *tracer) drop(layer string, port PortID, reason, format string, args ...any) {
	t.Verdict, t.Reason = Dropped, reason
	t.Steps = append(t.Steps, Step{Layer: layer, Port: port, Rule: t.Rule, Text: fmt.Sprintf(format, args...)})
}

// complete fills in what the packet leaves to us.
func (t *tracer) complete() {
	k := &t.pkt
	if k.EtherType == 0 {
		k.EtherType = etherIPv6
		if k.Src.Is4() {
			k.EtherType = etherIPv4
		}
	}
	if t.from.Kind == PortTunnel {
		t.completeOuter()
	}
	if k.SrcMAC == (MAC{}) {
		k.SrcMAC = t.from.MAC
		if t.from.Kind == PortUplink && !k.Host && (t.sw.Mode != ModeL2Tunnel || t.portAt(k.Src) == nil) {
			k.SrcMAC = RouterMAC()
		}
	}
	if k.DstMAC == (MAC{}) {
		if o := t.owner(k.Dst); o != nil {
			k.DstMAC = o.MAC
			if t.from.Kind == PortUplink && !k.Host && t.sw.Mode.OneMAC() { // nobody there knows another
				k.DstMAC = t.from.MAC
			}
		} else if r := t.plan.remoteAt(t.sw, k.Dst); r != nil {
			k.DstMAC = r.MAC
		} else if t.sw.Overlay != nil {
			k.DstMAC = t.sw.Overlay.Router
		} else if t.sw.Mode.OnLAN() {
			k.DstMAC = RouterMAC()
		} else if gw := t.plan.Ports[t.sw.HostPort]; gw != nil {
			k.DstMAC = gw.MAC
		}
	}
}

// isIP tells whether the packet is one to trace; others may be dropped for what they are.
func (t *tracer) isIP() bool {
	k := &t.pkt
	switch k.EtherType {
	case etherIPv4, etherIPv6:
		is4 := k.EtherType == etherIPv4
		return k.Src.IsValid() && k.Dst.IsValid() && k.Src.Is4() == is4 && k.Dst.Is4() == is4
	case etherVLAN, etherQinQ:
		t.drop("source guard", k.From, "vlan-tag", "tagged frames do not enter this switch")
	case etherARP:
	default:
		t.drop("source guard", k.From, "ethertype", "neither IPv4, IPv6 nor ARP")
	}
	return false
}

func (t *tracer) flood() {
	if !t.exempt() {
		if !t.judge("rules out", t.from, t.from.Policy.Out, "policy-out", &t.Out) {
			return
		}
	}
	t.Verdict = Flooded
	if t.sw.Mode == ModeL2Tunnel && t.isContainer(t.from) {
		t.step("switching", t.pkt.From, nil, "a copy to the host and one to the wire, which sends it back for the other ports of switch %q", t.sw.Name)
		return
	}
	t.step("switching", t.pkt.From, nil, "a copy to each other port of switch %q, where its own rules judge it", t.sw.Name)
	t.spread()
}

func (t *tracer) unicast() {
	to := t.destination()
	if to == nil {
		return
	}
	defer t.encapsulate(to)
	switch {
	case t.exempt(), t.renewal(to):
		t.step("rules out", t.from.ID, nil, "neighbour discovery and DHCP are not subject to rules")
	case t.self:
		t.step("rules out", t.from.ID, nil, "what a port sends to itself is not subject to rules")
	case t.isPeer(t.from) && t.isPeer(to) && (t.from.Policy.Isolated || to.Policy.Isolated):
		t.dropIsolated(cmp.Or(isolatedPort(t.from), isolatedPort(to)))
		return
	default:
		if !t.judge("rules out", t.from, t.from.Policy.Out, "policy-out", &t.Out) ||
			!t.judge("rules in", to, to.Policy.In, "policy-in", &t.In) {
			return
		}
	}
	t.To, t.Verdict = to.ID, Delivered
	switch {
	case to.Kind == PortUplink && !t.turned && (t.pkt.DstMAC != to.MAC || t.tunnelled):
		t.Verdict = ToWire
	case inHost(to):
		t.Verdict = ToHost
		if t.isHost(to) && t.sw.Mode.OnLAN() {
			t.To = t.sw.UplinkPort
		}
	}
}

// isHost tells that the host itself sends by a port. On a LAN all its vNICs are behind the NIC.
func (t *tracer) isHost(p *Port) bool {
	return p.Kind == PortHost || t.sw.Mode.OnLAN() && p.Kind == PortContainer && inHost(p)
}

// isContainer tells that a port is a compartment's.
func (t *tracer) isContainer(p *Port) bool { return p.Kind == PortContainer && !t.isHost(p) }

// isPeer tells that an endpoint is behind a port, here or on another host: isolated ones exchange nothing with it.
func (t *tracer) isPeer(p *Port) bool { return t.isContainer(p) || p.Kind == PortTunnel }

// inHost tells whether a port's vNIC is the host's own.
func inHost(p *Port) bool { return p.VNIC.Namespace == "" }

// destination finds the port that has the destination MAC.
func (t *tracer) destination() *Port {
	switch to := t.backendPort(); {
	case to == nil:
	case to == t.from && !t.self:
		t.drop("switching", t.from.ID, "to-self", "%s is the sender's own", t.backend)
		return nil
	default:
		t.step("switching", t.from.ID, nil, "%s is the address of port %s", t.backend, to.ID)
		return to
	}
	if t.sw.Overlay != nil {
		return t.overlayDestination()
	}
	var to *Port
	for _, p := range t.ports() {
		if p.MAC == t.pkt.DstMAC {
			to = p
		}
	}
	if to == nil && t.sw.Mode.OnLAN() {
		to = t.beyond()
		if to == nil || !t.sw.Mode.OneMAC() || t.pkt.DstMAC != to.MAC || t.portAt(t.pkt.Dst) == nil {
			return t.turnToHost(to)
		}
		to = nil // who has learnt the MAC on the wire means who has the address
	}
	// A MAC that nobody has is one that somebody had: the sender's neighbour table is
	// behind, and the switch knows who has the address.
	if to == nil {
		if to = t.owner(t.pkt.Dst); to != nil && to != t.from {
			t.step("switching", t.from.ID, nil, "%s is nobody's MAC any more, but %s is the address of port %s", t.pkt.DstMAC, t.pkt.Dst, to.ID)
		}
	}
	switch to {
	case nil:
		t.drop("switching", t.from.ID, "unknown-mac", "no port of switch %q has the MAC %s", t.sw.Name, t.pkt.DstMAC)
		return nil
	case t.from:
		t.drop("switching", t.from.ID, "to-self", "%s is the sender's own MAC", t.pkt.DstMAC)
		return nil
	}
	if t.sw.Mode == ModeL2Tunnel && t.isContainer(t.from) && t.isContainer(to) {
		return t.byWire(to)
	}
	to = t.steer(to)
	if inHost(to) && t.asksResolver() {
		to = t.plan.Ports[t.sw.ResolverPort]
		if to == nil {
			t.drop("switching", t.from.ID, "resolver", "the resolver of switch %q has no port", t.sw.Name)
			return nil
		}
		t.step("switching", t.from.ID, nil, "port 53 of the gateway is the resolver's: port %s", to.ID)
		return to
	}
	t.step("switching", t.from.ID, nil, "%s is behind port %s", t.pkt.DstMAC, to.ID)
	return to
}

// steer is the host's port for a flow that takes a detour, whoever it is for.
func (t *tracer) steer(to *Port) *Port {
	host := t.plan.Ports[t.sw.HostPort]
	d := t.from.DetourOf(t.pkt.Protocol, t.pkt.Dst)
	if d == nil || host == nil || to == host {
		return to
	}
	t.step("switching", t.from.ID, nil, "L4Proxy: to the host, which sends it to the proxy %s, and not to port %s", d.proxyText(), to.ID)
	return host
}

// turnToHost has what goes to others on the LAN taken by the host, where the port's policies ask
// for that.
func (t *tracer) turnToHost(nic *Port) *Port {
	if nic == nil || t.pkt.DstMAC == nic.MAC || !t.from.TurnOf(t.pkt.Dst) {
		return nic
	}
	t.turned = true
	t.step("switching", t.from.ID, nil, "OutBoundNAT or SDNRoute: to the host, by its NIC %s, and not to %s", nic.Device, t.pkt.DstMAC)
	return nic
}

// beyond is the uplink: on a LAN, whoever is not on the switch is on the wire, but for the
// host.
func (t *tracer) beyond() *Port {
	to := t.plan.Ports[t.sw.UplinkPort]
	switch {
	case to != nil && t.isHost(t.from):
		t.drop("switching", t.from.ID, "unknown-mac", "no port of switch %q has the MAC %s, and the host has the NIC %s for the wire", t.sw.Name, t.pkt.DstMAC, to.Device)
		return nil
	case to == nil:
		t.drop("switching", t.from.ID, "no-uplink", "%s is not on switch %q, and its NIC %s is gone", t.pkt.DstMAC, t.sw.Name, t.sw.Uplink)
	case to.MAC == t.pkt.DstMAC:
		t.step("switching", t.from.ID, nil, "%s is the host's, by its NIC %s", t.pkt.DstMAC, to.Device)
	default:
		t.step("switching", t.from.ID, nil, "nobody on switch %q has the MAC %s: out of the NIC %s", t.sw.Name, t.pkt.DstMAC, to.Device)
	}
	return to
}

// byWire is the uplink for what one port of a tunnel sends to another.
func (t *tracer) byWire(to *Port) *Port {
	if isolated := cmp.Or(isolatedPort(t.from), isolatedPort(to)); isolated != nil && !t.exempt() {
		t.dropIsolated(isolated)
		return nil
	}
	nic := t.plan.Ports[t.sw.UplinkPort]
	if nic == nil {
		t.drop("switching", t.from.ID, "no-uplink", "port %s is reached by the wire only, and the NIC %s of switch %q is gone", to.ID, t.sw.Uplink, t.sw.Name)
		return nil
	}
	t.tunnelled = true
	t.step("switching", t.from.ID, nil, "for port %s by way of the wire: out of the NIC %s, to come back there", to.ID, nic.Device)
	return nic
}

func isolatedPort(p *Port) *Port {
	if p.Policy.Isolated {
		return p
	}
	return nil
}

func (t *tracer) dropIsolated(p *Port) {
	t.drop("isolation", p.ID, "isolated", "port %s exchanges nothing with other endpoints (DisableInterComputeCommunication)", p.ID)
}

// portAt is the port that has an address, but for those in the host's own stack.
func (t *tracer) portAt(a netip.Addr) *Port {
	if o := t.owner(a); o != nil && !inHost(o) {
		return o
	}
	return nil
}

// turn gives a packet for the NIC's MAC that of the port which it is for, where on the wire all
// ports have the NIC's.
func (t *tracer) turn() {
	k := &t.pkt
	readable := k.EtherType == etherIPv4 && k.Src.Is4() && k.Dst.Is4() || k.EtherType == etherIPv6 && k.Src.Is6() && k.Dst.Is6()
	if !t.sw.Mode.OneMAC() || k.DstMAC != t.from.MAC || !readable {
		return
	}
	if o := t.portAt(k.Dst); o != nil {
		t.step("switching", t.from.ID, nil, "on the wire %s is all ports' MAC, and %s is the address of port %s", k.DstMAC, k.Dst, o.ID)
		k.DstMAC = o.MAC
	}
}

// reflected tells of a packet from the wire that the ports have had, or which pretends to be
// theirs.
func (t *tracer) reflected(mine func(MAC) bool) bool {
	k := &t.pkt
	switch {
	case k.Host:
		return false
	case k.SrcMAC != t.from.MAC:
		return mine(k.SrcMAC)
	case t.sw.Mode != ModeL2Tunnel:
		return true
	}
	return k.DstMAC[0]&1 != 0 && t.portAt(k.Src) == nil
}

// fromNIC follows what is at the uplink. It has no source guard, for it is not ours.
func (t *tracer) fromNIC() {
	k := &t.pkt
	group := k.DstMAC[0]&1 != 0
	t.turn()
	mine := func(m MAC) bool { return slices.ContainsFunc(t.ports(), func(p *Port) bool { return p.MAC == m }) }
	reflected := t.reflected(mine)
	switch {
	case !group && !mine(k.DstMAC), group && reflected && k.SrcMAC == t.from.MAC:
		t.pass("for nobody on switch %q", t.sw.Name)
	case reflected:
		t.drop("switching", t.from.ID, "reflected", "%s is this switch's own: the frame comes back from the wire, or pretends to", k.SrcMAC)
	case !t.isIP():
		if group {
			t.pass("no IP packet for all")
		}
	case martian(k.Dst) || !k.Src.IsUnspecified() && martian(k.Src):
		if group {
			t.pass("an address that may not be on a wire, in a frame for all")
			return
		}
		t.drop("switching", t.from.ID, "martian", "%s or %s may not be on a wire", k.Src, k.Dst)
	case group && t.guardGroup() != "":
		t.pass("a packet for one in a frame for all")
	case group:
		t.flood()
	default:
		t.unicast()
	}
}

func (t *tracer) pass(format string, args ...any) {
	t.Verdict, t.Reason = Passed, ""
	t.step("switching", t.from.ID, nil, format, args...)
}

// vlan that the packet is in: the sender's, or its tag.
func (t *tracer) vlan() uint16 {
	switch {
	case t.from == nil: // nobody's packet yet
		return 0
	case t.from.Kind == PortUplink:
		return t.pkt.VLAN
	}
	return t.from.VLAN
}

func (t *tracer) asksResolver() bool {
	o := t.owner(t.pkt.Dst)
	return t.from.Kind == PortContainer && t.pkt.DstPort == 53 && (t.pkt.Protocol == protoTCP || t.pkt.Protocol == protoUDP) &&
		o != nil && t.resolverAddress(o, t.pkt.Dst)
}

// resolverAddress tells whether port 53 of a gateway's address is the resolver's.
func (t *tracer) resolverAddress(o *Port, a netip.Addr) bool {
	return o.Kind != PortContainer && t.sw.ResolverPort != "" && slices.Contains(t.sw.DNS.Listen, a)
}

// ports are those of the switch that have MACs and addresses of their own: the
// resolver's are the host port's, where there is one.
func (t *tracer) ports() []*Port {
	var out []*Port
	for _, p := range t.plan.Ports {
		if p.Network == t.sw.Network && p.Kind != PortUplink && p.Kind != PortTunnel && p.VLAN == t.vlan() && (p.Kind != PortResolver || t.sw.HostPort == "") {
			out = append(out, p)
		}
	}
	return out
}

// owner is the port whose vNIC has an address.
func (t *tracer) owner(a netip.Addr) *Port {
	for _, p := range t.ports() {
		if slices.Contains(p.Addrs, a) || p.LinkLocal == a {
			return p
		}
	}
	return nil
}
