package vswitch

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// setState is what a switch's address sets have in the kernel: for each block of
// addresses the combination of sets that hold it. A rule is looked up by combination, so
// an address that joins a set is one entry, whatever number of rules refer to the set.
type setState struct {
	entries map[bpfSetKey]uint32
	// combinations by number, each sorted: those of entries, and until no packet can be
	// at them any more those that were.
	combinations map[uint32][]string
	current      map[uint32][]string
}

// members is a list of sets that an address is in, as indexes into the sorted names.
type members struct{ sets []int }

// compileSets works out the blocks of a switch's sets.
func compileSets(sw uint32, sets map[string][]netip.Prefix) *setState {
	names := sortedKeys(sets)
	own := map[netip.Prefix]*members{root4: {}, root6: {}}
	for i, name := range names {
		for _, p := range sets[name] {
			m := own[p]
			if m == nil {
				m = &members{}
				own[p] = m
			}
			m.sets = append(m.sets, i)
		}
	}
	inherit(own, func(m, parent *members) {
		if len(parent.sets) > 0 {
			m.sets = append(m.sets, parent.sets...)
			slices.Sort(m.sets)
			m.sets = slices.Compact(m.sets)
		}
	})
	s := &setState{entries: make(map[bpfSetKey]uint32, len(own)), combinations: map[uint32][]string{}}
	numbers := map[string]uint32{}
	for p, m := range own {
		ip, n := mapped(p)
		s.entries[bpfSetKey{Bits: uint32(setHead + n), Sw: sw, Ip: ip}] = s.number(names, m.sets, numbers)
	}
	s.current = s.combinations
	return s
}

// number gives a combination its number, 0 for the empty one.
func (s *setState) number(names []string, sets []int, known map[string]uint32) uint32 {
	if len(sets) == 0 {
		return 0
	}
	var id []byte
	list := make([]string, len(sets))
	for i, n := range sets {
		id = append(id, byte(n), byte(n>>8), byte(n>>16))
		list[i] = names[n]
	}
	if c, ok := known[string(id)]; ok {
		return c
	}
	c := combination(list)
	for other, taken := s.combinations[c]; taken && !slices.Equal(other, list); other, taken = s.combinations[c] {
		c++
	}
	s.combinations[c], known[string(id)] = list, c
	return c
}

// setSwitch brings the sets of a switch up to date: first what the rules say about new
// combinations, then the addresses. What is no more is deleted by the next prune.
func (ps *policies) setSwitch(sw *plan.Switch) error {
	old := ps.switches[sw.Number]
	if len(sw.Sets) == 0 && old == nil {
		return nil
	}
	next := compileSets(sw.Number, sw.Sets)
	if old != nil {
		// Until no packet is at the old ones, rules answer for both.
		merged := *next
		merged.combinations = maps.Clone(old.combinations)
		maps.Copy(merged.combinations, next.combinations)
		ps.switches[sw.Number] = &merged
	} else {
		ps.switches[sw.Number] = next
	}
	for _, p := range ps.byID {
		if p.key.sw == sw.Number && p.written {
			if err := ps.writeClasses(p); err != nil {
				return err
			}
		}
	}
	before := *ps.t.sets.writes
	// The longer blocks first: an address is never seen in the combination of a block
	// around its own.
	keys := make([]bpfSetKey, 0, len(next.entries))
	for k := range next.entries {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b bpfSetKey) int { return int(b.Bits) - int(a.Bits) })
	for _, k := range keys {
		if err := ps.t.sets.set(k, next.entries[k]); err != nil {
			return err
		}
	}
	var errs []error
	if old != nil {
		for k := range old.entries {
			if !hasKey(next.entries, k) {
				errs = append(errs, ps.t.sets.drop(k))
			}
		}
	}
	if *ps.t.sets.writes != before {
		ps.changed, ps.stale = true, true
		ps.setEpoch++
	}
	ps.switches[sw.Number].entries = next.entries
	return errors.Join(errs...)
}

// dropSwitch removes the sets of a switch that is gone.
func (ps *policies) dropSwitch(sw uint32) error {
	s := ps.switches[sw]
	if s == nil {
		return nil
	}
	var errs []error
	for k := range s.entries {
		errs = append(errs, ps.t.sets.drop(k))
	}
	delete(ps.switches, sw)
	return errors.Join(errs...)
}

// writeClasses says for every combination of sets which rules of a list it matches.
func (ps *policies) writeClasses(p *policy) error {
	s := ps.switches[p.key.sw]
	if s == nil || p.lookups == nil {
		return nil
	}
	for side, rules := range p.lookups.setRules {
		for class, sets := range s.combinations {
			key := bpfClassKey{Policy: p.id, Class: class, Side: uint32(side)}
			b := newBits(len(p.list.Rules))
			for _, name := range sets {
				if r, ok := rules[name]; ok {
					b.add(r)
				}
			}
			old := p.classes[key]
			v, err := ps.vector(p, b)
			if err != nil {
				return err
			}
			if v == 0 {
				continue
			}
			if err := ps.t.classes.set(key, v); err != nil {
				return err
			}
			p.classes[key] = v
			if old != 0 {
				p.vectors[old]--
				if err := ps.release(old, 1); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// forgetCombinations takes back what rules say about combinations that are no more.
func (ps *policies) forgetCombinations() error {
	for _, s := range ps.switches {
		s.combinations = s.current
	}
	var errs []error
	for _, p := range ps.byID {
		s := ps.switches[p.key.sw]
		for k, v := range p.classes {
			if s != nil && hasKey(s.current, k.Class) {
				continue
			}
			errs = append(errs, ps.t.classes.drop(k), ps.release(v, 1))
			p.vectors[v]--
			delete(p.classes, k)
		}
	}
	return errors.Join(errs...)
}
