package plan

import (
	"cmp"
	"net/netip"
)

// detour goes on to the proxy that takes a flow, from where it has come into the host.
// What is shown as the destination stays the one that the sender means.
func (e *explainer) detour(d *Detour, from *Port, sw *Switch) {
	meant := e.Dst
	defer func() { e.Dst = meant }()
	to := netip.AddrPortFrom(d.To.Addr(), cmp.Or(d.To.Port(), e.q.Port))
	e.step(layerNAT, from.ID, "L4Proxy: the destination becomes the proxy's, %s", to)
	e.Dst = to.Addr()
	if e.hostAddress(e.Dst) {
		e.intoStack(sw)
		return
	}
	if !e.forwarding(sw.HostDevice) {
		return
	}
	if other := e.switchOf(e.Dst); other != nil {
		e.toProxy(to, from, other)
		return
	}
	r, ok := e.hostRoute()
	if !ok || !e.foreign("forward") {
		return
	}
	if d.Open {
		e.step(layerNAT, from.ID, "the proxy sees the container's own address, %s, and needs a route back to it by this host", e.Src)
		e.arrive("leaves this host by %s for the proxy %s under its own address, %s", r.Device, to, e.Src)
	} else {
		e.masquerade(from, r)
	}
	e.mtu(from.VNIC.MTU, sw.MTU)
}

// toProxy ends at an endpoint of this host.
func (e *explainer) toProxy(to netip.AddrPort, from *Port, sw *Switch) {
	k := Packet{From: sw.HostPort, Src: e.Src, Dst: to.Addr(), DstPort: to.Port()}
	if sw.Network == from.Network {
		k.Src = e.gateway(sw)
		e.step(layerNAT, "", "both are on network %s: the source becomes the gateway's, %s, so that the answer comes back this way", sw.Name, k.Src)
	} else {
		e.step(layerNAT, "", "the proxy sees the container's own address, %s", k.Src)
	}
	if sw.Network != from.Network && sw.Mode != ModeNAT {
		e.fail("isolation", from.ID, "", "the proxy is on network %s, which is of type Internal: nothing is forwarded to it from elsewhere", sw.Name)
		return
	}
	owner := (&tracer{plan: e.plan, from: e.plan.Ports[sw.HostPort], sw: sw}).owner(to.Addr())
	if owner == nil {
		e.fail("switching", from.ID, "bulkhead address ls --network "+sw.Name, "nobody on network %s has the proxy's address %s", sw.Name, to.Addr())
		return
	}
	if !e.foreign("forward") {
		return
	}
	if t := e.leg(k); t != nil {
		e.mtu(sw.MTU, owner.VNIC.MTU)
		e.deliver(owner, k.Src, to, to.String())
	}
}
