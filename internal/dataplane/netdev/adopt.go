package netdev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A container of another runtime comes with its network namespace. We hold it by a bind mount of our own, as we do those that
// we make, so that nothing else has to know the difference; only what the runtime has put in there is not touched. When the
// runtime takes its own name of the namespace away, ours goes too.

// Identify gives the inode of the network namespace at a path that another runtime names, and the path of the compartment that
// it is, "" for none: one that we made, by whatever name it is asked for, or one that we hold already. Refused are the host's own
// and everything that is no network namespace, which is not even opened: opening alone has effects on some files.
func (n *Netdev) Identify(path string) (inode uint64, compartment string, err error) {
	err = n.home.do(func() error {
		fd, at, err := netnsAt(path)
		if err != nil {
			return err
		}
		unix.Close(fd)
		var host unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &host); err != nil {
			return fmt.Errorf("look at the host's network namespace: %w", err)
		}
		if at == host.Ino {
			return fmt.Errorf("%s is the host's own network namespace: containers that use it need no endpoint", path)
		}
		inode = at
		return nil
	})
	if err == nil {
		compartment, err = n.compartmentOf(inode)
	}
	return inode, compartment, err
}

// compartmentOf is the path of the compartment with an inode, "" for none.
func (n *Netdev) compartmentOf(inode uint64) (string, error) {
	paths, err := n.listNamespaces()
	if err != nil {
		return "", err
	}
	found := ""
	err = n.home.do(func() error {
		for _, path := range paths {
			var fs unix.Statfs_t
			var st unix.Stat_t
			if unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC && unix.Stat(path, &st) == nil && st.Ino == inode {
				found = path
			}
		}
		return nil
	})
	return found, err
}

// netnsAt opens the network namespace at a path, and fails with ErrVanished if none is there. What else lies there is looked at
// without opening it.
func netnsAt(path string) (fd int, inode uint64, err error) {
	file, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESRCH):
		return -1, 0, fmt.Errorf("%w: %s does not exist", ErrVanished, path)
	case err != nil:
		return -1, 0, fmt.Errorf("look at %s: %w", path, err)
	}
	defer unix.Close(file)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(file, &fs); err != nil {
		return -1, 0, fmt.Errorf("look at %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return -1, 0, fmt.Errorf("%w: %s is no network namespace", ErrVanished, path)
	}
	if fd, err = openNetns(fmt.Sprintf("/proc/thread-self/fd/%d", file)); errors.Is(err, ErrVanished) {
		return -1, 0, fmt.Errorf("%w: %s is no network namespace", ErrVanished, path)
	} else if err != nil {
		return -1, 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("look at %s: %w", path, err)
	}
	return fd, st.Ino, nil
}

// openAdopted opens the namespace of another runtime, if it is still the one that is meant.
func (n *Netdev) openAdopted(a *plan.Adopted) (*space, error) {
	s := &space{fd: -1, own: true}
	err := n.home.do(func() error {
		fd, inode, err := netnsAt(a.Path)
		if err == nil && inode != a.Inode {
			unix.Close(fd)
			err = fmt.Errorf("%w: another network namespace is at %s now", ErrVanished, a.Path)
		}
		s.fd = fd
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
		fd, inode, err := netnsAt(a.Path)
		if err == nil {
			unix.Close(fd)
		}
		gone = errors.Is(err, ErrVanished) || err == nil && inode != a.Inode
		return nil
	})
	return gone
}
