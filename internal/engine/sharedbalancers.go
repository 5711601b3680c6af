package engine

import (
	"context"
	"errors"
	"net/netip"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Load balancers of a network of the cluster. The one who makes one has it: it is a row there, and a fact on the others, whose switches
// balance for their own containers. Where a host has a service itself, that counts on it.

// sharesBalancer tells that other hosts are to know of a load balancer: its network is the cluster's, and it has virtual addresses. At
// the host's own addresses it is for who comes to this host, and a document can say so of any.
func (s *state) sharesBalancer(row *plan.LoadBalancer) bool {
	n := s.networks[row.Network]
	return n != nil && n.Cluster && len(row.Doc.FrontendVIPs) > 0 && !row.Doc.HostOnly()
}

// sharedForm is what others are told of it.
func sharedForm(row *plan.LoadBalancer) hcn.HostComputeLoadBalancer {
	doc := *row.Doc.Clone()
	doc.HostComputeNetwork = row.Network
	doc.Health, doc.State, doc.AdditionalParams, doc.Version = nil, 0, nil, 0
	return doc
}

// claimBalancer makes a change of a load balancer known to the cluster before it is made here, if it is one that the cluster shares: what
// change would make comes in row. A load balancer without a name is made in any case: clients such as kube-proxy make the same one on
// each host for itself, and it is published when nobody else has it.
func (e *Engine) claimBalancer(ctx context.Context, change func(*txn) error, row **plan.LoadBalancer) (release func(), err error) {
	release = func() {}
	if e.opt.Cluster == nil || rehearsing(ctx) != nil {
		return release, nil
	}
	doc, shared, err := e.tryBalancer(change, row)
	if err != nil || !shared {
		return release, err
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	free, err := e.opt.Cluster.ClaimBalancer(ctx, doc)
	switch {
	case err == nil:
		return func() { e.publishBalancers(); free() }, nil
	case doc.Name == "":
		e.log.Debug("a load balancer is this host's alone for now", "loadbalancer", doc.ID, "reason", err)
		return release, nil
	case errors.Is(err, ErrTaken):
		return release, hcn.Errorf(hcn.ErrPortAlreadyExists, "load balancer %q: %w", doc.Name, err)
	}
	return release, hcn.Errorf(hcn.ErrUnspecified, "make load balancer %q known to the cluster: %w", doc.Name, err)
}

// tryBalancer makes a change and takes it back at once: it gives the document that others would be told, and whether they would be.
func (e *Engine) tryBalancer(change func(*txn) error, row **plan.LoadBalancer) (doc hcn.HostComputeLoadBalancer, shared bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	cluster := false
	for _, n := range e.st.networks {
		cluster = cluster || n.Cluster
	}
	if !cluster {
		return doc, false, nil
	}
	t := &txn{e: e, st: e.st, dirty: emptyDirty(), facts: &e.facts, dry: true}
	seq := e.st.seq
	defer func() {
		t.rollBack()
		e.st.seq = seq
	}()
	if err := change(t); err != nil {
		return doc, false, err
	}
	return sharedForm(*row), e.st.sharesBalancer(*row), nil
}

// publishBalancers tells the cluster which load balancers this host has. What is told last is the newest.
func (e *Engine) publishBalancers() {
	e.publishing.Lock()
	defer e.publishing.Unlock()
	var all []hcn.HostComputeLoadBalancer
	e.mu.RLock()
	for _, row := range e.st.balancers {
		if e.st.sharesBalancer(row) {
			all = append(all, sharedForm(row))
		}
	}
	e.mu.RUnlock()
	e.opt.Cluster.PublishBalancers(all)
}

// sharedFree refuses a load balancer with a name that has services of another host's, as far as it is known here; the cluster knows for sure.
func (t *txn) sharedFree(row *plan.LoadBalancer, n *plan.Network) error {
	if row.Doc.Name == "" || !n.Cluster || row.Doc.HostOnly() {
		return nil
	}
	for _, f := range frontends(row) {
		id, ok := t.st.sharedAt[row.Network][f]
		if other := t.st.shared[id]; ok && other != nil && id != row.Doc.ID {
			return hcn.Errorf(hcn.ErrPortAlreadyExists, "%s %s is a service of load balancer %s of host %q: delete that one there, or choose another port",
				plan.ProtocolName(f.Protocol), netip.AddrPortFrom(f.Addr, f.Port), balancerTitle(other), other.Host)
		}
	}
	return nil
}

func balancerTitle(row *plan.LoadBalancer) string {
	if row.Doc.Name == "" {
		return string(row.Doc.ID)
	}
	return row.Doc.Name + " (" + string(row.Doc.ID) + ")"
}

// ChangeClusterBalancers takes what the cluster tells of load balancers of other hosts: some are gone, then others are there or have
// changed. It does not wait for the data path.
func (e *Engine) ChangeClusterBalancers(set []plan.LoadBalancer, gone []hcn.GUID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	dirty := emptyDirty()
	for _, id := range gone {
		if e.st.shared[id] != nil {
			e.st.setShared(id, nil)
			dirty.Balancers[id] = struct{}{}
		}
	}
	for i := range set {
		id := set[i].Doc.ID
		e.st.setShared(id, &set[i])
		dirty.Balancers[id] = struct{}{}
	}
	if len(dirty.Balancers) == 0 {
		return
	}
	e.pending.add(dirty, e.st.rev, nil)
	e.kick()
}

// setShared enters a load balancer of another host; nil takes it away.
func (s *state) setShared(id hcn.GUID, row *plan.LoadBalancer) {
	if old := s.shared[id]; old != nil {
		delete(s.shared, id)
		s.sharedServices, s.sharedServed = s.sharedServices-servicesOf(old), s.sharedServed-served(old)
		for _, ep := range old.Doc.HostComputeEndpoints {
			drop(s.sharedBy, ep, id)
		}
		for _, f := range frontends(old) {
			if s.sharedAt[old.Network][f] == id {
				drop(s.sharedAt, old.Network, f)
			}
		}
	}
	if row == nil {
		return
	}
	s.shared[id] = row
	s.sharedServices, s.sharedServed = s.sharedServices+servicesOf(row), s.sharedServed+served(row)
	for _, ep := range row.Doc.HostComputeEndpoints {
		insert(s.sharedBy, ep, id, row)
	}
	for _, f := range frontends(row) {
		insert(s.sharedAt, row.Network, f, id)
	}
}
