package vswitch

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// setState is what a switch's address sets have in the kernel: for each block of
// addresses the combination of sets that hold it. A rule is looked up by combination, so
// an address that joins a set is one entry, whatever number of rules refer to the set.
//
// Sets may hold a hundred thousand addresses and change by one, so the state follows a
// change in place where it can (see follow).
type setState struct {
	entries map[bpfSetKey]uint32
	// combinations by number, each sorted: those of entries (current), and until no packet
	// can be at them any more those that were.
	combinations map[uint32][]string
	current      map[uint32][]string

	names   []string // of the sets, sorted; a block has them by index
	sets    map[string][]netip.Prefix
	blocks  map[netip.Prefix]*setBlock
	lengths [2][129]int       // how many blocks are of a length, by family
	uses    map[uint32]int    // how many entries have a combination
	numbers map[string]uint32 // of combinations, by the indexes in them
}

// setBlock is a prefix that sets name: those that name it, and those that name one around it too.
type setBlock struct{ own, all []int }

// setChange is an entry that is written, or dropped.
type setChange struct {
	key   bpfSetKey
	class uint32
	drop  bool
}

// compileSets works out the blocks of a switch's sets.
func compileSets(sw uint32, sets map[string][]netip.Prefix) *setState {
	s := &setState{
		combinations: map[uint32][]string{}, current: map[uint32][]string{}, names: sortedKeys(sets), sets: sets,
		blocks: map[netip.Prefix]*setBlock{}, uses: map[uint32]int{}, numbers: map[string]uint32{},
	}
	s.blockOf(root4)
	s.blockOf(root6)
	for i, name := range s.names {
		for _, p := range sets[name] {
			b := s.blockOf(p)
			b.own = append(b.own, i)
		}
	}
	for _, b := range s.blocks {
		b.all = b.own
	}
	inherit(s.blocks, func(b, parent *setBlock) { b.all = union(b.own, parent.all) })
	s.entries = make(map[bpfSetKey]uint32, len(s.blocks))
	for p, b := range s.blocks {
		class := s.number(b.all)
		s.entries[setKey(sw, p)] = class
		s.uses[class]++
	}
	return s
}

func setKey(sw uint32, p netip.Prefix) bpfSetKey {
	ip, n := mapped(p)
	return bpfSetKey{Bits: uint32(setHead + n), Sw: sw, Ip: ip}
}

func union(own, around []int) []int {
	if len(around) == 0 {
		return own
	}
	all := append(slices.Clone(own), around...)
	slices.Sort(all)
	return slices.Compact(all)
}

