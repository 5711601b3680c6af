package vswitch

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
)

// Most ports have a place in two arrays (bpf/lib/near.h), at the low bits of their index: one with a copy of the port's entry,
// and one with its counters of packets and bytes. Two ports with the same bits share no place: the later one goes without, and
// is found in the hashes alone, where every port has its entries. So having a place is a matter of speed and of nothing else.

// places says who has which place of an array.
type places struct {
	owners []uint32 // by place, 0 for nobody; nil before they were read
	// resting are places that were somebody's, whom a program that is running may still take them for. The value tells one rest from
	// another of the same place.
	resting map[uint32]uint64
	rests   uint64
	// waiting are ports that are to have a place when it is nobody's any more.
	waiting map[uint32]bool
}

func newPlaces(owners []uint32) places {
	return places{owners: owners, resting: map[uint32]uint64{}, waiting: map[uint32]bool{}}
}

func (s *places) at(index uint32) uint32 { return index % uint32(len(s.owners)) }

// take tells whether a port can have its place now. Else it waits for it.
func (s *places) take(index uint32) bool {
	_, rests := s.resting[s.at(index)]
	free := s.owners[s.at(index)] == 0 && !rests
	if free {
		delete(s.waiting, index)
	} else {
		s.waiting[index] = true
	}
	return free
}

// wanted tells whether a port waits for nothing but the end of a rest.
func (s *places) wanted() bool {
	for index := range s.waiting {
		if s.owners[s.at(index)] == 0 {
			return true
		}
	}
	return false
}

func (s *places) has(index uint32) bool { return s.owners[s.at(index)] == index }

func (s *places) leave(index uint32) {
	s.rests++
	s.resting[s.at(index)] = s.rests
}

// rested ends the rests that were going on when they were copied.
func (s *places) rested(were map[uint32]uint64) {
	for at, rest := range were {
		if s.resting[at] == rest {
			delete(s.resting, at)
		}
	}
}

// near are the two arrays. It is nil in a preview: who has a place is nothing that anybody asks for.
type near struct {
	ports, traffic       *ebpf.Map
	portPlaces, counters places
}

func newNear(o *bpfObjects) *near {
	return &near{ports: o.BhNearV1, traffic: o.BhTrafficV1}
}

// list reads who has which place. Nobody but this process gives and takes them afterwards, and what rested when the last one
// ended has rested by now. A copy that is not what the hash has was left by a version that knows nothing of copies.
func (n *near) list(ports map[uint32]bpfPort) error {
	if n == nil || n.counters.owners != nil {
		return nil
	}
	have := newTable[uint32, bpfNear](bpfMapBhNearV1, n.ports, new(int))
	owners := make([]uint32, n.ports.MaxEntries())
	var stale []uint32
	err := have.each(func(at uint32, v bpfNear) {
		owners[at] = v.Index
		if v.Index != 0 && ports[v.Index] != v.Port {
			stale = append(stale, v.Index)
		}
	})
	if err != nil {
		return err
	}
	n.portPlaces = newPlaces(owners)
	for _, index := range stale {
		if err := n.forget(index); err != nil {
			return err
		}
	}
	return n.listTraffic()
}

func (n *near) listTraffic() error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	owners := make([]uint32, n.traffic.MaxEntries())
	keys, values := make([]uint32, keyBatch), make([]bpfTraffic, keyBatch*cpus)
	var cursor ebpf.MapBatchCursor
	for {
		got, err := n.traffic.BatchLookup(&cursor, keys, values, nil)
		for i, k := range keys[:got] {
			owners[k] = values[i*cpus].Port
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n.counters = newPlaces(owners)
			return nil
		}
		if err != nil {
			return fmt.Errorf("list map %s: %w", bpfMapBhTrafficV1, err)
		}
	}
}

// copy gives a port its place with a copy of its entry, which is in the hash.
func (n *near) copy(index uint32, p bpfPort) error {
	if n == nil || n.portPlaces.has(index) || !n.portPlaces.take(index) {
		return nil
	}
	// The index last: it says that the rest is whole.
	return errors.Join(n.write(index, bpfNear{Port: p}), n.write(index, bpfNear{Port: p, Index: index}))
}

