package plan

import (
	"net/netip"
	"slices"
	"strings"
)

// hostDevice is the one of the host's on a switch that has the port's MAC.
func hostDevice(sw *Switch, to *Port) string {
	switch {
	case sw.Mode.OnLAN() && to.Kind == PortContainer:
		return to.VNIC.Device
	case sw.Mode.OnLAN():
		return sw.Uplink
	}
	return sw.HostDevice
}

// intoHost goes on in the host's stack with what a container sent to the MAC of a device there.
func (e *explainer) intoHost(from *Port, sw *Switch, device string) {
	if d := from.DetourOf(e.q.Protocol, e.Dst); d != nil {
		e.detour(d, from, sw)
		return
	}
	if e.hostAddress(e.Dst) {
		if f, to := e.published(nil, false); to != nil {
			e.toPublished(f, to, from)
			return
		}
		if b, f := e.balanced(false); b != nil {
			e.toBalanced(b, f, from)
			return
		}
		e.intoStack(sw)
		return
	}
	if b, f := e.balanced(false); b != nil { // of another network
		e.toBalanced(b, f, from)
		return
	}
	if sw.Mode.OnLAN() {
		e.routedByHost(from, sw, device)
		return
	}
	if sw.Mode != ModeNAT && from.OutboundOf(e.Src) == nil { // an overlay with a way to the host forwards for those that have the policy
		e.fail(layerNAT, "", "", "network %s is not of type NAT: nothing of it is forwarded", sw.Name)
		return
	}
	if !e.forwarding(device) {
		return
	}
	if other := e.switchOf(e.Dst); other != nil {
		next := ""
		if len(e.q.To.Ports) > 0 {
			next = e.q.From.connect(other.Name)
		}
		e.fail("isolation", from.ID, next, "%s is on network %s, and networks are apart from each other but for published ports (table inet bulkhead, drop_isolation)", e.Dst, other.Name)
		return
	}
	r, ok := e.hostRoute()
	if !ok || !e.foreign("forward") {
		return
	}
	e.masquerade(from, r)
	e.mtu(from.VNIC.MTU, sw.MTU)
}

// masquerade is what OutBoundNAT says of the source, and without it the address of the
// device that the packet leaves by.
func (e *explainer) masquerade(from *Port, r HostRoute) {
	as, kept := r.Src, false
	if o := from.OutboundOf(e.Src); o != nil {
		var chosen netip.Addr
		if chosen, kept = o.Translate(e.Dst); chosen.IsValid() {
			as = chosen
		}
	}
	if kept {
		e.step(layerNAT, from.ID, "OutBoundNAT of %s: %s sees its own address", portTitle(from), e.Dst)
		e.arrive("leaves this host by %s under its own address, %s", r.Device, e.Src)
		return
	}
	e.step(layerNAT, "", "masquerade: the source becomes %s, at a port of its choice", as)
	e.arrive("leaves this host by %s after masquerade as %s", r.Device, as)
}

// intoStack ends at the host itself.
func (e *explainer) intoStack(sw *Switch) {
	if !e.foreign("input") {
		return
	}
	if sw != nil {
		e.mtu(sw.MTU)
	}
	e.arrive("delivered to the host's own stack, %s", e.Dst)
}

// switchOf finds the switch that has an address on one of its subnets, where the host
// would route it.
func (e *explainer) switchOf(a netip.Addr) *Switch {
	for _, sw := range e.plan.Switches {
		if sw.HostPort != "" && slices.ContainsFunc(sw.Subnets, func(s Subnet) bool { return s.Prefix.Contains(a) }) {
			return sw
		}
	}
	return nil
}