func familyIndex(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// blockOf finds a prefix's, or makes it.
func (s *setState) blockOf(p netip.Prefix) *setBlock {
	b := s.blocks[p]
	if b == nil {
		b = &setBlock{}
		s.blocks[p] = b
		s.lengths[familyIndex(p)][p.Bits()]++
	}
	return b
}

// number gives a combination its number, 0 for the empty one.
func (s *setState) number(sets []int) uint32 {
	if len(sets) == 0 {
		return 0
	}
	var id []byte
	list := make([]string, len(sets))
	for i, n := range sets {
		id = append(id, byte(n), byte(n>>8), byte(n>>16))
		list[i] = s.names[n]
	}
	if c, ok := s.numbers[string(id)]; ok {
		s.current[c] = s.combinations[c]
		return c
	}
	c := combination(list)
	for other, taken := s.combinations[c]; taken && !slices.Equal(other, list); other, taken = s.combinations[c] {
		c++
	}
	s.combinations[c], s.current[c], s.numbers[string(id)] = list, list, c
	return c
}

const (
	// mostFollowed is the part of the blocks, one in so many, up to which a change is
	// followed: above it all is worked out anew.
	mostFollowed = 8
	// mostAround is how many of the blocks that change may have others inside.
	mostAround = 16
)

// follow takes the state to other sets and tells what entries change; ok is false when it
// cannot, and the state is as it was. What it costs is in proportion to the change, but
// for a comparison of the lists.
func (s *setState) follow(sw uint32, sets map[string][]netip.Prefix) (changes []setChange, ok bool) {
	if s.sets == nil || !slices.Equal(s.names, sortedKeys(sets)) {
		return nil, false
	}
	type step struct {
		p   netip.Prefix
		set int
		add bool
	}
	var steps []step
	var around []netip.Prefix
	for i, name := range s.names {
		if !compareLists(s.sets[name], sets[name], func(p netip.Prefix, added bool) bool {
			steps = append(steps, step{p, i, added})
			if !p.IsSingleIP() && !slices.Contains(around, p) {
				around = append(around, p)
			}
			return len(around) <= mostAround && len(steps) <= len(s.blocks)/mostFollowed
		}) {
			return nil, false
		}
	}
	s.sets = sets
	if len(steps) == 0 {
		return nil, true
	}
	s.combinations, s.current = maps.Clone(s.combinations), maps.Clone(s.current)
	touched := map[netip.Prefix]bool{}
	for _, st := range steps {
		touched[st.p] = true
		b := s.blockOf(st.p)
		if st.add {
			b.own = append(b.own, st.set)
			slices.Sort(b.own)
		} else {
			b.own = slices.DeleteFunc(slices.Clone(b.own), func(i int) bool { return i == st.set })
		}
	}
	if len(around) > 0 {
		for p := range s.blocks {
			if slices.ContainsFunc(around, func(a netip.Prefix) bool { return a.Bits() < p.Bits() && a.Contains(p.Addr()) }) {
				touched[p] = true
			}
		}
	}
	for p := range touched {
		if len(s.blocks[p].own) == 0 && p != root4 && p != root6 {
			delete(s.blocks, p)
			s.lengths[familyIndex(p)][p.Bits()]--
		}
	}
	for p := range touched {
		if c, differs := s.renew(sw, p); differs {
			changes = append(changes, c)
		}
	}
	return changes, true
}

// renew works out the entry of one prefix anew.
func (s *setState) renew(sw uint32, p netip.Prefix) (c setChange, differs bool) {
	c.key = setKey(sw, p)
	old, had := s.entries[c.key]
	b := s.blocks[p]
	if c.drop = b == nil; c.drop {
		delete(s.entries, c.key)
	} else {
		b.all = b.own
		for bits := range p.Bits() {
			if s.lengths[familyIndex(p)][bits] == 0 {
				continue
			}
			if outer, err := p.Addr().Prefix(bits); err == nil && s.blocks[outer] != nil {
				b.all = union(b.all, s.blocks[outer].own)
			}
		}
		c.class = s.number(b.all)
		s.entries[c.key] = c.class
		s.uses[c.class]++
	}
	if had {
		if s.uses[old]--; s.uses[old] == 0 {
			delete(s.uses, old)
			delete(s.current, old)
		}
	}
	return c, c.drop == had || !c.drop && old != c.class
}

// compareLists calls differs for what only one of two sorted lists has, until it says no; false if it did, or
// one is not sorted.
func compareLists(old, now []netip.Prefix, differs func(p netip.Prefix, added bool) bool) bool {
	if len(old) == len(now) && (len(old) == 0 || &old[0] == &now[0]) {
		return true
	}
	for i, j := 0, 0; i < len(old) || j < len(now); {
		if i+1 < len(old) && plan.ComparePrefixes(old[i], old[i+1]) >= 0 || j+1 < len(now) && plan.ComparePrefixes(now[j], now[j+1]) >= 0 {
			return false
		}
		order := 0
		switch {
		case i == len(old):
			order = 1
		case j == len(now):
			order = -1
		default:
			order = plan.ComparePrefixes(old[i], now[j])
		}
		if order < 0 && !differs(old[i], false) || order > 0 && !differs(now[j], true) {
			return false
		}
		if order <= 0 {
			i++
		}
		if order >= 0 {
			j++
		}
	}
	return true
}

// setSwitch brings the sets of a switch up to date: first what the rules say about new
// combinations, then the addresses. What is no more is deleted by the next prune. With all,
// nothing is taken for written already.
func (ps *policies) setSwitch(sw *plan.Switch, all bool) error {
	old := ps.switches[sw.Number]
	if len(sw.Sets) == 0 && old == nil {
		return nil
	}
	changes, fresh, err := ps.nextSets(sw, old, all)
	if err != nil {
		return err
	}
	s := ps.switches[sw.Number]
	before := *ps.t.sets.writes
	// The longer blocks first: an address is never seen in the combination of a block
	// around its own.
	slices.SortFunc(changes, func(a, b setChange) int {
		if a.drop != b.drop {
			return cmp.Compare(dropsLast(a), dropsLast(b))
		}
		return int(b.key.Bits) - int(a.key.Bits)
	})
	var errs []error
	var keys, gone []bpfSetKey
	var classes []uint32
	for _, c := range changes {
		if c.drop {
			gone = append(gone, c.key)
		} else {
			keys, classes = append(keys, c.key), append(classes, c.class)
		}
	}
	if err := ps.t.sets.setAll(keys, classes); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, ps.t.sets.dropAll(gone))
	}
	if *ps.t.sets.writes != before {
		ps.changed, ps.stale = true, true
		ps.setEpoch++
	}
	if err := errors.Join(errs...); err != nil {
		s.sets = nil // what is written is not known: the next time all of it is looked at
		return err
	}
	if fresh {
		s.sets = sw.Sets
	}
	return nil
}

