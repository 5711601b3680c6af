package plan

import (
	"reflect"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Dirty names the objects whose rows changed, were added or went away.
type Dirty struct {
	Networks, Endpoints, Namespaces map[hcn.GUID]struct{}
	// Remotes are facts that changed, by their endpoints.
	Remotes map[hcn.GUID]struct{}
	// Balancers are load balancers whose own rows changed.
	Balancers map[hcn.GUID]struct{}
	// Secure says that the keys changed.
	Secure bool
}

// NoDirt names nothing.
func NoDirt() Dirty {
	return Dirty{map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}, map[hcn.GUID]struct{}{}, false}
}

// DirtyAll names everything in the intent.
func DirtyAll(in *Intent) Dirty {
	d := NoDirt()
	d.Secure = true
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
	for id := range in.Balancers {
		d.Balancers[id] = struct{}{}
	}
	for id := range in.Shared {
		d.Balancers[id] = struct{}{}
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
		Balancers:  map[hcn.GUID]Change[Balancer]{},
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
	balanced := map[hcn.GUID]struct{}{}
	for id := range p.withBalancers(in, dirty, endpoints, remotes) {
		update(p.Balancers, d.Balancers, id, compileBalancer(in, in.balancer(id)))
	}
	forwarding := p.opened.any()
	for id, c := range d.Balancers {
		p.noteSource(id, c.Old, c.New)
		p.count(c.Old, -1)
		p.count(c.New, 1)
		for _, b := range []*Balancer{c.Old, c.New} {
			if b != nil {
				balanced[b.Network] = struct{}{}
			}
		}
	}
	for id := range dirty.Networks {
		delete(balanced, id)
		sw, own := compileNetwork(in.Networks[id], f)
		if own.host != nil {
			sw.setInside(own.host, p.isOpen(id), p.Sources(id))
		}
		if first := in.firstOn(in.Networks[id]); sw != nil && first != nil && first.Doc.ID != id && own.uplink != nil {
			sw.UplinkPort, own.uplink = UplinkPortID(first.Doc.ID), nil
		}
		if sw != nil && sw.Overlay != nil {
			sw.Overlay.Unready = sw.Overlay.Encrypted && in.Secure != nil && in.Secure.Problem != ""
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
	for id := range balanced {
		p.reopen(d, id)
	}
	p.recompileServices(d, f)
	if len(d.Switches) > 0 {
		p.recompileTunnels(d)
	}
	if len(dirty.Networks) > 0 || dirty.Secure {
		p.recompileSecure(in, d)
	}
	if len(dirty.Networks) > 0 || needsHostAgain(d) || p.opened.any() != forwarding {
		p.recompileHost(d)
	}
	return d
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