func (e *explainer) hostRoute() (HostRoute, bool) {
	r, err := e.host.Route(e.Dst)
	if err != nil {
		e.fail(layerHost, "", "ip route get "+e.Dst.String(), "the host has no route to %s: %v", e.Dst, err)
		return r, false
	}
	if r.Broadcast && e.q.From.Kind == PartyHost {
		if e.noConnection("", r.Device) {
			return r, false
		}
		e.step(layerHost, "", "%s is the broadcast address of %s: a copy goes to each machine there", e.Dst, r.Device)
		return r, true
	}
	if r.Broadcast {
		e.fail(layerHost, "", "", "%s is the broadcast address of the host's %s: the host takes such a packet for its own and forwards none", e.Dst, r.Device)
		return r, false
	}
	way := "on the link"
	if r.Via.IsValid() {
		way = "via " + r.Via.String()
	}
	e.step(layerHost, "", "the host routes %s %s by %s", e.Dst, way, r.Device)
	return r, true
}

// published finds the forward that a destination of the host's meets, as the nftables
// table does: the one address before every address, and loopback only for the host's own
// processes. Of some ports only, or of all with nil.
func (e *explainer) published(of []*Port, local bool) (Forward, *Port) {
	var found Forward
	var to *Port
	for _, p := range e.plan.Ports {
		if of != nil && !slices.Contains(of, p) {
			continue
		}
		for _, f := range p.Forwards {
			if f.Protocol != e.q.Protocol || f.Port != e.q.Port || f.Is4() == e.q.V6 {
				continue
			}
			loopback := e.Dst.IsLoopback()
			switch {
			case loopback && !local, f.Scope == ScopeLAN && loopback, f.Scope == ScopeAddress && f.Bind != e.Dst:
			case to == nil || f.Scope == ScopeAddress:
				found, to = f, p
			}
		}
	}
	return found, to
}

func (f Forward) scopeText() string {
	switch {
	case f.Scope == ScopeAll:
		return "on every address of the host"
	case f.Scope == ScopeLAN:
		return "on every address of the host but loopback"
	case f.Bind.IsLoopback():
		return "on loopback, for the host alone"
	}
	return "on " + f.Bind.String()
}

// toPublished translates and goes on to the container. from is the container that sent
// it, nil for the host and the outside.
func (e *explainer) toPublished(f Forward, to, from *Port) {
	sw := e.plan.Switches[to.Network]
	holder := "the daemon"
	if f.Held {
		holder = "its runtime"
	}
	e.step(layerNAT, to.ID, "published %s and held by a socket of %s: %s becomes %s", f.scopeText(), holder, netip.AddrPortFrom(e.Dst, f.Port), f.To)
	if f.Hidden {
		e.toHidden(f, to, sw)
		return
	}
	k := Packet{From: sw.HostPort, Src: e.Src, Dst: f.To.Addr(), DstPort: f.To.Port()}
	if !e.foreign(e.seenAs(&k, from, sw)) {
		return
	}
	if t := e.leg(k); t != nil {
		e.mtu(sw.MTU, to.VNIC.MTU)
		e.deliver(to, k.Src, f.To, f.To.String())
	}
}

// seenAs gives a packet that the host sends to a network the source that it has there, and says which hook it passes. from is the
// container that sent it, nil for the host and the outside.
func (e *explainer) seenAs(k *Packet, from *Port, sw *Switch) (hook string) {
	hook = "forward"
	switch {
	case e.q.From.Kind == PartyHost && e.Dst.IsLoopback():
		hook, k.Src = "output", e.gateway(sw)
		e.step(layerNAT, "", "the container could not answer loopback: the source becomes the gateway's, %s", k.Src)
	case e.q.From.Kind == PartyHost:
		hook = "output"
		e.step(layerNAT, "", "the container sees the host's address, %s", k.Src)
	case from != nil && from.Network == sw.Network:
		k.Src = e.gateway(sw)
		e.step(layerNAT, "", "both are on network %s: the source becomes the gateway's, %s, so that the answer comes back this way", sw.Name, k.Src)
	default:
		e.step(layerNAT, "", "the container sees the client's own address, %s", k.Src)
	}
	return hook
}

