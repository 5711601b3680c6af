// Package cluster is where the overlay's view of a cluster and the engine's meet. What the others have goes to the engine:
// networks, blocks of addresses, endpoints elsewhere. What this host has goes to the others. And what people ask of a cluster, by the
// API, is asked of whom it concerns.
//
// Neither side knows the other, and both may come and go: a membership ends and another begins while the engine runs.
package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Engine is what is asked and told of this host.
type Engine interface {
	SetClusterNetworks(ctx context.Context, all []engine.ClusterNetwork) map[hcn.GUID]error
	SetClusterBlocks(now func() map[hcn.GUID][]netip.Prefix) error
	ChangeClusterEndpoints(set []plan.Remote, gone []hcn.GUID)
	ChangeClusterBalancers(set []plan.LoadBalancer, gone []hcn.GUID)
	SetClusterKeys(s *plan.Secure)
	ClusterUsers() []string
	Rehearsing(ctx context.Context) bool
	RehearseClusterNetwork(ctx context.Context, c engine.ClusterNetwork) error
	RehearseClusterLeave(ctx context.Context) error
	ExplainFor(ctx context.Context, q engine.ExplainQuestion) (api.Explanation, error)
	Network(id hcn.GUID) (hcn.HostComputeNetwork, error)
	Wake(cause string)
	PrepareClusterNetwork(in hcn.HostComputeNetwork, taken []netip.Prefix, vni uint32) (hcn.HostComputeNetwork, error)
}

// Host is this host's part in a cluster, or in none.
type Host struct {
	member *overlay.Cluster
	engine func() Engine
	facts  func(context.Context) (plan.Facts, error)
	log    *slog.Logger
	wake   chan struct{}
	// rotate is the generation of keys that is asked for, 0: none.
	rotate atomic.Uint32
	// seen is the host as it was looked at last.
	seen atomic.Pointer[seen]

	mu        sync.Mutex
	published []overlay.Endpoint // what the engine has, as it said last
	balancers []overlay.Balancer // the same
	problems  map[hcn.GUID]error // of networks that this host cannot have, or not be rid of

	// Of the goroutine of Run alone.
	from *overlay.Agent // whose facts the engine has
	told map[overlay.EndpointKey]bool
	// spread are load balancers that the engine was told of, with whose they are.
	spread map[hcn.GUID]overlay.BalancerKey
	nets   map[hcn.GUID]*overlay.Network
	hosts  map[hcn.GUID]*overlay.Host
	paths  map[string]int // what the engine knows of the ways to other hosts
	// owed: the engine could not keep this host's blocks.
	owed     bool
	keeper   keeper
	informed bool // it is known what there is
	recalled bool // and that from the last daemon alone, whose agent's place none has taken yet
	// moved are the addresses that the host was seen to have instead of those that the others know.
	moved []netip.Addr
}

// Open reads the host's membership. The engine, which needs the Host itself, is asked for when it is needed first. Secure says how it is
// with the encrypted way to other hosts; whoever changes that calls Changed.
func Open(opt overlay.Options, e func() Engine, facts func(context.Context) (plan.Facts, error), secure func() plan.SecureStatus) (*Host, error) {
	h := &Host{engine: e, facts: facts, log: opt.Log, wake: make(chan struct{}, 1), keeper: keeper{status: secure}}
	opt.Changed, opt.Probe, opt.Answer = h.Changed, h.probe, h.answer
	var err error
	h.forget()
	h.member, err = overlay.Open(opt)
	return h, err
}

// Changed has everything looked at soon.
func (h *Host) Changed() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// retryNetworks is how often networks are tried again that this host could not have.
const retryNetworks = 30 * time.Second

// Run keeps the membership up and feeds the engine, until ctx ends.
func (h *Host) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { h.member.Run(ctx) })
	defer wg.Wait()
	again := time.NewTicker(retryNetworks)
	defer again.Stop()
	keys := time.NewTicker(keysEvery)
	defer keys.Stop()
	if !h.member.Joined() { // networks of a cluster that was left while the engine could not be told
		h.setNetworks(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
			h.take(ctx)
			h.keys()
		case <-keys.C:
			h.keys()
			h.followAddresses(ctx)
		case <-again.C:
			h.retry(ctx)
		}
	}
}

// retry asks the engine again for what it could not do.
func (h *Host) retry(ctx context.Context) {
	h.mu.Lock()
	failing := len(h.problems) > 0
	h.mu.Unlock()
	if failing {
		h.setNetworks(ctx)
	}
	if h.from != nil && (failing || h.owed) { // a network that came only now has no blocks yet
		h.setBlocks(h.from)
	}
}

func (h *Host) setBlocks(a *overlay.Agent) {
	err := h.engine().SetClusterBlocks(a.Blocks)
	if err != nil {
		h.log.Warn("keep this host's blocks of addresses", "error", err)
	}
	h.owed = err != nil
}

