package engine

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// What reaches the wire of a NIC for the first time with an endpoint that is attached is a second MAC there, or an address that
// routers learn at another place: some switches shut the port for that. So an attachment may wait to be confirmed as a new network on a
// NIC does, and is undone without the word: the endpoint is detached. The missing word is in the endpoint's row, and the
// programs know the port. It stays in the row when the endpoint is detached with its container, which may start again at any time: the
// next attachment waits for it, or when its time is over, is a user's alone to make. Whatever else is changed of networks and endpoints changes nothing at a NIC that an attachment or a
// new network has not changed before, or takes it away again.

// tentative is a change whose attachments are to be confirmed.
type tentative struct {
	by time.Time
	// attached are the endpoints that it attaches to a LAN, with their NICs.
	attached map[hcn.GUID]string
	// around is who answered before; nil in the rehearsal.
	around *reach
}

type tentativeKey struct{}

func tentatively(ctx context.Context) *tentative {
	w, _ := ctx.Value(tentativeKey{}).(*tentative)
	return w
}

// Tentatively makes a change, an operation that is called with the context given to it, whose attachment to a NIC's network is undone
// unless it is confirmed within a time. The operation is called twice, first as a rehearsal: what attaches nothing is refused.
func (e *Engine) Tentatively(ctx context.Context, within time.Duration, change func(ctx context.Context) error) error {
	if within < leastConfirm || within > mostConfirm {
		return api.Errorf(api.KindInvalid, "confirmWithin: %s is not between %s and %s", within, leastConfirm, mostConfirm)
	}
	first, r := &tentative{by: time.Now(), attached: map[hcn.GUID]string{}}, &rehearsal{}
	err := change(context.WithValue(context.WithValue(ctx, tentativeKey{}, first), rehearsalKey{}, r))
	switch {
	case r.delta == nil && err != nil:
		return err
	case len(first.attached) == 0:
		return api.Errorf(api.KindInvalid, "confirmWithin: the change attaches nothing to a network on a NIC, so it cannot cut the host off and there is nothing to confirm").
			Hint("leave it out")
	case len(first.attached) > 1:
		return api.Errorf(api.KindInvalid, "confirmWithin: the change attaches %d endpoints to networks on NICs, and one at a time can wait", len(first.attached)).
			Hint("connect one network after the other: bulkhead network connect --confirm-within")
	}
	var around *reach
	for _, nic := range first.attached {
		around = e.lookAround(ctx, nic)
	}
	made := &tentative{by: time.Now().Add(within).UTC().Round(0), attached: map[hcn.GUID]string{}, around: around}
	if err := change(context.WithValue(ctx, tentativeKey{}, made)); err != nil {
		for id := range made.attached {
			e.undoAttach(ctx, id, made.by, "")
		}
		return err
	}
	for id := range made.attached {
		e.watchUnconfirmed(waitsAttached(id, made.by), made.by, around, func(ctx context.Context, why string) { e.undoAttach(ctx, id, made.by, why) })
	}
	return nil
}

// waiting refuses a second change that waits: the programs know one.
func (t *txn) waiting(except hcn.GUID) error {
	for _, n := range t.st.networks {
		if n.Confirm != nil {
			return api.Errorf(api.KindConflict, "network %q waits to be confirmed, and one change can at a time", n.Doc.Name).
				Hint("bulkhead confirm %s", n.Doc.Name)
		}
	}
	for id, ep := range t.st.endpoints {
		if id != except && waitsFor(ep) != nil {
			return api.Errorf(api.KindConflict, "the attachment of %s waits to be confirmed, and one change can at a time", ownerOf(ep)).
				Hint("bulkhead confirm %s", id)
		}
	}
	return nil
}

// tryOut notes in an attachment that it has to be confirmed, or still has to be.
func (t *txn) tryOut(ep *plan.Endpoint, at *plan.Attachment) error {
	if t.tentative == nil {
		at.Confirm = waitsFor(ep)
	}
	n := t.st.networks[ep.Doc.HostComputeNetwork]
	if t.tentative == nil {
		at.Watch = t.watch(ep, n)
		return nil
	}
	if n == nil || !plan.OnLAN(n.Doc.Type) {
		return nil
	}
	if n.Doc.Macvlan() {
		return api.Errorf(api.KindInvalid, "confirmWithin: on network %q, of macvlan devices, no program of ours would end the attachment while the daemon is away", n.Doc.Name).
			Hint("leave it out, or use a network without --macvlan")
	}
	if err := t.waiting(ep.Doc.ID); err != nil {
		return err
	}
	t.tentative.attached[ep.Doc.ID] = n.Uplink
	at.Confirm = &plan.Confirmation{By: t.tentative.by}
	return nil
}

