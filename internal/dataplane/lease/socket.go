package lease

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// receiveBuffer is small on purpose: what a flood leaves in it is stale when it is read.
const receiveBuffer = 128 << 10

// Sockets opens links to vNICs. enter runs a function in a compartment: the sockets that it opens stay there.
func Sockets(enter func(path string, fn func() error) error) func(context.Context, *Want) (Link, error) {
	return func(ctx context.Context, w *Want) (Link, error) {
		l := &socket{mac: w.MAC, nic: w.NIC}
		if w.NIC {
			l.vlan = w.VLAN // a vNIC's frames get theirs by its port, which takes none that have one
		}
		open := func() error {
			err := l.open(w)
			if err == nil && !w.NIC {
				awaitUp(ctx, w.Device)
			}
			return err
		}
		if err := enter(w.Namespace, open); err != nil {
			return nil, err
		}
		return l, nil
	}
}

// upWithin bounds the wait for a vNIC that was just set up: the kernel drops what is sent there until it has noticed the carrier, which
// it does a few milliseconds later.
const upWithin = 100 * time.Millisecond

// awaitUp waits for that, in the network namespace of the calling thread.
func awaitUp(ctx context.Context, device string) {
	ctx, cancel := context.WithTimeout(ctx, upWithin)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !isUp(device) {
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// isUp tells whether a device is operational (RFC 2863), or cannot be asked.
func isUp(device string) bool {
	i, err := net.InterfaceByName(device)
	return err != nil || i.Flags&net.FlagRunning != 0
}

// socket is a packet socket on a vNIC, and UDP sockets that keep the compartment's stack from telling servers that
// their answers are for nobody (ICMP port unreachable).
type socket struct {
	f     *os.File
	raw   syscall.RawConn
	once  sync.Once
	plugs []int
	mac   plan.MAC
	nic   bool
	vlan  uint16 // of what a NIC sends, and of what is heard there: the kernel takes the tag off and tells of it beside
	oob   [256]byte
}

// open opens in the network namespace of the calling thread.
func (l *socket) open(w *Want) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	if err := prepare(fd, w.Device, w.MAC); err != nil {
		unix.Close(fd)
		return err
	}
	l.f = os.NewFile(uintptr(fd), "packets of "+w.Device)
	if l.raw, err = l.f.SyscallConn(); err != nil {
		l.f.Close()
		return err
	}
	if w.NIC {
		return nil // the host's own clients are at those ports
	}
	if w.IPv4 {
		l.plug(unix.AF_INET, w.Device, &unix.SockaddrInet4{Port: client4})
	}
	if w.IPv6 {
		l.plug(unix.AF_INET6, w.Device, &unix.SockaddrInet6{Port: client6})
	}
	return nil
}

func prepare(fd int, device string, mac plan.MAC) error {
	if err := attach(fd, filter(mac, nil)); err != nil {
		return err
	}
	for _, opt := range [][3]int{
		{unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer},
		{unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
	} {
		if err := unix.SetsockoptInt(fd, opt[0], opt[1], opt[2]); err != nil {
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

func attach(fd int, filter []bpf.Instruction) error {
	prog, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble the filter: %w", err)
	}
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: (*unix.SockFilter)(unsafe.Pointer(&prog[0]))}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &p); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	return nil
}

// plug takes a client's port and keeps nothing that comes to it. If the port is the container's, it answers itself.
func (l *socket) plug(family int, device string, at unix.Sockaddr) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	err = attach(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}})
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device))
	if family == unix.AF_INET6 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err != nil || unix.Bind(fd, at) != nil {
		unix.Close(fd)
		return
	}
	l.plugs = append(l.plugs, fd)
}

// test is a load and what it must give.
type test struct {
	load bpf.Instruction
	val  uint32
	none bool // none of the bits of val, instead of val
}

func abs(off, size int, val uint32) test {
	return test{load: bpf.LoadAbsolute{Off: uint32(off), Size: size}, val: val}
}

func ind(off, size int, val uint32) test {
	return test{load: bpf.LoadIndirect{Off: uint32(off), Size: size}, val: val}
}

// maxClaims bounds the filter: an endpoint has an address of each family by DHCP, and probes one of each at a time.
const maxClaims = 8

