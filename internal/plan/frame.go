package plan

import "encoding/binary"

// Frame is a complete packet (see [Plan.Complete]) as bytes on the wire, for the program
// to judge. The transport header is as long as the protocol wants it; its checksum is
// zero, which no switch looks at.
func (k Packet) Frame() []byte {
	l4 := make([]byte, 20)
	switch k.Protocol {
	case protoTCP:
		l4[12], l4[13] = 5<<4, 2 // a SYN without options
		fallthrough
	case protoUDP:
		binary.BigEndian.PutUint16(l4, k.SrcPort)
		binary.BigEndian.PutUint16(l4[2:], k.DstPort)
		if k.Protocol == protoUDP {
			binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		}
	case protoICMP, protoICMPv6:
		l4[0], l4[1] = k.ICMPType, k.ICMPCode
	}
	b := append(k.DstMAC[:len(k.DstMAC):len(k.DstMAC)], k.SrcMAC[:]...)
	b = binary.BigEndian.AppendUint16(b, k.EtherType)
	if k.Src.Is4() {
		b = k.appendIPv4(b, len(l4))
	} else {
		b = binary.BigEndian.AppendUint32(b, 6<<28)
		b = binary.BigEndian.AppendUint16(b, uint16(len(l4)))
		b = append(b, k.Protocol, 64)
		b = append(append(b, k.Src.AsSlice()...), k.Dst.AsSlice()...)
	}
	return k.wrapped(append(b, l4...))
}

// wrapped puts a frame from a tunnel port into its VXLAN packet, as it comes in by the NIC.
func (k Packet) wrapped(inner []byte) []byte {
	if k.VNI == 0 || !k.OuterSrc.Is4() || !k.OuterDst.Is4() {
		return inner
	}
	outer := Packet{EtherType: etherIPv4, Src: k.OuterSrc, Dst: k.OuterDst, Protocol: protoUDP}
	b := append(make([]byte, 12), 8, 0)
	b = outer.appendIPv4(b, 16+len(inner))
	b = binary.BigEndian.AppendUint16(b, 50000)
	b = binary.BigEndian.AppendUint16(b, k.OuterPort)
	b = binary.BigEndian.AppendUint16(b, uint16(16+len(inner)))
	b = append(b, 0, 0, 8, 0, 0, 0)
	return append(binary.BigEndian.AppendUint32(b, k.VNI<<8), inner...)
}

func (k Packet) appendIPv4(b []byte, payload int) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, k.Protocol
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+payload))
	copy(h[12:], k.Src.AsSlice())
	copy(h[16:], k.Dst.AsSlice())
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return append(b, h...)
}

// Buildable tells that a packet can be shown to the program as it comes in. One with a tag cannot. Of those from other hosts, the
// NIC's program unpacks what came by IPv4; what it leaves to the VXLAN device cannot be built.
func (k Packet) Buildable() bool {
	return k.VLAN == 0 && (k.VNI == 0 || k.OuterSrc.Is4() && k.OuterDst.Is4())
}
