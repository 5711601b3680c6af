package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

// CreateClusterNetwork makes a network on all hosts, and waits until it is here.
func (h *Host) CreateClusterNetwork(ctx context.Context, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error) {
	a := h.member.Agent()
	if a == nil {
		return doc, api.Errorf(api.KindConflict, "an overlay network is one of a cluster, and this host is in none").
			Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one; or name the virtual network with --vsid, for a network that is only this host's")
	}
	prepare := func(t overlay.Taken) (overlay.Network, error) {
		var taken []netip.Prefix
		for i := range t.Networks {
			taken = append(taken, t.Networks[i].Prefixes()...)
		}
		for i := range t.Hosts {
			for _, addr := range t.Hosts[i].Addrs {
				taken = append(taken, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
		full, err := h.engine().PrepareClusterNetwork(doc, taken, t.VNI)
		if err != nil {
			return overlay.Network{}, err
		}
		vni := full.AllSubnets()[0].VSID()
		for _, s := range full.AllSubnets() {
			if s.VSID() != vni {
				return overlay.Network{}, api.Errorf(api.KindInvalid, "the subnets of network %q have different VSIDs: a network of the cluster has one", full.Name).Hint("leave them out")
			}
		}
		return overlay.Network{ID: full.ID, Name: full.Name, VNI: vni, Doc: full}, nil
	}
	if h.engine().Rehearsing(ctx) {
		n, err := a.PickNetwork(ctx, prepare)
		if err != nil {
			return doc, asClusterError(err)
		}
		self := a.Self()
		return n.Doc, h.engine().RehearseClusterNetwork(ctx, h.ofHost(&n, &self))
	}
	n, err := a.CreateNetwork(ctx, prepare)
	if err != nil {
		return doc, asClusterError(err)
	}
	return h.awaitNetwork(ctx, n)
}

// awaitNetwork waits until a network of the cluster is on this host. Elsewhere it comes as fast.
func (h *Host) awaitNetwork(ctx context.Context, n overlay.Network) (hcn.HostComputeNetwork, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if doc, err := h.engine().Network(n.ID); err == nil {
			return doc, nil
		}
		h.mu.Lock()
		problem := h.problems[n.ID]
		h.mu.Unlock()
		if problem != nil {
			a := h.member.Agent()
			err := fmt.Errorf("make it on this host: %w", problem)
			if a != nil { // nobody has used it yet
				err = errors.Join(err, a.DeleteNetwork(context.WithoutCancel(ctx), n.ID, false))
			}
			return n.Doc, asClusterError(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return n.Doc, api.Errorf(api.KindUnavailable, "network %q (%s) is in the cluster, and not on this host yet", n.Name, n.ID).Hint("bulkhead cluster status")
		}
	}
}

// DeleteClusterNetwork deletes a network on all hosts.
func (h *Host) DeleteClusterNetwork(ctx context.Context, id hcn.GUID, force bool) error {
	return asClusterError(h.deleteNetwork(ctx, id, force))
}
