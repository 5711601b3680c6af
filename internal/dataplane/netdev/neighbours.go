package netdev

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The kernel has one neighbour table per family for all namespaces, and stops at gc_thresh3 entries (1,024 unless the
// administrator raised it). Entries in use, REACHABLE or being probed, cannot be evicted, so some hundred containers that
// talk within half a minute fill it, and then a new one cannot resolve its own gateway ("neighbour table overflow").
// Permanent entries are not counted and need no probing. Nearly all of a container's traffic goes to its gateway, so there
// they are: for the gateway on each vNIC, for each container on the host's vNIC and the resolver's. What a container
// resolves by itself, its peers on the same switch, stays with the kernel: all for all would be a square.

// ndaProtocol is NDA_PROTOCOL, which came with Linux 5.0: ours are marked like addresses and routes.
const ndaProtocol = 12

type neighbour struct {
	plan.Neighbour
	index int
	state uint16
	flags uint8
	proto uint8
}

func parseNeighbour(m []byte) neighbour {
	if len(m) < unix.SizeofNdMsg {
		return neighbour{}
	}
	ne := nl.NativeEndian()
	n := neighbour{index: int(int32(ne.Uint32(m[4:]))), state: ne.Uint16(m[8:]), flags: m[10]}
	eachAttr(m[unix.SizeofNdMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_DST:
			n.Addr, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			copy(n.MAC[:], v)
		case ndaProtocol:
			n.proto = v[0]
		}
	})
	return n
}

// neighbourHead is the kernel's struct ndmsg.
type neighbourHead struct {
	family uint8
	index  int
	state  uint16
	flags  uint8
}

func (h neighbourHead) Len() int { return unix.SizeofNdMsg }

func (h neighbourHead) Serialize() []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = h.family
	nl.NativeEndian().PutUint32(b[4:], uint32(h.index))
	nl.NativeEndian().PutUint16(b[8:], h.state)
	b[10] = h.flags
	return b
}

func (c *conn) listNeighbours() ([]neighbour, error) {
	msgs, err := c.dump(unix.RTM_GETNEIGH, neighbourHead{family: unix.AF_UNSPEC})
	return parseAll(msgs, parseNeighbour), err
}

// neighbour looks at one entry.
func (c *conn) neighbour(index int, a netip.Addr) (neighbour, bool, error) {
	head := neighbourHead{family: unix.AF_INET, index: index}
	if a.Is6() {
		head.family = unix.AF_INET6
	}
	msgs, err := c.request(unix.RTM_GETNEIGH, 0, head, nl.NewRtAttr(unix.NDA_DST, a.AsSlice()))
	if errors.Is(err, unix.ENOENT) {
		return neighbour{}, false, nil
	}
	if err != nil || len(msgs) == 0 {
		return neighbour{}, false, err
	}
	return parseNeighbour(msgs[0]), true, nil
}

// neighboursOf lists entries of a vNIC in a compartment; those of the networks' own are compared later
// (syncIntroductions). A listing walks the tables of all namespaces. So a Sync, which looks at all compartments, asks for
// the wanted entries only: what else there could be of ours was taken away by the change that made it superfluous.
func (ps *pass) neighboursOf(p *plan.Port, s *space, l link) ([]neighbour, error) {
	if p.Kind != plan.PortContainer || s.path == "" {
		return nil, nil
	}
	if !ps.report {
		return s.conn.listNeighbours()
	}
	var have []neighbour
	for _, want := range p.VNIC.Neighbours {
		n, ok, err := s.conn.neighbour(l.index, want.Addr)
		if err != nil {
			return nil, err
		}
		if ok {
			have = append(have, n)
		}
	}
	return have, nil
}

// changeNeighbour puts a permanent entry (RTM_NEWNEIGH), whatever was there, or deletes one.
func changeNeighbour(kind, index int, n plan.Neighbour) write {
	head := neighbourHead{family: unix.AF_INET, index: index}
	if n.Addr.Is6() {
		head.family = unix.AF_INET6
	}
	verb, flags, fine := "delete", 0, []unix.Errno{unix.ENOENT, unix.ENODEV}
	if kind == unix.RTM_NEWNEIGH {
		verb, flags, fine = "set", unix.NLM_F_CREATE|unix.NLM_F_REPLACE, nil
		head.state = unix.NUD_PERMANENT
	}
	req := nl.NewNetlinkRequest(kind, flags)
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.NDA_DST, n.Addr.AsSlice()))
	if kind == unix.RTM_NEWNEIGH {
		req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, n.MAC[:]))
		req.AddData(nl.NewRtAttr(ndaProtocol, []byte{protoOurs}))
	}
	words := func() (doing, what string) {
		return fmt.Sprintf("%s neighbour %s", verb, n.Addr), fmt.Sprintf("neighbour %s at %s", n.Addr, n.MAC)
	}
	return write{words: words, req: req, fine: fine}
}

// neighbours compares the entries of a device. Somebody else's for other addresses are left alone.
func (d *differ) neighbours(object string, want []plan.Neighbour, index int, have []neighbour) {
	missing := make(map[plan.Neighbour]bool, len(want))
	addrs := make(map[netip.Addr]bool, len(want))
	for _, n := range want {
		missing[n], addrs[n.Addr] = true, true
	}
	for _, h := range have {
		if h.index != index || h.proto != protoOurs {
			continue
		}
		if h.state&unix.NUD_PERMANENT != 0 && missing[h.Neighbour] {
			delete(missing, h.Neighbour)
		} else if !addrs[h.Addr] {
			d.found(object, "neighbour %s", h.Addr)
			d.add(changeNeighbour(unix.RTM_DELNEIGH, index, h.Neighbour))
		}
	}
	const few = 3 // a device that was down has lost a thousand
	for _, n := range want {
		if missing[n] {
			if len(missing) <= few {
				d.found(object, "without neighbour %s at %s", n.Addr, n.MAC)
			}
			d.add(changeNeighbour(unix.RTM_NEWNEIGH, index, n))
		}
	}
	if len(missing) > few {
		d.found(object, "without %d neighbours", len(missing))
	}
}