// waitsFor is what an endpoint waits for, attached or until it is attached again; nil: nothing.
func waitsFor(ep *plan.Endpoint) *plan.Confirmation {
	switch {
	case ep.Attach != nil:
		return ep.Attach.Confirm
	case ep.Trial != nil && time.Now().Before(ep.Trial.By):
		return ep.Trial
	}
	return nil
}

// unapproved tells that nobody confirmed an endpoint's last attachment in time.
func unapproved(ep *plan.Endpoint) bool {
	return ep.Attach == nil && ep.Trial != nil && waitsFor(ep) == nil
}

// unattached is the row of an endpoint whose attachment is undone.
func unattached(ep *plan.Endpoint, why string) *plan.Endpoint {
	row := detached(ep)
	row.Trial, row.Before = &plan.Confirmation{By: time.Now().UTC().Round(0), Why: why}, nil
	return row
}

// withdrawn is the row of an endpoint that a user detaches: it waits for nothing.
func withdrawn(ep *plan.Endpoint) *plan.Endpoint {
	row := detached(ep)
	row.Trial, row.Before = nil, nil
	return row
}

// waitsAttached tells whether an endpoint still waits for what is given by a time.
func waitsAttached(id hcn.GUID, by time.Time) func(*state) bool {
	return func(s *state) bool {
		ep := s.endpoints[id]
		if ep == nil {
			return false
		}
		c := waitsFor(ep)
		return c != nil && c.By.Equal(by)
	}
}

// undoAttach detaches an endpoint that nobody confirmed.
func (e *Engine) undoAttach(ctx context.Context, id hcn.GUID, by time.Time, why string) {
	name := ""
	e.undo(ctx, "endpoint", string(id), func(t *txn) {
		if row := t.st.endpoints[id]; waitsAttached(id, by)(t.st) {
			if row.Attach != nil {
				name = ownerOf(row)
			}
			t.putEndpoint(id, unattached(row, why))
		}
	})
	if name != "" {
		e.log.Warn("an endpoint is detached again", "endpoint", id, "reason", why)
		e.event("endpoint", "undo", string(id), name, map[string]string{"reason": why})
	}
}

// confirmAttached keeps the attachment of what a word means, if it waits; false: it does not.
func (t *txn) confirmAttached(ref string) (hcn.GUID, bool) {
	eps, err := t.st.endpointsOf(ref)
	if err != nil {
		return "", false
	}
	for _, ep := range eps {
		if waitsFor(ep) == nil {
			continue
		}
		row := *ep
		row.Trial = nil
		if ep.Attach != nil {
			at := *ep.Attach
			at.Confirm = nil
			row.Attach = &at
		}
		t.putEndpoint(ep.Doc.ID, &row)
		return ep.Doc.ID, true
	}
	return "", false
}

// dropUnconfirmed undoes at a start what nobody confirmed.
func (t *txn) dropUnconfirmed() {
	for id, ep := range maps.Clone(t.st.endpoints) {
		if waitsFor(ep) != nil {
			t.e.log.Warn("an endpoint is detached again: the daemon ended before its attachment was confirmed", "endpoint", id)
			t.putEndpoint(id, unattached(ep, "the daemon ended before it was confirmed"))
		}
	}
}

// attachable are the endpoints that a container's start attaches, its own and those with ports of its VM: what nobody confirmed, a user
// only.
func (s *state) attachable(c *containerRow, by starter) []hcn.GUID {
	ids := slices.Clone(c.Endpoints)
	if machine := s.machineOf(c); machine != "" && c.Shares == "" {
		for _, id := range slices.Sorted(maps.Keys(s.byMachine[machine])) {
			if ep := s.endpoints[id]; !slices.Contains(ids, id) && (ep.Attach == nil || ep.Attach.Namespace == c.Doc.Namespace) {
				ids = append(ids, id)
			}
		}
	}
	return slices.DeleteFunc(ids, func(id hcn.GUID) bool {
		ep := s.endpoints[id]
		return ep == nil || by != byUser && unapproved(ep)
	})
}
