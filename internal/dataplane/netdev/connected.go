package netdev

import (
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// With each address the kernel makes routes: one to the address itself, one to its subnet, one to the subnet's broadcast
// address. Nobody else puts them back when somebody flushes a table, and no route of ours that names a gateway can be
// without the second. They are made as the kernel makes them, so that they go with their address. Taking the address
// away and giving it back would cut connections and take further routes along. The kernel makes the route to an IPv6 address
// itself a moment after the address, so it counts as missing only when the address has been there for a while. What is put in its
// place has a metric that the kernel's own has not, and does not go with its address: it is taken away when that has gone.

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

// metricLocal6 is the least that one can give an IPv6 route which is not the kernel's; the kernel's to an address has 0.
const metricLocal6 = 1

// settled is how old an IPv6 address is when its own route has long been there.
const settled = time.Second

// groups6 is where IPv6 multicast leaves a device.
var groups6 = netip.MustParsePrefix("ff00::/8")

func kernelRoutes(a netip.Prefix, old bool) (out []kernelRoute) {
	self := netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
	if a.Addr().Is6() {
		if a != self {
			out = append(out, kernelRoute{dst: a.Masked(), table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST, metric: metricKernel6})
		}
		if old {
			out = append(out,
				kernelRoute{dst: self, table: unix.RT_TABLE_LOCAL, kind: unix.RTN_LOCAL, metric: metricLocal6},
				kernelRoute{dst: groups6, table: unix.RT_TABLE_LOCAL, kind: unix.RTN_MULTICAST, metric: metricKernel6})
		}
		return out
	}
	out = []kernelRoute{{dst: self, src: a.Addr(), table: unix.RT_TABLE_LOCAL, kind: unix.RTN_LOCAL, scope: unix.RT_SCOPE_HOST}}
	if a != self {
		out = append(out, kernelRoute{dst: a.Masked(), src: a.Addr(), table: unix.RT_TABLE_MAIN, kind: unix.RTN_UNICAST, scope: unix.RT_SCOPE_LINK})
	}
	if b, ok := plan.Broadcast(a); ok {
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
		for _, k := range kernelRoutes(a.prefix, a.age() > settled) {
			own := k.table == unix.RT_TABLE_MAIN && hasOwnRoute(v, a.prefix)
			if own || seen[k.dst] || slices.ContainsFunc(have, func(h route) bool { return k.is(h, l.index) }) {
				continue
			}
			seen[k.dst] = true
			d.found(object, "without route %s", k.dst)
			taken := d.inPlace(have, k.dst, int(k.table), k.metric)
			d.add(k.add(l.index, taken))
		}
	}
	d.left(object, l.index, addrs, have)
}

// left takes away what was put in place of the route to an IPv6 address that is no longer there.
func (d *differ) left(object string, index int, addrs []address, have []route) {
	for _, h := range have {
		ours := h.oif == index && h.table == unix.RT_TABLE_LOCAL && h.kind == unix.RTN_LOCAL && h.proto == unix.RTPROT_KERNEL &&
			h.metric == metricLocal6 && h.dst.Addr().Is6()
		if !ours || slices.ContainsFunc(addrs, func(a address) bool { return a.index == index && a.prefix.Addr() == h.dst.Addr() }) {
			continue
		}
		d.found(object, "local route %s", h.dst)
		k := kernelRoute{dst: h.dst, table: unix.RT_TABLE_LOCAL, kind: unix.RTN_LOCAL, metric: metricLocal6}
		d.add(k.request("delete", unix.RTM_DELROUTE, 0, index, unix.ESRCH))
	}
}

// inPlace tells that another route has the place of one of ours, inside a compartment. Those are the plan's to repair; on the host
// it is somebody's will.
func (d *differ) inPlace(have []route, dst netip.Prefix, table, metric int) bool {
	return d.inside && slices.ContainsFunc(have, func(h route) bool { return h.dst == dst && h.table == table && h.metric == metric })
}

// is tells that a route does what this one does, whoever made it.
func (k kernelRoute) is(h route, index int) bool {
	return h.oif == index && h.dst == k.dst && h.table == int(k.table) && h.kind == k.kind && !h.via.IsValid()
}

// add makes the route; taken says that another one is in its place.
func (k kernelRoute) add(index int, taken bool) write {
	if taken {
		return k.request("put back", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, unix.EEXIST)
	}
	return k.request("add", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, unix.EEXIST)
}

func (k kernelRoute) request(verb string, kind, flags, index int, fine unix.Errno) write {
	req := nl.NewNetlinkRequest(kind, flags)
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
	return write{doing: verb + " route " + k.dst.String(), req: req, what: "route " + k.dst.String(), fine: []unix.Errno{fine}}
}
