package netdev

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A container of another runtime comes with its network namespace. We hold it by a bind mount of our own, as we do those that
// we make, so that nothing else has to know the difference; only what the runtime has put in there is not touched. When the
// runtime takes its own name of the namespace away, ours goes too.

// Identify gives the inode of the network namespace at a path that another runtime names. Refused are the host's own and
// compartments of ours, whose endpoints are told by their own names, and everything else that is no network namespace; none
// of that is opened, as opening alone has effects on some files.
func (n *Netdev) Identify(path string) (inode uint64, err error) {
	err = n.home.do(func() error {
		var st unix.Stat_t
		if st, err = netnsAt(path); err != nil {
			return err
		}
		var host unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &host); err != nil {
			return fmt.Errorf("look at the host's network namespace: %w", err)
		}
		if st.Ino == host.Ino && st.Dev == host.Dev {
			return fmt.Errorf("%s is the host's own network namespace: containers that use it need no endpoint", path)
		}
		inode = st.Ino
		return nil
	})
	if err == nil {
		err = n.checkNotOurs(path)
	}
	return inode, err
}

// checkNotOurs refuses compartments that we made, by the names that they have.
func (n *Netdev) checkNotOurs(path string) error {
	if filepath.Dir(filepath.Clean(path)) == n.opts.NetnsDir && strings.HasPrefix(filepath.Base(path), compartmentPrefix) {
		return fmt.Errorf("%s is a compartment of ours: name its HCN namespace instead", path)
	}
	return nil
}

// netnsAt looks at a file without opening it, which fails with ErrVanished if it is no network namespace.
func netnsAt(path string) (st unix.Stat_t, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESRCH):
		return st, fmt.Errorf("%w: %s does not exist", ErrVanished, path)
	case err != nil:
		return st, fmt.Errorf("look at %s: %w", path, err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return st, fmt.Errorf("look at %s: %w", path, err)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return st, fmt.Errorf("look at %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return st, fmt.Errorf("%w: %s is no network namespace", ErrVanished, path)
	}
	return st, nil
}

// openAdopted opens the namespace of another runtime, if it is still the one that is meant.
func (n *Netdev) openAdopted(a *plan.Adopted) (*space, error) {
	s := &space{fd: -1, own: true}
	err := n.home.do(func() error {
		st, err := netnsAt(a.Path)
		if err != nil {
			return err
		}
		if st.Ino != a.Inode {
			return fmt.Errorf("%w: another network namespace is at %s now", ErrVanished, a.Path)
		}
		s.fd, err = openNetns(a.Path)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.within(s.fd, func() (err error) { s.conn, err = n.openConn(); return err }); err != nil {
		unix.Close(s.fd)
		return nil, fmt.Errorf("open netlink in %s: %w", a.Path, err)
	}
	return s, nil
}

// letGo tells whether the runtime that made a namespace has taken its name of it away.
func (n *Netdev) letGo(a *plan.Adopted) (gone bool) {
	if a == nil {
		return false
	}
	_ = n.home.do(func() error {
		st, err := netnsAt(a.Path)
		gone = errors.Is(err, ErrVanished) || err == nil && st.Ino != a.Inode
		return nil
	})
	return gone
}
