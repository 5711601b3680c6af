package plan

import (
	"fmt"
	"net/netip"
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
	// Source is as whom that sees the sender, where it is on no port here; not valid where it sees who that is.
	Source netip.Addr
	// Hop is the one that an SDN route leads to; not valid without one.
	Hop netip.Addr
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
			if t.sw = p.byVNI(t.from, pkt.VNI); t.sw == nil {
				t.sw = p.clearOf(t.from, &pkt)
			}
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
	// far says that the back end is on no port here, and sees a source of ours.
	far bool
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
