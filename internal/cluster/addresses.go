package cluster

import (
	"context"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The addresses by which the others know a host are chosen when it joins. Where it loses one (another lease of DHCP, a renumbered LAN), it
// takes another of the same family on the same NIC, and the others follow. An address that is gone without another one coming is waited
// for: a link that is down loses those of IPv6 as well.

// seen are the NICs of the host, with its addresses.
type seen struct{ nics []plan.NIC }

// followAddresses publishes what has become of the host's addresses. A change counts when it was seen twice, a second apart: a client of
// DHCP takes the old one away before it adds the new one, and may add several.
func (h *Host) followAddresses(ctx context.Context) {
	s, had := h.seen.Load(), h.member.Addrs()
	if s == nil || len(had) == 0 || h.from == nil {
		return
	}
	f := &plan.Facts{NICs: s.nics}
	if nic := nicWith(f, had[0]); nic != nil {
		if err := h.member.SetNIC(nic.Name); err != nil {
			h.log.Warn("keep which NIC has the host's address", "error", err)
		}
	}
	now := movedTo(f, had, h.member.NIC())
	if slices.Equal(now, had) {
		h.moved = nil
		return
	}
	if !slices.Equal(now, h.moved) {
		h.moved = now
		if _, err := h.facts(ctx); err != nil { // or the next look would be at what was seen now
			h.log.Warn("look for the host's addresses", "error", err)
		}
		return
	}
	h.moved = nil
	h.log.Warn("the host has another address, and the cluster is told", "was", texts(had), "is", texts(now))
	if err := h.member.Move(now); err != nil {
		h.log.Warn("have the cluster follow the host's address", "error", err)
	}
}

// movedTo gives a host's addresses as they are now: those that it has stay, and in the place of others come the first ones of their family
// that its NIC has; if there is none, the old ones stay.
func movedTo(f *plan.Facts, had []netip.Addr, name string) []netip.Addr {
	out, nic := slices.Clone(had), f.NIC(name)
	for i, a := range had {
		if nicWith(f, a) != nil || nic == nil || !nic.Up {
			continue
		}
		for _, p := range nic.Addrs {
			if p.Addr().Is4() == a.Is4() {
				out[i] = p.Addr()
				break
			}
		}
	}
	return out
}
