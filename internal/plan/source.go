package plan

import (
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Source is as whom a back end that is not on this host sees those who come to a load balancer by the host: its answers would go past
// the host to anybody else. It is an endpoint that is in no compartment, with the load balancer's SourceVIP among its addresses; the
// switch chooses a port of it for each connection (ADR 31).
type Source struct {
	Endpoint hcn.GUID
	Addr     netip.Addr
	MAC      MAC
	// Addrs are all of the endpoint's.
	Addrs []netip.Addr
	// always says that none of the back ends is on the switch.
	always bool
}

// of is the source itself for those of its family.
func (s *Source) of(six bool) *Source {
	if s == nil || s.Addr.Is6() != six {
		return nil
	}
	return s
}

// SourceVIP is a load balancer's, not valid for none.
func (b *LoadBalancer) SourceVIP() netip.Addr {
	a, err := netip.ParseAddr(b.Doc.SourceVIP)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// sourceOf is the source of a load balancer, nil when nobody has its SourceVIP, or somebody who sends as it.
func (in *Intent) sourceOf(b *LoadBalancer) *Source {
	a := b.SourceVIP()
	if !a.IsValid() {
		return nil
	}
	e := in.holder(b.Network, a)
	if e == nil || e.Attach != nil || e.Doc.Flags&hcn.RemoteEndpoint != 0 {
		return nil
	}
	out := &Source{Endpoint: e.Doc.ID, Addr: a, MAC: e.MAC}
	for _, p := range e.Addrs {
		out.Addrs = append(out.Addrs, p.Addr())
	}
	return out
}

// holder is the endpoint that has an address on a network.
func (in *Intent) holder(network hcn.GUID, a netip.Addr) *Endpoint {
	if in.Holders != nil {
		return in.Endpoints[in.Holders[network][a]]
	}
	for _, e := range in.Endpoints {
		if e.Doc.HostComputeNetwork == network && slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return e
		}
	}
	return nil
}

// sourceKey is an endpoint, and the address of it that is a source.
type sourceKey struct {
	endpoint hcn.GUID
	addr     netip.Addr
}

// sourcedBy are the load balancers that an endpoint is, or was, the source of.
func (p *Plan) sourcedBy(in *Intent, endpoint hcn.GUID, visit func(hcn.GUID)) {
	for k, of := range p.sources {
		if k.endpoint != endpoint {
			continue
		}
		for id := range of {
			visit(id)
		}
	}
	e := in.Endpoints[endpoint]
	if e == nil {
		return
	}
	for _, a := range e.Addrs {
		if in.BySource != nil {
			for id := range in.BySource[a.Addr()] {
				visit(id)
			}
			continue
		}
		for id, b := range in.Balancers {
			if b.SourceVIP() == a.Addr() {
				visit(id)
			}
		}
	}
}

// noteSource remembers whose source an endpoint is.
func (p *Plan) noteSource(id hcn.GUID, old, next *Balancer) {
	if old != nil && old.Source != nil {
		k := sourceKey{old.Source.Endpoint, old.Source.Addr}
		if delete(p.sources[k], id); len(p.sources[k]) == 0 {
			delete(p.sources, k)
		}
	}
	if next == nil || next.Source == nil {
		return
	}
	k := sourceKey{next.Source.Endpoint, next.Source.Addr}
	if p.sources[k] == nil {
		p.sources[k] = map[hcn.GUID]struct{}{}
	}
	p.sources[k][id] = struct{}{}
}

// Sources are those of a network's load balancers, one for each address, in the order of these.
func (p *Plan) Sources(network hcn.GUID) []*Source {
	var out []*Source
	for _, of := range p.sources {
		for id := range of {
			if b := p.Balancers[id]; b.Network == network {
				out = append(out, b.Source)
			}
			break // the others have the same one
		}
	}
	slices.SortFunc(out, func(a, b *Source) int { return a.Addr.Compare(b.Addr) })
	return out
}
