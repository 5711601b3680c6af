package engine

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// asideRow is a stored row that could not be read when the daemon started. The
// store keeps it; nobody serves it.
type asideRow struct {
	kind, id string
	err      error
	forget   func(*store.Tx) error
	db       *store.DB
}

// readTable reads a table; what cannot be read is added to what is aside.
func readTable[T any](s *state, db *store.DB, table store.Table[T], fn func(key string, row T) error) error {
	aside, err := table.Read(db, fn)
	for _, a := range aside {
		s.aside = append(s.aside, asideRow{
			kind: strings.TrimSuffix(a.Table, "s"), id: a.Key, err: a.Err, db: db,
			forget: func(tx *store.Tx) error { return table.Forget(tx, a.Key) },
		})
	}
	return err
}

// isAside tells that a row exists which could not be read.
func (s *state) isAside(kind, id string) bool {
	for _, a := range s.aside {
		if a.kind == kind && a.id == id {
			return true
		}
	}
	return false
}

// itself refuses a row that is not what its key says: half of one, or none at all.
func itself[K ~string](key string, id K) error {
	if string(id) != key {
		return fmt.Errorf("it says that its ID is %.80q", id)
	}
	return nil
}

// fits tells that a network is the one an endpoint was made on, as far as its
// addresses go: another may have got the ID of one that is aside.
func fits(ep *plan.Endpoint, n *plan.Network) bool {
	if n == nil {
		return false
	}
	if ep.Leased {
		return true
	}
	return !slices.ContainsFunc(ep.Addrs, func(a netip.Prefix) bool {
		return !slices.ContainsFunc(n.Doc.AllSubnets(), func(s *hcn.Subnet) bool {
			p, err := s.Prefix()
			return err == nil && p.Contains(a.Addr())
		})
	})
}

// next says how to get rid of a row that cannot be read.
func (a asideRow) next() string {
	verb := a.kind + " rm"
	switch a.kind {
	case "setting":
		return "nothing: it is made anew"
	case "container":
		verb = "rm"
	case "guestservice":
		return "run the version that wrote it, which finds it again; or make it anew, and have this one forgotten: DELETE /hcn/v2/guestnetworkservices/" + a.id
	case "route":
		return "run the version that wrote it, which finds it again; or make it anew, and have this one forgotten: DELETE /hcn/v2/routes/" + a.id
	}
	return "run the version that wrote it, which finds it again; or make it anew, and have this one forgotten: bulkhead " + verb + " " + a.id
}

func (e *Engine) logAside() {
	for _, a := range e.st.aside {
		e.log.Error("a stored row cannot be read and is set aside: the rest is served", "kind", a.kind, "id", a.id, "error", a.err, "next", a.next())
	}
}

// asideChecks are the doctor's lines. Locked: e.mu.
func (e *Engine) asideChecks() []api.Check {
	var out []api.Check
	for _, a := range e.st.aside {
		out = append(out, api.Check{
			Name: "stored " + a.kind + " " + a.id, Status: "warn",
			Detail: fmt.Sprintf("%s; it is kept in the store and has no effect", a.err), Next: a.next(),
		})
	}
	return out
}

// orForget is for who deletes what is not there: if a row of that name is aside, it
// is forgotten.
func (e *Engine) orForget(ctx context.Context, kind, id string, notThere error) error {
	e.mu.RLock()
	i := slices.IndexFunc(e.st.aside, func(a asideRow) bool { return a.kind == kind && a.id == id })
	var row asideRow
	if i >= 0 {
		row = e.st.aside[i]
	}
	e.mu.RUnlock()
	if i < 0 {
		return notThere
	}
	if rehearsing(ctx) != nil {
		return nil // it has no effect in the kernel
	}
	if kind == "container" {
		if err := e.opt.Sandbox.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove the sandbox of container %.12s: %w", id, err)
		}
		if _, err := e.commit(func(t *txn) error { t.dropCompartmentsOf(id); return nil }); err != nil {
			return fmt.Errorf("take the network of container %.12s away: %w", id, err)
		}
	}
	if _, err := row.db.Update(row.forget); err != nil {
		return fmt.Errorf("forget %s %s: %w", kind, id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.st.aside = slices.DeleteFunc(slices.Clone(e.st.aside), func(a asideRow) bool { return a.kind == kind && a.id == id })
	e.log.Info("forgot a row that could not be read", "kind", kind, "id", id)
	return nil
}

// dropCompartmentsOf takes away what a container had whose row says nothing.
func (t *txn) dropCompartmentsOf(container string) {
	for id, ns := range maps.Clone(t.st.namespaces) {
		if ns.Doc.Owner != "bulkhead" && !ns.Kept || !slices.Contains(ns.Containers, container) {
			continue
		}
		if ns.Kept {
			row := *ns
			row.Containers = slices.DeleteFunc(slices.Clone(ns.Containers), func(id string) bool { return id == container })
			t.putNamespace(id, &row)
			continue
		}
		for ep := range maps.Clone(t.st.byNamespace[id]) {
			t.dropEndpoint(ep)
		}
		t.dropNamespace(id)
	}
}
