package netdev

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A port published on the host's loopback is translated on its way out, and the answer comes in on the host's vNIC. When
// conntrack has turned it back, it is addressed to 127.0.0.1 or ::1, and the kernel has to take that from this device.
// For IPv4 there is a setting (route_localnet). For IPv6 there is none: a look-up of ::1 counts only routes of the
// device that the packet came in on, so each host vNIC gets such a route of its own in the local table. Without it the
// answer counts as Ip6InNoRoutes and the connection hangs.
//
// A container cannot use the route: the nftables guard drops what comes in on these devices with a loopback address.
// Nor does the host: its own ::1 on lo has metric 0 and wins.

// loopbackMetric is where the metrics of these routes start. The index of the device is added, since a second route to
// the same destination with the same metric is refused, on whatever device.
const loopbackMetric = 2048

var loopback6 = netip.PrefixFrom(netip.IPv6Loopback(), 128)

// loopback compares the routes to ::1 on a vNIC: the host's own by which it sends IPv6 need one.
func (d *differ) loopback(object string, v plan.VNIC, index int, have []route) {
	wanted := v.Namespace == "" && (slices.ContainsFunc(v.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) ||
		slices.ContainsFunc(v.Routes, func(r plan.Route) bool { return r.Dst.Addr().Is6() }))
	missing := wanted
	for _, h := range have {
		if h.oif != index || h.dst != loopback6 || h.table != unix.RT_TABLE_LOCAL || h.kind != unix.RTN_LOCAL {
			continue
		}
		if wanted && h.metric == loopbackMetric+index {
			missing = false // whoever made it
			continue
		}
		if h.proto == protoOurs {
			d.found(object, "local route %s metric %d", h.dst, h.metric)
			d.add(loopbackRoute(unix.RTM_DELROUTE, index, h.metric))
		}
	}
	if missing {
		d.found(object, "without local route %s", loopback6)
		d.add(loopbackRoute(unix.RTM_NEWROUTE, index, loopbackMetric+index))
	}
}

// loopbackRoute adds (RTM_NEWROUTE) or deletes a route to ::1 on a device.
func loopbackRoute(kind, index, metric int) write {
	verb, nlFlags, fine := "add", unix.NLM_F_CREATE|unix.NLM_F_EXCL, []unix.Errno(nil)
	if kind == unix.RTM_DELROUTE {
		verb, nlFlags, fine = "delete", 0, []unix.Errno{unix.ESRCH}
	}
	req := nl.NewNetlinkRequest(kind, nlFlags)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET6, Dst_len: uint8(loopback6.Bits()), Table: unix.RT_TABLE_LOCAL,
		Protocol: protoOurs, Type: unix.RTN_LOCAL,
	}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, loopback6.Addr().AsSlice()))
	req.AddData(attrUint32(unix.RTA_OIF, uint32(index)))
	req.AddData(attrUint32(unix.RTA_PRIORITY, uint32(metric)))
	return write{doing: verb + " local route " + loopback6.String(), req: req, what: "local route " + loopback6.String(), fine: fine}
}