// toHidden is a published port of a container on a LAN, to which the host sends as itself.
func (e *explainer) toHidden(f Forward, to *Port, sw *Switch) {
	hook := "forward"
	if e.q.From.Kind == PartyHost {
		hook = "output"
	}
	e.Dst = f.To.Addr()
	r, ok := e.hostRoute()
	if !ok || !e.foreign(hook) {
		return
	}
	e.Src = r.Src
	e.step(layerNAT, "", "the container would answer the client past the host: the source becomes the host's, %s", r.Src)
	e.hostToMember(to, sw, r, f.To.Port())
}

// hostToMember is what the host sends as itself to a container on a LAN.
func (e *explainer) hostToMember(to *Port, sw *Switch, r HostRoute, port uint16) {
	k := Packet{From: sw.UplinkPort, Host: true, Src: r.Src, Dst: e.Dst, DstPort: port}
	if own := e.hostVNIC(sw, r.Device); own != nil {
		k = Packet{From: own.ID, Src: r.Src, Dst: e.Dst, DstPort: port}
	}
	e.onLAN(k, to, sw)
}

// fromHost begins with a process of the host.
func (e *explainer) fromHost() {
	if e.q.To.Kind != PartyPorts && e.hostToBalanced() {
		return
	}
	if e.q.To.Kind != PartyPorts {
		e.hostOut()
		return
	}
	for _, a := range e.bindings() {
		e.Dst, e.Src = a, a
		if f, to := e.published(e.q.To.Ports, true); to != nil {
			e.step(layerName, to.ID, "port %d of the host is published to %s", e.q.Port, e.q.To.Name)
			e.toPublished(f, to, nil)
			return
		}
	}
	for _, to := range e.q.To.Ports {
		sw := e.plan.Switches[to.Network]
		dst := e.addrOf(to, e.q.To.Addr)
		if dst.IsValid() && sw.Mode.OnLAN() {
			e.hostToLAN(to, sw, dst)
			return
		}
		if !dst.IsValid() || sw.HostPort == "" {
			continue
		}
		e.Dst, e.Src = dst, e.gateway(sw)
		e.step(layerName, to.ID, "taken by its address on network %s, %s: the host does not ask the networks' resolvers", sw.Name, dst)
		if inHost(to) {
			e.arrive("stays in the host's stack, which %s is in", portTitle(to))
			return
		}
		e.step(layerRoute, sw.HostPort, "on the link by %s, from the gateway's address %s", sw.HostDevice, e.Src)
		if !e.foreign("output") {
			return
		}
		if t := e.leg(Packet{From: sw.HostPort, Src: e.Src, Dst: dst, DstPort: e.q.Port}); t != nil {
			e.mtu(sw.MTU, to.VNIC.MTU)
			e.deliver(to, e.Src, netip.AddrPortFrom(dst, e.q.Port), dst.String())
		}
		return
	}
	e.fail(layerRoute, "", "bulkhead inspect "+e.q.To.Name, "the host has no %s address on a network of %s", e.family(), e.q.To.Name)
}

// bindings are the addresses by which the host may reach a published port.
func (e *explainer) bindings() []netip.Addr {
	loopback := netip.IPv6Loopback()
	if !e.q.V6 {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return append([]netip.Addr{loopback}, e.outerAddrs()...)
}

// outerAddrs are the host's addresses on the LAN.
func (e *explainer) outerAddrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range e.host.Addrs {
		if a := p.Addr(); e.fits(a) && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			out = append(out, a)
		}
	}
	return out
}

func (e *explainer) hostOut() {
	e.Dst = e.q.To.Addr
	if e.q.To.Kind == PartyHost || e.Dst.IsValid() && e.hostAddress(e.Dst) {
		e.step(layerRoute, "", "it is the host's own: the packet does not leave it")
		e.arrive("stays in the host's stack")
		return
	}
	if !e.Dst.IsValid() {
		e.Dst = Example(e.q.V6)
	}
	if r, ok := e.hostRoute(); ok && e.foreign("output") {
		e.Src = r.Src
		e.arrive("leaves this host by %s from %s; no switch of ours is on the way", r.Device, r.Src)
	}
}

