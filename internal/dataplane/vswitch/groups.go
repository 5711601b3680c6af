package vswitch

import (
	"errors"
	"slices"
)

// groups are the member lists of the switches: slots 0..n-1 of the members map, n in the
// switches map. Entries are written before the count grows, and the count shrinks before
// entries are deleted, so the program never meets an empty slot below it.
type groups struct {
	t *tables
	// at finds the slot of a port: switch → port index → slot.
	at map[uint32]map[uint32]uint32
}

// readGroups takes the lists from the mirrors of the maps.
func readGroups(t *tables) *groups {
	g := &groups{t: t, at: map[uint32]map[uint32]uint32{}}
	for k, d := range t.members.have {
		if k.Slot < t.switches.have[k.Sw].Members {
			g.slots(k.Sw)[d.Port] = k.Slot
		}
	}
	return g
}

func (g *groups) slots(sw uint32) map[uint32]uint32 {
	if g.at[sw] == nil {
		g.at[sw] = map[uint32]uint32{}
	}
	return g.at[sw]
}

// has tells whether a port is on the list, to be reached as d says.
func (g *groups) has(sw uint32, d bpfDest) bool {
	slot, ok := g.at[sw][d.Port]
	return ok && g.t.members.have[bpfMemberKey{Sw: sw, Slot: slot}] == d
}

// add puts a port on the list, or corrects how it is reached.
func (g *groups) add(sw uint32, d bpfDest) error {
	entry := g.t.switches.have[sw]
	if slot, ok := g.slots(sw)[d.Port]; ok {
		return g.t.members.set(bpfMemberKey{Sw: sw, Slot: slot}, d)
	}
	slot := entry.Members
	if slot >= MaxMembers {
		return errors.New("the switch has as many ports as broadcast can reach")
	}
	if err := g.t.members.set(bpfMemberKey{Sw: sw, Slot: slot}, d); err != nil {
		return err
	}
	entry.Members++
	if err := g.t.switches.set(sw, entry); err != nil {
		return err
	}
	g.slots(sw)[d.Port] = slot
	return nil
}

// remove takes a port off: the last one moves into its slot.
func (g *groups) remove(sw, port uint32) error {
	slot, ok := g.slots(sw)[port]
	if !ok {
		return nil
	}
	entry := g.t.switches.have[sw]
	last := bpfMemberKey{Sw: sw, Slot: entry.Members - 1}
	if slot != last.Slot {
		moved := g.t.members.have[last]
		if err := g.t.members.set(bpfMemberKey{Sw: sw, Slot: slot}, moved); err != nil {
			return err
		}
		g.at[sw][moved.Port] = slot
	}
	delete(g.at[sw], port)
	entry.Members--
	err := errors.Join(g.t.switches.set(sw, entry), g.t.members.drop(last))
	if vlanOf(sw) != 0 { // its network goes on without it
		err = errors.Join(err, g.forget(sw))
	}
	return err
}

// setResolver names the resolver's port; 0: none.
func (g *groups) setResolver(sw, port uint32) error {
	entry := g.t.switches.have[sw]
	entry.Resolver = port
	return g.t.switches.set(sw, entry)
}

// setUplink names the NIC; 0: none.
func (g *groups) setUplink(sw, port uint32) error {
	entry := g.t.switches.have[sw]
	entry.Uplink = port
	return g.t.switches.set(sw, entry)
}

// setOwn names both.
func (g *groups) setOwn(sw, resolver, uplink uint32) error {
	entry := g.t.switches.have[sw]
	entry.Resolver, entry.Uplink = resolver, uplink
	return g.t.switches.set(sw, entry)
}

// forget removes a switch that has nothing left.
func (g *groups) forget(sw uint32) error {
	e, ok := g.t.switches.have[sw]
	if !ok || e.Members != 0 || e.Resolver != 0 || e.Uplink != 0 {
		return nil
	}
	delete(g.at, sw)
	return g.t.switches.drop(sw)
}

// reconcile makes a switch's list hold exactly the wanted ports, keeping each that is
// right in the slot it has.
func (g *groups) reconcile(sw uint32, want []bpfDest) error {
	byPort := make(map[uint32]bpfDest, len(want))
	for _, d := range want {
		byPort[d.Port] = d
	}
	n := uint32(len(want))
	free := []uint32{}
	for slot := range n {
		d, ok := g.t.members.have[bpfMemberKey{Sw: sw, Slot: slot}]
		if w, wantedHere := byPort[d.Port]; ok && wantedHere && w == d {
			delete(byPort, d.Port) // a second copy of it counts as free
			continue
		}
		free = append(free, slot)
	}
	missing := make([]bpfDest, 0, len(byPort))
	for _, d := range byPort {
		missing = append(missing, d)
	}
	slices.SortFunc(missing, func(a, b bpfDest) int { return int(a.Port) - int(b.Port) })
	var errs []error
	for i, d := range missing {
		errs = append(errs, g.t.members.set(bpfMemberKey{Sw: sw, Slot: free[i]}, d))
	}
	entry := g.t.switches.have[sw]
	entry.Members = n
	errs = append(errs, g.t.switches.set(sw, entry))
	return errors.Join(errs...)
}

// prune deletes slots that no list counts, and switches that want does not name.
func (g *groups) prune(want map[uint32][]bpfDest) error {
	var errs []error
	for sw := range g.t.switches.have {
		if _, ok := want[sw]; !ok {
			errs = append(errs, g.t.switches.drop(sw))
		}
	}
	for k := range g.t.members.have {
		if k.Slot >= g.t.switches.have[k.Sw].Members {
			errs = append(errs, g.t.members.drop(k))
		}
	}
	return errors.Join(errs...)
}
