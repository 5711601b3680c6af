package server

import (
	"net/http"
	"reflect"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// networkingRoutes are what changes the networking of a running container, and the counters of an endpoint.
func (s *Server) networkingRoutes() {
	const one = "/v1/containers/{ref}"
	ports := reflect.TypeFor[[]api.PublishedPort]()
	for _, rt := range []route{
		{
			method: http.MethodPost, path: one + "/publish", id: "publishPorts", summary: "Publish ports of a container",
			description: "Answers with each port as it is published, such as 127.0.0.1:8080->80/tcp.",
			body:        ports, answer: reflect.TypeFor[[]string](), handle: s.publishPorts,
		},
		{
			method: http.MethodDelete, path: one + "/publish", id: "unpublishPorts", summary: "Take published ports of a container back",
			body: ports, handle: s.unpublishPorts,
		},
		{
			method: http.MethodPost, path: one + "/networks", id: "connectContainer", summary: "Connect a container to a network",
			body: reflect.TypeFor[api.NetworkAttachment](), handle: s.connectContainer,
		},
		{
			method: http.MethodDelete, path: one + "/networks/{network}", id: "disconnectContainer",
			summary: "Disconnect a container from a network", handle: s.disconnectContainer,
		},
		{
			method: http.MethodGet, path: "/v1/endpoints/{id}/stats", id: "endpointStats", summary: "Show the counters of an endpoint",
			answer: reflect.TypeFor[api.NetworkStats](), handle: s.endpointStats,
		},
	} {
		rt.tag = "containers"
		s.handle(rt)
	}
}

func (s *Server) publishPorts(w http.ResponseWriter, r *http.Request) error {
	ports, err := decodeBody[[]api.PublishedPort](w, r)
	if err != nil {
		return err
	}
	got, err := s.backend.PublishPorts(r.Context(), r.PathValue("ref"), ports)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, list(got))
	return nil
}

func (s *Server) unpublishPorts(w http.ResponseWriter, r *http.Request) error {
	ports, err := decodeBody[[]api.PublishedPort](w, r)
	if err != nil {
		return err
	}
	return done(w, s.backend.UnpublishPorts(r.Context(), r.PathValue("ref"), ports))
}

func (s *Server) connectContainer(w http.ResponseWriter, r *http.Request) error {
	to, err := decodeBody[api.NetworkAttachment](w, r)
	if err != nil {
		return err
	}
	return done(w, s.backend.ConnectContainer(r.Context(), r.PathValue("ref"), to))
}

func (s *Server) disconnectContainer(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.backend.DisconnectContainer(r.Context(), r.PathValue("ref"), r.PathValue("network")))
}

func (s *Server) endpointStats(w http.ResponseWriter, r *http.Request) error {
	id, err := hcn.ParseGUID(r.PathValue("id"))
	if err != nil {
		return err
	}
	stats, err := s.backend.EndpointStats(id)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, stats)
	return nil
}
