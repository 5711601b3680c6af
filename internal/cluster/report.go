package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Cluster is the report.
func (h *Host) Cluster(ctx context.Context) api.Cluster {
	m := h.member.Status(ctx)
	if !m.Joined {
		return api.Cluster{}
	}
	out := api.Cluster{
		Joined: true, ID: m.Cluster, Host: m.Host, Name: m.Name, Since: m.Since, Connected: m.Status.Connected, Problem: m.Status.Problem, Revision: m.Status.Revision,
		Prefix: m.Etcd.Prefix, OwnEtcd: m.Own, Expires: m.Expires, Addresses: texts(m.Addrs),
	}
	for _, e := range m.Members {
		problem := e.Problem
		if e.Learner && problem == "" {
			problem = "it has no vote yet"
		}
		out.Etcd = append(out.Etcd, api.ClusterMember{Name: e.Name, Address: e.Address, Version: e.Version, Leader: e.Leader, Bytes: e.Size, Problem: problem})
	}
	secure := h.keeper.status()
	if len(secure.Devices) > 0 {
		out.Encryption = "user-space"
		if secure.Kernel {
			out.Encryption = "kernel"
		}
	}
	for _, o := range m.Status.Hosts {
		out.Hosts = append(out.Hosts, api.ClusterHost{
			Encrypted: encrypted(&secure, o.ID),
			ID:        o.ID, Name: o.Name, Addresses: texts(o.Addrs), Version: o.Version, Alive: o.Alive, Member: o.Join != 0, Self: o.ID == m.Host, Endpoints: o.Endpoints, Blocks: o.Blocks, Keys: generations(o.Keys),
		})
	}
	for _, n := range m.Status.Networks {
		w := api.ClusterNetwork{ID: n.ID, Name: n.Name, VNI: n.VNI, Endpoints: n.Endpoints, Blocks: n.Blocks, Encrypted: plan.Encrypted(&n.Doc), Problem: n.Problem}
		for _, p := range n.Prefixes() {
			w.Subnets = append(w.Subnets, p.String())
		}
		out.Networks = append(out.Networks, w)
	}
	for i := range m.Status.Balancers {
		b := &m.Status.Balancers[i]
		w := api.ClusterBalancer{ID: b.ID, Name: b.Doc.Name, Network: b.Network, Host: b.Host, Endpoints: len(b.Doc.HostComputeEndpoints)}
		for _, a := range b.Doc.VIPs() {
			for _, p := range b.Doc.PortMappings {
				w.Services = append(w.Services, netip.AddrPortFrom(a, p.External()).String()+"/"+strings.ToLower(p.Protocol.String()))
			}
		}
		out.LoadBalancers = append(out.LoadBalancers, w)
	}
	for key, why := range m.Status.Problems {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: key, Reason: why})
	}
	if m.Status.Left > 0 {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: fmt.Sprintf("%d more keys", m.Status.Left), Reason: "they are no keys of ours, or damaged"})
	}
	if two := votes(m.Members); m.Own && two == 2 {
		out.Problems = append(out.Problems, api.ClusterProblem{
			Object: "members of etcd", Reason: "there are two, and etcd is away as soon as one of them is: have a third host join with --member, or one of the two leave and join without",
		})
	}
	if m.Untold != "" {
		out.Problems = append(out.Problems, api.ClusterProblem{
			Object: "member of etcd on this host", Reason: "the other members know it by an address that this host has no more; they are told again until most of them answer: " + m.Untold,
		})
	}
	if m.Renewal != "" {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: "certificate of this host for etcd", Reason: "it could not be renewed, and is tried again: " + m.Renewal})
	}
	if m.MemberErr != "" {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: "members of etcd", Reason: m.MemberErr})
	}
	h.mu.Lock()
	for id, why := range h.problems {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: "network " + string(id) + " on this host", Reason: why.Error()})
	}
	h.mu.Unlock()
	slices.SortFunc(out.Problems, func(a, b api.ClusterProblem) int { return strings.Compare(a.Object, b.Object) })
	return out
}

// encrypted is what WireGuard has carried between this host and another; nil: it has no way there.
func encrypted(s *plan.SecureStatus, host hcn.GUID) *api.ClusterEncrypted {
	t, ok := s.Traffic[host]
	if !ok {
		return nil
	}
	return &api.ClusterEncrypted{Handshake: t.Handshake, Received: t.Received, Sent: t.Sent}
}

// votes are the members that count for a majority.
func votes(members []overlay.MemberStatus) (n int) {
	for _, m := range members {
		if !m.Learner {
			n++
		}
	}
	return n
}
