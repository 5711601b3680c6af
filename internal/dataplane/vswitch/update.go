package vswitch

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Update applies what differs between two plans, p being the newer one. It touches only
// the ports that d names, and those that a changed switch gives another meaning, so its
// cost does not grow with the number of ports.
func (a *Applier) Update(ctx context.Context, p *plan.Plan, d *plan.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.update(ctx, p, d)
	a.dirty = a.dirty || err != nil
	return a.makeRoom(ctx, p, err)
}

func (a *Applier) update(ctx context.Context, p *plan.Plan, d *plan.Delta) error {
	if err := a.begin(); err != nil {
		return err
	}
	if !a.listed {
		if err := a.list(); err != nil {
			return err
		}
		a.listed = true
	}
	// Before the programs are at the NIC: whatever comes in between, their time is known.
	errs := []error{a.servePending(p, d)}
	for network, c := range d.Switches {
		if c.New == nil {
			continue
		}
		a.about(string(network))
		if err := a.policies.setSwitch(c.New, false); err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(network), Err: err})
		}
	}
	states := map[plan.PortID]*portState{}
	for id, port := range touched(p, d) {
		a.about(cause(id, d))
		var next *portState
		if port != nil {
			var err error
			if next, err = a.want(p, port); err != nil {
				errs = append(errs, err)
			} else {
				states[id] = next
			}
		}
		// What goes away goes before anything comes: an address may move to another port
		// in the same step, and a removed port is cut off at once.
		if err := a.release(id, next); err != nil {
			errs = append(errs, portError(id, "%w", err))
		}
	}
	for id, s := range states {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		a.about(cause(id, d))
		if err := a.place(s); err != nil {
			errs = append(errs, portError(id, "%w", err))
		}
	}
	for network, c := range d.Switches {
		a.about(string(network))
		if c.New != nil {
			if err := a.shareUplink(p, c.New); err != nil {
				errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(network), Err: err})
			}
			continue
		}
		if own := p.Ports[c.Old.UplinkPort]; own != nil || c.Old.UplinkPort != plan.UplinkPortID(network) {
			errs = append(errs, a.groups.setUplink(c.Old.Number, 0))
		}
		if err := a.groups.forget(c.Old.Number); err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(network), Err: err})
		}
		errs = append(errs, a.policies.dropSwitch(c.Old.Number))
	}
	errs = append(errs, a.updateOverlays(p, d), a.setBalancers(d.Balancers))
	return errors.Join(append(errs, a.settle(), a.serveOffload(p))...)
}

// Cut takes the ports that d removes out of the maps: nothing is forwarded from them or to them any more. Their places
// in the broadcast lists, programs and counters are left to the Update.
func (a *Applier) Cut(_ context.Context, d *plan.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	cut := false
	for id, c := range d.Ports {
		old := a.applied[id]
		if c.New != nil || old == nil {
			continue
		}
		if !cut {
			if err := a.begin(); err != nil {
				return err
			}
			cut = true
		}
		err := errors.Join(
			a.tables.near.forget(old.index), a.tables.ports.drop(old.index),
			dropMissing(a.tables.macs, old.macs, nil),
			dropMissing(a.tables.addrs, old.addrs, nil))
		if err != nil {
			errs = append(errs, portError(id, "%w", err))
		}
	}
	if cut { // the flows to them know the way without these maps
		if err := a.raiseGeneration(); err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, a.mark(0))
		}
		if a.offload != nil {
			errs = append(errs, a.offload.passStack())
		}
	}
	return errors.Join(errs...)
}

