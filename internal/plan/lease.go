package plan

import (
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// LeaseSource is who gave a lease.
type LeaseSource string

// The sources of leases.
const (
	LeaseDHCPv4 LeaseSource = "dhcpv4"
	LeaseDHCPv6 LeaseSource = "dhcpv6"
	LeaseRouter LeaseSource = "router" // its advertisements
)

// LeaseSources in the order of their addresses: IPv4 first, and what a server gave before what was made of a prefix.
func LeaseSources() []LeaseSource { return []LeaseSource{LeaseDHCPv4, LeaseDHCPv6, LeaseRouter} }

// Lease is what a server or the routers of a LAN gave an endpoint. It is kept in the endpoint's row; a zero time is never.
type Lease struct {
	Addrs []LeasedAddress `json:",omitempty"`
	// Routes as the vNIC should have them, default routes too: of those to one destination the first is the best.
	Routes []Route      `json:",omitempty"`
	DNS    []netip.Addr `json:",omitempty"`
	Search []string     `json:",omitempty"`
	MTU    int          `json:",omitempty"` // 0: not said
	// Server is who gave it: a DHCP server, or the preferred router.
	Server netip.Addr
	// ServerID is the DHCPv6 server's DUID, in hex.
	ServerID string `json:",omitempty"`
	// ServerMAC is where the server's answer came from: itself, or the relay or gateway before it.
	ServerMAC MAC
	// Got is when it was last confirmed; T1 is when the server is asked again, T2 when any server is.
	Got, T1, T2 time.Time
	// Expires is when the last of its addresses is gone.
	Expires time.Time
}

// LeasedAddress is an address of a lease, with the prefix length that the vNIC gets.
type LeasedAddress struct {
	Prefix netip.Prefix
	// Preferred is until when new connections may use it, Valid until when it is the endpoint's.
	Preferred, Valid time.Time
}

// Over says whether a lease has ended.
func (l *Lease) Over(now time.Time) bool { return !l.Expires.IsZero() && !now.Before(l.Expires) }

// Alike says whether two leases configure the same, whenever they end and whoever gave them.
func (l *Lease) Alike(o *Lease) bool {
	return l != nil && o != nil && slices.EqualFunc(l.Addrs, o.Addrs, func(a, b LeasedAddress) bool { return a.Prefix == b.Prefix }) &&
		slices.Equal(l.Routes, o.Routes) && slices.Equal(l.DNS, o.DNS) && slices.Equal(l.Search, o.Search) && l.MTU == o.MTU
}

// leases of an endpoint in their order.
func (e *Endpoint) leases() []Lease {
	var out []Lease
	for _, src := range LeaseSources() {
		if l, ok := e.Leases[src]; ok {
			out = append(out, l)
		}
	}
	return out
}

// LeasedAddrs are the addresses of an endpoint's leases, each once.
func (e *Endpoint) LeasedAddrs() (out []netip.Prefix) {
	for _, l := range e.leases() {
		for _, a := range l.Addrs {
			if !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Addr() == a.Prefix.Addr() }) {
				out = append(out, a.Prefix)
			}
		}
	}
	return out
}

// LeasedDNS are the name servers and search domains of an endpoint's leases.
func (e *Endpoint) LeasedDNS() (servers []netip.Addr, search []string) {
	for _, l := range e.leases() {
		servers = append(servers, l.DNS...)
		search = append(search, l.Search...)
	}
	return servers, search
}

// Gateways are the next hops of an endpoint's default routes.
func Gateways(e *Endpoint, n *Network) (out []netip.Addr) {
	for _, r := range routesOf(e, n) {
		if r.Dst.Bits() == 0 && r.Via.IsValid() {
			out = append(out, r.Via)
		}
	}
	return out
}

// routesOf are the routes that an endpoint's document asks for, with those of its leases to other destinations. A subnet of its
// network that names its gateway knows better than the LAN's server. One next hop to a destination is enough: the kernel does
// not fall back to a second one by itself.
func routesOf(e *Endpoint, n *Network) (out []Route) {
	docs := e.Doc.Routes
	if e.Leased && len(docs) == 0 && n != nil {
		for _, s := range n.Doc.AllSubnets() {
			if p, err := s.Prefix(); err == nil && hasOf(p, e.Addrs) {
				docs = append(docs, s.Routes...)
			}
		}
	}
	for _, r := range docs {
		dst, via, err := r.Parse()
		if err != nil {
			continue // refused when the endpoint was made
		}
		route := Route{Dst: dst.Masked(), Via: via, Metric: int(r.Metric)}
		if via.IsUnspecified() {
			route.Via = netip.Addr{}
		} else if !covered(e.Addrs, via) {
			route.OnLink = true
		}
		out = append(out, route)
	}
	for _, l := range e.leases() {
		for _, r := range l.Routes {
			if !slices.ContainsFunc(out, func(o Route) bool { return o.Dst == r.Dst }) {
				out = append(out, r)
			}
		}
	}
	return out
}

func hasOf(p netip.Prefix, addrs []netip.Prefix) bool {
	return slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return p.Contains(a.Addr()) })
}

// leasedMTU is the smallest that an endpoint's leases name, 0 if none does.
func leasedMTU(e *Endpoint) (mtu int) {
	for _, l := range e.leases() {
		if l.MTU > 0 && (mtu == 0 || l.MTU < mtu) {
			mtu = l.MTU
		}
	}
	return mtu
}

// LeaseFamilies says of which families an endpoint asks the LAN for addresses: those of the subnets that its network names,
// or both.
func LeaseFamilies(n *Network) (v4, v6 bool, within []netip.Prefix) {
	for _, s := range n.Doc.AllSubnets() {
		p, err := s.Prefix()
		if err != nil {
			continue
		}
		within = append(within, p)
		v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
	}
	if len(within) == 0 {
		v4, v6 = true, true
	}
	return v4, v6, within
}

// VLANOf is the VLAN of an endpoint's port: the endpoint's own, or that of the subnet of its first address. One that asks the
// LAN is in its network's before it has an address.
func VLANOf(e *Endpoint, n *Network) uint16 {
	if s, err := hcn.SettingsOf[hcn.VlanPolicySetting](e.Doc.Policies); err == nil && len(s) > 0 {
		return uint16(s[0].IsolationId)
	}
	if e.Leased {
		for _, s := range n.Doc.AllSubnets() {
			return s.VLAN()
		}
		return 0
	}
	for _, a := range e.Addrs {
		if s := n.Doc.SubnetOf(a.Addr()); s != nil {
			return s.VLAN()
		}
	}
	return 0
}

// RouteDocuments are the routes of an endpoint as documents say them.
func RouteDocuments(e *Endpoint, n *Network) (out []hcn.Route) {
	for _, r := range routesOf(e, n) {
		via := r.Via
		if !via.IsValid() {
			via = netip.IPv4Unspecified()
			if r.Dst.Addr().Is6() {
				via = netip.IPv6Unspecified()
			}
		}
		out = append(out, hcn.Route{NextHop: via.String(), DestinationPrefix: r.Dst.String(), Metric: uint16(min(r.Metric, 0xffff))})
	}
	return out
}
