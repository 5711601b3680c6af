package netdev

import (
	"context"
	"errors"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Sync sets the switch sides up and removes every link and compartment of ours that the plan does not hold. The links
// and compartments themselves go in the background.
func (f *Finish) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	ps := f.n.newPass(ctx, true)
	defer ps.close()
	f.n.lobby.close()
	f.n.releaseSpares()
	if err := ps.listHost(); err != nil {
		return nil, err
	}
	var up []write
	var ready []*plan.Port
	wanted := map[string]bool{}
	for _, id := range sortedPorts(p.Ports) {
		port := p.Ports[id]
		if port.Kind == plan.PortUplink || port.Kind == plan.PortMacvlan {
			continue
		}
		wanted[port.Device] = true
		if port.VNIC.Home() == "" {
			wanted[port.VNIC.Device] = true
		}
		l, ok := ps.links[port.Device]
		if !ok || !l.ours() || l.group == groupDying {
			continue // what is missing or foreign was reported by Devices
		}
		ready = append(ready, port)
		if l.up() {
			continue
		}
		if !f.n.known.isFresh(l.name) {
			ps.found(string(id), "link "+port.Device, "down")
		}
		w := setLink("set "+port.Device+" up", l.index, unix.IFF_UP)
		if l.alias == "" {
			w.req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(port.Alias)))
		}
		up = append(up, w)
	}
	ps.fail(f.n.host.write(up...))
	for _, port := range ready {
		f.n.known.settle(port)
	}
	for _, l := range ps.links {
		switch {
		case !l.ours():
		case l.group == groupDying:
			f.n.reap.link(l)
		case f.n.pool.has(l.name):
		case !wanted[l.name]:
			f.n.log.InfoContext(ctx, "removing left-over link", "link", l.name, "alias", l.alias)
			ps.fail(f.n.kill(l))
		}
	}
	ps.fail(ps.sweepMacvlans(p))
	ps.fail(f.pruneNamespaces(p))
	ps.fail(ps.refind())
	ps.fail(ps.dropFilters(p))
	ps.fail(ps.untune(p))
	return ps.drift, errors.Join(ps.errs...)
}

func (f *Finish) pruneNamespaces(p *plan.Plan) error {
	paths, err := f.n.listNamespaces()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, ns := range p.Namespaces {
		keep[ns.Path] = true
	}
	for _, path := range slices.DeleteFunc(paths, func(s string) bool { return keep[s] }) {
		f.n.reap.namespace(path)
	}
	return nil
}

// Update sets the ports of a change up and takes away those that went. Links that are not ours are left alone.
func (f *Finish) Update(ctx context.Context, p *plan.Plan, delta *plan.Delta) error {
	ps := f.n.newPass(ctx, false)
	defer ps.close()
	f.n.lobby.closeFor(delta)
	f.n.releaseSpares()
	var up []write
	var ready []*plan.Port
	for _, id := range sortedPorts(delta.Ports) {
		c := delta.Ports[id]
		if isUplink(c.Old) || isUplink(c.New) {
			continue
		}
		if isMacvlan(c.Old) || isMacvlan(c.New) {
			ps.fail(ps.dropMacvlan(c))
			continue
		}
		if c.Old != nil && (c.New == nil || c.New.Device != c.Old.Device) {
			ps.fail(portError(c.Old, f.n.killPort(c.Old)))
		}
		if c.New == nil {
			continue
		}
		if index := f.n.known.newborn(c.New.Device); index != 0 {
			ready = append(ready, c.New)
			w := setLink("set "+c.New.Device+" up", index, unix.IFF_UP, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(c.New.Alias)))
			w.fine = []unix.Errno{unix.ENODEV} // deleted by somebody just now, which wakes the engine
			up = append(up, w)
			continue
		}
		l, ok, err := f.n.host.linkByName(c.New.Device)
		ps.fail(portError(c.New, err))
		if !ok || !l.ours() || l.group != groupOurs {
			continue
		}
		ready = append(ready, c.New)
		if !l.up() {
			up = append(up, setLink("set "+c.New.Device+" up", l.index, unix.IFF_UP))
		}
	}
	ps.fail(f.n.host.write(up...))
	for _, port := range ready {
		f.n.known.settle(port)
	}
	for _, c := range delta.Namespaces {
		if c.Old != nil && (c.New == nil || c.New.Path != c.Old.Path) {
			if err := f.n.checkPath(c.Old); err != nil {
				ps.fail(namespaceError(c.Old, err))
				continue
			}
			f.n.reap.namespace(c.Old.Path)
		}
	}
	if tuningChanges(delta) {
		ps.fail(ps.refind())
	}
	if filtersChange(p, delta) {
		ps.fail(ps.dropFilters(p))
	}
	if tuningChanges(delta) {
		ps.fail(ps.untune(p))
	}
	return errors.Join(ps.errs...)
}

func isMacvlan(p *plan.Port) bool { return p != nil && p.Kind == plan.PortMacvlan }

func isUplink(p *plan.Port) bool { return p != nil && p.Kind == plan.PortUplink }

func (n *Netdev) killPort(p *plan.Port) error {
	l, ok, err := n.host.linkByName(p.Device)
	n.known.forget(p.Device)
	if p.VNIC.Namespace == "" {
		n.known.forget(p.VNIC.Device) // it goes with its pair
	}
	if err != nil || !ok || !l.ours() {
		return err
	}
	return n.kill(l)
}

// kill hands a link to the reaper: the caller pays for one message, not for the kernel's grace period. The name is not
// freed, since a rename waits for such a period too; who needs it again waits for the reaper.
func (n *Netdev) kill(l link) error {
	w := setLink("mark link "+l.name+" as dying", l.index, 0, attrUint32(unix.IFLA_GROUP, groupDying))
	w.fine = []unix.Errno{unix.ENODEV}
	n.known.forget(l.name)
	if err := n.host.write(w); err != nil {
		return err
	}
	n.reap.link(l)
	return nil
}
