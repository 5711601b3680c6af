package engine

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Namespaces lists the namespaces that match, oldest first.
func (e *Engine) Namespaces(f hcn.Filter) []hcn.GUID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return listed(e.st.namespaces, func(n *plan.NamespaceRow) (bool, uint64) { return f.MatchNamespace(&n.Doc), n.Seq })
}

// Namespace is the document of a namespace, with what is in it.
func (e *Engine) Namespace(id hcn.GUID) (hcn.HostComputeNamespace, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	n := e.st.namespaces[id]
	if n == nil {
		return hcn.HostComputeNamespace{}, noNamespace(id)
	}
	return *e.st.namespaceDoc(n), nil
}

func (s *state) namespaceDoc(n *plan.NamespaceRow) *hcn.HostComputeNamespace {
	doc := n.Doc.Clone()
	doc.NamespaceId, doc.Resources = n.Number, nil
	for _, ep := range s.attachedTo(n.Doc.ID) {
		doc.Resources = append(doc.Resources, hcn.NamespaceResource{
			Type: hcn.NamespaceResourceTypeEndpoint, Data: hcn.NamespaceResourceData{ID: string(ep.Doc.ID)},
		})
	}
	for _, c := range n.Containers {
		doc.Resources = append(doc.Resources, hcn.NamespaceResource{
			Type: hcn.NamespaceResourceTypeContainer, Data: hcn.NamespaceResourceData{ID: c},
		})
	}
	return doc
}

func noNamespace(id hcn.GUID) error {
	return hcn.Errorf(hcn.ErrElementNotFound, "no namespace has the ID %s: see `bulkhead namespace ls`", id)
}

// CreateNamespace makes a namespace and its compartment, at once: there is no
// waiting for a first container. The host's default namespace is one, however
// often it is created.
func (e *Engine) CreateNamespace(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNamespace) (hcn.HostComputeNamespace, error) {
	var row *plan.NamespaceRow
	made := false
	rev, err := e.commitOr(ctx, func(t *txn) error {
		if doc.Type == hcn.NamespaceTypeHostDefault {
			if row = t.hostNamespace(); row != nil {
				t.keepNamespace(row)
				return nil
			}
		}
		var err error
		row, err = t.newNamespace(id, doc)
		made = err == nil
		return err
	})
	if err != nil {
		return hcn.HostComputeNamespace{}, err
	}
	id = row.Doc.ID
	if made {
		if err := e.applied(ctx, rev, namespaceObject(id)); err != nil {
			e.undo(ctx, "namespace", string(id), func(t *txn) { t.dropNamespace(id) })
			return hcn.HostComputeNamespace{}, hcn.Errorf(hcn.ErrUnspecified, "make the compartment of namespace %s: %w", id, err)
		}
	}
	return e.Namespace(id)
}

// HostNamespace is the host's default namespace, for an endpoint to be attached
// there. Version 1 clients do not know of it, so they would never delete it.
func (e *Engine) HostNamespace(context.Context) (id hcn.GUID, err error) {
	_, err = e.commit(func(t *txn) error {
		if row := t.hostNamespace(); row != nil {
			id = row.Doc.ID
			return nil
		}
		row, err := t.newNamespace("", hcn.HostComputeNamespace{Type: hcn.NamespaceTypeHostDefault, SchemaVersion: hcn.V2()})
		if err != nil {
			return err
		}
		implicit := *row
		implicit.Implicit = true
		id = row.Doc.ID
		t.putNamespace(id, &implicit)
		return nil
	})
	return id, err
}

func (t *txn) hostNamespace() *plan.NamespaceRow {
	for _, n := range t.st.namespaces {
		if n.Doc.Type == hcn.NamespaceTypeHostDefault {
			return n
		}
	}
	return nil
}

// keepNamespace notes that a client counts on a namespace.
func (t *txn) keepNamespace(old *plan.NamespaceRow) {
	if old.Implicit {
		row := *old
		row.Implicit = false
		t.setNamespace(row.Doc.ID, &row)
	}
}

