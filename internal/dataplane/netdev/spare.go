package netdev

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A spare is a namespace of the pool with a veth pair in it, down and with the switch's program on it: what is slow about
// an endpoint's port, done beforehand. The names and settings of a port come from the plan, and to rename a device costs
// what it would save. So a spare comes with an endpoint's ID, of which all that follows: whoever makes an endpoint without
// an ID of its own asks for that of a spare (Promise), and the plan's device is there already.
//
// Nothing holds a spare but file descriptors: its namespace, which nobody has named, and the attachment of the program. When the
// daemon ends, however it ends, the kernel takes the namespace and with it both ends of the pair. Until a port has it, no
// map knows its index, so that the program drops whatever comes by it, and its switch side is down.

// spare is a namespace of the pool with a pair in it.
type spare struct {
	*space
	id        plan.PortID
	endpoint  hcn.GUID
	model     model
	near, far link
	// release lets go of the program, unless a port has pinned it.
	release func()
	// until is when a promise ends.
	until time.Time
}

const (
	// spareAlias tells people whose the device is.
	spareAlias = "bulkhead spare"
	// spareVNIC is what the first interface of a compartment is called.
	spareVNIC = "eth0"
	// spareIndex is the index of the first device in a namespace that was just made, after loopback.
	spareIndex = 2
	// promiseLife is how long an ID is kept for whoever asked for it. Between an endpoint and its attachment to a compartment of its own
	// lies a start of a container at most.
	promiseLife = 10 * time.Second
)

// model is what a spare's pair is made like: the last port that a spare could have been. One that is made into another kind of port has
// the difference written.
type model struct {
	mtu      int
	segments plan.Segments
}

// spareable tells that a spare can be this port: the first vNIC of a compartment that is ours.
func spareable(p *plan.Port) bool {
	v := &p.VNIC
	return p.Kind == plan.PortContainer && v.Namespace != "" && v.Device == spareVNIC && !v.Adopted && !v.Parked && p.AltName == ""
}

func modelOf(p *plan.Port) model { return model{p.VNIC.MTU, p.VNIC.Segments} }

// Promise gives the endpoint ID of a spare, which is kept for a while for the port of that endpoint, or "" when there is none. Whoever
// does not need it any more gives it back; after the port is made that does nothing.
func (n *Netdev) Promise() (endpoint hcn.GUID, giveBack func()) {
	endpoint = n.pool.promise()
	return endpoint, func() { n.pool.giveBack(plan.EndpointPortID(endpoint)) }
}

// newSpare puts a veth pair into a namespace of the pool. What fails takes the namespace along.
func (n *Netdev) newSpare(in *space, m model) (*spare, error) {
	endpoint := hcn.NewGUID()
	s := &spare{space: in, endpoint: endpoint, id: plan.EndpointPortID(endpoint), model: m}
	p := &plan.Port{ID: s.id, Device: plan.DeviceName(plan.PortPrefix, s.id), VNIC: plan.VNIC{
		Namespace: "the pool", Device: spareVNIC, MTU: m.mtu, Segments: m.segments, MAC: plan.MAC{2, 0, 0, 0, 0, 1},
	}} // the MAC depends on the network; until then it is in a namespace of its own
	n.pool.note(p.Device)
	if err := n.makeSpare(s, p); err != nil {
		n.drop(s)
		return nil, fmt.Errorf("make a spare pair: %w", err)
	}
	return s, nil
}

