package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// cluster joins the overlay's view of a cluster to the engine's, and both to the API.
type cluster struct {
	member *overlay.Cluster
	engine func() *engine.Engine
	facts  func(context.Context) (plan.Facts, error)
	log    *slog.Logger
	wake   chan struct{}

	mu        sync.Mutex
	published []overlay.Endpoint // what the engine has, as it said last
	problems  networkProblems

	// Of the goroutine of run alone.
	from  *overlay.Agent // whose facts the engine has
	told  map[overlay.EndpointKey]bool
	nets  map[hcn.GUID]*overlay.Network
	hosts map[hcn.GUID]*overlay.Host
}

func newCluster(opt overlay.Options, e func() *engine.Engine, facts func(context.Context) (plan.Facts, error)) (*cluster, error) {
	c := &cluster{engine: e, facts: facts, log: opt.Log, wake: make(chan struct{}, 1)}
	opt.Changed = c.changed
	var err error
	c.member, err = overlay.Open(opt)
	return c, err
}

func (c *cluster) changed() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// retryNetworks is how often networks are tried again that this host could not have.
const retryNetworks = 30 * time.Second

// run keeps the membership up and feeds the engine, until ctx ends.
func (c *cluster) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.member.Run(ctx) })
	defer wg.Wait()
	c.forget()
	again := time.NewTicker(retryNetworks)
	defer again.Stop()
	if !c.member.Joined() { // networks of a cluster that was left while the engine could not be told
		c.setNetworks(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			c.take(ctx)
		case <-again.C:
			c.mu.Lock()
			failing := c.problems.any()
			c.mu.Unlock()
			if failing {
				c.setNetworks(ctx)
			}
		}
	}
}

func (c *cluster) forget() {
	c.told, c.nets, c.hosts = map[overlay.EndpointKey]bool{}, map[hcn.GUID]*overlay.Network{}, map[hcn.GUID]*overlay.Host{}
}

// take carries what changed from the cluster to the engine.
func (c *cluster) take(ctx context.Context) {
	a := c.member.Agent()
	if a != c.from {
		c.leftOrJoined(ctx, a)
	}
	if a == nil {
		return
	}
	u, ok := a.Take()
	if !ok {
		return
	}
	for id, n := range u.Networks {
		if c.nets[id] = n; n == nil {
			delete(c.nets, id)
		}
	}
	for id, h := range u.Hosts {
		if c.hosts[id] = h; h == nil {
			delete(c.hosts, id)
		}
	}
	if len(u.Networks) > 0 || u.Blocks == nil && len(c.nets) == 0 {
		c.setNetworks(ctx)
	}
	if u.Blocks != nil || len(u.Networks) > 0 {
		if err := c.engine().SetClusterBlocks(a.Blocks()); err != nil {
			c.log.Warn("keep this host's blocks of addresses", "error", err)
		}
	}
	c.endpoints(a, u)
}

// leftOrJoined takes back what another membership told.
func (c *cluster) leftOrJoined(ctx context.Context, a *overlay.Agent) {
	var gone []hcn.GUID
	for k := range c.told {
		gone = append(gone, k.ID)
	}
	c.engine().ChangeClusterEndpoints(nil, gone)
	had := c.from != nil
	c.forget()
	c.from = a
	if a == nil {
		if had {
			c.setNetworks(ctx)
		}
		return
	}
	c.mu.Lock()
	a.Publish(c.published)
	c.mu.Unlock()
}

func (c *cluster) setNetworks(ctx context.Context) {
	var all []engine.ClusterNetwork
	self := overlay.Host{}
	if c.from != nil {
		self = c.from.Self()
	}
	for _, n := range c.nets {
		all = append(all, engine.ClusterNetwork{Doc: n.Doc, Provider: self.Addrs[0], Router: plan.MAC(self.RouterMAC)})
	}
	tctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := c.engine().SetClusterNetworks(tctx, all)
	if ctx.Err() != nil { // the daemon ends
		return
	}
	if err != nil {
		c.log.Warn("make the cluster's networks on this host", "error", err)
	}
	c.mu.Lock()
	c.problems = problemsOf(err, c.nets)
	c.mu.Unlock()
}

// networkProblems are what is wrong with networks that this host cannot have, or not be rid of.
type networkProblems struct {
	of   map[hcn.GUID]string
	rest []string // of networks that the cluster has no more
}

func (p *networkProblems) any() bool { return len(p.of)+len(p.rest) > 0 }

// problemsOf takes the engine's error apart: each of those that it joins begins with what it is about.
func problemsOf(err error, nets map[hcn.GUID]*overlay.Network) networkProblems {
	p := networkProblems{of: map[hcn.GUID]string{}}
	if err == nil {
		return p
	}
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only the outermost is the list
		all = joined.Unwrap()
	}
