package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// fromContainer begins in a compartment.
func (e *explainer) fromContainer() {
	dst, ok := e.destination()
	if !ok {
		return
	}
	e.Dst = dst
	for _, p := range e.q.From.Ports {
		if dst.IsLoopback() || slices.Contains(p.Addrs, dst) {
			e.step(layerRoute, p.ID, "%s is the compartment's own: the packet does not leave it", dst)
			e.Src = dst
			e.arrive("stays in the compartment")
			return
		}
	}
	from, via := e.route(dst)
	if from == nil {
		return
	}
	if e.redirected(from) {
		return
	}
	k := Packet{From: from.ID, Src: e.Src, Dst: dst, DstPort: e.q.Port}
	sw := e.plan.Switches[from.Network]
	if slices.ContainsFunc(from.VNIC.Addrs, func(p netip.Prefix) bool { b, ok := Broadcast(p); return ok && b == dst }) {
		e.toAll(k, sw)
		return
	}
	next := cmp.Or(via, dst)
	t := &tracer{plan: e.plan, from: from, sw: sw, pkt: k}
	if t.pkt.Protocol = e.q.Protocol; t.service() != nil {
		e.toService(k, from, sw)
		return
	}
	owner := t.owner(next)
	if owner == nil && sw.Mode.OnLAN() {
		e.beyond(k, sw, next)
		return
	}
	if owner == nil && sw.Overlay != nil {
		e.toRemote(k, sw, next)
		return
	}
	if owner == nil {
		e.fail("switching", from.ID, "bulkhead address ls --network "+sw.Name, "nobody on network %s has %s, so nobody tells its MAC", sw.Name, next)
		return
	}
	k.DstMAC = owner.MAC
	got := e.leg(k)
	switch {
	case got == nil:
	case got.Verdict == ToHost:
		e.intoHost(from, sw, hostDevice(sw, owner))
	case got.Verdict == ToRemote:
		e.remote(from, sw, netip.AddrPortFrom(dst, e.q.Port), got.Hop)
	case got.Verdict == ToWire:
		e.backFromWire(owner, sw)
	case got.Verdict == Delivered:
		to := e.plan.Ports[got.To]
		e.mtu(from.VNIC.MTU, to.VNIC.MTU)
		e.deliver(to, e.Src, netip.AddrPortFrom(dst, e.q.Port), dst.String())
	default:
		e.Summary = "the switch judges this packet by more than an explanation holds"
	}
}

// toAll is a packet to the broadcast address of a container's network.
func (e *explainer) toAll(k Packet, sw *Switch) {
	if e.noConnection(k.From, sw.Name) {
		return
	}
	k.DstMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if e.leg(k) == nil {
		return
	}
	switch from := e.plan.Ports[k.From]; {
	case from.Policy.Isolated && sw.Mode.OnLAN():
		e.arrive("a copy goes to the host and to the LAN, and none to the other ports of network %s, with which nothing is exchanged", sw.Name)
	case from.Policy.Isolated:
		e.arrive("a copy goes to the host, and none to the other ports of network %s, with which nothing is exchanged", sw.Name)
	case sw.Mode == ModeL2Tunnel:
		e.arrive("a copy goes to the host and to the wire, which sends it back for the other ports of network %s", sw.Name)
	case sw.Mode.OnLAN():
		e.arrive("a copy goes to each other port of network %s, whose own rules judge it, and to the LAN", sw.Name)
	default:
		e.arrive("a copy goes to each other port of network %s, whose own rules judge it", sw.Name)
	}
}

// noConnection ends what TCP sends to a broadcast address; a socket sends others there when it asks for that itself.
func (e *explainer) noConnection(at PortID, where string) bool {
	if e.q.Protocol == protoTCP {
		e.fail(layerRoute, at, "", "%s is the broadcast address of %s, to which no connection is made", e.Dst, where)
		return true
	}
	e.NoProbe = "nothing is sent: to a broadcast address it would go to everybody"
	return false
}