// touched gives the ports that a delta concerns, nil for those that are gone. A switch
// says whether its host port's addresses have a resolver behind them, and a guest whether
// the host port has guests.
func touched(p *plan.Plan, d *plan.Delta) map[plan.PortID]*plan.Port {
	out := make(map[plan.PortID]*plan.Port, len(d.Ports))
	for id, c := range d.Ports {
		if c.New != nil && c.New.Kind == plan.PortMacvlan {
			continue
		}
		out[id] = c.New
		for _, port := range []*plan.Port{c.Old, c.New} {
			if !isGuest(port) || p.Switches[port.Network] == nil {
				continue
			}
			if host := p.Ports[p.Switches[port.Network].HostPort]; host != nil {
				out[host.ID] = host
			}
		}
	}
	followsHost(p, d, out)
	followsNIC(p, d, out)
	followsTunnel(p, d, out)
	for _, c := range d.Switches {
		if c.Old != nil && p.Ports[c.Old.UplinkPort] != nil { // other networks may go on with it
			out[c.Old.UplinkPort] = p.Ports[c.Old.UplinkPort]
		}
		if c.New == nil {
			continue
		}
		for _, id := range []plan.PortID{c.New.HostPort, c.New.ResolverPort, c.New.UplinkPort} {
			if port := p.Ports[id]; port != nil {
				out[id] = port
			}
		}
	}
	return out
}

// shareUplink names the NIC to a switch that another network's port is the uplink of.
func (a *Applier) shareUplink(p *plan.Plan, sw *plan.Switch) error {
	nic := p.Ports[sw.UplinkPort]
	if !sw.Mode.OnLAN() || nic != nil && nic.Switch == sw.Number {
		return nil // the port's own: see place
	}
	if nic == nil {
		return a.groups.setUplink(sw.Number, 0)
	}
	index, err := a.dev.index(nic.Device)
	if err != nil {
		return err
	}
	return a.groups.setUplink(sw.Number, index)
}

