package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// compileEndpoint makes the port of an attached endpoint, nil for any other.
func compileEndpoint(in *Intent, e *Endpoint, f *Facts) *Port {
	if e == nil || e.Attach == nil {
		return nil
	}
	n, ns := in.Networks[e.Doc.HostComputeNetwork], in.Namespaces[e.Attach.Namespace]
	onHost := ns != nil && ns.Doc.Type == hcn.NamespaceTypeHostDefault
	if n == nil || ns == nil || compileNamespace(ns) == nil && !onHost && !e.Attach.Parked || mode(n.Doc.Type) == 0 {
		return nil
	}
	macvlan := n.Doc.Macvlan()
	if macvlan && f.NIC(n.Uplink) == nil {
		return nil // the device went with it
	}
	id := e.Doc.ID
	p := &Port{
		ID: EndpointPortID(id), Kind: PortContainer, Network: n.Doc.ID, Switch: n.Switch,
		Endpoint: id, Name: e.Doc.Name, Names: dnsNames(e), Upstreams: upstreams(e, n),
		MAC: e.MAC, LinkLocal: e.MAC.LinkLocal(), VLAN: VLANOf(e, n),
		VNIC: VNIC{
			Namespace: NamespacePath(ns.Doc.ID), Device: e.Attach.Interface,
			MAC: e.MAC, MTU: endpointMTU(e, n, f), Segments: segments(n, f), Addrs: e.Addrs, LinkLocal: e.MAC.LinkLocal(),
			Routes: endpointRoutes(e, n), Adopted: ns.Adopted != nil, Parked: e.Attach.Parked,
		},
	}
	for _, a := range e.Addrs {
		p.Addrs = append(p.Addrs, a.Addr())
	}
	if e.Attach.Confirm != nil {
		p.ConfirmBy = e.Attach.Confirm.By
	}
	if onHost {
		p.VNIC.intoHost(f.NIC(n.Uplink), OneMAC(n.Doc.Type)) // the host needs no neighbour entry for itself
	} else {
		p.Redirects, p.Detours = Redirects(e), Detours(e, n)
		p.acquaint(n)
	}
	if macvlan {
		p.Kind, p.KnownOn, p.VNIC.Lower, p.VNIC.Segments, p.VNIC.Neighbours = PortMacvlan, nil, n.Uplink, Segments{}, nil
	}
	if e.Foreign != nil && e.Foreign.Handover && !hasFamily(e.Addrs, false) {
		p.VNIC.LinkLocal = netip.Addr{} // its runtime may have turned IPv6 off
	}
	if p.VNIC.Parked {
		p.Redirects = nil // there is nothing yet to redirect
	}
	if s, err := hcn.SettingsOf[hcn.PortnamePolicySetting](e.Doc.Policies); err == nil && len(s) > 0 {
		p.AltName = s[0].Name
	}
	name(p, "", "endpoint", string(id), e.Doc.Name)
	p.Forwards = Forwards(e)
	if n.Doc.Type == hcn.NAT && !onHost { // the host's own packets bear the host's addresses
		p.Outbound = Outbounds(e)
	}
	if n.Doc.HasHostRoute() && !onHost {
		p.Outbound = overlayOutbounds(e)
	}
	more := slices.SortedFunc(maps.Values(in.Routes[id]), func(a, b *SDNRoute) int { return cmp.Compare(a.Seq, b.Seq) })
	if n.Doc.Type == hcn.Overlay && !onHost {
		p.Hops = hops(e, more)
		p.VNIC.Routes = withHops(p.VNIC.Routes, p.Hops, e, n)
	}
	if OneMAC(n.Doc.Type) && !onHost {
		p.Outbound = bridgeOutbounds(e)
		p.Turns = turns(e, more, p.Outbound)
		p.VNIC.Routes = withSDN(p.VNIC.Routes, sdnNextHops(e, more))
	}
	return p
}

