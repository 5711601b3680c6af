package netdev

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A macvlan port has no switch side: its vNIC is a macvlan device of a NIC, born in the compartment. The kernel takes its MAC into the
// NIC's filter and out again, and the device goes with either, so nothing on the host has to be recorded or undone. What could be left
// over is a device in a compartment that stays: the first comparison of a run looks for those (sweepMacvlans).

const macvlanKind = "macvlan"

// newMacvlan makes the device in the namespace behind the file descriptor.
func newMacvlan(p *plan.Port, nic, fd int) write {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	for _, a := range birth(p.VNIC.Device, p.VNIC) {
		req.AddData(a)
	}
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, p.VNIC.MAC[:]))
	req.AddData(attrUint32(unix.IFLA_LINK, uint32(nic)))
	req.AddData(attrUint32(unix.IFLA_NET_NS_FD, uint32(fd)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(macvlanKind))
	const bridge = 4 // MACVLAN_MODE_BRIDGE: those of one NIC reach each other
	info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(bridge))
	req.AddData(info)
	return write{doing: fmt.Sprintf("create macvlan device %s of %s", p.VNIC.Device, p.VNIC.Lower), req: req, what: "macvlan of " + p.VNIC.Lower + ", mode bridge"}
}

// ensureMacvlan makes a macvlan port's device, or mends it.
func (ps *pass) ensureMacvlan(p *plan.Port) error {
	s, err := ps.space(p.VNIC.Namespace)
	if err != nil {
		return err
	}
	object := "link " + p.VNIC.Device + " in " + place(s.path)
	nic, there, err := ps.hostLink(p.VNIC.Lower)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("make %s: the NIC %s is gone: %w", object, p.VNIC.Lower, unix.ENODEV)
	}
	if s.unborn() {
		return ps.previewMacvlan(p, s, nic)
	}
	l, ok, err := ps.linkIn(s, p.VNIC.Device)
	if err != nil {
		return err
	}
	unmarked := l.kind == macvlanKind && l.alias == "" && l.mac == p.VNIC.MAC // the daemon died between its birth and its mark
	if ok && l.alias != p.VNIC.Alias && !unmarked {
		return taken(p, unix.EEXIST)
	}
	if ok && (l.kind != macvlanKind || l.peer != nic.index) {
		ps.found(string(p.ID), object, "a %s of another device", l.kind)
		if err := ps.write(s.conn, string(p.ID), object, deleteLink(l)); err != nil {
			return err
		}
		s.listed, ok = false, false
	} else if !ok {
		ps.found(string(p.ID), object, "missing")
	}
	if !ok && ps.dry != nil {
		return ps.previewMacvlan(p, s, nic)
	}
	fresh := !ok
	if fresh {
		if l, err = ps.makeMacvlan(p, s, nic); err != nil {
			return err
		}
	} else if err := s.list(); err != nil {
		return fmt.Errorf("list %s: %w", place(s.path), err)
	}
	d := differ{ps: ps, id: string(p.ID), quiet: fresh, inside: true}
	d.far(p, s, l, nil, fresh)
	return ps.write(s.conn, d.id, object, d.take()...)
}

func (ps *pass) makeMacvlan(p *plan.Port, s *space, nic link) (link, error) {
	if err := ps.n.host.write(newMacvlan(p, nic.index, s.fd)); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: this kernel has no macvlan (CONFIG_MACVLAN), or %s takes none: make the network without --macvlan", err, nic.name)
		}
		return link{}, err
	}
	l, ok, err := s.conn.linkByName(p.VNIC.Device)
	if err != nil || !ok {
		return l, fmt.Errorf("find new interface %s: %w", p.VNIC.Device, errors.Join(err, missingIf(!ok)))
	}
	// The kernel tells of what happens in there to who has a number for the namespace: a veth pair gives one, this does not.
	if err := ps.n.host.write(numberNamespace(s.fd)); err != nil {
		return l, err
	}
	if p.VNIC.Adopted {
		return l, ps.n.within(s.fd, func() error { return ps.n.writeSettings(quietVNIC(&p.VNIC)) })
	}
	return l, nil
}

// previewMacvlan is makeMacvlan, and what it gets.
func (ps *pass) previewMacvlan(p *plan.Port, s *space, nic link) error {
	object := "link " + p.VNIC.Device + " in " + place(s.path)
	ps.dry.note(string(p.ID), object, newMacvlan(p, nic.index, s.fd))
	d := differ{ps: ps, id: string(p.ID), quiet: true, inside: true}
	d.far(p, s, link{name: p.VNIC.Device, kind: macvlanKind, mtu: p.VNIC.MTU, mac: p.VNIC.MAC}, nil, true)
	return ps.write(s.conn, d.id, object, d.take()...)
}

