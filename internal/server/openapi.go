package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// What the bodies of requests and answers are made of.
const (
	typeJSON   = "application/json"
	typeNDJSON = "application/x-ndjson"
	typeSSE    = "text/event-stream"
	typeTar    = "application/x-tar"
	typePcapng = "application/x-pcapng"
	typeText   = "text/plain"
)

// route is an operation and its description. The types of body and answer give the schemas; the handler does the reading and
// writing by itself, since HCN prescribes how.
type route struct {
	method, path string
	id, tag      string
	summary      string
	description  string
	query        []*huma.Param
	anyQuery     bool // it is read elsewhere
	body         reflect.Type
	bodyType     string // typeJSON when empty
	optionalBody bool
	answer       reflect.Type // nil: 204, nothing
	answerType   string       // typeJSON when empty
	handle       func(w http.ResponseWriter, r *http.Request) error
}

// apiErrorRecord and hcnErrorRecord describe the errors, which write themselves.
type apiErrorRecord struct {
	Kind  string `json:"kind" enum:"invalid,not-found,conflict,unsupported,unavailable,internal" doc:"What went wrong, for programs"`
	Error string `json:"error" doc:"What was being done and what is wrong, for people"`
	Next  string `json:"next,omitempty" doc:"A command or a change that helps"`
}

type hcnErrorRecord struct {
	Success   bool   `doc:"Always false"`
	Error     string `doc:"The sentence of the HCN error table, and the detail after it"`
	ErrorCode uint32 `doc:"The HRESULT as a decimal number"`
}

func newAPI(mux *http.ServeMux, version string) huma.API {
	return humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:   "Bulkhead",
				Version: version,
				Description: "Containers and their networks on one host. The daemon answers on a unix socket, by default " +
					"/run/bulkhead/bulkhead.sock.\n\n" +
					"/hcn/v2 and /hns/v1 speak Host Compute Network documents: members in any letter case, unknown ones ignored and " +
					"named in a Warning header. /v1 is Bulkhead's own: it refuses unknown members.\n\n" +
					"A stream of newline-delimited JSON that fails midway ends with an error record as its last line.",
				License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName)},
			Tags:       apiTags(),
		},
		OpenAPIPath: "/openapi",
	})
}

func apiTags() []*huma.Tag {
	return []*huma.Tag{
		{Name: "hcn", Description: "Host Compute Network, version 2"},
		{Name: "hns", Description: "Host Networking Service, version 1"},
		{Name: "containers", Description: "Containers"},
		{Name: "attachments", Description: "Containers of other runtimes on our networks"},
		{Name: "compartments", Description: "Namespaces with their endpoints, in one step"},
		{Name: "images", Description: "Images"},
		{Name: "cluster", Description: "Hosts that share networks"},
		{Name: "reports", Description: "What the daemon knows"},
	}
}

// schemaName keeps the names that the HCN schema gives its types, and ours apart from them.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	return strings.TrimSuffix(name, "Record")
}

// handle puts a route in its place and describes it.
func (s *Server) handle(rt route) {
	s.describe(rt)
	var known []string
	for _, p := range rt.query {
		known = append(known, p.Name)
	}
	s.mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
		if rt.tag == "hcn" {
			warnParams(w, unknownParams(r, known))
		} else if err := checkParams(r, known); err != nil && !rt.anyQuery {
			s.fail(w, r, err)
			return
		}
		if err := rt.handle(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *Server) describe(rt route) {
	op := &huma.Operation{
		OperationID: rt.id, Method: rt.method, Path: strings.ReplaceAll(rt.path, "...}", "}"), Tags: []string{rt.tag},
		Summary: rt.summary, Description: rt.description, Parameters: append(pathParams(rt.path), rt.query...),
		Responses: map[string]*huma.Response{},
	}
	if rt.body != nil {
		op.RequestBody = &huma.RequestBody{Required: !rt.optionalBody, Content: s.content(rt.body, orJSON(rt.bodyType), rt.id+"Body")}
	}
	switch {
	case rt.answerType == upgrade:
		op.Responses["101"] = &huma.Response{Description: "The connection carries frames from here on"}
	case rt.answerType == connection:
		op.Responses["101"] = &huma.Response{Description: "The connection is one to that daemon from here on"}
	case rt.answer == nil:
		op.Responses["204"] = &huma.Response{Description: "Done"}
	default:
		op.Responses["200"] = &huma.Response{Description: "Done", Content: s.content(rt.answer, orJSON(rt.answerType), rt.id+"Answer")}
	}
	record := reflect.TypeFor[apiErrorRecord]()
	if rt.tag == "hcn" || rt.tag == "hns" {
		record = reflect.TypeFor[hcnErrorRecord]()
	}
	op.Responses["default"] = &huma.Response{Description: "What went wrong", Content: s.content(record, typeJSON, "")}
	s.api.OpenAPI().AddOperation(op)
}

func orJSON(t string) string {
	if t == "" {
		return typeJSON
	}
	return t
}

func (s *Server) content(t reflect.Type, mediaType, hint string) map[string]*huma.MediaType {
	if mediaType == typeTar || mediaType == typePcapng || mediaType == typeText {
		return map[string]*huma.MediaType{mediaType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}
	}
	return map[string]*huma.MediaType{mediaType: {Schema: s.api.OpenAPI().Components.Schemas.Schema(t, true, hint)}}
}

// pathParams finds the {names} of a pattern.
func pathParams(path string) []*huma.Param {
	var out []*huma.Param
	for part := range strings.SplitSeq(path, "/") {
		name, ok := strings.CutPrefix(part, "{")
		if !ok {
			continue
		}
		name = strings.TrimSuffix(strings.TrimSuffix(name, "}"), "...")
		out = append(out, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
	}
	return out
}

func param(name, typ, doc string) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: doc, Schema: &huma.Schema{Type: typ}}
}

func mustParam(name, doc string) *huma.Param {
	p := param(name, huma.TypeString, doc)
	p.Required = true
	return p
}

// Document is the OpenAPI 3.1 description of all routes.
func (s *Server) Document() ([]byte, error) {
	b, err := json.MarshalIndent(s.api.OpenAPI(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	return append(b, '\n'), nil
}
