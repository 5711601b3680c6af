package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Detour sends flows of an endpoint to a proxy (policy L4Proxy). The host does it, where
// nothing in the compartment can reach it: the switch hands it what is for a port of its
// own as well. Whose flows: those from the endpoint's addresses of the proxy's family.
type Detour struct {
	Protocol uint8
	// To is the proxy. Port 0 keeps the one that a flow is for.
	To netip.AddrPort
	// Destinations whose flows take the detour, without those in Except. Masked.
	Destinations, Except []netip.Prefix
	// Open tells that a proxy outside sees the endpoint's own address.
	Open bool
}

// Detours are what the L4Proxy policies of an endpoint and of its network ask for, in the
// order in which they are asked: the endpoint's own come first, and the first one that has
// a destination takes it.
func Detours(e *Endpoint, n *Network) []Detour {
	if n.Doc.Type != hcn.NAT && n.Doc.Type != hcn.Internal {
		return nil // no host port to send flows by
	}
	own, err := hcn.SettingsOf[hcn.L4ProxyPolicySetting](e.Doc.Policies)
	if err != nil {
		return nil // refused when the endpoint was made
	}
	all, err := hcn.NetworkSettingsOf[hcn.L4ProxyPolicySetting](n.Doc.Policies)
	if err != nil {
		return nil
	}
	var out []Detour
	for _, s := range slices.Concat(own, all) {
		to := s.Proxy()
		if !hasFamily(e.Addrs, to.Addr().Is4()) || isOwn(e.Addrs, to.Addr()) {
			continue // the proxy's own flows go where they are for
		}
		d := Detour{Protocol: s.Transport(), To: to, Destinations: s.Destinations(), Open: !s.OutboundNat}
		if len(d.Destinations) == 0 {
			d.Destinations = []netip.Prefix{everywhere(to.Addr().Is4())}
		}
		d.Except = append(s.Exceptions(), never(e, n, to.Addr())...)
		out = append(out, d)
	}
	return out
}

func isOwn(addrs []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

func everywhere(v4 bool) netip.Prefix {
	if v4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// never are destinations that no detour takes: the proxy, the endpoint itself, and groups.
func never(e *Endpoint, n *Network, proxy netip.Addr) []netip.Prefix {
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	out := []netip.Prefix{single(proxy)}
	for _, a := range e.Addrs {
		if a.Addr().Is4() == proxy.Is4() {
			out = append(out, single(a.Addr()))
		}
	}
	if proxy.Is6() {
		return append(out, netip.MustParsePrefix("ff00::/8"))
	}
	for _, s := range n.Doc.AllSubnets() {
		if p, err := s.Prefix(); err == nil && p.Addr().Is4() {
			out = append(out, single(netipx.PrefixLastIP(p)))
		}
	}
	return append(out, netip.MustParsePrefix("224.0.0.0/4"), single(netip.AddrFrom4([4]byte{255, 255, 255, 255})))
}

// takes tells whether the detour is for a destination.
func (d *Detour) takes(protocol uint8, dst netip.Addr) bool {
	return d.Protocol == protocol && contains(d.Destinations, dst) && !contains(d.Except, dst)
}

// DetourOf is the detour that a flow to a destination takes, or nil.
func (p *Port) DetourOf(protocol uint8, dst netip.Addr) *Detour {
	for i := range p.Detours {
		if p.Detours[i].takes(protocol, dst) {
			return &p.Detours[i]
		}
	}
	return nil
}

// DetourRanges are the destinations of each of the port's detours, without those that one
// before it takes.
func (p *Port) DetourRanges() [][]netipx.IPRange {
	taken := map[uint8]*netipx.IPSetBuilder{}
	out := make([][]netipx.IPRange, len(p.Detours))
	for i := range p.Detours {
		d := &p.Detours[i]
		before := taken[d.Protocol]
		if before == nil {
			before = &netipx.IPSetBuilder{}
			taken[d.Protocol] = before
		}
		var b netipx.IPSetBuilder
		addAll(&b, d.Destinations)
		removeAll(&b, d.Except)
		b.RemoveSet(set(before))
		mine := set(&b)
		before.AddSet(mine)
		out[i] = mine.Ranges()
	}
	return out
}

// Steer says of a prefix whether its flows go by the host. The longest prefix that holds
// a destination counts.
type Steer struct {
	Protocol uint8
	Prefix   netip.Prefix
	ByHost   bool
}

// Steers is the port's detours as the switch wants them: whether a flow takes any.
func (p *Port) Steers() []Steer {
	var out []Steer
	seen := map[Steer]bool{}
	for i := range p.Detours {
		d := &p.Detours[i]
		for _, prefix := range slices.Concat(d.Destinations, d.Except) {
			s := Steer{Protocol: d.Protocol, Prefix: prefix}
			if seen[s] {
				continue
			}
			seen[s] = true
			// All that lies in it and in no longer one has the same answer.
			s.ByHost = slices.ContainsFunc(p.Detours, func(o Detour) bool {
				return o.Protocol == d.Protocol && covers(o.Destinations, prefix) && !covers(o.Except, prefix)
			})
			out = append(out, s)
		}
	}
	return out
}

// covers tells whether a prefix of the list holds all of p.
func covers(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

// String is the detour in one line.
func (d *Detour) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s to %s", ProtocolName(d.Protocol), shortList(d.Destinations, addressText))
	if len(d.Except) > 0 {
		fmt.Fprintf(&b, " but for %s", shortList(d.Except, addressText))
	}
	fmt.Fprintf(&b, " by the proxy %s", d.proxyText())
	if d.Open {
		b.WriteString(", which sees the endpoint's address")
	}
	return b.String()
}

func (d *Detour) proxyText() string {
	if d.To.Port() == 0 {
		return d.To.Addr().String()
	}
	return d.To.String()
}
