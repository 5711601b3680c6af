package server

import (
	"net/http"
	"reflect"
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
			method: http.MethodGet, path: "/v1/confirmations", id: "listUnconfirmed", summary: "List the networks that wait to be confirmed",
			answer: reflect.TypeFor[[]api.Unconfirmed](), handle: s.unconfirmed,
		},
		{
			method: http.MethodPost, path: "/v1/confirmations/{network}", id: "confirmNetwork", summary: "Keep a network that waits to be confirmed",
			description: "By its name or GUID.", handle: s.confirm,
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
	return done(w, s.backend.ConfirmNetwork(r.Context(), r.PathValue("network")))
}