// vacated drops a namespace that was only there for what was in it.
func (t *txn) vacated(id hcn.GUID) {
	ns := t.st.namespaces[id]
	if ns != nil && ns.Implicit && len(ns.Containers) == 0 && len(t.st.byNamespace[id]) == 0 {
		t.dropNamespace(id)
	}
}

func (t *txn) newNamespace(id hcn.GUID, in hcn.HostComputeNamespace) (*plan.NamespaceRow, error) {
	doc := in.Clone()
	doc.ID = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
	doc.Version, doc.Health, doc.Resources = 0, nil, nil
	if t.st.namespaces[doc.ID] != nil {
		return nil, hcn.Errorf(hcn.ErrObjectAlreadyExists, "a namespace with the ID %s exists: delete it first, or leave the ID out", doc.ID)
	}
	doc.Defaults(hcn.NewGUID)
	if err := doc.Validate(); err != nil {
		return nil, err
	}
	taken := func(n uint32) bool { return n == hcn.HostDefaultCompartment || t.st.numbers[n] > 0 }
	row := &plan.NamespaceRow{Doc: *doc, Seq: t.nextSeq(), Boot: t.e.facts.BootID, Kept: doc.Type.InGuest()}
	switch {
	case doc.Type == hcn.NamespaceTypeHostDefault:
		row.Number = hcn.HostDefaultCompartment
	case doc.NamespaceId > 1 && !taken(doc.NamespaceId):
		row.Number = doc.NamespaceId
	default:
		row.Number = ipam.Number(taken)
	}
	delete(t.e.made, doc.ID) // of one that had the ID before
	t.putNamespace(doc.ID, row)
	k := namespaceObject(doc.ID)
	t.tell(queued{ev: hcnEvent("namespace", "create", doc.ID, doc.Name, hcn.NotificationNamespaceCreate), on: []object{k}, comes: &k})
	return row, nil
}

// ModifyNamespace attaches and detaches endpoints, and notes containers.
func (e *Engine) ModifyNamespace(ctx context.Context, id hcn.GUID, r *hcn.ModifyNamespaceSettingRequest) error {
	res, err := r.Resource()
	if err != nil {
		return err
	}
	attaching := res.Type == hcn.NamespaceResourceTypeEndpoint && (r.RequestType == hcn.RequestTypeAdd || r.RequestType == hcn.RequestTypeUpdate)
	if attaching {
		if err := e.stillVacant(ctx, hcn.GUID(res.Data.ID)); err != nil {
			return errors.Join(err, e.leaveHost(id))
		}
	}
	var touched []*plan.Endpoint
	rev, err := e.commitOr(ctx, func(t *txn) error {
		ns := t.st.namespaces[id]
		if ns == nil {
			return noNamespace(id)
		}
		if res.Type == hcn.NamespaceResourceTypeContainer {
			return t.modifyContainers(ns, r.RequestType, res.Data.ID)
		}
		var err error
		touched, err = t.modifyEndpoints(ns, r.RequestType, hcn.GUID(res.Data.ID))
		return err
	})
	if err != nil && rehearsing(ctx) != nil {
		return err
	}
	if err != nil {
		return errors.Join(err, e.leaveHost(id))
	}
	if r.RequestType == hcn.RequestTypeRefresh {
		e.Wake("refresh of namespace " + string(id))
		if err := e.applied(ctx, rev); err != nil {
			return hcn.Errorf(hcn.ErrNamespaceAttachFailed, "namespace %s: %w", id, err)
		}
		return e.syncGuest(ctx, id)
	}
	var wait []object
	if attaching {
		wait = append(wait, portObject(hcn.GUID(res.Data.ID)))
	}
	if r.RequestType == hcn.RequestTypeRemove || r.RequestType == hcn.RequestTypeReset {
		err = e.cutOff(ctx, rev)
	} else {
		err = e.applied(ctx, rev, wait...)
	}
	if err != nil {
		for _, ep := range touched {
			e.undo(ctx, "endpoint", string(ep.Doc.ID), func(t *txn) { t.detachIf(ep) })
		}
		return hcn.Errorf(hcn.ErrNamespaceAttachFailed, "namespace %s: %w", id, err)
	}
	for _, ep := range touched {
		if err := e.announce(ctx, ep.Doc.ID); err != nil {
			return errors.Join(err, e.leaveHost(id))
		}
	}
	return nil
}

