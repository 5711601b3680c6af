package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Dial connects with a socket in the file system of a container that runs in a VM. dir is what its shim and the daemon share.
func Dial(ctx context.Context, dir, path string) (net.Conn, error) {
	return dial(ctx, dir, proto.Dial{Path: path}, nil)
}

// DialNet sends from inside the VM, in the container's compartment, to a literal address. Network is "tcp", "udp", "ip4:icmp" or
// "ip6:ipv6-icmp", as the net package has them; from is the port to send from, 0 for any. The context bounds how long a connection may
// take. Errors of the guest's kernel are what they are: syscall.Errno.
func DialNet(ctx context.Context, dir, network, address string, from uint16) (net.Conn, error) {
	d := proto.Dial{Network: network, Address: address, From: from}
	asking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if end, ok := ctx.Deadline(); ok {
		d.Wait = int64(time.Until(end))
		asking, cancel = context.WithDeadline(asking, end.Add(guestSlack)) // it is the guest that says whether time is over
		defer cancel()
	}
	defer context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})()
	var answer proto.Dialled
	c, err := dial(asking, dir, d, &answer)
	if err != nil {
		return nil, err
	}
	if answer.Errno != 0 {
		_ = c.Close()
		return nil, syscall.Errno(answer.Errno)
	}
	return proto.NewPackets(c, answer.Local), nil
}

// guestSlack is what an emulated guest may take to say that time is over.
const guestSlack = 3 * time.Second

func dial(ctx context.Context, dir string, d proto.Dial, out any) (net.Conn, error) {
	conn, err := dialShim(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("reach the VM: %w", err)
	}
	client, err := proto.NewClient(conn)
	if err != nil {
		return nil, err
	}
	d.Process = mainProcess
	stream, err := client.Stream(ctx, proto.OpDial, d, out)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return &dialled{Conn: stream, client: client}, nil
}

// ReadFile reads a file of bounded size in the file system of a container that runs in a VM; fs.ErrNotExist if there is none.
func ReadFile(ctx context.Context, dir, path string, most int64) ([]byte, error) {
	ctx, cancel := within(ctx, answerWait)
	defer cancel()
	conn, err := dialShim(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("reach the VM: %w", err)
	}
	client, err := proto.NewClient(conn)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var found proto.Content
	stream, err := client.Stream(ctx, proto.OpRead, proto.Read{Process: mainProcess, Path: path}, &found)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if found.Missing {
		return nil, fs.ErrNotExist
	}
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	text, err := io.ReadAll(io.LimitReader(stream, most+1))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil && int64(len(text)) > most:
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return text, err
}

// dialShim connects with the shim's socket, and with nothing that somebody has put in its place who has taken the shim.
func dialShim(ctx context.Context, dir string) (net.Conn, error) {
	fd, err := unix.Open(filepath.Join(dir, controlFile), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("what is in the place of the shim's socket is none")
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// dialled is a connection on a session of its own.
type dialled struct {
	net.Conn
	client *proto.Client
}

// CloseWrite tells the other side that nothing more comes. yamux closes one direction alone.
func (d *dialled) CloseWrite() error { return d.Conn.Close() }

// Close ends both directions.
func (d *dialled) Close() error { return d.client.Close() }
