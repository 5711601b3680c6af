package vswitch

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Sides of a rule, and the look-ups that a policy needs (bpf/lib/structs.h).
const (
	sideLocal  = 0
	sideRemote = 1

	policyLocal       = 1
	policyRemote      = 2
	policyLocalSets   = 4
	policyRemoteSets  = 8
	policyService     = 16
	policyRemotePorts = 32
)

// Lengths, in bits, of what stands before the address or the port in a key.
const (
	prefixHead  = 64
	serviceHead = 40
	setHead     = 32
	// mappedBits is where IPv4 begins in 16 bytes.
	mappedBits = 96
)

// lookups are the tables of one list of rules, before vectors and the list have numbers.
type lookups struct {
	flags uint16
	// addrs by side, with the address as the kernel writes it.
	addrs [2]map[netip.Prefix]bits
	// services by side. Protocol any is the root.
	services [2]map[service]bits
	// setRules says for each side and set which rules name it.
	setRules [2]map[string]bits
}

// service is a protocol with a block of ports: 16-n bits are free.
type service struct {
	protocol int // -1: any
	port     uint16
	bits     int
}

// compileRules turns a list of rules into look-ups.
func compileRules(list *plan.RuleList) *lookups {
	l := &lookups{}
	for side := range 2 {
		l.compileAddresses(list.Rules, side)
	}
	l.compileServices(list.Rules)
	l.compileRemotePorts(list.Rules)
	return l
}

func addressesOf(r *plan.Rule, side int) *plan.Addresses {
	if side == sideLocal {
		return &r.Local
	}
	return &r.Remote
}

// Roots of the two families: what an address meets that no prefix covers.
var (
	root6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	root4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{}), 0)
)

func (l *lookups) compileAddresses(rules []plan.Rule, side int) {
	own := map[netip.Prefix]bits{root4: newBits(len(rules)), root6: newBits(len(rules))}
	sets := map[string]bits{}
	trivial := true
	for i := range rules {
		a := addressesOf(&rules[i], side)
		if a.Any() {
			own[root4].set(i)
			own[root6].set(i)
			continue
		}
		trivial = false
		for _, p := range a.Prefixes {
			at(own, p, len(rules)).set(i)
		}
		for _, s := range a.Sets {
			at(sets, s, len(rules)).set(i)
		}
	}
	if trivial {
		return
	}
	l.flags |= policyLocal << side
	inherit(own, func(b, parent bits) { b.add(parent) })
	l.addrs[side] = own
	if len(sets) > 0 {
		l.flags |= policyLocalSets << side
		l.setRules[side] = sets
	}
}

func at[K comparable](m map[K]bits, k K, rules int) bits {
	b, ok := m[k]
	if !ok {
		b = newBits(rules)
		m[k] = b
	}
	return b
}

// inherit gives every prefix what the prefixes around it have, for a longest match finds
// only the innermost. Both families have a root.
func inherit[V any](own map[netip.Prefix]V, add func(v, parent V)) {
	prefixes := make([]netip.Prefix, 0, len(own))
	for p := range own {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, plan.ComparePrefixes)
	var around []netip.Prefix
	for _, p := range prefixes {
		for len(around) > 0 && !around[len(around)-1].Contains(p.Addr()) {
			around = around[:len(around)-1]
		}
		if n := len(around); n > 0 {
			add(own[p], own[around[n-1]])
		}
		around = append(around, p)
	}
}

// compileServices covers protocols and the endpoint's own ports.
func (l *lookups) compileServices(rules []plan.Rule) {
	out := map[service]bits{}
	root := newBits(len(rules))
	trivial := true
	ported := map[int][]int{} // protocol → rules with ports
	for i := range rules {
		r := &rules[i]
		if len(r.Protocols) == 0 {
			root.set(i)
			continue
		}
		trivial = false
	}
	if trivial {
		return
	}
	for i := range rules {
		for _, p := range rules[i].Protocols {
			b, ok := out[service{protocol: int(p)}]
			if !ok {
				b = root.clone()
				out[service{protocol: int(p)}] = b
			}
			if len(rules[i].LocalPorts) == 0 {
				b.set(i)
			} else {
				ported[int(p)] = append(ported[int(p)], i)
			}
		}
	}
	for p, list := range ported {
		base := out[service{protocol: p}]
		portBlocks(rules, list, base, func(r *plan.Rule) []plan.PortRange { return r.LocalPorts }, func(port uint16, n int, b bits) {
			out[service{protocol: p, port: port, bits: n}] = b
		})
	}
	out[service{protocol: -1}] = root
	l.flags |= policyService
	l.services[sideLocal] = out
}

// compileRemotePorts covers the peer's ports; the protocol is the other table's business.
func (l *lookups) compileRemotePorts(rules []plan.Rule) {
	base := newBits(len(rules))
	var list []int
	for i := range rules {
		if len(rules[i].RemotePorts) == 0 {
			base.set(i)
		} else {
			list = append(list, i)
		}
	}
	if len(list) == 0 {
		return
	}
	out := map[service]bits{{protocol: -1}: base}
	portBlocks(rules, list, base, func(r *plan.Rule) []plan.PortRange { return r.RemotePorts }, func(port uint16, n int, b bits) {
		out[service{protocol: 0, port: port, bits: n}] = b
	})
	l.flags |= policyRemotePorts
	l.services[sideRemote] = out
}

// portBlocks cuts the port space where rules begin and end, and gives each part that
// differs from the base as aligned blocks, which a prefix match can find.
func portBlocks(rules []plan.Rule, list []int, base bits, ranges func(*plan.Rule) []plan.PortRange, emit func(port uint16, bits int, b bits)) {
	type edge struct {
		at    int
		rule  int
		delta int
	}
	var edges []edge
	for _, i := range list {
		for _, r := range ranges(&rules[i]) {
			edges = append(edges, edge{int(r.First), i, 1}, edge{int(r.Last) + 1, i, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	open := map[int]int{} // rule → ranges that are open here: its ranges may overlap
	for i := 0; i < len(edges); {
		first := edges[i].at
		for ; i < len(edges) && edges[i].at == first; i++ {
			e := edges[i]
			if open[e.rule] += e.delta; open[e.rule] == 0 {
				delete(open, e.rule)
			}
		}
		if len(open) == 0 || i == len(edges) {
			continue
		}
		b := base.clone()
		for rule := range open {
			b.set(rule)
		}
		alignedBlocks(first, edges[i].at-1, func(port uint16, n int) { emit(port, n, b) })
	}
}

// alignedBlocks covers a range of ports by blocks of a power of two.
func alignedBlocks(first, last int, emit func(port uint16, bits int)) {
	for first <= last {
		size := 1
		for first%(2*size) == 0 && first+2*size-1 <= last {
			size *= 2
		}
		n := 16
		for s := size; s > 1; s /= 2 {
			n--
		}
		emit(uint16(first), n)
		first += size
	}
}
