package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
)

// Handler is everything the server answers, behind the checks that hold for all of it.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		start := time.Now()
		defer s.finish(rec, r, start)
		switch {
		case !admitted(r):
			p, _ := PeerFrom(r.Context())
			s.fail(rec, r, refusal{http.StatusForbidden, api.Errorf(api.KindInvalid,
				"user %d may not use this socket", p.UID).Hint("become root, or a member of the socket's group")})
		case !s.gated(r):
			s.route(rec, r)
		case s.isStopping():
			s.fail(rec, r, hcn.Errorf(hcn.ErrManagerStopped, "the daemon is stopping: try again when it is back"))
		default:
			s.fail(rec, r, hcn.Errorf(hcn.ErrManagerStopped, "the daemon is still starting: try again in a moment"))
		}
	})
}

// gated reports whether a request has to wait until the backend can answer.
func (s *Server) gated(r *http.Request) bool {
	return (!s.isReady() || s.isStopping()) && !strings.HasPrefix(r.URL.Path, "/openapi")
}

// route dispatches. /hns/v1 does not go through the mux: it answers 200 whatever the path, and the mux would redirect some.
func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		r = r.WithContext(engine.ByWay(r.Context(), a.AddrPort().Addr()))
	}
	if _, ok := hnsPath(r); ok {
		s.hns(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// finish logs the call, and turns a panic into an answer: whatever one request does, the daemon goes on.
func (s *Server) finish(rec *recorder, r *http.Request, start time.Time) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler { //nolint:errorlint // panics carry it as it is
			panic(p)
		}
		s.log.Error("a request made the daemon panic", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p),
			"stack", string(debug.Stack()))
		if rec.status != 0 {
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
		s.fail(rec, r, api.Errorf(api.KindInternal, "%s %s: the daemon hit a bug", r.Method, r.URL.Path).
			Hint("see the daemon's log for a stack trace, and report it"))
	}
	// A whole answer need not wait for the log.
	if rec.status == http.StatusNoContent || rec.Header().Get("Content-Length") != "" {
		_ = http.NewResponseController(rec).Flush()
	}
	if s.observe != nil {
		s.observe(r, pattern(r), rec.status)
	}
	attrs := []any{"method", r.Method, "path", r.URL.Path, "status", rec.status, "took", time.Since(start)}
	if name := remoteName(r); name != "" {
		attrs = append(attrs, "client", name)
	} else {
		peer, _ := PeerFrom(r.Context())
		attrs = append(attrs, "uid", peer.UID, "pid", peer.PID)
	}
	switch {
	case rec.err != nil && rec.status >= http.StatusInternalServerError && rec.status != http.StatusNotImplemented &&
		rec.status != http.StatusServiceUnavailable:
		s.log.Error("request failed", append(attrs, "error", rec.err)...)
	case r.Method == http.MethodGet || rec.err != nil:
		s.log.Debug("request", append(attrs, "error", rec.err)...)
	default:
		s.log.Info("request", attrs...)
	}
}

// pattern is the route that a request took, never its path, of which there is no end.
func pattern(r *http.Request) string {
	if _, ok := hnsPath(r); ok {
		return "/hns/v1"
	}
	if r.Pattern == "/" {
		return ""
	}
	return r.Pattern
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	err    error
}

func (rec *recorder) WriteHeader(status int) {
	if rec.status == 0 {
		rec.status = status
	}
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *recorder) Write(p []byte) (int, error) {
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	return rec.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// refusal is an error with a status that its kind or code does not give.
type refusal struct {
	status int
	error
}

func (e refusal) Unwrap() error { return e.error }

// fail answers with an error, in the form that belongs to the path.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if rec, ok := w.(*recorder); ok {
		rec.err = err
		if rec.status != 0 {
			return // a stream says by itself what went wrong
		}
	}
	status := 0
	if ref, ok := errors.AsType[refusal](err); ok {
		status, err = ref.status, ref.error
	}
	if _, ok := hnsPath(r); ok {
		s.write(w, http.StatusOK, hcnError(err))
		return
	}
	if strings.HasPrefix(r.URL.Path, "/hcn/") {
		e := hcnError(err)
		s.write(w, orStatus(status, e.HTTPStatus()), e)
		return
	}
	e := apiError(err)
	s.write(w, orStatus(status, e.HTTPStatus()), e)
}

func orStatus(given, otherwise int) int {
	if given != 0 {
		return given
	}
	return otherwise
}

