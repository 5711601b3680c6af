package engine

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// A guest network service is the agent of a VM as clients of HCN see it. It is there in any case; the document of it has its state looked
// at and told, and goes with the VM.

var guestTable = store.NewTable[guestRow]("guestservices")

// guestRow is the stored form of one.
type guestRow struct {
	Doc hcn.GuestNetworkService
	Seq uint64
}

// GuestNetworkServices lists those that match, oldest first.
func (e *Engine) GuestNetworkServices(f hcn.Filter) []hcn.GUID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return listed(e.st.guests, func(g *guestRow) (bool, uint64) { return f.MatchGuestNetworkService(&g.Doc), g.Seq })
}

// GuestNetworkService is the document of one, with its state of now.
func (e *Engine) GuestNetworkService(ctx context.Context, id hcn.GUID) (hcn.GuestNetworkService, error) {
	ctx, cancel := context.WithTimeout(ctx, guestLookWait)
	defer cancel()
	doc, _, err := e.lookAtGuest(ctx, id)
	return doc, err
}

// guestLookWait is how long a VM's shim, which is on this host, may take to say what it has given the guest.
const guestLookWait = 5 * time.Second

func noGuestService(id hcn.GUID) error {
	return hcn.Errorf(hcn.ErrElementNotFound, "no guest network service has the ID %s: GET /hcn/v2/guestnetworkservices lists them", id)
}

// CreateGuestNetworkService makes the document of a VM's service.
func (e *Engine) CreateGuestNetworkService(ctx context.Context, id hcn.GUID, in hcn.GuestNetworkService) (hcn.GuestNetworkService, error) {
	var row *guestRow
	_, err := e.commitOr(ctx, func(t *txn) error {
		doc := in.Clone()
		doc.ID = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
		doc.Version, doc.Health, doc.State, doc.SchemaVersion = 0, nil, hcn.GuestServiceNone, hcn.V2()
		if t.st.guests[doc.ID] != nil {
			return hcn.Errorf(hcn.ErrObjectAlreadyExists, "a guest network service with the ID %s exists: delete it first, or leave the ID out", doc.ID)
		}
		if err := doc.Validate(); err != nil {
			return err
		}
		if t.st.machines[doc.VirtualMachineId] == "" {
			return hcn.Errorf(hcn.ErrSystemNotFound, "VirtualMachineId: no container has the VM %s: bulkhead inspect of a container with VM isolation shows the ID of its VM", doc.VirtualMachineId)
		}
		if other := t.st.guestOf[doc.VirtualMachineId]; other != "" {
			return hcn.Errorf(hcn.ErrObjectAlreadyExists, "VirtualMachineId: the VM %s has the guest network service %s: use that, or delete it first", doc.VirtualMachineId, other)
		}
		row = &guestRow{Doc: *doc, Seq: t.nextSeq()}
		t.putGuest(doc.ID, row)
		t.tell(queued{ev: hcnEvent("guestnetworkservice", "create", doc.ID, doc.Name, hcn.NotificationGuestNetworkServiceCreate)})
		return nil
	})
	if err != nil {
		return hcn.GuestNetworkService{}, err
	}
	e.watchGuest(row.Doc.ID, true)
	return e.GuestNetworkService(ctx, row.Doc.ID)
}

// ModifyGuestNetworkService has a guest brought up to what it is to have, and waits for that.
func (e *Engine) ModifyGuestNetworkService(ctx context.Context, id hcn.GUID, r *hcn.ModifyGuestServiceSettingRequest) error {
	if err := r.Validate(); err != nil {
		return err
	}
	e.mu.RLock()
	g := e.st.guests[id]
	var c *containerRow
	if g != nil {
		c = e.st.containers[e.st.machines[g.Doc.VirtualMachineId]]
	}
	e.mu.RUnlock()
	switch {
	case g == nil:
		return noGuestService(id)
	case rehearsing(ctx) != nil:
		return nil
	case c == nil || c.Doc.State.Status != api.StatusRunning:
		return hcn.Errorf(hcn.ErrDegradedOperation, "guest network service %s: its VM does not run: start its container", id)
	}
	e.Wake("refresh of guest network service " + string(id))
	return e.syncGuest(ctx, c.Doc.Namespace)
}

// DeleteGuestNetworkService deletes the document. The VM has its agent and its NICs as before.
func (e *Engine) DeleteGuestNetworkService(ctx context.Context, id hcn.GUID) error {
	_, err := e.commitOr(ctx, func(t *txn) error {
		if t.st.guests[id] == nil {
			return noGuestService(id)
		}
		t.dropGuest(id)
		return nil
	})
	if errors.Is(err, hcn.ErrElementNotFound) {
		return e.orForget(ctx, "guestservice", string(id), err)
	}
	e.ctrs.notify() // who watches it
	return err
}

func (t *txn) dropGuest(id hcn.GUID) {
	old := t.st.guests[id]
	if old == nil {
		return
	}
	t.putGuest(id, nil)
	t.tell(queued{ev: hcnEvent("guestnetworkservice", "delete", id, old.Doc.Name, hcn.NotificationGuestNetworkServiceDelete)})
}

func (t *txn) putGuest(id hcn.GUID, row *guestRow) {
	old := t.st.guests[id]
	t.st.setGuest(id, row)
	t.undo = append(t.undo, func() { t.st.setGuest(id, old) })
	t.save = append(t.save, saveRow(guestTable, false, string(id), row, old))
}

func (s *state) setGuest(id hcn.GUID, row *guestRow) {
	if old := s.guests[id]; old != nil {
		delete(s.guests, id)
		delete(s.guestOf, old.Doc.VirtualMachineId)
	}
	if row == nil {
		return
	}
	s.guests[id] = row
	s.guestOf[row.Doc.VirtualMachineId] = id
	s.seq = max(s.seq, row.Seq)
}

