package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// A network over several hosts. What is on this one is compiled like that of any other network; what is on the others comes
// as remotes: from documents (endpoints with the flag RemoteEndpoint), and as facts from a control plane. A frame for one of
// them goes to its host in a VXLAN packet (RFC 7348). Nothing is learnt and nothing is flooded: who is not known does not exist.

// Remote is an endpoint on another host.
type Remote struct {
	Endpoint hcn.GUID
	Network  hcn.GUID
	// Names that the resolver answers for it: lower case, no trailing dot, without domain.
	Names []string
	Addrs []netip.Addr
	MAC   MAC
	// Provider is the underlay address of its host.
	Provider netip.Addr
	// Host is what that is called, for people; may be empty.
	Host string
	// VNIs of Addrs, one for each. The compiler sets them; in a fact they count for nothing.
	VNIs []uint32
	// Keyless says that its host has no key, on an encrypted network: nothing can be sent there.
	Keyless bool
}

// Overlay is what a switch needs to reach other hosts.
type Overlay struct {
	// Port is the UDP port of the tunnels, Provider the host's own address for them; invalid while the NIC has none.
	Port     uint16
	Provider netip.Addr
	// Router is the MAC by which containers, and other hosts, know this host's router. It routes between the network's
	// subnets and is on no interface.
	Router MAC
	// MTU of what is under it: the NIC, or the ways from there to the other hosts, or WireGuard.
	MTU int
	// Tunnel names the port of the VXLAN device in Plan.Ports; "" while there is none.
	Tunnel PortID
	// Host says that the host reaches the local endpoints, and they the host and by it others (policy HostRoute).
	Host bool
	// Multicast says that group frames of the ports go to the other hosts, and theirs to the ports (policy Bulkhead.Multicast).
	Multicast bool
	Routes    []RemoteRoute
	// Encrypted says that packets go by WireGuard, from Provider, which is an address inside it. Unready: they cannot, for now. Clear are
	// the addresses of the NIC, where packets for the network come in clear text if somebody forges them.
	Encrypted, Unready bool
	Clear              []netip.Addr
}

// RemoteRoute is a prefix of which all addresses are behind another host's router.
type RemoteRoute struct {
	Prefix   netip.Prefix
	VNI      uint32
	Provider netip.Addr
	Router   MAC
}

// DefaultVXLANPort is the UDP port that IANA has given to VXLAN.
const DefaultVXLANPort = 4789

// Encapsulation takes this much of the underlay's MTU: the inner Ethernet header, VXLAN, UDP, and IP.
const (
	Overhead4 = 14 + 8 + 8 + 20
	Overhead6 = 14 + 8 + 8 + 40
)

// HasUplink tells that a network of the type has a NIC of the host under it.
func HasUplink(t hcn.NetworkType) bool { return OnLAN(t) || t == hcn.Overlay }

// MaxGroupHosts is how many other hosts get a network's group frames: the first ones by address.
const MaxGroupHosts = 1024

// VXLANPort is the UDP port of a network.
func VXLANPort(n *hcn.HostComputeNetwork) uint16 {
	if s, err := hcn.NetworkSettingsOf[hcn.VxlanPortPolicySetting](n.Policies); err == nil && len(s) > 0 {
		return s[0].Port
	}
	return DefaultVXLANPort
}

func hasMulticast(n *hcn.HostComputeNetwork) bool {
	return slices.ContainsFunc(n.Policies, func(p hcn.NetworkPolicy) bool { return p.Type == hcn.Multicast })
}

// Provider is the host's address for tunnels of a network: the one that the document names, while the NIC has it, else the
// first that the NIC has. It is invalid without one.
func Provider(n *Network, f *Facts) netip.Addr {
	nic := f.NIC(n.Uplink)
	if nic == nil || len(nic.Addrs) == 0 {
		return netip.Addr{}
	}
	if s, err := hcn.NetworkSettingsOf[hcn.ProviderAddressPolicySetting](n.Doc.Policies); err == nil && len(s) > 0 {
		if a, err := netip.ParseAddr(s[0].ProviderAddress); err == nil && slices.ContainsFunc(nic.Addrs, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() }) {
			return a.Unmap()
		}
	}
	return slices.MinFunc(nic.Addrs, func(a, b netip.Prefix) int {
		return cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen())
	}).Addr()
}

// overlayOverhead is what encapsulation takes of the MTU on a network.
func overlayOverhead(n *Network, f *Facts) int {
	if over := secureOverhead(n, f); over > 0 {
		return over + Overhead6
	}
	if Provider(n, f).Is6() {
		return Overhead6
	}
	return Overhead4
}

// HostsOwn says which policies of a cluster's network are each host's own, and not shared.
func HostsOwn(t hcn.NetworkPolicyType) bool {
	switch t {
	case hcn.NetworkProviderAddress, hcn.DrMacAddress, hcn.NetAdapterName, hcn.RemoteSubnetRoute, hcn.NetworkInterfaceConstraint,
		hcn.SourceMacAddress, hcn.LayerConstraint:
		return true
	default:
		return false
	}
}

