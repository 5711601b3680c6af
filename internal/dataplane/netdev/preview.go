package netdev

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A preview is a pass that looks as every pass does, and notes what it would write instead of
// writing it (pass.write). Only what it would find of its own doing, devices and compartments
// that are still to be made, is put in its place here.

type preview struct{ steps []plan.Write }

func (d *preview) add(owner, object string, sign plan.Sign, text string) {
	d.steps = append(d.steps, plan.Write{Owner: owner, Object: object, Sign: sign, Text: text})
}

func (d *preview) note(owner, object string, ws ...write) {
	for _, w := range ws {
		if _, what := w.says(); what != "" {
			d.add(owner, object, signOf(w.req.Type), what)
		}
	}
}

func (d *preview) sysctl(owner, where, key, value string) {
	d.add(owner, "sysctl in "+where, plan.Changes, strings.ReplaceAll(key, "/", ".")+" = "+value)
}

func signOf(kind uint16) plan.Sign {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_NEWADDR, unix.RTM_NEWROUTE, unix.RTM_NEWNEIGH, unix.RTM_NEWLINKPROP:
		return plan.Adds
	case unix.RTM_DELLINK, unix.RTM_DELADDR, unix.RTM_DELROUTE, unix.RTM_DELNEIGH, unix.RTM_DELLINKPROP:
		return plan.Removes
	}
	return plan.Changes
}

func (n *Netdev) newPreview(ctx context.Context) *pass {
	ps := n.newPass(ctx, false)
	ps.dry = &preview{}
	return ps
}

// Preview says what an Update would make. It writes nothing.
func (d *Devices) Preview(ctx context.Context, p *plan.Plan, delta *plan.Delta) ([]plan.Write, error) {
	ps := d.n.newPreview(ctx)
	defer ps.close()
	if delta.Host {
		ps.fail(ps.applyHost(p.Host))
	}
	for _, id := range slices.Sorted(maps.Keys(delta.Namespaces)) {
		if c := delta.Namespaces[id]; c.New != nil {
			ps.fail(namespaceError(c.New, ps.previewNamespace(c)))
		}
	}
	ps.updatePorts(p, delta)
	return ps.dry.steps, errors.Join(ps.errs...)
}

// previewNamespace is ensureNamespace and updateSysctls.
func (ps *pass) previewNamespace(c plan.Change[plan.Namespace]) error {
	ns := c.New
	if err := ps.n.checkPath(ns); err != nil {
		return err
	}
	settings := ns.Sysctls
	if c.Old != nil {
		settings = changedSysctls(c)
	} else {
		_, err := ps.space(ns.Path)
		if !errors.Is(err, ErrVanished) {
			return err
		}
		ps.spaces[ns.Path] = &space{path: ns.Path, fd: -1}
		ps.dry.add(string(ns.ID), "netns "+ns.Path, plan.Adds, "network namespace")
		for _, kv := range bornWith {
			ps.dry.sysctl(string(ns.ID), ns.Path, kv[0], kv[1])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		ps.dry.sysctl(string(ns.ID), ns.Path, key, settings[key])
	}
	return nil
}

// unborn tells that a compartment is only to be made.
func (s *space) unborn() bool { return s.conn == nil }

// previewPair is create: what is in the way of a pair is refused as there.
func (ps *pass) previewPair(p *plan.Port) error {
	s, err := ps.space(p.VNIC.Home())
	if err != nil {
		return err
	}
	if l, ok, err := ps.hostLink(p.Device); err != nil {
		return err
	} else if ok && !l.ours() {
		return foreignLink(l)
	}
	if !s.unborn() {
		if l, ok, err := ps.linkIn(s, p.VNIC.Device); err != nil {
			return err
		} else if ok && !l.ours() && !strings.HasPrefix(l.alias, "bulkhead ") {
			return taken(p, unix.EEXIST)
		}
	}
	ps.dry.note(string(p.ID), "link "+p.Device, newPair(p, s.fd, 0))
	near := link{name: p.Device, kind: "veth", mtu: p.VNIC.MTU, group: groupOurs, flags: unix.IFF_NOARP}
	far := link{name: p.VNIC.Device, kind: "veth", mtu: p.VNIC.MTU, mac: p.VNIC.MAC}
	if p.Kind != plan.PortContainer {
		ps.born[plan.Interface{Namespace: s.path, Device: far.name}] = true
	}
	return ps.configure(p, s, near, far, nil, true)
}

// previewChange is change.
func (ps *pass) previewChange(i plan.Interface, in *introduction) error {
	if !ps.born[i] {
		_, l, err := ps.find(i)
		if err != nil || l.index == 0 {
			return err
		}
	}
	// One that is announced again stays as it is.
	come := slices.DeleteFunc(slices.Clone(in.come), func(n plan.Neighbour) bool { return slices.Contains(in.gone, n) })
	gone := slices.DeleteFunc(slices.Clone(in.gone), func(n plan.Neighbour) bool { return slices.Contains(in.come, n) })
	ps.dry.note("", "link "+i.Device+" in "+place(i.Namespace), (&introduction{gone: gone, come: come}).writes(0)...)
	return nil
}

// Preview says what an Update would set up and take away. It writes nothing.
func (f *Finish) Preview(ctx context.Context, p *plan.Plan, delta *plan.Delta) ([]plan.Write, error) {
	ps := f.n.newPreview(ctx)
	defer ps.close()
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
			l, ok, err := ps.hostLink(c.Old.Device)
			ps.fail(portError(c.Old, err))
			if ok && l.ours() && l.group != groupDying {
				ps.dry.add(string(id), "link "+l.name, plan.Removes,
					fmt.Sprintf("%s, its other end is %s in %s", l.kind, c.Old.VNIC.Device, place(c.Old.VNIC.Namespace)))
			}
		}
		if c.New == nil || c.Old == nil {
			continue // what is new is set up with all that it gets
		}
		l, ok, err := ps.hostLink(c.New.Device)
		ps.fail(portError(c.New, err))
		if ok && l.ours() && l.group == groupOurs && !l.up() {
			ps.dry.add(string(id), "link "+l.name, plan.Changes, "up")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(delta.Namespaces)) {
		if c := delta.Namespaces[id]; c.Old != nil && (c.New == nil || c.New.Path != c.Old.Path) {
			ps.fail(namespaceError(c.Old, f.n.checkPath(c.Old)))
			ps.dry.add(string(id), "netns "+c.Old.Path, plan.Removes, "network namespace")
		}
	}
	if filtersChange(p, delta) {
		ps.fail(ps.dropFilters(p))
	}
	if tuningChanges(delta) {
		ps.fail(ps.untune(p))
	}
	return ps.dry.steps, errors.Join(ps.errs...)
}
