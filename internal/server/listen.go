package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of the socket, as the kernel vouches for it.
type Peer struct {
	PID      int32
	UID, GID uint32
	Groups   []uint32
}

// Listener is a unix socket for root and the members of one group. The mode of the socket keeps others out already; what the
// kernel says about each peer is checked once more with every request, should somebody have widened that mode.
type Listener struct {
	unix  *net.UnixListener
	path  string
	inode uint64
	group string
	gid   uint32
	found bool // the group exists
	once  sync.Once
}

// Listen makes the socket at path, 0660 root:group. A group that does not exist leaves it to root. A socket at that path is
// replaced only if nobody answers on it.
func Listen(path, group string) (*Listener, error) {
	l := &Listener{path: path, group: group}
	if g, err := user.LookupGroup(group); err == nil {
		gid, err := strconv.ParseUint(g.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: group %s has the number %q", path, group, g.Gid)
		}
		l.gid, l.found = uint32(gid), true
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := checkStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := l.bind(); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// checkStale fails when path is in use.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is something that is not a socket: move it away")
	}
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		c.Close()
		return errors.New("a daemon answers there already: stop it first, or choose another socket")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("find out whether a daemon answers there: %w", err)
	}
	return nil
}

// bind makes the socket beside its place and moves it there once its owner and mode are right, so that nobody meets it
// half-made and a dead daemon's socket is replaced in one step.
func (l *Listener) bind() error {
	tmp := fmt.Sprintf("%s.%d", l.path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return err
	}
	u.SetUnlinkOnClose(false)
	l.unix = u
	err = l.place(tmp)
	if err != nil {
		return errors.Join(err, u.Close(), os.Remove(tmp))
	}
	return nil
}

func (l *Listener) place(tmp string) error {
	if os.Geteuid() == 0 {
		if err := os.Chown(tmp, 0, int(l.gid)); err != nil {
			return err
		}
	}
	if err := os.Chmod(tmp, 0o660); err != nil {
		return err
	}
	var err error
	if l.inode, err = inodeOf(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, l.path)
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}

func (l *Listener) announce(log *slog.Logger) {
	if l.found {
		log.Info("listening", "socket", l.path, "group", l.group)
		return
	}
	log.Warn("listening for root only: there is no such group", "socket", l.path, "group", l.group)
}

// Addr of the socket, by the name it was moved to.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close ends listening. The socket goes too, unless another daemon has put its own there.
func (l *Listener) Close() error {
	err := l.unix.Close()
	l.once.Do(func() {
		if ino, statErr := inodeOf(l.path); statErr == nil && ino == l.inode {
			err = errors.Join(err, os.Remove(l.path))
		}
	})
	return err
}

// Accept waits for a peer.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(c)
		if err != nil { // it is gone already
			c.Close()
			continue
		}
		return &peerConn{UnixConn: c, peer: peer, allowed: l.allows(peer)}, nil
	}
}

func (l *Listener) allows(p Peer) bool {
	return p.UID == 0 || l.found && (p.GID == l.gid || slices.Contains(p.Groups, l.gid))
}

type peerConn struct {
	*net.UnixConn
	peer    Peer
	allowed bool
}

// peerOf asks the kernel who made the connection. Groups are those the peer had when it connected.
func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var opErr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, opErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); opErr != nil {
			return
		}
		p = Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
		p.Groups, opErr = peerGroups(fd)
	})
	return p, errors.Join(err, opErr)
}

// peerGroups wraps a socket option that x/sys has no function for, since its answer has no fixed length.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size)/4 > len(groups):
			groups = make([]uint32, size/4)
		case errno != 0:
			return nil, fmt.Errorf("read the groups of a peer: %w", errno)
		default:
			return groups[:size/4], nil
		}
	}
}

type peerKey struct{}

type admission struct {
	peer    Peer
	allowed bool
}

// withPeer puts the peer of a connection into the context of its requests.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if p, ok := c.(*peerConn); ok {
		return context.WithValue(ctx, peerKey{}, admission{p.peer, p.allowed})
	}
	return ctx
}

// PeerFrom is the process that sent a request over the unix socket.
func PeerFrom(ctx context.Context) (Peer, bool) {
	a, ok := ctx.Value(peerKey{}).(admission)
	return a.peer, ok
}

// admitted fails closed: a connection that neither the kernel nor a certificate vouches for is refused.
func admitted(r *http.Request) bool {
	if remoteName(r) != "" {
		return true
	}
	a, ok := r.Context().Value(peerKey{}).(admission)
	return ok && a.allowed
}

// remoteName is whom the certificate of a remote client names, "" without one that was verified.
func remoteName(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	return r.TLS.VerifiedChains[0][0].Subject.String() + " at " + r.RemoteAddr
}