// fromOutside begins beyond the uplink.
func (e *explainer) fromOutside() {
	if e.Src = e.q.From.Addr; !e.Src.IsValid() {
		e.Src = Example(e.q.V6)
	}
	if e.Dst = e.q.To.Addr; e.Dst.IsValid() && e.q.To.Kind != PartyPorts {
		if b, f := e.balanced(false); b != nil {
			if e.forwardingAny() {
				e.toBalanced(b, f, nil)
			}
			return
		}
	}
	outer := e.outerAddrs()
	if e.q.To.Kind == PartyPorts && (e.lanToPort() || e.remoteToPort()) {
		return
	}
	if len(outer) == 0 {
		e.fail(layerHost, "", "ip address", "the host has no %s address that one outside could send to", e.family())
		return
	}
	if e.q.To.Kind != PartyPorts {
		e.outsideToHost(outer[0])
		return
	}
	for _, a := range outer {
		e.Dst = a
		if f, to := e.published(e.q.To.Ports, false); to != nil {
			e.step(layerName, to.ID, "port %d of the host, %s, is published to %s", e.q.Port, a, e.q.To.Name)
			if e.forwardingAny() {
				e.toPublished(f, to, nil)
			}
			return
		}
	}
	e.notPublished()
}

func (e *explainer) outsideToHost(a netip.Addr) {
	e.Dst = a
	if e.q.To.Kind == PartyHost && e.q.To.Addr.IsValid() {
		e.Dst = e.q.To.Addr
	}
	if e.q.To.Kind != PartyHost {
		e.fail(layerRoute, "", "", "neither end is on this host")
		return
	}
	if f, to := e.published(nil, false); to != nil {
		e.toPublished(f, to, nil)
		return
	}
	if b, f := e.balanced(false); b != nil {
		if e.forwardingAny() {
			e.toBalanced(b, f, nil)
		}
		return
	}
	e.intoStack(nil)
}

// forwardingAny asks about the device of the default route, by which most of the outside
// comes in.
func (e *explainer) forwardingAny() bool {
	r, err := e.host.Route(e.Src)
	if err != nil {
		return true // who routes nothing back will be found by the answer
	}
	return e.forwarding(r.Device)
}

func (e *explainer) notPublished() {
	proto := strings.ToLower(ProtocolName(e.q.Protocol))
	for _, p := range e.q.To.Ports {
		for _, f := range p.Forwards {
			if f.Protocol == e.q.Protocol && f.Port == e.q.Port && f.Is4() != e.q.V6 {
				e.Dst = netip.Addr{}
				e.fail(layerNAT, p.ID, publishCommand(e.q.To.Name, f, proto), "port %d/%s of the host is published %s: nobody outside reaches it", e.q.Port, proto, f.scopeText())
				return
			}
		}
	}
	for _, p := range e.q.To.Ports {
		if a := e.addrOf(p, netip.Addr{}); a.IsValid() {
			e.Dst = a
			next := "bulkhead publish add " + Word(e.q.To.Name) + " --expose lan HOSTPORT:PORT"
			if e.q.Port != 0 {
				next = publishCommand(e.q.To.Name, Forward{Port: e.q.Port, To: netip.AddrPortFrom(a, e.q.Port)}, proto)
			}
			e.fail(layerNAT, p.ID, next, "nothing outside reaches a container but through a published port, and %d/%s is none of %s's (table inet bulkhead, drop_direct)", e.q.Port, proto, e.q.To.Name)
			return
		}
	}
	e.fail(layerName, "", "", "%s has no %s address", e.q.To.Name, e.family())
}

func publishCommand(name string, f Forward, proto string) string {
	return "bulkhead publish add " + Word(name) + " --expose lan " + portText(f.Port) + ":" + portText(f.To.Port()) + "/" + proto
}

func portText(p uint16) string { return PortRange{p, p}.String() }
