package engine

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// ringSize is how many events are kept, at least, for those who come back.
	ringSize = 4096
	// readerQueue is how far a reader may fall behind before it is cut off.
	readerQueue = 1024
)

// hub hands events to those who watch.
type hub struct {
	mu      sync.Mutex
	first   uint64 // the number before this run's first event
	seq     uint64
	ring    []api.Event
	readers map[chan api.Event]struct{}
}

// newHub numbers events from the time of the start on: the numbers go on rising
// over restarts of the daemon, so that one of an earlier run is known as such.
func newHub() *hub {
	now := uint64(time.Now().UnixMicro())
	return &hub{first: now, seq: now, readers: map[chan api.Event]struct{}{}}
}

// emit never blocks: a reader whose queue is full is cut off, and resumes from
// the ring.
func (h *hub) emit(ev api.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	ev.Seq, ev.Time = h.seq, time.Now().UTC()
	if len(h.ring) == 2*ringSize {
		h.ring = append(h.ring[:0], h.ring[ringSize:]...)
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
// kept, and then what happens; 0 gives all that are kept. Where some are missing,
// because they are too old or the daemon was started anew, the first event says
// so ("events", "gap", to HCN clients ServiceDisconnect): list again. The channel
// is closed when ctx ends, or when its reader falls too far behind.
func (e *Engine) Subscribe(ctx context.Context, after uint64) (<-chan api.Event, error) {
	h := e.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.first // the newest event that is not kept
	if len(h.ring) > 0 {
		before = h.ring[0].Seq - 1
	}
	gap := after != 0 && (after < before || after > h.seq)
	if gap {
		after = 0
	}
	var old []api.Event
	for _, ev := range h.ring {
		if ev.Seq > after {
			old = append(old, ev)
		}
	}
	ch := make(chan api.Event, len(old)+1+readerQueue)
	if gap {
		ev := gapEvent()
		ev.Seq, ev.Time = before, time.Now().UTC()
		ch <- ev
	}
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

// queued is what a transaction has to tell, when the loop has applied it: events
// leave in the order of commits, and none tells of what did not come about.
type queued struct {
	ev api.Event
	// on are the objects that have to be well for the event to be true.
	on []object
	// comes and goes are what clients learn is there, and is not any more. What
	// never came does not go either.
	comes, goes *object
	// listAgain begins anew with what is there: the store took changes back that
	// may have been told of.
	listAgain bool
}

// gapEvent says that what was told before may not hold: list again.
func gapEvent() api.Event {
	return api.Event{Kind: "events", Action: "gap", HCN: &hcn.Event{Type: hcn.NotificationServiceDisconnect}}
}

func hcnEvent(kind, action string, id hcn.GUID, name string, t hcn.NotificationType) api.Event {
	return api.Event{
		Kind: kind, Action: action, ID: string(id), Name: name,
		HCN: &hcn.Event{Type: t, NotificationData: hcn.NotificationData{ID: id}},
	}
}

func (t *txn) tell(q queued) { t.events = append(t.events, q) }

// attachEvent tells of an endpoint that is attached or detached by a change.
func (t *txn) attachEvent(old, row *plan.Endpoint) {
	was, is := old != nil && old.Attach != nil, row != nil && row.Attach != nil
	if was && (!is || old.Attach.Namespace != row.Attach.Namespace) {
		k := portObject(old.Doc.ID)
		t.tell(queued{ev: hcnEvent("endpoint", "detach", old.Doc.ID, old.Doc.Name, hcn.NotificationNetworkEndpointDetached), goes: &k})
	}
	if is && (!was || old.Attach.Namespace != row.Attach.Namespace) {
		k := portObject(row.Doc.ID)
		t.tell(queued{ev: hcnEvent("endpoint", "attach", row.Doc.ID, row.Doc.Name, hcn.NotificationNetworkEndpointAttached), on: []object{k}, comes: &k})
	}
}

// publish sends what the transactions of a pass had to tell.
func (e *Engine) publish(events []queued, errs map[object]error) {
	for _, q := range events {
		if failed(q.on, errs) {
			continue
		}
		if q.listAgain {
			e.mu.RLock()
			e.announced = e.st.announced()
			e.mu.RUnlock()
		}
		if q.goes != nil {
			if _, there := e.announced[*q.goes]; !there {
				continue
			}
			delete(e.announced, *q.goes)
		}
		if q.comes != nil {
			e.announced[*q.comes] = struct{}{}
		}
		e.hub.emit(q.ev)
	}
}

func failed(on []object, errs map[object]error) bool {
	for _, k := range on {
		if errs[k] != nil {
			return true
		}
	}
	return false
}

// announced is what clients of the last run knew.
func (s *state) announced() map[object]struct{} {
	out := map[object]struct{}{}
	for id := range s.networks {
		out[object{"network", string(id)}] = struct{}{}
	}
	for id := range s.namespaces {
		out[namespaceObject(id)] = struct{}{}
	}
	for id, ep := range s.endpoints {
		out[object{"endpoint", string(id)}] = struct{}{}
		if ep.Attach != nil {
			out[portObject(id)] = struct{}{}
		}
	}
	for id := range s.balancers {
		out[balancerObject(id)] = struct{}{}
	}
	return out
}

const foundVanished = "vanished"

// report logs and publishes drift, and marks endpoints whose compartment is gone.
func (e *Engine) report(drift []plan.Drift) {
	for _, d := range drift {
		action := "repair"
		if d.Found == foundVanished && !plan.OwnNamespace(hcn.GUID(d.ID)) {
			if !e.vanished(hcn.GUID(d.ID)) {
				continue // it was never there, and is being made
			}
			action = "vanish"
			e.log.Warn("a compartment was removed by somebody else; its endpoints are detached", "namespace", d.ID)
		} else {
			kind, _, _ := strings.Cut(d.Object, " ")
			e.opt.Meter.Repair(kind)
			e.log.Warn("drift repaired", "object", d.Object, "id", d.ID, "found", d.Found, "by", d.By)
		}
		told := map[string]string{"found": d.Found}
		if d.By != "" {
			told["by"] = d.By
		}
		e.event("drift", action, d.ID, d.Object, told)
	}
}

// vanished marks a compartment that somebody removed, and its endpoints: they
// keep their addresses and can be attached elsewhere. It tells whether there is
// such a compartment: one that was never made has not vanished.
func (e *Engine) vanished(id hcn.GUID) (was bool) {
	_, err := e.commit(func(t *txn) error {
		old := t.st.namespaces[id]
		if old == nil || old.Vanished || !e.madeLocked(old) {
			return nil
		}
		was = true
		row := *old
		row.Vanished = true
		for epID := range maps.Clone(t.st.byNamespace[id]) {
			ep := detached(t.st.endpoints[epID])
			if ep.Foreign != nil && ep.Foreign.Handover {
				t.dropEndpoint(epID) // its runtime makes another for each start
				continue
			}
			ep.Detached = true
			t.putEndpoint(epID, ep)
		}
		if t.st.namespaces[id] == nil {
			return nil // it was there for its endpoints alone
		}
		t.putNamespace(id, &row)
		return nil
	})
	if err != nil {
		e.log.Error("mark a vanished compartment", "namespace", id, "error", err)
	}
	return was
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
			if !hostReaches(&n.Doc) || plan.OnLAN(n.Doc.Type) {
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