// leaveHost drops a namespace that was made for an attachment which is refused.
func (e *Engine) leaveHost(id hcn.GUID) error {
	e.mu.RLock()
	ns := e.st.namespaces[id]
	e.mu.RUnlock()
	if ns == nil || !ns.Implicit {
		return nil
	}
	_, err := e.commit(func(t *txn) error { t.vacated(id); return nil })
	return err
}

// detachIf undoes an attachment, if it is still that one.
func (t *txn) detachIf(ep *plan.Endpoint) {
	if row := t.st.endpoints[ep.Doc.ID]; row != nil && row.Attach == ep.Attach {
		t.putEndpoint(ep.Doc.ID, detached(row))
	}
}

// modifyEndpoints returns the endpoints that were attached: one that was already
// is not undone when its interface fails.
func (t *txn) modifyEndpoints(ns *plan.NamespaceRow, kind hcn.RequestType, ep hcn.GUID) ([]*plan.Endpoint, error) {
	switch kind {
	case hcn.RequestTypeAdd, hcn.RequestTypeUpdate:
		old := t.st.endpoints[ep]
		row, err := t.attach(ep, ns.Doc.ID)
		if err != nil || row == old {
			return nil, err
		}
		return []*plan.Endpoint{row}, nil
	case hcn.RequestTypeRemove:
		row := t.st.endpoints[ep]
		if row == nil {
			return nil, noEndpoint(ep)
		}
		if row.Attach == nil || row.Attach.Namespace != ns.Doc.ID {
			return nil, hcn.Errorf(hcn.ErrEndpointNotAttached, "endpoint %s is not in namespace %s", ep, ns.Doc.ID)
		}
		t.putEndpoint(ep, withdrawn(row))
	case hcn.RequestTypeReset:
		for id, row := range maps.Clone(t.st.byNamespace[ns.Doc.ID]) {
			t.putEndpoint(id, withdrawn(row))
		}
	case hcn.RequestTypeRefresh:
	}
	return nil, nil
}

func (t *txn) modifyContainers(ns *plan.NamespaceRow, kind hcn.RequestType, container string) error {
	row := *ns
	row.Containers = slices.Clone(ns.Containers)
	has := slices.Contains(row.Containers, container)
	switch kind {
	case hcn.RequestTypeAdd, hcn.RequestTypeUpdate:
		if has {
			return nil
		}
		if err := t.sharing(ns); err != nil {
			return err
		}
		row.Containers = append(row.Containers, container)
	case hcn.RequestTypeRemove:
		if !has {
			return hcn.Errorf(hcn.ErrElementNotFound, "container %q is not in namespace %s", container, ns.Doc.ID)
		}
		row.Containers = slices.DeleteFunc(row.Containers, func(c string) bool { return c == container })
	case hcn.RequestTypeReset:
		row.Containers = nil
	case hcn.RequestTypeRefresh:
		return nil
	}
	t.putNamespace(ns.Doc.ID, &row)
	t.vacated(ns.Doc.ID)
	return nil
}

// sharing refuses a second container where a network forbids sharing.
func (t *txn) sharing(ns *plan.NamespaceRow) error {
	if len(ns.Containers) == 0 {
		return nil
	}
	for _, ep := range t.st.byNamespace[ns.Doc.ID] {
		if n := t.st.networks[ep.Doc.HostComputeNetwork]; n != nil && n.Doc.Flags&hcn.DisableSharing != 0 {
			return hcn.Errorf(hcn.ErrEndpointSharingDisabled, "network %q forbids that containers share its endpoint %s", n.Doc.Name, ep.Doc.ID)
		}
	}
	return nil
}

