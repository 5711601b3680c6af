package server

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// The API of version 1: one call with a method, a path and a document, answered with 200 and an envelope whatever happens. An
// object made here is visible in version 2 and the reverse.

// hnsSuccess is the envelope of a call that worked.
type hnsSuccess struct {
	Success bool
	Output  any `json:",omitempty"`
}

// hnsPath is the path inside version 1, without the slash that clients put at its end.
func hnsPath(r *http.Request) (string, bool) {
	p, ok := strings.CutPrefix(r.URL.Path, "/hns/v1")
	if !ok || p != "" && p[0] != '/' {
		return "", false
	}
	return strings.Trim(p, "/"), true
}

func (s *Server) hnsRoutes() {
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		rt := route{
			method: method, path: "/hns/v1/{path...}", id: "hns" + method, tag: "hns", summary: "A call of version 1: " + method,
			description: "The path is that of the Host Networking Service, such as /networks/ or /endpoints/{id}. The answer is always " +
				"200, with Success telling whether it worked.",
			answer: reflect.TypeFor[hnsEnvelope](),
		}
		if method == http.MethodPost {
			rt.body = reflect.TypeFor[map[string]any]()
		}
		s.describe(rt)
	}
}

// hnsEnvelope describes both forms of the answer.
type hnsEnvelope struct {
	Success   bool
	Output    any    `json:",omitempty"`
	Error     string `json:",omitempty"`
	ErrorCode uint32 `json:",omitempty"`
}

