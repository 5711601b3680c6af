package plan

import (
	"fmt"
	"net/netip"
	"slices"
)

// SDN routes on an overlay. Its switch routes, so it is what goes by them (bpf/lib/route.h), and not by the compartment's routes:
// the next hop may be on any host.

// Hop says who gets what a port sends to a prefix, whoever has the destination: who has the address Via, or without one the host. The
// longest prefix that holds a destination counts.
type Hop struct {
	Prefix netip.Prefix
	Via    netip.Addr
}

// String says both.
func (h Hop) String() string {
	if !h.Via.IsValid() {
		return fmt.Sprintf("hop %s by the host", h.Prefix)
	}
	return fmt.Sprintf("hop %s via %s", h.Prefix, h.Via)
}

// hops are what the policies SDNRoute of an endpoint on an overlay say, and the routes that name it.
func hops(e *Endpoint, more []*SDNRoute) (out []Hop) {
	routes, prefixes := sdnRoutes(e, more)
	for i, s := range routes {
		if !hasFamily(e.Addrs, prefixes[i].Addr().Is4()) {
			continue
		}
		via, _ := netip.ParseAddr(s.NextHop) // none, or it was refused
		out = append(out, Hop{prefixes[i], via.Unmap()})
	}
	return out
}

// withHops sees to it that what goes by hops leaves the compartment: to the gateway, which the switch is.
func withHops(routes []Route, hops []Hop, e *Endpoint, n *Network) []Route {
	for _, h := range hops {
		connected := slices.ContainsFunc(e.Addrs, func(a netip.Prefix) bool { return a.Masked() == h.Prefix })
		gw, ok := gatewayOf(n, h.Prefix.Addr().Is4())
		if connected || !ok || slices.ContainsFunc(routes, func(r Route) bool { return r.Dst == h.Prefix }) {
			continue
		}
		routes = append(routes, Route{Dst: h.Prefix, Via: gw, OnLink: !covered(e.Addrs, gw)})
	}
	return routes
}

// gatewayOf is the first gateway of a family that a network has.
func gatewayOf(n *Network, v4 bool) (netip.Addr, bool) {
	for _, s := range n.Doc.AllSubnets() {
		if gw, ok := s.Gateway(); ok && gw.Is4() == v4 {
			return gw, true
		}
	}
	return netip.Addr{}, false
}

// HopOf is the hop for a destination, nil for none.
func (p *Port) HopOf(dst netip.Addr) (best *Hop) {
	for i := range p.Hops {
		if h := &p.Hops[i]; h.Prefix.Contains(dst) && (best == nil || h.Prefix.Bits() > best.Prefix.Bits()) {
			best = h
		}
	}
	return best
}

// byHop is the port that an SDN route leads to; false where none says anything: services come before, and the gateway stays the gateway.
func (t *tracer) byHop() (*Port, bool) {
	owner := t.owner(t.pkt.Dst)
	h := t.from.HopOf(t.pkt.Dst)
	if h == nil || t.backend.IsValid() || t.exempt() || owner != nil && owner.Kind != PortContainer {
		return nil, false
	}
	fail := func(reason, format string, args ...any) (*Port, bool) {
		t.drop("routing", t.from.ID, reason, format, args...)
		return nil, true
	}
	if !h.Via.IsValid() {
		host := t.plan.Ports[t.sw.HostPort]
		if host == nil || !t.sw.Overlay.Host {
			return nil, false
		}
		t.step("routing", t.from.ID, nil, "SDNRoute: what is for %s goes by the host", h.Prefix)
		return host, true
	}
	to := t.owner(h.Via)
	if to == nil || to.Kind == PortContainer {
		t.Hop = h.Via
	}
	switch {
	case to == nil:
	case to.Kind != PortContainer:
		return nil, false
	case to == t.from:
		return fail("to-self", "SDNRoute: the next hop %s of %s is the sender's own address", h.Via, h.Prefix)
	default:
		t.step("routing", t.from.ID, nil, "SDNRoute: the next hop of %s is %s, the address of port %s", h.Prefix, h.Via, to.ID)
		return to, true
	}
	r := t.plan.remoteAt(t.sw, h.Via)
	tunnel := t.plan.Ports[t.sw.Overlay.Tunnel]
	switch {
	case r == nil:
		return fail("no-route", "SDNRoute: nobody on network %q has %s, the next hop of %s", t.sw.Name, h.Via, h.Prefix)
	case tunnel == nil:
		return fail("no-uplink", "SDNRoute: %s, the next hop of %s, is on another host, and the NIC %s of network %q is gone", h.Via, h.Prefix, t.sw.Uplink, t.sw.Name)
	}
	t.hop = t.plan.hopTo(t.sw, h.Via)
	t.step("routing", t.from.ID, nil, "SDNRoute: the next hop of %s is %s, the address of %s", h.Prefix, h.Via, t.hop.title)
	return tunnel, true
}

// speaks tells that the sender, a container here, speaks for an address that nobody has to the one whose next hop for it that is.
func (t *tracer) speaks() bool {
	to := t.owner(t.pkt.Dst)
	if t.sw.Overlay == nil || !t.isContainer(t.from) || to == nil || t.owner(t.pkt.Src) != nil || t.plan.remoteAt(t.sw, t.pkt.Src) != nil || t.fromService() {
		return false
	}
	h := to.HopOf(t.pkt.Src)
	return h != nil && h.Via.IsValid() && t.owner(h.Via) == t.from
}

// fromService tells that the source is a service's, in whose name nobody speaks: its answers come from the ends of its connections alone.
func (t *tracer) fromService() bool {
	k := &t.pkt
	for _, host := range []bool{false, true} {
		if _, s := t.plan.ServiceAt(t.sw.Network, k.Protocol, netip.AddrPortFrom(k.Src, k.SrcPort), host); s != nil {
			return true
		}
	}
	return false
}

// speaker is the endpoint elsewhere that speaks for an address of nobody's to who is here: the next hop by which that one reaches it.
func (t *tracer) speaker() *Remote {
	to := t.owner(t.pkt.Dst)
	if to == nil || t.fromService() {
		return nil
	}
	if h := to.HopOf(t.pkt.Src); h != nil && h.Via.IsValid() {
		return t.plan.remoteAt(t.sw, h.Via)
	}
	return nil
}
