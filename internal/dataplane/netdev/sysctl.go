package netdev

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A setting is named by its path below /proc/sys ("net/ipv4/ip_forward"). The kernel shows each thread the settings of
// its own network namespace there.
//
// It does so with one directory entry per namespace and name, all with the same hash, and so a walk along
// /proc/sys/net/ipv6/conf compares hundreds of entries at each step when hundreds of compartments have been set up:
// with 1,000 compartments this alone made an attach five times slower. Hence a private instance of procfs that no path
// leads to, replaced before it fills up.

// procTree is that instance.
type procTree struct {
	mu     sync.Mutex
	fd     int // -1: none yet
	spaces int // namespaces that were set up through it
}

// procLife is how many namespaces an instance serves. A new one costs less than half a millisecond.
const procLife = 64

// open opens a setting of the calling thread's namespace. It does without the runtime's poller, which would cost more
// than a write.
func (t *procTree) open(key string, flags int) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fd < 0 {
		fd, err := newProc()
		if err != nil {
			// Not allowed to mount: the common one does, more slowly.
			fd, err = unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return -1, err
		}
		t.fd, t.spaces = fd, 0
	}
	return unix.Openat(t.fd, "sys/"+key, flags|unix.O_CLOEXEC, 0)
}

// another counts a namespace that is about to be set up.
func (t *procTree) another() {
	t.mu.Lock()
	full := t.spaces >= procLife
	t.spaces++
	t.mu.Unlock()
	if full {
		t.close()
	}
}

func (t *procTree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

// newProc mounts a procfs at no place.
func newProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// writeSysctl sets a setting in the calling thread's namespace.
func (n *Netdev) writeSysctl(key, value string) error {
	if !strings.HasPrefix(key, "net/") || filepath.Clean(key) != key {
		return fmt.Errorf("set sysctl %s: only settings below net/ belong to a compartment", key)
	}
	fd, err := n.proc.open(key, unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", key, err)
	}
	defer unix.Close(fd)
	n.writes.Add(1)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", key, value, err)
	}
	return nil
}

func (n *Netdev) writeSysctls(settings map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		if err := n.writeSysctl(key, settings[key]); err != nil {
			return err
		}
	}
	return nil
}

// setSysctl sets a setting of the host's for an owner.
func (ps *pass) setSysctl(owner, key, value string) error {
	if ps.dry != nil {
		ps.dry.sysctl(owner, "the host", key, value)
		return nil
	}
	return ps.n.writeSysctl(key, value)
}

// readSysctl reads a setting in the calling thread's namespace.
func (n *Netdev) readSysctl(key string) (string, error) {
	fd, err := n.proc.open(key, unix.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	defer unix.Close(fd)
	var buf [256]byte
	size, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(buf[:size])), nil
}

func routeLocalnet(name string) string { return "net/ipv4/conf/" + name + "/route_localnet" }

// deviceSettings are those of one of our links in the host's namespace.
func deviceSettings(hostVNIC bool, name string) [][2]string {
	if hostVNIC {
		return [][2]string{
			// A port published on 127.0.0.1 is answered through this device: its replies carry that address. The
			// switch lets no container send from or to 127.0.0.0/8.
			{routeLocalnet(name), "1"},
			{"net/ipv6/conf/" + name + "/accept_ra", "0"},
		}
	}
	// The host's own stack has nothing to say on the switch side of a port.
	return [][2]string{{"net/ipv6/conf/" + name + "/disable_ipv6", "1"}}
}

// quietVNIC are the settings of a vNIC in a namespace of another runtime, whose other interfaces may well ask for a router.
// One with an IPv6 address needs IPv6, which some runtimes turn off.
func quietVNIC(v *plan.VNIC) [][2]string {
	out := [][2]string{{"net/ipv6/conf/" + v.Device + "/accept_ra", "0"}}
	if slices.ContainsFunc(v.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		out = append(out, [2]string{"net/ipv6/conf/" + v.Device + "/disable_ipv6", "0"})
	}
	return out
}

// ensureSettings sets what differs, or all of a device that was just made: reading costs what writing does. A device
// without IPv6 (kernel or MTU) lacks those of IPv6.
func (ps *pass) ensureSettings(fresh bool, id string, settings [][2]string) error {
	return ps.n.home.do(func() error {
		for _, kv := range settings {
			if !fresh {
				have, err := ps.n.readSysctl(kv[0])
				if err == nil && have == kv[1] || errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil {
					return err
				}
				ps.found(id, "sysctl "+kv[0], "%s", have)
			}
			if err := ps.setSysctl(id, kv[0], kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}