func (s *Server) hns(w http.ResponseWriter, r *http.Request) {
	path, _ := hnsPath(r)
	warnParams(w, unknownParams(r, nil))
	body, err := hcnBody(w, r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var ignored []string
	out, err := s.hnsCall(r.Context(), hnsCall{r.Method, strings.Split(path, "/"), body, &ignored})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	warnIgnored(w, ignored)
	s.write(w, http.StatusOK, hnsSuccess{Success: true, Output: out})
}

// hnsCall is one call; path is split at its slashes.
type hnsCall struct {
	method  string
	path    []string
	body    []byte
	ignored *[]string
}

// verb is the call without its GUID, such as "POST endpoints/{id}/attach".
func (c hnsCall) verb() string {
	p := append([]string(nil), c.path...)
	if len(p) > 1 && p[0] != "globals" {
		p[1] = "{id}"
	}
	return c.method + " " + strings.ToLower(strings.Join(p, "/"))
}

func (c hnsCall) guid() (hcn.GUID, error) { return hcn.ParseGUID(c.path[1]) }

func (c hnsCall) creation() creation { return creation{body: c.body, v1: true, ignored: c.ignored} }

func (s *Server) hnsCall(ctx context.Context, c hnsCall) (any, error) {
	switch c.verb() {
	case "GET globals/version":
		return hcn.ClaimOf(s.backend.HCNVersion()), nil
	case "GET networks", "GET endpoints", "GET namespaces", "GET policylists":
		return hnsList(s.hnsKind(c))
	case "GET activities", "GET plugins":
		return []any{}, nil
	case "POST networks", "POST endpoints", "POST namespaces", "POST policylists":
		made, err := s.hnsKind(c).create(ctx, c.creation())
		if err != nil {
			return nil, err
		}
		return made(hcn.HostComputeQuery{}, true), nil
	}
	if len(c.path) > 1 {
		return s.hnsObject(ctx, c)
	}
	return nil, notImplemented(c)
}

// hnsObject does the calls that name an object.
func (s *Server) hnsObject(ctx context.Context, c hnsCall) (any, error) {
	do, ok := map[string]func(context.Context, hcn.GUID, hnsCall) (any, error){
		"GET networks/{id}":                   s.hnsGet,
		"GET endpoints/{id}":                  s.hnsGet,
		"GET namespaces/{id}":                 s.hnsGet,
		"DELETE networks/{id}":                s.hnsDelete,
		"DELETE endpoints/{id}":               s.hnsDelete,
		"DELETE namespaces/{id}":              s.hnsDelete,
		"POST networks/{id}":                  s.hnsModifyNetwork,
		"POST endpoints/{id}":                 s.hnsModifyEndpoint,
		"GET endpointstats/{id}":              s.hnsEndpointStats,
		"POST endpoints/{id}/attach":          s.hnsAttach,
		"POST endpoints/{id}/detach":          s.hnsDetach,
		"POST namespaces/{id}/addresource":    s.hnsAddResource,
		"POST namespaces/{id}/removeresource": s.hnsRemoveResource,
		"GET policylists/{id}":                s.hnsGet,
		"DELETE policylists/{id}":             s.hnsDelete,
	}[c.verb()]
	if !ok {
		return nil, notImplemented(c)
	}
	id, err := c.guid()
	if err != nil {
		return nil, err
	}
	return do(ctx, id, c)
}

func notImplemented(c hnsCall) error {
	return hcn.Errorf(hcn.ErrNotImplemented, "%s %q: this version does not have that call", c.method, cutText("/"+strings.Join(c.path, "/")))
}

// hnsKind is the kind that a call is about.
func (s *Server) hnsKind(c hnsCall) kind {
	name := strings.ToLower(c.path[0])
	if name == "policylists" {
		return s.policyListKind()
	}
	return s.kinds[name]
}

// policyListKind is what version 1 has for two kinds: a list of ELB policies is a load balancer, others are routes.
func (s *Server) policyListKind() kind {
	balancers, routes := s.kinds["loadbalancers"], s.kinds["routes"]
	of := func(id hcn.GUID) kind {
		if _, err := balancers.get(id); err == nil {
			return balancers
		}
		return routes
	}
	return kind{
		singular:  "policy list",
		enumerate: func(f hcn.Filter) []hcn.GUID { return append(balancers.enumerate(f), routes.enumerate(f)...) },
		get:       func(id hcn.GUID) (view, error) { return of(id).get(id) },
		remove:    func(ctx context.Context, id hcn.GUID) error { return of(id).remove(ctx, id) },
		create: func(ctx context.Context, c creation) (view, error) {
			if v, err := hcn.Decode[hcn.HNSPolicyList](c.body); err == nil && v.IsLoadBalancer() {
				return balancers.create(ctx, c)
			}
			return routes.create(ctx, c)
		},
	}
}

// hnsList shows all objects of a kind. One that goes away meanwhile is left out.
func hnsList(k kind) (any, error) {
	out := []any{}
	for _, id := range k.enumerate(hcn.Filter{}) {
		if found, err := k.get(id); err == nil {
			out = append(out, found(hcn.HostComputeQuery{}, true))
		}
	}
	return out, nil
}

func (s *Server) hnsGet(_ context.Context, id hcn.GUID, c hnsCall) (any, error) {
	found, err := s.hnsKind(c).get(id)
	if err != nil {
		return nil, err
	}
	return found(hcn.HostComputeQuery{}, true), nil
}

// hnsDelete answers with what the object was.
func (s *Server) hnsDelete(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	k := s.hnsKind(c)
	found, err := k.get(id)
	if err != nil {
		return nil, err
	}
	former := found(hcn.HostComputeQuery{}, true)
	return former, k.remove(ctx, id)
}

// hnsModifyEndpoint changes an endpoint's policies: those given replace the ones of the same types, and an empty list clears the
// ACLs alone (Windows HNS behaviour). A document without policies changes nothing, and nothing else of it can be changed.
func (s *Server) hnsModifyEndpoint(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	v, err := decodeNoting[hcn.HNSEndpoint](c.creation())
	if err != nil {
		return nil, err
	}
	if v.Policies != nil {
		what, request := hcn.RequestTypeUpdate, hcn.PolicyEndpointRequest{}
		for i, raw := range v.Policies {
			p, err := hcn.EndpointPolicyFromV1(raw)
			if err != nil {
				return nil, hcn.Errorf(hcn.CodeOf(err), "Policies[%d]: %s", i, hcn.AsError(err).Detail)
			}
			request.Policies = append(request.Policies, p)
		}
		if len(v.Policies) == 0 {
			what, request.Policies = hcn.RequestTypeReset, []hcn.EndpointPolicy{{Type: hcn.ACL}}
		}
		err := s.backend.ModifyEndpoint(ctx, id, &hcn.ModifyEndpointSettingRequest{
			ResourceType: hcn.EndpointResourceTypePolicy, RequestType: what, Settings: settings(request),
		})
		if err != nil {
			return nil, flatPath(err)
		}
	}
	return s.hnsGet(ctx, id, c)
}

// flatPath names the place in a document of version 1, where policies are the document's and their settings stand beside Type.
func flatPath(err error) error {
	e := *hcn.AsError(err)
	if rest, ok := strings.CutPrefix(e.Detail, "Settings.Policies["); ok {
		e.Detail = "Policies[" + strings.Replace(rest, "].Settings.", "].", 1)
	}
	return &e
}
