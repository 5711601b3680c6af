// Package agent is process 1 of a utility VM: it makes the container there and does what the host asks.
//
// Linux makes every network device in the first network namespace. So before it loads any driver, the agent leaves that namespace,
// and with it all that will ever run in the VM: the first namespace becomes a holding pen, into which only a netlink socket of the
// agent reaches. A NIC goes from there straight to the container's compartment. In the utility VM itself there is but a loopback
// device, before, while and after the container runs; and when the compartment ends, the kernel puts the NIC back into the pen.
//
// The root file system is the kernel's initial one, which cannot be exchanged for another (pivot_root). A bind mount of it can, so
// the agent moves onto one, and the OCI runtime needs no weaker way of entering a container.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Places in the guest, which the writer of the initial file system knows, too.
const (
	ModuleDir   = "/modules"       // drivers, and a file "order" with their names
	RuntimePath = "/bin/container" // the OCI runtime
	ShareDir    = "/run/share"     // what the host shares
	DiskDir     = "/run/disk"      // the disk, of a VM that has one; a directory "bulkhead" is on it
	RootsDir    = "/run/roots"     // the disks with containers' files, by their places
	HandedDir   = "/run/handed"    // the files that the host hands over, by the same
	PortName    = "bulkhead.0"     // the virtio-serial port
)

// penEnv hands the descriptor of the pen to the second life of process 1.
const penEnv = "BULKHEAD_PEN"

// Main is process 1. It returns only with an error, whereupon the kernel panics and QEMU ends, as it is told to.
func Main() error {
	pen := os.Getenv(penEnv)
	if pen == "" {
		return enter()
	}
	fd, err := strconv.Atoi(pen)
	if err != nil {
		return fmt.Errorf("read %s: %w", penEnv, err)
	}
	unix.CloseOnExec(fd)
	_ = os.Unsetenv(penEnv)
	return live(fd)
}

// enter makes the root file system and leaves the first network namespace, then begins anew: of a process with several threads only
// the one that calls leaves a namespace, and what it executes has but that one.
func enter() error {
	runtime.LockOSThread()
	if err := raiseFiles(); err != nil {
		return err
	}
	if err := makeRoot(); err != nil {
		return err
	}
	// In the pen nobody shall speak IPv6 on a NIC that waits there.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	pen, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("open the holding pen: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("leave the holding pen: %w", err)
	}
	err = unix.Exec("/proc/self/exe", []string{"/init"}, append(os.Environ(), penEnv+"="+strconv.Itoa(pen)))
	return fmt.Errorf("begin anew outside the holding pen: %w", err)
}

// openFiles is how many a process in the VM may have open unless it is told otherwise: as many as below the service on the host, and not
// the few of a kernel that has just booted.
const openFiles = 1 << 20

// raiseFiles sets it for us, from whom all have it.
func raiseFiles() error {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: openFiles, Max: openFiles}); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}

type mountPoint struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func makeRoot() error {
	const top = "/top"
	if err := os.Mkdir(top, 0o755); err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	if err := unix.Mount("/", top, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	for _, m := range []mountPoint{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"sys", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"dev", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"pts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "ptmxmode=0666"},
		{"run", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmp", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	} {
		at := filepath.Join(top, m.target)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("make the root: %w", err)
		}
		if err := unix.Mount(m.source, at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := unix.Chdir(top); err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move to the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("move to the root: %w", err)
	}
	return nil
}

// live does what the host asks until it is gone.
func live(pen int) error {
	if err := loadModules(ModuleDir); err != nil {
		return err
	}
	nics, err := newNICs(pen)
	if err != nil {
		return err
	}
	port, err := openPort("/sys/class/virtio-ports", "/dev", PortName)
	if err != nil {
		return err
	}
	oci, err := sealedRuntime(RuntimePath)
	if err != nil {
		return err
	}
	_ = os.Remove(RuntimePath) // the VM's memory has it once
	procs := newProcesses(oci)
	go procs.reap()
	line := proto.NewLine(port)
	for over := true; over; {
		s := line.Session()
		err = proto.Serve(context.Background(), s, &agent{nics: nics, procs: procs, rest: s.Rest})
		over = s.Over()
	}
	// The host is gone, or has had enough. Nobody needs the VM any more.
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return err
}

// loadModules loads drivers in their order.
func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return fmt.Errorf("load drivers: %w", err)
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("load driver: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load driver %s: %w", name, err)
		}
	}
	return nil
}

// openPort finds a virtio-serial port by its name. The device is there as soon as its driver is.
func openPort(class, dev, name string) (io.ReadWriteCloser, error) {
	deadline := time.Now().Add(10 * time.Second)
	for ; ; pause() {
		entries, _ := os.ReadDir(class)
		for _, e := range entries {
			have, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
			if err != nil || strings.TrimSpace(string(have)) != name {
				continue
			}
			f, err := os.OpenFile(filepath.Join(dev, e.Name()), os.O_RDWR, 0)
			if err == nil {
				return f, nil
			}
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("open the port to the host: %w", err)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("open the port to the host: there is no port %s", name)
		}
	}
}

// pause lets some milliseconds go by, where the kernel offers nothing to wait for.
func pause() { <-time.After(5 * time.Millisecond) }

// agent answers the host.
type agent struct {
	nics  *nics
	procs *processes
	rest  func() // the session
}

func decode[T any](body json.RawMessage) (T, error) {
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("read the request: %w", err)
	}
	return v, nil
}

// Handle implements proto.Handler.
func (a *agent) Handle(ctx context.Context, op string, body json.RawMessage) (any, func(net.Conn), error) {
	switch op {
	case proto.OpHello:
		v, err := decode[proto.Hello](body)
		if err != nil {
			return nil, nil, err
		}
		w, err := hello(v)
		return w, nil, err
	case proto.OpNIC:
		v, err := decode[proto.NIC](body)
		if err == nil {
			err = a.nics.set(ctx, v)
		}
		return nil, nil, err
	case proto.OpNoNIC:
		v, err := decode[proto.NIC](body)
		if err == nil {
			err = a.nics.remove(v)
		}
		return nil, nil, err
	case proto.OpDial:
		if v, err := decode[proto.Dial](body); err == nil && v.Network != "" {
			return connect(ctx, a.nics.boxF, v)
		}
	case proto.OpHalt:
		unix.Sync()
		return nil, nil, nil
	case proto.OpRest:
		debug.FreeOSMemory() // less to save, and to restore
		return nil, func(c net.Conn) { a.rest(); _ = c.Close() }, nil
	}
	return a.procs.handle(ctx, op, body)
}

// hello takes over the host's time and entropy.
func hello(h proto.Hello) (proto.Welcome, error) {
	var u unix.Utsname
	_ = unix.Uname(&u)
	w := proto.Welcome{Version: proto.Version, Kernel: unix.ByteSliceToString(u.Release[:])}
	if h.Version != proto.Version {
		return w, nil // the host says what that means
	}
	t := unix.NsecToTimespec(h.Time)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &t); err != nil {
		return w, fmt.Errorf("set the clock: %w", err)
	}
	return w, addEntropy(h.Entropy)
}
