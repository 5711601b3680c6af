package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Some runtimes want to move the interface into the network namespace themselves, which they make later, and give it its name and
// its addresses there. Until then the vNIC is parked in the host's namespace, down and without addresses; the port is complete, so
// traffic passes from the moment that the runtime sets it up. When the vNIC has left the host, the loop finds it in the
// runtime's namespace, and from then on the attachment is one like any other. It ends with its namespace.

// handOver makes, completes or changes an attachment of such a runtime.
func (e *Engine) handOver(ctx context.Context, s api.AttachmentSpec) (api.Attachment, error) {
	if e.opt.Moved == nil {
		return api.Attachment{}, api.Errorf(api.KindUnsupported, "handover: this daemon has no kernel to attach containers in")
	}
	id := api.AttachmentKey{Container: s.Container, Interface: s.Interface}.ID(s.Owner)
	var before, row *plan.Endpoint
	create := func(t *txn) (err error) {
		before, row = t.st.endpoints[id], nil
		switch {
		case before == nil && s.Netns != "":
			err = noAttachment(id)
		case before == nil:
			err = t.newAttachment(id, &s)
		case before.Foreign == nil:
			err = api.Errorf(api.KindConflict, "endpoint %s has the ID that this attachment is to have, and is none", id).Hint("bulkhead endpoint rm %s", id)
		default:
			err = t.renameAttachment(before, &s)
		}
		row = t.st.endpoints[id]
		switch {
		case err != nil:
		case s.Netns != "":
			err = t.park(id, s.Netns)
		case row.Attach != nil:
			t.putEndpoint(id, detached(row))
		}
		row = t.st.endpoints[id]
		return err
	}
	err := e.vacant(ctx, func(t *txn) ([]*plan.Endpoint, error) { err := create(t); return []*plan.Endpoint{row}, err })
	if err != nil {
		return api.Attachment{}, asAPI(err)
	}
	rev, err := e.commitOr(ctx, create)
	if err != nil {
		return api.Attachment{}, asAPI(err)
	}
	wait := []object{portObject(id)}
	if row.Attach == nil {
		wait = nil
	}
	if err := e.applied(ctx, rev, wait...); err != nil {
		return api.Attachment{}, e.attachFailed(ctx, &s, before, row, err)
	}
	if row.Attach != nil && (before == nil || before.Attach == nil) {
		if err := e.announce(ctx, id); err != nil {
			return api.Attachment{}, e.attachFailed(ctx, &s, before, row, err)
		}
	}
	return e.Attachment(id)
}

// renameAttachment gives an attachment other names: some runtimes tell them late.
func (t *txn) renameAttachment(old *plan.Endpoint, s *api.AttachmentSpec) error {
	n, err := t.st.findNetwork(s.Network)
	if err != nil {
		return err
	}
	if old.Doc.HostComputeNetwork != n.Doc.ID {
		other := t.st.networks[old.Doc.HostComputeNetwork]
		return api.Errorf(api.KindConflict, "container %.40s of %q is on network %q, and not on %q", s.Container, s.Owner, networkName(other), n.Doc.Name).Hint("detach it there first")
	}
	if s.Name == "" {
		return nil
	}
	row, foreign := *old, *old.Foreign
	foreign.Name, foreign.Labels = s.Name, maps.Clone(s.Labels)
	row.Foreign, row.Doc = &foreign, *old.Doc.Clone()
	row.Doc.Name = s.Name
	row.Doc.Policies = slices.DeleteFunc(row.Doc.Policies, func(p hcn.EndpointPolicy) bool { return p.Type == hcn.Aliases })
	if len(s.Aliases) > 0 {
		row.Doc.Policies = append(row.Doc.Policies, hcn.NewEndpointPolicy(hcn.Aliases, hcn.AliasesSetting{Names: s.Aliases}))
	}
	if err := row.Doc.Validate(); err != nil {
		return err
	}
	t.putEndpoint(old.Doc.ID, &row)
	return nil
}