// codes are what the kinds of our own errors are called in HCN.
func codeOf(kind string) hcn.ErrorCode {
	switch kind {
	case api.KindInvalid:
		return hcn.ErrInvalidParameter
	case api.KindNotFound:
		return hcn.ErrElementNotFound
	case api.KindConflict:
		return hcn.ErrEntityHasReferences
	case api.KindUnsupported:
		return hcn.ErrRequestUnsupported
	case api.KindUnavailable:
		return hcn.ErrManagerStopped
	default:
		return hcn.ErrUnspecified
	}
}

func hcnError(err error) *hcn.Error {
	var ours *api.Error
	var theirs *hcn.Error
	if errors.As(err, &ours) && !errors.As(err, &theirs) {
		text := err.Error()
		if ours.Next != "" {
			text += ": " + ours.Next
		}
		return hcn.Errorf(codeOf(ours.Kind), "%s", text)
	}
	return hcn.AsError(err)
}

func kindOf(status int) string {
	switch status {
	case http.StatusBadRequest:
		return api.KindInvalid
	case http.StatusNotFound:
		return api.KindNotFound
	case http.StatusConflict:
		return api.KindConflict
	case http.StatusNotImplemented:
		return api.KindUnsupported
	case http.StatusServiceUnavailable:
		return api.KindUnavailable
	default:
		return api.KindInternal
	}
}

// apiError keeps the words that callers put around an error.
func apiError(err error) *api.Error {
	if ours, ok := errors.AsType[*api.Error](err); ok {
		return &api.Error{Kind: ours.Kind, Message: err.Error(), Next: ours.Next}
	}
	if theirs, ok := errors.AsType[*hcn.Error](err); ok {
		return &api.Error{Kind: kindOf(theirs.HTTPStatus()), Message: err.Error()}
	}
	return &api.Error{Kind: api.KindInternal, Message: err.Error()}
}

func (s *Server) write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.log.Error("encode an answer", "error", err)
		status = http.StatusInternalServerError
		b = []byte(`{"Success":false,"Error":"encode the answer","ErrorCode":2147500037,"kind":"internal","error":"encode the answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	// What cannot be sent any more has nobody to be reported to.
	_, _ = w.Write(append(b, '\n'))
}

// list makes an empty list of none: clients decode null into nothing and then fail.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// warnIgnored names the members of a document that had no effect. Names come from the client, so they are quoted and cut.
func warnIgnored(w http.ResponseWriter, names []string) { warn(w, "ignored members: ", names) }

func warnParams(w http.ResponseWriter, names []string) { warn(w, "ignored query parameters: ", names) }

func warn(w http.ResponseWriter, what string, names []string) {
	if len(names) == 0 {
		return
	}
	cut := make([]string, len(names))
	for i, n := range names {
		cut[i] = n
		if len(n) > 80 {
			cut[i] = n[:80] + "..."
		}
	}
	w.Header().Add("Warning", "299 - "+strconv.QuoteToASCII(what+strings.Join(cut, ", ")))
}

// warnTurned tells that rules turned a default, which users take for a fault when nobody says so.
func warnTurned(w http.ResponseWriter, turned []hcn.DirectionType) {
	for _, d := range turned {
		w.Header().Add("Warning", "299 - "+strconv.QuoteToASCII("direction "+string(d)+": what no rule allows is blocked from now on; "+
			"to let the rest pass, add an ACL with Action Allow and Priority 65500"))
	}
}

// noRoute answers for paths that nobody serves, and for wrong methods on those that somebody does.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		probe := *r
		probe.Method = m
		_, pattern := s.mux.Handler(&probe)
		// The mux also knows patterns that end in {name...} by the path without it, to redirect: nothing is there.
		redirect := strings.HasSuffix(pattern, "...}") && strings.Count(pattern, "/") > strings.Count(r.URL.Path, "/")
		if pattern != "/" && pattern != "" && !redirect {
			allow = append(allow, m)
		}
	}
	if len(allow) > 0 {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		s.fail(w, r, refusal{http.StatusMethodNotAllowed, api.Errorf(api.KindInvalid,
			"%s is not possible on %q", r.Method, cutText(r.URL.Path)).Hint("use %s", strings.Join(allow, " or "))})
		return
	}
	s.fail(w, r, api.Errorf(api.KindNotFound, "there is nothing at %q", cutText(r.URL.Path)).Hint("see /openapi.json"))
}

func cutText(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}