func (n *Netdev) makeSpare(s *spare, p *plan.Port) (err error) {
	s.near = link{name: p.Device, kind: "veth", mtu: p.VNIC.MTU, group: groupOurs, flags: unix.IFF_NOARP, peer: spareIndex}
	s.far = link{index: spareIndex, name: spareVNIC, kind: "veth", mtu: p.VNIC.MTU, mac: p.VNIC.MAC}
	c := n.pool.conn
	if err := c.write(newPair(p, s.fd, spareIndex)); err != nil {
		return err
	}
	s.next = spareIndex + 1
	if s.near.index, err = indexAt(c.fd, p.Device); err != nil {
		return fmt.Errorf("find new link %s: %w", p.Device, err)
	}
	s.far.peer = s.near.index
	if err := c.write(setLink("name the spare", s.near.index, 0, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(spareAlias)))); err != nil {
		return err
	}
	if n.opts.Guard != nil {
		if s.release, err = n.opts.Guard(s.near.index); err != nil {
			return err
		}
	}
	if err := n.home.do(func() error { return n.writeSettings(deviceSettings(false, p.Device)) }); err != nil {
		return err
	}
	// It stays down: addresses cost more on a link that has been up for a while.
	return s.conn.write(noLinkLocal(spareVNIC, spareIndex))
}

// drop gives a spare up.
func (n *Netdev) drop(s *spare) {
	if s.near.index != 0 && n.intact(s) {
		if err := n.kill(s.near); err != nil {
			n.log.Warn("a spare goes with its namespace", "link", s.near.name, "error", err)
		}
	}
	s.unhand()
	s.close()
	n.pool.forget(s.near.name)
}

// unhand lets go of the program, which a port has pinned if it is to stay.
func (s *spare) unhand() {
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// intact tells that the switch side is there, under its name.
func (n *Netdev) intact(s *spare) bool {
	index, err := indexAt(n.host.fd, s.near.name)
	return err == nil && index == s.near.index
}

// matchSpares finds the spares that are the ports of new compartments.
func (ps *pass) matchSpares(delta *plan.Delta) {
	fresh := map[string]bool{}
	for _, c := range delta.Namespaces {
		if c.Old == nil && c.New != nil && c.New.Adopted == nil {
			fresh[c.New.Path] = true
		}
	}
	for _, id := range sortedPorts(delta.Ports) {
		c := delta.Ports[id]
		if c.New == nil || c.Old != nil {
			continue
		}
		s := ps.n.pool.claim(id)
		path := c.New.VNIC.Namespace
		fits := spareable(c.New) && fresh[path] && ps.spares[path] == nil
		if fits {
			ps.n.pool.like(modelOf(c.New))
		}
		switch {
		case s == nil:
		case fits && ps.n.intact(s):
			ps.spares[path] = s
		default:
			ps.n.drop(s) // what is to be made in its place waits for its end, see create
		}
	}
}

// dropUnmatched gives up the spares whose compartments were there already.
func (ps *pass) dropUnmatched() {
	for path, s := range ps.spares {
		if ps.spaces[path] != s.space {
			delete(ps.spares, path)
			ps.n.drop(s)
			continue
		}
		ps.n.taken = append(ps.n.taken, s)
	}
}

// spareOf is the spare that is to be a port's pair, or nil.
func (ps *pass) spareOf(p *plan.Port) *spare {
	if s := ps.spares[p.VNIC.Home()]; s != nil && s.id == p.ID {
		return s
	}
	return nil
}

// adoptSpare makes a spare a port's pair.
func (ps *pass) adoptSpare(p *plan.Port, s *spare) error {
	ps.n.known.note(p, true)
	ps.n.known.born(p.Device, s.near.index)
	near, far := s.near, s.far
	if modelOf(p) != s.model {
		for _, end := range []struct {
			c *conn
			l *link
		}{{ps.n.host, &near}, {s.conn, &far}} {
			l, ok, err := end.c.linkByName(end.l.name)
			if err != nil || !ok {
				return fmt.Errorf("look at the spare link %s: %w", end.l.name, errors.Join(err, missingIf(!ok)))
			}
			*end.l = l
		}
	}
	return ps.configure(p, s.space, near, far, nil, true)
}

// releaseSpares lets go of the programs of the spares that have become ports. Those are pinned by now; where something failed before
// that, the port is made again or goes.
func (n *Netdev) releaseSpares() {
	for _, s := range n.taken {
		s.unhand()
	}
	n.taken = nil
}
