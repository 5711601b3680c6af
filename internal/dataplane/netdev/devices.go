package netdev

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Sync compares all that is ours with the plan and makes or mends what differs; removing is left to Finish. A compartment
// that has vanished under a container is reported and not made again, since its processes are gone with it; only the
// resolver's is. A second Sync writes nothing.
func (d *Devices) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	ps := d.n.newPass(ctx, true)
	defer ps.close()
	d.n.lobby.close()
	if err := ps.listHost(); err != nil {
		return nil, err
	}
	ps.fail(ps.applyHost(p.Host))
	// Compartment by compartment, so that each is opened once.
	ports := map[string][]*plan.Port{}
	for _, id := range sortedPorts(p.Ports) {
		if p.Ports[id].Kind == plan.PortUplink {
			continue // not ours to make
		}
		path := p.Ports[id].VNIC.Namespace
		ports[path] = append(ports[path], p.Ports[id])
	}
	for _, id := range slices.Sorted(maps.Keys(p.Namespaces)) {
		path := p.Namespaces[id].Path
		ps.syncNamespace(p.Namespaces[id])
		ps.syncPorts(ports[path])
		ps.release(path)
		delete(ports, path)
	}
	for _, path := range slices.Sorted(maps.Keys(ports)) {
		ps.syncPorts(ports[path])
		ps.release(path)
	}
	ps.syncIntroductions(p)
	ps.fail(ps.refind())
	ps.fail(ps.addFilters(p))
	ps.fail(ps.tune(p))
	ps.fail(ctx.Err())
	return ps.drift, errors.Join(ps.errs...)
}

func (ps *pass) syncPorts(ports []*plan.Port) {
	for _, p := range ports {
		if ps.ctx.Err() != nil {
			return
		}
		before := len(ps.drift)
		err := ps.ensurePort(p)
		if err != nil {
			ps.drift = ps.drift[:before] // it is not repaired: the error says so, and the next try begins anew
		}
		// A vanished compartment is reported once, not for every port.
		if !errors.Is(err, ErrVanished) {
			ps.fail(portError(p, err))
		}
	}
}

func (ps *pass) syncNamespace(ns *plan.Namespace) {
	_, err := ps.space(ns.Path)
	switch {
	case errors.Is(err, ErrVanished), err == nil && ps.n.letGo(ns.Adopted):
		ps.found(string(ns.ID), "namespace "+ns.Path, "vanished")
		if plan.OwnNamespace(ns.ID) {
			ps.fail(namespaceError(ns, ps.ensureNamespace(ns)))
		}
	case err != nil:
		ps.fail(namespaceError(ns, err))
	}
}

// release closes a namespace that this pass is done with: thousands may be looked at.
func (ps *pass) release(path string) {
	if s := ps.spaces[path]; s != nil && s.own {
		s.close()
		delete(ps.spaces, path)
	}
}

// Update makes the compartments and ports of a change.
func (d *Devices) Update(ctx context.Context, p *plan.Plan, delta *plan.Delta) error {
	ps := d.n.newPass(ctx, false)
	defer ps.close()
	d.n.lobby.closeFor(delta)
	if delta.Host {
		ps.fail(ps.applyHost(p.Host))
	}
	ps.matchSpares(delta)
	for _, c := range delta.Namespaces {
		switch {
		case c.New == nil:
		case c.Old == nil:
			ps.fail(namespaceError(c.New, ps.ensureNamespace(c.New)))
		default:
			ps.fail(namespaceError(c.New, ps.updateSysctls(c)))
		}
	}
	ps.dropUnmatched()
	ps.updatePorts(p, delta)
	return errors.Join(ps.errs...)
}

// updatePorts makes the ports of a change, with what others have to know of them.
func (ps *pass) updatePorts(p *plan.Plan, delta *plan.Delta) {
	for _, id := range sortedPorts(delta.Ports) {
		c := delta.Ports[id]
		switch {
		case c.New == nil, c.New.Kind == plan.PortUplink:
		case c.Old == nil:
			ps.fail(portError(c.New, ps.createPort(c.New)))
		case c.Old.VNIC.Parked && !c.New.VNIC.Parked:
			ps.fail(portError(c.New, ps.takeOver(c.New)))
		default:
			ps.fail(portError(c.New, ps.ensurePort(c.New)))
		}
	}
	ps.introduce(p, delta)
	if tuningChanges(delta) {
		ps.fail(ps.refind())
	}
	if filtersChange(p, delta) {
		ps.fail(ps.addFilters(p))
	}
	if tuningChanges(delta) {
		ps.fail(ps.tune(p))
	}
}

func changedSysctls(c plan.Change[plan.Namespace]) map[string]string {
	changed := map[string]string{}
	for k, v := range c.New.Sysctls {
		if c.Old.Sysctls[k] != v {
			changed[k] = v
		}
	}
	return changed
}

// updateSysctls writes the settings that a change of a compartment touches.
func (ps *pass) updateSysctls(c plan.Change[plan.Namespace]) error {
	changed := changedSysctls(c)
	if len(changed) == 0 {
		return nil
	}
	return ps.n.Enter(c.New.Path, func() error { return ps.n.writeSysctls(changed) })
}
