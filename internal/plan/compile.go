package plan

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Compile turns intent and facts into the whole plan. It is pure, and decides
// nothing that has to be remembered: choices (addresses, numbers, interface
// names) are in the rows already.
func Compile(in *Intent, f *Facts) *Plan {
	p := New()
	p.Recompile(in, f, DirtyAll(in))
	return p
}

// New is an empty plan.
func New() *Plan {
	return &Plan{
		Namespaces: map[hcn.GUID]*Namespace{},
		Switches:   map[hcn.GUID]*Switch{},
		Ports:      map[PortID]*Port{},
		Remotes:    map[hcn.GUID]*Remote{},
		rules:      map[hcn.GUID]*networkRules{},
		policies:   map[hcn.GUID]*endpointPolicy{},
	}
}

// Dirty names the objects whose rows changed, were added or went away.
type Dirty struct {
	Networks, Endpoints, Namespaces map[hcn.GUID]struct{}
	// Remotes are facts that changed, by their endpoints.
	Remotes map[hcn.GUID]struct{}
}

// NoDirt names nothing.
func NoDirt() Dirty {
	return Dirty{map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}}
}

// DirtyAll names everything in the intent.
func DirtyAll(in *Intent) Dirty {
	d := NoDirt()
	for id := range in.Networks {
		d.Networks[id] = struct{}{}
	}
	for id := range in.Endpoints {
		d.Endpoints[id] = struct{}{}
	}
	for id := range in.Namespaces {
		d.Namespaces[id] = struct{}{}
	}
	for id := range in.Remotes {
		d.Remotes[id] = struct{}{}
	}
	return d
}

// Recompile brings the plan up to date for the dirty objects and returns what
// changed. The cost follows the dirty objects and not the size of the host, so
// that the thousandth endpoint costs what the first one does. Its result is the
// same as that of Compile over everything (a test holds the two together). A
// dirty network takes its endpoints along; a namespace that comes or goes does
// not, because its endpoints are attached and detached, and so dirty themselves.
func (p *Plan) Recompile(in *Intent, f *Facts, dirty Dirty) *Delta {
	d := &Delta{
		Namespaces: map[hcn.GUID]Change[Namespace]{},
		Switches:   map[hcn.GUID]Change[Switch]{},
		Ports:      map[PortID]Change[Port]{},
		Remotes:    map[hcn.GUID]Change[Remote]{},
	}
	endpoints, remotes := dirty.Endpoints, dirty.Remotes
	dirty.Networks = p.withNeighbours(in, dirty.Networks)
	if len(dirty.Networks) > 0 {
		endpoints = map[hcn.GUID]struct{}{}
		for id := range dirty.Endpoints {
			endpoints[id] = struct{}{}
		}
		for id, e := range in.Endpoints {
			if _, ok := dirty.Networks[e.Doc.HostComputeNetwork]; ok {
				endpoints[id] = struct{}{}
			}
		}
		remotes = p.withRemotes(in, dirty)
	}
	for id := range dirty.Namespaces {
		update(p.Namespaces, d.Namespaces, id, compileNamespace(in.Namespaces[id]))
	}
	for id := range dirty.Networks {
		sw, own := compileNetwork(in.Networks[id], f)
		if first := in.firstOn(in.Networks[id]); sw != nil && first != nil && first.Doc.ID != id && own.uplink != nil {
			sw.UplinkPort, own.uplink = UplinkPortID(first.Doc.ID), nil
		}
		if sw == nil {
			delete(p.rules, id)
		} else {
			p.rules[id] = compileNetworkRules(in.Networks[id], p.rules[id])
			sw.Sets = p.rules[id].addresses()
		}
		update(p.Switches, d.Switches, id, sw)
		update(p.Ports, d.Ports, HostPortID(id), own.host)
		update(p.Ports, d.Ports, ResolverPortID(id), own.resolver)
		update(p.Ports, d.Ports, UplinkPortID(id), own.uplink)
	}
	for id := range endpoints {
		port := compileEndpoint(in, in.Endpoints[id], f)
		if port == nil || port.VNIC.Namespace == "" {
			delete(p.policies, id) // in the host's stack: see the engine's checkHostRules
		} else {
			port.Policy = p.endpointPolicy(in.Endpoints[id], p.rules[port.Network])
		}
		update(p.Ports, d.Ports, EndpointPortID(id), port)
		update(p.Remotes, d.Remotes, id, compileRemote(in, id, f))
	}
	for id := range remotes {
		update(p.Remotes, d.Remotes, id, compileRemote(in, id, f))
	}
	if len(d.Switches) > 0 {
		p.recompileTunnels(d)
	}
	if len(dirty.Networks) > 0 || needsHostAgain(d) {
		p.recompileHost(d)
	}
	return d
}

