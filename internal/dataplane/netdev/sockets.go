package netdev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenPacket opens a datagram socket in the compartment bound at path, tied to a device there ("" for none). The
// address may belong to another device of the compartment too, as several networks may have the same gateway.
func (n *Netdev) ListenPacket(ctx context.Context, path, device, network string, addr netip.AddrPort) (net.PacketConn, error) {
	var c net.PacketConn
	lc := listenConfig(device)
	err := n.Enter(path, func() (err error) { c, err = lc.ListenPacket(ctx, network, addr.String()); return err })
	if err != nil {
		return nil, fmt.Errorf("listen on %s %s in %s: %w", network, addr, path, err)
	}
	return c, nil
}

// Listen opens a stream socket like ListenPacket.
func (n *Netdev) Listen(ctx context.Context, path, device, network string, addr netip.AddrPort) (net.Listener, error) {
	var l net.Listener
	lc := listenConfig(device)
	err := n.Enter(path, func() (err error) { l, err = lc.Listen(ctx, network, addr.String()); return err })
	if err != nil {
		return nil, fmt.Errorf("listen on %s %s in %s: %w", network, addr, path, err)
	}
	return l, nil
}

func listenConfig(device string) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if device == "" {
			return nil
		}
		var err error
		if ctlErr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }); ctlErr != nil {
			return ctlErr
		}
		if err != nil {
			return fmt.Errorf("bind to device %s: %w", device, err)
		}
		return nil
	}}
}

// DeviceIndex gives the index of a device in the compartment bound at path ("" for the host): a device that was deleted
// and made anew under the same name has another one. It asks by ioctl, which unlike netlink does not wait for the
// kernel's configuration lock; a batch of deletions may hold that for a while.
func (n *Netdev) DeviceIndex(ctx context.Context, path, device string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	ask, index := n.home.do, 0
	if path != "" {
		ask = func(fn func() error) error { return n.Enter(path, fn) }
	}
	if err := ask(func() (err error) { index, err = indexByName(device); return err }); err != nil {
		return 0, fmt.Errorf("find device %s in %s: %w", device, place(path), err)
	}
	return index, nil
}

// indexByName looks in the calling thread's namespace.
func indexByName(device string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	return indexAt(fd, device)
}

// indexAt looks in a socket's namespace.
func indexAt(fd int, device string) (int, error) {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

// NamespaceProcesses lists the processes that live in the network namespace bound at path.
func (n *Netdev) NamespaceProcesses(path string) ([]int, error) {
	fd, err := n.openNamespace(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var want unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	var pids []int
	err = n.home.do(func() error {
		return eachProcess(func(pid int) {
			var st unix.Stat_t
			err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st)
			if err == nil && st.Ino == want.Ino && st.Dev == want.Dev {
				pids = append(pids, pid)
			}
		})
	})
	return pids, err
}

func eachProcess(fn func(pid int)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			fn(pid)
		}
	}
	return nil
}

// PortHolder names the process that has a socket on a port of the host ("nginx (process 812)"), or says "" when none
// has. protocol is 6 (TCP, listening sockets) or 17 (UDP). Another network namespace's sockets do not count.
func (n *Netdev) PortHolder(protocol uint8, port uint16) (string, error) {
	var inodes []string
	holder := ""
	err := n.home.do(func() (err error) { inodes, err = socketsOn(protocol, port); return err })
	if err != nil || len(inodes) == 0 {
		return "", err
	}
	err = n.home.do(func() error {
		return eachProcess(func(pid int) {
			if holder == "" && holdsSocket(pid, inodes) {
				comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				holder = fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(comm)), pid)
			}
		})
	})
	if holder == "" {
		holder = "the kernel or a process that cannot be seen"
	}
	return holder, err
}

// socketsOn gives the inodes of the sockets on a port, from /proc/net.
func socketsOn(protocol uint8, port uint16) ([]string, error) {
	files, state := []string{"tcp", "tcp6"}, "0A" // TCP_LISTEN
	if protocol == unix.IPPROTO_UDP {
		files, state = []string{"udp", "udp6"}, ""
	}
	suffix := fmt.Sprintf(":%04X", port)
	var inodes []string
	for _, name := range files {
		data, err := os.ReadFile("/proc/thread-self/net/" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], suffix) && (state == "" || f[3] == state) {
				inodes = append(inodes, "socket:["+f[9]+"]")
			}
		}
	}
	return inodes, nil
}

func holdsSocket(pid int, sockets []string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && slices.Contains(sockets, target) {
			return true
		}
	}
	return false
}