// filter lets through answers of DHCP servers that carry the client's MAC or are sent to it, router advertisements, and
// ARP and neighbour discovery about some addresses by others. Everything is looked at again by parseFrame.
func filter(mac plan.MAC, claims []netip.Addr) []bpf.Instruction {
	high, low := binary.BigEndian.Uint32(mac[:]), uint32(binary.BigEndian.Uint16(mac[4:]))
	const (
		l4     = ethLen + ip6Len
		chaddr = ethLen + udpLen + 28 // after the IPv4 header, whose length is in X
	)
	alternatives := [][]test{
		{
			abs(12, 2, etherIPv4), abs(ethLen+9, 1, protoUDP),
			{bpf.LoadAbsolute{Off: ethLen + 6, Size: 2}, 0x3fff, true},
			ind(ethLen+2, 2, client4), ind(chaddr, 4, high), ind(chaddr+4, 2, low),
		},
		{abs(12, 2, etherIPv6), abs(ethLen+6, 1, protoUDP), abs(l4+2, 2, client6), abs(0, 4, high), abs(4, 2, low)},
		{abs(12, 2, etherIPv6), abs(ethLen+6, 1, protoICMPv6), abs(l4, 1, routerAdvert)},
	}
	for _, a := range claims[:min(len(claims), maxClaims)] {
		alternatives = append(alternatives, claimTests(a)...)
	}
	var p []bpf.Instruction
	for _, tests := range alternatives {
		p = append(p, all(tests)...)
	}
	return append(p, bpf.RetConstant{Val: 0})
}

// claimTests are the frames in which somebody has an address, or asks for it before taking it.
func claimTests(a netip.Addr) [][]test {
	if a.Is4() {
		b := a.As4()
		v := binary.BigEndian.Uint32(b[:])
		return [][]test{
			{abs(12, 2, etherARP), abs(ethLen+14, 4, v)},
			{abs(12, 2, etherARP), abs(ethLen+14, 4, 0), abs(ethLen+24, 4, v)},
		}
	}
	b := a.As16()
	target := []test{abs(12, 2, etherIPv6), abs(ethLen+6, 1, protoICMPv6)}
	for i := 0; i < 16; i += 4 {
		target = append(target, abs(ethLen+ip6Len+icmpLen+i, 4, binary.BigEndian.Uint32(b[i:])))
	}
	return [][]test{
		append(slices.Clone(target), abs(ethLen+ip6Len, 1, neighbourClaim)),
		append(slices.Clone(target), abs(ethLen+ip6Len, 1, neighbourSolicit)),
	}
}

// all accepts a frame that passes each test, and else goes on behind itself.
func all(tests []test) []bpf.Instruction {
	var p []bpf.Instruction
	end := 2*len(tests) + 2
	p = append(p, bpf.LoadMemShift{Off: ethLen}) // of use only if this is IPv4
	for _, t := range tests {
		p = append(p, t.load)
		cond := bpf.JumpNotEqual
		if t.none {
			cond = bpf.JumpBitsSet
		}
		p = append(p, bpf.JumpIf{Cond: cond, Val: t.val, SkipTrue: uint8(end - len(p) - 1)})
	}
	return append(p, bpf.RetConstant{Val: maxFrame})
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// Listen exchanges the filter; what is in the buffer has passed the one before.
func (l *socket) Listen(claims []netip.Addr) error {
	var err error
	if ctlErr := l.raw.Control(func(fd uintptr) { err = attach(int(fd), filter(l.mac, claims)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

// Send puts a frame on the wire.
func (l *socket) Send(frame []byte) error {
	if l.vlan != 0 {
		tag := binary.BigEndian.AppendUint16([]byte{0x81, 0}, l.vlan)
		frame = slices.Concat(frame[:12], tag, frame[12:])
	}
	var err error
	if rawErr := l.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), frame)
		return !errors.Is(err, unix.EAGAIN)
	}); rawErr != nil {
		return rawErr
	}
	return err
}

// Receive waits for a frame. On a NIC it is one of the right VLAN.
func (l *socket) Receive(buf []byte) (n int, summed bool, err error) {
	for {
		var vlan uint16
		if rawErr := l.raw.Read(func(fd uintptr) bool {
			var oobn int
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, l.oob[:], 0)
			if err == nil {
				summed, vlan = besides(l.oob[:oobn])
			}
			return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
		}); rawErr != nil {
			return 0, false, rawErr
		}
		if err != nil {
			return 0, false, fmt.Errorf("read %s: %w", l.f.Name(), err)
		}
		if !l.nic || vlan == l.vlan {
			return n, summed, nil
		}
	}
}

// besides reads what the kernel says of a frame: whether it has its checksums, which are not believed in without its word, and its
// VLAN (struct tpacket_auxdata).
func besides(oob []byte) (summed bool, vlan uint16) {
	for len(oob) >= unix.CmsgLen(0) {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return false, 0
		}
		if head.Level == unix.SOL_PACKET && head.Type == unix.PACKET_AUXDATA && len(data) >= 18 {
			status := binary.NativeEndian.Uint32(data)
			if status&unix.TP_STATUS_VLAN_VALID != 0 {
				vlan = binary.NativeEndian.Uint16(data[16:]) & 0xfff
			}
			return status&unix.TP_STATUS_CSUMNOTREADY == 0, vlan
		}
		oob = rest
	}
	return false, 0
}

// Close ends a Receive that waits.
func (l *socket) Close() error {
	var errs []error
	l.once.Do(func() {
		for _, fd := range l.plugs {
			errs = append(errs, unix.Close(fd))
		}
		errs = append(errs, l.f.Close())
	})
	return errors.Join(errs...)
}
