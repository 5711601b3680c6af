package vswitch

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// vipKeep is VIP_KEEP in bpf/lib/structs.h.
const vipKeep = 2

// placesIn is how many places lie in a piece (PLACES).
const placesIn = 256

// balanceTables are the maps of load balancers. They may be large, so they are read only when everything is compared.
type balanceTables struct {
	vips     *table[bpfVipKey, bpfVip]
	places   *table[bpfPlacesKey, bpfPlaces]
	backends *table[bpfBackendKey, bpfBackend]
	standing *table[bpfStandingKey, uint32]
}

func newBalanceTables(o *bpfObjects, writes *int) *balanceTables {
	return &balanceTables{
		vips:     newTable[bpfVipKey, bpfVip](bpfMapBhVipsV1, o.BhVipsV1, writes),
		places:   newTable[bpfPlacesKey, bpfPlaces](bpfMapBhPlacesV1, o.BhPlacesV1, writes),
		backends: newTable[bpfBackendKey, bpfBackend](bpfMapBhBackendsV1, o.BhBackendsV1, writes),
		standing: newTable[bpfStandingKey, uint32](bpfMapBhStandingV1, o.BhStandingV1, writes),
	}
}

// balance keeps those tables. Services with the same back ends share a table of them, whose number follows from its content: a daemon
// that starts anew finds what it would write. A service turns to another table in one write; the last one stays until no packet
// can be at it.
type balance struct {
	t     *balanceTables
	byKey map[string]*backendTable
	byID  map[uint32]*backendTable
	// of is what each load balancer has.
	of map[hcn.GUID]map[bpfVipKey]vipEntry
	// garbage are tables that went out of use. One that comes into use again is no garbage any more.
	garbage []*backendTable
	// changed says that flows may have another way than when they were judged.
	changed bool
	differ  []string
}

type vipEntry struct {
	v     bpfVip
	table *backendTable // nil: no back end
}

// backendTable is a list of back ends, and their places.
type backendTable struct {
	key      string
	id       uint32
	backends []netip.AddrPort
	places   []uint16
	services int // that use it
}

func newBalance(t *balanceTables) *balance {
	return &balance{t: t, byKey: map[string]*backendTable{}, byID: map[uint32]*backendTable{}, of: map[hcn.GUID]map[bpfVipKey]vipEntry{}}
}

