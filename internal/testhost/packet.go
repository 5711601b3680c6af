package testhost

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// MAC is a hardware address.
type MAC = net.HardwareAddr

// ParseMAC reads a hardware address that a test spells out.
func ParseMAC(s string) MAC {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

// Broadcast is the address of everybody.
func Broadcast() MAC { return MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// MulticastMAC is where a multicast address of either family goes.
func MulticastMAC(a netip.Addr) MAC {
	b := a.AsSlice()
	if a.Is4() {
		return MAC{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// SolicitedNode is the multicast address on which the owner of a hears neighbour solicitations.
func SolicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	s := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(s[13:], b[13:])
	return netip.AddrFrom16(s)
}

// Layer is one header of a frame, or its payload. Zero fields get the usual value: lengths, checksums, types and
// protocols come from the layers around.
type Layer interface {
	// encode puts the header before payload. ip is the IP layer around it, if any, and next is the layer within.
	encode(ip, next Layer, payload []byte) []byte
}

// Frame builds a packet from its layers, outermost first:
//
//	Frame(Ethernet{Src: a, Dst: b}, IPv4{Src: x, Dst: y}, TCP{SrcPort: 1000, DstPort: 80, Flags: "S"}, Text("hello"))
func Frame(layers ...Layer) []byte {
	var out []byte
	for i, layer := range slices.Backward(layers) {
		var ip, next Layer
		for _, l := range layers[:i] {
			switch l.(type) {
			case IPv4, IPv6:
				ip = l
			}
		}
		if i+1 < len(layers) {
			next = layers[i+1]
		}
		out = layer.encode(ip, next, out)
	}
	return out
}

// Text is a payload.
type Text string

func (t Text) encode(_, _ Layer, payload []byte) []byte { return append([]byte(t), payload...) }

// Raw is a payload, or a header that the builder does not know.
type Raw []byte

func (r Raw) encode(_, _ Layer, payload []byte) []byte { return append([]byte(r), payload...) }

// Ethernet is the outermost layer. Type is only needed before Raw.
type Ethernet struct {
	Src, Dst MAC
	Type     uint16
}

func (e Ethernet) encode(_, next Layer, payload []byte) []byte {
	b := append(mac6(e.Dst), mac6(e.Src)...)
	b = binary.BigEndian.AppendUint16(b, orUint16(e.Type, etherType(next)))
	return append(b, payload...)
}

// VLAN is an 802.1Q tag.
type VLAN struct {
	ID       uint16
	Priority uint8
	Type     uint16
}

func (v VLAN) encode(_, next Layer, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(v.Priority)<<13|v.ID&0xfff)
	b = binary.BigEndian.AppendUint16(b, orUint16(v.Type, etherType(next)))
	return append(b, payload...)
}

// ARP is a request, or with Reply an answer.
type ARP struct {
	Reply                bool
	SenderMAC, TargetMAC MAC
	SenderIP, TargetIP   netip.Addr
}

func (a ARP) encode(_, _ Layer, payload []byte) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	if a.Reply {
		b[7] = 2
	}
	b = append(b, mac6(a.SenderMAC)...)
	b = append(b, ip4(a.SenderIP)...)
	b = append(b, mac6(a.TargetMAC)...)
	b = append(b, ip4(a.TargetIP)...)
	return append(b, payload...)
}

// IPv4 has a TTL of 64 unless told otherwise. FragmentOffset counts bytes and is a multiple of eight.
type IPv4 struct {
	Src, Dst       netip.Addr
	TTL, TOS       uint8
	ID             uint16
	DontFragment   bool
	MoreFragments  bool
	FragmentOffset int
	Options        []byte
	Protocol       uint8
}

func (p IPv4) encode(_, next Layer, payload []byte) []byte {
	for len(p.Options)%4 != 0 {
		p.Options = append(p.Options, 0)
	}
	header := 20 + len(p.Options)
	frag := uint16(p.FragmentOffset / 8)
	if p.DontFragment {
		frag |= 0x4000
	}
	if p.MoreFragments {
		frag |= 0x2000
	}
	ttl := p.TTL
	if ttl == 0 {
		ttl = 64
	}
	protocol := p.Protocol
	if protocol == 0 {
		protocol = ipProtocol(next, false)
	}
	b := []byte{0x40 | byte(header/4), p.TOS}
	b = binary.BigEndian.AppendUint16(b, uint16(header+len(payload)))
	b = binary.BigEndian.AppendUint16(b, p.ID)
	b = binary.BigEndian.AppendUint16(b, frag)
	b = append(b, ttl, protocol, 0, 0)
	b = append(b, ip4(p.Src)...)
	b = append(b, ip4(p.Dst)...)
	b = append(b, p.Options...)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// IPv6 has a hop limit of 64 unless told otherwise, and of 255 for neighbour discovery. NextHeader is only needed before Raw.
type IPv6 struct {
	Src, Dst               netip.Addr
	HopLimit, TrafficClass uint8
	NextHeader             uint8
	FlowLabel              uint32
}

func (p IPv6) encode(_, next Layer, payload []byte) []byte {
	hops := p.HopLimit
	if hops == 0 {
		hops = 64
		switch next.(type) {
		case NS, NA, RA:
			hops = 255
		}
	}
	protocol := p.NextHeader
	if protocol == 0 {
		protocol = ipProtocol(next, true)
	}
	b := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(p.TrafficClass)<<20|p.FlowLabel&0xfffff)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, protocol, hops)
	src, dst := p.Src.As16(), p.Dst.As16()
	b = append(append(b, src[:]...), dst[:]...)
	return append(b, payload...)
}

// UDP is a datagram header.
type UDP struct {
	SrcPort, DstPort uint16
	// NoChecksum leaves it zero, as IPv4 allows.
	NoChecksum bool
}

func (u UDP) encode(ip, _ Layer, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, u.SrcPort)
	b = binary.BigEndian.AppendUint16(b, u.DstPort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	if !u.NoChecksum {
		binary.BigEndian.PutUint16(b[6:], orUint16(l4checksum(ip, protoUDP, b), 0xffff))
	}
	return b
}

// TCP is a segment header. Flags are letters as tcpdump has them, with A for ACK: "S", "SA", "A", "PA", "FA", "R".
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            string
	Window           uint16
	MSS              uint16 // the option, if not 0
}

// tcpFlags lists the letters from the lowest bit up: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR.
const tcpFlags = "FSRPAUEW"

func (s TCP) encode(ip, _ Layer, payload []byte) []byte {
	var options []byte
	if s.MSS != 0 {
		options = binary.BigEndian.AppendUint16([]byte{2, 4}, s.MSS)
	}
	var flags byte
	for _, f := range s.Flags {
		bit := strings.IndexRune(tcpFlags, f)
		if bit < 0 {
			panic(fmt.Sprintf("TCP flag %q is none of %s", f, tcpFlags))
		}
		flags |= 1 << bit
	}
	b := binary.BigEndian.AppendUint16(nil, s.SrcPort)
	b = binary.BigEndian.AppendUint16(b, s.DstPort)
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	b = append(b, byte((20+len(options))/4)<<4, flags)
	b = binary.BigEndian.AppendUint16(b, orUint16(s.Window, 65535))
	b = append(b, 0, 0, 0, 0)
	b = append(b, options...)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], l4checksum(ip, protoTCP, b))
	return b
}
