package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"

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
			param("wait", huma.TypeBoolean, "Attach to a container that has ended too, for a start to come"),
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
	in, out, errs, wait := q.flag("stdin", true), q.flag("stdout", true), q.flag("stderr", true), q.flag("wait", false)
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
		streams.DetachKeys, streams.Wait = []byte(q.text("detachKeys")), wait
		return 0, s.backend.AttachContainer(ctx, ref, streams)
	})
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	spec, err := decodeBody[api.ExecSpec](w, r)
	if err != nil {
		return err
	}
	if len(spec.Args) == 0 {
		return api.Errorf(api.KindInvalid, "args: the command is missing").Hint("name one, as in bulkhead exec NAME sh")
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
	if _, err := s.backend.Container(ref); err != nil {
		return err
	}
	return s.upgrade(w, r, func(ctx context.Context, streams api.Streams) (int, error) {
		// Nothing waits for an exec to be in place, and its window size may have to be known before it runs.
		streams.Attached()
		if !spec.OpenStdin {
			streams.Stdin = nil
		}
		return s.backend.ExecContainer(ctx, ref, spec, streams)
	})
}

// upgrade runs a process's streams over the connection. It is taken over when the streams are in place, or when the first of them
// is used; a failure before that is answered as any other.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, run func(context.Context, api.Streams) (int, error)) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), api.UpgradeProtocol) || !hasToken(r.Header, "Connection", "upgrade") {
		return refusal{http.StatusUpgradeRequired, api.Errorf(api.KindInvalid, "the connection must be upgraded to %s", api.UpgradeProtocol).
			Hint("send the headers Connection: Upgrade and Upgrade: %s", api.UpgradeProtocol)}
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxBody)); err != nil || n == maxBody {
		return api.Errorf(api.KindInvalid, "read the request: it has too large a body, or none that ends")
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	// Counted before the connection is taken over, for from then on net/http does not wait for it.
	s.streams.Add(1)
	defer s.streams.Done()
	t := newTunnel(ctx, cancel, w, s.log)
	code, err := s.runStreams(ctx, run, t.streams())
	return t.end(code, s.interrupted(err))
}

// runStreams turns a panic into an error: this may no longer be a request that net/http ends.
func (s *Server) runStreams(ctx context.Context, run func(context.Context, api.Streams) (int, error), streams api.Streams) (code int, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a stream made the daemon panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			code, err = exitUnknown, api.Errorf(api.KindInternal, "the daemon hit a bug").Hint("see the daemon's log, and report it")
		}
	}()
	return run(ctx, streams)
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
