package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// DefaultTTL is how long a host is waited for that is not heard of.
const DefaultTTL = 15 * time.Second

// Config of an agent.
type Config struct {
	Client *clientv3.Client
	// Prefix of all keys; DefaultPrefix when empty.
	Prefix string
	// Host is this host, as it is published. Session is chosen by the agent.
	Host Host
	// TTL of the host's lease; DefaultTTL when 0.
	TTL time.Duration
	// Light keeps nothing of other hosts' endpoints, blocks and keys, and tells nothing of them: for simulations with many agents in a process.
	Light bool
	// Why says why etcd does not answer; nil: nobody knows.
	Why func(ctx context.Context, err error) error
	// Probe takes part in checks of the underlay; nil: this host does not. Measured keeps what came of it, and tells how large packets to the
	// other hosts may be; 0: as large as the NIC takes.
	Probe    Prober
	Measured func(found []PathFound) (held int)
	// Answer answers questions of other hosts; nil: this host answers none.
	Answer Answerer
	// Memory is a file that keeps what is known of the cluster for the next agent, Boot the run of the host; "": nothing is kept.
	Memory string
	// known is what was read from there, or what another agent has handed over, after; nil: nothing.
	known *cache
	after *Agent
	// Changed is called, without locks, when Take has something new; it must not block.
	Changed func()
	// Seen is called with the revision of each batch of events as it is taken in; for measurements.
	Seen func(rev int64)
	Log  *slog.Logger
}

// Agent is a host's part of the control plane.
type Agent struct {
	cli  *clientv3.Client
	keys keys
	cfg  Config
	log  *slog.Logger

	mu     sync.Mutex
	cache  *cache
	synced bool
	// recalled: until it is synced, the cache has what the last agent knew.
	recalled bool
	moved    chan struct{} // closed and replaced when the cache has moved on
	checks   chan struct{} // the same, when a check of the underlay has
	self     Host
	rereg    bool             // the host's own record has changed
	lease    clientv3.LeaseID // 0 without one

	want        map[place]wanted
	pub         map[place]published
	todo        map[place]struct{}
	unpublished map[place]string
	own         ownBalancers
	fresh       map[ownBlock]int64       // blocks that this host has leased, with the revision, until the watch has seen it
	waiting     map[hcn.GUID]chan answer // who waits for an answer, by the question
	asked       chan asked
	lost        chan struct{}     // closed when the host's key was taken from us, or changed
	etcd        uint64            // its own ID of it; 0: not known
	term        uint64            // the last term of its members that was heard of
	past        *past             // what is to be brought back to an etcd that was put back to an earlier state; nil: nothing
	void        chan struct{}     // closed and replaced when that is found
	left        map[ownBlock]bool // blocks that others had before, until leftUntil
	brought     bool              // all that was to be is, and the next snapshot shows it
	leftUntil   time.Time
	claimed     int64 // the revision at which this session wrote that key
	gone        int64 // the newest at which it was seen removed, or changed by somebody
	taken       bool  // Take has given something

	session, watching error // why there is none just now

	doubt doubt

	// breaks counts how often the way to etcd broke, looked at which of them it was seen that etcd is what it was.
	breaks, looked atomic.Int64

	wake    chan struct{}
	unsaved chan struct{} // has something while the file lacks what is in the cache
}

// wanted is an endpoint that should be published.
type wanted struct {
	raw   string
	addrs []netip.Addr
}

// published is what etcd has of an endpoint of ours, as far as we know; raw is "" where it has nothing.
type published struct {
	raw   string
	lease clientv3.LeaseID
	rev   int64
}

// New makes an agent. Nothing is written before Run.
func New(cfg Config) *Agent {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Seen == nil {
		cfg.Seen = func(int64) {}
	}
	k := keys{cfg.Prefix}
	known := cfg.known
	if known == nil {
		known = newCache(k, cfg.Host.ID)
	}
	cfg.Host.Schema = Schema
	cfg.Host.Session = string(hcn.NewGUID())
	return &Agent{
		cli: cfg.Client, keys: k, cfg: cfg, log: cfg.Log, cache: known, recalled: cfg.known != nil, unsaved: make(chan struct{}, 1), moved: make(chan struct{}), checks: make(chan struct{}), self: cfg.Host,
		want: map[place]wanted{}, pub: map[place]published{}, todo: map[place]struct{}{}, unpublished: map[place]string{},
		own: newOwnBalancers(), waiting: map[hcn.GUID]chan answer{}, asked: make(chan asked, mostAsked), fresh: map[ownBlock]int64{}, lost: make(chan struct{}), void: make(chan struct{}), session: errStarting, watching: errStarting, wake: make(chan struct{}, 1),
	}
}

var errStarting = errors.New("it is starting")

