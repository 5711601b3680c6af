package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Bounds of a list, those of the program: steps of its search, one for each piece of the
// vectors and one for each Pass on the way (MAX_STEPS in bpf/lib/policy.h).
const maxSteps = 256

// listKey identifies a list of rules in the kernel. Ports with equal lists share one. A
// list that names address sets belongs to one switch, for the sets do.
type listKey struct {
	sw   uint32 // 0: names no set
	hash [16]byte
}

// policy is a list of rules in the kernel.
type policy struct {
	key  listKey
	id   uint32
	list *plan.RuleList
	// ports counts the directions of ports that use it.
	ports   int
	lookups *lookups
	written bool
	// retirements counts how often it went out of use.
	retirements int
	vectors     map[uint32]int // how many of its entries refer to each
	classes     map[bpfClassKey]uint32
}

// retirement is one of the times that a list went out of use.
type retirement struct {
	policy *policy
	number int
}

// policies are all lists in the kernel, and the address sets they refer to. Numbers come
// from hashes of what they stand for, so that a daemon that starts anew finds everything
// as it would have written it.
type policies struct {
	t        *policyTables
	byKey    map[listKey]*policy
	byID     map[uint32]*policy
	vectors  map[uint32]*vectorState
	switches map[uint32]*setState
	// garbage is not referred to by any port any more, but a packet may still be at it. It
	// is in retired until it is gone: who wants it before gets it back, whole.
	garbage []retirement
	retired map[listKey]*policy
	// changed says that packets may be judged otherwise since the generation was raised.
	changed bool
	// stale says that address sets have combinations that are no more, and setEpoch counts
	// the changes of sets.
	stale    bool
	setEpoch int
}

// vectorState is a vector in the kernel.
type vectorState struct {
	bits bits
	refs int
}

func newPolicies(t *policyTables) *policies {
	return &policies{
		t: t, byKey: map[listKey]*policy{}, byID: map[uint32]*policy{}, retired: map[listKey]*policy{},
		vectors: map[uint32]*vectorState{}, switches: map[uint32]*setState{},
	}
}

// reserve gives a list its number; 0 stands for no list. Nothing is written yet.
func (ps *policies) reserve(sw uint32, list *plan.RuleList) (listKey, uint32, error) {
	if list == nil {
		return listKey{}, 0, nil
	}
	key := listKey{hash: list.Hash}
	passes := 0
	for i := range list.Rules {
		r := &list.Rules[i]
		if len(r.Local.Sets)+len(r.Remote.Sets) > 0 {
			key.sw = sw
		}
		if r.Action == plan.Pass {
			passes++
		}
	}
	if p, ok := ps.byKey[key]; ok {
		return key, p.id, nil
	}
	if p, ok := ps.retired[key]; ok {
		delete(ps.retired, key)
		ps.byKey[key] = p
		return key, p.id, nil
	}
	if steps := passes + len(list.Rules)/(64*vectorWords) + 1; steps > maxSteps {
		return listKey{}, 0, fmt.Errorf("its rules need %d steps, the switch makes %d: use fewer rules that pass", steps, maxSteps)
	}
	id := fold(binary.LittleEndian.Uint64(list.Hash[:]) + uint64(key.sw))
	for ps.byID[id] != nil {
		id++
	}
	if id == 0 {
		id = 1
	}
	p := &policy{key: key, id: id, list: list, vectors: map[uint32]int{}, classes: map[bpfClassKey]uint32{}}
	ps.byKey[key], ps.byID[id] = p, p
	return key, id, nil
}

