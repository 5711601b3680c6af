package lease

import (
	"encoding/binary"
	"net/netip"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Frames are built and read here byte by byte: a client without an address has no other way, and what it hears must not
// have passed through a stack that the container may have a hand in.

const (
	maxFrame = 9216

	ethLen  = 14
	ip4Len  = 20
	ip6Len  = 40
	udpLen  = 8
	icmpLen = 8

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoUDP    = 17
	protoICMPv6 = 58

	client4, server4 = 68, 67
	client6, server6 = 546, 547

	routerSolicit, routerAdvert      = 133, 134
	neighbourSolicit, neighbourClaim = 135, 136
)

var (
	broadcastMAC  = plan.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	broadcast4    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	allServers    = netip.MustParseAddr("ff02::1:2") // and relays
	allNodes      = netip.MustParseAddr("ff02::1")
	allRouters    = netip.MustParseAddr("ff02::2")
	solicitedNode = netip.MustParseAddr("ff02::1:ff00:0").As16()
)

// kind of a packet that somebody here waits for.
type kind uint8

const (
	kindDHCPv4 kind = iota + 1
	kindDHCPv6
	kindAdvert
	kindClaim // somebody has, or is about to have, an address
)

// packet is what a frame holds.
type packet struct {
	kind     kind
	mac      plan.MAC // the sender
	src, dst netip.Addr
	payload  []byte
	claim    netip.Addr
	probe    bool // not a claim yet: it asks whether somebody has the address
}

// parseFrame reads a frame; false: it is damaged, or of no interest. The payload is a part of it.
func parseFrame(f []byte, summed bool) (p packet, ok bool) {
	if len(f) < ethLen {
		return p, false
	}
	copy(p.mac[:], f[6:12])
	body := f[ethLen:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case etherARP:
		return p, p.parseARP(body)
	case etherIPv4:
		return p, p.parseIPv4(body, summed)
	case etherIPv6:
		return p, p.parseIPv6(body, summed)
	}
	return p, false
}

// parseARP takes any ARP packet of a sender with an address as a claim on it, and a probe as one on what it is for.
func (p *packet) parseARP(b []byte) bool {
	if len(b) < 28 || binary.BigEndian.Uint32(b) != 0x00010800 || b[4] != 6 || b[5] != 4 {
		return false
	}
	p.kind = kindClaim
	copy(p.mac[:], b[8:14])
	p.claim = netip.AddrFrom4([4]byte(b[14:18]))
	if p.claim.IsUnspecified() {
		p.claim, p.probe = netip.AddrFrom4([4]byte(b[24:28])), true
	}
	return true
}

func (p *packet) parseIPv4(b []byte, summed bool) bool {
	if len(b) < ip4Len || b[0]>>4 != 4 {
		return false
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < ip4Len || total < head+udpLen || total > len(b) || b[9] != protoUDP || sum(0, b[:head]) != 0xffff {
		return false
	}
	if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // a fragment
		return false
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.kind = kindDHCPv4
	return p.parseUDP(b[head:total], client4, summed && binary.BigEndian.Uint16(b[head+6:]) != 0)
}

func (p *packet) parseIPv6(b []byte, summed bool) bool {
	if len(b) < ip6Len || b[0]>>4 != 6 {
		return false
	}
	end := ip6Len + int(binary.BigEndian.Uint16(b[4:]))
	if end > len(b) {
		return false
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	l4 := b[ip6Len:end]
	switch b[6] {
	case protoUDP:
		p.kind = kindDHCPv6
		return p.parseUDP(l4, client6, summed)
	case protoICMPv6:
		return p.parseND(l4, b[7], summed)
	}
	return false
}

func (p *packet) parseUDP(b []byte, to uint16, summed bool) bool {
	if len(b) < udpLen || binary.BigEndian.Uint16(b[2:]) != to {
		return false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < udpLen || n > len(b) || summed && sum(pseudo(p.src, p.dst, protoUDP, n), b[:n]) != 0xffff {
		return false
	}
	p.payload = b[udpLen:n]
	return true
}

// parseND: what did not start on this link has another hop limit (RFC 4861, section 6.1).
func (p *packet) parseND(b []byte, hops uint8, summed bool) bool {
	if len(b) < icmpLen || hops != 255 || b[1] != 0 || summed && sum(pseudo(p.src, p.dst, protoICMPv6, len(b)), b) != 0xffff {
		return false
	}
	switch b[0] {
	case routerAdvert:
		p.kind, p.payload = kindAdvert, b
		return p.src.IsLinkLocalUnicast()
	case neighbourSolicit:
		// Only one that probes wants the address; others ask for it.
		if p.probe = true; !p.src.IsUnspecified() {
			return false
		}
	case neighbourClaim:
	default:
		return false
	}
	if len(b) < icmpLen+16 {
		return false
	}
	p.kind, p.claim = kindClaim, netip.AddrFrom16([16]byte(b[icmpLen:]))
	return true
}

// udp4 is a frame with a datagram from port 68 to 67.
func udp4(from, to plan.MAC, src, dst netip.Addr, payload []byte) []byte {
	f := eth(from, to, etherIPv4)
	n := udpLen + len(payload)
	f = append(f, 0x45, 0, byte((ip4Len+n)>>8), byte(ip4Len+n), 0, 0, 0, 0, 64, protoUDP, 0, 0)
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(f[ethLen+10:], ^sum(0, f[ethLen:]))
	return udp(f, src, dst, client4, server4, payload)
}

// udp6 is a frame with a datagram to all DHCPv6 servers.
func udp6(from plan.MAC, src netip.Addr, payload []byte) []byte {
	f := ip6(from, src, allServers, protoUDP, 1, udpLen+len(payload))
	return udp(f, src, allServers, client6, server6, payload)
}

func udp(f []byte, src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	n := udpLen + len(payload)
	at := len(f)
	f = binary.BigEndian.AppendUint16(f, from)
	f = binary.BigEndian.AppendUint16(f, to)
	f = binary.BigEndian.AppendUint16(f, uint16(n))
	f = append(append(f, 0, 0), payload...)
	check := ^sum(pseudo(src, dst, protoUDP, n), f[at:])
	if check == 0 {
		check = 0xffff // zero says that there is none
	}
	binary.BigEndian.PutUint16(f[at+6:], check)
	return f
}

// routerQuestion asks all routers to advertise themselves.
func routerQuestion(from plan.MAC, src netip.Addr) []byte {
	return icmp6(from, src, allRouters, append([]byte{routerSolicit, 0, 0, 0, 0, 0, 0, 0, 1, 1}, from[:]...))
}

// neighbourProbe is what duplicate address detection sends (RFC 4862, section 5.4.2).
func neighbourProbe(from plan.MAC, a netip.Addr) []byte {
	group := solicitedNode
	b := a.As16()
	copy(group[13:], b[13:])
	return icmp6(from, netip.IPv6Unspecified(), netip.AddrFrom16(group), append([]byte{neighbourSolicit, 0, 0, 0, 0, 0, 0, 0}, b[:]...))
}

// neighbourClaimed says to all that an address is at a MAC, whatever they knew (RFC 4861, section 7.2.6).
func neighbourClaimed(from plan.MAC, a netip.Addr) []byte {
	const override = 0x20
	msg := append([]byte{neighbourClaim, 0, 0, 0, override, 0, 0, 0}, a.AsSlice()...)
	return icmp6(from, a, allNodes, append(append(msg, 2, 1), from[:]...))
}

func icmp6(from plan.MAC, src, dst netip.Addr, msg []byte) []byte {
	binary.BigEndian.PutUint16(msg[2:], ^sum(pseudo(src, dst, protoICMPv6, len(msg)), msg))
	return append(ip6(from, src, dst, protoICMPv6, 255, len(msg)), msg...)
}

// ip6 begins a frame to a group.
func ip6(from plan.MAC, src, dst netip.Addr, proto, hops uint8, n int) []byte {
	d := dst.As16()
	f := eth(from, plan.MAC{0x33, 0x33, d[12], d[13], d[14], d[15]}, etherIPv6)
	f = append(f, 0x60, 0, 0, 0, byte(n>>8), byte(n), proto, hops)
	return append(append(f, src.AsSlice()...), d[:]...)
}

// arpProbe asks for an address without having one, arpClaimed says to all that it is at a MAC (RFC 5227).
func arpProbe(from plan.MAC, a netip.Addr) []byte   { return arp(from, netip.IPv4Unspecified(), a) }
func arpClaimed(from plan.MAC, a netip.Addr) []byte { return arp(from, a, a) }

func arp(from plan.MAC, sender, a netip.Addr) []byte {
	f := append(eth(from, broadcastMAC, etherARP), 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, from[:]...), sender.AsSlice()...)
	return append(append(f, 0, 0, 0, 0, 0, 0), a.AsSlice()...)
}

func eth(from, to plan.MAC, kind uint16) []byte {
	f := append(make([]byte, 0, 512), to[:]...)
	return binary.BigEndian.AppendUint16(append(f, from[:]...), kind)
}

// pseudo begins the checksum of what goes over IP.
func pseudo(src, dst netip.Addr, proto uint8, n int) uint32 {
	return uint32(sum(uint32(proto)+uint32(n), append(src.AsSlice(), dst.AsSlice()...)))
}

// sum is the Internet checksum before it is inverted (RFC 1071).
func sum(start uint32, b []byte) uint16 {
	s := start
	for len(b) >= 2 {
		s += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
