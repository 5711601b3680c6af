package vswitch

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// table is a BPF hash map with a mirror of its content, so that a change is compared
// and written without reading the kernel first.
type table[K, V comparable] struct {
	name   string
	m      *ebpf.Map
	have   map[K]V
	writes *int
}

func newTable[K, V comparable](name string, m *ebpf.Map, writes *int) *table[K, V] {
	return &table[K, V]{name: name, m: m, have: map[K]V{}, writes: writes}
}

// batch is how many entries one system call reads.
const batch = 4096

// list reads the map into the mirror.
func (t *table[K, V]) list() error {
	t.have = make(map[K]V, len(t.have))
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, batch), make([]V, batch)
	for {
		n, err := t.m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			t.have[keys[i]] = values[i]
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list map %s: %w", t.name, err)
		}
	}
}

// set writes an entry unless it is there.
func (t *table[K, V]) set(k K, v V) error {
	if old, ok := t.have[k]; ok && old == v {
		return nil
	}
	if err := t.m.Put(&k, &v); err != nil {
		return fmt.Errorf("write map %s: %w", t.name, fullMap(err, t.m))
	}
	t.have[k] = v
	*t.writes++
	return nil
}

// drop deletes an entry; absent is fine.
func (t *table[K, V]) drop(k K) error {
	if _, ok := t.have[k]; !ok {
		return nil
	}
	if err := t.m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
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
	var errs []error
	for k := range t.have {
		if _, ok := keep[k]; !ok {
			errs = append(errs, t.drop(k))
		}
	}
	return errors.Join(errs...)
}

// tables are the maps that come from the plan.
type tables struct {
	ports    *table[uint32, bpfPort]
	macs     *table[bpfMacKey, bpfDest]
	addrs    *table[bpfAddrKey, bpfOwner]
	switches *table[uint32, bpfVswitch]
	members  *table[bpfMemberKey, bpfDest]
	// stats keys have to exist for the program to count; their values are its own.
	stats *keySet[uint32]
	drops *keySet[bpfDropKey]
}

func newTables(o *bpfObjects, writes *int) *tables {
	return &tables{
		ports:    newTable[uint32, bpfPort](bpfMapBhPortsV1, o.BhPortsV1, writes),
		macs:     newTable[bpfMacKey, bpfDest](bpfMapBhMacsV1, o.BhMacsV1, writes),
		addrs:    newTable[bpfAddrKey, bpfOwner](bpfMapBhAddrsV1, o.BhAddrsV1, writes),
		switches: newTable[uint32, bpfVswitch](bpfMapBhSwitchesV1, o.BhSwitchesV1, writes),
		members:  newTable[bpfMemberKey, bpfDest](bpfMapBhMembersV1, o.BhMembersV1, writes),
		stats:    &keySet[uint32]{name: bpfMapBhStatsV1, m: o.BhStatsV1, writes: writes},
		drops:    &keySet[bpfDropKey]{name: bpfMapBhDropsV1, m: o.BhDropsV1, writes: writes},
	}
}

func (t *tables) list() error {
	return errors.Join(t.ports.list(), t.macs.list(), t.addrs.list(), t.switches.list(), t.members.list(), t.stats.list())
}

// keySet is a map whose values belong to the program.
type keySet[K comparable] struct {
	name   string
	m      *ebpf.Map
	have   map[K]bool
	writes *int
}

func (s *keySet[K]) list() error {
	s.have = map[K]bool{}
	var key, next K
	var prev any // nil starts at the first
	for {
		err := s.m.NextKey(prev, &next)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list map %s: %w", s.name, err)
		}
		key = next
		if s.have[key] {
			return nil // wrapped round under a concurrent change
		}
		s.have[key] = true
		prev = &key
	}
}

func (s *keySet[K]) delete(k K) error {
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
