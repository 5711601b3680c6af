package server

import (
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
)

// flowRoutes are about connections and what lets them pass.
func (s *Server) flowRoutes() {
	s.explainRoute()
	s.handle(route{
		method: http.MethodGet, path: "/v1/flows", id: "flows", tag: "reports", summary: "Read which connections there are",
		description: "Flows of the switches as lines of JSON. A line with notShown counts flows that no line tells of.",
		query: []*huma.Param{
			repeated("endpoint", "Only of these: names or IDs of containers or endpoints, addresses, host, or resolver"),
			param("protocol", huma.TypeString, "tcp, udp, icmp, icmpv6, sctp or a number"),
			param("port", huma.TypeInteger, "A port at either end"),
			param("recent", huma.TypeBoolean, "Also those that have ended, and those that a policy blocked"),
			param("follow", huma.TypeBoolean, "Go on with what begins, ends and is blocked from now on"),
			param("sort", huma.TypeString, "bytes (when absent) or age"),
			param("limit", huma.TypeInteger, "At most so many; 1000 when absent"),
		},
		answer: reflect.TypeFor[api.FlowLine](), answerType: typeNDJSON, handle: s.readFlows,
	})
	s.handle(route{
		method: http.MethodGet, path: "/v1/rules/{ref}", id: "rules", tag: "reports",
		summary:     "The rules of a container's or an endpoint's ports, as the switch evaluates them",
		description: "The first rule that matches decides; one that passes goes on at the next layer.",
		answer:      reflect.TypeFor[[]api.EndpointRules](),
		handle: func(w http.ResponseWriter, r *http.Request) error {
			l, err := s.backend.Rules(r.PathValue("ref"))
			if err == nil {
				s.write(w, http.StatusOK, list(l))
			}
			return err
		},
	})
}

// explainRoute is about what becomes of a packet.
func (s *Server) explainRoute() {
	s.handle(route{
		method: http.MethodGet, path: "/v1/explain", id: "explain", tag: "reports", summary: "Explain what becomes of a packet, layer after layer",
		description: "The first packet of a flow is followed from end to end through the plan, in each family; the loaded program is asked " +
			"about the same packet, and a difference is told. With probe a real packet is sent too.",
		query: []*huma.Param{
			param("from", huma.TypeString, "Name or ID of a container or endpoint, an address, host or outside"),
			param("to", huma.TypeString, "Likewise"),
			param("protocol", huma.TypeString, "tcp, udp, icmp (an echo, when absent), sctp or a number"),
			param("port", huma.TypeInteger, "Destination port of TCP and UDP"),
			param("family", huma.TypeInteger, "4 or 6; absent: both"),
			param("probe", huma.TypeBoolean, "Send a real packet"),
		},
		answer: reflect.TypeFor[api.Explanation](), handle: s.explain,
	})
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	o := api.ExplainOptions{
		From: q.text("from"), To: q.text("to"), Protocol: q.text("protocol"), Family: q.number("family", 0), Probe: q.flag("probe", false),
	}
	port := q.number("port", 0)
	if o.Port = uint16(port); int(o.Port) != port {
		q.wrong("port", "write a number up to 65535")
	}
	if q.err != nil {
		return q.err
	}
	x, err := s.backend.Explain(r.Context(), o)
	if err == nil {
		s.write(w, http.StatusOK, x)
	}
	return err
}

func (s *Server) readFlows(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	o := api.FlowOptions{
		Endpoints: q.values["endpoint"], Protocol: q.text("protocol"), Recent: q.flag("recent", false), Follow: q.flag("follow", false),
		Sort: q.text("sort"), Limit: q.number("limit", 0),
	}
	port := q.number("port", 0)
	if o.Port = uint16(port); int(o.Port) != port {
		q.wrong("port", "write a number up to 65535")
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
	err := s.backend.FlowLines(ctx, o, func(l api.FlowLine) error { return lines.send(l, o.Follow) })
	return lines.end(s.interrupted(err))
}
