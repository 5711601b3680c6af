package netdev

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// bornWith are the settings of a new compartment. A vNIC's addresses and routes come from the plan alone, so it shall
// not ask for a router. Duplicate detection and the kernel's own link-local address need no setting: the addresses of
// the plan are marked (IFA_F_NODAD), and each vNIC is told so when it is set up. What a container makes for itself
// behaves as it does on any Linux.
var bornWith = [...][2]string{{"net/ipv6/conf/default/accept_ra", "0"}}

// space is a network namespace opened for a pass: a file descriptor for links to be born in, a socket to configure
// them, and what was listed there.
type space struct {
	path string // "" for the host's own
	fd   int    // -1 for the host's own
	conn *conn
	own  bool // the socket is ours to close
	// next is the index of the next device in a namespace that was just made, 0 in others.
	next   int
	listed bool
	addrs  []address
	routes []route
}

func (s *space) close() {
	if s.own {
		s.conn.close()
		unix.Close(s.fd)
	}
}

// list reads the addresses and routes of the namespace once.
func (s *space) list() (err error) {
	if s.listed {
		return nil
	}
	if s.addrs, err = s.conn.listAddresses(); err != nil {
		return err
	}
	s.routes, err = s.conn.listRoutes()
	s.listed = err == nil
	return err
}

// space opens a namespace by path, once per pass.
func (ps *pass) space(path string) (*space, error) {
	if s := ps.spaces[path]; s != nil {
		return s, nil
	}
	if path == "" {
		s := &space{fd: -1, conn: ps.n.host}
		ps.spaces[path] = s
		return s, nil
	}
	fd, err := ps.n.openNamespace(path)
	if err != nil {
		return nil, err
	}
	s := &space{path: path, fd: fd, own: true}
	err = ps.n.within(fd, func() (err error) { s.conn, err = ps.n.openConn(); return err })
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open netlink in %s: %w", path, err)
	}
	ps.spaces[path] = s
	return s, nil
}

// OpenNamespace opens the network namespace bound at path; the caller closes it. ErrVanished: there is none.
func (n *Netdev) OpenNamespace(path string) (fd int, err error) { return n.openNamespace(path) }

// openNamespace opens a bound network namespace. ErrVanished: there is none.
func (n *Netdev) openNamespace(path string) (fd int, err error) {
	err = n.home.do(func() error { fd, err = openNetns(path); return err })
	return fd, err
}

func openNetns(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return -1, fmt.Errorf("%w: %s does not exist", ErrVanished, path)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	var fs unix.Statfs_t
	if err = unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.NSFS_MAGIC {
		var kind int
		kind, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
		if err == nil && kind == unix.CLONE_NEWNET {
			return fd, nil
		}
	}
	unix.Close(fd)
	if err != nil {
		return -1, fmt.Errorf("look at %s: %w", path, err)
	}
	return -1, fmt.Errorf("%w: %s is no network namespace", ErrVanished, path)
}

// within runs fn on a thread in the network namespace behind fd.
func (n *Netdev) within(fd int, fn func() error) error {
	return n.home.elsewhere(func() error { return unix.Setns(fd, unix.CLONE_NEWNET) }, fn)
}

// Enter runs fn on a thread inside the network namespace bound at path. Sockets that fn opens stay there; goroutines
// that it starts are outside.
func (n *Netdev) Enter(path string, fn func() error) error {
	fd, err := n.openNamespace(path)
	if err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	defer unix.Close(fd)
	return n.within(fd, fn)
}

// ensureNamespace makes a compartment unless it is there. It is bound when it is complete, so after a crash there is
// either a whole one or a file that is none and is used again.
func (ps *pass) ensureNamespace(ns *plan.Namespace) error {
	if err := ps.n.checkPath(ns); err != nil {
		return err
	}
	if ps.n.reap.dying(ns.Path) {
		if err := ps.n.reap.wait(ps.ctx); err != nil {
			return err
		}
	}
	_, err := ps.space(ns.Path)
	if !errors.Is(err, ErrVanished) {
		return err
	}
	if err := ps.n.prepareDir(); err != nil {
		return err
	}
	s, err := ps.origin(ns)
	if err != nil {
		return err
	}
	s.path = ns.Path
	if err := ps.n.christen(s, ns); err != nil {
		s.close()
		return err
	}
	ps.spaces[ns.Path] = s
	return nil
}

