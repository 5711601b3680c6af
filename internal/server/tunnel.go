package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// tunnel is a connection that is about to leave HTTP: it opens once, when the streams behind it are in place. An attach comes
// before the start of its container, so a client must not be told that it is attached before it is.
type tunnel struct {
	ctx    context.Context
	cancel context.CancelFunc
	w      http.ResponseWriter
	log    *slog.Logger

	stdinR *io.PipeReader
	stdinW *io.PipeWriter
	sizes  chan api.WindowSize

	once    sync.Once
	openErr error
	conn    net.Conn // nil until open
	out     *api.FrameWriter
	reading chan struct{}
}

func newTunnel(ctx context.Context, cancel context.CancelFunc, w http.ResponseWriter, log *slog.Logger) *tunnel {
	t := &tunnel{ctx: ctx, cancel: cancel, w: w, log: log, sizes: make(chan api.WindowSize, 1), reading: make(chan struct{})}
	t.stdinR, t.stdinW = io.Pipe()
	return t
}

// streams are what the backend is given; using one opens the tunnel.
func (t *tunnel) streams() api.Streams {
	return api.Streams{
		Stdin:  readerFunc(t.readStdin),
		Stdout: writerFunc(func(p []byte) (int, error) { return t.write(api.ChannelStdout, p) }),
		Stderr: writerFunc(func(p []byte) (int, error) { return t.write(api.ChannelStderr, p) }),
		Resize: t.sizes,
		// A client that has gone shows in the context.
		Attached: func() { _ = t.open() },
	}
}

type (
	readerFunc func(p []byte) (int, error)
	writerFunc func(p []byte) (int, error)
)

func (f readerFunc) Read(p []byte) (int, error)  { return f(p) }
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (t *tunnel) readStdin(p []byte) (int, error) {
	if err := t.open(); err != nil {
		return 0, err
	}
	return t.stdinR.Read(p)
}

func (t *tunnel) write(channel byte, p []byte) (int, error) {
	if err := t.open(); err != nil {
		return 0, err
	}
	return t.out.Channel(channel).Write(p)
}

// open takes the connection over and begins to read frames.
func (t *tunnel) open() error {
	t.once.Do(func() {
		t.openErr = t.hijack()
		if t.openErr != nil {
			close(t.reading)
			t.cancel()
		}
	})
	return t.openErr
}

func (t *tunnel) hijack() error {
	conn, rw, err := http.NewResponseController(t.w).Hijack()
	if err != nil {
		return fmt.Errorf("take the connection over: %w", err)
	}
	t.conn, t.out = conn, api.NewFrameWriter(conn)
	if rec, ok := t.w.(*recorder); ok {
		rec.status = http.StatusSwitchingProtocols
	}
	// A reader of output may be as slow as it likes, until the daemon stops.
	context.AfterFunc(t.ctx, func() { _ = conn.SetWriteDeadline(time.Now().Add(writeTimeout)) })
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.UpgradeProtocol); err != nil {
		return errors.Join(fmt.Errorf("answer the upgrade: %w", err), conn.Close())
	}
	// Whoever reads stdin must not outlive the stream.
	context.AfterFunc(t.ctx, func() { t.stdinR.CloseWithError(t.ctx.Err()) })
	go t.read(rw.Reader)
	return nil
}

func (t *tunnel) read(in io.Reader) {
	defer close(t.reading)
	err := readFrames(in, t.stdinW, t.sizes)
	if errors.Is(err, errProtocol) {
		t.log.Debug("a client broke the stream protocol", "error", err)
	}
	t.stdinW.CloseWithError(err)
	t.cancel() // the client has gone: what it was attached to should know
}

// end sends the exit frame, or gives the error to be answered when the tunnel never opened.
func (t *tunnel) end(code int, err error) error {
	if err != nil {
		// From here on it must not open any more: the answer is being written.
		t.once.Do(func() { t.openErr = net.ErrClosed; close(t.reading) })
	} else {
		_ = t.open() // a process may end without a word
	}
	if t.conn == nil {
		t.stdinR.Close()
		return err
	}
	exit := exitFrame{WaitResult: api.WaitResult{ExitCode: code}}
	if err != nil {
		e := apiError(err)
		exit = exitFrame{api.WaitResult{ExitCode: exitUnknown, Error: e.Message}, e.Kind, e.Next}
	}
	_ = t.out.WriteJSON(api.ChannelExit, exit) // a client that has gone does not miss it
	t.stdinR.Close()
	t.conn.Close()
	<-t.reading
	return nil
}

// errProtocol says that a client sent what it must not.
var errProtocol = errors.New("unexpected frame")

// readFrames takes frames until the client is gone. Of window sizes only the newest counts.
func readFrames(in io.Reader, stdin *io.PipeWriter, sizes chan api.WindowSize) error {
	var buf []byte
	open := true
	for {
		channel, payload, err := api.ReadFrame(in, buf)
		if err != nil {
			return err
		}
		buf = payload[:cap(payload)]
		switch channel {
		case api.ChannelStdin:
			// An error means that the process reads no more; what it does not want is dropped.
			if open && len(payload) > 0 {
				if _, err := stdin.Write(payload); err != nil {
					open = false
				}
			}
		case api.ChannelCloseStdin:
			open = false
			stdin.Close()
		case api.ChannelResize:
			var size api.WindowSize
			if err := json.Unmarshal(payload, &size); err != nil {
				return fmt.Errorf("%w: window size: %w", errProtocol, err)
			}
			select {
			case <-sizes:
			default:
			}
			sizes <- size
		default:
			return fmt.Errorf("%w: channel %d", errProtocol, channel)
		}
	}
}