// write puts a reserved list into the maps, its head last: a packet meets all of it or
// none of it.
func (ps *policies) write(key listKey) error {
	p := ps.byKey[key]
	if p == nil || p.written {
		return nil
	}
	if p.lookups == nil {
		p.lookups = compileRules(p.list)
	}
	if err := ps.writeRules(p); err != nil {
		return err
	}
	if err := ps.writeLookups(p); err != nil {
		return err
	}
	if err := ps.writeClasses(p, nil); err != nil {
		return err
	}
	head := bpfPolicy{Rules: uint32(len(p.list.Rules)), Flags: p.lookups.flags, Fallback: uint8(p.list.Default)}
	if err := ps.t.heads.set(p.id, head); err != nil {
		return err
	}
	p.written = true
	return nil
}

func (ps *policies) writeRules(p *policy) error {
	keys, values := make([]bpfRuleKey, len(p.list.Rules)), make([]bpfRule, len(p.list.Rules))
	for i := range p.list.Rules {
		r := &p.list.Rules[i]
		keys[i], values[i] = bpfRuleKey{Policy: p.id, Index: uint32(i)}, bpfRule{Number: r.Number, Next: uint32(r.Next), Action: uint32(r.Action)}
	}
	return ps.t.rules.setAll(keys, values)
}

// writeLookups writes what finds the rules of a list by address and by service.
func (ps *policies) writeLookups(p *policy) error {
	var prefixes []bpfPrefixKey
	var services []bpfServiceKey
	var all []bits // of the prefixes, then of the services
	for side := range 2 {
		for prefix, b := range p.lookups.addrs[side] {
			prefixes, all = append(prefixes, prefixKey(p.id, side, prefix)), append(all, b)
		}
	}
	for side := range 2 {
		for s, b := range p.lookups.services[side] {
			services, all = append(services, serviceKey(p.id, side, s)), append(all, b)
		}
	}
	numbers, err := ps.vectorsOf(p, all)
	if err != nil {
		return err
	}
	if err := ps.t.prefixes.setAll(prefixes, numbers[:len(prefixes)]); err != nil {
		return err
	}
	return ps.t.services.setAll(services, numbers[len(prefixes):])
}

// vector gives the number under which a vector is in the kernel, and writes it if needed.
func (ps *policies) vector(p *policy, b bits) (uint32, error) {
	numbers, err := ps.vectorsOf(p, []bits{b})
	return numbers[0], err
}

// vectorsOf gives the numbers under which vectors are in the kernel, and writes those that are not: all, or none is there.
func (ps *policies) vectorsOf(p *policy, all []bits) ([]uint32, error) {
	numbers := make([]uint32, len(all))
	fresh := map[uint32]bits{}
	var keys []bpfVectorKey
	var values []bpfVector
	for i, b := range all {
		if b.empty() {
			continue
		}
		n, known := ps.find(b, fresh)
		if !known {
			fresh[n] = b
			for piece, v := range b.pieces() {
				keys, values = append(keys, bpfVectorKey{Vector: n, Piece: piece}), append(values, v)
			}
		}
		numbers[i] = n
	}
	if err := ps.t.vectors.setAll(keys, values); err != nil {
		return numbers, err
	}
	for n, b := range fresh {
		ps.vectors[n] = &vectorState{bits: b}
	}
	for _, n := range numbers {
		if n != 0 {
			ps.vectors[n].refs++
			p.vectors[n]++
		}
	}
	return numbers, nil
}

// find looks for a vector among those that are there and those that are about to be, and else gives a number that is free.
func (ps *policies) find(b bits, fresh map[uint32]bits) (n uint32, known bool) {
	for n = b.hash(); ; {
		v, there := ps.vectors[n]
		f, coming := fresh[n]
		switch {
		case there && v.bits.equal(b), coming && f.equal(b):
			return n, true
		case !there && !coming:
			return n, false
		}
		if n++; n == 0 {
			n = 1
		}
	}
}

// use and drop count the ports that a list is for.
func (ps *policies) use(keys ...listKey) {
	for _, k := range keys {
		if p := ps.byKey[k]; p != nil {
			p.ports++
		}
	}
}

func (ps *policies) drop(keys ...listKey) {
	for _, k := range keys {
		if p := ps.byKey[k]; p != nil {
			p.ports--
		}
	}
}

