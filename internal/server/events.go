package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// hcnEvent is the data of an event of HCN. Status is there when it tells of a failure.
type hcnEvent struct {
	ID     hcn.GUID
	Flags  uint32
	Data   json.RawMessage `json:",omitempty"`
	Status uint32          `json:",omitempty"`
}

// sseEvent is one message of a stream.
type sseEvent struct {
	name string
	data any
}

func (s *Server) eventRoutes() {
	after := &huma.Param{Name: "after", In: "query", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: new(float64)}, Description: "The " +
		"id of the last event that was seen; a Last-Event-ID header says the same. Absent: only what happens from now on"}
	const story = "Server-sent events. Each id is a token to resume by. The first message has an id and no data: it tells that the " +
		"stream is live. A reader that falls far behind is cut off and resumes."
	s.handle(route{
		method: http.MethodGet, path: "/hcn/v2/events", id: "hcnEvents", tag: "hcn", summary: "Watch notifications",
		description: story + " The event's name is that of the notification, such as NetworkCreate.",
		query:       []*huma.Param{after}, answer: reflect.TypeFor[hcnEvent](), answerType: typeSSE,
		handle: func(w http.ResponseWriter, r *http.Request) error { return s.stream(w, r, hcnMessage) },
	})
	s.handle(route{
		method: http.MethodGet, path: "/v1/events", id: "events", tag: "reports", summary: "Watch everything that happens",
		description: story + " The event's name is its kind.",
		query:       []*huma.Param{after, param("kind", huma.TypeString, "Only these kinds, separated by commas")},
		answer:      reflect.TypeFor[api.Event](), answerType: typeSSE, handle: s.ownEvents,
	})
}

func hcnMessage(ev api.Event) (sseEvent, bool) {
	if ev.HCN == nil {
		return sseEvent{}, false
	}
	d := ev.HCN.NotificationData
	return sseEvent{ev.HCN.Type.String(), hcnEvent{d.ID, d.Flags, d.Data, uint32(ev.HCN.Status)}}, true
}

func (s *Server) ownEvents(w http.ResponseWriter, r *http.Request) error {
	var kinds []string
	if k := readQuery(r).text("kind"); k != "" {
		kinds = strings.Split(k, ",")
	}
	for _, k := range kinds {
		if !slices.Contains(api.EventKinds(), k) {
			return api.Errorf(api.KindInvalid, "there are no events of the kind %q", cutText(k)).Hint("use %s", strings.Join(api.EventKinds(), ", "))
		}
	}
	return s.stream(w, r, func(ev api.Event) (sseEvent, bool) {
		return sseEvent{ev.Kind, ev}, kinds == nil || slices.Contains(kinds, ev.Kind)
	})
}

// resumeToken is where a reader left off.
func (s *Server) resumeToken(r *http.Request) (uint64, error) {
	q := readQuery(r)
	if q.err != nil {
		return 0, q.err
	}
	token := q.text("after")
	if h := r.Header.Get("Last-Event-ID"); h != "" {
		token = h
	}
	if token == "" {
		return s.backend.LastEvent(), nil
	}
	after, err := strconv.ParseUint(token, 10, 64)
	if err != nil {
		return 0, api.Errorf(api.KindInvalid, "resume the events after %q: it is not the id of an event", cutText(token))
	}
	return after, nil
}

// stream sends events until the reader leaves, is cut off for being slow, or the daemon stops.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, message func(api.Event) (sseEvent, bool)) error {
	after, err := s.resumeToken(r)
	if err != nil {
		return err
	}
	ctx, cancel := s.streamContext(w, r)
	defer cancel()
	ch, err := s.backend.Subscribe(ctx, after)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", typeSSE)
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	send := func(text string) error {
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
		return rc.Flush()
	}
	if send(fmt.Sprintf("id: %d\n\n", after)) != nil {
		return nil
	}
	quiet := time.NewTicker(s.heartbeat)
	defer quiet.Stop()
	for {
		select {
		case <-quiet.C:
			if send(": alive\n\n") != nil {
				return nil
			}
		case ev, ok := <-ch:
			if !ok {
				if s.isStopping() {
					_ = send("event: " + hcn.NotificationServiceDisconnect.String() + "\ndata: {}\n\n") // best effort: the reader sees the end anyway
				}
				return nil
			}
			m, wanted := message(ev)
			if !wanted {
				continue
			}
			data, err := json.Marshal(m.data)
			if err != nil {
				s.log.Error("encode an event", "event", ev.Seq, "error", err)
				continue
			}
			if send(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", ev.Seq, m.name, data)) != nil {
				return nil
			}
			quiet.Reset(s.heartbeat)
		}
	}
}
