package dns

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/gaissmai/bart"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// index holds what all resolvers answer from. It is one for all networks,
// because a compartment on two networks may ask either for the names of both. A
// query holds the read lock for a few map look-ups; a change of one port costs
// its own names, however many there are besides.
type index struct {
	mu    sync.RWMutex
	zones map[hcn.GUID]*zone
	// homes lists the ports of each compartment, by its path.
	homes map[string]map[plan.PortID]*plan.Port
	// prefixes of all networks, counted: closed networks may overlap.
	prefixes bart.Table[int]
}

// zone is what one network knows.
type zone struct {
	sw     *plan.Switch // nil until the network itself is known
	ports  map[plan.PortID]*plan.Port
	names  map[string][]*plan.Port // in order of port ID
	wild   map[string][]*plan.Port // by what follows "*."
	addrs  map[netip.Addr]*plan.Port
	serial uint32
}

func newIndex() *index {
	return &index{zones: map[hcn.GUID]*zone{}, homes: map[string]map[plan.PortID]*plan.Port{}}
}

// zone finds or makes the zone of a network. The caller holds the lock.
func (x *index) zone(network hcn.GUID) *zone {
	z := x.zones[network]
	if z == nil {
		z = &zone{
			ports: map[plan.PortID]*plan.Port{}, names: map[string][]*plan.Port{},
			wild: map[string][]*plan.Port{}, addrs: map[netip.Addr]*plan.Port{},
		}
		x.zones[network] = z
	}
	return z
}

// dropIfEmpty forgets a zone without network and ports.
func (x *index) dropIfEmpty(network hcn.GUID) {
	if z := x.zones[network]; z != nil && z.sw == nil && len(z.ports) == 0 {
		delete(x.zones, network)
	}
}

// setSwitch makes a network known, changes it, or with nil forgets it.
func (x *index) setSwitch(network hcn.GUID, sw *plan.Switch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	z := x.zone(network)
	if z.sw == sw {
		return
	}
	if z.sw != nil {
		for _, s := range z.sw.Subnets {
			x.countPrefix(s.Prefix, -1)
		}
	}
	if sw != nil {
		for _, s := range sw.Subnets {
			x.countPrefix(s.Prefix, 1)
		}
	}
	z.sw = sw
	z.serial++
	x.dropIfEmpty(network)
}

func (x *index) countPrefix(p netip.Prefix, by int) {
	n, _ := x.prefixes.Get(p)
	if n += by; n > 0 {
		x.prefixes.Insert(p, n)
	} else {
		x.prefixes.Delete(p)
	}
}

// setPort replaces a port by another; nil means absent. Only endpoints have
// names. Names that no message can carry are left out and told.
func (x *index) setPort(old, port *plan.Port) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old != nil {
		x.removePort(old.Network, old.ID)
	}
	if port == nil || port.Kind != plan.PortContainer {
		return nil
	}
	x.removePort(port.Network, port.ID)
	return x.addPort(port)
}

func (x *index) addPort(p *plan.Port) error {
	z := x.zone(p.Network)
	z.serial++
	z.ports[p.ID] = p
	for _, a := range p.Addrs {
		z.addrs[a] = p
	}
	if p.LinkLocal.IsValid() {
		z.addrs[p.LinkLocal] = p
	}
	if x.homes[p.VNIC.Namespace] == nil {
		x.homes[p.VNIC.Namespace] = map[plan.PortID]*plan.Port{}
	}
	x.homes[p.VNIC.Namespace][p.ID] = p

	var errs []error
	for _, name := range p.Names {
		table, key := z.place(name)
		if err := checkName(key); err != nil {
			errs = append(errs, fmt.Errorf("serve name %q: %w", name, err))
			continue
		}
		i, found := slices.BinarySearchFunc(table[key], p.ID, byID)
		if !found {
			table[key] = slices.Insert(table[key], i, p)
		}
	}
	return errors.Join(errs...)
}

