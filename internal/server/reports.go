package server

import (
	"net/http"
	"reflect"

	"github.com/bulkhead-net/bulkhead/api"
)

func (s *Server) reportRoutes() {
	for _, rt := range []route{
		{
			path: "/v1/addresses", id: "listAddresses", summary: "Who has which address",
			answer: reflect.TypeFor[[]api.Address](),
			handle: s.report(func(*http.Request) any { return list(s.backend.Addresses()) }),
		},
		{
			path: "/v1/published", id: "listPublished", summary: "Published ports, and who can reach them",
			answer: reflect.TypeFor[[]api.Published](),
			handle: s.report(func(*http.Request) any { return list(s.backend.Published()) }),
		},
		{
			path: "/v1/nics", id: "listNICs", summary: "The host's NICs, and which networks are on them",
			answer: reflect.TypeFor[[]api.NIC](),
			handle: s.report(func(r *http.Request) any { return list(s.backend.NICs(r.Context())) }),
		},
		{
			path: "/v1/doctor", id: "doctor", summary: "Check the host and the daemon",
			answer: reflect.TypeFor[[]api.Check](),
			handle: s.report(func(r *http.Request) any { return list(s.backend.Doctor(r.Context())) }),
		},
		{
			path: "/v1/info", id: "info", summary: "What the daemon is",
			answer: reflect.TypeFor[api.Info](),
			handle: s.report(func(*http.Request) any { return s.backend.Info() }),
		},
	} {
		rt.method, rt.tag = http.MethodGet, "reports"
		s.handle(rt)
	}
}

func (s *Server) report(make func(*http.Request) any) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		s.write(w, http.StatusOK, make(r))
		return nil
	}
}