func (h *Host) forget() {
	h.owed, h.informed = false, false
	h.spread = map[hcn.GUID]overlay.BalancerKey{}
	h.told, h.nets, h.hosts = map[overlay.EndpointKey]bool{}, map[hcn.GUID]*overlay.Network{}, map[hcn.GUID]*overlay.Host{}
}

// take carries what changed from the cluster to the engine.
func (h *Host) take(ctx context.Context) {
	if paths := h.member.PathMTUs(); !maps.Equal(paths, h.paths) {
		h.paths = paths
		h.engine().Wake("the ways to the cluster's other hosts carry more or less")
	}
	a := h.member.Agent()
	if a == nil && h.member.Joined() { // it could not start again: what it told still holds
		return
	}
	if a != h.from || h.recalled {
		h.leftOrJoined(ctx, a)
	}
	if a == nil {
		return
	}
	if u, ok := a.Take(); ok {
		h.follow(ctx, a, u)
	}
}

// Recall tells the engine what the last daemon knew of other hosts, before the loop compares anything: without it, and while etcd is away,
// what goes to them would be taken for nobody's. Networks and blocks are in the engine's own store. It is called before Run.
func (h *Host) Recall() {
	u, ok := h.member.Recall()
	if !ok {
		return
	}
	h.recalled = true
	h.note(u)
	h.tell(h.member.Addrs(), u)
	h.tellBalancers(u.Balancers)
	h.log.Info("what was known of the cluster is so until etcd has been read", "hosts", len(h.hosts), "endpoints", len(h.told))
}

// follow carries what an agent tells to the engine.
func (h *Host) follow(ctx context.Context, a *overlay.Agent, u overlay.Update) {
	h.note(u)
	if !u.Recalled {
		h.set(ctx, a, u)
	}
	h.tell(a.Self().Addrs, u)
	h.tellBalancers(u.Balancers)
}

// note keeps what is told of networks and hosts.
func (h *Host) note(u overlay.Update) {
	follow(h.nets, u.Networks)
	follow(h.hosts, u.Hosts)
	h.informed = true
}

// set has the engine's networks and blocks follow.
func (h *Host) set(ctx context.Context, a *overlay.Agent, u overlay.Update) {
	if u.First || len(u.Networks) > 0 {
		h.setNetworks(ctx)
	}
	if u.Blocks != nil || len(u.Networks) > 0 {
		h.setBlocks(a)
	}
}

// follow brings a copy up to date; nil is gone.
func follow[T any](have, now map[hcn.GUID]*T) {
	for id, v := range now {
		if have[id] = v; v == nil {
			delete(have, id)
		}
	}
}

// leftOrJoined takes back what another membership told.
func (h *Host) leftOrJoined(ctx context.Context, a *overlay.Agent) {
	had, goesOn := h.from != nil || h.recalled, a != nil && (h.from != nil || h.recalled) && a.GoesOn(h.from)
	if h.recalled = false; goesOn {
		h.from = a
		h.publishAgain(a)
		return
	}
	var gone []hcn.GUID
	for k := range h.told {
		gone = append(gone, k.ID)
	}
	h.engine().ChangeClusterEndpoints(nil, gone)
	if len(h.spread) > 0 {
		h.engine().ChangeClusterBalancers(nil, slices.Collect(maps.Keys(h.spread)))
	}
	h.forget()
	h.from = a
	if a == nil {
		if had {
			h.setNetworks(ctx)
		}
		return
	}
	h.publishAgain(a)
}

// publishAgain tells an agent what the engine has said last.
func (h *Host) publishAgain(a *overlay.Agent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a.Publish(h.published)
	a.PublishBalancers(h.balancers)
}

// Complete adds to what is known of this host what the ways to the others carry. A nil Host knows nothing, as the daemon begins.
func (h *Host) Complete(f *plan.Facts) {
	if h == nil {
		return
	}
	h.seen.Store(&seen{slices.Clone(f.NICs)})
	for nic, size := range h.member.PathMTUs() {
		if n := f.NIC(nic); n != nil {
			n.PathMTU = size
		}
	}
}

func (h *Host) setNetworks(ctx context.Context) {
	var all []engine.ClusterNetwork
	if h.from != nil {
		self := h.from.Self()
		for _, n := range h.nets {
			all = append(all, h.ofHost(n, &self))
		}
	}
	tctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	problems := h.engine().SetClusterNetworks(tctx, all)
	if ctx.Err() != nil { // the daemon ends
		return
	}
	for _, id := range slices.Sorted(maps.Keys(problems)) {
		h.log.Warn("make the cluster's networks on this host", "network", id, "error", problems[id])
	}
	h.mu.Lock()
	h.problems = problems
	h.mu.Unlock()
}

// ofHost is a network of the cluster as this host has it.
func (h *Host) ofHost(n *overlay.Network, self *overlay.Host) engine.ClusterNetwork {
	return engine.ClusterNetwork{Doc: n.Doc, Revision: n.Revision, Provider: self.Addrs[0], Router: plan.MAC(self.RouterMAC), Inner: h.inner(self.ID)}
}