// redirected ends the way at a side-car that takes the flow inside the sender's compartment.
func (e *explainer) redirected(from *Port) bool {
	r := from.Redirected(true, e.q.Protocol, netip.AddrPortFrom(e.Src, sourcePort), netip.AddrPortFrom(e.Dst, e.q.Port))
	if r == nil {
		return false
	}
	e.step(layerRedirect, from.ID, "L4WFPPROXY %s: the side-car takes it before it leaves the compartment%s", r, exempt(r))
	for _, p := range e.q.From.Ports {
		for _, o := range p.Redirects {
			if o.User != nil && o.User.ID == 0 {
				e.NoProbe = "nothing is sent: a probe is sent as root, whose flows are left alone (" + o.User.String() + ")"
			}
		}
	}
	e.arrive("taken by the side-car of %s at port %d", portTitle(from), r.To)
	return true
}

func exempt(r *Redirect) string {
	if r.User == nil {
		return ""
	}
	return "; what " + r.User.String() + " sends itself goes on"
}

// deliver ends the way in a compartment, where a side-car may take the flow.
func (e *explainer) deliver(to *Port, from netip.Addr, dst netip.AddrPort, shown string) {
	r := to.Redirected(false, e.q.Protocol, dst, netip.AddrPortFrom(from, sourcePort))
	if r == nil {
		e.arrive("delivered to %s, %s", portTitle(to), shown)
		return
	}
	e.step(layerRedirect, to.ID, "L4WFPPROXY %s: the side-car takes it in the compartment", r)
	e.arrive("delivered to %s, and taken by its side-car at port %d", portTitle(to), r.To)
}

func portTitle(p *Port) string {
	switch p.Kind {
	case PortHost:
		return "the host"
	case PortResolver:
		return "the network's resolver"
	case PortUplink:
		return "the NIC " + p.Device
	default:
	}
	return cmp.Or(p.Name, string(p.Endpoint))
}

// destination picks the address that is meant, and says where it comes from.
func (e *explainer) destination() (netip.Addr, bool) {
	to := &e.q.To
	switch {
	case to.Kind == PartyPorts:
		return e.endpointAddress()
	case to.Remote != nil:
		e.remoteName(to)
		return to.Addr, true
	case to.Addr.IsValid():
		e.step(layerName, "", "%s is an address", to.Addr)
		return to.Addr, true
	case to.Kind == PartyHost:
		for _, p := range e.q.From.Ports {
			if a := e.gateway(e.plan.Switches[p.Network]); a.IsValid() && e.plan.Switches[p.Network].HostPort != "" {
				e.step(layerName, p.ID, "the resolver of network %s answers host.internal with %s", e.plan.Switches[p.Network].Name, a)
				return a, true
			}
		}
		e.fail(layerName, "", "", "the host has no %s address on any of its networks", e.family())
		return netip.Addr{}, false
	}
	a := Example(e.q.V6)
	e.step(layerName, "", "%s stands for any address outside", a)
	return a, true
}

// remoteName tells how the sender gets the address of an endpoint on another host.
func (e *explainer) remoteName(to *Party) {
	for _, p := range e.q.From.Ports {
		if sw := e.plan.Switches[p.Network]; p.Network == to.Remote.Network && sw != nil {
			if slices.Contains(to.Remote.Names, strings.ToLower(to.Name)) && sw.ResolverPort != "" {
				e.step(layerName, p.ID, "the resolver of network %s answers %s with %s", sw.Name, to.Name, to.Addr)
			} else {
				e.step(layerName, p.ID, "no resolver of network %s answers %s: taken by its address %s", sw.Name, to.Name, to.Addr)
			}
			return
		}
	}
	e.step(layerName, "", "%s is on no network of the sender: taken by its address %s", remoteTitle(to.Remote), to.Addr)
}

