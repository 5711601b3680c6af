package dns

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Config is what a Resolver needs of the world around it.
type Config struct {
	// ListenUDP and ListenTCP open a socket at an address in a compartment, given
	// by its path, bound to a device there.
	ListenUDP func(ctx context.Context, namespace, device string, addr netip.AddrPort) (net.PacketConn, error)
	ListenTCP func(ctx context.Context, namespace, device string, addr netip.AddrPort) (net.Listener, error)
	// HostResolvers names the host's name servers, as they are now. It is called
	// with every forwarded question and has to be quick.
	HostResolvers func() []netip.AddrPort

	// DeviceIndex is optional. With it, Sync notices sockets that are bound to a
	// device which was deleted and made anew: nothing else tells.
	DeviceIndex func(ctx context.Context, namespace, device string) (int, error)
	// Wake is optional, called when a socket breaks: Sync opens it again.
	Wake func()
	// ForwardSingleLabel sends unknown names of one label to the upstreams.
	ForwardSingleLabel bool
	Limits             Limits
	// Log gets every question at debug level.
	Log *slog.Logger
}

// Resolver is the applier of names: it runs a resolver for every network of the
// plan that wants one.
type Resolver struct {
	cfg    Config
	limits Limits
	index  *index
	turn   atomic.Uint32 // rotates answers

	// applying serialises Sync, Update and Close.
	applying sync.Mutex
	synced   bool

	mu      sync.RWMutex
	servers map[hcn.GUID]*server
	// remotes are those that the index has stand-ins for; under applying.
	remotes map[hcn.GUID]remote
	// own addresses: forwarding there would go in circles.
	own map[netip.Addr]int
}

// New makes a Resolver that serves nothing yet. Close ends it.
func New(cfg Config) *Resolver {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Resolver{
		cfg: cfg, limits: cfg.Limits.withDefaults(), index: newIndex(),
		servers: map[hcn.GUID]*server{}, remotes: map[hcn.GUID]remote{}, own: map[netip.Addr]int{},
	}
}

// Sync makes names and sockets be those of the plan, and opens again what broke.
func (r *Resolver) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	r.applying.Lock()
	defer r.applying.Unlock()
	return r.sync(ctx, p)
}

func (r *Resolver) sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	r.synced = true
	errs := r.syncNames(p)
	var drift []plan.Drift
	for id := range r.servers {
		if p.Switches[id] == nil {
			r.setServer(id, nil)
		}
	}
	for _, sw := range slices.SortedFunc(maps.Values(p.Switches), byNumber) {
		d, err := r.applySwitch(ctx, sw, true)
		drift = append(drift, d...)
		errs = append(errs, err)
	}
	return drift, errors.Join(errs...)
}

func byNumber(a, b *plan.Switch) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Network, b.Network))
}

// syncNames compares the index with the plan. Ports are replaced when they
// change, so comparing pointers is enough.
func (r *Resolver) syncNames(p *plan.Plan) (errs []error) {
	for _, old := range r.index.all() {
		if p.Ports[old.ID] != old && !isRemote(old) {
			errs = append(errs, r.setPort(old, nil))
		}
	}
	for _, id := range r.index.networks() {
		r.index.setSwitch(id, p.Switches[id])
	}
	for id, sw := range p.Switches {
		r.index.setSwitch(id, sw)
	}
	for _, port := range p.Ports {
		if !r.index.has(port) {
			errs = append(errs, r.setPort(nil, port))
		}
	}
	for id, gone := range r.remotes {
		if p.Remotes[id] != gone.fact {
			errs = append(errs, r.setRemote(id, nil))
		}
	}
	for id, remote := range p.Remotes {
		if r.remotes[id].fact != remote {
			errs = append(errs, r.setRemote(id, remote))
		}
	}
	return errs
}

