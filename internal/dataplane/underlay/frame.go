package underlay

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// A frame of the check looks on the wire like one of a tunnel: IP with DF, UDP to the tunnels' port, VXLAN, Ethernet. Its virtual
// network is one that no network has, and its inner type is for experiments, so no program and no device takes it for traffic.

// Sum says what a frame's UDP checksum is; as a set, what those of frames are.
type Sum uint8

// The ways of a checksum, as bits.
const (
	// SumNone is zero: what tunnels over IPv4 send.
	SumNone Sum = 1 << iota
	// SumWhole was computed by this program.
	SumWhole
	// SumLeft is left to the NIC where that can: what tunnels over IPv6 send.
	SumLeft
)

// one tells that it is no set.
func (s Sum) one() bool { return s == SumNone || s == SumWhole || s == SumLeft }

// kind of a frame.
type kind uint8

const (
	kindProbe kind = iota + 1
	kindAnswer
)

// note is what a frame says.
type note struct {
	kind kind
	sum  Sum
	// size of the whole packet, IP header and all. An answer has that of what it answers.
	size  uint16
	check [16]byte
	from  hcn.GUID
}

const (
	// checkVNI is the one VNI that is given to no network.
	checkVNI  = 0xffffff
	innerType = 0x88b5 // IEEE 802, for local experiments
	magic     = 0x62686368
	// headers of UDP, VXLAN and Ethernet.
	udpLen, tunnelLen = 8, 8 + 14
	// noteLen is what a note has: magic, kind, sum, size, check, host, checksum of all that follows the inner header.
	noteLen = 4 + 1 + 1 + 2 + 16 + 36 + 4
	crcAt   = noteLen - 4
)

func ipLen(a netip.Addr) int {
	if a.Is4() {
		return 20
	}
	return 40
}

// smallest is the size of a packet with nothing but a note in it.
func smallest(a netip.Addr) int { return ipLen(a) + udpLen + tunnelLen + noteLen }

// encode makes what follows the UDP header, so that the whole packet has a size.
func (n *note) encode(to netip.Addr, size int) []byte {
	b := make([]byte, max(size, smallest(to))-ipLen(to)-udpLen)
	binary.BigEndian.PutUint32(b, 0x08000000)
	binary.BigEndian.PutUint32(b[4:], checkVNI<<8)
	copy(b[8:], []byte{0x02, 'c', 'h', 'e', 'c', 'k', 0x02, 'c', 'h', 'e', 'c', 'k'})
	binary.BigEndian.PutUint16(b[20:], innerType)
	p := b[tunnelLen:]
	binary.BigEndian.PutUint32(p, magic)
	p[4], p[5] = byte(n.kind), byte(n.sum)
	binary.BigEndian.PutUint16(p[6:], n.size)
	copy(p[8:], n.check[:])
	copy(p[24:60], n.from)
	for i := noteLen; i < len(p); i++ { // not all alike: a byte that is lost or doubled shows
		p[i] = byte(i*7 + i>>8)
	}
	binary.BigEndian.PutUint32(p[crcAt:], sumOf(p))
	return b
}

// sumOf is the checksum of a note and what fills it up.
func sumOf(p []byte) uint32 {
	c := crc32.NewIEEE()
	_, _ = c.Write(p[:crcAt])
	_, _ = c.Write(p[noteLen:])
	return c.Sum32()
}

var (
	errForeign = errors.New("no frame of the check")
	errDamaged = errors.New("the frame was changed on its way")
)

// decodeNote reads what follows the inner Ethernet header. A note that is damaged is given as well.
func decodeNote(p []byte) (note, error) {
	if len(p) < noteLen || binary.BigEndian.Uint32(p) != magic {
		return note{}, errForeign
	}
	n := note{kind: kind(p[4]), sum: Sum(p[5]), size: binary.BigEndian.Uint16(p[6:]), check: [16]byte(p[8:24])}
	id, err := hcn.ParseGUID(string(p[24:60]))
	if err != nil || !n.sum.one() || (n.kind != kindProbe && n.kind != kindAnswer) {
		return note{}, errForeign
	}
	n.from = id
	if binary.BigEndian.Uint32(p[crcAt:]) != sumOf(p) {
		return n, errDamaged
	}
	return n, nil
}

// packet is a frame as it was at the NIC.
type packet struct {
	note
	src, dst netip.Addr
	port     uint16
	size     int
	// badSum: its UDP checksum is not that of its content. damaged: nor is its own.
	badSum, damaged bool
}

// decode reads a packet that begins with the IP header. summed says that the checksum in it counts: of what never was on a wire it
// may not be made yet.
func decode(b []byte, summed bool) (packet, error) {
	var p packet
	if len(b) < 1 {
		return p, errForeign
	}
	var udp []byte
	switch b[0] >> 4 {
	case 4:
		head := int(b[0]&15) * 4
		if head < 20 || len(b) < head+udpLen || b[9] != 17 {
			return p, errForeign
		}
		p.size = int(binary.BigEndian.Uint16(b[2:]))
		if p.size > len(b) || p.size < head+udpLen || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // a part of one tells nothing of the whole
			return p, errForeign
		}
		p.src, p.dst, udp = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[head:p.size]
	case 6:
		if len(b) < 40+udpLen || b[6] != 17 {
			return p, errForeign
		}
		p.size = 40 + int(binary.BigEndian.Uint16(b[4:]))
		if p.size > len(b) || p.size < 40+udpLen {
			return p, errForeign
		}
		p.src, p.dst, udp = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[40:p.size]
	default:
		return p, errForeign
	}
	if len(udp) < udpLen+tunnelLen || binary.BigEndian.Uint16(udp[udpLen+20:]) != innerType {
		return p, errForeign
	}
	p.port = binary.BigEndian.Uint16(udp[2:])
	n, err := decodeNote(udp[udpLen+tunnelLen:])
	if errors.Is(err, errForeign) {
		return p, err
	}
	p.note, p.damaged = n, err != nil
	p.badSum = summed && binary.BigEndian.Uint16(udp[6:]) != 0 && udpSum(p.src, p.dst, udp) != 0xffff
	return p, nil
}

// udpSum adds up a datagram with its pseudo header: 0xffff if its checksum is right, its complement what a checksum of zero must
// become.
func udpSum(src, dst netip.Addr, udp []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
	}
	add(src.AsSlice())
	add(dst.AsSlice())
	add([]byte{0, 17, byte(len(udp) >> 8), byte(len(udp))})
	add(udp)
	return uint16(sum)
}

// datagram is a whole UDP datagram with its checksum, for those that this program computes.
func datagram(src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	b := make([]byte, udpLen, udpLen+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(udpLen+len(payload)))
	b = append(b, payload...)
	sum := ^udpSum(src, dst, b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}