// upstreams are the name servers of an endpoint's own. A loopback address means a
// server inside the compartment, which only the compartment can ask; the network's
// gateway means the resolver itself.
func upstreams(e *Endpoint, n *Network) (out []netip.AddrPort) {
	for _, a := range e.NameServers {
		if a.IsLoopback() || slices.ContainsFunc(n.Doc.AllSubnets(), func(s *hcn.Subnet) bool {
			gw, ok := s.Gateway()
			return ok && gw == a
		}) {
			continue
		}
		out = append(out, netip.AddrPortFrom(a, dnsPort))
	}
	return out
}

const dnsPort = 53

// intoHost makes a vNIC one of the host's own stack. There it adds an address
// and leaves the host's ways alone: the network's prefix stays on the host port, or on
// the NIC, and the host keeps its default route. Where neither has it, the vNIC is the
// host's way to the network, and the gateway of its containers.
func (v *VNIC) intoHost(nic *NIC, gateway bool) {
	v.Namespace = ""
	addrs := make([]netip.Prefix, len(v.Addrs))
	for i, a := range v.Addrs {
		addrs[i] = netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
		if gateway && (nic == nil || !slices.ContainsFunc(nic.Addrs, func(on netip.Prefix) bool { return on.Overlaps(a.Masked()) })) {
			addrs[i] = a
		}
	}
	v.Addrs = addrs
	var routes []Route
	for _, r := range v.Routes {
		if r.Dst.Bits() > 0 {
			r.OnLink = r.Via.IsValid()
			routes = append(routes, r)
		}
	}
	v.Routes = routes
}

// acquaint makes a port and its network's own vNICs know each other, so that only
// containers that speak to each other have to ask for MACs.
func (p *Port) acquaint(n *Network) {
	_, ports := compileNetwork(n, &Facts{})
	host := ports.host
	for _, own := range []*Port{host, ports.resolver} {
		if own != nil {
			p.KnownOn = append(p.KnownOn, Interface{own.VNIC.Namespace, own.VNIC.Device})
		}
	}
	if host == nil {
		return
	}
	for _, gw := range host.Addrs {
		if hasFamily(p.VNIC.Addrs, gw.Is4()) {
			p.VNIC.Neighbours = append(p.VNIC.Neighbours, Neighbour{gw, host.MAC})
		}
	}
}

// endpointMTU is what the endpoint asks for, or its leases say, or the uplink's. It is never above
// the switch's: the gateway would not take the packets, and nobody would tell.
func endpointMTU(e *Endpoint, n *Network, f *Facts) int {
	mtu := SwitchMTU(n, f)
	if s, err := hcn.SettingsOf[hcn.InterfaceParametersPolicySetting](e.Doc.Policies); err == nil && len(s) > 0 && s[0].Mtu > 0 {
		mtu = min(int(s[0].Mtu), mtu)
	}
	if s, err := hcn.SettingsOf[hcn.EncapOverheadPolicySetting](e.Doc.Policies); err == nil {
		for _, o := range s {
			mtu -= encapOverhead(int(o.Overhead), n, f)
		}
	}
	if leased := leasedMTU(e); leased > 0 {
		mtu = min(mtu, leased)
	}
	if hasFamily(e.Addrs, false) || e.Leased { // which may get one
		return max(mtu, minMTU6)
	}
	return max(mtu, minMTU4)
}

// encapOverhead is what an endpoint's policy takes off its MTU. On an overlay the switch's MTU has it already.
func encapOverhead(asked int, n *Network, f *Facts) int {
	if n.Doc.Type == hcn.Overlay {
		return max(asked-overlayOverhead(n, f), 0)
	}
	return asked
}

// segments is how large the segments are that a container may send. The setting is one for all destinations of a device.
// Where every receiver is on the switch, or in the host's own stack, nothing ever has to cut them. Where packets go on to
// the uplink, the kernel cuts down to the MTU in software whatever is larger than the uplink takes, which costs a stream two
// to three times the CPU: there the uplink's size is the limit. What the host itself sends to a container has arrived.
func segments(n *Network, f *Facts) Segments {
	out := f.UplinkSegments
	switch m := mode(n.Doc.Type); {
	case m.OnLAN():
		out = Segments{}
		if nic := f.NIC(n.Uplink); nic != nil {
			out = nic.Segments
		}
	case m == ModeOverlay:
		return Segments{} // an outer header has no room to say more than 64 KiB
	case m != ModeNAT:
		return f.Segments
	}
	return Segments{IP4: above(f.Segments.IP4, out.IP4), IP6: above(f.Segments.IP6, out.IP6)}
}

