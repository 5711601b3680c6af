package engine

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// ringSize is how many events are kept for those who come back.
	ringSize = 4096
	// readerQueue is how far a reader may fall behind before it is cut off.
	readerQueue = 1024
)

// hub hands events to those who watch, in commit order.
type hub struct {
	mu      sync.Mutex
	seq     uint64
	ring    []api.Event
	readers map[chan api.Event]struct{}
}

func newHub() *hub { return &hub{readers: map[chan api.Event]struct{}{}} }

// emit never blocks: a reader whose queue is full is cut off, and resumes from
// the ring.
func (h *hub) emit(ev api.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	ev.Seq, ev.Time = h.seq, time.Now().UTC()
	if len(h.ring) == ringSize {
		h.ring = append(h.ring[:0], h.ring[1:]...)
	}
	h.ring = append(h.ring, ev)
	for r := range h.readers {
		select {
		case r <- ev:
		default:
			delete(h.readers, r)
			close(r)
		}
	}
}

// LastEvent is the number of the newest event.
func (e *Engine) LastEvent() uint64 {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	return e.hub.seq
}

// Subscribe gives the events after the one numbered `after`, as far as they are
// kept, and then what happens. The channel is closed when ctx ends, or when its
// reader falls too far behind.
func (e *Engine) Subscribe(ctx context.Context, after uint64) (<-chan api.Event, error) {
	h := e.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if after > h.seq {
		after = 0 // a token of an earlier run of the daemon
	}
	var old []api.Event
	for _, ev := range h.ring {
		if ev.Seq > after {
			old = append(old, ev)
		}
	}
	ch := make(chan api.Event, len(old)+readerQueue)
	for _, ev := range old {
		ch <- ev
	}
	h.readers[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if _, ok := h.readers[ch]; ok {
			delete(h.readers, ch)
			close(ch)
		}
	})
	return ch, nil
}

func (e *Engine) event(kind, action, id, name string, attributes map[string]string) {
	e.hub.emit(api.Event{Kind: kind, Action: action, ID: id, Name: name, Attributes: attributes})
}

func (e *Engine) hcnEvent(kind, action string, id hcn.GUID, name string, t hcn.NotificationType) {
	e.hub.emit(api.Event{
		Kind: kind, Action: action, ID: string(id), Name: name,
		HCN: &hcn.Event{Type: t, NotificationData: hcn.NotificationData{ID: id}},
	})
}

// attachEvents tells of endpoints whose port came up or went away in a pass.
func (e *Engine) attachEvents(d *plan.Delta, errs map[string]error) {
	for id, c := range d.Ports {
		switch {
		case errs[string(id)] != nil:
		case c.Old == nil && c.New.Kind == plan.PortContainer:
			e.hcnEvent("endpoint", "attach", c.New.Endpoint, c.New.Name, hcn.NotificationNetworkEndpointAttached)
		case c.New == nil && c.Old.Kind == plan.PortContainer:
			e.hcnEvent("endpoint", "detach", c.Old.Endpoint, c.Old.Name, hcn.NotificationNetworkEndpointDetached)
		}
	}
}

// report logs and publishes drift, and marks endpoints whose compartment is gone.
func (e *Engine) report(drift []plan.Drift) {
	for _, d := range drift {
		if d.Found == foundVanished {
			e.vanished(hcn.GUID(d.ID))
		}
		e.log.Warn("drift repaired", "object", d.Object, "id", d.ID, "found", d.Found)
		e.event("drift", "repair", d.ID, d.Object, map[string]string{"found": d.Found})
	}
}

// vanished marks a compartment that somebody removed, and its endpoints: they
// keep their addresses and can be attached elsewhere.
func (e *Engine) vanished(id hcn.GUID) {
	_, err := e.commit(func(t *txn) error {
		old := t.st.namespaces[id]
		if old == nil || old.Vanished {
			return nil
		}
		row := *old
		row.Vanished = true
		for epID := range maps.Clone(t.st.byNamespace[id]) {
			ep := detached(t.st.endpoints[epID])
			ep.Detached = true
			t.putEndpoint(epID, ep)
		}
		t.putNamespace(id, &row)
		return nil
	})
	if err != nil {
		e.log.Error("mark a vanished compartment", "namespace", id, "error", err)
	}
}

// warnCollisions tells when a route or address that appeared on the host
// overlaps one of our networks: a VPN that came up, for example.
func (e *Engine) warnCollisions(f *plan.Facts) {
	old := map[string]bool{}
	for _, r := range usedByHost(&e.facts) {
		old[r.String()] = true
	}
	for _, r := range usedByHost(f) {
		if old[r.String()] {
			continue
		}
		for _, n := range e.st.networks {
			if n.Doc.Type == hcn.Private {
				continue
			}
			for _, s := range n.Doc.AllSubnets() {
				if p, err := s.Prefix(); err == nil && r.Bits() > 0 && p.Overlaps(r) {
					e.log.Warn("a route of the host overlaps a network", "network", n.Doc.Name, "subnet", p.String(), "route", r.String())
					e.event("network", "collision", string(n.Doc.ID), n.Doc.Name, map[string]string{"subnet": p.String(), "route": r.String()})
				}
			}
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
