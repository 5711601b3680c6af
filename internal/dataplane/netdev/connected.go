package netdev

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// With each address the kernel makes routes: one to the address itself, one to its subnet, one to the subnet's broadcast
// address. Nobody else puts them back when somebody flushes a table, and no route of ours that names a gateway can be
// without the second. They are made as the kernel makes them, so that they go with their address. Taking the address
// away and giving it back would cut connections and take further routes along. The route to an IPv6 address itself is not
// among them: the kernel makes it a moment after the address, so that missing it says nothing.

// kernelRoute is a route that the kernel makes with an address.
type kernelRoute struct {
	dst         netip.Prefix
	src         netip.Addr // IPv4 alone has one
	table, kind uint8
	scope       uint8
	metric      int
}

// metricKernel6 is the metric of an IPv6 subnet's route (IP6_RT_PRIO_ADDRCONF).
const metricKernel6 = 256

func kernelRoutes(a netip.Prefix) []kernelRoute {
	self := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
	if a.Addr().Is6() {
		if a == self {
			return nil
		}
		return []kernelRoute{{dst: a.Masked(), table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST, metric: metricKernel6}}
	}
	out := []kernelRoute{{dst: self, src: a.Addr(), table: unix.RT_TABLE_LOCAL, kind: unix.RTN_LOCAL, scope: unix.RT_SCOPE_HOST}}
	if a != self {
		out = append(out, kernelRoute{dst: a.Masked(), src: a.Addr(), table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST, scope: unix.RT_SCOPE_LINK})
	}
	if b, ok := broadcast(a); ok {
		out = append(out, kernelRoute{dst: netip.PrefixFrom(b, 32), src: a.Addr(), table: unix.RT_TABLE_LOCAL, kind: unix.RTN_BROADCAST, scope: unix.RT_SCOPE_LINK})
	}
	return out
}

// connected compares the routes of the addresses that a vNIC has. One that is down, or an address that is only just
// coming, has none yet: the kernel makes them.
func (d *differ) connected(object string, v plan.VNIC, l link, addrs []address, have []route) {
	if !l.up() {
		return
	}
	seen := map[netip.Prefix]bool{}
	for _, a := range addrs {
		ours := slices.Contains(v.Addrs, a.prefix) || a.prefix.Addr() == v.LinkLocal
		if a.index != l.index || !ours || a.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_SECONDARY) != 0 {
			continue
		}
		for _, k := range kernelRoutes(a.prefix) {
			own := k.table == unix.RT_TABLE_MAIN && hasOwnRoute(v, a.prefix)
			if own || seen[k.dst] || slices.ContainsFunc(have, func(h route) bool { return k.is(h, l.index) }) {
				continue
			}
			seen[k.dst] = true
			d.found(object, "without route %s", k.dst)
			d.add(k.add(l.index))
		}
	}
}

// is tells that a route does what this one does, whoever made it.
func (k kernelRoute) is(h route, index int) bool {
	return h.oif == index && h.dst == k.dst && h.table == int(k.table) && h.kind == k.kind && !h.via.IsValid()
}

func (k kernelRoute) add(index int) write {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	head := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET, Dst_len: uint8(k.dst.Bits()), Table: k.table, Protocol: unix.RTPROT_KERNEL, Type: k.kind, Scope: k.scope,
	}}
	if k.dst.Addr().Is6() {
		head.Family = unix.AF_INET6
	}
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, k.dst.Addr().AsSlice()))
	req.AddData(attrUint32(unix.RTA_OIF, uint32(index)))
	if k.src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, k.src.AsSlice()))
	}
	if k.metric != 0 {
		req.AddData(attrUint32(unix.RTA_PRIORITY, uint32(k.metric)))
	}
	return write{doing: "add route " + k.dst.String(), req: req, what: "route " + k.dst.String(), fine: []unix.Errno{unix.EEXIST}}
}