// forget takes a port's copy away, before its entry changes or goes. The rest stays as it is for programs that have found it.
func (n *near) forget(index uint32) error {
	if n == nil || !n.portPlaces.has(index) {
		return nil
	}
	at := n.portPlaces.at(index)
	var v bpfNear
	if err := n.ports.Lookup(&at, &v); err != nil {
		return fmt.Errorf("read map %s: %w", bpfMapBhNearV1, err)
	}
	v.Index = 0
	n.portPlaces.leave(index)
	return n.write(index, v)
}

// keep takes the copies of other entries away.
func (n *near) keep(ports map[uint32]bpfPort) error {
	if n == nil {
		return nil
	}
	var errs []error
	for _, index := range n.portPlaces.owners {
		if _, ok := ports[index]; index != 0 && !ok {
			errs = append(errs, n.forget(index))
		}
	}
	return errors.Join(errs...)
}

func (n *near) write(index uint32, v bpfNear) error {
	at := n.portPlaces.at(index)
	if err := n.ports.Put(&at, &v); err != nil {
		return fmt.Errorf("write map %s: %w", bpfMapBhNearV1, err)
	}
	n.portPlaces.owners[at] = v.Index
	return nil
}

// count gives a port a place for its counters, if that is nobody's.
func (n *near) count(index uint32) error {
	if n == nil || n.counters.has(index) || !n.counters.take(index) {
		return nil
	}
	return n.setCounters(index, index)
}

// uncount takes that place away, and what was counted there.
func (n *near) uncount(index uint32) error {
	if n == nil || !n.counters.has(index) {
		return nil
	}
	n.counters.leave(index)
	return n.setCounters(index, 0)
}

// keepCounters takes the places of others away.
func (n *near) keepCounters(of map[uint32]bool) error {
	if n == nil {
		return nil
	}
	var errs []error
	for _, index := range n.counters.owners {
		if index != 0 && !of[index] {
			errs = append(errs, n.uncount(index))
		}
	}
	return errors.Join(errs...)
}

func (n *near) setCounters(index, owner uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	values := make([]bpfTraffic, cpus)
	for i := range values {
		values[i].Port = owner
	}
	at := n.counters.at(index)
	if err := n.traffic.Put(&at, values); err != nil {
		return fmt.Errorf("write map %s: %w", bpfMapBhTrafficV1, err)
	}
	n.counters.owners[at] = owner
	return nil
}

// resting copies the rests that are going on, of either array, if somebody waits for the end of one.
func (n *near) resting() (ports, counters map[uint32]uint64, wanted bool) {
	if n == nil || !n.portPlaces.wanted() && !n.counters.wanted() {
		return nil, nil, false
	}
	return maps.Clone(n.portPlaces.resting), maps.Clone(n.counters.resting), true
}

// rested ends those rests, when every program that was running has come to its end, and gives places to those who wait.
func (n *near) rested(ports, counters map[uint32]uint64, t *tables) error {
	n.portPlaces.rested(ports)
	n.counters.rested(counters)
	var errs []error
	for index := range n.portPlaces.waiting {
		if p, ok := t.ports.have[index]; ok {
			errs = append(errs, n.copy(index, p))
		} else {
			delete(n.portPlaces.waiting, index)
		}
	}
	for index := range n.counters.waiting {
		if t.stats.have[index] {
			errs = append(errs, n.count(index))
		} else {
			delete(n.counters.waiting, index)
		}
	}
	return errors.Join(errs...)
}

// trafficOf adds what is counted in a port's place to its counters.
func trafficOf(m *ebpf.Map, index uint32, c *Counters) error {
	var perCPU []bpfTraffic
	at := index % m.MaxEntries()
	if err := m.Lookup(&at, &perCPU); err != nil {
		return err
	}
	for _, v := range perCPU {
		if v.Port == index {
			c.RxPackets += v.RxPackets
			c.RxBytes += v.RxBytes
			c.TxPackets += v.TxPackets
			c.TxBytes += v.TxBytes
		}
	}
	return nil
}
