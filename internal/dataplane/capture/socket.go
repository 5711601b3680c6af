package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// packet is one frame. Its data is valid until the next one is read.
type packet struct {
	time   time.Time
	data   []byte
	length int // on the wire
	kind   uint8
}

func (p *packet) outgoing() bool { return p.kind == unix.PACKET_OUTGOING }

// reception is whom the frame was addressed to.
func (p *packet) reception() pcapgo.NgEpbFlag {
	switch p.kind {
	case unix.PACKET_HOST:
		return pcapgo.NgEpbFlagReceptionTypeUnicast
	case unix.PACKET_MULTICAST:
		return pcapgo.NgEpbFlagReceptionTypeMulticast
	case unix.PACKET_BROADCAST:
		return pcapgo.NgEpbFlagReceptionTypeBroadcast
	case unix.PACKET_OTHERHOST:
		return pcapgo.NgEpbFlagReceptionTypePromiscuous
	}
	return pcapgo.NgEpbFlagReceptionTypeNotSpecified
}

// socket is a packet socket on one device.
type socket struct {
	f    *os.File
	buf  []byte
	oob  []byte
	pkts uint64
	lost uint64
}

// headroom is for a VLAN tag that the kernel took out.
const headroom = 4

// openSocket opens in the network namespace of the calling thread. Until it is bound
// the socket receives nothing, so no packet passes before the filter is there.
func openSocket(device string, filter []bpf.RawInstruction, rcvbuf int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	if err := prepare(fd, device, filter, rcvbuf); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &socket{
		f: os.NewFile(uintptr(fd), "packets of "+device), buf: make([]byte, headroom+MaxSnaplen), oob: make([]byte, 256),
	}, nil
}

func prepare(fd int, device string, filter []bpf.RawInstruction, rcvbuf int) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf); err != nil {
		return fmt.Errorf("size the buffer: %w", err)
	}
	for _, opt := range [][2]int{{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS}, {unix.SOL_PACKET, unix.PACKET_AUXDATA}} {
		if err := unix.SetsockoptInt(fd, opt[0], opt[1], 1); err != nil {
			return fmt.Errorf("set up the packet socket: %w", err)
		}
	}
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	addr := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: int(ifr.Uint32())}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind to device %s: %w", device, err)
	}
	return nil
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// interrupt ends a read. Closing would as well, but the counters are read afterwards.
func (s *socket) interrupt() { _ = s.f.SetReadDeadline(time.Unix(1, 0)) }

func (s *socket) close() { s.f.Close() }

// read gives packets to a function until ctx ends, one of the functions fails, or the
// device is gone, which is no error. Idle is called when no packet waits.
func (s *socket) read(ctx context.Context, each func(*packet) error, idle func() error) error {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			for ctx.Err() == nil {
				p, err := s.receive(int(fd))
				switch {
				case errors.Is(err, unix.EAGAIN):
					failed = idle()
					return failed != nil // false: wait until there is more
				case errors.Is(err, unix.EINTR):
					continue
				case err != nil:
					failed = err
				default:
					failed = each(p)
				}
				if failed != nil {
					return true
				}
			}
			return true
		})
		switch {
		case errors.Is(failed, unix.ENETDOWN), ctx.Err() != nil && errors.Is(failed, net.ErrClosed):
			return nil
		case failed != nil:
			return failed
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read packets: %w", err)
		}
	}
}

func (s *socket) receive(fd int) (*packet, error) {
	n, oobn, _, from, err := unix.Recvmsg(fd, s.buf[headroom:], s.oob, unix.MSG_TRUNC)
	if err != nil {
		return nil, err
	}
	n = min(n, MaxSnaplen)
	p := &packet{time: time.Now(), data: s.buf[headroom : headroom+n], length: n}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		p.kind = ll.Pkttype
	}
	s.ancillary(p, s.oob[:oobn])
	return p, nil
}

// ancillary reads what the kernel says beside a frame: when it came, how long it was
// before it was cut, and the VLAN tag that is kept apart.
func (s *socket) ancillary(p *packet, oob []byte) {
	for len(oob) >= unix.CmsgLen(0) {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		switch {
		case head.Level == unix.SOL_SOCKET && head.Type == unix.SO_TIMESTAMPNS && len(data) >= int(unsafe.Sizeof(unix.Timespec{})):
			p.time = time.Unix((*unix.Timespec)(unsafe.Pointer(&data[0])).Unix())
		case head.Level == unix.SOL_PACKET && head.Type == unix.PACKET_AUXDATA && len(data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})):
			aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&data[0]))
			p.length = max(int(aux.Len), len(p.data))
			if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 && len(p.data) >= 12 {
				s.tag(p, aux)
			}
		}
		oob = rest
	}
}

// tag puts a VLAN tag back between the addresses and the type.
func (s *socket) tag(p *packet, aux *unix.TpacketAuxdata) {
	tpid := uint16(unix.ETH_P_8021Q)
	if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = aux.Vlan_tpid
	}
	whole := s.buf[:headroom+len(p.data)]
	copy(whole, whole[headroom:headroom+12])
	binary.BigEndian.PutUint16(whole[12:], tpid)
	binary.BigEndian.PutUint16(whole[14:], aux.Vlan_tci)
	p.data, p.length = whole, p.length+headroom
}

// stats are the packets since the beginning: those that matched, and those of them that
// found the buffer full. The kernel counts from the last time it was asked.
func (s *socket) stats() (received, dropped uint64, err error) {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var st *unix.TpacketStats
	if ctlErr := raw.Control(func(fd uintptr) {
		st, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); ctlErr != nil {
		return 0, 0, ctlErr
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read the socket's counters: %w", err)
	}
	s.pkts += uint64(st.Packets)
	s.lost += uint64(st.Drops)
	return s.pkts, s.lost, nil
}