// The errors that a caller may branch on.
var (
	// ErrSchema: the keys below the prefix are of another version.
	ErrSchema = errors.New("another version of the keys")
	// ErrNoCluster: there are no keys of ours below the prefix.
	ErrNoCluster = errors.New("no cluster")
	// ErrForgotten: an operator removed this host from the cluster.
	ErrForgotten = errors.New("removed from the cluster")
	// ErrTwin: another host that is alive has this one's ID.
	ErrTwin = errors.New("another host has this one's ID")
	// ErrClash: what was asked for is somebody else's.
	ErrClash = errors.New("it is taken")
	// ErrExhausted: nothing is free.
	ErrExhausted = errors.New("nothing is free")
	// ErrNotFound: it is not there.
	ErrNotFound = errors.New("not found")
	// ErrInUse: others need it.
	ErrInUse = errors.New("in use")
	// ErrAway: etcd cannot be asked now.
	ErrAway = errors.New("etcd is away")
)

// opTimeout bounds a single call.
const opTimeout = 5 * time.Second

// Run keeps the lease, publishes and watches until ctx ends. The lease is left as it is: a daemon that is started again in time
// goes on with it, and nobody notices.
func (a *Agent) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { a.again(ctx, "lease", &a.session, a.keep) })
	wg.Go(func() { a.again(ctx, "watch", &a.watching, a.watch) })
	wg.Go(func() { a.countBreaks(ctx) })
	if a.cfg.Memory != "" {
		wg.Go(func() { a.remember(ctx) })
	}
	if a.cfg.Probe != nil {
		wg.Go(func() { a.answerChecks(ctx) })
	}
	if a.cfg.Answer != nil {
		wg.Go(func() { a.answerQuestions(ctx) })
	}
	wg.Wait()
}