// retire takes lists that no port uses out of reach of new ones.
func (ps *policies) retire() {
	for key, p := range ps.byKey {
		if p.ports == 0 {
			delete(ps.byKey, key)
			ps.retired[key] = p
			p.retirements++
			ps.garbage = append(ps.garbage, retirement{p, p.retirements})
		}
	}
}

// collect deletes what has been retired. Only after every packet of then has passed.
func (ps *policies) collect(garbage []retirement) error {
	var errs []error
	for _, r := range garbage {
		if ps.retired[r.policy.key] != r.policy || r.policy.retirements != r.number {
			continue // it came back, and may have been retired again
		}
		delete(ps.retired, r.policy.key)
		errs = append(errs, ps.erase(r.policy))
	}
	return errors.Join(errs...)
}

func (ps *policies) erase(p *policy) error {
	errs := []error{ps.t.heads.drop(p.id)}
	rules := make([]bpfRuleKey, len(p.list.Rules))
	for i := range rules {
		rules[i] = bpfRuleKey{Policy: p.id, Index: uint32(i)}
	}
	errs = append(errs, ps.t.rules.dropAll(rules))
	if p.lookups != nil {
		var prefixes []bpfPrefixKey
		var services []bpfServiceKey
		for side := range 2 {
			for prefix := range p.lookups.addrs[side] {
				prefixes = append(prefixes, prefixKey(p.id, side, prefix))
			}
			for s := range p.lookups.services[side] {
				services = append(services, serviceKey(p.id, side, s))
			}
		}
		errs = append(errs, ps.t.prefixes.dropAll(prefixes), ps.t.services.dropAll(services))
	}
	errs = append(errs, ps.t.classes.dropAll(slices.Collect(maps.Keys(p.classes))), ps.releaseAll(p.vectors))
	delete(ps.byID, p.id)
	return errors.Join(errs...)
}

// release gives references to a vector back; one that has none left is deleted.
func (ps *policies) release(n uint32, refs int) error { return ps.releaseAll(map[uint32]int{n: refs}) }

func (ps *policies) releaseAll(refs map[uint32]int) error {
	var gone []bpfVectorKey
	for n, refs := range refs {
		v := ps.vectors[n]
		if v == nil {
			continue
		}
		if v.refs -= refs; v.refs > 0 {
			continue
		}
		delete(ps.vectors, n)
		for piece := range v.bits.pieces() {
			gone = append(gone, bpfVectorKey{Vector: n, Piece: piece})
		}
	}
	return ps.t.vectors.dropAll(gone)
}

// superfluous tells whether there may be something to prune. Counting is enough: all that
// is explained is there.
func (ps *policies) superfluous() bool {
	rules, prefixes, services, classes, vectors, sets := 0, 0, 0, 0, 1, 0
	for _, p := range ps.byID {
		rules += len(p.list.Rules)
		classes += len(p.classes)
		if p.lookups != nil {
			prefixes += len(p.lookups.addrs[sideLocal]) + len(p.lookups.addrs[sideRemote])
			services += len(p.lookups.services[sideLocal]) + len(p.lookups.services[sideRemote])
		}
	}
	for _, v := range ps.vectors {
		vectors += len(v.bits.pieces())
	}
	for _, s := range ps.switches {
		sets += len(s.entries)
	}
	return len(ps.t.heads.have) > len(ps.byID) || len(ps.t.rules.have) > rules || len(ps.t.prefixes.have) > prefixes ||
		len(ps.t.services.have) > services || len(ps.t.classes.have) > classes || len(ps.t.vectors.have) > vectors ||
		len(ps.t.sets.have) > sets
}

