package plan

import "net/netip"

// toRemote goes on with what a container sends to somebody on another host, whose MAC the switch tells.
func (e *explainer) toRemote(k Packet, sw *Switch, next netip.Addr) {
	from := e.plan.Ports[k.From]
	h := e.plan.hopTo(sw, next)
	switch {
	case h == nil:
		e.fail("switching", from.ID, "bulkhead address ls --network "+sw.Name, "nobody on network %s has %s, here or on another host, so nobody tells its MAC", sw.Name, next)
		return
	case h.router:
		k.DstMAC = sw.Overlay.Router
	default:
		k.DstMAC = h.mac
	}
	if got := e.leg(k); got != nil {
		e.remote(from, sw, netip.AddrPortFrom(e.Dst, e.q.Port), got.Hop)
	}
}

// remoteToPort begins on another host, for a container that is on an overlay with who sends.
func (e *explainer) remoteToPort() bool {
	for _, to := range e.q.To.Ports {
		sw := e.plan.Switches[to.Network]
		dst := e.addrOf(to, e.q.To.Addr)
		if sw.Overlay == nil || !dst.IsValid() {
			continue
		}
		h, tunnel := e.plan.hopTo(sw, e.Src), e.plan.Ports[sw.Overlay.Tunnel]
		if h == nil || tunnel == nil {
			continue
		}
		e.Dst = dst
		e.step(layerName, to.ID, "%s is on network %s with %s, %s on %s", dst, sw.Name, e.Src, h.title, h.provider)
		e.onLAN(Packet{From: tunnel.ID, VNI: sw.VNIOf(dst), Src: e.Src, Dst: dst, DstPort: e.q.Port}, to, sw)
		return true
	}
	return false
}

// remote ends the way at the border of this host, where a packet for an address elsewhere leaves it, or one that a next hop gets there.
func (e *explainer) remote(from *Port, sw *Switch, dst netip.AddrPort, hop netip.Addr) {
	e.mtu(from.VNIC.MTU, sw.MTU, sw.Overlay.carries())
	if hop.IsValid() {
		if h := e.plan.hopTo(sw, hop); h != nil {
			e.arrive("leaves this host in a tunnel to %s, where %s is, the next hop; what becomes of it there is that host's to say", h.provider, h.title)
			return
		}
	}
	h := e.plan.hopTo(sw, dst.Addr())
	if h == nil {
		e.Summary = "the switch judges this packet by more than an explanation holds"
		return
	}
	if r := e.plan.remoteAt(sw, dst.Addr()); r != nil {
		e.Tunnel = &Tunnelled{To: r, Src: e.Src, Dst: dst.Addr(), Port: dst.Port()}
	}
	e.arrive("leaves this host in a tunnel to %s, where %s is; what becomes of it there is that host's to say", h.provider, h.title)
}
