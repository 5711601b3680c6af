package nat

import (
	"fmt"
	"net/netip"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

type detourSets struct{ to, samePort, open string }

func detourSetsOf(v4 bool) detourSets {
	if v4 {
		return detourSets{mapProxy4, mapProxyPort4, setProxyOpen4}
	}
	return detourSets{mapProxy6, mapProxyPort6, setProxyOpen6}
}

// addDetours puts in what a port's detours say of each of its addresses. The destinations of two of them never overlap.
func (es elements) addDetours(p *plan.Port) {
	ranges := p.DetourRanges()
	for i := range p.Detours {
		d := &p.Detours[i]
		names := detourSetsOf(d.To.Addr().Is4())
		for _, source := range p.Addrs {
			if source.Is4() != d.To.Addr().Is4() {
				continue
			}
			for _, r := range ranges[i] {
				es.addDetour(d, names, source, r, p.ID)
			}
			if d.Open && len(ranges[i]) > 0 {
				es[elemKey{set: names.open, key: concat(source.AsSlice(), d.To.Addr().AsSlice())}] = elem{
					kind: kindOutbound, owner: string(p.ID), keyText: []string{source.String(), d.To.Addr().String()},
				}
			}
		}
	}
}

func (es elements) addDetour(d *plan.Detour, names detourSets, source netip.Addr, dst netipx.IPRange, owner plan.PortID) {
	proto, src, to := []byte{d.Protocol}, source.AsSlice(), d.To.Addr()
	k := elemKey{set: names.samePort, key: concat(src, proto, dst.From().AsSlice()), last: concat(src, proto, dst.To().AsSlice())}
	e := elem{
		kind: kindOutbound, owner: string(owner), keyText: []string{source.String(), protoName(d.Protocol), rangeText(dst)},
		val: string(to.AsSlice()), valText: []string{to.String()},
	}
	if d.To.Port() != 0 {
		k.set = names.to
		e.val = concat(to.AsSlice(), port(d.To.Port()))
		e.valText = append(e.valText, fmt.Sprint(d.To.Port()))
	}
	es[k] = e
}

// rangeText is a range the way nft reads it.
func rangeText(r netipx.IPRange) string {
	if r.From() == r.To() {
		return r.From().String()
	}
	return r.From().String() + "-" + r.To().String()
}