// numberNamespace gives a namespace a number in the host's.
func numberNamespace(fd int) write {
	req := nl.NewNetlinkRequest(unix.RTM_NEWNSID, 0)
	req.AddData(&nl.RtGenMsg{})
	const anyNumber, numberAttr, fdAttr = 0xffffffff, 1, 3 // NETNSA_NSID, NETNSA_FD
	req.AddData(attrUint32(numberAttr, anyNumber))
	req.AddData(attrUint32(fdAttr, uint32(fd)))
	return write{doing: "number a compartment", req: req, fine: []unix.Errno{unix.EEXIST}}
}

// dropMacvlan deletes the device of a port that goes, or that is another one from now on.
func (ps *pass) dropMacvlan(c plan.Change[plan.Port]) error {
	if c.Old == nil || c.New != nil && c.New.VNIC.Namespace == c.Old.VNIC.Namespace && c.New.VNIC.Device == c.Old.VNIC.Device {
		return nil
	}
	err := ps.killMacvlan(c.Old)
	if err != nil {
		ps.n.swept.Store(false)
	}
	return portError(c.Old, err)
}

// killMacvlan deletes a macvlan port's device. A compartment that is gone has taken it along.
func (ps *pass) killMacvlan(p *plan.Port) error {
	s, err := ps.space(p.VNIC.Namespace)
	if errors.Is(err, ErrVanished) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.unborn() {
		return nil
	}
	l, ok, err := ps.linkIn(s, p.VNIC.Device)
	if err != nil || !ok || l.kind != macvlanKind || l.alias != p.VNIC.Alias {
		return err
	}
	return ps.write(s.conn, string(p.ID), "link "+l.name+" in "+place(s.path), deleteLink(l))
}

// sweepMacvlans deletes devices that a daemon left in compartments when it died between the row and the kernel. What a run does
// itself it needs no search for, unless it failed.
func (ps *pass) sweepMacvlans(p *plan.Plan) error {
	if ps.n.swept.Load() {
		return nil
	}
	wanted := map[string]bool{}
	for _, port := range p.Ports {
		if port.Kind == plan.PortMacvlan {
			wanted[port.VNIC.Namespace+" "+port.VNIC.Alias] = true
		}
	}
	paths, err := ps.n.listNamespaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		s, err := ps.space(path)
		if errors.Is(err, ErrVanished) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		links, err := s.conn.listLinks()
		if err != nil {
			errs = append(errs, fmt.Errorf("list the links in %s: %w", path, err))
		}
		for _, l := range links {
			if l.kind == macvlanKind && strings.HasPrefix(l.alias, "bulkhead endpoint ") && !wanted[path+" "+l.alias] {
				ps.n.log.InfoContext(ps.ctx, "removing left-over link", "link", l.name, "namespace", path, "alias", l.alias)
				errs = append(errs, s.conn.write(deleteLink(l)))
			}
		}
		ps.release(path)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	ps.n.swept.Store(true)
	return nil
}

// Traffic are the counters that the kernel keeps for an interface.
type Traffic struct {
	RxPackets, RxBytes, RxDropped uint64
	TxPackets, TxBytes, TxDropped uint64
}

// Traffic reads the counters of an interface in a compartment.
func (n *Netdev) Traffic(namespace, device string) (t Traffic, err error) {
	err = n.Enter(namespace, func() error {
		c, err := n.openConn()
		if err != nil {
			return err
		}
		defer c.close()
		msgs, err := c.request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), attrName(device))
		if err != nil || len(msgs) == 0 {
			return fmt.Errorf("read the counters of %s: %w", device, errors.Join(err, missingIf(len(msgs) == 0)))
		}
		ne := nl.NativeEndian()
		eachAttr(msgs[0][unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
			if kind == unix.IFLA_STATS64 && len(v) >= 8*8 {
				at := func(i int) uint64 { return ne.Uint64(v[8*i:]) } // struct rtnl_link_stats64
				t = Traffic{RxPackets: at(0), TxPackets: at(1), RxBytes: at(2), TxBytes: at(3), RxDropped: at(6), TxDropped: at(7)}
			}
		})
		return nil
	})
	return t, err
}