// tell names endpoints on other hosts to the engine. Tunnels end at an address of the family of this host's first, of addrs.
func (h *Host) tell(addrs []netip.Addr, u overlay.Update) {
	v4 := addrs[0].Is4()
	var set []plan.Remote
	var gone []hcn.GUID
	for k, ep := range u.Endpoints {
		var r plan.Remote
		ok := false
		if ep != nil {
			r, ok = h.remote(ep, v4)
		}
		switch {
		case ok:
			h.told[k] = true
			set = append(set, r)
		case h.told[k]:
			delete(h.told, k)
			gone = append(gone, k.ID)
		}
	}
	if len(set)+len(gone) > 0 {
		h.engine().ChangeClusterEndpoints(set, gone)
	}
}

func (h *Host) remote(ep *overlay.Endpoint, v4 bool) (plan.Remote, bool) {
	on := h.hosts[ep.Host]
	if on == nil {
		return plan.Remote{}, false
	}
	provider := on.Addr(v4)
	if !provider.IsValid() {
		return plan.Remote{}, false
	}
	keyless := false
	if n := h.nets[ep.Network]; n != nil && plan.Encrypted(&n.Doc) {
		provider, keyless = h.inner(ep.Host), len(on.Keys) == 0
	}
	return plan.Remote{
		Endpoint: ep.ID, Network: ep.Network, Names: ep.Names, Addrs: ep.Addrs, MAC: plan.MAC(ep.MAC), Provider: provider, Host: on.Name, Keyless: keyless,
	}, true
}

var errNone = errors.New("this host is in no cluster now: see `bulkhead cluster status`")

// LeaseBlock is the engine's.
func (h *Host) LeaseBlock(ctx context.Context, network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet) (netip.Prefix, error) {
	a := h.member.Agent()
	if a == nil {
		return netip.Prefix{}, errNone
	}
	p, err := a.LeaseBlock(ctx, network, subnet, wanted)
	return p, asEngineError(err)
}

// PickBlock is the engine's.
func (h *Host) PickBlock(network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet, beside []netip.Prefix) (netip.Prefix, error) {
	a := h.member.Agent()
	if a == nil {
		return netip.Prefix{}, errNone
	}
	p, err := a.PickBlock(network, subnet, wanted, beside)
	return p, asEngineError(err)
}

// noBlock is an error that the engine knows, with its own words.
type noBlock struct{ error }

func (noBlock) Is(target error) bool { return target == engine.ErrNoBlock }

func (n noBlock) Unwrap() error { return n.error }

func asEngineError(err error) error {
	switch {
	case errors.Is(err, overlay.ErrExhausted):
		return noBlock{err}
	case errors.Is(err, overlay.ErrClash):
		return taken{err}
	}
	return err
}

// taken is, too.
type taken struct{ error }

func (taken) Is(target error) bool { return target == engine.ErrTaken }

func (t taken) Unwrap() error { return t.error }

// ChangeNetwork is the engine's.
func (h *Host) ChangeNetwork(ctx context.Context, network hcn.GUID, change func(*hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error)) (hcn.HostComputeNetwork, int64, error) {
	a := h.member.Agent()
	if a == nil {
		return hcn.HostComputeNetwork{}, 0, errNone
	}
	return a.ChangeNetwork(ctx, network, change)
}

// DeleteNetwork is the engine's.
func (h *Host) DeleteNetwork(ctx context.Context, network hcn.GUID) error {
	return h.deleteNetwork(ctx, network, false)
}

func (h *Host) deleteNetwork(ctx context.Context, network hcn.GUID, force bool) error {
	a := h.member.Agent()
	if a == nil {
		return errNone
	}
	return a.DeleteNetwork(ctx, network, force)
}

// Publish is the engine's.
func (h *Host) Publish(all []plan.Remote) {
	eps := make([]overlay.Endpoint, len(all))
	for i, r := range all {
		name := ""
		if len(r.Names) > 0 {
			name = r.Names[0]
		}
		eps[i] = overlay.Endpoint{ID: r.Endpoint, Network: r.Network, Name: name, Names: r.Names[:min(len(r.Names), overlay.MaxNames)], MAC: overlay.MAC(r.MAC), Addrs: r.Addrs}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.published = eps
	if a := h.member.Agent(); a != nil {
		a.Publish(eps)
	}
}

// texts are addresses as text.
func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// named gives the hosts that a name, an ID or the beginning of one names.
func named(hosts []overlay.HostStatus, ref string) (found []hcn.GUID) {
	id, err := hcn.ParseGUID(strings.TrimPrefix(ref, "bulkhead-")) // as its member of etcd is called
	if err != nil {
		id = ""
	}
	for _, o := range hosts {
		if o.ID == id || o.Name == ref || (len(ref) >= 8 && strings.HasPrefix(string(o.ID), strings.ToUpper(ref))) {
			found = append(found, o.ID)
		}
	}
	if len(found) == 0 && id != "" { // it may have nothing but a member of etcd
		found = append(found, id)
	}
	return found
}
