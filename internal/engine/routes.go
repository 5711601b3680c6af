package engine

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// An SDN route is policies SDNRoute of several endpoints in an object of its own. It loses those of its endpoints that are deleted,
// and stays until it is deleted itself, as HCN clients expect.

var routeTable = store.NewTable[plan.SDNRoute]("routes")

// Routes lists the SDN routes that match, oldest first.
func (e *Engine) Routes(f hcn.Filter) []hcn.GUID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return listed(e.st.routes, func(r *plan.SDNRoute) (bool, uint64) { return f.MatchRoute(&r.Doc), r.Seq })
}

// Route is the document of an SDN route.
func (e *Engine) Route(id hcn.GUID) (hcn.HostComputeRoute, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	r := e.st.routes[id]
	if r == nil {
		return hcn.HostComputeRoute{}, noRoute(id)
	}
	return *r.Doc.Clone(), nil
}

func noRoute(id hcn.GUID) error {
	return hcn.Errorf(hcn.ErrElementNotFound, "no route has the ID %s: GET /hcn/v2/routes lists them", id)
}

// CreateRoute makes an SDN route and waits until the ports of its endpoints go by it.
func (e *Engine) CreateRoute(ctx context.Context, id hcn.GUID, doc hcn.HostComputeRoute) (hcn.HostComputeRoute, error) {
	var row *plan.SDNRoute
	rev, err := e.commitOr(ctx, func(t *txn) error {
		var err error
		row, err = t.newRoute(id, doc)
		return err
	})
	if err != nil {
		return hcn.HostComputeRoute{}, err
	}
	ports := make([]object, len(row.Doc.HostComputeEndpoints))
	for i, ep := range row.Doc.HostComputeEndpoints {
		ports[i] = portObject(ep)
	}
	if err := e.applied(ctx, rev, ports...); err != nil {
		e.undo(ctx, "route", string(row.Doc.ID), func(t *txn) { t.dropRoute(row.Doc.ID) })
		return hcn.HostComputeRoute{}, hcn.Errorf(hcn.ErrUnspecified, "make route %s: %w", row.Doc.ID, err)
	}
	return *row.Doc.Clone(), nil
}

func (t *txn) newRoute(id hcn.GUID, in hcn.HostComputeRoute) (*plan.SDNRoute, error) {
	doc := in.Clone()
	doc.ID = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
	doc.Version, doc.Health, doc.SchemaVersion = 0, nil, hcn.V2()
	if t.st.routes[doc.ID] != nil {
		return nil, hcn.Errorf(hcn.ErrObjectAlreadyExists, "a route with the ID %s exists: delete it first, or leave the ID out", doc.ID)
	}
	if err := doc.Validate(); err != nil {
		return nil, err
	}
	if n := doc.HostComputeNetwork; !n.IsZero() && t.st.networks[n] == nil {
		return nil, noNetwork(n)
	}
	var once []hcn.GUID
	for i, ep := range doc.HostComputeEndpoints {
		row := t.st.endpoints[ep]
		if row == nil {
			return nil, noEndpoint(ep)
		}
		n := t.st.networks[row.Doc.HostComputeNetwork]
		if n == nil {
			return nil, noNetwork(row.Doc.HostComputeNetwork)
		}
		if err := doc.ValidateFor(i, &row.Doc, &n.Doc); err != nil {
			return nil, err
		}
		if !slices.Contains(once, ep) {
			once = append(once, ep)
		}
	}
	doc.HostComputeEndpoints = once
	r := &plan.SDNRoute{Doc: *doc, Seq: t.nextSeq()}
	t.putRoute(doc.ID, r)
	for _, ep := range once {
		if row := t.st.endpoints[ep]; row.Attach != nil {
			if err := t.checkHostRules(row, row.Attach.Namespace); err != nil {
				return nil, err
			}
		}
	}
	t.tell(queued{ev: api.Event{Kind: "route", Action: "create", ID: string(doc.ID), Name: doc.Name}})
	return r, nil
}

// DeleteRoute deletes an SDN route and waits until nothing goes by it.
func (e *Engine) DeleteRoute(ctx context.Context, id hcn.GUID) error {
	rev, err := e.commitOr(ctx, func(t *txn) error {
		if t.st.routes[id] == nil {
			return noRoute(id)
		}
		t.dropRoute(id)
		return nil
	})
	if errors.Is(err, hcn.ErrElementNotFound) {
		return e.orForget(ctx, "route", string(id), err)
	}
	if err != nil {
		return err
	}
	if err := e.applied(ctx, rev); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete route %s: it is deleted, and the kernel follows: %w", id, err)
	}
	return nil
}

func (t *txn) dropRoute(id hcn.GUID) {
	if old := t.st.routes[id]; old != nil {
		t.putRoute(id, nil)
		t.tell(queued{ev: api.Event{Kind: "route", Action: "delete", ID: string(id), Name: old.Doc.Name}})
	}
}

// leaveRoutes takes an endpoint that goes out of the routes that name it.
func (t *txn) leaveRoutes(id hcn.GUID) {
	for _, old := range maps.Clone(t.st.routesOf[id]) {
		row := *old
		row.Doc = *old.Doc.Clone()
		row.Doc.HostComputeEndpoints = slices.DeleteFunc(row.Doc.HostComputeEndpoints, func(ep hcn.GUID) bool { return ep == id })
		row.Doc.Version++
		t.putRoute(row.Doc.ID, &row)
	}
}

func (t *txn) putRoute(id hcn.GUID, row *plan.SDNRoute) {
	old := t.st.routes[id]
	t.st.setRoute(id, row)
	t.undo = append(t.undo, func() { t.st.setRoute(id, old) })
	for _, r := range []*plan.SDNRoute{old, row} {
		if r == nil {
			continue
		}
		for _, ep := range r.Doc.HostComputeEndpoints {
			t.dirty.Endpoints[ep] = struct{}{}
		}
	}
	t.save = append(t.save, saveRow(routeTable, false, string(id), row, old))
}

func (s *state) setRoute(id hcn.GUID, row *plan.SDNRoute) {
	if old := s.routes[id]; old != nil {
		delete(s.routes, id)
		for _, ep := range old.Doc.HostComputeEndpoints {
			drop(s.routesOf, ep, id)
		}
	}
	if row == nil {
		return
	}
	s.routes[id] = row
	for _, ep := range row.Doc.HostComputeEndpoints {
		insert(s.routesOf, ep, id, row)
	}
	s.seq = max(s.seq, row.Seq)
}

// forgetGone takes what ended with the last run of the host out of routes and load balancers. What cannot be read is still there, and an
// endpoint of an overlay that nobody knows yet may be on another host.
func (t *txn) forgetGone() {
	gone := func(ep hcn.GUID) bool { return t.st.endpoints[ep] == nil && !t.st.isAside("endpoint", string(ep)) }
	for ep := range maps.Clone(t.st.routesOf) {
		if gone(ep) {
			t.leaveRoutes(ep)
		}
	}
	for id, b := range maps.Clone(t.st.balancers) {
		if t.st.networks[b.Network] == nil && !t.st.isAside("network", string(b.Network)) {
			t.dropBalancer(id)
		}
	}
	here := func(b *plan.LoadBalancer) bool {
		n := t.st.networks[b.Network]
		return n != nil && n.Doc.Type != hcn.Overlay
	}
	for ep, of := range maps.Clone(t.st.byBackend) {
		if gone(ep) && !slices.ContainsFunc(slices.Collect(maps.Values(of)), func(b *plan.LoadBalancer) bool { return !here(b) }) {
			t.leaveBalancers(ep)
		}
	}
}
