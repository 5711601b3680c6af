package netdev

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// takeOver completes a vNIC that its runtime has moved and configured.
func (ps *pass) takeOver(p *plan.Port) error {
	s, err := ps.space(p.VNIC.Namespace)
	if err != nil {
		return err
	}
	if ps.dry == nil {
		if err := ps.n.within(s.fd, func() error { return ps.n.writeSettings(quietVNIC(&p.VNIC)) }); err != nil {
			return err
		}
	}
	return ps.ensurePort(p)
}

// Moved finds a vNIC that was left in the host's namespace for a runtime to take, by the switch side of its pair: its name now, and
// the inode of the network namespace at a path. Nothing is found ("") while it is not there yet, or nothing is at the path.
func (n *Netdev) Moved(device, path string) (name string, inode uint64, err error) {
	near, ok, err := n.host.linkByName(device)
	if err != nil || !ok || !near.ours() {
		return "", 0, err
	}
	fd := -1
	err = n.home.do(func() error {
		fd, inode, err = netnsAt(path)
		return err
	})
	if errors.Is(err, ErrVanished) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	defer unix.Close(fd)
	var links []link
	err = n.within(fd, func() error {
		c, err := n.openConn()
		if err != nil {
			return err
		}
		defer c.close()
		links, err = c.listLinks()
		return err
	})
	for _, l := range links {
		if l.kind == "veth" && l.index == near.peer && l.peer == near.index && l.up() {
			return l.name, inode, nil
		}
	}
	return "", 0, err
}