// Broadcast is the last address of an IPv4 prefix that has one.
func Broadcast(p netip.Prefix) (netip.Addr, bool) {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}, false
	}
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b), true
}

// Example is an address outside: one of those that documentation uses (RFC 5737, RFC 3849).
func Example(v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
	}
	return netip.AddrFrom4([4]byte{198, 51, 100, 1})
}

// endpointAddress picks the address of a container, on a network of both if there is one.
func (e *explainer) endpointAddress() (netip.Addr, bool) {
	to := &e.q.To
	for _, p := range e.q.From.Ports {
		for _, o := range to.Ports {
			a := e.addrOf(o, to.Addr)
			if o.Network != p.Network || !a.IsValid() {
				continue
			}
			sw := e.plan.Switches[p.Network]
			switch {
			case to.Addr.IsValid():
				e.step(layerName, o.ID, "%s is %s on network %s", a, portTitle(o), sw.Name)
			case slices.Contains(o.Names, strings.ToLower(to.Name)) && sw.ResolverPort != "":
				e.step(layerName, p.ID, "the resolver of network %s answers %s with %s%s", sw.Name, to.Name, a, e.namesakes(o))
			default:
				e.step(layerName, p.ID, "no resolver of network %s answers %s: taken by its address %s", sw.Name, to.Name, a)
			}
			return a, true
		}
	}
	for _, o := range to.Ports {
		if a := e.addrOf(o, to.Addr); a.IsValid() {
			e.step(layerName, o.ID, "%s is on network %s alone, whose names are not known to %s: taken by its address %s",
				to.Name, e.plan.Switches[o.Network].Name, e.q.From.Name, a)
			return a, true
		}
	}
	e.fail(layerName, "", "", "%s has no %s address", to.Name, e.family())
	return netip.Addr{}, false
}

// namesakes tells of others that the resolver answers the name with.
func (e *explainer) namesakes(o *Port) string {
	n := 0
	for _, p := range e.plan.Ports {
		if p != o && p.Network == o.Network && p.Kind == PortContainer && slices.Contains(p.Names, strings.ToLower(e.q.To.Name)) {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", among the addresses of %d others of this name", n)
}

// route finds the way out of the compartment as its kernel does: the longest prefix, then
// the lowest metric.
func (e *explainer) route(dst netip.Addr) (from *Port, via netip.Addr) {
	best, metric := netip.Prefix{}, 0
	take := func(p *Port, dest netip.Prefix, gw netip.Addr, m int) {
		if !dest.Contains(dst) || !e.addrOf(p, netip.Addr{}).IsValid() {
			return
		}
		if from == nil || dest.Bits() > best.Bits() || dest.Bits() == best.Bits() && m < metric {
			from, best, via, metric = p, dest, gw, m
		}
	}
	for _, p := range e.q.From.Ports {
		for _, a := range p.VNIC.Addrs {
			take(p, a.Masked(), netip.Addr{}, 0)
		}
		for _, r := range p.VNIC.Routes {
			take(p, r.Dst, r.Via, r.Metric)
		}
	}
	if from == nil {
		e.fail(layerRoute, e.q.From.Ports[0].ID, e.q.From.connect("NETWORK"), "%s has no %s route to %s", e.q.From.Name, e.family(), dst)
		return nil, netip.Addr{}
	}
	e.Src = e.addrOf(from, e.q.From.Addr)
	way := "on the link"
	if via.IsValid() {
		way = "via " + via.String()
	}
	e.step(layerRoute, from.ID, "%s %s by %s, network %s, from %s", best, way, from.VNIC.Device, e.plan.Switches[from.Network].Name, e.Src)
	return from, via
}

func (e *explainer) mtu(sizes ...int) {
	most := 0
	for _, n := range sizes {
		if n > 0 && (most == 0 || n < most) {
			most = n
		}
	}
	if most > 0 {
		e.step(layerMTU, "", "packets of up to %d bytes fit all the way", most)
	}
}
