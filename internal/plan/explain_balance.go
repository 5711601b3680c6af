package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// balanced is the load balancer, and what the host translates for it, that a packet meets at the host; nil for none. local is a process
// of the host's own, which alone reaches loopback.
func (e *explainer) balanced(local bool) (*Balancer, Forward) {
	var found *Balancer
	var with Forward
	for _, id := range slices.Sorted(maps.Keys(e.plan.Balancers)) {
		for _, f := range e.plan.Balancers[id].Forwards {
			if f.Protocol != e.q.Protocol || f.Port != e.q.Port || f.Is4() != e.Dst.Is4() {
				continue
			}
			one := f.Scope == ScopeAddress && f.Bind == e.Dst
			all := f.Scope == ScopeAll && e.hostAddress(e.Dst) && (local || !e.Dst.IsLoopback())
			if one || all && found == nil {
				found, with = e.plan.Balancers[id], f
			}
		}
	}
	return found, with
}

// hostToBalanced begins with a process of the host, for an address of a load balancer or, if none is named, one of the host's that it is at.
func (e *explainer) hostToBalanced() bool {
	to := []netip.Addr{e.q.To.Addr}
	if e.q.To.Kind == PartyHost && !e.q.To.Addr.IsValid() {
		to = e.bindings()
	}
	for _, a := range to {
		if !a.IsValid() {
			continue
		}
		e.Dst = a
		b, f := e.balanced(true)
		if b == nil {
			continue
		}
		e.Src = a
		if !e.hostAddress(a) {
			r, ok := e.hostRoute() // the kernel picks the source before it is translated
			if !ok {
				return true
			}
			e.Src = r.Src
		}
		e.toBalanced(b, f, nil)
		return true
	}
	e.Dst = netip.Addr{}
	return false
}

// toBalanced goes on at the host's vNIC, at whose port the switch chooses a back end. from is the container that sent the packet, nil for
// the host and the outside.
func (e *explainer) toBalanced(b *Balancer, f Forward, from *Port) {
	sw, door := e.plan.Switches[b.Network], e.plan.Switches[b.DoorID()]
	if from != nil && e.plan.Switches[from.Network].Mode == ModeInternal {
		e.fail(layerNAT, from.ID, "", "network %s is Internal: nothing of it is forwarded (table inet bulkhead, drop_internal)", e.plan.Switches[from.Network].Name)
		return
	}
	where := f.scopeText()
	if f.Scope == ScopeAddress && !e.hostAddress(f.Bind) {
		where = "at its virtual address"
	}
	whose := "the switch of network " + sw.Name
	if b.onServices() {
		whose = "a switch of the host's for network " + sw.Name
	}
	e.step(layerNAT, door.HostPort, "load balancer %s, %s: %s becomes %s, which %s balances", b.title(), where, netip.AddrPortFrom(e.Dst, f.Port), f.To, whose)
	k := Packet{From: door.HostPort, Src: e.Src, Dst: f.To.Addr(), DstPort: f.To.Port(), DstMAC: insideMAC()}
	var hook string
	if b.onServices() {
		hook = e.throughServices(&k)
	} else {
		hook = e.seenAs(&k, from, sw)
	}
	if !e.foreign(hook) {
		return
	}
	got := e.leg(k)
	if got == nil {
		if e.Reason == "no-backend" {
			e.Next = "bulkhead loadbalancer set " + Word(cmp.Or(b.Name, string(b.ID))) + " ENDPOINT…"
			if b.Unreached {
				e.Next = "bulkhead endpoint create --network " + Word(sw.Name) + " --name source: its address is a SourceVIP (--source-vip) for the back ends that are not on this host"
			}
		}
		return
	}
	switch {
	case got.Verdict == Delivered:
		to := e.plan.Ports[got.To]
		e.mtu(sw.MTU, to.VNIC.MTU)
		e.deliver(to, k.Src, got.Backend, got.Backend.String())
	case got.Source.IsValid():
		e.toFar(door, sw, got)
	default:
		e.Summary = "the switch judges this packet by more than an explanation holds"
	}
}

// throughServices gives a packet the source that it has on the host's own switch, and says which hook it passes.
func (e *explainer) throughServices(k *Packet) (hook string) {
	if e.q.From.Kind != PartyHost {
		return "forward"
	}
	if e.Dst.IsLoopback() {
		if r, err := e.host.Route(k.Dst); err == nil {
			k.Src = r.Src
		}
		e.step(layerNAT, "", "nobody could answer loopback: the source becomes %s", k.Src)
	}
	return "output"
}

// toFar goes on to a back end that is on no port of the switch, which sees a source of ours. lan is the network that it may be on.
func (e *explainer) toFar(sw, lan *Switch, got *Trace) {
	client, asked, port := e.Src, e.Dst, e.q.Port
	defer func() { e.Src, e.Dst, e.q.Port = client, asked, port }()
	host := e.plan.Ports[sw.HostPort]
	e.Src, e.Dst, e.q.Port = got.Source, got.Backend.Addr(), got.Backend.Port()
	if got.Verdict == ToRemote {
		e.remote(host, sw, got.Backend, netip.Addr{})
		return
	}
	if e.hostAddress(e.Dst) {
		e.intoStack(sw)
		return
	}
	if !e.forwarding(sw.HostDevice) {
		return
	}
	if r, ok := e.hostRoute(); ok && e.foreign("forward") {
		if to := e.onNetwork(lan, e.Dst); to != nil && lan != sw {
			e.Src = r.Src
			e.step(layerNAT, "", "the container would answer the client past the host: the source becomes the host's, %s", r.Src)
			e.hostToMember(to, lan, r, got.Backend.Port())
			return
		}
		e.masquerade(host, r)
		e.mtu(sw.MTU)
	}
}

// onNetwork is the container that has an address on a network, nil for none.
func (e *explainer) onNetwork(sw *Switch, a netip.Addr) *Port {
	for _, p := range e.plan.Ports {
		if p.Network == sw.Network && p.Kind == PortContainer && !inHost(p) && slices.Contains(p.Addrs, a) {
			return p
		}
	}
	return nil
}

// toService ends a way that a load balancer decides: who would get the packet without it says nothing.
func (e *explainer) toService(k Packet, from *Port, sw *Switch) {
	got := e.leg(k)
	if got == nil {
		if e.Reason == "no-backend" {
			e.Next = "bulkhead loadbalancer set NAME ENDPOINT…"
		}
		return
	}
	seen := netip.AddrPortFrom(k.Dst, k.DstPort)
	if got.Backend.IsValid() && got.Backend.Port() != 0 {
		seen = got.Backend
	}
	switch got.Verdict {
	case Delivered:
		to := e.plan.Ports[got.To]
		e.mtu(from.VNIC.MTU, to.VNIC.MTU)
		e.deliver(to, e.Src, seen, seen.Addr().String())
	case ToHost:
		host := e.plan.Ports[got.To]
		asked, port := e.Dst, e.q.Port
		defer func() { e.Dst, e.q.Port = asked, port }()
		e.Dst, e.q.Port = seen.Addr(), seen.Port() // a back end outside of the network
		e.intoHost(from, sw, hostDevice(sw, host))
	case ToRemote:
		e.remote(from, sw, seen, netip.Addr{})
	case ToWire:
		e.arrive("the back end %s is reached by the LAN of network %s", seen, sw.Name)
	default:
		e.Summary = "the switch judges this packet by more than an explanation holds"
	}
}
