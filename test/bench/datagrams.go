package bench

import (
	"fmt"
	"io"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Datagrams are sent in bursts that fit into a socket's buffer, and each burst is answered by one that says how much of it
// has come: so nothing is lost for want of a turn on the one CPU, and what is counted has arrived.
const (
	burst        = 100
	datagramSize = 64
	lastOfBurst  = 'l'
	patienceUDP  = 200 * time.Millisecond
)

func isUDP(kind string) bool { return kind == "udp" || kind == "udpnew" }

// serveDatagrams answers the last of each burst, and each datagram of another size, with how many have come since the
// last answer.
func serveDatagrams(addr netip.AddrPort, out io.Writer) error {
	fd, err := unix.Socket(family(addr.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		return fmt.Errorf("bind %s: %w", addr, err)
	}
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	var from unix.RawSockaddrAny
	b := make([]byte, datagramSize)
	for got := 0; ; {
		n, size, err := receive(fd, b, &from)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		got++
		if n == datagramSize && b[0] != lastOfBurst {
			continue
		}
		b[0], got = byte(min(got, burst)), 0
		// A client that has gone is no error.
		_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), 1, 0, uintptr(unsafe.Pointer(&from)), uintptr(size))
	}
}

func receive(fd int, b []byte, from *unix.RawSockaddrAny) (n int, size uint32, err error) {
	for {
		size = unix.SizeofSockaddrAny
		r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)))
		switch errno {
		case 0:
			return int(r), size, nil
		case unix.EINTR:
		default:
			return 0, 0, errno
		}
	}
}

// openDatagrams is a socket for one server, from a port of its own.
func openDatagrams(addr netip.AddrPort) (int, error) {
	fd, err := unix.Socket(family(addr.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	wait := unix.NsecToTimeval(patienceUDP.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(addr)); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

// sendDatagrams sends burst after burst and returns how many datagrams have arrived.
func sendDatagrams(addr netip.AddrPort, end time.Time) (int, error) {
	fd, err := openDatagrams(addr)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	b := make([]byte, datagramSize)
	var answer [1]byte
	n := 0
	for time.Now().Before(end) {
		for i := range burst {
			b[0] = 'x'
			if i == burst-1 {
				b[0] = lastOfBurst
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), datagramSize); errno != 0 {
				return 0, fmt.Errorf("send: %w", errno)
			}
		}
		// Without an answer the last one is lost, and with it the count of the others.
		if _, err := call(unix.SYS_READ, fd, &answer, 1); err == nil {
			n += int(answer[0])
		}
	}
	return n, nil
}

// askFromNewPorts asks one thing from each of many ports: every packet but the answer is the first of its flow.
func askFromNewPorts(addr netip.AddrPort, end time.Time) (int, error) {
	n := 0
	for time.Now().Before(end) {
		fd, err := openDatagrams(addr)
		if err != nil {
			return 0, err
		}
		err = transact(fd)
		unix.Close(fd)
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}
