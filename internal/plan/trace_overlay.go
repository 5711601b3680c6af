package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// The part of the model that knows of other hosts.

// hop is the way to a host.
type hop struct {
	provider netip.Addr
	vni      uint32
	mac      MAC    // of the frame inside
	title    string // who or what is there
	router   bool
	keyless  bool
}

// remoteAt is the endpoint elsewhere that has an address on a switch.
func (p *Plan) remoteAt(sw *Switch, a netip.Addr) *Remote {
	var found *Remote
	for _, r := range p.Remotes {
		if r.Network == sw.Network && slices.Contains(r.Addrs, a) && (found == nil || r.Endpoint > found.Endpoint) {
			found = r
		}
	}
	return found
}

// hopTo is how an address elsewhere is reached, nil when nobody knows: an endpoint's before a prefix's, and of these the longest.
func (p *Plan) hopTo(sw *Switch, a netip.Addr) *hop {
	if r := p.remoteAt(sw, a); r != nil {
		return &hop{r.Provider, r.VNIs[slices.Index(r.Addrs, a)], r.MAC, "endpoint " + remoteTitle(r), false, r.Keyless}
	}
	var best *RemoteRoute
	for i := range sw.Overlay.Routes {
		if r := &sw.Overlay.Routes[i]; r.Prefix.Contains(a) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = r
		}
	}
	if best == nil {
		return nil
	}
	return &hop{best.Provider, best.VNI, best.Router, "the router of " + best.Prefix.String(), true, false}
}

func remoteTitle(r *Remote) string {
	name := string(r.Endpoint)
	if len(r.Names) > 0 {
		name = r.Names[0]
	}
	if r.Host != "" {
		name += " on host " + r.Host
	}
	return name
}

// overlayDestination finds the port that a packet is for. The router's MAC means whoever has the address.
func (t *tracer) overlayDestination() *Port {
	k, o := &t.pkt, t.sw.Overlay
	fail := func(reason, format string, args ...any) *Port {
		t.drop("switching", t.from.ID, reason, format, args...)
		return nil
	}
	if t.from.Kind == PortHost && !o.Host {
		return fail("no-route", "network %q has no way to the host (HostRoute)", t.sw.Name)
	}
	if to, ok := t.byHop(); ok {
		return to
	}
	routed := k.DstMAC == o.Router
	var to *Port
	for _, p := range t.ports() {
		if p.MAC == k.DstMAC && !routed {
			to = p
		}
	}
	owner := t.owner(k.Dst)
	switch {
	case to != nil:
	case owner != nil && owner.Kind == PortContainer:
		to = owner
		if routed {
			t.step("routing", t.from.ID, nil, "%s is the router's MAC, and %s is the address of port %s", k.DstMAC, k.Dst, to.ID)
		} else {
			t.step("switching", t.from.ID, nil, "%s is nobody's MAC any more, but %s is the address of port %s", k.DstMAC, k.Dst, to.ID)
		}
	case owner == nil && t.isContainer(t.from) && t.plan.hopTo(t.sw, k.Dst) != nil:
		return t.elsewhere()
	case routed && t.isContainer(t.from):
		return t.overlayHost()
	case routed:
		return fail("no-route", "nobody on this host has %s on network %q", k.Dst, t.sw.Name)
	default:
		return fail("unknown-mac", "no port of switch %q has the MAC %s, and no host is known to have %s", t.sw.Name, k.DstMAC, k.Dst)
	}
	switch {
	case to == t.from:
		return fail("to-self", "%s is the sender's own MAC", k.DstMAC)
	case to.Kind == PortHost && t.from.Kind == PortTunnel:
		return fail("no-route", "the host of network %q is for its own endpoints", t.sw.Name)
	}
	t.step("switching", t.from.ID, nil, "%s is behind port %s", k.Dst, to.ID)
	return to
}

// elsewhere is the tunnel, for a destination on another host.
func (t *tracer) elsewhere() *Port {
	t.hop = t.plan.hopTo(t.sw, t.pkt.Dst)
	tunnel := t.plan.Ports[t.sw.Overlay.Tunnel]
	switch {
	case tunnel == nil:
		t.drop("switching", t.from.ID, "no-uplink", "%s is on another host, and the NIC %s of network %q is gone", t.pkt.Dst, t.sw.Uplink, t.sw.Name)
		return nil
	case t.pkt.DstMAC == t.sw.Overlay.Router || t.hop.router:
		t.step("routing", t.from.ID, nil, "%s is behind %s", t.pkt.Dst, t.hop.title)
	default:
		t.step("switching", t.from.ID, nil, "%s is the address of %s", t.pkt.Dst, t.hop.title)
	}
	return tunnel
}

