package netdev

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// addrGenNone keeps the kernel from making a link-local address of its own (IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1

func attrUint32(kind int, v uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(v)) }
func attrName(v string) *nl.RtAttr             { return nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v)) }

// newPair makes a veth pair: the switch side in the namespace of the socket, down and without ARP, and the vNIC in the
// namespace behind the file descriptor far (-1: the same one). index fixes the vNIC's index where the caller knows that
// it is free, which saves a look-up; 0 leaves it to the kernel. One queue is enough for a pair and saves 0.1 ms.
func newPair(p *plan.Port, far, index int) write {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Flags, head.Change = unix.IFF_NOARP, unix.IFF_NOARP
	req.AddData(head)
	for _, a := range birth(p.Device, p.VNIC) {
		req.AddData(a)
	}
	req.AddData(attrUint32(unix.IFLA_GROUP, groupOurs))

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC).Index = int32(index)
	for _, a := range birth(p.VNIC.Device, p.VNIC) {
		peer.AddChild(a)
	}
	peer.AddRtAttr(unix.IFLA_ADDRESS, p.VNIC.MAC[:])
	if far >= 0 {
		peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(far)))
	} else {
		peer.AddRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(groupOurs))
	}
	req.AddData(info)
	return write{
		doing: "create veth pair " + p.Device + " and " + p.VNIC.Device, req: req,
		what: "veth, its other end is " + p.VNIC.Device + " in " + place(p.VNIC.Namespace),
	}
}

func birth(name string, v plan.VNIC) []*nl.RtAttr {
	return append([]*nl.RtAttr{
		attrName(name), attrUint32(unix.IFLA_MTU, uint32(v.MTU)),
		attrUint32(unix.IFLA_NUM_TX_QUEUES, 1), attrUint32(unix.IFLA_NUM_RX_QUEUES, 1),
	}, segmentAttrs(v.Segments)...)
}

// setLink changes a link that is named by index; flags says which of IFF_UP, IFF_NOARP to turn on.
func setLink(doing string, index int, flags uint32, attrs ...*nl.RtAttr) write {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Flags, head.Change = int32(index), flags, flags
	req.AddData(head)
	for _, a := range attrs {
		req.AddData(a)
	}
	return write{doing: doing, req: req}
}

// noLinkLocal keeps IPv6 on a link from giving itself an address. It has to come before the message that sets the link
// up. A link without IPv6 (kernel, or MTU below 1,280) needs none.
func noLinkLocal(name string, index int) write {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenNone})
	w := setLink("turn off the kernel's link-local address of "+name, index, 0, spec)
	w.fine = []unix.Errno{unix.EAFNOSUPPORT}
	return w
}

func altName(index int, name string, kind int) write {
	verb := "give"
	if kind == unix.RTM_DELLINKPROP {
		verb = "take away"
	}
	req := nl.NewNetlinkRequest(kind, 0)
	if kind == unix.RTM_NEWLINKPROP {
		req.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_APPEND
	}
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	req.AddData(head)
	props := nl.NewRtAttr(unix.IFLA_PROP_LIST|unix.NLA_F_NESTED, nil)
	props.AddRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name))
	req.AddData(props)
	return write{doing: verb + " the further name " + name, req: req, what: "further name " + name}
}

// deleteLink deletes one link and waits for the kernel's grace period.
func deleteLink(l link) write {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(l.index)
	req.AddData(head)
	return write{doing: "delete link " + l.name, req: req, what: l.kind, fine: []unix.Errno{unix.ENODEV}}
}

// deleteGroup deletes all links of a group in one go.
func deleteGroup(group uint32) write {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(attrUint32(unix.IFLA_GROUP, group))
	return write{doing: "delete dying links", req: req, fine: []unix.Errno{unix.ENODEV}}
}

// changeAddress adds (RTM_NEWADDR) or deletes an address. IPv6 addresses are never probed for duplicates: the plan gave
// each to one port, and the switch lets no other use it.
func changeAddress(kind, index int, p netip.Prefix, ownRoute bool) write {
	family, flags := uint8(unix.AF_INET), uint32(0)
	if p.Addr().Is6() {
		family, flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	if ownRoute {
		flags |= unix.IFA_F_NOPREFIXROUTE
	}
	verb, nlFlags, fine := "add", unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.EEXIST
	if kind == unix.RTM_DELADDR {
		verb, nlFlags, fine = "delete", 0, unix.EADDRNOTAVAIL
	}
	req := nl.NewNetlinkRequest(kind, nlFlags)
	head := nl.NewIfAddrmsg(int(family))
	head.Index, head.Prefixlen = uint32(index), uint8(p.Bits())
	if p.Addr().IsLinkLocalUnicast() {
		head.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	if kind == unix.RTM_NEWADDR {
		if b, ok := plan.Broadcast(p); ok {
			req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, b.AsSlice()))
		}
		req.AddData(attrUint32(unix.IFA_FLAGS, flags))
		req.AddData(nl.NewRtAttr(ifaProto, []byte{protoOurs}))
	}
	words := func() (doing, what string) { return fmt.Sprintf("%s address %s", verb, p), "address " + p.String() }
	return write{words: words, req: req, fine: []unix.Errno{fine}}
}

// changeRoute adds (RTM_NEWROUTE) or deletes a route of the main table.
func changeRoute(kind, index int, r plan.Route) write {
	verb, nlFlags, fine := "add", unix.NLM_F_CREATE|unix.NLM_F_EXCL, []unix.Errno(nil)
	if kind == unix.RTM_DELROUTE {
		verb, nlFlags, fine = "delete", 0, []unix.Errno{unix.ESRCH}
	}
	req := nl.NewNetlinkRequest(kind, nlFlags)
	head := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET, Dst_len: uint8(r.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: protoOurs, Type: unix.RTN_UNICAST,
	}}
	if r.Dst.Addr().Is6() {
		head.Family = unix.AF_INET6
	}
	if !r.Via.IsValid() {
		head.Scope = unix.RT_SCOPE_LINK
	}
	if r.OnLink && r.Via.IsValid() {
		head.Flags = unix.RTNH_F_ONLINK
	}
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	req.AddData(attrUint32(unix.RTA_OIF, uint32(index)))
	if r.Via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
	}
	if r.Metric != 0 {
		req.AddData(attrUint32(unix.RTA_PRIORITY, uint32(r.Metric)))
	}
	return write{words: func() (doing, what string) { return verb + " route " + routeText(r), "route " + routeText(r) }, req: req, fine: fine}
}

func routeText(r plan.Route) string {
	s := r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s
}
