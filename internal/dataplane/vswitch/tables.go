package vswitch

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// table is a BPF hash map with a mirror of its content, so that a change is compared
// and written without reading the kernel first.
type table[K, V comparable] struct {
	name   string
	m      *ebpf.Map
	have   map[K]V
	writes *int
	full   bool
	// shadow is set in a preview: there is no map.
	shadow *recorder
	// keys and values are the buffers of a listing.
	keys   []K
	values []V
}

func newTable[K, V comparable](name string, m *ebpf.Map, writes *int) *table[K, V] {
	return &table[K, V]{name: name, m: m, have: map[K]V{}, writes: writes}
}

// mirror is a map whose content is known here.
type mirror interface {
	called() string
	list() (changed bool, err error)
}

// roomy is a mirror of a map that can be full.
type roomy interface {
	mirror
	// isFull tells that an entry was refused for want of room.
	isFull() bool
	// copyTo writes what is in the map into another one, which nothing has ever looked at.
	copyTo(*ebpf.Map) error
}

// listAll reads maps, and names those that were others before.
func listAll[M mirror](all ...M) (changed []string, err error) {
	var errs []error
	for _, m := range all {
		c, err := m.list()
		if c {
			changed = append(changed, m.called())
		}
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

func (t *table[K, V]) called() string { return t.name }

func (t *table[K, V]) isFull() bool { return t.full }

// batch is how many entries one system call reads or writes.
const batch = 4096

// keyBatch is smaller: with per-CPU values an entry may be some kilobytes.
const keyBatch = 512

// list reads the map into the mirror, and tells whether it was another before. It is
// nearly always the same: then nothing is allocated.
func (t *table[K, V]) list() (changed bool, err error) {
	n := 0
	err = t.each(func(k K, v V) {
		old, ok := t.have[k]
		changed = changed || !ok || old != v
		n++
	})
	if err != nil || (!changed && n == len(t.have)) {
		return false, err
	}
	fresh := make(map[K]V, n)
	err = t.each(func(k K, v V) { fresh[k] = v })
	t.have = fresh
	return true, err
}

func (t *table[K, V]) each(fn func(K, V)) error {
	if t.keys == nil {
		t.keys, t.values = make([]K, batch), make([]V, batch)
	}
	var cursor ebpf.MapBatchCursor
	for {
		n, err := t.m.BatchLookup(&cursor, t.keys, t.values, nil)
		for i := range n {
			fn(t.keys[i], t.values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list map %s: %w", t.name, err)
		}
	}
}

func (t *table[K, V]) copyTo(m *ebpf.Map) error {
	var keys []K
	var values []V
	err := t.each(func(k K, v V) { keys, values = append(keys, k), append(values, v) })
	if err != nil || len(keys) == 0 {
		return err
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("copy map %s: %w", t.name, err)
	}
	return nil
}

func (t *table[K, V]) has(k K) bool {
	_, ok := t.have[k]
	return ok
}

// set writes an entry unless it is there.
func (t *table[K, V]) set(k K, v V) error {
	old, ok := t.have[k]
	if ok && old == v {
		return nil
	}
	if t.shadow != nil {
		if ok {
			t.shadow.put(t.name, k, old, v)
		} else {
			t.shadow.put(t.name, k, nil, v)
		}
	} else if err := t.m.Put(&k, &v); err != nil {
		t.full = t.full || errors.Is(err, unix.E2BIG)
		return fmt.Errorf("write map %s: %w", t.name, fullMap(err, t.m))
	}
	t.have[k] = v
	*t.writes++
	return nil
}

// setAll writes entries in their order, many with one system call, up to one that is refused.
func (t *table[K, V]) setAll(keys []K, values []V) error {
	fewKeys, fewValues := make([]K, 0, min(batch, len(keys))), make([]V, 0, min(batch, len(keys)))
	for i, k := range keys {
		if old, ok := t.have[k]; !ok || old != values[i] {
			fewKeys, fewValues = append(fewKeys, k), append(fewValues, values[i])
		}
		if len(fewKeys) == batch || i == len(keys)-1 {
			if err := t.setBatch(fewKeys, fewValues); err != nil {
				return err
			}
			fewKeys, fewValues = fewKeys[:0], fewValues[:0]
		}
	}
	return nil
}

// setMap writes entries in any order.
func (t *table[K, V]) setMap(want map[K]V) error {
	var keys []K
	var values []V
	for k, v := range want {
		if old, ok := t.have[k]; !ok || old != v {
			keys, values = append(keys, k), append(values, v)
		}
	}
	return t.setAll(keys, values)
}

func (t *table[K, V]) setBatch(keys []K, values []V) error {
	if t.shadow != nil || len(keys) < 2 {
		for i, k := range keys {
			if err := t.set(k, values[i]); err != nil {
				return err
			}
		}
		return nil
	}
	n, err := t.m.BatchUpdate(keys, values, nil)
	for i := range written(n, len(keys), err) {
		t.have[keys[i]] = values[i]
		*t.writes++
	}
	if err != nil {
		t.full = t.full || errors.Is(err, unix.E2BIG)
		return fmt.Errorf("write map %s: %w", t.name, fullMap(err, t.m))
	}
	return nil
}

// written is how many of count entries a system call has come to that failed in the end, or did not. One that refuses to begin leaves
// the count as it was.
func written(n, count int, err error) int {
	if err != nil && (n >= count || errors.Is(err, unix.EFAULT)) {
		return 0
	}
	return n
}

// dropAll deletes entries in their order, many with one system call; absent is fine.
func (t *table[K, V]) dropAll(keys []K) error {
	var errs []error
	few := make([]K, 0, min(batch, len(keys)))
	for i, k := range keys {
		if _, ok := t.have[k]; ok {
			few = append(few, k)
		}
		if len(few) == batch || i == len(keys)-1 {
			errs = append(errs, t.dropBatch(few))
			few = few[:0]
		}
	}
	return errors.Join(errs...)
}

func (t *table[K, V]) dropBatch(keys []K) error {
	var errs []error
	for t.shadow == nil && len(keys) > 1 {
		n, err := t.m.BatchDelete(keys, nil)
		n = written(n, len(keys), err)
		for _, k := range keys[:n] {
			delete(t.have, k)
			*t.writes++
		}
		if keys = keys[n:]; err == nil || len(keys) == 0 {
			return nil
		}
		// It stopped at one that is not there, or cannot be deleted.
		errs = append(errs, t.drop(keys[0]))
		keys = keys[1:]
	}
	for _, k := range keys {
		errs = append(errs, t.drop(k))
	}
	return errors.Join(errs...)
}

// drop deletes an entry; absent is fine.
func (t *table[K, V]) drop(k K) error {
	old, ok := t.have[k]
	if !ok {
		return nil
	}
	if t.shadow != nil {
		t.shadow.drop(t.name, k, old)
	} else if err := t.m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from map %s: %w", t.name, err)
	}
	delete(t.have, k)
	*t.writes++
	return nil
}

// dropIf deletes an entry if it is the given one: somebody else may have the key by now.
func (t *table[K, V]) dropIf(k K, v V) error {
	if t.have[k] != v {
		return nil
	}
	return t.drop(k)
}

// prune deletes what keep does not hold.
func (t *table[K, V]) prune(keep map[K]V) error {
	return t.keep(func(k K) bool { _, ok := keep[k]; return ok })
}

// keep deletes the entries that it does not want.
func (t *table[K, V]) keep(want func(K) bool) error {
	var gone []K
	for k := range t.have {
		if !want(k) {
			gone = append(gone, k)
		}
	}
	return t.dropAll(gone)
}

// policyTables are the maps that hold rules. They may be large, so they are read only when
// everything is compared.
type policyTables struct {
	heads    *table[uint32, bpfPolicy]
	rules    *table[bpfRuleKey, bpfRule]
	prefixes *table[bpfPrefixKey, uint32]
	services *table[bpfServiceKey, uint32]
	sets     *table[bpfSetKey, uint32]
	classes  *table[bpfClassKey, uint32]
	vectors  *table[bpfVectorKey, bpfVector]
}

func newPolicyTables(o *bpfObjects, writes *int) *policyTables {
	return &policyTables{
		heads:    newTable[uint32, bpfPolicy](bpfMapBhPoliciesV1, o.BhPoliciesV1, writes),
		rules:    newTable[bpfRuleKey, bpfRule](bpfMapBhRulesV1, o.BhRulesV1, writes),
		prefixes: newTable[bpfPrefixKey, uint32](bpfMapBhPrefixesV1, o.BhPrefixesV1, writes),
		services: newTable[bpfServiceKey, uint32](bpfMapBhServicesV1, o.BhServicesV1, writes),
		sets:     newTable[bpfSetKey, uint32](bpfMapBhSetsV1, o.BhSetsV1, writes),
		classes:  newTable[bpfClassKey, uint32](bpfMapBhClassesV1, o.BhClassesV1, writes),
		vectors:  newTable[bpfVectorKey, bpfVector](bpfMapBhVectorsV1, o.BhVectorsV1, writes),
	}
}

func (t *policyTables) all() []roomy {
	return []roomy{t.heads, t.rules, t.prefixes, t.services, t.sets, t.classes, t.vectors}
}

func (t *policyTables) list() (changed bool, err error) {
	names, err := listAll(t.all()...)
	return len(names) > 0, err
}

// tables are the maps that come from the plan.
type tables struct {
	ports    *table[uint32, bpfPort]
	macs     *table[bpfMacKey, bpfDest]
	addrs    *table[bpfAddrKey, bpfOwner]
	switches *table[uint32, bpfVswitch]
	members  *table[bpfMemberKey, bpfDest]
	rates    *table[bpfRateKey, bpfRate]
	steers   *table[bpfSteerKey, bpfSteer]
	lans     *table[bpfLanKey, bpfLan]
	overlays *table[uint32, bpfOverlay]
	vnis     *table[bpfVniKey, uint32]
	// stats keys have to exist for the program to count; their values are its own.
	stats  *keySet[uint32, bpfStats]
	near   *near
	shares *keySet[uint32, bpfShare]
	drops  *keySet[bpfDropKey, bpfDropCount]
	groups *keySet[bpfAddrKey, uint32]
}

func newTables(o *bpfObjects, writes *int) *tables {
	return &tables{
		ports:    newTable[uint32, bpfPort](bpfMapBhPortsV3, o.BhPortsV3, writes),
		macs:     newTable[bpfMacKey, bpfDest](bpfMapBhMacsV1, o.BhMacsV1, writes),
		addrs:    newTable[bpfAddrKey, bpfOwner](bpfMapBhAddrsV1, o.BhAddrsV1, writes),
		switches: newTable[uint32, bpfVswitch](bpfMapBhSwitchesV2, o.BhSwitchesV2, writes),
		members:  newTable[bpfMemberKey, bpfDest](bpfMapBhMembersV1, o.BhMembersV1, writes),
		rates:    newTable[bpfRateKey, bpfRate](bpfMapBhRatesV1, o.BhRatesV1, writes),
		steers:   newTable[bpfSteerKey, bpfSteer](bpfMapBhSteerV2, o.BhSteerV2, writes),
		lans:     newTable[bpfLanKey, bpfLan](bpfMapBhLansV1, o.BhLansV1, writes),
		overlays: newTable[uint32, bpfOverlay](bpfMapBhOverlaysV1, o.BhOverlaysV1, writes),
		vnis:     newTable[bpfVniKey, uint32](bpfMapBhVnisV1, o.BhVnisV1, writes),
		stats:    &keySet[uint32, bpfStats]{name: bpfMapBhStatsV1, m: o.BhStatsV1, writes: writes},
		near:     newNear(o),
		shares:   &keySet[uint32, bpfShare]{name: bpfMapBhSharesV4, m: o.BhSharesV4, writes: writes},
		drops:    &keySet[bpfDropKey, bpfDropCount]{name: bpfMapBhDropsV1, m: o.BhDropsV1, writes: writes},
		groups:   &keySet[bpfAddrKey, uint32]{name: bpfMapBhGroupsV1, m: o.BhGroupsV1, writes: writes},
	}
}

// list reads all maps and tells whether anything was another before.
func (t *tables) list() (changed bool, err error) {
	names, err := listAll[mirror](t.ports, t.macs, t.addrs, t.switches, t.members, t.rates, t.steers, t.lans, t.overlays, t.vnis, t.stats, t.shares)
	return len(names) > 0, err
}

// keySet is a map whose values belong to the program.
type keySet[K, V comparable] struct {
	name   string
	m      *ebpf.Map
	have   map[K]bool
	writes *int
	// recorder is set in a preview: there is no map.
	recorder *recorder
	keys     []K
	values   []V
}

func (s *keySet[K, V]) called() string { return s.name }

func (s *keySet[K, V]) list() (changed bool, err error) {
	before := s.have
	s.have = make(map[K]bool, len(before))
	if s.values == nil {
		// A per-CPU map gives one value for each CPU and key; none is looked at.
		width := 1
		if s.m.Type() == ebpf.PerCPUHash {
			if width, err = ebpf.PossibleCPU(); err != nil {
				return false, fmt.Errorf("count CPUs: %w", err)
			}
		}
		s.keys, s.values = make([]K, keyBatch), make([]V, keyBatch*width)
	}
	var cursor ebpf.MapBatchCursor
	for {
		n, err := s.m.BatchLookup(&cursor, s.keys, s.values, nil)
		for _, k := range s.keys[:n] {
			s.have[k] = true
			changed = changed || !before[k]
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return changed || len(s.have) != len(before), nil
		}
		if err != nil {
			return true, fmt.Errorf("list map %s: %w", s.name, err)
		}
	}
}

// add makes a key with an empty value, v, unless it is there.
func (s *keySet[K, V]) add(k K, v any) error {
	if s.have[k] {
		return nil
	}
	if s.recorder != nil {
		s.recorder.put(s.name, k, nil, nil)
	} else if err := s.m.Update(&k, v, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("write map %s: %w", s.name, fullMap(err, s.m))
	}
	s.have[k] = true
	*s.writes++
	return nil
}

func (s *keySet[K, V]) delete(k K) error {
	if s.recorder != nil {
		if s.have[k] {
			s.recorder.drop(s.name, k, struct{}{})
		}
		delete(s.have, k)
		return nil
	}
	err := s.m.Delete(&k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	} else if err == nil {
		*s.writes++
	}
	delete(s.have, k)
	if err != nil {
		return fmt.Errorf("delete from map %s: %w", s.name, err)
	}
	return nil
}