// underlayMTU is how large packets may be that leave by a network's NIC. The ways to the hosts of a cluster may carry less than it does.
func underlayMTU(n *Network, nic *NIC) int {
	if n.Cluster && nic.PathMTU > 0 {
		return min(nic.MTU, nic.PathMTU)
	}
	return nic.MTU
}

// TunnelMTU is how large packets are that an overlay network's tunnels carry.
func TunnelMTU(n *Network, f *Facts) int {
	mtu := f.UplinkMTU
	if nic := f.NIC(n.Uplink); nic != nil {
		mtu = underlayMTU(n, nic)
	}
	return mtu - overlayOverhead(n, f)
}

// carries is the same of a compiled one.
func (o *Overlay) carries() int {
	if o.Provider.Is6() {
		return o.MTU - Overhead6
	}
	return o.MTU - Overhead4
}

// compileOverlay adds what an overlay network has besides.
func (s *Switch) compileOverlay(n *Network, f *Facts) {
	o := &Overlay{Port: VXLANPort(&n.Doc), Provider: Provider(n, f), Router: n.GatewayMAC, Host: n.Doc.HasHostRoute(), Multicast: hasMulticast(&n.Doc)}
	if nic := f.NIC(n.Uplink); nic != nil {
		o.MTU = underlayMTU(n, nic)
	}
	if Encrypted(&n.Doc) {
		o.seal(n, f)
	}
	routes, err := hcn.NetworkSettingsOf[hcn.RemoteSubnetRoutePolicySetting](n.Doc.Policies)
	if err != nil {
		routes = nil // refused when they were set
	}
	for i := range routes {
		if r, ok := compileRoute(&routes[i]); ok {
			o.Routes = append(o.Routes, r)
		}
	}
	slices.SortFunc(o.Routes, func(a, b RemoteRoute) int { return ComparePrefixes(a.Prefix, b.Prefix) })
	for i, sub := range n.Doc.AllSubnets() {
		if i < len(s.Subnets) {
			s.Subnets[i].VNI = sub.VSID()
		}
	}
	s.Overlay = o
}

func compileRoute(s *hcn.RemoteSubnetRoutePolicySetting) (RemoteRoute, bool) {
	prefix, err := netip.ParsePrefix(s.DestinationPrefix)
	if err != nil {
		return RemoteRoute{}, false
	}
	pa, err := netip.ParseAddr(s.ProviderAddress)
	if err != nil {
		return RemoteRoute{}, false
	}
	mac, err := s.DistributedRouterMacAddress.Bytes()
	return RemoteRoute{Prefix: prefix.Masked(), VNI: s.IsolationId, Provider: pa.Unmap(), Router: mac}, err == nil
}

