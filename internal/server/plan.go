package server

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// planBase is put before the path of a change to ask what it would do. It is no parameter of
// the change: a daemon that did not know it would make the change.
const planBase = "/v1/plan"

// planned are the routes of changes that can be asked about: those that touch
// networks, endpoints and namespaces, and what of a container's making, start, stop, restart, change of isolation and removal does.
func planned() []string {
	var out []string
	for _, kind := range kindNames() {
		base := "/hcn/v2/" + kind
		out = append(out, "POST "+base, "POST "+base+"/{id}/modify", "DELETE "+base+"/{id}")
	}
	return append(out, "POST /v1/networks", "POST /v1/cluster/networks", "POST /v1/cluster/leave",
		"POST /v1/compartments", "DELETE /v1/compartments/{id}",
		"POST /v1/containers", "POST /v1/containers/{ref}/start", "POST /v1/containers/{ref}/stop", "POST /v1/containers/{ref}/restart", "POST /v1/containers/{ref}/isolation", "DELETE /v1/containers/{ref}",
		"POST /v1/containers/{ref}/publish", "DELETE /v1/containers/{ref}/publish",
		"POST /v1/containers/{ref}/networks", "DELETE /v1/containers/{ref}/networks/{network}")
}

func (s *Server) planRoutes() {
	what := "The path is that of the change behind " + planBase + ", its query and document are the change's own: POST " + planBase +
		"/hcn/v2/networks. What the change would be refused for, it is refused for here. Nothing is changed."
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		s.handle(route{
			method: method, path: planBase + "/{change...}", id: "plan" + method[:1] + strings.ToLower(method[1:]), tag: "reports",
			summary: "Say what a " + method + " would change in the kernel", description: what, anyQuery: true,
			body: reflect.TypeFor[map[string]any](), optionalBody: true, answer: reflect.TypeFor[api.Plan](), handle: s.plan,
		})
	}
}

// errAnswered says that the answer of a change is there already.
var errAnswered = errors.New("answered")

func (s *Server) plan(w http.ResponseWriter, r *http.Request) error {
	change := *r
	target := *r.URL
	target.Path = strings.TrimPrefix(target.Path, planBase)
	target.RawPath = strings.TrimPrefix(target.RawPath, planBase)
	change.URL = &target
	if _, pattern := s.mux.Handler(&change); !slices.Contains(planned(), pattern) {
		return api.Errorf(api.KindUnsupported, "what %s %q would do cannot be told beforehand", r.Method, cutText(target.Path)).
			Hint("ask about changes of networks, endpoints, namespaces and published ports, and the making, start, stop, restart, isolation and removal of containers")
	}
	answer := &held{ResponseWriter: w, header: http.Header{}}
	p, err := s.backend.Plan(r.Context(), func(ctx context.Context) error {
		s.mux.ServeHTTP(answer, change.WithContext(ctx))
		if answer.status/100 != 2 {
			return errAnswered
		}
		return nil
	})
	maps.Copy(w.Header(), map[string][]string{"Warning": answer.header["Warning"]})
	switch {
	case errors.Is(err, errAnswered):
		maps.Copy(w.Header(), answer.header)
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body.Bytes())
		return nil
	case err != nil:
		return err
	}
	s.write(w, http.StatusOK, p)
	return nil
}

// held is an answer that may not be sent.
type held struct {
	http.ResponseWriter
	header http.Header
	status int
	body   bytes.Buffer
}

func (h *held) Header() http.Header { return h.header }

func (h *held) WriteHeader(status int) {
	if h.status == 0 {
		h.status = status
	}
}

func (h *held) Write(p []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	return h.body.Write(p)
}

// Unwrap lets http.ResponseController through.
func (h *held) Unwrap() http.ResponseWriter { return h.ResponseWriter }
