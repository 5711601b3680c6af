package server

import (
	"net/http"
	"reflect"

	"github.com/bulkhead-net/bulkhead/api"
)

func (s *Server) volumeRoutes() {
	s.handle(route{
		method: http.MethodGet, path: "/v1/volumes", id: "listVolumes", tag: "containers", summary: "List the named volumes",
		answer: reflect.TypeFor[[]api.Volume](), handle: s.listVolumes,
	})
	s.handle(route{
		method: http.MethodDelete, path: "/v1/volumes/{name}", id: "removeVolume", tag: "containers",
		summary: "Remove a named volume that no container mounts, with its content", handle: s.removeVolume,
	})
}

func (s *Server) listVolumes(w http.ResponseWriter, _ *http.Request) error {
	l, err := s.backend.Volumes()
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, list(l))
	return nil
}

func (s *Server) removeVolume(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.backend.RemoveVolume(r.Context(), r.PathValue("name")))
}
