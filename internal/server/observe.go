package server

import (
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
)

// observeRoutes are about what goes over the switches.
func (s *Server) observeRoutes() {
	s.handle(route{
		method: http.MethodGet, path: "/v1/drops", id: "drops", tag: "reports", summary: "Read which frames were dropped, and why",
		description: "Samples of dropped frames, oldest first, as lines of JSON. A line with notShown counts frames that no line tells of.",
		query: []*huma.Param{
			repeated("endpoint", "Only at these endpoints: names or IDs of containers or endpoints, host, or resolver"),
			repeated("reason", "Only for these reasons, by their words; absent: all that are a loss"),
			param("tail", huma.TypeInteger, "So many of the past; negative or absent: all that are kept"),
			param("follow", huma.TypeBoolean, "Go on with what is dropped from now on"),
		},
		answer: reflect.TypeFor[api.DropLine](), answerType: typeNDJSON, handle: s.readDrops,
	})
}

// repeated is a parameter that may come several times.
func repeated(name, doc string) *huma.Param {
	p := param(name, huma.TypeArray, doc)
	p.Schema.Items = &huma.Schema{Type: huma.TypeString}
	return p
}

func (s *Server) readDrops(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	o := api.DropOptions{
		Endpoints: q.values["endpoint"], Reasons: q.values["reason"], Tail: q.number("tail", -1), Follow: q.flag("follow", false),
	}
	if q.err != nil {
		return q.err
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	lines := newLines(w)
	if o.Follow {
		lines.begin() // the client waits for the answer to begin
		if err := lines.rc.Flush(); err != nil {
			return lines.end(err)
		}
	}
	err := s.backend.DropLines(ctx, o, func(l api.DropLine) error { return lines.send(l, o.Follow) })
	return lines.end(s.interrupted(err))
}
