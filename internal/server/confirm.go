package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

func (s *Server) confirmRoutes() {
	for _, rt := range []route{
		{
			method: http.MethodPost, path: "/v1/networks", id: "createTentativeNetwork", summary: "Create a network on a NIC that is undone unless it is confirmed",
			description: "The network is undone when nobody confirms it within the time, when those who answered by the NIC before do not any more, " +
				"and when the daemon ends meanwhile. One network at a time may wait. A network without such a time is created by POST /hcn/v2/networks.",
			body: reflect.TypeFor[api.TentativeNetwork](), answer: reflect.TypeFor[api.Tentative](), handle: s.createTentative,
		},
		{
			method: http.MethodPost, path: tentativeBase + "/{change...}", id: "tentativeChange", summary: "Attach to a network on a NIC, undone unless it is confirmed",
			description: "The path is that of the attachment behind " + tentativeBase + ", its query and document are its own: starting or connecting a container, creating an " +
				"endpoint in a namespace, attaching one to it. The endpoint is detached again when nobody confirms it within confirmWithin, when those who answered by " +
				"the NIC before do not any more, and when the daemon ends meanwhile. What attaches nothing there is refused.",
			anyQuery: true, body: reflect.TypeFor[map[string]any](), optionalBody: true, answer: reflect.TypeFor[map[string]any](), handle: s.tentativeChange,
		},
		{
			method: http.MethodGet, path: "/v1/confirmations", id: "listUnconfirmed", summary: "List what waits to be confirmed",
			answer: reflect.TypeFor[[]api.Unconfirmed](), handle: s.unconfirmed,
		},
		{
			method: http.MethodPost, path: "/v1/confirmations/{network}", id: "confirmNetwork", summary: "Keep a network or an attachment that waits to be confirmed",
			description: "By the name or GUID of the network, the endpoint or its container.", handle: s.confirm,
		},
	} {
		rt.tag = "reports"
		s.handle(rt)
	}
}

func (s *Server) createTentative(w http.ResponseWriter, r *http.Request) error {
	c, err := decodeBody[api.TentativeNetwork](w, r)
	if err != nil {
		return err
	}
	orVersion2(&c.Network.SchemaVersion)
	within, err := time.ParseDuration(c.ConfirmWithin)
	if err != nil {
		return api.Errorf(api.KindInvalid, "confirmWithin: %q is not a duration", cutText(c.ConfirmWithin)).Hint("write it like 2m30s")
	}
	made, err := s.backend.CreateNetworkFor(r.Context(), c.Network, within)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, made)
	return nil
}

func (s *Server) unconfirmed(w http.ResponseWriter, _ *http.Request) error {
	s.write(w, http.StatusOK, list(s.backend.Unconfirmed()))
	return nil
}

func (s *Server) confirm(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.backend.Confirm(r.Context(), r.PathValue("network")))
}

// tentativeBase is put before the path of an attachment that is to be confirmed.
const tentativeBase = "/v1/tentative"

// tentativeChanges are those that can attach an endpoint.
func tentativeChanges() []string {
	return []string{
		"POST /hcn/v2/endpoints", "POST /hcn/v2/namespaces/{id}/modify", "POST /v1/containers/{ref}/start", "POST /v1/containers/{ref}/networks",
	}
}

func (s *Server) tentativeChange(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	within, err := time.ParseDuration(query.Get("confirmWithin"))
	if err != nil {
		return api.Errorf(api.KindInvalid, "confirmWithin: %q is not a duration", cutText(query.Get("confirmWithin"))).Hint("write it like 2m30s, in the query")
	}
	query.Del("confirmWithin")
	target := *r.URL
	target.Path, target.RawPath = strings.TrimPrefix(target.Path, tentativeBase), strings.TrimPrefix(target.RawPath, tentativeBase)
	target.RawQuery = query.Encode()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return api.Errorf(api.KindInvalid, "read the change: %w", err)
	}
	again := func(ctx context.Context) *http.Request {
		change := r.WithContext(ctx)
		change.URL, change.Body = &target, io.NopCloser(bytes.NewReader(body))
		return change
	}
	if _, pattern := s.mux.Handler(again(r.Context())); !slices.Contains(tentativeChanges(), pattern) {
		return api.Errorf(api.KindUnsupported, "%s %q cannot cut the host off, or not so that undoing it would help: only what attaches an endpoint, and a new network, can wait to be confirmed", r.Method, cutText(target.Path)).
			Hint("make it without confirmWithin")
	}
	var answer *held
	err = s.backend.Tentatively(r.Context(), within, func(ctx context.Context) error {
		answer = &held{ResponseWriter: w, header: http.Header{}}
		s.mux.ServeHTTP(answer, again(ctx))
		if answer.status/100 != 2 {
			return errAnswered
		}
		return nil
	})
	if err != nil && !errors.Is(err, errAnswered) {
		return err
	}
	maps.Copy(w.Header(), answer.header)
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body.Bytes())
	return nil
}
