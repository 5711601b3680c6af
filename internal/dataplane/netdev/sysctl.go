package netdev

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A setting is named by its path below /proc/sys ("net/ipv4/ip_forward"). The kernel shows each thread the settings of
// its own network namespace there.

// writeSysctl sets a setting in the calling thread's namespace. It opens the file without the runtime's poller, which
// would cost more than the write.
func (n *Netdev) writeSysctl(key, value string) error {
	if !strings.HasPrefix(key, "net/") || filepath.Clean(key) != key {
		return fmt.Errorf("set sysctl %s: only settings below net/ belong to a compartment", key)
	}
	fd, err := unix.Open("/proc/sys/"+key, unix.O_WRONLY|unix.O_CLOEXEC, 0)
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

// readSysctl reads a setting in the calling thread's namespace.
func readSysctl(key string) (string, error) {
	fd, err := unix.Open("/proc/sys/"+key, unix.O_RDONLY|unix.O_CLOEXEC, 0)
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

// deviceSettings are those of one of our links in the host's namespace.
func deviceSettings(hostVNIC bool, name string) [][2]string {
	if hostVNIC {
		return [][2]string{
			// A port published on 127.0.0.1 is answered through this device: its replies carry that address. The
			// switch lets no container send from or to 127.0.0.0/8.
			{"net/ipv4/conf/" + name + "/route_localnet", "1"},
			{"net/ipv6/conf/" + name + "/accept_ra", "0"},
		}
	}
	// The host's own stack has nothing to say on the switch side of a port.
	return [][2]string{{"net/ipv6/conf/" + name + "/disable_ipv6", "1"}}
}

// ensureSettings sets what differs. A device without IPv6 (kernel or MTU) lacks those of IPv6.
func (ps *pass) ensureSettings(id string, settings [][2]string) error {
	return ps.n.home.do(func() error {
		for _, kv := range settings {
			have, err := readSysctl(kv[0])
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if have == kv[1] {
				continue
			}
			ps.found(id, "sysctl "+kv[0], "%s", have)
			if err := ps.n.writeSysctl(kv[0], kv[1]); err != nil {
				return err
			}
		}
		return nil
	})
}