// Update applies what differs between two plans.
func (r *Resolver) Update(ctx context.Context, p *plan.Plan, d *plan.Delta) error {
	r.applying.Lock()
	defer r.applying.Unlock()
	if !r.synced {
		_, err := r.sync(ctx, p)
		return err
	}
	var errs []error
	for _, c := range d.Ports {
		errs = append(errs, r.setPort(c.Old, c.New))
	}
	for id, c := range d.Remotes {
		errs = append(errs, r.setRemote(id, c.New))
	}
	for id, c := range d.Switches {
		r.index.setSwitch(id, c.New)
		if c.New == nil {
			r.setServer(id, nil)
			continue
		}
		_, err := r.applySwitch(ctx, c.New, false)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *Resolver) setPort(old, port *plan.Port) error {
	if err := r.index.setPort(old, port); err != nil {
		return &plan.ObjectError{Kind: "port", ID: string(port.ID), Err: err}
	}
	return nil
}

// applySwitch starts, changes or stops the server of a network.
func (r *Resolver) applySwitch(ctx context.Context, sw *plan.Switch, check bool) ([]plan.Drift, error) {
	s := r.servers[sw.Network]
	if len(sw.DNS.Listen) == 0 {
		if s != nil {
			r.setServer(sw.Network, nil)
		}
		return nil, nil
	}
	if s == nil {
		s = r.newServer(sw.Network)
		r.setServer(sw.Network, s)
	}
	r.ownAddrs(s, sw.DNS.Listen)
	drift, err := s.apply(ctx, sw.DNS, check)
	if err != nil {
		return drift, &plan.ObjectError{Kind: "network", ID: string(sw.Network), Err: err}
	}
	return drift, nil
}

// setServer puts a server in place, or with nil stops the one that is there.
func (r *Resolver) setServer(id hcn.GUID, s *server) {
	r.mu.Lock()
	old := r.servers[id]
	if s != nil {
		r.servers[id] = s
	} else {
		delete(r.servers, id)
	}
	r.mu.Unlock()
	if old != nil {
		r.ownAddrs(old, nil)
		old.stop()
	}
}

// ownAddrs replaces the addresses that a server counts among our own.
func (r *Resolver) ownAddrs(s *server, addrs []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range addrs {
		r.own[a]++
	}
	for _, a := range s.listens {
		if r.own[a]--; r.own[a] == 0 {
			delete(r.own, a)
		}
	}
	s.listens = addrs
}

// Close stops all servers and waits for them.
func (r *Resolver) Close() {
	r.applying.Lock()
	defer r.applying.Unlock()
	for id := range r.servers {
		r.setServer(id, nil)
	}
}

// Stats tells how the resolver of a network does; false if it has none.
func (r *Resolver) Stats(network hcn.GUID) (Stats, bool) {
	r.mu.RLock()
	s := r.servers[network]
	r.mu.RUnlock()
	if s == nil {
		return Stats{}, false
	}
	return s.stats(), true
}

// forwarder of a network, nil if it has none.
func (r *Resolver) forwarder(network hcn.GUID) *forwarder {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s := r.servers[network]; s != nil {
		return s.fwd
	}
	return nil
}

// upstreams of a network: its own servers, else the host's, never ourselves.
func (r *Resolver) upstreams(network hcn.GUID) []netip.AddrPort {
	ups, closed := r.index.upstreams(network)
	if len(ups) == 0 && !closed && r.cfg.HostResolvers != nil {
		ups = r.cfg.HostResolvers()
	}
	return r.notOurs(ups)
}

// notOurs leaves our own resolvers out: forwarding there would go in circles.
func (r *Resolver) notOurs(ups []netip.AddrPort) []netip.AddrPort {
	r.mu.RLock()
	defer r.mu.RUnlock()
	isOwn := func(u netip.AddrPort) bool { return u.Port() == port && r.own[u.Addr().Unmap().WithZone("")] > 0 }
	if !slices.ContainsFunc(ups, isOwn) {
		return ups
	}
	return slices.DeleteFunc(slices.Clone(ups), isOwn)
}