// origin is the namespace that a compartment is to be: a new one, or that of another runtime.
func (ps *pass) origin(ns *plan.Namespace) (s *space, err error) {
	if ns.Adopted != nil {
		return ps.n.openAdopted(ns.Adopted)
	}
	if s := ps.spares[ns.Path]; s != nil {
		return s.space, nil
	}
	if s = ps.n.pool.take(); s != nil {
		return s, nil
	}
	if s, err = ps.n.newNamespace(); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return s, nil
}

// christen gives a new namespace its own settings and then its name.
func (n *Netdev) christen(s *space, ns *plan.Namespace) error {
	if len(ns.Sysctls) > 0 {
		if err := n.within(s.fd, func() error { return n.writeSysctls(ns.Sysctls) }); err != nil {
			return err
		}
	}
	return n.home.do(func() error { return n.bind(s.fd, ns.Path) })
}

// furnish sets up the namespace that the calling thread is in.
func (n *Netdev) furnish(s *space) (err error) {
	if s.conn, err = n.openConn(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.conn.close()
			if s.fd >= 0 {
				unix.Close(s.fd)
			}
		}
	}()
	// A fifth of the time that the way through /proc takes.
	if s.fd, err = unix.IoctlRetInt(s.conn.fd, unix.SIOCGSKNS); err != nil {
		return fmt.Errorf("open the new namespace: %w", err)
	}
	n.proc.another()
	if err := n.writeSettings(bornWith[:]); err != nil {
		return err
	}
	const loopback = 1 // the first device of every namespace
	return s.conn.write(setLink("set lo up", loopback, unix.IFF_UP))
}

// writeSettings sets up what the calling thread's namespace has: a kernel without IPv6 has none of its settings.
func (n *Netdev) writeSettings(settings [][2]string) error {
	for _, kv := range settings {
		if err := n.writeSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// bind names a namespace. The directory entry is made first: a file that is no namespace is used again after a crash.
func (n *Netdev) bind(ns int, path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	unix.Close(fd)
	n.writes.Add(1)
	if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", ns), path, "none", unix.MS_BIND, ""); err != nil {
		_ = unix.Unlink(path)
		return fmt.Errorf("bind the namespace at %s: %w", path, err)
	}
	return nil
}

// checkPath keeps a bad plan from making or removing files anywhere else.
func (n *Netdev) checkPath(ns *plan.Namespace) error {
	if filepath.Dir(ns.Path) != n.opts.NetnsDir || !plan.IsNamespaceName(filepath.Base(ns.Path)) {
		return fmt.Errorf("compartment path %s is not %s/hns-GUID", ns.Path, n.opts.NetnsDir)
	}
	return nil
}

// prepareDir makes the directory of bound namespaces as iproute2 does: a shared mount of itself. If it were a plain
// directory, the first "ip netns add" would lay such a mount over it, and with it copies of our mounts that would keep
// our compartments alive after we unmount them.
func (n *Netdev) prepareDir() error {
	return n.home.do(func() error {
		dir := n.opts.NetnsDir
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, dir, 0, 0, &st)
		if err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return nil
		}
		if err := n.noteDir(err == nil); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the directory of namespaces: %w", err)
		}
		if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make %s a mount: %w", dir, err)
		}
		if err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("share mount %s: %w", dir, err)
		}
		return nil
	})
}

// noteDir writes down that the directory of bound namespaces is about to become a mount of ours, and whether it is there already: unless a
// start that was cut short has made it.
func (n *Netdev) noteDir(there bool) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	return n.updateRecord(func(r *record) {
		if r.NetnsDir && r.NetnsBoot == boot {
			return
		}
		r.NetnsDir, r.NetnsBoot, r.NetnsKept = true, boot, there
	})
}

// listNamespaces gives the paths of all files that are named like compartments of ours.
func (n *Netdev) listNamespaces() (paths []string, err error) {
	err = n.home.do(func() error {
		entries, err := os.ReadDir(n.opts.NetnsDir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("list compartments: %w", err)
		}
		for _, e := range entries {
			if plan.IsNamespaceName(e.Name()) {
				paths = append(paths, filepath.Join(n.opts.NetnsDir, e.Name()))
			}
		}
		return nil
	})
	return paths, err
}

// removeNamespace unbinds a compartment. Processes in it keep the namespace itself alive until they end.
func (n *Netdev) removeNamespace(path string) error {
	// More than one mount lies there only if somebody has bound over ours.
	for range 8 {
		n.writes.Add(1)
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// sortedPorts gives the ports of a map in a fixed order, so that passes and their errors repeat.
func sortedPorts[V any](m map[plan.PortID]V) []plan.PortID { return slices.Sorted(maps.Keys(m)) }
