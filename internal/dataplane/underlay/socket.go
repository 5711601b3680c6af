package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// sender has the sockets by which frames leave from one address of the host.
type sender struct {
	from netip.Addr
	port uint16 // of the frames whose checksum is made here
	fds  map[Sum]int
}

// openSender opens in the network namespace of the calling thread. The kernel is told not to fragment, and to try every size that
// the NIC takes, whatever it has heard of the path.
func openSender(from netip.Addr) (s *sender, err error) {
	s = &sender{from: from, port: 0xc000 | uint16(len(from.AsSlice())), fds: map[Sum]int{}}
	defer func() {
		if err != nil {
			s.close()
			s, err = nil, fmt.Errorf("open a socket to send from %s: %w", from, err)
		}
	}()
	for _, sum := range sumsOf(from) {
		domain, typ, proto := unix.AF_INET, unix.SOCK_DGRAM, 0
		if !from.Is4() {
			domain = unix.AF_INET6
		}
		if sum == SumWhole {
			typ, proto = unix.SOCK_RAW, unix.IPPROTO_UDP
		}
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return s, err
		}
		s.fds[sum] = fd
		opts := [][3]int{{unix.SOL_SOCKET, unix.SO_RCVBUF, 1}} // what comes in is read at the NIC
		if from.Is4() {
			opts = append(opts, [3]int{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE})
		} else {
			opts = append(opts, [3]int{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}, [3]int{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1})
		}
		if sum == SumNone {
			opts = append(opts, [3]int{unix.SOL_SOCKET, unix.SO_NO_CHECK, 1})
		}
		for _, o := range opts {
			if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
				return s, err
			}
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			return s, err
		}
	}
	return s, nil
}

// sumsOf are the ways of checksums that are tried from an address. IPv6 has none without.
func sumsOf(from netip.Addr) []Sum {
	if from.Is4() {
		return []Sum{SumNone, SumWhole, SumLeft}
	}
	return []Sum{SumLeft, SumWhole}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// send gives a frame to the kernel.
func (s *sender) send(sum Sum, to netip.AddrPort, payload []byte) error {
	b, dst := payload, to
	if sum == SumWhole {
		b, dst = datagram(s.from, to.Addr(), s.port, to.Port(), payload), netip.AddrPortFrom(to.Addr(), 0)
	}
	return unix.Sendto(s.fds[sum], b, 0, sockaddr(dst))
}

func (s *sender) close() {
	for _, fd := range s.fds {
		unix.Close(fd)
	}
}

// tap reads frames where they come in, before anybody else has had them in hand: neither the programs at the NIC nor the host's
// firewall. On a tunnel's device it reads those that the host's stack let through.
type tap struct {
	fd     int
	device bool // it is a tunnel's
	buf    []byte
	oob    []byte
}

// openTap opens in the network namespace of the calling thread. All protocols: a socket of one protocol would be asked after the
// programs at the NIC.
func openTap(device string, tunnel bool) (*tap, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", device, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	t := &tap{fd: fd, device: tunnel, buf: make([]byte, 1<<16), oob: make([]byte, 128)}
	if err := t.prepare(ifi.Index); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("read frames at %s: %w", device, err)
	}
	return t, nil
}

func (t *tap) prepare(index int) error {
	ins := wireFilter()
	if t.device {
		ins = innerFilter()
	}
	raw, err := bpf.Assemble(ins)
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	if err := unix.SetsockoptSockFprog(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	if err := unix.SetsockoptInt(t.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		return err
	}
	// It looks up now and then whether it is to end.
	if err := unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	var all [2]byte
	binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
	return unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all[:]), Ifindex: index})
}

// wireFilter lets UDP with the check's VNI through, of IPv4 without options and of IPv6.
func wireFilter() []bpf.Instruction {
	const keep = 1 << 16
	at := func(ip uint32) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: ip + udpLen + 4, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: checkVNI << 8, SkipTrue: 1},
			bpf.RetConstant{Val: keep},
			bpf.RetConstant{Val: 0},
		}
	}
	ins := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x45, SkipFalse: 7},
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 17, SkipFalse: 4},
	}
	ins = append(ins, at(20)...)
	ins = append(ins,
		bpf.RetConstant{Val: 0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipFalse: 6},
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 17, SkipFalse: 4},
	)
	return append(append(ins, at(40)...), bpf.RetConstant{Val: 0})
}

// innerFilter lets notes through.
func innerFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: magic, SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
}

// errQuiet says that nothing came for a moment.
var errQuiet = errors.New("nothing came")

// read gives the next frame that came in.
func (t *tap) read() (packet, error) {
	n, oobn, _, from, err := unix.Recvmsg(t.fd, t.buf, t.oob, unix.MSG_TRUNC)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return packet{}, errQuiet
	case err != nil:
		return packet{}, err
	}
	if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING || n > len(t.buf) {
		return packet{}, errForeign
	}
	if t.device {
		note, err := decodeNote(t.buf[:n])
		return packet{note: note}, err
	}
	return decode(t.buf[:n], summed(t.oob[:oobn]))
}

// summed says whether the checksum is made: of a packet that never left the memory of this machine it may be to do.
func summed(oob []byte) bool {
	for len(oob) >= unix.CmsgLen(0) {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return false
		}
		if head.Level == unix.SOL_PACKET && head.Type == unix.PACKET_AUXDATA && len(data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			return (*unix.TpacketAuxdata)(unsafe.Pointer(&data[0])).Status&unix.TP_STATUS_CSUMNOTREADY == 0
		}
		oob = rest
	}
	return false
}

func (t *tap) close() { unix.Close(t.fd) }
