package overlay

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/durable"
)

// The files of a host's membership, in Options.Dir. The first one is written last and removed first: without it, the host is in no
// cluster, and the rest is what an attempt left that was cut.
const (
	fileConfig = "cluster.json"
	fileCA     = "ca.pem"
	fileCAKey  = "ca-key.pem"
	fileCert   = "cert.pem"
	fileKey    = "key.pem"
)

// Options of a Cluster.
type Options struct {
	// Dir keeps what must outlive a restart of the host, RunDir the pid file of etcd and what is known of other hosts.
	Dir, RunDir string
	// Version of the program, Boot the run of the host.
	Version, Boot string
	// TTL of the lease; DefaultTTL when 0.
	TTL time.Duration
	// Probe takes part in checks of the underlay; nil: this host does not.
	Probe Prober
	// Answer answers questions of other hosts; nil: this one answers none.
	Answer Answerer
	// Changed is called when Take of the agent has something, and when the host joined or left, or PathMTUs changed.
	Changed func()
	Log     *slog.Logger
}

// Cluster is this host's membership: none, or one in a cluster of our own etcd or of somebody else's.
type Cluster struct {
	opt Options
	log *slog.Logger

	change sync.Mutex    // held while it joins or leaves
	again  chan struct{} // asks Run to start the parts again

	mu   sync.Mutex
	cfg  *config // nil: in no cluster
	run  *running
	base context.Context // of Run; nil before
	// trouble is why the parts of the membership do not run.
	trouble error
	agent   *Agent
	// known is what the last daemon knew, or the agent after, until the next agent has it.
	known *cache
	after *Agent
}

// config is what is kept of a membership.
type config struct {
	Version int          `json:"version"`
	Cluster hcn.GUID     `json:"cluster"`
	Host    hcn.GUID     `json:"host"`
	Name    string       `json:"name"`
	Addrs   []netip.Addr `json:"addrs"`
	Etcd    Etcd         `json:"etcd"`
	Own     bool         `json:"own"` // the etcd is one that Bulkhead runs
	Since   time.Time    `json:"since"`
	// Member is set on hosts that run a member of it.
	Member *memberConfig `json:"member,omitempty"`
	// NIC had the first of Addrs when that was looked for last; "" if never.
	NIC string `json:"nic,omitempty"`
	// RouterMAC is the host's on all overlay networks.
	RouterMAC MAC `json:"routerMac"`
	// Paths are the ways to other hosts that carry less than the NIC.
	Paths map[hcn.GUID]pathMTU `json:"paths,omitempty"`
}

const configVersion = 1

// lostMember tells that the host has a member of etcd at an address that is no more its own: nobody reaches it there until it has moved
// (relocate.go).
func (c *config) lostMember() bool {
	return c.Member != nil && len(c.Member.Addrs) > 0 && !slices.Contains(c.Addrs, c.Member.Addrs[0])
}

// running are the parts of a membership that run.
type running struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	cli    *clientv3.Client
	agent  *Agent
	member *member
	// renewal is why the host's certificate could not be renewed, of late; untold why the other members of etcd do not know where this
	// host's is. Guarded by the Cluster's mu.
	renewal, untold error
}

// Open reads what is kept. What an attempt left that was cut short is removed.
func Open(opt Options) (*Cluster, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Changed == nil {
		opt.Changed = func() {}
	}
	c := &Cluster{opt: opt, log: opt.Log, again: make(chan struct{}, 1)}
	b, err := os.ReadFile(c.file(fileConfig))
	if errors.Is(err, os.ErrNotExist) {
		c.forgetMemory()
		if _, err := os.Stat(opt.Dir); err == nil {
			EndMember(opt.Dir, opt.RunDir)
			if err := os.RemoveAll(opt.Dir); err != nil {
				return nil, fmt.Errorf("remove what an attempt to join has left: %w", err)
			}
		}
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's membership: %w", err)
	}
	var cfg config
	if err := json.Unmarshal(b, &cfg); err != nil {
		return nil, fmt.Errorf("read %s: %w: restore it, or move it away to start without a cluster", c.file(fileConfig), err)
	}
	if cfg.Version != configVersion {
		return nil, fmt.Errorf("%s was written by another version of Bulkhead (%d, this one reads %d): start that version", c.file(fileConfig), cfg.Version, configVersion)
	}
	c.cfg = &cfg
	return c, nil
}

