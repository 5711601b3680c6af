package plan

import (
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Turn says of a prefix whether what a port on a LAN sends to somebody there goes to the host
// instead, which sends it on. The longest prefix that holds a destination counts.
type Turn struct {
	Prefix netip.Prefix
	ByHost bool
}

// bridgeOutbounds are the translations that the policies of an endpoint with one MAC on the wire
// ask for. Without one nothing of it is translated.
func bridgeOutbounds(e *Endpoint) []Outbound {
	return outbounds(e, func(hcn.OutboundNatPolicySetting) bool { return true },
		func(a netip.Addr, of, _ []hcn.OutboundNatPolicySetting) Outbound {
			o := outbound(a, of, false)
			o.OnLAN = true
			return o
		})
}

// sdnRoutes are the policies SDNRoute of an endpoint, and the routes that name it, by their prefix: the first of each counts.
func sdnRoutes(e *Endpoint, routes []*SDNRoute) (out []hcn.SDNRoutePolicySetting, prefixes []netip.Prefix) {
	all, err := hcn.SettingsOf[hcn.SDNRoutePolicySetting](e.Doc.Policies)
	if err != nil {
		return nil, nil // refused when the endpoint was made
	}
	for _, r := range routes {
		all = append(all, r.Doc.Routes...)
	}
	for _, s := range all {
		p, err := netip.ParsePrefix(s.DestinationPrefix)
		if err != nil || slices.Contains(prefixes, p.Masked()) {
			continue
		}
		out, prefixes = append(out, s), append(prefixes, p.Masked())
	}
	return out, prefixes
}

// sdnNextHops are the routes in the compartment that SDNRoute asks for. Those to the host are the
// switch's business.
func sdnNextHops(e *Endpoint, more []*SDNRoute) []Route {
	var out []Route
	routes, prefixes := sdnRoutes(e, more)
	for i, s := range routes {
		via, err := netip.ParseAddr(s.NextHop)
		if s.NeedEncap || err != nil || !hasFamily(e.Addrs, prefixes[i].Addr().Is4()) {
			continue
		}
		out = append(out, Route{Dst: prefixes[i], Via: via.Unmap(), OnLink: !covered(e.Addrs, via.Unmap())})
	}
	return out
}

// withSDN puts them in the place of others to the same prefixes.
func withSDN(routes, sdn []Route) []Route {
	routes = slices.DeleteFunc(routes, func(r Route) bool {
		return slices.ContainsFunc(sdn, func(s Route) bool { return s.Dst == r.Dst })
	})
	return append(routes, sdn...)
}

// turns are what the port sends to the host: what its translations hide, and what SDNRoute
// names. Groups stay on the LAN.
func turns(e *Endpoint, more []*SDNRoute, out []Outbound) []Turn {
	var list []Turn
	routes, encap := sdnRoutes(e, more)
	for i := range routes {
		if !routes[i].NeedEncap {
			continue
		}
		list = append(list, Turn{encap[i], true})
	}
	named := slices.Clone(list)
	for i := range out {
		o := &out[i]
		prefixes := []netip.Prefix{everywhere(o.Source.Is4())}
		for _, h := range o.Chosen {
			prefixes = append(prefixes, h.Destinations...)
		}
		prefixes = append(prefixes, o.Kept...)
		for _, p := range prefixes {
			// All that lies in it and in no longer one has the same answer.
			if slices.ContainsFunc(list, func(t Turn) bool { return t.Prefix == p }) {
				continue
			}
			list = append(list, Turn{p, o.hides(p) || slices.ContainsFunc(named, func(t Turn) bool {
				return t.Prefix.Bits() <= p.Bits() && t.Prefix.Contains(p.Addr())
			})})
		}
	}
	return list
}

// hides tells of a prefix whether those in it, and in no longer one that is named, see another
// address than the source.
func (o *Outbound) hides(p netip.Prefix) bool {
	for _, h := range o.Chosen {
		if covers(h.Destinations, p) {
			return true
		}
	}
	return !covers(o.Kept, p) && !o.OthersKept
}

// TurnOf tells whether what the port sends to a destination on the LAN goes to the host.
func (p *Port) TurnOf(dst netip.Addr) bool {
	best := Turn{}
	for _, t := range p.Turns {
		if t.Prefix.Contains(dst) && (!best.Prefix.IsValid() || t.Prefix.Bits() > best.Prefix.Bits()) {
			best = t
		}
	}
	return best.ByHost
}
