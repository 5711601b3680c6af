package testhost

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Describe writes a frame as one line of text, for captures and for what a program under test put out:
//
//	02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who-has 192.0.2.2 tell 192.0.2.1
//	02:00:00:00:00:01 > 02:00:00:00:00:02 ip 192.0.2.1 > 192.0.2.2 ttl 64 tcp 1000 > 80 [SA] len 0
//
// A wrong checksum shows as "bad-checksum", what is cut off as "truncated".
func Describe(frame []byte) string {
	if len(frame) < 14 {
		return fmt.Sprintf("truncated %x", frame)
	}
	head := fmt.Sprintf("%s > %s", net.HardwareAddr(frame[6:12]), net.HardwareAddr(frame[:6]))
	typ, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	var tags []byte
	for typ == typeVLAN && len(rest) >= 4 {
		tags = fmt.Appendf(tags, " vlan %d", binary.BigEndian.Uint16(rest)&0xfff)
		typ, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	head += string(tags)
	switch typ {
	case typeARP:
		return head + " arp " + describeARP(rest)
	case typeIPv4:
		return head + " ip " + describeIPv4(rest)
	case typeIPv6:
		return head + " ip6 " + describeIPv6(rest)
	}
	return fmt.Sprintf("%s type %#04x len %d", head, typ, len(rest))
}

func describeARP(b []byte) string {
	if len(b) < 28 {
		return "truncated"
	}
	sender, _ := netip.AddrFromSlice(b[14:18])
	target, _ := netip.AddrFromSlice(b[24:28])
	switch binary.BigEndian.Uint16(b[6:]) {
	case 1:
		return fmt.Sprintf("who-has %s tell %s", target, sender)
	case 2:
		return fmt.Sprintf("reply %s is-at %s", sender, net.HardwareAddr(b[8:14]))
	}
	return fmt.Sprintf("op %d", binary.BigEndian.Uint16(b[6:]))
}

func describeIPv4(b []byte) string {
	if len(b) < 20 {
		return "truncated"
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return "truncated"
	}
	src, _ := netip.AddrFromSlice(b[12:16])
	dst, _ := netip.AddrFromSlice(b[16:20])
	s := fmt.Sprintf("%s > %s ttl %d ", src, dst, b[8])
	if checksum(b[:header]) != 0 {
		s += "bad-checksum "
	}
	frag := binary.BigEndian.Uint16(b[6:])
	if frag&0x3fff != 0 {
		s += fmt.Sprintf("frag %d", int(frag&0x1fff)*8)
		if frag&0x2000 != 0 {
			s += "+"
		}
		return s + fmt.Sprintf(" proto %d len %d", b[9], total-header)
	}
	return s + describeL4(b[12:16], b[16:20], b[9], b[header:total])
}

func describeIPv6(b []byte) string {
	if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:])) > len(b)-40 {
		return "truncated"
	}
	src, _ := netip.AddrFromSlice(b[8:24])
	dst, _ := netip.AddrFromSlice(b[24:40])
	end := 40 + int(binary.BigEndian.Uint16(b[4:]))
	return fmt.Sprintf("%s > %s hlim %d ", src, dst, b[7]) + describeL4(b[8:24], b[24:40], b[6], b[40:end])
}

func describeL4(src, dst []byte, protocol uint8, b []byte) string {
	bad := ""
	if checksum(pseudo(src, dst, protocol, b)) != 0 {
		bad = " bad-checksum"
	}
	switch {
	case protocol == protoUDP && len(b) >= 8:
		if binary.BigEndian.Uint16(b[6:]) == 0 && len(src) == 4 {
			bad = ""
		}
		return fmt.Sprintf("udp %s len %d%s", ports(b), len(b)-8, bad)
	case protocol == protoTCP && len(b) >= 20 && int(b[12]>>4)*4 <= len(b):
		var flags strings.Builder
		for i, f := range tcpFlags {
			if b[13]&(1<<i) != 0 {
				flags.WriteRune(f)
			}
		}
		return fmt.Sprintf("tcp %s [%s] len %d%s", ports(b), flags.String(), len(b)-int(b[12]>>4)*4, bad)
	case protocol == protoICMP && len(b) >= 8:
		if checksum(b) != 0 {
			return "icmp " + describeICMP(b, 8, 0) + " bad-checksum"
		}
		return "icmp " + describeICMP(b, 8, 0)
	case protocol == protoICMPv6 && len(b) >= 8:
		return "icmp6 " + describeICMP(b, 128, 129) + bad
	}
	return fmt.Sprintf("proto %d len %d", protocol, len(b))
}

func ports(b []byte) string {
	return fmt.Sprintf("%d > %d", binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
}

func describeICMP(b []byte, request, reply uint8) string {
	seq := fmt.Sprintf("id %d seq %d", binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]))
	switch {
	case b[0] == request:
		return "echo-request " + seq
	case b[0] == reply:
		return "echo-reply " + seq
	case b[0] == 134 && request == 128:
		return "ra"
	case (b[0] == 135 || b[0] == 136) && request == 128 && len(b) >= 24:
		target, _ := netip.AddrFromSlice(b[8:24])
		if b[0] == 135 {
			return "ns " + target.String()
		}
		if len(b) >= 32 && b[24] == 2 {
			return fmt.Sprintf("na %s is-at %s", target, net.HardwareAddr(b[26:32]))
		}
		return "na " + target.String()
	}
	return fmt.Sprintf("type %d code %d", b[0], b[1])
}