func (b *balance) list() error {
	b.differ = nil
	var errs []error
	for _, t := range []struct {
		name string
		list func() (bool, error)
	}{
		{b.t.vips.name, b.t.vips.list},
		{b.t.places.name, b.t.places.list},
		{b.t.backends.name, b.t.backends.list},
		{b.t.standing.name, b.t.standing.list},
	} {
		changed, err := t.list()
		if changed {
			b.differ = append(b.differ, t.name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// drift tells what the last listing found changed.
func (b *balance) drift(listed bool) []plan.Drift {
	if !listed {
		return nil // left by a run before
	}
	var out []plan.Drift
	for _, name := range b.differ {
		out = append(out, plan.Drift{Object: "map " + name, Found: "entries missing or changed"})
	}
	return out
}

// table gives a list of back ends its table, and writes it if needed.
func (b *balance) table(backends []netip.AddrPort) (*backendTable, error) {
	if len(backends) == 0 {
		return nil, nil
	}
	var raw []byte
	for _, a := range backends {
		ip := a.Addr().As16()
		raw = binary.BigEndian.AppendUint16(append(raw, ip[:]...), a.Port())
	}
	key := string(raw)
	t := b.byKey[key]
	if t == nil {
		id := hashBytes(raw)
		for b.byID[id] != nil || id == 0 {
			id++
		}
		t = &backendTable{key: key, id: id, backends: backends, places: plan.Places(backends)}
		b.byKey[key], b.byID[id] = t, t
	}
	return t, b.write(t)
}

func (b *balance) write(t *backendTable) error {
	for i, a := range t.backends {
		ip := a.Addr().As16()
		if err := b.t.backends.set(bpfBackendKey{Table: t.id, Backend: uint32(i)}, bpfBackend{Ip: ip, Port: a.Port()}); err != nil {
			return err
		}
		if err := b.t.standing.set(bpfStandingKey{Table: t.id, Ip: ip, Port: a.Port()}, 1); err != nil {
			return err
		}
	}
	for piece := range len(t.places) / placesIn {
		var p bpfPlaces
		copy(p.Backend[:], t.places[piece*placesIn:])
		if err := b.t.places.set(bpfPlacesKey{Table: t.id, Piece: uint32(piece)}, p); err != nil {
			return err
		}
	}
	return nil
}

func vipKey(sw uint32, s *plan.Service) bpfVipKey {
	return bpfVipKey{Sw: sw, Ip: s.VIP.As16(), Port: s.Port, Proto: s.Protocol}
}

// set makes a load balancer's services those of the plan; nil takes them away.
func (b *balance) set(id hcn.GUID, next *plan.Balancer) error {
	want := map[bpfVipKey]vipEntry{}
	var errs []error
	if next != nil {
		for i := range next.Services {
			s := &next.Services[i]
			t, err := b.table(s.Backends)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			e := vipEntry{v: bpfVip{Self: s.Self.As16(), Spread: uint8(s.Spread)}, table: t}
			if s.Keep {
				e.v.Flags |= vipKeep
			}
			if t != nil {
				e.v.Table, e.v.Mask = t.id, uint32(len(t.places)-1)
				t.services++
			}
			want[vipKey(next.Switch, s)] = e
		}
	}
	had := b.of[id]
	for k, e := range want {
		// What keeps its packets as they are has flows that ask nobody; and who asked past a service is to ask it now.
		if old, ok := b.t.vips.have[k]; !ok || old != e.v && (old.Flags|e.v.Flags)&vipKeep != 0 {
			b.changed = true
		}
		errs = append(errs, b.t.vips.set(k, e.v))
	}
	for k, e := range had {
		if _, stays := want[k]; !stays {
			b.changed = true
			errs = append(errs, b.t.vips.dropIf(k, e.v))
		}
		b.release(e.table)
	}
	if b.of[id] = want; len(want) == 0 {
		delete(b.of, id)
	}
	return errors.Join(errs...)
}

func (b *balance) release(t *backendTable) {
	if t == nil {
		return
	}
	if t.services--; t.services == 0 {
		b.garbage = append(b.garbage, t)
	}
}

// collect deletes tables that went out of use. Only after every packet of then has passed.
func (b *balance) collect(garbage []*backendTable) error {
	var errs []error
	for _, t := range garbage {
		if t.services > 0 || b.byID[t.id] != t {
			continue
		}
		delete(b.byID, t.id)
		delete(b.byKey, t.key)
		errs = append(errs, b.erase(t))
	}
	return errors.Join(errs...)
}

func (b *balance) erase(t *backendTable) error {
	var errs []error
	for i, a := range t.backends {
		errs = append(errs, b.t.backends.drop(bpfBackendKey{Table: t.id, Backend: uint32(i)}),
			b.t.standing.drop(bpfStandingKey{Table: t.id, Ip: a.Addr().As16(), Port: a.Port()}))
	}
	for piece := range len(t.places) / placesIn {
		errs = append(errs, b.t.places.drop(bpfPlacesKey{Table: t.id, Piece: uint32(piece)}))
	}
	return errors.Join(errs...)
}

// updateBalancers applies what a delta changes.
func (a *Applier) updateBalancers(d *plan.Delta) error {
	var errs []error
	set := func(id hcn.GUID, network hcn.GUID, next *plan.Balancer) {
		a.about(string(network))
		if err := a.balance.set(id, next); err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "loadbalancer", ID: string(id), Err: err})
		}
	}
	// Who gives an address up does so before another takes it.
	for id, c := range d.Balancers {
		if c.New == nil {
			set(id, c.Old.Network, nil)
		}
	}
	for id, c := range d.Balancers {
		if c.New != nil {
			set(id, c.New.Network, c.New)
		}
	}
	return errors.Join(errs...)
}

// syncBalancers makes all services what the plan says, and takes away what nothing explains.
func (a *Applier) syncBalancers(p *plan.Plan) error {
	b := newBalance(a.balance.t)
	// A table of the last time keeps its number: services are at it.
	b.byKey, b.byID, b.changed = a.balance.byKey, a.balance.byID, a.balance.changed
	for _, t := range b.byKey {
		t.services = 0
	}
	a.balance = b
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(p.Balancers)) {
		if err := b.set(id, p.Balancers[id]); err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "loadbalancer", ID: string(id), Err: err})
		}
	}
	known := map[bpfVipKey]bool{}
	for _, of := range b.of {
		for k := range of {
			known[k] = true
		}
	}
	errs = append(errs, b.t.vips.keep(func(k bpfVipKey) bool {
		b.changed = b.changed || !known[k]
		return known[k]
	}))
	if b.superfluous() {
		quiesce()
		for id, t := range b.byID {
			if t.services == 0 {
				delete(b.byID, id)
				delete(b.byKey, t.key)
			}
		}
		errs = append(errs, b.prune())
	}
	return errors.Join(errs...)
}

// superfluous tells whether there is something to prune.
func (b *balance) superfluous() bool {
	backends, pieces := 0, 0
	for _, t := range b.byID {
		if t.services > 0 {
			backends += len(t.backends)
			pieces += len(t.places) / placesIn
		}
	}
	return len(b.t.backends.have) > backends || len(b.t.standing.have) > backends || len(b.t.places.have) > pieces
}

func (b *balance) prune() error {
	standing := map[bpfStandingKey]bool{}
	for _, t := range b.byID {
		for _, a := range t.backends {
			standing[bpfStandingKey{Table: t.id, Ip: a.Addr().As16(), Port: a.Port()}] = true
		}
	}
	return errors.Join(
		b.t.backends.keep(func(k bpfBackendKey) bool { t := b.byID[k.Table]; return t != nil && int(k.Backend) < len(t.backends) }),
		b.t.places.keep(func(k bpfPlacesKey) bool {
			t := b.byID[k.Table]
			return t != nil && int(k.Piece) < len(t.places)/placesIn
		}),
		b.t.standing.keep(func(k bpfStandingKey) bool { return standing[k] }))
}

func (b *balance) twin(rec *recorder, writes *int) *balance {
	out := newBalance(&balanceTables{
		vips: b.t.vips.twin(rec, writes), places: b.t.places.twin(rec, writes),
		backends: b.t.backends.twin(rec, writes), standing: b.t.standing.twin(rec, writes),
	})
	twins := map[*backendTable]*backendTable{}
	for key, t := range b.byKey {
		twin := *t
		twins[t], out.byKey[key], out.byID[t.id] = &twin, &twin, &twin
	}
	for id, of := range b.of {
		out.of[id] = make(map[bpfVipKey]vipEntry, len(of))
		for k, e := range of {
			e.table = twins[e.table]
			out.of[id][k] = e
		}
	}
	for _, t := range b.garbage {
		if twin := twins[t]; twin != nil {
			out.garbage = append(out.garbage, twin)
		}
	}
	return out
}
