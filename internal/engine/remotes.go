package engine

import (
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Endpoints on other hosts are known from documents, which are stored like any, or told by a control plane. What is told is
// kept in memory only: its source tells it again after a restart, before Run if it can. What it has not told then, the data path does
// without from the first comparison on.

// ReplaceRemotes makes what a source tells of a network exactly these endpoints. It does not wait for the data path.
func (e *Engine) ReplaceRemotes(source string, network hcn.GUID, all []plan.Remote) {
	e.mu.Lock()
	defer e.mu.Unlock()
	told := make(map[hcn.GUID]bool, len(all))
	for i := range all {
		told[all[i].Endpoint] = true
	}
	var gone []hcn.GUID
	for id, r := range e.st.remotes {
		if r.Network == network && e.st.toldBy[id] == source && !told[id] {
			gone = append(gone, id)
		}
	}
	e.changeRemotes(source, all, gone)
}

// ChangeRemotes adds endpoints to what a source tells, or changes them, and takes others away. Its cost follows the change
// and not what is known. It does not wait for the data path.
func (e *Engine) ChangeRemotes(source string, set []plan.Remote, gone []hcn.GUID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.changeRemotes(source, set, gone)
}

// changeRemotes is ChangeRemotes. Locked: e.mu.
func (e *Engine) changeRemotes(source string, set []plan.Remote, gone []hcn.GUID) {
	dirty := emptyDirty()
	for _, id := range gone {
		if e.st.remotes[id] != nil && e.st.toldBy[id] == source {
			e.st.setRemote(id, nil, "")
			dirty.Remotes[id] = struct{}{}
		}
	}
	for i := range set {
		r := set[i]
		if old := e.st.remotes[r.Endpoint]; old != nil && e.st.toldBy[r.Endpoint] == source && sameRemote(old, &r) {
			continue
		}
		e.st.setRemote(r.Endpoint, &r, source)
		dirty.Remotes[r.Endpoint] = struct{}{}
	}
	if len(dirty.Remotes) == 0 {
		return
	}
	e.pending.add(dirty, e.st.rev, nil)
	e.kick()
}

func sameRemote(a, b *plan.Remote) bool {
	return a.Network == b.Network && a.MAC == b.MAC && a.Provider == b.Provider && a.Host == b.Host && a.Keyless == b.Keyless &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Names, b.Names)
}

// setRemote enters a fact; nil takes it away.
func (s *state) setRemote(id hcn.GUID, r *plan.Remote, source string) {
	if old := s.remotes[id]; old != nil {
		for _, a := range old.Addrs {
			if s.elsewhere[old.Network][a] == id {
				drop(s.elsewhere, old.Network, a)
			}
		}
		delete(s.remotes, id)
		delete(s.toldBy, id)
	}
	if r == nil {
		return
	}
	s.remotes[id], s.toldBy[id] = r, source
	for _, a := range r.Addrs {
		insert(s.elsewhere, r.Network, a, id)
	}
}

// isElsewhere tells that an address of a network is known to be an endpoint's on another host.
func (s *state) isElsewhere(network hcn.GUID, a netip.Addr) bool {
	_, ok := s.elsewhere[network][a]
	return ok
}