// needsHostAgain tells that ports came, went or changed for which the host may have to
// forward: those with detours on an Internal network, and gateways in the host's own stack.
func needsHostAgain(d *Delta) bool {
	for _, c := range d.Ports {
		for _, p := range []*Port{c.Old, c.New} {
			if p != nil && (len(p.Detours)+len(p.Outbound) > 0 || slices.ContainsFunc(p.Forwards, Forward.IsHidden) || p.Kind == PortContainer && inHost(p)) {
				return true
			}
		}
	}
	return false
}

// recompileHost derives what the switches together need: forwarding, and the
// resolver's compartment.
func (p *Plan) recompileHost(d *Delta) {
	var host Host
	var resolver *Namespace
	for _, s := range p.Switches {
		if s.ResolverPort != "" {
			resolver = resolverCompartment()
		}
		if s.Mode != ModeNAT {
			continue
		}
		for _, n := range s.Subnets {
			host.Forward4 = host.Forward4 || n.Prefix.Addr().Is4()
			host.Forward6 = host.Forward6 || n.Prefix.Addr().Is6()
		}
	}
	if !host.Forward4 || !host.Forward6 {
		p.forwardPorts(&host)
	}
	update(p.Namespaces, d.Namespaces, ResolverNamespace, resolver)
	d.Host = host != p.Host
	p.Host = host
}

// forwardPorts: the proxy of an Internal network may be one of its endpoints, to which
// the host sends back what comes from another one. And the host may be the gateway of
// containers with one MAC on the wire.
func (p *Plan) forwardPorts(host *Host) {
	for _, port := range p.Ports {
		sw := p.Switches[port.Network]
		for i := range port.Outbound { // the host hides them
			host.Forward4 = host.Forward4 || port.Outbound[i].Source.Is4()
			host.Forward6 = host.Forward6 || port.Outbound[i].Source.Is6()
		}
		for _, f := range port.Forwards {
			host.Forward4 = host.Forward4 || f.Hidden && f.Is4()
			host.Forward6 = host.Forward6 || f.Hidden && !f.Is4()
		}
		if sw != nil && sw.Mode.OneMAC() && port.Kind == PortContainer && inHost(port) {
			for _, a := range port.Addrs {
				host.Forward4 = host.Forward4 || a.Is4()
				host.Forward6 = host.Forward6 || a.Is6()
			}
		}
		if len(port.Detours) == 0 || sw == nil || sw.Mode != ModeInternal {
			continue
		}
		for i := range port.Detours {
			to := port.Detours[i].To.Addr()
			if slices.ContainsFunc(sw.Subnets, func(s Subnet) bool { return s.Gateway == to }) {
				continue
			}
			host.Forward4 = host.Forward4 || to.Is4()
			host.Forward6 = host.Forward6 || to.Is6()
		}
	}
}

func resolverCompartment() *Namespace {
	return &Namespace{ID: ResolverNamespace, Path: NamespacePath(ResolverNamespace)}
}

func update[K comparable, T any](now map[K]*T, changed map[K]Change[T], id K, want *T) {
	old := now[id]
	if old == nil && want == nil || reflect.DeepEqual(old, want) {
		return
	}
	changed[id] = Change[T]{Old: old, New: want}
	if want == nil {
		delete(now, id)
	} else {
		now[id] = want
	}
}

func compileNamespace(n *NamespaceRow) *Namespace {
	if n == nil || n.Vanished || n.Doc.Type != hcn.NamespaceTypeHost {
		return nil
	}
	return &Namespace{ID: n.Doc.ID, Path: NamespacePath(n.Doc.ID), Sysctls: n.Sysctls, Adopted: n.Adopted}
}

// mode of a network type; 0 for the types that have no switch of this kind.
func mode(t hcn.NetworkType) Mode {
	switch t {
	case hcn.NAT:
		return ModeNAT
	case hcn.Internal:
		return ModeInternal
	case hcn.Private:
		return ModePrivate
	case hcn.Transparent:
		return ModeTransparent
	case hcn.L2Bridge:
		return ModeL2Bridge
	case hcn.L2Tunnel:
		return ModeL2Tunnel
	case hcn.Overlay:
		return ModeOverlay
	default:
		return 0
	}
}

// OnLAN tells that a network of the type has an uplink port.
func OnLAN(t hcn.NetworkType) bool { return mode(t).OnLAN() }

// OneMAC tells that the endpoints of a network of the type have one MAC on the wire, that of
// its NIC.
func OneMAC(t hcn.NetworkType) bool { return mode(t).OneMAC() }

