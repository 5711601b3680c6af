package bench

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The server and the client make plain blocking system calls on one thread each, and both are pinned to the same CPU at
// the highest priority: then a round trip costs what the code on its way costs, and no wake-up of another CPU hides it.
// The Go scheduler is kept out of it by calls that it does not see (RawSyscall).

// pin makes this thread the only one that matters.
func pin(cpu string) error {
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	n, err := strconv.Atoi(cpu)
	if err != nil {
		return fmt.Errorf("CPU %q: %w", cpu, err)
	}
	var set unix.CPUSet
	set.Set(n)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", n, err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("raise the priority: %w", err)
	}
	return nil
}

// serveTraffic answers each byte with a byte. Arguments: CPU, address and port, and what it is to serve. With crr it closes
// a connection after the first answer, so that its end is the one that lingers, and the client never runs out of ports.
func serveTraffic(args []string, out io.Writer) error {
	if len(args) != 3 {
		return errors.New("want CPU, address, rr|crr|udp|udpnew")
	}
	addr, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	if err := pin(args[0]); err != nil {
		return err
	}
	if isUDP(args[2]) {
		return serveDatagrams(addr, out)
	}
	ln, err := unix.Socket(family(addr.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(ln, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(ln, sockaddr(addr)); err != nil {
		return fmt.Errorf("bind %s: %w", addr, err)
	}
	if err := unix.Listen(ln, 128); err != nil {
		return err
	}
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	for {
		fd, err := call(unix.SYS_ACCEPT4, ln, nil, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		echo(fd, args[2] == "crr")
		unix.Close(fd)
	}
}

// echo answers until the client closes, or once.
func echo(fd int, once bool) {
	var b [1]byte
	for {
		if n, err := call(unix.SYS_READ, fd, &b, 1); n != 1 || err != nil {
			return
		}
		if _, err := call(unix.SYS_WRITE, fd, &b, 1); err != nil || once {
			return
		}
	}
}

// askTraffic asks for as long as it is told and writes how many transactions there were in a second. Arguments: CPU,
// address and port, what to ask for, duration.
func askTraffic(args []string, out io.Writer) error {
	if len(args) != 4 {
		return errors.New("want CPU, address, rr|crr|udp|udpnew, duration")
	}
	addr, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	length, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	if err := pin(args[0]); err != nil {
		return err
	}
	run := askOnOne
	switch args[2] {
	case "crr":
		run = askOnMany
	case "udp":
		run = sendDatagrams
	case "udpnew":
		run = askFromNewPorts
	}
	start := time.Now()
	n, err := run(addr, start.Add(length))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%f\n", float64(n)/time.Since(start).Seconds())
	return err
}

func askOnOne(addr netip.AddrPort, end time.Time) (int, error) {
	fd, err := connect(addr)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for n := 0; ; n++ {
		// Reading the clock costs too much to do it each time.
		if n%64 == 0 && !time.Now().Before(end) {
			return n, nil
		}
		if err := transact(fd); err != nil {
			return 0, err
		}
	}
}

func askOnMany(addr netip.AddrPort, end time.Time) (int, error) {
	var b [1]byte
	n := 0
	for ; time.Now().Before(end); n++ {
		fd, err := connect(addr)
		if err != nil {
			return 0, err
		}
		err = transact(fd)
		if err == nil {
			_, err = call(unix.SYS_READ, fd, &b, 1) // the server closes first
		}
		unix.Close(fd)
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

func connect(addr netip.AddrPort) (int, error) {
	fd, err := unix.Socket(family(addr.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(addr)); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

// transact is one transaction.
func transact(fd int) error {
	b := [1]byte{'x'}
	if _, err := call(unix.SYS_WRITE, fd, &b, 1); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	n, err := call(unix.SYS_READ, fd, &b, 1)
	if err == nil && n != 1 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
