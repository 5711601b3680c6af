package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Dial connects with a socket in the file system of a container that runs in a VM. dir is what its shim and the daemon share.
func Dial(ctx context.Context, dir, path string) (net.Conn, error) {
	conn, err := dialShim(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("reach the VM: %w", err)
	}
	client, err := proto.NewClient(conn)
	if err != nil {
		return nil, err
	}
	stream, err := client.Stream(ctx, proto.OpDial, proto.Dial{Process: mainProcess, Path: path}, nil)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return &dialled{Conn: stream, client: client}, nil
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