// overlayHost is the host, for what has the router's MAC and is for nobody on the network: or its resolver.
func (t *tracer) overlayHost() *Port {
	host := t.plan.Ports[t.sw.HostPort]
	if t.asksResolver() {
		if to := t.plan.Ports[t.sw.ResolverPort]; to != nil {
			t.step("switching", t.from.ID, nil, "port 53 of the gateway is the resolver's: port %s", to.ID)
			return to
		}
	}
	if !t.sw.Overlay.Host || host == nil {
		t.drop("routing", t.from.ID, "no-route", "network %q knows no endpoint and no remote subnet with %s, and has no way to the host (HostRoute)", t.sw.Name, t.pkt.Dst)
		return nil
	}
	t.step("routing", t.from.ID, nil, "nobody on network %q has %s: by the host", t.sw.Name, t.pkt.Dst)
	return host
}

// encapsulate ends the way of a packet for another host.
func (t *tracer) encapsulate(to *Port) {
	if to.Kind != PortTunnel || t.Verdict != Delivered && t.Verdict != ToHost {
		return
	}
	o := t.sw.Overlay
	if o.Encrypted && (o.Unready || t.hop.keyless) {
		t.To = ""
		why := "the host of " + t.hop.title + " has told no key"
		if o.Unready {
			why = "this host cannot encrypt now: `bulkhead doctor` says why"
		}
		t.drop("encapsulation", t.from.ID, "no-key", "network %q is encrypted, and %s", t.sw.Name, why)
		return
	}
	if t.hop.provider.Is4() != o.Provider.Is4() {
		t.To = ""
		t.drop("encapsulation", t.from.ID, "no-route", "%s cannot be reached from %s, which is of the other family", t.hop.provider, o.Provider)
		return
	}
	t.Verdict = ToRemote
	if o.Encrypted {
		t.step("encapsulation", to.ID, nil, "in a VXLAN packet of the virtual network %d inside WireGuard, to %s there from %s; in it, it is for the MAC %s",
			t.hop.vni, t.hop.provider, o.Provider, t.hop.mac)
		return
	}
	t.step("encapsulation", to.ID, nil, "in a VXLAN packet of the virtual network %d to port %d of %s, from %s by %s; inside, it is for the MAC %s",
		t.hop.vni, o.Port, t.hop.provider, o.Provider, t.sw.Uplink, t.hop.mac)
}

// spread tells of the copies of a group frame that go to other hosts.
func (t *tracer) spread() {
	o := t.sw.Overlay
	if o == nil || !t.isContainer(t.from) {
		return
	}
	hosts := t.plan.groupHosts(t.sw)
	switch {
	case !o.Multicast:
		t.step("encapsulation", t.from.ID, nil, "no copy leaves this host: network %q carries no multicast (--multicast)", t.sw.Name)
	case t.exempt():
		t.step("encapsulation", t.from.ID, nil, "no copy leaves this host: what keeps a link working is each host's own")
	case t.from.Policy.Isolated:
		t.step("encapsulation", t.from.ID, nil, "no copy leaves this host: port %s exchanges nothing with other endpoints (DisableInterComputeCommunication)", t.from.ID)
	case o.Encrypted && o.Unready:
		t.step("encapsulation", t.from.ID, nil, "no copy leaves this host: network %q is encrypted, and this host cannot encrypt now: `bulkhead doctor` says why", t.sw.Name)
	case o.Encrypted && o.Tunnel != "":
		t.step("encapsulation", o.Tunnel, nil, "a copy inside WireGuard to each of the %d other hosts of network %q, for the ports there that are in the group", len(hosts), t.sw.Name)
	case o.Tunnel == "":
		t.step("encapsulation", t.from.ID, nil, "no copy leaves this host: the NIC %s of network %q is gone", t.sw.Uplink, t.sw.Name)
	default:
		t.step("encapsulation", o.Tunnel, nil, "a copy in a VXLAN packet to each of the %d other hosts of network %q, for the ports there that are in the group", len(hosts), t.sw.Name)
	}
}

// groupHosts are the hosts that get a switch's group frames.
func (p *Plan) groupHosts(sw *Switch) []netip.Addr {
	seen := map[netip.Addr]bool{}
	for _, r := range p.Remotes {
		if r.Network == sw.Network {
			seen[r.Provider] = true
		}
	}
	for _, r := range sw.Overlay.Routes {
		seen[r.Provider] = true
	}
	maps.DeleteFunc(seen, func(a netip.Addr, _ bool) bool { return a.Is4() != sw.Overlay.Provider.Is4() })
	out := slices.SortedFunc(maps.Keys(seen), netip.Addr.Compare)
	return out[:min(len(out), MaxGroupHosts)]
}

