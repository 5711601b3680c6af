package engine

import (
	"context"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A compartment with its endpoints is what a container needs. HCN makes it in two
// calls and removes it in two, with a state in between that a client which dies
// there leaves behind, and with two waits for the disk and the kernel. Here it is
// one change, as it is for our own containers. And it ends with the run of the
// host: the caller makes a new one after a restart, as it makes a new process.

// CreateCompartment makes a namespace and the endpoints in it: all or nothing.
func (e *Engine) CreateCompartment(ctx context.Context, in api.Compartment) (api.Compartment, error) {
	if in.Namespace.Type == hcn.NamespaceTypeHostDefault {
		return api.Compartment{}, api.Errorf(api.KindInvalid, "namespace.Type: the host's own compartment is there already: create the endpoints in it one by one")
	}
	in.Endpoints = slices.Clone(in.Endpoints)
	if len(in.Endpoints) > 0 && in.Endpoints[0].ID.IsZero() {
		id, giveBack := e.promised(ctx)
		defer giveBack()
		in.Endpoints[0].ID = id
	}
	var id hcn.GUID
	var eps []*plan.Endpoint
	create := func(t *txn) error {
		ns, err := t.newNamespace("", in.Namespace)
		if err != nil {
			return err
		}
		id, eps = ns.Doc.ID, nil
		for i := range in.Endpoints {
			row, err := t.newEndpoint("", "", in.Endpoints[i], t.e.facts.BootID)
			if err == nil {
				row, err = t.attach(row.Doc.ID, id)
			}
			if err != nil {
				return err
			}
			eps = append(eps, row)
		}
		return nil
	}
	if err := e.vacant(ctx, func(t *txn) ([]*plan.Endpoint, error) { err := create(t); return eps, err }); err != nil {
		return api.Compartment{}, err
	}
	rev, err := e.commitOr(ctx, create)
	if err != nil {
		return api.Compartment{}, err
	}
	wait := []object{namespaceObject(id)}
	ids := make([]hcn.GUID, len(eps))
	for i, ep := range eps {
		ids[i] = ep.Doc.ID
		wait = append(wait, portObject(ids[i]))
	}
	if err = e.applied(ctx, rev, wait...); err != nil {
		err = hcn.Errorf(hcn.ErrNamespaceAttachFailed, "make compartment %s: %w", id, err)
	} else {
		err = e.announce(ctx, ids...)
	}
	if err != nil {
		e.undo(ctx, "namespace", string(id), func(t *txn) {
			for _, ep := range eps {
				t.dropEndpoint(ep.Doc.ID)
			}
			t.dropNamespace(id)
		})
		return api.Compartment{}, err
	}
	return e.compartment(id)
}

// promised is the ID for an endpoint that is about to be the first of a new compartment: one that a compartment is kept ready for, or none.
func (e *Engine) promised(ctx context.Context) (id hcn.GUID, giveBack func()) {
	if e.opt.Promise == nil || rehearsing(ctx) != nil {
		return "", func() {}
	}
	return e.opt.Promise()
}

// compartment gives a namespace with the endpoints that are in it now.
func (e *Engine) compartment(id hcn.GUID) (api.Compartment, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	n := e.st.namespaces[id]
	if n == nil {
		return api.Compartment{}, noNamespace(id)
	}
	out := api.Compartment{Namespace: *e.st.namespaceDoc(n), Endpoints: []hcn.HostComputeEndpoint{}}
	for _, ep := range e.st.attachedTo(id) {
		out.Endpoints = append(out.Endpoints, *e.st.endpointDoc(ep))
	}
	return out, nil
}

// attachedTo lists the endpoints in a namespace in the order of their interfaces.
func (s *state) attachedTo(id hcn.GUID) []*plan.Endpoint {
	eps := make([]*plan.Endpoint, 0, len(s.byNamespace[id]))
	for _, ep := range s.byNamespace[id] {
		eps = append(eps, ep)
	}
	slices.SortFunc(eps, func(a, b *plan.Endpoint) int { return a.Attach.Index - b.Attach.Index })
	return eps
}

// DeleteCompartment deletes a namespace and the endpoints in it. One with
// containers in it is refused, unless its compartment vanished with them.
func (e *Engine) DeleteCompartment(ctx context.Context, id hcn.GUID) error {
	rev, err := e.commitOr(ctx, func(t *txn) error {
		ns := t.st.namespaces[id]
		if ns == nil {
			return noNamespace(id)
		}
		if ns.Doc.Type == hcn.NamespaceTypeHostDefault {
			return api.Errorf(api.KindInvalid, "namespace %s is the host's own compartment: delete the endpoints in it one by one", id)
		}
		if err := vacant(ns); err != nil {
			return err
		}
		for _, ep := range t.st.attachedTo(id) {
			t.dropEndpoint(ep.Doc.ID)
		}
		t.dropNamespace(id)
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.cutOff(ctx, rev); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete compartment %s: it is deleted, and the kernel follows: %w", id, err)
	}
	return nil
}

// vacant refuses a namespace that containers live in.
func vacant(ns *plan.NamespaceRow) error {
	if len(ns.Containers) > 0 && !ns.Vanished {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "namespace %s holds the containers %q: remove them first", ns.Doc.ID, ns.Containers)
	}
	return nil
}
