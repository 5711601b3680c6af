package plantest

import (
	"maps"
	"net/netip"
	"slices"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Packet draws a packet that one of the plan's vNICs sends, or that is at an uplink. Most are what a stack would
// send, to somebody who is there; some have a field that is not the sender's to choose.
// Packets that [plan.Plan.Trace] does not trace are not drawn.
func Packet(t *rapid.T, p *plan.Plan) plan.Packet {
	from := p.Ports[rapid.SampledFrom(slices.Sorted(maps.Keys(p.Ports))).Draw(t, "from")]
	v6 := rapid.Bool().Draw(t, "v6")
	k := plan.Packet{From: from.ID, Host: from.Kind == plan.PortUplink && rapid.Bool().Draw(t, "host"), Src: source(t, from, v6), Dst: destination(t, p, from.ID, v6)}
	if from.Kind == plan.PortTunnel {
		tunnelled(t, p, from, &k, v6)
	}
	k.SrcMAC, k.DstMAC = macs(t, p)
	if from.Kind == plan.PortUplink && !k.Host && seldom(t, "comes back") {
		k.SrcMAC = p.Ports[rapid.SampledFrom(slices.Sorted(maps.Keys(p.Ports))).Draw(t, "from whom")].MAC
	}
	if k.DstMAC == (plan.MAC{}) && k.Dst.IsMulticast() && !seldom(t, "unicast to a group") {
		k.DstMAC = plan.MAC{0x33, 0x33, 0, 0, 0, 1}
	}
	k.Protocol = rapid.SampledFrom([]uint8{6, 6, 17, 6, 17, 1, 58, 132, 47, 255, 2}).Draw(t, "protocol")
	if from.Kind == plan.PortResolver && k.Protocol != 6 && !seldom(t, "no answer") {
		k.Protocol = 17
	}
	switch k.Protocol {
	case 6, 17:
		ports := rapid.SampledFrom([]uint16{0, 1, 22, 52, 53, 53, 54, 67, 68, 78, 79, 80, 80, 81, 82, 90, 91, 443, 547, 1023, 1024, 8005, 65534, 65535})
		k.SrcPort, k.DstPort = ports.Draw(t, "source port"), ports.Draw(t, "destination port")
		if from.Kind == plan.PortResolver && !seldom(t, "not an answer") {
			k.SrcPort = 53
		}
		if seldom(t, "DHCP") {
			dhcp(t, &k, v6)
		}
	case 1, 58:
		// Without 135 and 136, which are about more than a packet has here.
		k.ICMPType = rapid.SampledFrom([]uint8{8, 128, 0, 129, 3, 1, 11, 2, 5, 9, 130, 131, 132, 133, 134, 137, 138, 143}).Draw(t, "type")
	}
	served(t, p, &k, v6)
	return p.Complete(k)
}

// dhcp makes a packet one of a client or server: to all of them, or to one.
func dhcp(t *rapid.T, k *plan.Packet, v6 bool) {
	ask, answer, all := uint16(68), uint16(67), "255.255.255.255"
	if v6 {
		ask, answer, all = 546, 547, "ff02::1:2"
	}
	k.Protocol, k.SrcPort, k.DstPort = 17, ask, answer
	switch rapid.IntRange(0, 4).Draw(t, "DHCP kind") {
	case 0:
		k.SrcPort, k.DstPort = answer, ask
	case 1:
	default:
		k.Dst = netip.MustParseAddr(all)
		if k.DstMAC == (plan.MAC{}) && rapid.Bool().Draw(t, "to all") {
			k.DstMAC = plan.MAC{0x33, 0x33, 0, 1, 0, 2}
		}
	}
}

// seldom is true for about one packet in fifteen. Small numbers are drawn more often than
// others, so it is not zero that counts.
func seldom(t *rapid.T, label string) bool { return rapid.IntRange(0, 15).Draw(t, label) == 11 }

func source(t *rapid.T, from *plan.Port, v6 bool) netip.Addr {
	var own []netip.Addr
	for _, a := range from.Addrs {
		if a.Is6() == v6 {
			own = append(own, a)
		}
	}
	if v6 && from.LinkLocal.IsValid() {
		own = append(own, from.LinkLocal)
	}
	if len(own) == 0 || seldom(t, "other source") || from.Kind == plan.PortHost && rapid.Bool().Draw(t, "routed") {
		return rapid.SampledFrom(others(v6)).Draw(t, "source")
	}
	return rapid.SampledFrom(own).Draw(t, "source")
}

// others are addresses that need not be anybody's.
func others(v6 bool) []netip.Addr {
	if v6 {
		return parse("fd00:1::a", "fd00:1::b", "fd00:1::f", "fd00:1::1", "fd00:1::10", "2001:db8::1", "2001:db8::7fff", "2001:db8::8000", "2001:db9::1",
			"::", "::1", "::ffff:10.1.0.10", "ff02::1", "8000::", "7fff::1", "fe80::1")
	}
	return parse("10.1.0.10", "10.1.0.11", "10.1.0.15", "10.1.0.16", "10.1.0.1", "10.1.0.255", "192.0.2.1", "192.0.2.127", "192.0.2.128", "198.51.100.1",
		"0.0.0.0", "0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "128.0.0.0", "126.255.255.255")
}

func parse(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func destination(t *rapid.T, p *plan.Plan, from plan.PortID, v6 bool) netip.Addr {
	if outside := rapid.IntRange(0, 5).Draw(t, "other destination"); outside == 5 || outside == 4 && p.Ports[from].Kind == plan.PortContainer {
		return rapid.SampledFrom(others(v6)).Draw(t, "destination")
	}
	own := seldom(t, "to itself") // else the sender's own addresses are left out
	known := elsewhere(p, v6)
	for _, id := range slices.Sorted(maps.Keys(p.Ports)) {
		if id == from && !own {
			continue
		}
		for _, a := range append(slices.Clone(p.Ports[id].Addrs), p.Ports[id].LinkLocal) {
			if a.IsValid() && a.Is6() == v6 {
				known = append(known, a)
			}
		}
	}
	if len(known) == 0 {
		return rapid.SampledFrom(others(v6)).Draw(t, "destination")
	}
	return rapid.SampledFrom(known).Draw(t, "destination")
}

func macs(t *rapid.T, p *plan.Plan) (src, dst plan.MAC) {
	all := []plan.MAC{{2, 0, 0, 0, 9, 9}, {0x33, 0x33, 0, 0, 0, 1}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	for _, id := range slices.Sorted(maps.Keys(p.Ports)) {
		all = append(all, p.Ports[id].MAC)
	}
	if seldom(t, "other source MAC") {
		src = rapid.SampledFrom(all).Draw(t, "source MAC")
	}
	if seldom(t, "other destination MAC") {
		dst = rapid.SampledFrom(all).Draw(t, "destination MAC")
	}
	return src, dst
}
