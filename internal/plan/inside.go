package plan

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Load balancers for the host and for who comes to it from outside. Their packets do not come by a container's port. The host's
// netfilter gives them a destination that is known on this host alone: an address of the switch, to which the host has a route by its
// vNIC, and a port of the service. At the port of that vNIC the switch chooses, as for any client (ADR 29).

// Such addresses are of blocks that no network has: reserved ones (RFC 1112, section 4), and a unique local prefix of our own (RFC 4193). The
// last bits are the number of the switch.
var (
	inside4 = netip.MustParsePrefix("250.96.0.0/13")
	inside6 = netip.MustParsePrefix("fd62:756c:6b68::/109")
)

// InsidePrefixes are where these addresses are from.
func InsidePrefixes() []netip.Prefix { return []netip.Prefix{inside4, inside6} }

// Inside is the address of a switch that the host's netfilter sends to.
func Inside(sw uint32, v6 bool) netip.Addr {
	if v6 {
		ip := inside6.Addr().As16()
		binary.BigEndian.PutUint32(ip[12:], sw)
		return netip.AddrFrom16(ip)
	}
	ip := inside4.Addr().As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(ip[:])|sw)))
}

// insideMAC has none of them: what is sent to it is for a service, or for nobody.
func insideMAC() MAC { return MAC{0x02, 0x62, 0x75, 0x6c, 0x6b, 0x68} }

// HostBalances tells that the switch of a network balances for the host and the outside: the host has a vNIC there, and forwards.
//
// On a LAN it has none, and a switch of its own for that; what it sends there is in no VLAN.
func HostBalances(doc *hcn.HostComputeNetwork) bool {
	switch modeOf(doc) {
	case ModeNAT:
		return true
	case ModeOverlay:
		return doc.HasHostRoute()
	case ModeTransparent, ModeL2Bridge:
		all := doc.AllSubnets()
		return len(all) == 0 || slices.ContainsFunc(all, func(s *hcn.Subnet) bool { return s.VLAN() == 0 })
	default:
	}
	return false
}

// BalancesApart tells that the host reaches load balancers of a network by a switch of its own: see ServicesNetwork.
func BalancesApart(doc *hcn.HostComputeNetwork) bool { return modeOf(doc).OnLAN() }

// OpenPorts are how many mappings of a load balancer are for the host and the outside as well.
func (b *LoadBalancer) OpenPorts() int {
	n := 0
	for i := range b.Inside {
		if b.inside(i) != 0 {
			n++
		}
	}
	return n
}

// inside is the port of a mapping on the network's own address, 0 for none.
func (b *LoadBalancer) inside(mapping int) uint16 {
	if len(b.Inside) != len(b.Doc.PortMappings) {
		return 0
	}
	return b.Inside[mapping]
}

// families tells which a network has addresses of. A LAN gives out which it likes.
func families(doc *hcn.HostComputeNetwork) (v4, v6 bool) {
	if doc.Dhcp() {
		return true, true
	}
	for _, s := range doc.AllSubnets() {
		if p, err := s.Prefix(); err == nil {
			v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
		}
	}
	return v4, v6
}

// BalancerForwards are what the host translates for a load balancer: its ports at the virtual addresses, or at all addresses of the host when
// there are none.
func BalancerForwards(b *LoadBalancer, n *Network) []Forward {
	if n == nil || b.OpenPorts() == 0 || !HostBalances(&n.Doc) || b.Apart != BalancesApart(&n.Doc) {
		return nil
	}
	v4, v6 := families(&n.Doc)
	number := n.Switch
	if b.Apart {
		number = servicesSwitch
	}
	var out []Forward
	for i, m := range b.Doc.PortMappings {
		if b.inside(i) == 0 {
			continue
		}
		f := Forward{Protocol: uint8(m.Protocol), Port: m.External()}
		to := func(six bool) netip.AddrPort { return netip.AddrPortFrom(Inside(number, six), b.Inside[i]) }
		for _, vip := range b.Doc.VIPs() {
			if vip.Is4() && v4 || vip.Is6() && v6 {
				f.Scope, f.Bind, f.To = ScopeAddress, vip, to(vip.Is6())
				out = append(out, f)
			}
		}
		if len(b.Doc.FrontendVIPs) > 0 {
			continue
		}
		f.Scope, f.Bind = ScopeAll, netip.Addr{}
		only6 := b.Doc.Flags&hcn.LoadBalancerIPv6 != 0
		if v4 && !only6 {
			f.To = to(false)
			out = append(out, f)
		}
		if v6 && !b.Only4 {
			f.To = to(true)
			out = append(out, f)
		}
	}
	return out
}

// insideServices are what those forwards lead to. A back end that is not on this host would answer the client past it: it counts where
// there is a source of its family.
func insideServices(b *LoadBalancer, forwards []Forward, source func(six bool) *Source, local, remote []netip.Addr) []Service {
	var out []Service
	for i, m := range b.Doc.PortMappings {
		for _, six := range []bool{false, true} {
			at := slices.IndexFunc(forwards, func(f Forward) bool {
				return f.Protocol == uint8(m.Protocol) && f.To.Port() == b.inside(i) && f.To.Addr().Is6() == six
			})
			if at < 0 {
				continue
			}
			vip := forwards[at].To.Addr()
			s := Service{Protocol: uint8(m.Protocol), VIP: vip, Port: b.inside(i), Spread: Spread(m.DistributionType), Self: vip, Host: true}
			add := func(list []netip.Addr) {
				for _, a := range list {
					if a.Is6() == six {
						s.Backends = append(s.Backends, netip.AddrPortFrom(a, m.InternalPort))
					}
				}
			}
			add(local)
			if from := source(six); from != nil {
				here := len(s.Backends)
				if add(remote); len(s.Backends) > here || from.always {
					s.Source = from
				}
			}
			slices.SortFunc(s.Backends, netip.AddrPort.Compare)
			s.Backends = slices.Compact(s.Backends)
			out = append(out, s)
		}
	}
	return out
}

// isOpen tells that the switch of a network has services for the host.
func (p *Plan) isOpen(network hcn.GUID) bool {
	for _, b := range p.Balancers {
		if b.Network == network && len(b.Forwards) > 0 {
			return true
		}
	}
	return false
}

// setInside gives the host's vNIC the ways to the services that are for the host, and to the sources as which they send, or takes them.
func (sw *Switch) setInside(host *Port, open bool, sources []*Source) {
	host.VNIC.Routes, host.VNIC.Neighbours, host.KnownOn = nil, nil, nil
	if !open || sw.HostDevice == "" {
		return
	}
	seen := map[bool]bool{}
	for _, s := range sw.Subnets {
		six := s.Prefix.Addr().Is6()
		if seen[six] {
			continue
		}
		seen[six] = true
		host.VNIC.reach(Inside(sw.Number, six), insideMAC())
	}
	for _, s := range sources {
		host.VNIC.Neighbours = append(host.VNIC.Neighbours, Neighbour{Addr: s.Addr, MAC: s.MAC})
	}
	host.KnownOn = []Interface{{Device: host.VNIC.Device}}
}

// reopen brings the host's vNIC up to date on a network that did not change itself.
func (p *Plan) reopen(d *Delta, network hcn.GUID) {
	sw := p.Switches[network]
	if sw == nil || sw.HostPort == "" {
		return
	}
	if old := p.Ports[sw.HostPort]; old != nil {
		next := *old
		sw.setInside(&next, p.isOpen(network), p.Sources(network))
		update(p.Ports, d.Ports, next.ID, &next)
	}
}