// byVNI is the switch whose virtual network a tunnel's packet is for, or nil.
func (p *Plan) byVNI(tunnel *Port, vni uint32) *Switch {
	for _, sw := range p.Through(tunnel.ID) {
		if slices.Contains(sw.VNIs(), vni) {
			return sw
		}
	}
	return nil
}

// clearOf is the encrypted switch for which a packet comes to the NIC in clear text, or nil.
func (p *Plan) clearOf(tunnel *Port, k *Packet) *Switch {
	for _, sw := range p.Switches {
		if o := sw.Overlay; o != nil && o.Encrypted && o.Port == tunnel.UDPPort && slices.Contains(o.Clear, k.OuterDst) && slices.Contains(sw.VNIs(), k.VNI) {
			return sw
		}
	}
	return nil
}

// completeOuter fills in the hosts of a packet from a tunnel: the one that has the sender, and this one.
func (t *tracer) completeOuter() {
	k := &t.pkt
	if !k.OuterDst.IsValid() {
		k.OuterDst = t.sw.Overlay.Provider
	}
	k.OuterPort = t.sw.Overlay.Port
	h := t.plan.hopTo(t.sw, k.Src)
	if h != nil && !k.OuterSrc.IsValid() {
		k.OuterSrc = h.provider
	}
	if r := t.speaker(); h == nil && r != nil && !k.OuterSrc.IsValid() {
		k.OuterSrc, h = r.Provider, &hop{mac: r.MAC}
	}
	if k.SrcMAC == (MAC{}) && h != nil {
		k.SrcMAC = h.mac
	}
}

// vtep tells that something of a switch's network is on a host.
func (p *Plan) vtep(sw *Switch, host netip.Addr) bool {
	for _, r := range p.Remotes {
		if r.Network == sw.Network && r.Provider == host {
			return true
		}
	}
	return slices.ContainsFunc(sw.Overlay.Routes, func(r RemoteRoute) bool { return r.Provider == host })
}

// traceTunnel follows what comes in from another host.
func (p *Plan) traceTunnel(t *tracer) Trace {
	k := &t.pkt
	if sw := p.clearOf(t.from, k); sw != nil {
		t.drop("decapsulation", t.from.ID, "clear-text", "network %q is encrypted, and this is a VXLAN packet outside of WireGuard", sw.Name)
		return t.Trace
	}
	t.sw = p.byVNI(t.from, k.VNI)
	if t.sw == nil || k.OuterDst.IsValid() && k.OuterDst != t.sw.Overlay.Provider {
		t.pass("no network here has the virtual network %d at that address", k.VNI)
		return t.Trace
	}
	t.complete()
	if !p.vtep(t.sw, k.OuterSrc) {
		t.drop("decapsulation", t.from.ID, "unknown-vtep", "%s has no endpoint of network %q", k.OuterSrc, t.sw.Name)
		return t.Trace
	}
	if !t.isIP() {
		return t.Trace
	}
	if reason := t.guardInner(); reason != "" {
		t.drop("source guard", t.from.ID, reason, "this may not come from %s: %s", k.OuterSrc, reason)
		return t.Trace
	}
	t.step("decapsulation", t.from.ID, nil, "out of a VXLAN packet of the virtual network %d from %s, which has %s", k.VNI, k.OuterSrc, k.Src)
	if k.DstMAC[0]&1 != 0 {
		t.Verdict = Flooded
		t.step("switching", t.from.ID, nil, "a copy to each port of switch %q that is in the group, where its own rules judge it; none to other hosts", t.sw.Name)
		return t.Trace
	}
	t.unicast()
	return t.Trace
}

// guardInner is the source guard for what other hosts send.
func (t *tracer) guardInner() string {
	k := &t.pkt
	h := t.plan.hopTo(t.sw, k.Src)
	if r := t.speaker(); h == nil && r != nil {
		h = &hop{provider: r.Provider}
	}
	switch {
	case k.DstMAC[0]&1 != 0 && !t.sw.Overlay.Multicast:
		return "flooded"
	case k.SrcMAC[0]&1 != 0:
		return "martian"
	case h == nil || h.provider != k.OuterSrc, t.owner(k.Src) != nil:
		return "inner-source"
	case martian(k.Src) || groupAddress(k.Src) || martian(k.Dst) || k.Dst.IsUnspecified():
		return "martian"
	case t.icmp6(ndAdvert):
		return "nd-spoof"
	}
	reason := cmp.Or(t.guardRole(), t.quiet())
	if reason == "" && k.DstMAC[0]&1 != 0 && t.exempt() {
		reason = "flooded"
	}
	return cmp.Or(reason, t.guardGroup())
}
