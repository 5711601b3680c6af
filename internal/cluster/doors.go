package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// request is how this host describes itself.
func (h *Host) request(ctx context.Context, s api.ClusterHostSpec) (overlay.Request, error) {
	r := overlay.Request{Name: s.Name, Port: s.Port}
	if r.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return r, fmt.Errorf("find out this host's name: %w", err)
		}
		r.Name = name
	}
	f, err := h.facts(ctx)
	if err != nil {
		return r, fmt.Errorf("look at the host: %w", err)
	}
	for _, text := range s.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return r, api.Errorf(api.KindInvalid, "address %.60q: %w", text, err).Hint("write it like 192.0.2.1 or 2001:db8::1")
		}
		if !slices.ContainsFunc(f.HostAddrs, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() }) {
			return r, api.Errorf(api.KindInvalid, "%s is no address of this host", a).Hint("ip address")
		}
		r.Addrs = append(r.Addrs, a.Unmap())
	}
	if len(r.Addrs) == 0 {
		r.Addrs = addressesOf(&f)
	}
	if len(r.Addrs) == 0 {
		return r, api.Errorf(api.KindConflict, "no NIC of this host has a default route and an address, so it is not clear by which the others reach it").
			Hint("name it with --address; ip address shows those there are")
	}
	return r, nil
}

// addressesOf are the first addresses of each family of the NIC of the default route, or of the only one that has any.
func addressesOf(f *plan.Facts) (out []netip.Addr) {
	nic := f.NIC(f.Uplink)
	if nic == nil {
		for i := range f.NICs {
			switch n := &f.NICs[i]; {
			case len(n.Addrs) == 0 || !n.Up:
			case nic != nil:
				return nil
			default:
				nic = n
			}
		}
	}
	if nic == nil {
		return nil
	}
	for _, v4 := range []bool{true, false} {
		for _, p := range nic.Addrs {
			if p.Addr().Is4() == v4 {
				out = append(out, p.Addr())
				break
			}
		}
	}
	return out
}

// InitCluster begins a cluster.
func (h *Host) InitCluster(ctx context.Context, r api.ClusterInit) (api.ClusterJoined, error) {
	req, err := h.request(ctx, r.ClusterHostSpec)
	if err != nil {
		return api.ClusterJoined{}, err
	}
	return joined(h.member.Init(ctx, req, r.Prefix))
}

func joined(res overlay.Result, err error) (api.ClusterJoined, error) {
	return api.ClusterJoined{Cluster: res.Cluster, Host: res.Host, Founded: res.Founded, Token: res.Token}, asClusterError(err)
}

// asClusterError gives the overlay's errors the kinds of the API.
func asClusterError(err error) error {
	if err == nil {
		return nil
	}
	var a *api.Error
	var h *hcn.Error
	if errors.As(err, &a) || errors.As(err, &h) {
		return err
	}
	kind := api.KindConflict
	switch {
	case errors.Is(err, overlay.ErrNotFound):
		kind = api.KindNotFound
	case errors.Is(err, overlay.ErrAway):
		kind = api.KindUnavailable
	}
	return api.Errorf(kind, "%w", err).Hint("bulkhead cluster status")
}

// JoinCluster gets into a cluster.
func (h *Host) JoinCluster(ctx context.Context, r api.ClusterJoin) (api.ClusterJoined, error) {
	req, err := h.request(ctx, r.ClusterHostSpec)
	if err != nil {
		return api.ClusterJoined{}, err
	}
	if r.Etcd == nil {
		return joined(h.member.Join(ctx, req, r.Token, r.Member))
	}
	return joined(h.member.JoinEtcd(ctx, req, overlay.Etcd{
		Endpoints: r.Etcd.Endpoints, Prefix: r.Etcd.Prefix, CACert: r.Etcd.CACert, Cert: r.Etcd.Cert, Key: r.Etcd.Key,
	}))
}

// LeaveCluster takes the host out, and the cluster's networks off it.
func (h *Host) LeaveCluster(ctx context.Context, force bool) error {
	if users := h.engine().ClusterUsers(); len(users) > 0 && !force {
		return api.Errorf(api.KindConflict, "%d endpoints of this host are on networks of the cluster: %.200s", len(users), strings.Join(users, ", ")).
			Hint("bulkhead rm -f or bulkhead network disconnect their containers; bulkhead cluster leave --force takes the networks from under them")
	}
	if h.engine().Rehearsing(ctx) {
		if err := h.member.MayLeave(ctx, force); err != nil {
			return asClusterError(err)
		}
		return h.engine().RehearseClusterLeave(ctx)
	}
	return asClusterError(h.member.Leave(ctx, force))
}

// ClusterToken makes a token.
func (h *Host) ClusterToken(ctx context.Context, valid time.Duration) (string, error) {
	t, err := h.member.Token(ctx, valid)
	return t, asClusterError(err)
}

// ForgetClusterHost frees the addresses of a host, by its name or ID.
func (h *Host) ForgetClusterHost(ctx context.Context, ref string, force bool) error {
	a := h.member.Agent()
	if a == nil {
		return api.Errorf(api.KindConflict, "this host is in no cluster").Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one")
	}
	found := named(a.Status().Hosts, ref)
	switch len(found) {
	case 0:
		return api.Errorf(api.KindNotFound, "no host of the cluster has the name or ID %.100q", ref).Hint("bulkhead cluster ls")
	case 1:
		return asClusterError(h.member.Forget(ctx, found[0], force))
	}
	return api.Errorf(api.KindConflict, "%d hosts of the cluster are called %.100q", len(found), ref).Hint("use the ID; bulkhead cluster ls shows it")
}
