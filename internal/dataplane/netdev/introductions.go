package netdev

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// introduction is what changes on one of the networks' own vNICs.
type introduction struct{ gone, come []plan.Neighbour }

// introduce tells the networks' own vNICs of the ports of a change, in one batch for each.
func (ps *pass) introduce(p *plan.Plan, delta *plan.Delta) {
	all := map[plan.Interface]*introduction{}
	at := func(i plan.Interface) *introduction {
		if all[i] == nil {
			all[i] = &introduction{}
		}
		return all[i]
	}
	for _, c := range delta.Ports {
		if c.Old != nil {
			for _, i := range c.Old.KnownOn {
				at(i).gone = append(at(i).gone, c.Old.Acquaintance()...)
			}
		}
		if c.New != nil {
			for _, i := range c.New.KnownOn {
				at(i).come = append(at(i).come, c.New.Acquaintance()...)
			}
		}
	}
	if len(ps.born) > 0 { // a vNIC that is new knows nobody, also none of those that did not change
		for _, port := range p.Ports {
			for _, i := range port.KnownOn {
				if ps.born[i] && delta.Ports[port.ID].New == nil {
					at(i).come = append(at(i).come, port.Acquaintance()...)
				}
			}
		}
	}
	for i, in := range all {
		if err := ps.change(i, in); err != nil {
			ps.fail(fmt.Errorf("neighbours on %s in %s: %w", i.Device, place(i.Namespace), err))
		}
	}
}

// change writes an introduction. A vNIC that is not there is another's error, or it went together with its ports.
func (ps *pass) change(i plan.Interface, in *introduction) error {
	if ps.dry != nil {
		return ps.previewChange(i, in)
	}
	for {
		c, index, kept := ps.n.lobby.get(i)
		if !kept {
			s, l, err := ps.find(i)
			if err != nil || l.index == 0 {
				return err
			}
			ps.n.lobby.keep(i, s, l.index)
			c, index = s.conn, l.index
		}
		if err := c.write(in.writes(index)...); !kept || !errors.Is(err, unix.ENODEV) {
			return err
		}
		ps.n.lobby.close() // somebody made the vNIC anew
	}
}

// writes are the messages of an introduction, on the vNIC with this index.
func (in *introduction) writes(index int) (ws []write) {
	for _, n := range in.gone {
		if !slices.Contains(in.come, n) {
			ws = append(ws, changeNeighbour(unix.RTM_DELNEIGH, index, n))
		}
	}
	for _, n := range in.come {
		ws = append(ws, changeNeighbour(unix.RTM_NEWNEIGH, index, n))
	}
	return ws
}

// find gives a place and a vNIC of ours there; its index is 0 when there is none.
func (ps *pass) find(i plan.Interface) (*space, link, error) {
	s, err := ps.space(i.Namespace)
	if errors.Is(err, ErrVanished) {
		return nil, link{}, nil
	}
	if err != nil {
		return nil, link{}, err
	}
	l, ok, err := ps.linkIn(s, i.Device)
	if err != nil || !ok || l.kind != "veth" {
		return nil, link{}, err
	}
	return s, l, nil
}

// lobby keeps the sockets and indices of the networks' own vNICs from one change to the next: every attach and detach
// needs them, and to open them each time would cost as much as the attach's own messages. It is emptied whenever
// somebody may have changed them, and before a compartment goes, which an open socket would keep alive. Only the appliers
// use it, and they run one after the other.
type lobby struct {
	spaces  map[string]*space
	indices map[plan.Interface]int
}

func (b *lobby) get(i plan.Interface) (c *conn, index int, ok bool) {
	index, ok = b.indices[i]
	if !ok {
		return nil, 0, false
	}
	return b.spaces[i.Namespace].conn, index, true
}

// keep takes the namespace over from the pass that has opened it, and which goes on using it.
func (b *lobby) keep(i plan.Interface, s *space, index int) {
	if b.indices == nil {
		b.spaces, b.indices = map[string]*space{}, map[plan.Interface]int{}
	}
	if b.spaces[i.Namespace] == nil {
		kept := *s
		b.spaces[i.Namespace] = &kept
		s.own = false
	}
	b.indices[i] = index
}

// closeFor empties the lobby when a change touches what is in it.
func (b *lobby) closeFor(d *plan.Delta) {
	for _, c := range d.Namespaces {
		if c.Old != nil && b.spaces[c.Old.Path] != nil || c.New != nil && b.spaces[c.New.Path] != nil {
			b.close()
		}
	}
	for _, c := range d.Ports {
		if c.Old != nil && c.Old.Kind != plan.PortContainer && c.Old.Kind != plan.PortUplink {
			b.close()
		}
	}
}

func (b *lobby) close() {
	for _, s := range b.spaces {
		s.close()
	}
	b.spaces, b.indices = nil, nil
}

// syncIntroductions compares what the networks' own vNICs know with the plan.
func (ps *pass) syncIntroductions(p *plan.Plan) {
	want := map[plan.Interface][]plan.Neighbour{}
	owner := map[plan.Interface]plan.PortID{}
	for _, port := range p.Ports {
		if port.Kind != plan.PortContainer && port.Kind != plan.PortUplink && port.Kind != plan.PortMacvlan {
			i := plan.Interface{Namespace: port.VNIC.Namespace, Device: port.VNIC.Device}
			owner[i] = port.ID
		}
		for _, i := range port.KnownOn {
			want[i] = append(want[i], port.Acquaintance()...)
		}
	}
	have := map[string][]neighbour{} // by namespace, listed once
	for i, id := range owner {
		if ps.ctx.Err() != nil {
			return
		}
		if err := ps.compareNeighbours(i, id, want[i], have); err != nil {
			ps.fail(fmt.Errorf("neighbours on %s in %s: %w", i.Device, place(i.Namespace), err))
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(have)) {
		ps.release(ns)
	}
}

func (ps *pass) compareNeighbours(i plan.Interface, id plan.PortID, want []plan.Neighbour, have map[string][]neighbour) error {
	s, l, err := ps.find(i)
	if err != nil || l.index == 0 {
		return err
	}
	if _, ok := have[i.Namespace]; !ok {
		if have[i.Namespace], err = s.conn.listNeighbours(); err != nil {
			return err
		}
	}
	d := differ{ps: ps, id: string(id), quiet: ps.born[i]}
	d.neighbours("link "+i.Device+" in "+place(i.Namespace), want, l.index, have[i.Namespace])
	return s.conn.write(d.take()...)
}