// again runs a part until ctx ends, with growing waits while it fails.
func (a *Agent) again(ctx context.Context, what string, state *error, part func(context.Context) error) {
	wait, said := firstWait, ""
	for ctx.Err() == nil {
		begin := time.Now()
		err := part(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > 10*time.Second {
			wait = firstWait
		}
		if err = Explain(err); a.cfg.Why != nil {
			err = a.cfg.Why(ctx, err)
		}
		a.mu.Lock()
		*state = err
		a.mu.Unlock()
		if text := err.Error(); text != said {
			a.log.Warn("the cluster is away", "part", what, "error", err)
			said = text
		}
		if errors.Is(err, ErrSchema) || errors.Is(err, ErrForgotten) {
			wait = lastWait // nothing that a moment changes
		}
		if !sleep(ctx, jitter(wait)) {
			return
		}
		wait = min(wait*2, lastWait)
	}
}

const (
	firstWait = 100 * time.Millisecond
	lastWait  = 4 * time.Second
)

// Publish says what this host has: all of it. The agent sees to the rest.
func (a *Agent) Publish(eps []Endpoint) {
	next := make(map[place]wanted, len(eps))
	for i := range eps {
		e := &eps[i]
		next[place{e.Network, e.ID}] = wanted{raw: encode(e), addrs: e.Addrs}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, w := range next {
		if a.want[at].raw != w.raw {
			a.todo[at] = struct{}{}
		}
	}
	for at := range a.want {
		if _, ok := next[at]; !ok {
			a.todo[at] = struct{}{}
		}
	}
	a.want = next
	a.kick()
}

// SetHost changes what is published of the host itself.
func (a *Agent) SetHost(h Host) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h.ID, h.Schema, h.Session = a.self.ID, Schema, a.self.Session
	if encode(&h) != encode(&a.self) {
		a.self, a.rereg = h, true
		a.kick()
	}
}

func (a *Agent) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// GoesOn tells that the agent knew what another one did as it began: one of this daemon, or, if that is nil, that of the last daemon.
func (a *Agent) GoesOn(after *Agent) bool { return a.cfg.known != nil && a.cfg.after == after }

// handOver gives what an agent knows that has ended to the next one; nil: it knows nothing. Others may still ask the old one.
func (a *Agent) handOver() *cache {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.cache
	if !a.synced && !a.recalled {
		return nil
	}
	c.recalled, c.unsaved = true, true
	a.cache, a.synced, a.recalled = newCache(a.keys, a.self.ID), false, false
	return c
}

// Status is how it is with the cluster, seen from here.
type Status struct {
	Cluster  hcn.GUID
	Revision int64
	// Connected: the lease is held and the watch is up to date. Problem says what is wrong where it is not.
	Connected bool
	Problem   string
	Hosts     []HostStatus
	Networks  []NetworkStatus
	// Balancers are the load balancers that count, of all hosts.
	Balancers []Balancer
	// Problems are keys that do not count, and endpoints of this host that are not published, with the reason; Left how many
	// more there are.
	Problems map[string]string
	Left     int
}

// HostStatus is a host with what it has.
type HostStatus struct {
	Host
	Endpoints, Blocks int
	// Alive hosts hold a lease. One that is not has blocks, and is known by its ID and name only.
	Alive bool
}

// NetworkStatus is a network with what is on it.
type NetworkStatus struct {
	Network
	Endpoints, Blocks int
	Problem           string
}

// Status is a report for people.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.cache
	s := Status{Revision: c.rev, Problems: maps.Clone(c.problems), Left: len(c.unnamed)}
	s.Connected = a.session == nil && a.watching == nil && a.synced
	if a.session != nil {
		s.Problem = a.session.Error()
	} else if a.watching != nil {
		s.Problem = a.watching.Error()
	}
	if c.schema != nil {
		s.Cluster = c.schema.v.Cluster
	}
	eps, blocks := map[hcn.GUID]int{}, map[hcn.GUID]int{}
	for at, of := range c.byHost {
		eps[at.host] += len(of)
	}
	dead := map[hcn.GUID]string{} // their names
	for _, of := range c.blocks {
		for _, it := range of {
			blocks[it.v.Host]++
			if c.hosts[it.v.Host] == nil {
				dead[it.v.Host] = max(dead[it.v.Host], it.v.Name)
			}
		}
	}
	for _, it := range c.sortedHosts() {
		s.Hosts = append(s.Hosts, HostStatus{Host: it.v, Endpoints: eps[it.v.ID], Blocks: blocks[it.v.ID], Alive: true})
	}
	for _, id := range slices.Sorted(maps.Keys(dead)) {
		s.Hosts = append(s.Hosts, HostStatus{Host: Host{ID: id, Name: dead[id]}, Blocks: blocks[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(c.networks)) {
		it := c.networks[id]
		n := NetworkStatus{Network: it.v, Endpoints: len(c.endpoints[id]), Blocks: len(c.blocks[id])}
		if _, err := c.network(id); err != nil {
			n.Problem = err.Error()
		}
		s.Networks = append(s.Networks, n)
	}
	for at, why := range a.unpublished {
		s.Problems[a.keys.endpoint(at.network, a.self.ID, at.id)] = why
	}
	for at, why := range a.own.refused {
		s.Problems[a.keys.balancer(at.network, a.self.ID, at.id)] = why
	}
	a.hiddenProblems(s.Problems)
	s.Balancers = c.sortedBalancers()
	return s
}

// hiddenProblems names endpoints that are there and do not count.
func (a *Agent) hiddenProblems(to map[string]string) {
	for net, of := range a.cache.endpoints {
		for id, list := range of {
			for _, it := range list {
				if len(to) >= maxProblems {
					return
				}
				if err := a.cache.counts(it); err != nil {
					to[a.keys.endpoint(net, it.v.Host, id)] = err.Error()
				}
			}
		}
	}
	for k, it := range a.cache.balancers.all {
		if len(to) >= maxProblems {
			return
		}
		if err := a.cache.balancerCounts(it); err != nil {
			to[a.keys.balancer(k.Network, k.Host, k.ID)] = err.Error()
		}
	}
}

// Hosts of the cluster that are alive, this one too.
func (a *Agent) Hosts() (out []Host) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, it := range a.cache.sortedHosts() {
		out = append(out, it.v)
	}
	return out
}

// hostName is a host's name for people. Locked: a.mu.
func (a *Agent) hostName(id hcn.GUID) string {
	if it := a.cache.hosts[id]; it != nil {
		return fmt.Sprintf("%q (%s)", it.v.Name, id)
	}
	if name := a.cache.nameByBlocks(id); name != "" {
		return fmt.Sprintf("%q (%s), which is not there now", name, id)
	}
	return fmt.Sprintf("%s, which is not there now", id)
}

// waitFor waits until the watch has seen a revision.
func (a *Agent) waitFor(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	for {
		a.mu.Lock()
		there, moved := a.synced && a.cache.rev >= rev, a.moved
		a.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("see what was written: %w", ctx.Err())
		}
	}
}

// Self is this host as it is published.
func (a *Agent) Self() Host {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.self
}

// Blocks of this host, by network.
func (a *Agent) Blocks() map[hcn.GUID][]netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.blocks()
}

// ownBlock is a block of this host.
type ownBlock struct {
	network hcn.GUID
	prefix  netip.Prefix
}

// blocks are those that etcd shows, and those that were leased since. Locked: a.mu.
func (a *Agent) blocks() map[hcn.GUID][]netip.Prefix {
	out := a.cache.ownBlocks()
	for b, rev := range a.fresh {
		if rev <= a.cache.rev {
			delete(a.fresh, b)
		} else if !slices.Contains(out[b.network], b.prefix) {
			out[b.network] = append(out[b.network], b.prefix)
			slices.SortFunc(out[b.network], plan.ComparePrefixes)
		}
	}
	return out
}
