package nat

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// kindOutbound marks the elements of OutBoundNAT policies: an address belongs to one port, so no two ports can want the same.
const kindOutbound = "outbound"

// addOutbound puts in what the policies say of one source address.
func (es elements) addOutbound(o *plan.Outbound, owner plan.PortID) {
	e := elem{kind: kindOutbound, owner: string(owner)}
	add := func(name string, dst netip.Prefix, as netip.Addr) {
		e, k := e, elemKey{set: name, key: string(o.Source.AsSlice())}
		e.keyText = []string{o.Source.String()}
		if dst.IsValid() {
			k.last = concat(o.Source.AsSlice(), netipx.PrefixLastIP(dst).AsSlice())
			k.key = concat(o.Source.AsSlice(), dst.Addr().AsSlice())
			e.keyText = append(e.keyText, dst.String())
		}
		if as.IsValid() {
			e.val, e.valText = string(as.AsSlice()), []string{as.String()}
		}
		es[k] = e
	}
	names := outboundSetsOf(o.Source.Is4())
	if o.OnLAN {
		add(names.onLAN, netip.Prefix{}, netip.Addr{})
	}
	for _, dst := range o.Kept {
		add(names.kept, dst, netip.Addr{})
	}
	for _, h := range o.Chosen {
		name := names.chosen
		if h.As.IsValid() {
			name = names.chosenAs
		}
		for _, dst := range h.Destinations {
			add(name, dst, h.As)
		}
	}
	switch {
	case o.OthersKept:
		add(names.open, netip.Prefix{}, netip.Addr{})
	case o.As.IsValid():
		add(names.as, netip.Prefix{}, o.As)
	}
}

type outboundSets struct{ kept, chosen, chosenAs, open, as, onLAN string }

func outboundSetsOf(v4 bool) outboundSets {
	if v4 {
		return outboundSets{setKept4, setChosen4, mapChosen4, setOpen4, mapAs4, setOnLAN4}
	}
	return outboundSets{setKept6, setChosen6, mapChosen6, setOpen6, mapAs6, setOnLAN6}
}

// sourceOf reads the container's address out of an element of these sets.
func (k elemKey) sourceOf() (netip.Addr, bool) {
	for _, v4 := range []bool{true, false} {
		n, d := outboundSetsOf(v4), detourSetsOf(v4)
		if !slices.Contains([]string{n.kept, n.chosen, n.chosenAs, n.open, n.as, n.onLAN, d.to, d.samePort, d.open}, k.set) {
			continue
		}
		size := 16
		if v4 {
			size = 4
		}
		if len(k.key) >= size {
			return netip.AddrFromSlice([]byte(k.key[:size]))
		}
	}
	return netip.Addr{}, false
}

// flushesOfOutbound lists the sources whose translation changed: their connections would keep the old one. A source of a
// port that came or went is not among them, because flushesOfGone sees to it.
func flushesOfOutbound(gone, come elements, of func(owner string) bool) []flush {
	var out []flush
	seen := map[netip.Addr]bool{}
	for _, es := range []elements{gone, come} {
		for _, k := range es.sorted() {
			source, ok := k.sourceOf()
			if ok && !seen[source] && of(es[k].owner) {
				seen[source] = true
				out = append(out, flush{origSrc: source})
			}
		}
	}
	return out
}
