package netdev

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A tunnel port is a VXLAN device whose destinations come with each packet ("external"). It holds the UDP port: with a socket
// there, the kernel puts the segments of a tunnelled stream together before the programs see them (GRO), which spares them most
// of their work. And it takes what the programs do not encapsulate or unpack by themselves.
//
// That of encrypted networks has its socket in a compartment (Below), from which WireGuard alone leads out. It is born there and put
// into the host's namespace by the same message; the kernel deletes it with the compartment.

// newTunnel makes the device, down and without ARP, in the namespace behind the file descriptor into, -1: that of the socket.
func newTunnel(p *plan.Port, into int) write {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Flags, head.Change = unix.IFF_NOARP, unix.IFF_NOARP
	req.AddData(head)
	req.AddData(attrName(p.Device))
	req.AddData(attrUint32(unix.IFLA_MTU, uint32(p.VNIC.MTU)))
	req.AddData(attrUint32(unix.IFLA_GROUP, groupOurs))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_FLOWBASED, []byte{1})
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, []byte{0})
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, []byte{byte(p.UDPPort >> 8), byte(p.UDPPort)})
	// Over IPv6, some peers send no checksum; all accept one.
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, []byte{1})
	req.AddData(info)
	if into >= 0 {
		req.AddData(attrUint32(unix.IFLA_NET_NS_FD, uint32(into)))
	}
	return write{doing: "create VXLAN device " + p.Device, req: req, what: fmt.Sprintf("vxlan external dstport %d", p.UDPPort)}
}

// ensureTunnel makes a tunnel port's device, or mends it.
func (ps *pass) ensureTunnel(p *plan.Port) error {
	l, ok, err := ps.hostLink(p.Device)
	if err != nil {
		return err
	}
	if ok && !l.ours() {
		return foreignLink(l)
	}
	below, err := ps.numberOf(p.Below)
	if err != nil {
		return err
	}
	if ok && (l.kind != "vxlan" || l.group == groupDying || l.below != below) {
		if err := ps.write(ps.n.host, string(p.ID), "link "+p.Device, deleteLink(l)); err != nil {
			return err
		}
		ps.forget(p.Device)
		ok = false
	}
	if !ok {
		ps.found(string(p.ID), "link "+p.Device, "missing")
		if l, err = ps.makeTunnel(p); err != nil || ps.dry != nil {
			return err
		}
	}
	if ps.dry == nil {
		ps.n.known.note(p, !ok)
		ps.n.known.born(p.Device, l.index)
	}
	d := differ{ps: ps, id: string(p.ID), quiet: !ok}
	d.near(p, l, !ok)
	if err := ps.write(ps.n.host, d.id, "link "+p.Device, d.take()...); err != nil {
		return err
	}
	return ps.ensureSettings(!ok, d.id, deviceSettings(false, p.Device))
}

// numberOf is the number that the host's namespace has for a compartment, -1 without one.
func (ps *pass) numberOf(path string) (int, error) {
	if path == "" || ps.dry != nil {
		return -1, nil
	}
	s, err := ps.space(path)
	if err != nil {
		return -1, err
	}
	return ps.n.host.namespaceID(s.fd)
}

// namespaceID is the number of the namespace behind a file descriptor, -1 if it has none.
func (c *conn) namespaceID(fd int) (int, error) {
	msgs, err := c.request(unix.RTM_GETNSID, 0, nl.NewRtGenMsg(), attrUint32(unix.NETNSA_FD, uint32(fd)))
	if err != nil {
		return -1, fmt.Errorf("ask for the number of a namespace: %w", err)
	}
	id := -1
	for _, m := range msgs {
		const head = 4 // struct rtgenmsg, padded
		if len(m) < head {
			continue
		}
		eachAttr(m[head:], func(kind uint16, v []byte) {
			if kind == unix.NETNSA_NSID {
				id = int(int32(nl.NativeEndian().Uint32(v)))
			}
		})
	}
	return id, nil
}

func (ps *pass) makeTunnel(p *plan.Port) (link, error) {
	c, into := ps.n.host, -1
	if p.Below == "" {
		if err := ps.n.home.do(func() error { return portIsFree(p.UDPPort) }); err != nil {
			return link{}, err
		}
	} else if ps.dry == nil {
		s, err := ps.space(p.Below)
		if err != nil {
			return link{}, err
		}
		c, into = s.conn, ps.n.home.net
	}
	if err := ps.write(c, string(p.ID), "link "+p.Device, newTunnel(p, into)); err != nil || ps.dry != nil {
		return link{}, err
	}
	ps.forget(p.Device)
	l, ok, err := ps.n.host.linkByName(p.Device)
	if err != nil || !ok {
		return l, fmt.Errorf("find new link %s: %w", p.Device, errors.Join(err, missingIf(!ok)))
	}
	if ps.links != nil {
		ps.links[l.name] = l
	}
	return l, nil
}

// portIsFree asks before the device is set up, for its own answer would come when the port's programs are in place.
func portIsFree(port uint16) error {
	for _, family := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(family, &net.UDPAddr{Port: int(port)})
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("UDP port %d, for tunnels, is used by another program or VXLAN device of this host (`ss -lunp` and `ip -d link show type vxlan` name it): "+
				"stop that, or give the network another port with the policy VxlanPort: %w", port, err)
		}
		if err == nil {
			err = c.Close()
		}
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("try UDP port %d, for tunnels: %w", port, err)
		}
	}
	return nil
}