// park puts the vNIC into the host's namespace, for the runtime to move it to a path.
func (t *txn) park(id hcn.GUID, path string) error {
	old := t.st.endpoints[id]
	if old.Attach != nil {
		if old.Foreign.Netns != path {
			return api.Errorf(api.KindConflict, "container %.40s: its interface is in another network namespace, %s", old.Foreign.Container, old.Foreign.Netns).Hint("detach it there first")
		}
		return nil
	}
	if n := t.st.networks[old.Doc.HostComputeNetwork]; n != nil && n.Doc.Macvlan() {
		return api.Errorf(api.KindUnsupported, "network %q: its containers have macvlan devices, which nobody but the daemon moves", n.Doc.Name).Hint("use a network of another form")
	}
	var ns hcn.GUID
	for other, row := range t.st.namespaces {
		if row.Adopted != nil && row.Adopted.Path == path && !row.Vanished {
			ns = other
		}
	}
	if ns == "" {
		row, err := t.newNamespace("", hcn.HostComputeNamespace{Type: hcn.NamespaceTypeHost, SchemaVersion: hcn.V2()})
		if err != nil {
			return err
		}
		adopted := *row
		adopted.Implicit, adopted.Adopted = true, &plan.Adopted{Path: path}
		t.putNamespace(row.Doc.ID, &adopted)
		ns = row.Doc.ID
	}
	row, err := t.attach(id, ns)
	if err != nil {
		return err
	}
	parked, foreign := *row, *row.Foreign
	foreign.Netns = path
	parked.Foreign = &foreign
	parked.Attach = &plan.Attachment{
		Namespace: ns, Index: row.Attach.Index, Parked: true, Watch: row.Attach.Watch,
		Interface: plan.DeviceName(plan.ParkedPrefix, plan.EndpointPortID(id)),
	}
	t.putEndpoint(id, &parked)
	return nil
}

// takeOver looks for vNICs that runtimes have moved since, and takes them for what they are now.
func (e *Engine) takeOver() {
	type move struct {
		endpoint hcn.GUID
		name     string
		inode    uint64
	}
	e.mu.RLock()
	paths := map[hcn.GUID]string{}
	for id := range e.st.parked {
		paths[id] = e.st.endpoints[id].Foreign.Netns
	}
	e.mu.RUnlock()
	var moves []move
	for id, path := range paths {
		name, inode, err := e.opt.Moved(plan.DeviceName(plan.PortPrefix, plan.EndpointPortID(id)), path)
		switch {
		case err != nil:
			e.log.Warn("look for an interface that its runtime was to move", "endpoint", id, "netns", path, "error", err)
		case name != "":
			moves = append(moves, move{id, name, inode})
		}
	}
	if len(moves) == 0 {
		return
	}
	slices.SortFunc(moves, func(a, b move) int { return cmp.Compare(a.endpoint, b.endpoint) })
	_, err := e.commit(func(t *txn) error {
		for _, m := range moves {
			old := t.st.endpoints[m.endpoint]
			if old == nil || old.Attach == nil || !old.Attach.Parked {
				continue
			}
			ns := t.st.namespaces[old.Attach.Namespace]
			if ns == nil || ns.Adopted == nil || ns.Adopted.Inode != 0 && ns.Adopted.Inode != m.inode {
				continue // it ends with the namespace that was there before
			}
			if ns.Adopted.Inode == 0 {
				seen := *ns
				seen.Adopted = &plan.Adopted{Path: ns.Adopted.Path, Inode: m.inode}
				t.putNamespace(ns.Doc.ID, &seen)
			}
			row := *old
			row.Attach = &plan.Attachment{Namespace: old.Attach.Namespace, Index: old.Attach.Index, Interface: m.name, Watch: old.Attach.Watch}
			t.putEndpoint(m.endpoint, &row)
		}
		return nil
	})
	if err != nil {
		e.log.Warn("take over interfaces that their runtimes have moved", "error", fmt.Errorf("%d of them: %w", len(moves), err))
	}
}
