package plan

import (
	"net/netip"
)

// The types of ICMPv6 that the switch knows.
const (
	mldQuery       = 130
	mldReport      = 131
	mldDone        = 132
	ndRouterAsk    = 133
	ndRouterAdvert = 134
	ndSolicit      = 135
	ndAdvert       = 136
	ndRedirect     = 137
	mld2Report     = 143
)

// allDHCPServers of a link (RFC 8415, section 7.1).
var allDHCPServers = netip.AddrFrom16([16]byte{0xff, 2, 13: 1, 15: 2})

func (t *tracer) icmp6(kind uint8) bool {
	return t.pkt.EtherType == etherIPv6 && t.pkt.Protocol == protoICMPv6 && t.pkt.ICMPType == kind
}

// guard is the source guard: a port sends as the endpoint behind it and as nobody
// else. It returns the reason of a drop, or "".
func (t *tracer) guard() string {
	k := &t.pkt
	switch {
	case k.SrcMAC[0]&1 != 0:
		return "martian"
	case !t.isHost(t.from) && k.SrcMAC != t.from.MAC:
		return "source-mac"
	case martian(k.Dst) || k.Dst.IsUnspecified():
		return "martian"
	}
	if t.isHost(t.from) {
		// The host routes, so it may send from any address but its loopback.
		if !k.Src.IsUnspecified() && martian(k.Src) {
			return "martian"
		}
	} else {
		if t.from.Kind == PortResolver {
			if reason := t.quiet(); reason != "" {
				return reason
			}
		}
		if reason := t.guardAddress(); reason != "" {
			return reason
		}
		if reason := t.guardRole(); reason != "" {
			return reason
		}
	}
	// On a LAN, routers answer solicitations and switches listen for memberships.
	if reason := t.quiet(); reason != "" && !t.sw.Mode.OnLAN() {
		return reason
	}
	return t.guardGroup()
}

// martian addresses have no business on a wire.
func martian(a netip.Addr) bool {
	if a.Is4() {
		first := a.As4()[0]
		return first == 127 || first == 0
	}
	return a.Is4In6() || a.IsLoopback()
}

func groupAddress(a netip.Addr) bool {
	if a.Is4() {
		return a.As4()[0] >= 224
	}
	return a.IsMulticast()
}

func (t *tracer) guardAddress() string {
	k := &t.pkt
	if k.Src.IsUnspecified() {
		asks := t.icmp6(ndSolicit)
		if asks || t.from.Kind != PortResolver && (t.icmp6(mldReport) || t.icmp6(mld2Report) || t.dhcpClient()) {
			return ""
		}
	}
	if martian(k.Src) || groupAddress(k.Src) {
		return "martian"
	}
	o := t.owner(k.Src)
	if t.from.Kind == PortResolver {
		return t.guardResolver(o)
	}
	if o != t.from && !t.speaks() {
		return "source-address"
	}
	return ""
}

// guardResolver: the resolver shares the gateway's MAC and addresses, and may only
// answer from port 53.
func (t *tracer) guardResolver(o *Port) string {
	k := &t.pkt
	switch {
	case o == nil || o.Kind == PortContainer:
		return "source-address"
	case t.icmp6(ndSolicit):
		return ""
	case k.DstMAC[0]&1 != 0, k.Protocol != protoTCP && k.Protocol != protoUDP, !t.resolverAddress(o, k.Src), k.SrcPort != 53:
		return "resolver"
	}
	return ""
}

// guardRole keeps containers from what only the host may play.
func (t *tracer) guardRole() string {
	k := &t.pkt
	is4 := k.EtherType == etherIPv4
	switch {
	case k.Protocol == protoUDP && (is4 && (k.SrcPort == 67 || k.DstPort == 68) || !is4 && (k.SrcPort == 547 || k.DstPort == 546)):
		return "dhcp-server"
	case is4 && k.Protocol == protoICMP && k.ICMPType == 5, t.icmp6(ndRedirect):
		return "redirect"
	case is4 && k.Protocol == protoICMP && k.ICMPType == 9, t.icmp6(ndRouterAdvert):
		return "router-advert"
	}
	return ""
}

// quiet is what every stack sends by itself, and nobody here needs.
func (t *tracer) quiet() string {
	switch {
	case t.pkt.EtherType == etherIPv4 && t.pkt.Protocol == protoIGMP,
		t.icmp6(mldQuery), t.icmp6(mldReport), t.icmp6(mldDone), t.icmp6(mld2Report):
		return "membership"
	case t.icmp6(ndRouterAsk):
		return "router-solicit"
	}
	return ""
}

// guardGroup: a unicast packet in a group frame would step around the rules of the one
// it is for.
func (t *tracer) guardGroup() string {
	k := &t.pkt
	if k.DstMAC[0]&1 == 0 || groupAddress(k.Dst) {
		return ""
	}
	if k.EtherType == etherIPv6 || t.owner(k.Dst) != nil {
		return "group-unicast"
	}
	return ""
}

func (t *tracer) dhcpClient() bool {
	k := &t.pkt
	return k.EtherType == etherIPv4 && k.Protocol == protoUDP && k.SrcPort == 68 && k.DstPort == 67 &&
		k.Dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// dhcpOnLAN is what clients on a LAN ask of all servers, and what a server answers, who is
// on the wire or the host.
func (t *tracer) dhcpOnLAN() bool {
	k := &t.pkt
	outside := t.from.Kind == PortUplink
	switch {
	case k.Protocol != protoUDP || !t.sw.Mode.OnLAN():
		return false
	case k.EtherType == etherIPv4:
		return outside && k.SrcPort == 67 && k.DstPort == 68
	case k.SrcPort == 546 && k.DstPort == 547:
		return k.Dst == allDHCPServers
	}
	return k.EtherType == etherIPv6 && outside && k.SrcPort == 547 && k.DstPort == 546
}

// renewal asks the one server that a lease is from.
func (t *tracer) renewal(to *Port) bool {
	k := &t.pkt
	return t.sw.Mode.OnLAN() && t.from.Kind == PortContainer && to.Kind != PortContainer &&
		k.EtherType == etherIPv4 && k.Protocol == protoUDP && k.SrcPort == 68 && k.DstPort == 67
}

// exempt packets keep the link working and are no business of rules (HCN, "ACL
// semantics").
func (t *tracer) exempt() bool {
	return t.dhcpClient() || t.dhcpOnLAN() || t.pkt.EtherType == etherIPv6 && t.pkt.Protocol == protoICMPv6 &&
		t.pkt.ICMPType >= ndRouterAsk && t.pkt.ICMPType <= ndRedirect
}