// followsNIC adds the ports that know the NIC of their switch when that changes: the host's own vNICs, which are behind
// it, and those that send others' packets to the host by it.
func followsNIC(p *plan.Plan, d *plan.Delta, out map[plan.PortID]*plan.Port) {
	changed := map[hcn.GUID]bool{}
	for id, c := range d.Switches {
		changed[id] = c.New != nil && c.New.Mode.OnLAN()
	}
	for _, c := range d.Ports {
		if c.New != nil && c.New.Kind == plan.PortUplink {
			changed[c.New.Network] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	for id, port := range p.Ports {
		if changed[port.Network] && (isGuest(port) || len(port.Turns) > 0) {
			out[id] = port
		}
	}
}

// release removes from the maps what a port had and next (nil: nothing) does not have.
func (a *Applier) release(id plan.PortID, next *portState) error {
	old := a.applied[id]
	if old == nil || (next != nil && next.equal(old)) {
		return nil
	}
	if next != nil && next.index == old.index && next.entry.Sw == old.entry.Sw {
		return errors.Join(
			a.leaveName(old, next),
			a.leaveNICs(old, next),
			dropMissing(a.tables.macs, old.macs, next.macs),
			dropMissing(a.tables.addrs, old.addrs, next.addrs),
			dropMissing(a.tables.rates, old.rates, next.rates),
			dropMissing(a.tables.steers, old.steers, next.steers),
			dropMissing(a.tables.lans, old.lans, next.lans))
	}
	errs := []error{
		a.tables.near.forget(old.index), a.tables.ports.drop(old.index),
		dropMissing(a.tables.macs, old.macs, nil),
		dropMissing(a.tables.addrs, old.addrs, nil),
		dropMissing(a.tables.rates, old.rates, nil),
		dropMissing(a.tables.steers, old.steers, nil),
		dropMissing(a.tables.lans, old.lans, nil),
		a.groups.remove(old.entry.Sw, old.index),
	}
	switch old.kind {
	case plan.PortResolver:
		errs = append(errs, a.groups.setResolver(old.entry.Sw, 0))
	case plan.PortUplink:
		errs = append(errs, a.groups.setUplink(old.entry.Sw, 0))
	default:
	}
	for _, h := range a.spotsOf(old) {
		if a.needed(h.pin, id) || next != nil && slices.ContainsFunc(a.spotsOf(next), func(n spot) bool { return n.pin == h.pin }) {
			continue
		}
		errs = append(errs, a.att.detach(h.hook))
		a.writes++
	}
	errs = append(errs, a.forgetCounters(old))
	a.forget(id)
	return errors.Join(errs...)
}

// leaveName takes the programs off a NIC that has another name by now: they come again under that.
func (a *Applier) leaveName(old, next *portState) error {
	if old.device == next.device {
		return nil
	}
	var errs []error
	for _, h := range a.hooksOf(old.kind, old.device) {
		errs = append(errs, a.att.detach(h))
		a.writes++
	}
	return errors.Join(errs...)
}

func dropMissing[K, V comparable](t *table[K, V], old, next map[K]V) error {
	var errs []error
	for k, v := range old {
		if _, stays := next[k]; !stays {
			errs = append(errs, t.dropIf(k, v))
		}
	}
	return errors.Join(errs...)
}

func (a *Applier) forgetCounters(s *portState) error {
	index := s.counted()
	var errs []error
	any := a.shadow != nil || a.hasDropped(index)
	for _, r := range Reasons() {
		if any || r.Quiet() {
			errs = append(errs, a.tables.drops.delete(bpfDropKey{Port: index, Reason: r.enum()}))
		}
	}
	errs = append(errs, a.tables.near.uncount(index), a.tables.stats.delete(index), a.tables.shares.delete(s.index))
	if s.entry.Tunnel != 0 && a.shadow == nil {
		errs = append(errs, a.forgetGroups(s.index))
	}
	return errors.Join(errs...)
}

// hasDropped tells whether a port may have lost frames for a reason that is not quiet: most ports go without, and then there is nothing
// to look for under each.
func (a *Applier) hasDropped(index uint32) bool {
	var perCPU []bpfStats
	if err := a.objs.BhStatsV1.Lookup(&index, &perCPU); err != nil {
		return true
	}
	return slices.ContainsFunc(perCPU, func(s bpfStats) bool { return s.RxDropped+s.TxDropped > 0 })
}

// forgetGroups deletes what a port of an overlay has asked for: its index may be another's one day.
func (a *Applier) forgetGroups(port uint32) error {
	_, err := a.tables.groups.list()
	errs := []error{err}
	for k := range a.tables.groups.have {
		if k.Sw == port {
			errs = append(errs, a.tables.groups.delete(k))
		}
	}
	return errors.Join(errs...)
}

// place puts a port's entries and program in place. Its device is still down.
func (a *Applier) place(s *portState) error {
	if err := a.conflict(s); err != nil {
		return err
	}
	if err := a.write(s); err != nil {
		return err
	}
	if _, err := a.attach(s); err != nil {
		return err
	}
	a.remember(s)
	switch s.kind {
	case plan.PortResolver:
		return a.groups.setResolver(s.entry.Sw, s.index)
	case plan.PortUplink:
		return a.groups.setUplink(s.entry.Sw, s.index)
	default:
	}
	if !s.member {
		return nil
	}
	return a.groups.add(s.entry.Sw, s.dest)
}

// conflict refuses what another port has.
func (a *Applier) conflict(s *portState) error {
	other := func(index uint32) bool {
		id, ok := a.byIndex[index]
		return ok && id != s.id
	}
	if other(s.index) {
		return errors.New("device " + s.device + " is another port's")
	}
	had := a.applied[s.id] // an entry of its own may name the NIC
	for k := range s.macs {
		if had != nil && hasKey(had.macs, k) {
			continue
		}
		if d, ok := a.tables.macs.have[k]; ok && other(d.Port) {
			return errors.New("MAC " + plan.MAC(k.Mac).String() + " is another port's on this switch")
		}
	}
	for k := range s.addrs {
		if had != nil && hasKey(had.addrs, k) {
			continue
		}
		if o, ok := a.tables.addrs.have[k]; ok && other(o.Port) {
			return errors.New("address " + netip.AddrFrom16(k.Ip).Unmap().String() + " is another port's on this switch")
		}
	}
	return nil
}