next:
	for _, err := range all {
		for id, n := range nets {
			if strings.HasPrefix(err.Error(), fmt.Sprintf("network %q of the cluster: ", n.Name)) {
				p.of[id] = err.Error()
				continue next
			}
		}
		p.rest = append(p.rest, err.Error())
	}
	return p
}

// endpoints tells the engine of endpoints elsewhere. Tunnels end at an address of the family of this host's first.
func (c *cluster) endpoints(a *overlay.Agent, u overlay.Update) {
	v4 := a.Self().Addrs[0].Is4()
	var set []plan.Remote
	var gone []hcn.GUID
	for k, ep := range u.Endpoints {
		var r plan.Remote
		ok := false
		if ep != nil {
			r, ok = c.remote(ep, v4)
		}
		switch {
		case ok:
			c.told[k] = true
			set = append(set, r)
		case c.told[k]:
			delete(c.told, k)
			gone = append(gone, k.ID)
		}
	}
	if len(set)+len(gone) > 0 {
		c.engine().ChangeClusterEndpoints(set, gone)
	}
}

func (c *cluster) remote(ep *overlay.Endpoint, v4 bool) (plan.Remote, bool) {
	h := c.hosts[ep.Host]
	if h == nil {
		return plan.Remote{}, false
	}
	provider := h.Addr(v4)
	if !provider.IsValid() {
		return plan.Remote{}, false
	}
	return plan.Remote{
		Endpoint: ep.ID, Network: ep.Network, Names: ep.Names, Addrs: ep.Addrs, MAC: plan.MAC(ep.MAC), Provider: provider, Host: h.Name,
	}, true
}

// LeaseBlock is the engine's.
func (c *cluster) LeaseBlock(ctx context.Context, network hcn.GUID, subnet netip.Prefix, around netip.Addr) (netip.Prefix, error) {
	a := c.member.Agent()
	if a == nil {
		return netip.Prefix{}, errors.New("this host is in no cluster now: see `bulkhead cluster status`")
	}
	return a.LeaseBlock(ctx, network, subnet, around)
}

// DeleteNetwork is the engine's.
func (c *cluster) DeleteNetwork(ctx context.Context, network hcn.GUID) error {
	return c.deleteNetwork(ctx, network, false)
}

func (c *cluster) deleteNetwork(ctx context.Context, network hcn.GUID, force bool) error {
	a := c.member.Agent()
	if a == nil {
		return errors.New("this host is in no cluster now: see `bulkhead cluster status`")
	}
	return a.DeleteNetwork(ctx, network, force)
}

