// Package proto is what a host and the agent in one of its utility VMs say to each other.
//
// They have one byte stream, a virtio-serial port. On it yamux makes as many streams as are needed, all of them opened by the
// host. Each begins with a request, a frame of JSON behind its length, which the guest answers with another; what follows is raw,
// and only for requests that say so (Stdio). A stream's end is the end of what it carries.
//
// The host does not trust the guest: whoever runs in the VM may have taken its kernel. A frame is bounded before it is read, a
// call ends when its caller's patience does, and a guest that opens a stream or has us answer pings is not spoken with any more.
package proto

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/yamux"
)

// Version is that of the protocol. Both sides say theirs, and go on only when they are the same: an agent comes with its daemon.
const Version = 4

// MaxFrame bounds a request and an answer. The largest is a container's document, with an environment of a megabyte.
const MaxFrame = 4 << 20

// The errors that a caller may want to tell apart.
var (
	ErrTooLarge  = errors.New("frame is too large")
	ErrMalformed = errors.New("frame is malformed")
)

// Error is what the guest answered instead of a result. It is the guest's text: a message for people, nothing to decide by.
type Error struct{ Message string }

func (e *Error) Error() string { return e.Message }

// maxMessage is how much of a guest's message is shown.
const maxMessage = 2000

// WriteFrame writes a value behind its length.
func WriteFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("write frame of %d bytes: %w: at most %d", len(body), ErrTooLarge, MaxFrame)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	if _, err := w.Write(append(buf, body...)); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// ReadFrame reads a value. What it allocates grows with what has come, not with the length that was announced.
func ReadFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("read frame of %d bytes: %w: at most %d", n, ErrTooLarge, MaxFrame)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read frame: %w: %w", ErrMalformed, err)
	}
	return nil
}

type request struct {
	Op   string          `json:"op"`
	Body json.RawMessage `json:"body,omitempty"`
}

type answer struct {
	Error string          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// config has no keep-alive: a guest under emulation may be silent for longer than any of them, and the end of QEMU ends the stream.
func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 60 * time.Second
	c.StreamOpenTimeout, c.StreamCloseTimeout = 0, 0 // yamux would end the whole session; our calls have their own limits
	c.AcceptBacklog = maxOpen
	c.LogOutput = io.Discard
	return c
}

// maxOpen is how many streams the host may have opened that the agent has not taken yet.
const maxOpen = 256

// Client is the host's side.
type Client struct {
	session *yamux.Session
	guard   *guard
}

// NewClient speaks over a connection, which it owns from now on.
func NewClient(conn io.ReadWriteCloser) (*Client, error) {
	g := &guard{ReadWriteCloser: conn}
	s, err := yamux.Client(g, config())
	if err != nil {
		return nil, fmt.Errorf("speak with the guest: %w", err)
	}
	return &Client{session: s, guard: g}, nil
}

// Done is closed when the guest is not there any more.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Close ends all.
func (c *Client) Close() error { return c.session.Close() }

// Call asks and waits for the answer, which it puts into out unless that is nil.
func (c *Client) Call(ctx context.Context, op string, in, out any) error {
	s, err := c.Stream(ctx, op, in, out)
	if err != nil {
		return err
	}
	return s.Close()
}

// Stream is a Call whose stream goes on.
func (c *Client) Stream(ctx context.Context, op string, in, out any) (net.Conn, error) {
	s, err := c.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the guest for %s: %w", op, c.guard.reason(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	err = ask(s, op, in, out)
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = s.Close()
		if said, ok := errors.AsType[*Error](err); ok {
			return nil, said
		}
		return nil, fmt.Errorf("ask the guest for %s: %w", op, c.guard.reason(err))
	}
	return s, nil
}

// open opens a stream. yamux does not know of contexts, and waits where a guest does not acknowledge streams.
func (c *Client) open(ctx context.Context) (net.Conn, error) {
	type opened struct {
		s   net.Conn
		err error
	}
	got := make(chan opened, 1)
	go func() {
		s, err := c.session.Open()
		got <- opened{s, err}
	}()
	select {
	case o := <-got:
		return o.s, o.err
	case <-ctx.Done():
		go func() {
			if o := <-got; o.err == nil {
				_ = o.s.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func ask(s net.Conn, op string, in, out any) error {
	r := request{Op: op}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		r.Body = body
	}
	if err := WriteFrame(s, r); err != nil {
		return err
	}
	var a answer
	if err := ReadFrame(s, &a); err != nil {
		return err
	}
	if a.Error != "" {
		return &Error{Message: Printable(a.Error[:min(len(a.Error), maxMessage)])}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(a.Body, out); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// Printable is what of a guest's text may reach a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// Handler answers requests in the guest. After the answer, carry is called with the stream if it is not nil, which it has to close.
type Handler interface {
	Handle(ctx context.Context, op string, body json.RawMessage) (result any, carry func(net.Conn), err error)
}

// Serve answers on a connection until it ends.
func Serve(ctx context.Context, conn io.ReadWriteCloser, h Handler) error {
	session, err := yamux.Server(conn, config())
	if err != nil {
		return fmt.Errorf("speak with the host: %w", err)
	}
	defer session.Close()
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		s, err := session.Accept()
		if err != nil {
			return fmt.Errorf("speak with the host: %w", err)
		}
		wg.Go(func() { serveOne(ctx, s, h) })
	}
}

func serveOne(ctx context.Context, s net.Conn, h Handler) {
	var r request
	if err := ReadFrame(s, &r); err != nil {
		_ = s.Close()
		return
	}
	result, carry, err := h.Handle(ctx, r.Op, r.Body)
	var a answer
	if err == nil && result != nil {
		a.Body, err = json.Marshal(result)
	}
	if err != nil {
		a = answer{Error: err.Error()}
	}
	if werr := WriteFrame(s, a); werr != nil || err != nil || carry == nil {
		_ = s.Close()
		return
	}
	carry(s)
}
