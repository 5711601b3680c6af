package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/fnv"
	"slices"
)

// number names a rule: a hash of what was written and where, so that it survives a
// change of other rules, a restart and a move to another host. The direction is part of
// it, and both lists of a port draw from one pool.
func number(w *written, used map[uint32]bool) uint32 {
	h := fnv.New32a()
	text := func(s string) {
		_, _ = h.Write([]byte(s)) // never fails (hash.Hash)
		_, _ = h.Write([]byte{0})
	}
	text(string(w.dir))
	text(string(w.action))
	text(w.policy)
	text(w.tier)
	text(w.id)
	for _, f := range w.fields {
		text(f)
	}
	_, _ = h.Write([]byte{byte(w.layer), byte(w.priority >> 8), byte(w.priority)})
	n := h.Sum32()
	for n == 0 || used[n] {
		n++
	}
	used[n] = true
	return n
}

// newList completes a list with its hash.
func newList(rules []Rule, fallback Action) *RuleList {
	l := &RuleList{Rules: rules, Default: fallback}
	b := []byte{byte(fallback)}
	for i := range rules {
		b = rules[i].appendHashed(b)
	}
	sum := sha256.Sum256(b)
	copy(l.Hash[:], sum[:])
	return l
}

// appendHashed writes all of a rule that decides, each list with its length in front,
// so that no two rules are written alike.
func (r *Rule) appendHashed(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, r.Number)
	b = append(b, byte(r.Action))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Next))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Protocols)))
	b = append(b, r.Protocols...)
	for _, a := range []Addresses{r.Local, r.Remote} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(a.Prefixes)))
		for _, p := range a.Prefixes {
			// Sixteen bytes for both families, the number of bits tells them apart.
			ip := p.Addr().As16()
			b = append(b, ip[:]...)
			b = append(b, byte(p.Addr().BitLen()), byte(p.Bits()))
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(a.Sets)))
		for _, id := range a.Sets {
			b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
			b = append(b, id...)
		}
	}
	for _, list := range [][]PortRange{r.LocalPorts, r.RemotePorts} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
		for _, p := range list {
			b = binary.BigEndian.AppendUint16(b, p.First)
			b = binary.BigEndian.AppendUint16(b, p.Last)
		}
	}
	return b
}

// Equal tells whether two lists decide alike.
func (l *RuleList) Equal(o *RuleList) bool {
	if l == nil || o == nil {
		return l == o
	}
	return l.Hash == o.Hash && len(l.Rules) == len(o.Rules)
}

// Sets are the Ids of all sets that the list's rules name, sorted.
func (l *RuleList) Sets() []string {
	if l == nil {
		return nil
	}
	var out []string
	for i := range l.Rules {
		out = append(out, l.Rules[i].Local.Sets...)
		out = append(out, l.Rules[i].Remote.Sets...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