// Publish is the engine's.
func (c *cluster) Publish(all []plan.Remote) {
	eps := make([]overlay.Endpoint, len(all))
	for i, r := range all {
		name := ""
		if len(r.Names) > 0 {
			name = r.Names[0]
		}
		eps[i] = overlay.Endpoint{ID: r.Endpoint, Network: r.Network, Name: name, Names: r.Names[:min(len(r.Names), overlay.MaxNames)], MAC: overlay.MAC(r.MAC), Addrs: r.Addrs}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.published = eps
	if a := c.member.Agent(); a != nil {
		a.Publish(eps)
	}
}

// request is how this host describes itself.
func (c *cluster) request(ctx context.Context, s api.ClusterHostSpec) (overlay.Request, error) {
	r := overlay.Request{Name: s.Name, Port: s.Port}
	if r.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return r, fmt.Errorf("find out this host's name: %w", err)
		}
		r.Name = name
	}
	f, err := c.facts(ctx)
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
func (c *cluster) InitCluster(ctx context.Context, r api.ClusterInit) (api.ClusterJoined, error) {
	req, err := c.request(ctx, r.ClusterHostSpec)
	if err != nil {
		return api.ClusterJoined{}, err
	}
	return joined(c.member.Init(ctx, req, r.Prefix))
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
func (c *cluster) JoinCluster(ctx context.Context, r api.ClusterJoin) (api.ClusterJoined, error) {
	req, err := c.request(ctx, r.ClusterHostSpec)
	if err != nil {
		return api.ClusterJoined{}, err
	}
	if r.Etcd == nil {
		return joined(c.member.Join(ctx, req, r.Token, r.Member))
	}
	return joined(c.member.JoinEtcd(ctx, req, overlay.Etcd{
		Endpoints: r.Etcd.Endpoints, Prefix: r.Etcd.Prefix, CACert: r.Etcd.CACert, Cert: r.Etcd.Cert, Key: r.Etcd.Key,
	}))
}

// LeaveCluster takes the host out, and the cluster's networks off it.
func (c *cluster) LeaveCluster(ctx context.Context, force bool) error {
	if users := c.engine().ClusterUsers(); len(users) > 0 && !force {
		return api.Errorf(api.KindConflict, "%d endpoints of this host are on networks of the cluster: %.200s", len(users), strings.Join(users, ", ")).
			Hint("bulkhead rm -f or bulkhead network disconnect their containers; bulkhead cluster leave --force takes the networks from under them")
	}
	return asClusterError(c.member.Leave(ctx, force))
}

// ClusterToken makes a token.
func (c *cluster) ClusterToken(ctx context.Context, valid time.Duration) (string, error) {
	t, err := c.member.Token(ctx, valid)
	return t, asClusterError(err)
}

// ForgetClusterHost frees the addresses of a host, by its name or ID.
func (c *cluster) ForgetClusterHost(ctx context.Context, ref string, force bool) error {
	a := c.member.Agent()
	if a == nil {
		return api.Errorf(api.KindConflict, "this host is in no cluster").Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one")
	}
	id, err := hcn.ParseGUID(ref)
	if err != nil {
		id = ""
	}
	var found []hcn.GUID
	for _, h := range a.Status().Hosts {
		if h.ID == id || h.Name == ref || (len(ref) >= 8 && strings.HasPrefix(string(h.ID), strings.ToUpper(ref))) {
			found = append(found, h.ID)
		}
	}
	if len(found) == 0 && id != "" { // it may have nothing but a member of etcd
		found = append(found, id)
	}
	switch len(found) {
	case 0:
		return api.Errorf(api.KindNotFound, "no host of the cluster has the name or ID %.100q", ref).Hint("bulkhead cluster ls")
	case 1:
		return asClusterError(c.member.Forget(ctx, found[0], force))
	}
	return api.Errorf(api.KindConflict, "%d hosts of the cluster are called %.100q", len(found), ref).Hint("use the ID; bulkhead cluster ls shows it")
}

// CreateClusterNetwork makes a network on all hosts, and waits until it is here.
func (c *cluster) CreateClusterNetwork(ctx context.Context, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error) {
	a := c.member.Agent()
	if a == nil {
		return doc, api.Errorf(api.KindConflict, "an overlay network is one of a cluster, and this host is in none").
			Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one; or name the virtual network with --vsid, for a network that is only this host's")
	}
	n, err := a.CreateNetwork(ctx, func(t overlay.Taken) (overlay.Network, error) {
		var taken []netip.Prefix
		for i := range t.Networks {
			taken = append(taken, t.Networks[i].Prefixes()...)
		}
		for i := range t.Hosts {
			for _, addr := range t.Hosts[i].Addrs {
				taken = append(taken, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
		full, err := c.engine().PrepareClusterNetwork(doc, taken, t.VNI)
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
	})
	if err != nil {
		return doc, asClusterError(err)
	}
	return c.awaitNetwork(ctx, n)
}

// awaitNetwork waits until a network of the cluster is on this host. Elsewhere it comes as fast.
func (c *cluster) awaitNetwork(ctx context.Context, n overlay.Network) (hcn.HostComputeNetwork, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if doc, err := c.engine().Network(n.ID); err == nil {
			return doc, nil
		}
		c.mu.Lock()
		problem := c.problems.of[n.ID]
		c.mu.Unlock()
		if problem != "" {
			a := c.member.Agent()
			err := fmt.Errorf("make it on this host: %s", problem)
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
func (c *cluster) DeleteClusterNetwork(ctx context.Context, id hcn.GUID, force bool) error {
	return asClusterError(c.deleteNetwork(ctx, id, force))
}

// Cluster is the report.
func (c *cluster) Cluster(ctx context.Context) api.Cluster {
	m := c.member.Status(ctx)
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
	for _, h := range m.Status.Hosts {
		out.Hosts = append(out.Hosts, api.ClusterHost{
			ID: h.ID, Name: h.Name, Addresses: texts(h.Addrs), Version: h.Version, Alive: h.Alive, Member: h.Join != 0, Self: h.ID == m.Host, Endpoints: h.Endpoints, Blocks: h.Blocks,
		})
	}
	for _, n := range m.Status.Networks {
		w := api.ClusterNetwork{ID: n.ID, Name: n.Name, VNI: n.VNI, Endpoints: n.Endpoints, Blocks: n.Blocks, Problem: n.Problem}
		for _, p := range n.Prefixes() {
			w.Subnets = append(w.Subnets, p.String())
		}
		out.Networks = append(out.Networks, w)
	}
	for key, why := range m.Status.Problems {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: key, Reason: why})
	}
	if m.Status.Left > 0 {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: fmt.Sprintf("%d more keys", m.Status.Left), Reason: "they are no keys of ours, or damaged"})
	}
	if m.MemberErr != "" {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: "members of etcd", Reason: m.MemberErr})
	}
	c.mu.Lock()
	for id, why := range c.problems.of {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: "network " + string(id) + " on this host", Reason: why})
	}
	for _, why := range c.problems.rest {
		out.Problems = append(out.Problems, api.ClusterProblem{Object: "networks on this host", Reason: why})
	}
	c.mu.Unlock()
	slices.SortFunc(out.Problems, func(a, b api.ClusterProblem) int { return strings.Compare(a.Object, b.Object) })
	return out
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
