package plan

import (
	"cmp"
	"net/netip"
)

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
	case t.self:
		t.step("rules out", t.from.ID, nil, "what a port sends to itself is not subject to rules")
	case t.isApart(to):
		t.dropIsolated(cmp.Or(isolatedPort(t.from), isolatedPort(to)))
		return
	case t.exempt(), t.renewal(to):
		t.step("rules out", t.from.ID, nil, "neighbour discovery and DHCP are not subject to rules")
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
	if t.far {
		return t.farDestination()
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
	case t.pkt.DstMAC == RouterMAC(): // which nobody has
		t.step("switching", t.from.ID, nil, "nobody on switch %q has the MAC that the LAN answers with: out of the NIC %s", t.sw.Name, to.Device)
	default:
		t.step("switching", t.from.ID, nil, "nobody on switch %q has the MAC %s: out of the NIC %s", t.sw.Name, t.pkt.DstMAC, to.Device)
	}
	return to
}

// byWire is the uplink for what one port of a tunnel sends to another.
func (t *tracer) byWire(to *Port) *Port {
	if isolated := cmp.Or(isolatedPort(t.from), isolatedPort(to)); isolated != nil {
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

// isApart tells whether an isolated port is one end, and another endpoint the other: on the switch, or by a router, which the host is for
// everybody and others are on a LAN.
func (t *tracer) isApart(to *Port) bool {
	isEndpoint := func(a netip.Addr) bool { o := t.owner(a); return o != nil && t.isContainer(o) }
	switch {
	case !t.from.Policy.Isolated && !to.Policy.Isolated:
		return false
	case t.isPeer(t.from):
		return t.isPeer(to) || t.from.Policy.Isolated && isEndpoint(t.pkt.Dst)
	}
	return to.Policy.Isolated && t.isPeer(to) && isEndpoint(t.pkt.Src)
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

func (t *tracer) asksResolver() bool {
	o := t.owner(t.pkt.Dst)
	return t.from.Kind == PortContainer && t.pkt.DstPort == 53 && (t.pkt.Protocol == protoTCP || t.pkt.Protocol == protoUDP) &&
		o != nil && t.resolverAddress(o, t.pkt.Dst)
}
