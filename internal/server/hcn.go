package server

import (
	"context"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// kind is one kind of HCN object: what its routes have in common, with the differences as functions.
type kind struct {
	singular string
	document reflect.Type
	modify   reflect.Type

	enumerate func(f hcn.Filter) []hcn.GUID
	get       func(id hcn.GUID) (view, error)
	create    func(ctx context.Context, c creation) (view, error)
	change    func(ctx context.Context, id hcn.GUID, body []byte) ([]string, error)
	remove    func(ctx context.Context, id hcn.GUID) error
	// turned, where a kind has rules, is called before a change; what it returns is called after it, and names the directions
	// in which the change turned the default from allow to block.
	turned func(id hcn.GUID) func() []hcn.DirectionType
}

func (k kind) article() string {
	if k.singular == "endpoint" {
		return "an endpoint"
	}
	return "a " + k.singular
}

// view shows an object in the shape that is asked for.
type view func(q hcn.HostComputeQuery, v1 bool) any

// creation is a call that creates something. Its functions note here which members they ignored.
type creation struct {
	id, network hcn.GUID
	body        []byte
	v1          bool
	ignored     *[]string
}

// kindNames are the kinds in the order in which they are described.
func kindNames() []string {
	return []string{"networks", "endpoints", "namespaces", "loadbalancers", "routes", "guestnetworkservices"}
}

func (s *Server) hcnKinds() map[string]kind {
	return map[string]kind{
		"networks":             s.networkKind(),
		"endpoints":            s.endpointKind(),
		"namespaces":           s.namespaceKind(),
		"loadbalancers":        s.balancerKind(),
		"routes":               s.routeKind(),
		"guestnetworkservices": s.guestKind(),
	}
}

func (s *Server) hcnRoutes() {
	for _, name := range kindNames() {
		s.kindRoutes(name, s.kinds[name])
	}
}

func (s *Server) kindRoutes(plural string, k kind) {
	base := "/hcn/v2/" + plural
	ask := param("query", huma.TypeString, "A HostComputeQuery as JSON: SchemaVersion picks the shape of the answer, Flags 1 asks for "+
		"details, Filter is a JSON object encoded as a string")
	id := param("id", huma.TypeString, "The GUID to create it with; all zero or absent: the document's, or a new one")
	title := k.document.Name()
	s.handle(route{
		method: http.MethodGet, path: base, id: "enumerate" + title, tag: "hcn", query: []*huma.Param{ask},
		summary: "List the GUIDs of " + plural, answer: reflect.TypeFor[[]hcn.GUID](), handle: s.enumerate(k),
	})
	create := []*huma.Param{id, ask}
	if plural == "endpoints" {
		create = append(create, param("network", huma.TypeString, "The GUID of the network; absent: the document's"))
	}
	s.handle(route{
		method: http.MethodPost, path: base, id: "create" + title, tag: "hcn", query: create, body: k.document, answer: k.document,
		summary:     "Create " + k.article(),
		description: "A document without SchemaVersion is one of version 1, and is answered in that shape unless the query says otherwise.",
		handle:      s.create(k),
	})
	s.handle(route{
		method: http.MethodGet, path: base + "/{id}", id: "query" + title, tag: "hcn", query: []*huma.Param{ask},
		summary: "Show " + k.article(), answer: k.document, handle: s.query(k),
	})
	s.handle(route{
		method: http.MethodPost, path: base + "/{id}/modify", id: "modify" + title, tag: "hcn", body: k.modify,
		summary: "Change " + k.article(), handle: s.modify(k),
	})
	s.handle(route{
		method: http.MethodDelete, path: base + "/{id}", id: "delete" + title, tag: "hcn",
		summary: "Delete " + k.article(), handle: s.remove(k),
	})
}

// hcnQuery reads what all calls may carry.
func hcnQuery(r *http.Request) (*query, hcn.HostComputeQuery, error) {
	q := readQuery(r)
	if q.err != nil {
		return nil, hcn.HostComputeQuery{}, hcn.Errorf(hcn.ErrInvalidJSON, "%w", q.err)
	}
	doc, err := hcn.ParseQuery(q.text("query"))
	return q, doc, err
}

func pathGUID(r *http.Request) (hcn.GUID, error) {
	id, err := hcn.ParseGUID(r.PathValue("id"))
	if err != nil {
		return "", hcn.Errorf(hcn.ErrGUIDConversionFailure, "path: %s", hcn.AsError(err).Detail)
	}
	return id, nil
}

func queryGUID(q *query, name string) (hcn.GUID, error) {
	var g hcn.GUID
	if err := g.UnmarshalText([]byte(q.text(name))); err != nil {
		return "", hcn.Errorf(hcn.ErrGUIDConversionFailure, "query parameter %s: %s", name, hcn.AsError(err).Detail)
	}
	return g, nil
}

func (s *Server) enumerate(k kind) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		_, q, err := hcnQuery(r)
		if err != nil {
			return err
		}
		f, err := q.Parse()
		if err != nil {
			return err
		}
		s.write(w, http.StatusOK, list(k.enumerate(f)))
		return nil
	}
}

func (s *Server) create(k kind) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		params, q, err := hcnQuery(r)
		if err != nil {
			return err
		}
		var c creation
		if c.id, err = queryGUID(params, "id"); err != nil {
			return err
		}
		if c.network, err = queryGUID(params, "network"); err != nil {
			return err
		}
		if c.body, err = hcnBody(w, r); err != nil {
			return err
		}
		if c.v1, err = hcn.IsV1(c.body); err != nil {
			return err
		}
		var ignored []string
		c.ignored = &ignored
		made, err := k.create(r.Context(), c)
		if err != nil {
			return err
		}
		shape := c.v1
		if q.SchemaVersion.Major != 0 {
			shape = q.WantsV1()
		}
		warnIgnored(w, ignored)
		s.write(w, http.StatusOK, made(q, shape))
		return nil
	}
}

func (s *Server) query(k kind) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := pathGUID(r)
		if err != nil {
			return err
		}
		_, q, err := hcnQuery(r)
		if err != nil {
			return err
		}
		found, err := k.get(id)
		if err != nil {
			return err
		}
		s.write(w, http.StatusOK, found(q, q.WantsV1()))
		return nil
	}
}

func (s *Server) modify(k kind) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := pathGUID(r)
		if err != nil {
			return err
		}
		body, err := hcnBody(w, r)
		if err != nil {
			return err
		}
		turned := func() []hcn.DirectionType { return nil }
		if k.turned != nil {
			turned = k.turned(id)
		}
		ignored, err := k.change(r.Context(), id, body)
		if err != nil {
			return err
		}
		warnIgnored(w, ignored)
		warnTurned(w, turned())
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func (s *Server) remove(k kind) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := pathGUID(r)
		if err != nil {
			return err
		}
		if err := k.remove(r.Context(), id); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

// decodeNoting reads a document and notes the members that it has too many.
func decodeNoting[T any](c creation) (*T, error) {
	doc, err := hcn.Decode[T](c.body)
	if err != nil {
		return nil, err
	}
	*c.ignored = hcn.UnknownMembers[T](c.body)
	return doc, nil
}
