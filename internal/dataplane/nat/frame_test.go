package nat

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// udpFrame is an Ethernet frame with a UDP datagram, with whatever addresses are given.
func udpFrame(from, to net.HardwareAddr, src, dst netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(udp)))
	pseudo = append(pseudo, 0, 0, 0, 17)
	binary.BigEndian.PutUint16(udp[6:], checksumOf(append(pseudo, udp...)))

	frame := append(append([]byte{}, to...), from...)
	if src.Addr().Is4() {
		ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
		ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksumOf(ip))
		return append(append(append(frame, 0x08, 0x00), ip...), udp...)
	}
	ip := []byte{0x60, 0, 0, 0, 0, 0, 17, 64}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return append(append(append(frame, 0x86, 0xdd), ip...), udp...)
}

// checksumOf is the Internet checksum of RFC 1071.
func checksumOf(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func sendFrame(t *testing.T, h *testhost.Host, dev string, to net.HardwareAddr, frame []byte) {
	t.Helper()
	index := h.Link(dev).Attrs().Index
	var err error
	h.Do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		sa := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
		copy(sa.Addr[:], to)
		err = unix.Sendto(fd, frame, 0, sa)
	})
	if err != nil {
		t.Fatalf("send frame: %v", err)
	}
}