func dropsLast(c setChange) int {
	if c.drop {
		return 1
	}
	return 0
}

// nextSets makes the state of a switch that of its sets and has the rules answer for every
// combination of it; changes are the entries to write. fresh says that the state is a new one.
func (ps *policies) nextSets(sw *plan.Switch, old *setState, all bool) (changes []setChange, fresh bool, err error) {
	if old != nil && ps.t.sets.shadow == nil { // a preview shares the state with what is
		known := old.combinations
		if changes, ok := old.follow(sw.Number, sw.Sets); ok {
			if all {
				known, changes = nil, old.allEntries(changes)
			}
			if err := ps.writeNewClasses(sw.Number, known); err != nil {
				old.sets = nil
				return nil, false, err
			}
			return changes, false, nil
		}
	}
	next := compileSets(sw.Number, sw.Sets)
	next.sets = nil // until it is written
	if old != nil {
		// Until no packet is at the old ones, rules answer for both.
		merged := maps.Clone(old.combinations)
		maps.Copy(merged, next.combinations)
		next.combinations = merged
	}
	ps.switches[sw.Number] = next
	if err := ps.writeNewClasses(sw.Number, nil); err != nil {
		return nil, true, err
	}
	changes = next.allEntries(nil)
	if old != nil {
		for k := range old.entries {
			if !hasKey(next.entries, k) {
				changes = append(changes, setChange{key: k, drop: true})
			}
		}
	}
	return changes, true, nil
}

// allEntries are the entries of the state, after those of changes that drop one.
func (s *setState) allEntries(changes []setChange) []setChange {
	changes = slices.DeleteFunc(changes, func(c setChange) bool { return !c.drop })
	for k, class := range s.entries {
		changes = append(changes, setChange{key: k, class: class})
	}
	return changes
}

// writeNewClasses has every list of a switch answer for its combinations that are not known.
func (ps *policies) writeNewClasses(sw uint32, known map[uint32][]string) error {
	for _, p := range ps.byID {
		if p.key.sw == sw && p.written {
			if err := ps.writeClasses(p, known); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropSwitch removes the sets of a switch that is gone.
func (ps *policies) dropSwitch(sw uint32) error {
	s := ps.switches[sw]
	if s == nil {
		return nil
	}
	delete(ps.switches, sw)
	return ps.t.sets.dropAll(slices.Collect(maps.Keys(s.entries)))
}

// writeClasses says for every combination of sets, but for those that are known, which rules
// of a list it matches.
func (ps *policies) writeClasses(p *policy, known map[uint32][]string) error {
	s := ps.switches[p.key.sw]
	if s == nil || p.lookups == nil {
		return nil
	}
	for side, rules := range p.lookups.setRules {
		for class, sets := range s.combinations {
			if hasKey(known, class) {
				continue
			}
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
		s.numbers = maps.Clone(s.numbers)
		maps.DeleteFunc(s.numbers, func(_ string, class uint32) bool { return !hasKey(s.current, class) })
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
