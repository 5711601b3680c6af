package plan

import (
	"net/netip"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

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

// modeOf is the mode of a network.
func modeOf(doc *hcn.HostComputeNetwork) Mode {
	if doc.Macvlan() {
		return ModeMacvlan
	}
	return mode(doc.Type)
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

// MaxSwitch is the largest number of a network's switch: in the tables its VLAN is above it. Those after it are the host's own: see
// ServicesNetwork.
const (
	MaxSwitch      = 1<<19 - 4
	servicesSource = 1<<19 - 3
	servicesSwitch = 1<<19 - 2
)

// minMTU6 is the smallest MTU that IPv6 works on (RFC 8200, section 5), minMTU4
// what every IPv4 host takes (RFC 791).
const (
	minMTU6 = 1280
	minMTU4 = 576
)

// SwitchMTU is the MTU of a network's own ports: on a LAN that of its NIC, on an overlay what its tunnels carry, else that of
// the way out.
func SwitchMTU(n *Network, f *Facts) int {
	if n.Doc.Type == hcn.Overlay {
		return max(TunnelMTU(n, f), LeastMTU(n))
	}
	mtu := f.UplinkMTU
	if nic := f.NIC(n.Uplink); nic != nil {
		mtu = nic.MTU
	}
	return max(mtu, minMTU6)
}

// LeastMTU is what containers of an overlay network need at least.
func LeastMTU(n *Network) int {
	for _, s := range n.Doc.AllSubnets() {
		if p, err := s.Prefix(); err == nil && p.Addr().Is6() {
			return minMTU6
		}
	}
	return minMTU4
}

// ownPorts are those of a network that no endpoint has.
type ownPorts struct{ host, resolver, uplink *Port }

func compileNetwork(n *Network, f *Facts) (*Switch, ownPorts) {
	if n == nil || mode(n.Doc.Type) == 0 {
		return nil, ownPorts{}
	}
	id := n.Doc.ID
	sw := &Switch{
		Number: n.Switch, Network: id, Name: n.Doc.Name, Mode: modeOf(&n.Doc), Uplink: n.Uplink,
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
	case sw.Mode == ModePrivate, sw.Mode == ModeMacvlan:
		return sw, ownPorts{}
	case sw.Mode.OnLAN():
		return sw, ownPorts{uplink: sw.compileUplink(f)}
	}
	host := &Port{
		ID: HostPortID(id), Kind: PortHost, Network: id, Switch: n.Switch, Name: n.Doc.Name,
		MAC: n.GatewayMAC, LinkLocal: n.GatewayMAC.LinkLocal(),
		VNIC: VNIC{MAC: n.GatewayMAC, MTU: max(sw.MTU, minMTU6), Segments: f.Segments, Addrs: gateways, LinkLocal: n.GatewayMAC.LinkLocal()},
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
			sw.Overlay.Tunnel = TunnelPortOf(&n.Doc)
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

func dnsName(s string) string { return strings.ToLower(strings.TrimSuffix(strings.TrimSpace(s), ".")) }
