package vswitch

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// describe names the entries of a state by the sets that an address in them is in.
func (s *setState) describe() map[bpfSetKey]string {
	out := map[bpfSetKey]string{}
	for k, class := range s.entries {
		list, ok := s.current[class]
		if class != 0 && !ok {
			out[k] = "a combination that is not current"
			continue
		}
		out[k] = fmt.Sprint(list)
	}
	return out
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	if r.IntN(3) == 0 {
		a := netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(r.IntN(2)), 15: byte(r.IntN(4))})
		p, _ := a.Prefix([]int{8, 112, 126, 127, 128, 128}[r.IntN(6)])
		return p
	}
	a := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(8))})
	p, _ := a.Prefix([]int{0, 8, 24, 29, 31, 32, 32, 32}[r.IntN(8)])
	return p
}

// TestSetsFollow: a state that followed a chain of changes holds what one made anew holds, and what it says has to be
// written is the difference.
func TestSetsFollow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	followed := 0
	for range 300 {
		sets := map[string][]netip.Prefix{"a": nil, "b": nil, "c": nil}
		// Enough that is no part of the play that a change is a small one.
		for i := range 300 {
			sets["a"] = append(sets["a"], netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 32))
		}
		s := compileSets(1, sets)
		kernel := maps.Clone(s.entries)
		for range 20 {
			next := maps.Clone(sets)
			for range 1 + r.IntN(4) {
				name := string(rune('a' + r.IntN(3)))
				list := slices.Clone(next[name])
				p := randomPrefix(r)
				if i := slices.Index(list, p); i >= 0 {
					list = slices.Delete(list, i, i+1)
				} else {
					list = append(list, p)
				}
				slices.SortFunc(list, plan.ComparePrefixes)
				next[name] = list
			}
			changes, ok := s.follow(1, next)
			if !ok {
				t.Fatalf("a small change is not followed: %v to %v", sets, next)
			}
			followed += len(changes)
			for _, c := range changes {
				if c.drop {
					delete(kernel, c.key)
				} else {
					kernel[c.key] = c.class
				}
			}
			sets = next
			if !maps.Equal(kernel, s.entries) {
				t.Fatalf("what was written is not what there is: %v", sets)
			}
			if want := compileSets(1, sets).describe(); !maps.Equal(s.describe(), want) {
				t.Fatalf("%v: got\n%v\nwant\n%v", sets, s.describe(), want)
			}
			if r.IntN(3) == 0 { // as forgetCombinations does
				s.combinations = s.current
				maps.DeleteFunc(s.numbers, func(_ string, class uint32) bool { return !hasKey(s.current, class) })
			}
		}
	}
	if followed == 0 {
		t.Error("nothing changed")
	}
}

// TestSetsGiveUp: what cannot be followed leaves the state as it is.
func TestSetsGiveUp(t *testing.T) {
	one, two := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
	s := compileSets(1, map[string][]netip.Prefix{"a": {one}})
	before := s.describe()
	for name, sets := range map[string]map[string][]netip.Prefix{
		"another set":   {"a": {one}, "b": {two}},
		"a set less":    {},
		"in no order":   {"a": {two, one}},
		"one too often": {"a": {one, one}},
	} {
		if _, ok := s.follow(1, sets); ok || !maps.Equal(s.describe(), before) {
			t.Errorf("%s: followed %v, now %v", name, ok, s.describe())
		}
	}
}

// TestSetsFollowCheaply: one address more in a hundred thousand allocates next to nothing, and is one entry to write.
func TestSetsFollowCheaply(t *testing.T) {
	list := make([]netip.Prefix, 100_000)
	for i := range list {
		list[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	more := append(slices.Clone(list), netip.MustParsePrefix("10.200.0.1/32"))
	s := compileSets(1, map[string][]netip.Prefix{"bad": list})
	turn := []map[string][]netip.Prefix{{"bad": more}, {"bad": list}}
	i := 0
	allocs := testing.AllocsPerRun(10, func() {
		changes, ok := s.follow(1, turn[i%2])
		if !ok || len(changes) != 1 || changes[0].drop != (i%2 == 1) {
			t.Fatalf("change %d: %v, %v", i, changes, ok)
		}
		i++
	})
	if allocs > 60 {
		t.Errorf("%v allocations", allocs)
	}
}
