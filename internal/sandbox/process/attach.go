package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// Packets from conmon's attach socket begin with a byte that names the stream;
// packets to it are input as it is.
const (
	pipeStdout = 2
	pipeStderr = 3

	stdinChunk = 8 << 10 // conmon reads a packet into 32 KiB and loses the rest
)

// Attachment is a connection to a container's streams, through which everything
// passes that the container writes from now on.
type Attachment struct {
	r    *Runtime
	id   string
	conn *net.UnixConn
	in   bool // the container has a piped input
}

// Connect connects to a container's streams. Before Start, so that nothing is
// lost; then Run.
func (r *Runtime) Connect(ctx context.Context, id string) (*Attachment, error) {
	if err := checkID(id); err != nil {
		return nil, fmt.Errorf("attach to container: %w", err)
	}
	in, running := r.pipedInput(id)
	if !running {
		return nil, fmt.Errorf("attach to container %.12s: %w", id, ErrNotRunning)
	}
	conn, err := dialAttach(ctx, r.bundle(id))
	if err != nil {
		return nil, fmt.Errorf("attach to container %.12s: %w", id, err)
	}
	return &Attachment{r: r, id: id, conn: conn, in: in}, nil
}

// pipedInput tells whether a container has an open input that is no terminal.
func (r *Runtime) pipedInput(id string) (in, running bool) {
	m, ok := r.monitorOf(id)
	if !ok || exists(r.exitFile(id)) {
		return false, false
	}
	defer m.close()
	return slices.Contains(cmdline(m.pid), "-i"), true
}

// Run carries the streams until the process ends (nil), the client leaves
// (ErrDetached, or why writing to it was not possible) or the context ends.
func (a *Attachment) Run(ctx context.Context, s api.Streams) error {
	err := a.run(ctx, s)
	if err != nil {
		return fmt.Errorf("attach to container %.12s: %w", a.id, err)
	}
	return nil
}

func (a *Attachment) run(ctx context.Context, s api.Streams) error {
	defer a.conn.Close()
	// To conmon, the end of any connection is the end of a piped input. One that
	// only watches must not end it: Attach watches the log instead.
	if s.Stdin == nil && a.in {
		return fmt.Errorf("%w: a connection without input would end the container's; use Attach", ErrInvalid)
	}
	return carry(ctx, a.conn, s, a.r.bundle(a.id))
}

func (r *Runtime) watchLog(ctx context.Context, id string, s api.Streams) error {
	return r.logs(ctx, id, api.LogOptions{Follow: true, Stdout: true, Stderr: true}, func(l api.LogLine) error {
		w, text := s.Stdout, l.Line
		if l.Stream == "stderr" {
			w = s.Stderr
		}
		if !l.Partial {
			text += "\n"
		}
		if w == nil {
			return nil
		}
		_, err := io.WriteString(w, text)
		return err
	})
}

// Close ends the connection if Run is not called.
func (a *Attachment) Close() error { return a.conn.Close() }

// Attach connects a client with a container until either ends. It does not end
// the container. The caller ends a blocked read of Stdin.
func (r *Runtime) Attach(ctx context.Context, id string, s api.Streams) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("attach to container: %w", err)
	}
	if in, running := r.pipedInput(id); in && running && s.Stdin == nil {
		// Without a connection of our own there is none whose end is noticed.
		if err := r.watchLog(ctx, id, s); err != nil {
			return fmt.Errorf("attach to container %.12s: %w", id, err)
		}
		return nil
	}
	a, err := r.Connect(ctx, id)
	if err != nil {
		return err
	}
	return a.Run(ctx, s)
}

// Resize sets the size of a container's terminal.
func (r *Runtime) Resize(_ context.Context, id string, size api.WindowSize) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	if err := resize(r.bundle(id), size); err != nil {
		return fmt.Errorf("resize terminal of container %.12s: %w", id, err)
	}
	return nil
}

// resize writes to conmon's control pipe, which is not there without a conmon.
func resize(dir string, size api.WindowSize) error {
	f, err := os.OpenFile(filepath.Join(dir, "ctl"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
			return ErrNotRunning
		}
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "1 %d %d\n", size.Rows, size.Cols)
	return err
}

// dialAttach names the socket by descriptor, as the name of a unix socket is short.
func dialAttach(ctx context.Context, dir string) (*net.UnixConn, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unixpacket", fmt.Sprintf("/proc/self/fd/%d/attach", d.Fd()))
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// carry copies in both directions until conmon closes the connection.
func carry(ctx context.Context, conn *net.UnixConn, s api.Streams, dir string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	// Both may sit in a read that only the caller can end; neither holds anything.
	go func() {
		if err := sendInput(conn, s); err != nil {
			cancel(err)
		}
	}()
	go func() {
		for {
			select {
			case size, ok := <-s.Resize:
				if !ok {
					return
				}
				_ = resize(dir, size) // the process may just be ending
			case <-ctx.Done():
				return
			}
		}
	}()
	err := receiveOutput(conn, s)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func sendInput(conn *net.UnixConn, s api.Streams) error {
	if s.Stdin == nil {
		return nil
	}
	keys := detachScanner{keys: s.DetachKeys}
	buf := make([]byte, stdinChunk)
	for {
		n, err := s.Stdin.Read(buf)
		out, detached := keys.scan(buf[:n])
		for len(out) > 0 {
			k := min(len(out), stdinChunk)
			if _, werr := conn.Write(out[:k]); werr != nil {
				return nil // the process ended; the reader of its output says so
			}
			out = out[k:]
		}
		if detached {
			return ErrDetached
		}
		if err != nil {
			_ = conn.CloseWrite()
			return nil
		}
	}
}

func receiveOutput(conn *net.UnixConn, s api.Streams) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if n > 1 {
			w := s.Stdout
			if buf[0] == pipeStderr {
				w = s.Stderr
			}
			if w != nil && (buf[0] == pipeStdout || buf[0] == pipeStderr) {
				if _, werr := w.Write(buf[1:n]); werr != nil {
					return fmt.Errorf("write output to client: %w", werr)
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read output: %w", err)
		}
	}
}

// detachScanner looks for the detach keys in what is typed. Keys that may be the
// beginning of the sequence are held back until that is decided.
type detachScanner struct {
	keys []byte
	held int
}

func (d *detachScanner) scan(p []byte) (out []byte, detached bool) {
	if len(d.keys) == 0 {
		return p, false
	}
	for _, c := range p {
		if c == d.keys[d.held] {
			if d.held++; d.held == len(d.keys) {
				return out, true
			}
			continue
		}
		// What was held is input after all, but its tail may begin a sequence.
		typed := append(bytes.Clone(d.keys[:d.held]), c)
		d.held = 0
		for n := min(len(typed), len(d.keys)-1); n > 0; n-- {
			if bytes.Equal(typed[len(typed)-n:], d.keys[:n]) {
				d.held = n
				break
			}
		}
		out = append(out, typed[:len(typed)-d.held]...)
	}
	return out, false
}

func (r *Runtime) readSpec(id string) (*specs.Spec, error) {
	name := configFile
	if r.inVM(id) {
		name = guestFile
	}
	data, err := os.ReadFile(filepath.Join(r.bundle(id), name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(data, spec); err != nil || spec.Process == nil || spec.Root == nil {
		return nil, fmt.Errorf("read OCI spec: %s is damaged", strings.TrimPrefix(r.bundle(id), r.runDir))
	}
	return spec, nil
}
