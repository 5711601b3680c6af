package cluster

import (
	"context"
	"maps"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func published(doc hcn.HostComputeLoadBalancer) overlay.Balancer {
	return overlay.Balancer{ID: doc.ID, Network: doc.HostComputeNetwork, Doc: doc}
}

// ClaimBalancer is the engine's.
func (h *Host) ClaimBalancer(ctx context.Context, doc hcn.HostComputeLoadBalancer) (release func(), err error) {
	a := h.member.Agent()
	if a == nil {
		return nil, errNone
	}
	release, err = a.ClaimBalancer(ctx, published(doc))
	return release, asEngineError(err)
}

// PublishBalancers is the engine's.
func (h *Host) PublishBalancers(all []hcn.HostComputeLoadBalancer) {
	next := make([]overlay.Balancer, len(all))
	for i, doc := range all {
		next[i] = published(doc)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.balancers = next
	if a := h.member.Agent(); a != nil {
		a.PublishBalancers(next)
	}
}

// tellBalancers names load balancers of other hosts to the engine. One that is made anew on another host has its ID from then on.
func (h *Host) tellBalancers(changed map[overlay.BalancerKey]*overlay.Balancer) {
	gone := map[hcn.GUID]bool{}
	var set []plan.LoadBalancer
	for k, b := range changed {
		if b == nil && h.spread[k.ID] == k {
			delete(h.spread, k.ID)
			gone[k.ID] = true
		}
	}
	for k, b := range changed {
		on := h.hosts[k.Host]
		if b == nil || on == nil {
			continue
		}
		h.spread[k.ID] = k
		set = append(set, plan.LoadBalancer{Doc: b.Doc, Network: k.Network, Host: on.Name})
	}
	if len(set)+len(gone) > 0 {
		h.engine().ChangeClusterBalancers(set, slices.Collect(maps.Keys(gone)))
	}
}