func (x *index) removePort(network hcn.GUID, id plan.PortID) {
	z := x.zones[network]
	if z == nil || z.ports[id] == nil {
		return
	}
	p := z.ports[id]
	z.serial++
	delete(z.ports, id)
	for _, a := range append(slices.Clone(p.Addrs), p.LinkLocal) {
		if z.addrs[a] == p {
			delete(z.addrs, a)
		}
	}
	if delete(x.homes[p.VNIC.Namespace], id); len(x.homes[p.VNIC.Namespace]) == 0 {
		delete(x.homes, p.VNIC.Namespace)
	}
	for _, name := range p.Names {
		table, key := z.place(name)
		if i, found := slices.BinarySearchFunc(table[key], id, byID); found {
			table[key] = slices.Delete(table[key], i, i+1)
		}
		if len(table[key]) == 0 {
			delete(table, key)
		}
	}
	x.dropIfEmpty(network)
}

func byID(p *plan.Port, id plan.PortID) int { return cmp.Compare(p.ID, id) }

// place says which table a name belongs to and under which key.
func (z *zone) place(name string) (map[string][]*plan.Port, string) {
	name = fold(name)
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		return z.wild, rest
	}
	return z.names, name
}

// find gives the endpoints that a name stands for.
func (z *zone) find(name string) []*plan.Port {
	bare := [3]string{name}
	n := 1
	for _, suffix := range [...]string{z.sw.DNS.Domain, internalSuffix} {
		if head, ok := below(name, suffix); ok {
			bare[n] = head
			n++
		}
	}
	for _, b := range bare[:n] {
		if ports := z.names[b]; len(ports) > 0 {
			return ports
		}
	}
	if len(z.wild) == 0 {
		return nil
	}
	for _, b := range bare[:n] {
		for {
			_, rest, ok := strings.Cut(b, ".")
			if !ok {
				break
			}
			if ports := z.wild[rest]; len(ports) > 0 {
				return ports
			}
			b = rest
		}
	}
	return nil
}

// covers tells whether a reverse name is about one of the network's prefixes.
func (z *zone) covers(p netip.Prefix) (netip.Prefix, bool) {
	for _, s := range z.sw.Subnets {
		if s.Prefix.Bits() <= p.Bits() && s.Prefix.Contains(p.Addr()) {
			return s.Prefix, true
		}
	}
	return netip.Prefix{}, false
}

// anyCovers is the same for the prefixes of all networks.
func (x *index) anyCovers(p netip.Prefix) (netip.Prefix, bool) {
	own, _, ok := x.prefixes.LookupPrefixLPM(p)
	return own, ok
}

// mayAsk tells whether a client can be on the network at all. The switch sees
// to that; a resolver that would answer others still is one mistake away from
// telling them names.
func (z *zone) mayAsk(client netip.Addr) bool {
	if client.IsLinkLocalUnicast() {
		return true
	}
	_, ok := z.covers(netip.PrefixFrom(client, client.BitLen()))
	return ok
}

// others lists the further networks that a client's compartment is on, in order
// of their switches.
func (x *index) others(z *zone, client netip.Addr) []*zone {
	p := z.addrs[client]
	if p == nil || len(x.homes[p.VNIC.Namespace]) < 2 {
		return nil
	}
	var zones []*zone
	for _, q := range x.homes[p.VNIC.Namespace] {
		o := x.zones[q.Network]
		if o != nil && o != z && o.sw != nil && !slices.Contains(zones, o) {
			zones = append(zones, o)
		}
	}
	slices.SortFunc(zones, func(a, b *zone) int { return cmp.Compare(a.sw.Number, b.sw.Number) })
	return zones
}

// all lists the ports that are indexed.
func (x *index) all() []*plan.Port {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var ports []*plan.Port
	for _, z := range x.zones {
		for _, p := range z.ports {
			ports = append(ports, p)
		}
	}
	return ports
}

// networks lists the networks that are known.
func (x *index) networks() []hcn.GUID {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Keys(x.zones))
}

// has tells whether a port needs no change; only endpoints are kept.
func (x *index) has(p *plan.Port) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p.Kind != plan.PortContainer {
		return true
	}
	z := x.zones[p.Network]
	return z != nil && z.ports[p.ID] == p
}

// upstreams that a network names itself, and whether it is closed.
func (x *index) upstreams(network hcn.GUID) (ups []netip.AddrPort, closed bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	z := x.zones[network]
	if z == nil || z.sw == nil {
		return nil, true
	}
	return z.sw.DNS.Upstreams, !z.forwards()
}
