package engine

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// view is the plan for readers outside the loop. The loop owns its plan and changes
// the maps in it; the entries never change, so the view shares those.
type view struct {
	mu       sync.RWMutex
	ports    map[plan.PortID]*plan.Port
	switches map[hcn.GUID]*plan.Switch
	macs     map[portMAC]*plan.Port
	remotes  map[hcn.GUID]*plan.Remote
	byAddr   map[remoteAddr]*plan.Remote
	services map[hcn.GUID]*plan.Balancer
}

// remoteAddr finds an endpoint on another host.
type remoteAddr struct {
	network hcn.GUID
	addr    netip.Addr
}

// portMAC finds the port of a frame's address.
type portMAC struct {
	sw   uint32
	mac  plan.MAC
	kind plan.PortKind
}

func newView() *view {
	return &view{ports: map[plan.PortID]*plan.Port{}, switches: map[hcn.GUID]*plan.Switch{}, macs: map[portMAC]*plan.Port{}, remotes: map[hcn.GUID]*plan.Remote{}, byAddr: map[remoteAddr]*plan.Remote{}, services: map[hcn.GUID]*plan.Balancer{}}
}

// apply follows a change of the plan.
func (v *view) apply(d *plan.Delta) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, c := range d.Ports {
		if old := v.ports[id]; old != nil {
			delete(v.ports, id)
			delete(v.macs, portMAC{old.Switch, old.MAC, old.Kind})
		}
		if c.New != nil {
			v.ports[id] = c.New
			v.macs[portMAC{c.New.Switch, c.New.MAC, c.New.Kind}] = c.New
		}
	}
	for id, c := range d.Remotes {
		delete(v.remotes, id)
		if c.Old != nil {
			for _, a := range c.Old.Addrs {
				if k := (remoteAddr{c.Old.Network, a}); v.byAddr[k] == c.Old {
					delete(v.byAddr, k)
				}
			}
		}
	}
	for id, c := range d.Remotes {
		if c.New != nil {
			v.remotes[id] = c.New
			for _, a := range c.New.Addrs {
				v.byAddr[remoteAddr{c.New.Network, a}] = c.New
			}
		}
	}
	for id, c := range d.Balancers {
		if delete(v.services, id); c.New != nil {
			v.services[id] = c.New
		}
	}
	for id, c := range d.Switches {
		delete(v.switches, id)
		if c.New != nil {
			v.switches[id] = c.New
		}
	}
}

func (v *view) port(id plan.PortID) *plan.Port {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.ports[id]
}

// byMAC is the endpoint's port with a MAC on a switch.
func (v *view) byMAC(sw uint32, mac plan.MAC) *plan.Port {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.macs[portMAC{sw, mac, plan.PortContainer}]
}

// remote is the endpoint on another host that has an address.
func (v *view) remote(network hcn.GUID, a netip.Addr) *plan.Remote {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.byAddr[remoteAddr{network, a}]
}

// numbered is the switch with a number.
func (v *view) numbered(sw uint32) *plan.Switch {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, s := range v.switches {
		if s.Number == sw {
			return s
		}
	}
	return nil
}

// backends are who a load balancer's forward leads to.
func (v *view) backends(id hcn.GUID, f plan.Forward) []netip.AddrPort {
	v.mu.RLock()
	defer v.mu.RUnlock()
	b := v.services[id]
	if b == nil {
		return nil
	}
	for i := range b.Services {
		if s := &b.Services[i]; s.Host && s.Protocol == f.Protocol && netip.AddrPortFrom(s.VIP, s.Port) == f.To {
			return s.Backends
		}
	}
	return nil
}

func (v *view) network(id hcn.GUID) *plan.Switch {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.switches[id]
}

// all lists the ports in order of their IDs.
func (v *view) all() []*plan.Port {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := make([]*plan.Port, 0, len(v.ports))
	for _, id := range slices.Sorted(maps.Keys(v.ports)) {
		out = append(out, v.ports[id])
	}
	return out
}

// endpointsOf resolves what people call an endpoint: the name or ID of a container,
// which stands for its endpoints, or of an endpoint. Locked: e.mu.
func (s *state) endpointsOf(ref string) ([]*plan.Endpoint, error) {
	if c, err := s.find(ref); err == nil {
		var out []*plan.Endpoint
		for _, id := range s.inCompartment(c) {
			if ep := s.endpoints[id]; ep != nil {
				out = append(out, ep)
			}
		}
		return out, nil
	} else if api.IsKind(err, api.KindConflict) {
		return nil, err
	}
	if id, err := hcn.ParseGUID(ref); err == nil && s.endpoints[id] != nil {
		return []*plan.Endpoint{s.endpoints[id]}, nil
	}
	var out []*plan.Endpoint
	for id, ep := range s.endpoints {
		if ref != "" && ep.Doc.Name == ref || len(ref) >= 4 && strings.HasPrefix(string(id), strings.ToUpper(ref)) {
			out = append(out, ep)
		}
	}
	if len(out) == 0 {
		return nil, api.Errorf(api.KindNotFound, "no container or endpoint is called %.80q or has such an ID", ref).
			Hint("bulkhead ps -a, or bulkhead endpoint ls")
	}
	slices.SortFunc(out, func(a, b *plan.Endpoint) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, nil
}