// HasHostPort tells that the host has a vNIC on a network of the type, with the gateway's
// address, and the network a resolver.
func HasHostPort(t hcn.NetworkType) bool {
	return mode(t) == ModeNAT || mode(t) == ModeInternal || mode(t) == ModeOverlay
}

// MaxSwitch is the largest number of a switch: in the tables its VLAN is above it.
const MaxSwitch = 1<<19 - 1

// minMTU6 is the smallest MTU that IPv6 works on (RFC 8200, section 5), minMTU4
// what every IPv4 host takes (RFC 791).
const (
	minMTU6 = 1280
	minMTU4 = 576
)

// SwitchMTU is the MTU of a network's own ports: on a LAN that of its NIC, on an overlay what its tunnels carry, else that of
// the way out.
func SwitchMTU(n *Network, f *Facts) int {
	mtu := f.UplinkMTU
	if nic := f.NIC(n.Uplink); nic != nil {
		mtu = nic.MTU
	}
	if n.Doc.Type == hcn.Overlay {
		mtu -= overlayOverhead(n, f)
	}
	return max(mtu, minMTU6)
}

// ownPorts are those of a network that no endpoint has.
type ownPorts struct{ host, resolver, uplink *Port }

func compileNetwork(n *Network, f *Facts) (*Switch, ownPorts) {
	if n == nil || mode(n.Doc.Type) == 0 {
		return nil, ownPorts{}
	}
	id := n.Doc.ID
	sw := &Switch{
		Number: n.Switch, Network: id, Name: n.Doc.Name, Mode: mode(n.Doc.Type), Uplink: n.Uplink,
		MTU: SwitchMTU(n, f),
		DNS: DNS{Domain: dnsName(n.Doc.Dns.Domain)},
	}
	if n.Confirm != nil {
		sw.ConfirmBy = n.Confirm.By
	}
	for _, s := range n.Doc.Dns.Search {
		sw.DNS.Search = append(sw.DNS.Search, dnsName(s))
	}
	for _, s := range n.Doc.Dns.ServerList {
		if a, err := netip.ParseAddr(s); err == nil {
			sw.DNS.Upstreams = append(sw.DNS.Upstreams, netip.AddrPortFrom(a.Unmap(), dnsPort))
		}
	}
	var gateways []netip.Prefix
	for _, s := range n.Doc.AllSubnets() {
		prefix, err := s.Prefix()
		if err != nil {
			continue // refused when the network was made
		}
		sub := Subnet{Prefix: prefix.Masked()}
		if gw, ok := s.Gateway(); ok && sw.Mode != ModePrivate {
			sub.Gateway = gw
			gateways = append(gateways, netip.PrefixFrom(gw, prefix.Bits()))
		}
		sw.Subnets = append(sw.Subnets, sub)
	}
	switch {
	case sw.Mode == ModePrivate:
		return sw, ownPorts{}
	case sw.Mode.OnLAN():
		return sw, ownPorts{uplink: sw.compileUplink(f)}
	}
	host := &Port{
		ID: HostPortID(id), Kind: PortHost, Network: id, Switch: n.Switch, Name: n.Doc.Name,
		MAC: n.GatewayMAC, LinkLocal: n.GatewayMAC.LinkLocal(),
		VNIC: VNIC{MAC: n.GatewayMAC, MTU: sw.MTU, Segments: f.Segments, Addrs: gateways, LinkLocal: n.GatewayMAC.LinkLocal()},
	}
	for _, g := range gateways {
		host.Addrs = append(host.Addrs, g.Addr())
	}
	r := *host
	resolver := &r
	resolver.ID, resolver.Kind = ResolverPortID(id), PortResolver
	resolver.VNIC.Namespace = NamespacePath(ResolverNamespace)
	resolver.VNIC.Routes = nil
	if sw.Mode == ModeOverlay {
		sw.compileOverlay(n, f)
		if sw.Overlay.Provider.IsValid() {
			sw.Overlay.Tunnel = TunnelPortID(sw.Overlay.Port)
		}
	}
	if sw.Mode == ModeOverlay && !sw.Overlay.Host {
		host.VNIC.Addrs = nil // nobody there answers: the switch is the gateway
	}
	name(host, HostVNICPrefix, "vnic", string(id), n.Doc.Name)
	name(resolver, ResolverPrefix, "resolver", string(id), n.Doc.Name)
	sw.HostPort, sw.ResolverPort, sw.HostDevice = host.ID, resolver.ID, host.VNIC.Device
	sw.DNS.Listen, sw.DNS.HostAddrs = host.Addrs, host.Addrs
	if sw.Mode == ModeOverlay && !sw.Overlay.Host {
		sw.HostDevice, sw.DNS.HostAddrs = "", nil
	}
	sw.DNS.Namespace, sw.DNS.Device = resolver.VNIC.Namespace, resolver.VNIC.Device
	return sw, ownPorts{host: host, resolver: resolver}
}

