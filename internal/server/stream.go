package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
)

// Attach and exec turn their connection into a stream of frames (see api.UpgradeProtocol). What an exec is to run comes before
// that, as the body of the request, so that a wrong document and an unknown container are answered as anywhere else. After the
// upgrade an error has one place left: the exit frame, which then carries an error record beside the exit code.

// upgrade marks routes that leave HTTP.
const upgrade = "upgrade"

// exitUnknown is the exit code of a process that we cannot tell one of.
const exitUnknown = -1

// exitFrame is a WaitResult with the rest of the error record.
type exitFrame struct {
	api.WaitResult
	Kind string `json:"kind,omitempty"`
	Next string `json:"next,omitempty"`
}

func (s *Server) streamRoutes() {
	const one = "/v1/containers/{ref}"
	const story = "Send `Connection: Upgrade` and `Upgrade: " + api.UpgradeProtocol + "`. Frames follow in both directions: a byte for the " +
		"channel (0 stdin, 1 stdout, 2 stderr, 3 window size as JSON, 4 end of stdin, 5 exit as JSON), four bytes of length, big endian, " +
		"and at most 64 KiB. The exit frame is the last."
	s.handle(route{
		method: http.MethodPost, path: one + "/attach", id: "attachContainer", tag: "containers", answerType: upgrade,
		summary: "Attach to the first process of a container", description: story + " Its exit frame tells the end of the attach, not of " +
			"the process: ask /wait for that.",
		query: []*huma.Param{
			param("stdin", huma.TypeBoolean, "True when absent"), param("stdout", huma.TypeBoolean, "True when absent"),
			param("stderr", huma.TypeBoolean, "True when absent"),
			param("detachKeys", huma.TypeString, "The bytes that end the attach when they come on stdin; absent: none"),
		},
		handle: s.attach,
	})
	s.handle(route{
		method: http.MethodPost, path: one + "/exec", id: "execContainer", tag: "containers", answerType: upgrade,
		summary: "Run a further process in a container", description: story + " With detach in the document there is no upgrade: the answer " +
			"is a WaitResult as JSON once the process runs.",
		body: reflect.TypeFor[api.ExecSpec](), handle: s.exec,
	})
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	in, out, errs := q.flag("stdin", true), q.flag("stdout", true), q.flag("stderr", true)
	if q.err != nil {
		return q.err
	}
	ref := r.PathValue("ref")
	return s.upgrade(w, r, func(ctx context.Context, streams api.Streams) (int, error) {
		if !in {
			streams.Stdin = nil
		}
		if !out {
			streams.Stdout = nil
		}
		if !errs {
			streams.Stderr = nil
		}
		streams.DetachKeys = []byte(q.text("detachKeys"))
		return 0, s.backend.AttachContainer(ctx, ref, streams)
	})
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	spec, err := decodeBody[api.ExecSpec](w, r)
	if err != nil {
		return err
	}
	if len(spec.Args) == 0 {
		return api.Errorf(api.KindInvalid, "args: the command is missing")
	}
	ref := r.PathValue("ref")
	if spec.Detach {
		code, err := s.backend.ExecContainer(r.Context(), ref, spec, api.Streams{})
		if err != nil {
			return err
		}
		s.write(w, http.StatusOK, api.WaitResult{ExitCode: code})
		return nil
	}
	return s.upgrade(w, r, func(ctx context.Context, streams api.Streams) (int, error) {
		if !spec.OpenStdin {
			streams.Stdin = nil
		}
		return s.backend.ExecContainer(ctx, ref, spec, streams)
	})
}

// upgrade takes the connection over, runs a process's streams over it, and ends with the exit frame.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, run func(context.Context, api.Streams) (int, error)) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), api.UpgradeProtocol) || !hasToken(r.Header, "Connection", "upgrade") {
		return refusal{http.StatusUpgradeRequired, api.Errorf(api.KindInvalid, "the connection must be upgraded to %s", api.UpgradeProtocol).
			Hint("send the headers Connection: Upgrade and Upgrade: %s", api.UpgradeProtocol)}
	}
	if _, err := s.backend.Container(r.PathValue("ref")); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxBody)); err != nil {
		return api.Errorf(api.KindInvalid, "read the request: %w", err)
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	// Counted before the connection is taken over, for from then on net/http does not wait for it.
	s.streams.Add(1)
	defer s.streams.Done()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return api.Errorf(api.KindInternal, "take the connection over: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now().Add(writeTimeout)) })()
	if rec, ok := w.(*recorder); ok {
		rec.status = http.StatusSwitchingProtocols
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.UpgradeProtocol); err != nil {
		return nil //nolint:nilerr // the client has gone: nobody to tell
	}
	s.carry(ctx, cancel, conn, rw.Reader, api.NewFrameWriter(conn), run)
	return nil
}

func (s *Server) carry(ctx context.Context, cancel context.CancelFunc, conn net.Conn, in *bufio.Reader, out *api.FrameWriter,
	run func(context.Context, api.Streams) (int, error),
) {
	stdinR, stdinW := io.Pipe()
	resize := make(chan api.WindowSize, 1)
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		err := readFrames(in, stdinW, resize)
		if errors.Is(err, errProtocol) {
			s.log.Debug("a client broke the stream protocol", "error", err)
		}
		stdinW.CloseWithError(err)
		cancel() // the client has gone: what it was attached to should know
	}()
	code, err := s.runStreams(ctx, run, api.Streams{
		Stdin: stdinR, Stdout: out.Channel(api.ChannelStdout), Stderr: out.Channel(api.ChannelStderr), Resize: resize,
	})
	exit := exitFrame{WaitResult: api.WaitResult{ExitCode: code}}
	if err = s.interrupted(err); err != nil {
		e := apiError(err)
		exit = exitFrame{api.WaitResult{ExitCode: exitUnknown, Error: e.Message}, e.Kind, e.Next}
	}
	_ = out.WriteJSON(api.ChannelExit, exit) // a client that has gone does not miss it
	stdinR.Close()
	conn.Close()
	<-reading
}

// runStreams keeps a panic from leaving the connection open: this is no longer a request that net/http ends.
func (s *Server) runStreams(ctx context.Context, run func(context.Context, api.Streams) (int, error), streams api.Streams) (code int, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a stream made the daemon panic", "panic", fmt.Sprint(p))
			code, err = exitUnknown, api.Errorf(api.KindInternal, "the daemon hit a bug").Hint("see the daemon's log, and report it")
		}
	}()
	return run(ctx, streams)
}

// errProtocol says that a client sent what it must not.
var errProtocol = errors.New("unexpected frame")

// readFrames takes frames until the client is gone. Of window sizes only the newest counts.
func readFrames(in io.Reader, stdin *io.PipeWriter, resize chan api.WindowSize) error {
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
			// An error means that the process reads no more; what it does not want is dropped, as the kernel does for a closed pipe.
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
			case <-resize:
			default:
			}
			resize <- size
		default:
			return fmt.Errorf("%w: channel %d", errProtocol, channel)
		}
	}
}

func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}
