package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The flags are VIP_HOST, VIP_KEEP and VIP_SOURCED in bpf/lib/structs.h.
const (
	vipHost    = 1
	vipKeep    = 2
	vipSourced = 4
)

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
		vips:     newTable[bpfVipKey, bpfVip](bpfMapBhVipsV2, o.BhVipsV2, writes),
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
	// of is what each load balancer has, and holder whose an entry is.
	of     map[hcn.GUID]map[bpfVipKey]vipEntry
	holder map[bpfVipKey]hcn.GUID
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
	return &balance{
		t: t, byKey: map[string]*backendTable{}, byID: map[uint32]*backendTable{}, of: map[hcn.GUID]map[bpfVipKey]vipEntry{},
		holder: map[bpfVipKey]hcn.GUID{},
	}
}

func (t *balanceTables) all() []roomy { return []roomy{t.vips, t.places, t.backends, t.standing} }

func (b *balance) list() (err error) {
	b.differ, err = listAll(b.t.all()...)
	return err
}

// table gives a list of back ends its table, and writes it if needed. One that nobody gets to use is left to collect.
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
	err := b.write(t)
	if err != nil && t.services == 0 {
		b.garbage = append(b.garbage, t)
	}
	return t, err
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

// put writes a load balancer's services and gives what it had: leave takes away what is not among them any more. Of a service that
// cannot be written the last entry stays, and works.
func (b *balance) put(id hcn.GUID, next *plan.Balancer) (had map[bpfVipKey]vipEntry, err error) {
	had = b.of[id]
	want := map[bpfVipKey]vipEntry{}
	var errs []error
	for i := range next.Services {
		s := &next.Services[i]
		k := vipKey(next.SwitchOf(s), s)
		e, err := b.entry(s)
		if err == nil {
			err = b.point(k, e.v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s, err))
			v, ok := b.t.vips.have[k]
			if !ok {
				continue
			}
			e = vipEntry{v: v, table: b.byID[v.Table]}
		}
		if e.table != nil {
			e.table.services++
		}
		want[k], b.holder[k] = e, id
	}
	b.of[id] = want
	return had, errors.Join(errs...)
}

// entry is that of a service, with its table written.
func (b *balance) entry(s *plan.Service) (vipEntry, error) {
	t, err := b.table(s.Backends)
	e := vipEntry{v: bpfVip{Self: s.Self.As16(), Spread: uint8(s.Spread)}, table: t}
	if s.Keep {
		e.v.Flags |= vipKeep
	}
	if s.Host {
		e.v.Flags |= vipHost
	}
	if s.Source != nil {
		e.v.Flags |= vipSourced
		e.v.Source, e.v.Smac = s.Source.Addr.As16(), s.Source.MAC
	}
	if t != nil {
		e.v.Table, e.v.Mask = t.id, uint32(len(t.places)-1)
	}
	return e, err
}

// point writes a service's entry. What keeps its packets as they are has flows that ask nobody; and who asked past a service is to ask
// it now.
func (b *balance) point(k bpfVipKey, v bpfVip) error {
	old, ok := b.t.vips.have[k]
	if err := b.t.vips.set(k, v); err != nil {
		return err
	}
	b.changed = b.changed || !ok || old != v && (old.Flags|v.Flags)&vipKeep != 0
	return nil
}

// leave takes away what a load balancer had and has no more. Another one may have the service by now.
func (b *balance) leave(id hcn.GUID, had map[bpfVipKey]vipEntry) error {
	var errs []error
	for k, e := range had {
		if _, stays := b.of[id][k]; !stays && b.holder[k] == id {
			delete(b.holder, k)
			b.changed = true
			errs = append(errs, b.t.vips.drop(k))
		}
		b.release(e.table)
	}
	if len(b.of[id]) == 0 {
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

// syncBalancers makes all services what the plan says, and takes away what nothing explains.
func (a *Applier) syncBalancers(p *plan.Plan) error {
	b := a.balance
	all := map[hcn.GUID]plan.Change[plan.Balancer]{}
	for id := range b.of {
		all[id] = plan.Change[plan.Balancer]{}
	}
	for id, next := range p.Balancers {
		all[id] = plan.Change[plan.Balancer]{New: next}
	}
	errs := []error{a.setBalancers(all), b.t.vips.keep(func(k bpfVipKey) bool {
		_, known := b.holder[k]
		b.changed = b.changed || !known
		return known
	})}
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

// setBalancers makes load balancers what they are to be. What goes, goes last: a service may move from one to another, and no packet is
// to miss it.
func (a *Applier) setBalancers(changed map[hcn.GUID]plan.Change[plan.Balancer]) error {
	b := a.balance
	had := make(map[hcn.GUID]map[bpfVipKey]vipEntry, len(changed))
	var errs []error
	fail := func(id hcn.GUID, err error) {
		if err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "loadbalancer", ID: string(id), Err: err})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(changed)) {
		next := changed[id].New
		if next == nil {
			had[id] = b.of[id]
			delete(b.of, id)
			continue
		}
		a.about(string(next.Network))
		var err error
		had[id], err = b.put(id, next)
		fail(id, err)
	}
	for id, c := range changed {
		if c.Old != nil {
			a.about(string(c.Old.Network))
		}
		fail(id, b.leave(id, had[id]))
	}
	return errors.Join(errs...)
}

// superfluous tells whether there may be something to prune.
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

// prune deletes what belongs to no table that is in use, be it one of a run before.
func (b *balance) prune() error {
	used := map[uint32]bool{}
	for _, v := range b.t.vips.have {
		used[v.Table] = true
	}
	standing := map[bpfStandingKey]bool{}
	for _, t := range b.byID {
		for _, a := range t.backends {
			standing[bpfStandingKey{Table: t.id, Ip: a.Addr().As16(), Port: a.Port()}] = true
		}
	}
	// Of a table that a service still points to, and which could not be written anew, all stays.
	stays := func(table, at uint32, size func(*backendTable) int) bool {
		t := b.byID[table]
		return used[table] && (t == nil || int(at) < size(t))
	}
	return errors.Join(
		b.t.backends.keep(func(k bpfBackendKey) bool {
			return stays(k.Table, k.Backend, func(t *backendTable) int { return len(t.backends) })
		}),
		b.t.places.keep(func(k bpfPlacesKey) bool {
			return stays(k.Table, k.Piece, func(t *backendTable) int { return len(t.places) / placesIn })
		}),
		b.t.standing.keep(func(k bpfStandingKey) bool { return used[k.Table] && (b.byID[k.Table] == nil || standing[k]) }))
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
	out.holder = maps.Clone(b.holder)
	for _, t := range b.garbage {
		if twin := twins[t]; twin != nil {
			out.garbage = append(out.garbage, twin)
		}
	}
	return out
}
