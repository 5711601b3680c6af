package server

import (
	"net/http"
	"reflect"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func (s *Server) compartmentRoutes() {
	doc := reflect.TypeFor[api.Compartment]()
	for _, rt := range []route{
		{
			method: http.MethodPost, path: "/v1/compartments", id: "createCompartment", summary: "Make a namespace and the endpoints in it",
			description: "All of it or nothing. The documents are those of HCN; the namespace's may be left out, and the version in all of them.",
			body:        doc, answer: doc, handle: s.createCompartment,
		},
		{
			method: http.MethodDelete, path: "/v1/compartments/{id}", id: "deleteCompartment", summary: "Delete a namespace and the endpoints in it",
			description: "One with containers in it is refused.", handle: s.deleteCompartment,
		},
	} {
		rt.tag = "compartments"
		s.handle(rt)
	}
}

func (s *Server) createCompartment(w http.ResponseWriter, r *http.Request) error {
	c, err := decodeBody[api.Compartment](w, r)
	if err != nil {
		return err
	}
	orVersion2(&c.Namespace.SchemaVersion)
	for i := range c.Endpoints {
		ep := &c.Endpoints[i]
		orVersion2(&ep.SchemaVersion)
		if !ep.HostComputeNamespace.IsZero() {
			return api.Errorf(api.KindInvalid, "endpoints[%d].HostComputeNamespace: the namespace is made with the endpoint: leave it out", i)
		}
		if err := oneNetwork("", ep.HostComputeNetwork); err != nil {
			return err
		}
	}
	made, err := s.backend.CreateCompartment(r.Context(), c)
	if err != nil {
		return err
	}
	s.write(w, http.StatusOK, made)
	return nil
}

// orVersion2 fills in what HCN asks for and this door has only one of.
func orVersion2(v *hcn.SchemaVersion) {
	if *v == (hcn.SchemaVersion{}) {
		*v = hcn.V2()
	}
}

func (s *Server) deleteCompartment(w http.ResponseWriter, r *http.Request) error {
	id, err := pathGUID(r)
	if err != nil {
		return err
	}
	if err := s.backend.DeleteCompartment(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
