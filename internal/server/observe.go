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
	s.flowRoutes()
	s.handle(route{
		method: http.MethodGet, path: "/v1/capture", id: "capture", tag: "reports", summary: "Capture packets",
		description: "The answer is a pcapng file that grows until the capture ends: when a bound is reached, when what is captured on is " +
			"gone, or when the client leaves. Its first bytes come when the capture is live.",
		query: []*huma.Param{
			param("target", huma.TypeString, "Name or ID of a container or an endpoint; at the gateway also of a network, at the uplink absent"),
			param("point", huma.TypeString, "vnic (when absent), port, gateway or uplink"),
			param("protocol", huma.TypeString, "arp, icmp (both families), ip, ip6, sctp, tcp or udp"),
			repeated("host", "From or to one of these addresses, prefixes, containers or endpoints"),
			param("port", huma.TypeInteger, "A port of TCP, UDP or SCTP, at either end"),
			param("packets", huma.TypeInteger, "End after so many"),
			param("snaplen", huma.TypeInteger, "Keep so many bytes of each packet"),
			param("duration", huma.TypeString, "End after this time, such as 30s"),
		},
		answer: reflect.TypeFor[[]byte](), answerType: typePcapng, handle: s.capture,
	})
}

func (s *Server) metricsRoute() {
	s.handle(route{
		method: http.MethodGet, path: "/v1/metrics", id: "metrics", tag: "reports", summary: "Read metrics",
		description: "In the text format of Prometheus. docs/metrics.md lists them.", answer: reflect.TypeFor[string](), answerType: typeText,
		handle: func(w http.ResponseWriter, r *http.Request) error {
			if s.metrics == nil {
				return api.Errorf(api.KindUnsupported, "read metrics: nobody counts")
			}
			s.metrics.ServeHTTP(w, r)
			return nil
		},
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

func (s *Server) capture(w http.ResponseWriter, r *http.Request) error {
	q := readQuery(r)
	o := api.CaptureOptions{
		Target: q.text("target"), Point: q.text("point"), Protocol: q.text("protocol"), Hosts: q.values["host"],
		Packets: q.number("packets", 0), Snaplen: q.number("snaplen", 0), Duration: q.duration("duration"),
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
	out := &binaryStream{ResponseWriter: w, rc: http.NewResponseController(w)}
	err := s.backend.Capture(ctx, o, out)
	if err == nil || !out.begun {
		return err
	}
	if ctx.Err() == nil {
		s.log.Warn("a capture broke off", "error", err)
	}
	// There is no place for an error in the file: the client must not take it for whole.
	panic(http.ErrAbortHandler)
}

// binaryStream is an answer that begins with its first byte, so that a call which fails before is answered as any other.
type binaryStream struct {
	http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

func (b *binaryStream) Write(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.Header().Set("Content-Type", typePcapng)
	}
	return b.ResponseWriter.Write(p)
}

func (b *binaryStream) Flush() error { return b.rc.Flush() }
