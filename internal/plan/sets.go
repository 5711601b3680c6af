package plan

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// networkRules is what a network's policies say to all its ports. It is kept from
// one compile to the next, part by part: sets may hold a hundred thousand
// addresses, and most changes touch none of them.
type networkRules struct {
	acls *networkACLs
	// sets by Id, plain and nested.
	sets map[string]*addressSet
}

// networkACLs are the rules of a network's NetworkACL policies. Those that are
// equal are one pointer, which is how an endpoint knows that nothing changed.
type networkACLs struct {
	raw   [][]byte
	rules []written
	err   error
}

// addressSet is one SetPolicy.
type addressSet struct {
	id       string
	raw      []byte         // of a plain set: the settings
	members  []string       // of a nested set
	prefixes []netip.Prefix // sorted, masked, without duplicates
	// lengths of the prefixes, by family: how many look-ups an address takes.
	lengths4, lengths6 []int
}

// compileNetworkRules reads a network's policies; old is what the last compile made
// of them, or nil.
func compileNetworkRules(n *Network, old *networkRules) *networkRules {
	if n == nil || mode(n.Doc.Type) == 0 {
		return nil
	}
	if old == nil {
		old = &networkRules{}
	}
	r := &networkRules{acls: compileNetworkACLs(n, old.acls), sets: map[string]*addressSet{}}
	known := make(map[string]*addressSet, len(old.sets))
	for _, s := range old.sets {
		if s.raw != nil {
			known[string(s.raw)] = s
		}
	}
	var nested []hcn.SetPolicySetting
	for _, p := range n.Doc.Policies {
		if p.Type != hcn.SetPolicy {
			continue
		}
		if s := known[string(p.Settings)]; s != nil {
			r.sets[s.id] = s
			continue
		}
		settings, err := hcn.NetworkSettingsOf[hcn.SetPolicySetting]([]hcn.NetworkPolicy{p})
		if err != nil {
			continue // refused when the set was made
		}
		s := settings[0]
		if s.PolicyType == hcn.SetPolicyTypeNestedIpSet {
			nested = append(nested, s)
			continue
		}
		if prefixes, err := s.Prefixes(); err == nil {
			r.sets[s.Id] = newSet(s.Id, p.Settings, nil, prefixes)
		}
	}
	for _, s := range nested {
		r.nest(s, old.sets[s.Id])
	}
	return r
}

// nest makes a nested set of its members, which are there already.
func (r *networkRules) nest(s hcn.SetPolicySetting, old *addressSet) {
	var all []netip.Prefix
	for _, id := range s.Members() {
		if m := r.sets[id]; m != nil {
			all = append(all, m.prefixes...)
		}
	}
	set := newSet(s.Id, nil, s.Members(), all)
	if old != nil && slices.Equal(old.members, set.members) && slices.Equal(old.prefixes, set.prefixes) {
		set = old
	}
	r.sets[s.Id] = set
}

func newSet(id string, raw []byte, members []string, prefixes []netip.Prefix) *addressSet {
	s := &addressSet{id: id, raw: raw, members: members, prefixes: prefixes}
	slices.SortFunc(s.prefixes, ComparePrefixes)
	s.prefixes = slices.Compact(s.prefixes)
	for _, p := range s.prefixes {
		lengths := &s.lengths6
		if p.Addr().Is4() {
			lengths = &s.lengths4
		}
		if !slices.Contains(*lengths, p.Bits()) {
			*lengths = append(*lengths, p.Bits())
		}
	}
	return s
}

// ComparePrefixes orders by address, and then by length.
func ComparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// holds tells whether one of the addresses is in the set.
func (s *addressSet) holds(addrs []netip.Addr) bool {
	if s == nil {
		return false
	}
	for _, a := range addrs {
		lengths := s.lengths6
		if a.Is4() {
			lengths = s.lengths4
		}
		for _, bits := range lengths {
			p, err := a.Prefix(bits)
			if err != nil {
				continue
			}
			if _, ok := slices.BinarySearchFunc(s.prefixes, p, ComparePrefixes); ok {
				return true
			}
		}
	}
	return false
}

// addresses is the form in which the data path gets the sets.
func (r *networkRules) addresses() map[string][]netip.Prefix {
	if len(r.sets) == 0 {
		return nil
	}
	out := make(map[string][]netip.Prefix, len(r.sets))
	for id, s := range r.sets {
		out[id] = s.prefixes
	}
	return out
}

func compileNetworkACLs(n *Network, old *networkACLs) *networkACLs {
	a := &networkACLs{}
	var policies []hcn.NetworkPolicy
	for _, p := range n.Doc.Policies {
		if p.Type == hcn.NetworkACL {
			policies = append(policies, p)
			a.raw = append(a.raw, p.Settings)
		}
	}
	if old != nil && slices.EqualFunc(a.raw, old.raw, bytes.Equal) {
		return old
	}
	settings, err := hcn.NetworkSettingsOf[hcn.AclPolicySetting](policies)
	a.err = err
	for _, s := range settings {
		w, err := aclRule(s, LayerNetwork)
		if err != nil {
			a.err = err
		}
		a.rules = append(a.rules, w)
	}
	return a
}