// guestSeen is what was found of a guest.
type guestSeen struct {
	container string
	asks      bool // its VM runs, and can be asked
	nics      api.GuestNICs
}

// lookAtGuest gives the document of a service with its state.
func (e *Engine) lookAtGuest(ctx context.Context, id hcn.GUID) (hcn.GuestNetworkService, guestSeen, error) {
	e.mu.RLock()
	g := e.st.guests[id]
	if g == nil {
		e.mu.RUnlock()
		return hcn.GuestNetworkService{}, guestSeen{}, noGuestService(id)
	}
	doc := *g.Doc.Clone()
	c := e.st.containers[e.st.machines[doc.VirtualMachineId]]
	e.mu.RUnlock()
	if c == nil {
		doc.State = hcn.GuestServiceDestroyed // the row of its container cannot be read
		return doc, guestSeen{}, nil
	}
	seen := guestSeen{container: c.Doc.ID}
	problem := ""
	switch st := c.Doc.State; {
	case st.Status == api.StatusStarting:
		doc.State = hcn.GuestServiceBootstrapping
	case st.Status != api.StatusRunning:
		doc.State, problem = hcn.GuestServiceCreated, st.Error
	case st.Paused:
		doc.State = hcn.GuestServicePaused
	default:
		seen.asks = true
		doc.State, problem = e.askGuest(ctx, c, &seen)
	}
	doc.Health = guestHealth(problem, seen.nics.NICs)
	return doc, seen, nil
}

func (e *Engine) askGuest(ctx context.Context, c *containerRow, seen *guestSeen) (hcn.GuestNetworkServiceState, string) {
	var err error
	if seen.nics, err = e.opt.Sandbox.GuestNICs(ctx, c.Doc.ID, api.GuestNICsRequest{}); err != nil {
		return hcn.GuestServiceDegraded, bounded(err.Error())
	}
	e.mu.RLock()
	want := e.st.guestView(c.Doc.Namespace)
	e.mu.RUnlock()
	if lacks := want.compare(seen.nics); lacks != nil {
		return hcn.GuestServiceDesynchronized, bounded(lacks.Error())
	}
	return hcn.GuestServiceSynchronized, ""
}

// guestHealth tells the interfaces that a guest has, and what is wrong.
func guestHealth(problem string, nics []api.GuestNIC) *hcn.Health {
	data, _ := json.Marshal(struct { // strings
		Problem    string         `json:",omitempty"`
		Interfaces []api.GuestNIC `json:",omitempty"`
	}{problem, nics})
	return &hcn.Health{Data: data}
}

// watchGuests does so for all that are there.
func (e *Engine) watchGuests() {
	e.mu.RLock()
	ids := make([]hcn.GUID, 0, len(e.st.guests))
	for id := range e.st.guests {
		ids = append(ids, id)
	}
	e.mu.RUnlock()
	for _, id := range ids {
		e.watchGuest(id, false)
	}
}

// watchGuest tells how a service's state and interfaces change, until it is deleted; that of a new one, too.
func (e *Engine) watchGuest(id hcn.GUID, fresh bool) {
	e.ctrs.spawn(func() {
		ctx := e.ctrs.runCtx()
		var last hcn.GuestNetworkService
		var had []api.GuestNIC
		for first := true; ctx.Err() == nil; first = false {
			changed := e.ctrs.watch()
			limited, cancel := context.WithTimeout(ctx, guestLookWait)
			doc, seen, err := e.lookAtGuest(limited, id)
			cancel()
			if err != nil || ctx.Err() != nil {
				return
			}
			if doc.State == hcn.GuestServicePaused || doc.State == hcn.GuestServiceDegraded {
				seen.nics.NICs = had // there is nobody to ask, and nobody has taken them away
			}
			tell := fresh || !first
			if tell && doc.State != last.State {
				e.tellGuest(&doc, "state", hcn.NotificationGuestNetworkServiceStateChanged, struct{ State hcn.GuestNetworkServiceState }{doc.State})
			}
			if tell && !slices.Equal(seen.nics.NICs, had) {
				e.tellGuest(&doc, "interfaces", hcn.NotificationGuestNetworkServiceIfaceChanged, struct{ Interfaces []api.GuestNIC }{seen.nics.NICs})
			}
			last, had = doc, seen.nics.NICs
			e.awaitGuest(ctx, &doc, seen, changed)
		}
	})
}

func (e *Engine) tellGuest(doc *hcn.GuestNetworkService, action string, t hcn.NotificationType, data any) {
	ev := hcnEvent("guestnetworkservice", action, doc.ID, doc.Name, t)
	ev.HCN.Data, _ = json.Marshal(data) // names and numbers
	ev.Attributes = map[string]string{"state": doc.State.String()}
	// After that of its making, which the loop tells.
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pending.add(emptyDirty(), e.st.rev, []queued{{ev: ev}})
	e.kick()
}

// awaitGuest waits until a guest may be different from what was seen.
func (e *Engine) awaitGuest(ctx context.Context, doc *hcn.GuestNetworkService, seen guestSeen, changed <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer func() { <-done }()
	if !seen.asks || doc.State == hcn.GuestServiceDegraded {
		close(done)
		var again <-chan time.Time
		if seen.asks {
			again = time.After(lookAgain)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
		return
	}
	differs := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := e.opt.Sandbox.GuestNICs(ctx, seen.container, api.GuestNICsRequest{After: seen.nics.Seq, Wait: true}); err == nil || ctx.Err() == nil {
			close(differs)
		}
	}()
	select {
	case <-ctx.Done():
	case <-changed:
		cancel()
	case <-differs:
	}
}