// prune deletes from the maps what no list and no set explains: what a daemon left that
// was killed, or that somebody else wrote.
func (ps *policies) prune() error {
	keep := ps.explained()
	return errors.Join(
		ps.t.heads.keep(func(k uint32) bool { return ps.byID[k] != nil }),
		ps.t.rules.keep(func(k bpfRuleKey) bool { p := ps.byID[k.Policy]; return p != nil && int(k.Index) < len(p.list.Rules) }),
		ps.t.prefixes.keep(func(k bpfPrefixKey) bool { _, ok := keep.prefixes[k]; return ok }),
		ps.t.services.keep(func(k bpfServiceKey) bool { _, ok := keep.services[k]; return ok }),
		ps.t.classes.keep(func(k bpfClassKey) bool { p := ps.byID[k.Policy]; return p != nil && hasKey(p.classes, k) }),
		ps.t.sets.keep(func(k bpfSetKey) bool { s := ps.switches[k.Sw]; return s != nil && hasKey(s.entries, k) }),
		ps.t.vectors.keep(func(k bpfVectorKey) bool {
			v := ps.vectors[k.Vector]
			return k.Vector == 0 || v != nil && hasKey(v.bits.pieces(), k.Piece)
		}))
}

func hasKey[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

type explained struct {
	prefixes map[bpfPrefixKey]struct{}
	services map[bpfServiceKey]struct{}
}

func (ps *policies) explained() explained {
	e := explained{map[bpfPrefixKey]struct{}{}, map[bpfServiceKey]struct{}{}}
	for _, p := range ps.byID {
		if p.lookups == nil {
			continue
		}
		for side := range 2 {
			for prefix := range p.lookups.addrs[side] {
				e.prefixes[prefixKey(p.id, side, prefix)] = struct{}{}
			}
			for s := range p.lookups.services[side] {
				e.services[serviceKey(p.id, side, s)] = struct{}{}
			}
		}
	}
	return e
}

// rewrite writes again what the kernel lost.
func (ps *policies) rewrite() error {
	if err := ps.blank(); err != nil {
		return err
	}
	lost := map[bpfVectorKey]bpfVector{}
	for n, v := range ps.vectors {
		for piece, words := range v.bits.pieces() {
			if k := (bpfVectorKey{Vector: n, Piece: piece}); ps.t.vectors.have[k] != words {
				lost[k] = words
			}
		}
	}
	if err := ps.t.vectors.setMap(lost); err != nil {
		return err
	}
	for _, p := range ps.byID {
		if !p.written {
			continue
		}
		old := p.vectors
		p.written, p.vectors, p.classes = false, map[uint32]int{}, map[bpfClassKey]uint32{}
		if err := errors.Join(ps.write(p.key), ps.releaseAll(old)); err != nil {
			return err
		}
	}
	for _, s := range ps.switches {
		if err := ps.t.sets.setMap(s.entries); err != nil {
			return err
		}
	}
	return nil
}

// blank is the vector without a bit, which stands for all that are not there.
func (ps *policies) blank() error { return ps.t.vectors.set(bpfVectorKey{}, bpfVector{}) }

func prefixKey(id uint32, side int, p netip.Prefix) bpfPrefixKey {
	ip, n := mapped(p)
	return bpfPrefixKey{Bits: uint32(prefixHead + n), Policy: id, Side: uint8(side), Ip: ip}
}

// mapped writes a prefix as the kernel's tables have it.
func mapped(p netip.Prefix) (ip [16]byte, n int) {
	n = p.Bits()
	if p.Addr().Is4() {
		n += mappedBits
	}
	return p.Masked().Addr().As16(), n
}

func serviceKey(id uint32, side int, s service) bpfServiceKey {
	k := bpfServiceKey{Bits: serviceHead, Policy: id, Side: uint8(side)}
	if s.protocol >= 0 {
		k.Bits += 8 + uint32(s.bits)
		k.Proto = uint8(s.protocol)
		k.Port = s.port<<8 | s.port>>8
	}
	return k
}

// combination is a number for a set of address sets.
func combination(sets []string) uint32 {
	var b []byte
	for _, s := range sets {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return hashBytes(b)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