func (c *Cluster) file(name string) string { return filepath.Join(c.opt.Dir, name) }

// Run keeps the membership up until ctx ends. A member of etcd goes on without the daemon.
func (c *Cluster) Run(ctx context.Context) {
	c.mu.Lock()
	c.base = ctx
	cfg := c.cfg
	c.mu.Unlock()
	if cfg != nil {
		c.resume(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			c.change.Lock()
			defer c.change.Unlock()
			c.down()
			return
		case <-c.again:
			c.resume(ctx)
		}
	}
}

// resume starts the parts of the membership that is kept, and tries again until it can: a file or a program may be missing for a while.
func (c *Cluster) resume(ctx context.Context) {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		c.change.Lock()
		c.mu.Lock()
		cfg, runs := c.cfg, c.run != nil
		c.mu.Unlock()
		var err error
		if cfg != nil && !runs { // it may have left meanwhile, and joined anew
			err = c.up(cfg)
		}
		c.mu.Lock()
		c.trouble = err
		c.mu.Unlock()
		c.change.Unlock()
		if err == nil {
			c.opt.Changed() // there is an agent, whether or not it has read anything
			return
		}
		c.log.Error("be in the cluster again", "error", err)
		if !sleep(ctx, jitter(wait)) {
			return
		}
	}
}

// Agent of the membership; nil while there is none.
func (c *Cluster) Agent() *Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agent
}

// Joined tells whether the host is in a cluster, whether or not that can be reached.
func (c *Cluster) Joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg != nil
}

// Addrs are this host's, by which the others know it; none while it is in no cluster.
func (c *Cluster) Addrs() []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil {
		return nil
	}
	return c.cfg.Addrs
}

// NIC is the one that had the first of Addrs when that was looked for last, "" if never.
func (c *Cluster) NIC() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil {
		return ""
	}
	return c.cfg.NIC
}

// SetNIC keeps that.
func (c *Cluster) SetNIC(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil || c.cfg.NIC == name {
		return nil
	}
	next := *c.cfg
	next.NIC = name
	if err := c.save(&next); err != nil {
		return err
	}
	c.cfg = &next
	return nil
}

// Move has the others reach this host at other addresses, for it has lost those that they know. The parts of the membership start again:
// connections from an address that is no more would be waited for until somebody gives them up. Lease and keys stay, and the next agent
// goes on with what this one knows. A member of etcd moves with its host (relocate.go).
func (c *Cluster) Move(addrs []netip.Addr) error {
	if !c.change.TryLock() {
		return errors.New("this host is joining or leaving a cluster just now")
	}
	defer c.change.Unlock()
	c.mu.Lock()
	cfg, a := c.cfg, c.agent
	c.mu.Unlock()
	if cfg == nil {
		return errNotJoined
	}
	next := *cfg
	next.Addrs = addrs
	if err := (&Host{ID: next.Host, Name: next.Name, Addrs: addrs}).check(); err != nil {
		return err
	}
	c.down()
	c.keepKnown(a, a)
	c.mu.Lock()
	next.Etcd, next.Paths = c.cfg.Etcd, c.cfg.Paths // what was found out meanwhile
	if err := c.save(&next); err != nil {
		c.log.Warn("keep the host's new addresses", "error", err) // they are found again
	}
	c.cfg = &next
	c.mu.Unlock()
	c.comeBack()
	c.opt.Changed()
	return nil
}