// compileUplink is the NIC as a port, nil while it is gone: then its containers reach each
// other and nobody else.
func (s *Switch) compileUplink(f *Facts) *Port {
	nic := f.NIC(s.Uplink)
	if nic == nil {
		return nil
	}
	s.UplinkPort = UplinkPortID(s.Network)
	return &Port{
		ID: s.UplinkPort, Kind: PortUplink, Network: s.Network, Switch: s.Number, Name: nic.Name,
		Device: nic.Name, MAC: nic.MAC, VNIC: VNIC{Device: nic.Name, MAC: nic.MAC, MTU: nic.MTU},
	}
}

// name gives a port its devices and their aliases.
func name(p *Port, vnicPrefix, kind, id, label string) {
	p.Device = DeviceName(PortPrefix, p.ID)
	p.Alias = Alias("port", string(p.ID), label)
	if vnicPrefix != "" {
		p.VNIC.Device = DeviceName(vnicPrefix, p.ID)
	}
	p.VNIC.Alias = Alias(kind, id, label)
}

// compileEndpoint makes the port of an attached endpoint, nil for any other.
func compileEndpoint(in *Intent, e *Endpoint, f *Facts) *Port {
	if e == nil || e.Attach == nil {
		return nil
	}
	n, ns := in.Networks[e.Doc.HostComputeNetwork], in.Namespaces[e.Attach.Namespace]
	onHost := ns != nil && ns.Doc.Type == hcn.NamespaceTypeHostDefault
	if n == nil || compileNamespace(ns) == nil && !onHost || mode(n.Doc.Type) == 0 {
		return nil
	}
	id := e.Doc.ID
	p := &Port{
		ID: EndpointPortID(id), Kind: PortContainer, Network: n.Doc.ID, Switch: n.Switch,
		Endpoint: id, Name: e.Doc.Name, Names: dnsNames(e), Upstreams: upstreams(e, n),
		MAC: e.MAC, LinkLocal: e.MAC.LinkLocal(), VLAN: VLANOf(e, n),
		VNIC: VNIC{
			Namespace: NamespacePath(ns.Doc.ID), Device: e.Attach.Interface,
			MAC: e.MAC, MTU: endpointMTU(e, n, f), Segments: segments(n, f), Addrs: e.Addrs, LinkLocal: e.MAC.LinkLocal(),
			Routes: endpointRoutes(e, n), Adopted: ns.Adopted != nil,
		},
	}
	for _, a := range e.Addrs {
		p.Addrs = append(p.Addrs, a.Addr())
	}
	if onHost {
		p.VNIC.intoHost(f.NIC(n.Uplink), OneMAC(n.Doc.Type)) // the host needs no neighbour entry for itself
	} else {
		p.Redirects, p.Detours = Redirects(e), Detours(e, n)
		p.acquaint(n)
	}
	if s, err := hcn.SettingsOf[hcn.PortnamePolicySetting](e.Doc.Policies); err == nil && len(s) > 0 {
		p.AltName = s[0].Name
	}
	name(p, "", "endpoint", string(id), e.Doc.Name)
	p.Forwards = Forwards(e)
	if n.Doc.Type == hcn.NAT && !onHost { // the host's own packets bear the host's addresses
		p.Outbound = Outbounds(e)
	}
	if HasHostRoute(&n.Doc) && !onHost {
		p.Outbound = overlayOutbounds(e)
	}
	if OneMAC(n.Doc.Type) && !onHost {
		p.Outbound = bridgeOutbounds(e)
		p.Turns = turns(e, p.Outbound)
		p.VNIC.Routes = withSDN(p.VNIC.Routes, sdnNextHops(e))
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

func dnsName(s string) string { return strings.ToLower(strings.TrimSuffix(strings.TrimSpace(s), ".")) }

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
		var has4, has6 bool
		for _, a := range e.Addrs {
			v4 := a.Addr().Is4()
			if one && bind.Is4() != v4 || m.IPv6Only() && v4 || v4 && has4 || !v4 && has6 {
				continue
			}
			has4, has6 = has4 || v4, has6 || !v4
			out = append(out, Forward{
				Protocol: uint8(m.Protocol), Scope: scope, Bind: bind, Port: m.ExternalPort,
				To: netip.AddrPortFrom(a.Addr(), m.InternalPort), Hidden: e.OneMAC,
			})
		}
	}
	return out
}
