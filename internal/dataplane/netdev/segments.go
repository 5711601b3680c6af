package netdev

import (
	"github.com/vishvananda/netlink/nl"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// BIG TCP: segments above 64 KiB between the stacks of one machine. The setting is a device's own; veth takes it, and
// every packet of a stream that is not sent spares its whole way through two stacks. Plan.segments says where it is safe.
//
// Attributes of a link: those for IPv6, and for all in older kernels, came with Linux 5.19 (IFLA_GSO_MAX_SIZE is older, but
// took no more than 64 KiB), those for IPv4 with 6.3.
const (
	iflaGSOMaxSize     = 41
	iflaGROMaxSize     = 58
	iflaTSOMaxSize     = 59
	iflaGSOIPv4MaxSize = 63
	iflaGROIPv4MaxSize = 64
)

// ability is the largest segments that this kernel can be told to make. Its own loopback device shows which settings it
// knows.
func ability(links []link) plan.Segments {
	for _, l := range links {
		if l.index != loopbackIndex || l.most <= plan.DefaultSegment || l.gather.IP6 == 0 {
			continue
		}
		s := plan.Segments{IP6: min(l.most, plan.MaxSegment)}
		if l.segments.IP4 > 0 && l.gather.IP4 > 0 {
			s.IP4 = s.IP6
		}
		return s
	}
	return plan.Segments{}
}

// loopbackIndex is the first device of every namespace.
const loopbackIndex = 1

// segmentAttrs are what sets sizes other than the kernel's. They go both ways: what a switch side sends is what the vNIC
// receives.
func segmentAttrs(s plan.Segments) (out []*nl.RtAttr) {
	if s.IP6 > 0 {
		out = append(out, attrUint32(iflaGSOMaxSize, uint32(s.IP6)), attrUint32(iflaGROMaxSize, uint32(s.IP6)))
	}
	if s.IP4 > 0 {
		out = append(out, attrUint32(iflaGSOIPv4MaxSize, uint32(s.IP4)), attrUint32(iflaGROIPv4MaxSize, uint32(s.IP4)))
	}
	return out
}

// takes tells that a link has the sizes that the plan says. Those that the kernel does not know are as they should be.
func (l link) takes(s plan.Segments) bool {
	for _, have := range []plan.Segments{l.segments, l.gather} {
		if have.IP6 > 0 && have.IP6 != orDefault(s.IP6) || have.IP4 > 0 && have.IP4 != orDefault(s.IP4) {
			return false
		}
	}
	return true
}

func orDefault(size int) int {
	if size == 0 {
		return plan.DefaultSegment
	}
	return size
}

// segments is what sets a link's sizes right. Those of IPv6 come first: below 64 KiB the kernel makes IPv4 follow them.
func (d *differ) segments(object string, want plan.Segments, l link) []*nl.RtAttr {
	if l.takes(want) {
		return nil
	}
	d.found(object, "send segments of%s, gather%s", l.segments, l.gather)
	set := plan.Segments{IP6: orDefault(want.IP6)}
	if l.segments.IP4 > 0 {
		set.IP4 = orDefault(want.IP4)
	}
	return segmentAttrs(set)
}