// up starts the parts of a membership.
func (c *Cluster) up(cfg *config) error {
	c.mu.Lock()
	base := c.base
	c.mu.Unlock()
	if base == nil {
		return errors.New("the daemon is starting: try again in a moment")
	}
	cfg, err := c.relocate(cfg, time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(base)
	r := &running{cancel: cancel}
	err = c.start(ctx, r, cfg)
	if err != nil {
		cancel()
		r.wg.Wait()
		if r.cli != nil {
			r.cli.Close()
		}
		if r.agent != nil {
			c.keepKnown(r.agent, r.agent.cfg.after)
		}
		return err
	}
	c.mu.Lock()
	c.run, c.agent = r, r.agent
	c.mu.Unlock()
	return nil
}

// keepKnown has the next agent go on with what one knew that has ended.
func (c *Cluster) keepKnown(a, after *Agent) {
	if a == nil {
		return
	}
	if known := a.handOver(); known != nil {
		c.mu.Lock()
		c.known, c.after = known, after
		c.mu.Unlock()
	}
}

func (c *Cluster) start(ctx context.Context, r *running, cfg *config) error {
	if cfg.Member != nil {
		m, err := newMember(c.opt.Dir, c.opt.RunDir, cfg.Member, c.log)
		if err != nil {
			return err
		}
		r.member = m
		if err := m.ensure(); err != nil {
			return err
		}
		r.wg.Go(func() { m.run(ctx) })
	}
	cli, err := Dial(cfg.Etcd)
	if err != nil {
		return err
	}
	r.cli = cli
	h := Host{ID: cfg.Host, Name: cfg.Name, Addrs: cfg.Addrs, RouterMAC: cfg.RouterMAC, Version: c.opt.Version, Boot: c.opt.Boot}
	if cfg.Member != nil {
		h.Join = cfg.Member.Port + 2
	}
	if ring, err := c.Keyring(); err == nil { // else the others would take this host for one without keys until it shows them again
		if public, err := ring.Public(); err == nil {
			h.Keys = public
		}
	}
	c.mu.Lock()
	known, after := c.known, c.after
	c.known, c.after = nil, nil
	c.mu.Unlock()
	if known != nil && (known.self != cfg.Host || known.keys.prefix != cfg.Etcd.Prefix) {
		known = nil // of another membership
	}
	r.agent = New(Config{
		Memory: c.memory(), known: known, after: after,
		Client: cli, Prefix: cfg.Etcd.Prefix, Host: h, TTL: c.opt.TTL, Changed: c.opt.Changed, Log: c.log, Probe: c.opt.Probe, Answer: c.opt.Answer,
		Measured: func(found []PathFound) int { return c.measured(r.agent, found) },
		Why:      func(ctx context.Context, err error) error { return lostBy(cfg, because(ctx, cfg.Etcd, err)) },
	})
	r.wg.Go(func() { r.agent.Run(ctx) })
	if cfg.Own {
		r.wg.Go(func() { c.followMembers(ctx, r, cfg) })
		r.wg.Go(func() { c.keepCertificate(ctx, r, cfg) })
	}
	if cfg.Member != nil {
		r.wg.Go(func() { c.tellMembers(ctx, r, cfg.Member) })
		return c.openDoor(ctx, r, cfg)
	}
	return nil
}

// lostBy adds to why etcd cannot be reached what is to be done where it has moved.
func lostBy(cfg *config, err error) error {
	var gone unreachable
	if cfg.Own && cfg.Member == nil && errors.As(err, &gone) {
		return fmt.Errorf("%w; if etcd's members have other addresses now, make a token on one of their hosts (`bulkhead cluster token`) and give it to `bulkhead join` here", err)
	}
	return err
}

// awaitMember waits until the member that was started answers.
func (c *Cluster) awaitMember(ctx context.Context, r *running, cfg *config) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	for {
		tctx, tcancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := r.cli.Status(tctx, cfg.Member.client())
		tcancel()
		if err == nil {
			return nil
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return fmt.Errorf("etcd does not start: %w; its log ends with: %s", Explain(err), r.member.lastWords())
		}
	}
}

// openDoor lets hosts join, by way of a member.
func (c *Cluster) openDoor(ctx context.Context, r *running, cfg *config) error {
	ca, keyPEM, err := c.authority()
	if err != nil {
		return err
	}
	pair := func() (*tls.Certificate, error) { // anew for each connection: it is renewed
		cert, err := tls.LoadX509KeyPair(c.file(fileCert), c.file(fileKey))
		if err != nil {
			return nil, fmt.Errorf("read the host's certificate: %w", err)
		}
		cert.Certificate = append(cert.Certificate, ca.cert.Raw)
		return &cert, nil
	}
	if _, err := pair(); err != nil {
		return err
	}
	d := &door{
		ca: ca, caKey: keyPEM, pair: pair, cli: r.cli, prefix: cfg.Etcd.Prefix, endpoints: r.cli.Endpoints, cluster: cfg.Cluster, version: c.opt.Version, log: c.log,
		asking: make(chan struct{}, 16), adding: make(chan struct{}, 1),
	}
	at := netip.AddrPortFrom(cfg.Addrs[0], cfg.Member.Port+2).String()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	if err != nil && !c.Joined() {
		return fmt.Errorf("listen for hosts that join: %w: choose other ports with --port", err)
	}
	r.wg.Go(func() { c.keepDoor(ctx, d, at, ln, err) })
	return nil
}