// DeleteNamespace deletes a namespace: its endpoints are detached and kept. One
// with containers in it is refused, unless its compartment vanished with them.
func (e *Engine) DeleteNamespace(ctx context.Context, id hcn.GUID) error {
	rev, err := e.commitOr(ctx, func(t *txn) error {
		ns := t.st.namespaces[id]
		if ns == nil {
			return noNamespace(id)
		}
		if err := vacant(ns); err != nil {
			return err
		}
		t.dropNamespace(id)
		return nil
	})
	if errors.Is(err, hcn.ErrElementNotFound) {
		return e.orForget(ctx, "namespace", string(id), err)
	}
	if err != nil {
		return err
	}
	if err := e.cutOff(ctx, rev); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete namespace %s: it is deleted, and the kernel follows: %w", id, err)
	}
	return nil
}

// dropNamespace takes a namespace away; its endpoints are detached and kept.
func (t *txn) dropNamespace(id hcn.GUID) {
	old := t.st.namespaces[id]
	if old == nil {
		return
	}
	for ep, row := range maps.Clone(t.st.byNamespace[id]) {
		t.putEndpoint(ep, detached(row))
	}
	if t.st.namespaces[id] == nil {
		return // it went with the last of them
	}
	t.putNamespace(id, nil)
	k := namespaceObject(id)
	t.tell(queued{ev: hcnEvent("namespace", "delete", id, old.Doc.Name, hcn.NotificationNamespaceDelete), goes: &k})
}

// afterBoot forgets what a restart of the host took away: compartments, and the
// networks that asked for it.
func (e *Engine) afterBoot(boot string) error {
	_, err := e.commit(func(t *txn) error {
		restarted := t.st.settings[settingBoot] != boot
		if !restarted {
			return nil
		}
		t.putSetting(settingBoot, boot)
		for id, ns := range maps.Clone(t.st.namespaces) {
			if ns.Boot == boot {
				continue
			}
			for ep, old := range maps.Clone(t.st.byNamespace[id]) {
				row := detached(old)
				row.Doc.State = hcn.EndpointCreated // nobody detached it: it was never attached in this run
				t.putEndpoint(ep, row)
			}
			t.dropNamespace(id)
		}
		for id, ep := range maps.Clone(t.st.endpoints) {
			if ep.Boot != "" && ep.Boot != boot {
				t.dropEndpoint(id)
			}
		}
		for id, n := range maps.Clone(t.st.networks) {
			if n.Doc.Flags&hcn.EnableNonPersistent != 0 {
				t.dropNetwork(id)
			}
		}
		return nil
	})
	return err
}

const settingBoot = "boot"

// afterCrash ends what a crash between the writes to the two stores left: the
// namespace of containers or endpoints that had left it.
func (e *Engine) afterCrash() error {
	_, err := e.commit(func(t *txn) error {
		// Of a network that was deleted, whose endpoints lie in both stores.
		for id, ep := range maps.Clone(t.st.endpoints) {
			if t.st.networks[ep.Doc.HostComputeNetwork] == nil {
				t.dropEndpoint(id)
			}
		}
		for id, ns := range maps.Clone(t.st.namespaces) {
			if ns.Doc.Owner != "bulkhead" && !ns.Kept {
				t.vacated(id)
				continue
			}
			row := *ns
			row.Containers = slices.DeleteFunc(slices.Clone(ns.Containers), func(c string) bool {
				ctr := t.st.containers[c]
				return len(c) == containerIDLen && (ctr == nil || ctr.Doc.Namespace != id) && !t.st.isAside("container", c)
			})
			switch {
			case len(row.Containers) == len(ns.Containers):
			case len(row.Containers) == 0 && !ns.Kept:
				t.dropNamespace(id)
			default:
				t.putNamespace(id, &row)
			}
		}
		t.dropLostMachines()
		t.forgetGone()
		return nil
	})
	return err
}