// above is the smaller one, or 0 when that is not more than the kernel's default.
func above(kernel, uplink int) int {
	if size := min(kernel, uplink); size > DefaultSegment {
		return size
	}
	return 0
}

// endpointRoutes are the routes of the endpoint's document and leases. The default routes
// carry the metric that the endpoint's priority among its compartment's gives;
// a network that leads nowhere outside gets none.
func endpointRoutes(e *Endpoint, n *Network) []Route {
	var out []Route
	for _, r := range routesOf(e, n) {
		if r.Dst.Bits() == 0 && n.Doc.Type != hcn.NAT && !HasUplink(n.Doc.Type) {
			continue
		}
		if !hasFamily(e.Addrs, r.Dst.Addr().Is4()) {
			continue
		}
		if r.Dst.Bits() == 0 && r.Metric == 0 {
			r.Metric = gatewayMetric(e)
		}
		out = append(out, r)
	}
	return out
}

func hasFamily(addrs []netip.Prefix, v4 bool) bool {
	for _, a := range addrs {
		if a.Addr().Is4() == v4 {
			return true
		}
	}
	return false
}

func covered(addrs []netip.Prefix, via netip.Addr) bool {
	for _, a := range addrs {
		if a.Masked().Contains(via) {
			return true
		}
	}
	return false
}

// gatewayMetric orders the default routes of one compartment: the higher
// priority first, then the earlier attachment. It follows from the endpoint
// alone, so attaching a second one never changes the first one's routes.
func gatewayMetric(e *Endpoint) int {
	const (
		base = 200_000
		step = 64
		low  = 2000 // EnableLowInterfaceMetric counts like a priority above all others
	)
	priority := 0
	if s, err := hcn.SettingsOf[hcn.GatewayPrioritySetting](e.Doc.Policies); err == nil && len(s) > 0 {
		priority = s[0].Priority
	}
	if e.Doc.Flags&hcn.EnableLowInterfaceMetric != 0 {
		priority += low
	}
	return base - priority*step + min(e.Attach.Index, step-1)
}

// dnsNames are the endpoint's name and aliases, each once.
func dnsNames(e *Endpoint) []string {
	var out []string
	seen := map[string]bool{"": true}
	add := func(s string) {
		if s = dnsName(s); !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	add(e.Doc.Name)
	if all, err := hcn.SettingsOf[hcn.AliasesSetting](e.Doc.Policies); err == nil {
		for _, s := range all {
			for _, n := range s.Names {
				add(n)
			}
		}
	}
	return out
}

// Forwards are the published ports of an endpoint, one for each family that the
// endpoint has an address of, whether it is attached or not.
func Forwards(e *Endpoint) []Forward {
	mappings, err := e.Doc.PortMappings()
	if err != nil {
		return nil // refused when the endpoint was made
	}
	var out []Forward
	for _, m := range mappings {
		bind, one := m.Addr()
		scope := ScopeAll
		switch {
		case one:
			scope = ScopeAddress
		case m.Scope == hcn.ScopeLAN, e.OneMAC: // no answer comes back to the loopback
			scope = ScopeLAN
		}
		has4, has6 := false, !m.IPv6Only() && slices.ContainsFunc(mappings, m.Divides)
		for _, a := range e.Addrs {
			v4 := a.Addr().Is4()
			if one && bind.Is4() != v4 || m.IPv6Only() && v4 || v4 && has4 || !v4 && has6 {
				continue
			}
			has4, has6 = has4 || v4, has6 || !v4
			out = append(out, Forward{
				Protocol: uint8(m.Protocol), Scope: scope, Bind: bind, Port: m.ExternalPort,
				To: netip.AddrPortFrom(a.Addr(), m.InternalPort), Hidden: e.OneMAC, Held: e.Foreign != nil && e.Foreign.HoldsPorts,
			})
		}
	}
	return out
}