// VNIs are the virtual networks whose frames are the switch's: those of its subnets, sorted.
func (s *Switch) VNIs() []uint32 {
	var out []uint32
	for _, sub := range s.Subnets {
		if sub.VNI != 0 {
			out = append(out, sub.VNI)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// VNIOf is the virtual network of an address, 0 of one that is in no subnet.
func (s *Switch) VNIOf(a netip.Addr) uint32 {
	for _, sub := range s.Subnets {
		if sub.Prefix.Contains(a) {
			return sub.VNI
		}
	}
	return 0
}

// compileRemote is the remote that an endpoint's row, or else a fact, tells of: nil when this host does not have the network,
// or has the endpoint itself.
func compileRemote(in *Intent, id hcn.GUID, f *Facts) *Remote {
	r := in.Remotes[id]
	if e := in.Endpoints[id]; e != nil {
		if r = remoteOf(e); r == nil {
			return nil // it is here
		}
	}
	if r == nil || !r.Provider.IsValid() {
		return nil
	}
	n := in.Networks[r.Network]
	if n == nil || n.Doc.Type != hcn.Overlay || r.Provider == Provider(n, f) {
		return nil
	}
	// Where a document says that an endpoint is, there is no way inside WireGuard.
	if Encrypted(&n.Doc) && (in.Endpoints[id] != nil || r.Provider == n.Inner) {
		return nil
	}
	out := *r
	out.Addrs, out.VNIs = nil, nil
	for _, a := range r.Addrs {
		sub := n.Doc.SubnetOf(a.Unmap())
		if sub == nil || sub.VSID() == 0 {
			continue
		}
		out.Addrs, out.VNIs = append(out.Addrs, a.Unmap()), append(out.VNIs, sub.VSID())
	}
	if len(out.Addrs) == 0 {
		return nil
	}
	return &out
}

// remoteOf reads the row of an endpoint that is on another host; nil for one that is not.
func remoteOf(e *Endpoint) *Remote {
	if e.Doc.Flags&hcn.RemoteEndpoint == 0 {
		return nil
	}
	r := &Remote{Endpoint: e.Doc.ID, Network: e.Doc.HostComputeNetwork, Names: dnsNames(e), MAC: e.MAC}
	for _, a := range e.Addrs {
		r.Addrs = append(r.Addrs, a.Addr())
	}
	if s, err := hcn.SettingsOf[hcn.ProviderAddressPolicySetting](e.Doc.Policies); err == nil && len(s) > 0 {
		if a, err := netip.ParseAddr(s[0].ProviderAddress); err == nil {
			r.Provider = a.Unmap()
		}
	}
	return r
}

// TunnelPortID names the VXLAN device of a UDP port, which all overlay networks with that port share.
func TunnelPortID(port uint16) PortID { return PortID("tunnel:" + strconv.Itoa(int(port))) }

// Through are the switches whose tunnels go by a port.
func (p *Plan) Through(tunnel PortID) (out []*Switch) {
	for _, sw := range p.Switches {
		if sw.Overlay != nil && sw.Overlay.Tunnel == tunnel {
			out = append(out, sw)
		}
	}
	return out
}

// tunnelMTU is that of a VXLAN device. What goes by it was held to the switch's MTU before, or is to be fragmented outside.
const tunnelMTU = 65000

// recompileTunnels makes the tunnel ports that the networks need: one VXLAN device for each UDP port.
func (p *Plan) recompileTunnels(d *Delta) {
	want := map[PortID]*Port{}
	owner := map[PortID]*Switch{}
	for _, network := range slices.Sorted(maps.Keys(p.Switches)) { // of two with one number, which only a broken store has, it is the first
		s := p.Switches[network]
		if s.Overlay == nil || s.Overlay.Tunnel == "" {
			continue
		}
		id := s.Overlay.Tunnel
		if o := owner[id]; o == nil || s.Number < o.Number {
			owner[id] = s
		}
		t := want[id]
		if t == nil {
			t = &Port{ID: id, Kind: PortTunnel, UDPPort: s.Overlay.Port, Device: DeviceName(TunnelPrefix, id), Alias: Alias("tunnel", "udp", strconv.Itoa(int(s.Overlay.Port)))}
			t.VNIC.MTU, t.Name = tunnelMTU, "VXLAN port "+strconv.Itoa(int(s.Overlay.Port))
			if s.Overlay.Encrypted {
				t.Name += " inside WireGuard"
				t.Below = NamespacePath(SecureNamespace)
				t.Alias = Alias("tunnel", "udp", strconv.Itoa(int(s.Overlay.Port))+" inside WireGuard")
			}
			want[id] = t
		}
		if !slices.Contains(t.Underlays, s.Uplink) {
			t.Underlays = append(t.Underlays, s.Uplink)
		}
	}
	for id, t := range want {
		t.Network, t.Switch = owner[id].Network, owner[id].Number
		slices.Sort(t.Underlays)
		update(p.Ports, d.Ports, id, t)
	}
	for id, port := range p.Ports {
		if port.Kind == PortTunnel && want[id] == nil {
			update(p.Ports, d.Ports, id, nil)
		}
	}
}

// withRemotes adds those of dirty networks to the remotes that changed.
func (p *Plan) withRemotes(in *Intent, dirty Dirty) map[hcn.GUID]struct{} {
	out := maps.Clone(dirty.Remotes)
	if out == nil {
		out = map[hcn.GUID]struct{}{}
	}
	for id, r := range in.Remotes {
		if _, ok := dirty.Networks[r.Network]; ok {
			out[id] = struct{}{}
		}
	}
	for id, r := range p.Remotes {
		if _, ok := dirty.Networks[r.Network]; ok {
			out[id] = struct{}{}
		}
	}
	return out
}

func (s *Switch) overlayText(b *strings.Builder) {
	o := s.Overlay
	if o == nil {
		return
	}
	fmt.Fprintf(b, "    overlay port %d dev %s provider %s router %s", o.Port, s.Uplink, o.Provider, o.Router)
	if o.Host {
		b.WriteString(" host")
	}
	if o.Multicast {
		b.WriteString(" multicast")
	}
	if o.Encrypted {
		b.WriteString(" encrypted")
	}
	b.WriteByte('\n')
	for _, r := range o.Routes {
		fmt.Fprintf(b, "    remote %s vni %d via %s router %s\n", r.Prefix, r.VNI, r.Provider, r.Router)
	}
}

func (r *Remote) text(b *strings.Builder) {
	fmt.Fprintf(b, "remote %s network %s mac %s via %s", r.Endpoint, r.Network, r.MAC, r.Provider)
	for i, a := range r.Addrs {
		fmt.Fprintf(b, " addr %s vni %d", a, r.VNIs[i])
	}
	b.WriteString(optional(" names ", strings.Join(r.Names, ",")) + optional(" host ", r.Host) + "\n")
}

// overlayOutbounds are the translations of an endpoint that has a way to the host. Without a policy for one of its addresses,
// that is what others see.
func overlayOutbounds(e *Endpoint) []Outbound {
	out := outbounds(e, func(hcn.OutboundNatPolicySetting) bool { return true },
		func(a netip.Addr, of, _ []hcn.OutboundNatPolicySetting) Outbound { return outbound(a, of, false) })
	for _, a := range e.Addrs {
		if !slices.ContainsFunc(out, func(o Outbound) bool { return o.Source == a.Addr() }) {
			out = append(out, Outbound{Source: a.Addr(), OthersKept: true})
		}
	}
	return out
}