// authority reads the CA, with its key in PEM.
func (c *Cluster) authority() (*authority, []byte, error) {
	caPEM, err := os.ReadFile(c.file(fileCA))
	if err != nil {
		return nil, nil, fmt.Errorf("read the CA: %w", err)
	}
	keyPEM, err := os.ReadFile(c.file(fileCAKey))
	if err != nil {
		return nil, nil, fmt.Errorf("read the CA's key: %w", err)
	}
	ca, err := readAuthority(caPEM, keyPEM)
	return ca, keyPEM, err
}

// keepDoor serves at an address that the host may not have at all times.
func (c *Cluster) keepDoor(ctx context.Context, d *door, at string, ln net.Listener, err error) {
	for said := ""; ; {
		if err == nil {
			err, said = d.serve(ctx, ln), ""
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			c.log.Warn("hosts cannot join here", "address", at, "error", err)
			said = text
		}
		if !sleep(ctx, jitter(2*time.Second)) {
			return
		}
		ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	}
}

// membersEvery is how often the list of etcd's members is looked at: hosts must know those that came after them. It is looked at at once
// when a host with a member has come, gone or moved.
const membersEvery = 30 * time.Second

// followMembers keeps the addresses of etcd's members, for this client and the next start.
func (c *Cluster) followMembers(ctx context.Context, r *running, cfg *config) {
	cli, doors := r.cli, ""
	for ok := true; ok; ok = c.awaitDoors(ctx, r.agent, &doors) {
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		res, err := cli.MemberList(tctx)
		cancel()
		if err != nil {
			continue
		}
		var eps []string
		for _, m := range res.Members {
			switch {
			case m.IsLearner || len(m.ClientURLs) == 0:
			case cfg.Member != nil && m.Name == cfg.Member.Name: // the others may not have heard of it
				eps = append(eps, cfg.Member.client())
			default:
				eps = append(eps, m.ClientURLs[0])
			}
		}
		if len(eps) == 0 {
			continue
		}
		slices.Sort(eps)
		if !slices.Equal(eps, slices.Sorted(slices.Values(cli.Endpoints()))) {
			cli.SetEndpoints(eps...)
		}
		c.keepEndpoints(cfg.Cluster, eps)
	}
}

// awaitDoors waits until it is time to look at the members again.
func (c *Cluster) awaitDoors(ctx context.Context, a *Agent, known *string) bool {
	for until := time.Now().Add(jitter(membersEvery)); time.Now().Before(until); {
		if !sleep(ctx, jitter(time.Second)) {
			return false
		}
		var doors strings.Builder
		for _, h := range a.Hosts() {
			if h.Join != 0 {
				fmt.Fprintln(&doors, h.ID, h.Addrs, h.Join)
			}
		}
		if doors.String() != *known {
			*known = doors.String()
			return true
		}
	}
	return true
}

// keepEndpoints writes where etcd is, for the next start, once the host is in the cluster.
func (c *Cluster) keepEndpoints(cluster hcn.GUID, eps []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg == nil || c.cfg.Cluster != cluster || slices.Equal(eps, slices.Sorted(slices.Values(c.cfg.Etcd.Endpoints))) {
		return
	}
	next := *c.cfg
	next.Etcd.Endpoints = eps
	if err := c.save(&next); err != nil {
		c.log.Warn("keep the addresses of etcd's members", "error", err)
		return
	}
	c.cfg = &next
}

// down stops the parts; etcd goes on.
func (c *Cluster) down() *running {
	c.mu.Lock()
	r := c.run
	c.run = nil
	c.mu.Unlock()
	if r != nil {
		r.cancel()
		r.wg.Wait()
		r.cli.Close()
	}
	return r
}

// save writes the membership: with it, the host is in the cluster.
func (c *Cluster) save(cfg *config) error {
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(c.file(fileConfig), append(b, '\n'))
}
