package plan

import (
	"cmp"
	"net/netip"
)

// beyond goes on with what a container on a LAN sends to somebody who is not on the switch:
// the host, or a machine on the wire.
func (e *explainer) beyond(k Packet, sw *Switch, next netip.Addr) {
	from := e.plan.Ports[k.From]
	k.DstMAC = RouterMAC()
	if nic := e.plan.Ports[sw.UplinkPort]; nic != nil && e.hostAddress(next) {
		k.DstMAC = nic.MAC
		e.step("switching", from.ID, "%s is the host's: its stack answers with the MAC of %s", next, nic.Device)
	} else {
		e.step("switching", from.ID, "nobody on network %s has %s: the container asks the LAN for its MAC", sw.Name, next)
	}
	switch got := e.leg(k); {
	case got == nil:
	case got.Verdict == ToHost:
		e.intoHost(from, sw, sw.Uplink)
	default:
		e.mtu(from.VNIC.MTU, sw.MTU)
		by := ""
		if next != e.Dst {
			by = ", by way of " + next.String()
		}
		as := ""
		if sw.Mode.OneMAC() {
			as = " and the NIC's MAC"
		}
		e.arrive("leaves this host by %s under its own address %s%s, for %s on the LAN%s; what becomes of it there is not known here", sw.Uplink, e.Src, as, e.Dst, by)
	}
}

// routedByHost is a packet of a container on a LAN that has the host for its router.
func (e *explainer) routedByHost(from *Port, sw *Switch, device string) {
	if !e.forwarding(device) {
		return
	}
	if r, ok := e.hostRoute(); ok && e.foreign("forward") {
		e.mtu(from.VNIC.MTU, sw.MTU)
		if from.OutboundOf(e.Src) != nil {
			e.masquerade(from, r)
			return
		}
		e.arrive("the host routes it on by %s, as it does for any machine on that LAN", r.Device)
	}
}

// hostToLAN ends in a container on a LAN that the host is on too.
func (e *explainer) hostToLAN(to *Port, sw *Switch, dst netip.Addr) {
	e.Dst = dst
	e.step(layerName, to.ID, "taken by its address on network %s, %s: the host does not ask the networks' resolvers", sw.Name, dst)
	r, ok := e.hostRoute()
	if !ok || !e.foreign("output") {
		return
	}
	e.Src = r.Src
	if own := e.hostVNIC(sw, r.Device); own != nil {
		e.step(layerRoute, own.ID, "on the link by %s, from %s", r.Device, e.Src)
		e.onLAN(Packet{From: own.ID, Src: e.Src, Dst: dst, DstPort: e.q.Port}, to, sw)
		return
	}
	if r.Device != sw.Uplink {
		e.arrive("leaves this host by %s from %s, and not by %s, where the container is: what becomes of it there is not known here", r.Device, r.Src, sw.Uplink)
		return
	}
	k := Packet{From: sw.UplinkPort, Host: true, VLAN: to.VLAN, Src: e.Src, Dst: dst, DstPort: e.q.Port}
	if to.VLAN != 0 {
		e.fail(layerHost, to.ID, "", "%s is in VLAN %d of %s, and what the host sends by %s itself is in none", portTitle(to), to.VLAN, sw.Uplink, sw.Uplink)
		return
	}
	e.onLAN(k, to, sw)
}

// hostVNIC is the port of a vNIC of the host's own on a switch with a NIC, or nil.
func (e *explainer) hostVNIC(sw *Switch, device string) *Port {
	for _, p := range e.plan.Ports {
		if p.Network == sw.Network && p.Kind == PortContainer && inHost(p) && p.VNIC.Device == device {
			return p
		}
	}
	return nil
}

// backFromWire goes on with what a port of a tunnel has sent to another one, if it comes back.
func (e *explainer) backFromWire(to *Port, sw *Switch) {
	e.step("switching", sw.UplinkPort, "if the switch outside sends it back, it comes in again by %s; if not, it is lost there", sw.Uplink)
	e.onLAN(Packet{From: sw.UplinkPort, VLAN: to.VLAN, Src: e.Src, Dst: e.Dst, DstPort: e.q.Port}, to, sw)
	if e.Reachable {
		e.Outside = true
		e.Summary += ", if the switch outside sends the frame back"
		e.Doubts = append(e.Doubts, "the switch outside does not send back what came by the same port: it needs reflective relay (VEPA; on a Linux bridge: bridge link set dev PORT hairpin on)")
	}
}

// lanToPort begins on the wire, for a container that is a member of the LAN.
func (e *explainer) lanToPort() bool {
	for _, to := range e.q.To.Ports {
		sw := e.plan.Switches[to.Network]
		dst := e.addrOf(to, e.q.To.Addr)
		if !dst.IsValid() || !sw.Mode.OnLAN() {
			continue
		}
		e.Dst = dst
		if sw.UplinkPort == "" {
			e.fail(layerHost, to.ID, "ip link", "the NIC of network %s, %s, is gone", sw.Name, sw.Uplink)
			return true
		}
		e.step(layerName, to.ID, "%s is on the LAN of %s itself, with the address %s", cmp.Or(portTitle(to), e.q.To.Name), sw.Uplink, dst)
		e.onLAN(Packet{From: sw.UplinkPort, VLAN: to.VLAN, Src: e.Src, Dst: dst, DstPort: e.q.Port}, to, sw)
		return true
	}
	return false
}

func (e *explainer) onLAN(k Packet, to *Port, sw *Switch) {
	if t := e.leg(k); t != nil {
		e.mtu(sw.MTU, to.VNIC.MTU)
		e.deliver(to, e.Src, netip.AddrPortFrom(k.Dst, k.DstPort), k.Dst.String())
	}
}
