package testhost

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd
)

// Echo is a ping of either family: a request, or with Reply an answer.
type Echo struct {
	Reply   bool
	ID, Seq uint16
}

func (e Echo) encode(ip, _ Layer, payload []byte) []byte {
	body := binary.BigEndian.AppendUint16(nil, e.ID)
	body = binary.BigEndian.AppendUint16(body, e.Seq)
	typ := uint8(8)
	if _, six := ip.(IPv6); six {
		typ = 128
		if e.Reply {
			typ = 129
		}
	} else if e.Reply {
		typ = 0
	}
	return icmpMessage(ip, typ, 0, append(body, payload...))
}

// ICMP is any other message of either family: Body follows the checksum, and the next layers follow Body. An error
// message has four bytes of Body and then the packet it complains about, as Raw.
type ICMP struct {
	Type, Code uint8
	Body       []byte
}

func (m ICMP) encode(ip, _ Layer, payload []byte) []byte {
	return icmpMessage(ip, m.Type, m.Code, append(append([]byte(nil), m.Body...), payload...))
}

// NS is a neighbour solicitation. Without SourceMAC it has no option, as in duplicate address detection.
type NS struct {
	Target    netip.Addr
	SourceMAC MAC
}

func (n NS) encode(ip, _ Layer, payload []byte) []byte {
	t := n.Target.As16()
	b := append(make([]byte, 4, 28), t[:]...)
	return icmpMessage(ip, 135, 0, append(linkOption(b, 1, n.SourceMAC), payload...))
}

// NA is a neighbour advertisement.
type NA struct {
	Target                      netip.Addr
	TargetMAC                   MAC
	Router, Solicited, Override bool
}

func (n NA) encode(ip, _ Layer, payload []byte) []byte {
	b := make([]byte, 4, 28)
	for i, set := range []bool{n.Router, n.Solicited, n.Override} {
		if set {
			b[0] |= 0x80 >> i
		}
	}
	t := n.Target.As16()
	return icmpMessage(ip, 136, 0, append(linkOption(append(b, t[:]...), 2, n.TargetMAC), payload...))
}

// RA is a router advertisement, with an on-link autonomous prefix if one is given.
type RA struct {
	Lifetime  uint16 // seconds
	SourceMAC MAC
	Prefix    netip.Prefix
}

func (r RA) encode(ip, _ Layer, payload []byte) []byte {
	b := []byte{64, 0}
	b = binary.BigEndian.AppendUint16(b, r.Lifetime)
	b = linkOption(append(b, make([]byte, 8)...), 1, r.SourceMAC)
	if r.Prefix.IsValid() {
		b = append(b, 3, 4, byte(r.Prefix.Bits()), 0xc0)
		b = binary.BigEndian.AppendUint32(b, 86400)
		b = binary.BigEndian.AppendUint32(b, 14400)
		a := r.Prefix.Masked().Addr().As16()
		b = append(append(b, 0, 0, 0, 0), a[:]...)
	}
	return icmpMessage(ip, 134, 0, append(b, payload...))
}

func linkOption(b []byte, kind byte, mac MAC) []byte {
	if len(mac) == 0 {
		return b
	}
	return append(append(b, kind, 1), mac6(mac)...)
}

func icmpMessage(ip Layer, typ, code uint8, body []byte) []byte {
	b := append([]byte{typ, code, 0, 0}, body...)
	sum := checksum(b)
	if _, six := ip.(IPv6); six {
		sum = l4checksum(ip, protoICMPv6, b)
	}
	binary.BigEndian.PutUint16(b[2:], sum)
	return b
}

func etherType(next Layer) uint16 {
	switch next.(type) {
	case IPv4:
		return typeIPv4
	case IPv6:
		return typeIPv6
	case ARP:
		return typeARP
	case VLAN:
		return typeVLAN
	}
	return 0x88b5 // for local experiments
}

func ipProtocol(next Layer, six bool) uint8 {
	switch next.(type) {
	case TCP:
		return protoTCP
	case UDP:
		return protoUDP
	case IPv4:
		return 4
	case IPv6:
		return 41
	case Echo, ICMP, NS, NA, RA:
		if six {
			return protoICMPv6
		}
		return protoICMP
	}
	return 253 // for experiments
}

// l4checksum covers the pseudo header of the IP layer around. A checksum field of zero must be in b.
func l4checksum(ip Layer, protocol uint8, b []byte) uint16 {
	var src, dst []byte
	switch p := ip.(type) {
	case IPv4:
		src, dst = ip4(p.Src), ip4(p.Dst)
	case IPv6:
		src, dst = p.Src.AsSlice(), p.Dst.AsSlice()
	default:
		panic(fmt.Sprintf("protocol %d needs an IP layer around it", protocol))
	}
	return checksum(pseudo(src, dst, protocol, b))
}

func pseudo(src, dst []byte, protocol uint8, b []byte) []byte {
	p := append(append([]byte(nil), src...), dst...)
	p = binary.BigEndian.AppendUint32(p, uint32(len(b)))
	return append(append(p, 0, 0, 0, protocol), b...)
}

// checksum is the Internet checksum. Over data that has its own checksum in place it is zero.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func ip4(a netip.Addr) []byte {
	if !a.IsValid() {
		return make([]byte, 4)
	}
	b := a.As4()
	return b[:]
}

// mac6 turns an absent address into zeroes, as an ARP request has them.
func mac6(m MAC) []byte {
	b := make([]byte, 6)
	copy(b, m)
	return b
}

func orUint16(v, otherwise uint16) uint16 {
	if v == 0 {
		return otherwise
	}
	return v
}
