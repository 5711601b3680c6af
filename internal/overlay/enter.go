package overlay

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/durable"
)

// Request is what is common to the ways into a cluster.
type Request struct {
	// Name and Addrs are those of this host.
	Name  string
	Addrs []netip.Addr
	// Port is the first of three, for a member of etcd; DefaultPort when 0.
	Port uint16
}

// Result of getting into a cluster.
type Result struct {
	Cluster, Host hcn.GUID
	// Founded: nobody was there before.
	Founded bool
	// Token lets others join, where the etcd is our own.
	Token string
}

// joinTimeout bounds an attempt.
const joinTimeout = 90 * time.Second

// enter is an attempt to get into a cluster: all of it, or nothing is left.
func (c *Cluster) enter(ctx context.Context, req Request, attempt func(ctx context.Context, cfg *config) error) (*config, error) {
	if !c.change.TryLock() {
		return nil, errors.New("this host is joining or leaving a cluster just now: wait for that")
	}
	defer c.change.Unlock()
	c.mu.Lock()
	was := c.cfg
	c.mu.Unlock()
	if was != nil {
		return nil, alreadyIn(was)
	}
	h := Host{ID: hcn.NewGUID(), Name: req.Name, Addrs: req.Addrs, Version: c.opt.Version}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("this host: %w", err)
	}
	if req.Port > maxPort {
		return nil, fmt.Errorf("port %d: a member of etcd needs three in a row: choose one up to %d", req.Port, maxPort)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := os.MkdirAll(c.opt.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cluster's directory: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(c.opt.Dir)); err != nil {
		return nil, fmt.Errorf("make the cluster's directory: %w", err)
	}
	cfg := &config{Version: configVersion, Host: h.ID, Name: req.Name, Addrs: req.Addrs, Since: time.Now().UTC().Truncate(time.Second), RouterMAC: newMAC()}
	err := attempt(ctx, cfg)
	if err == nil {
		err = c.awaitAgent(ctx)
	}
	if err == nil {
		err = c.save(cfg)
	}
	if err != nil {
		c.abandon(cfg)
		return nil, err
	}
	c.mu.Lock()
	c.cfg = cfg
	c.mu.Unlock()
	c.opt.Changed()
	return cfg, nil
}

// newMAC is one in the block of Windows' switches.
func newMAC() MAC {
	m := MAC{0x00, 0x15, 0x5d}
	_, _ = rand.Read(m[3:]) // never fails (crypto/rand)
	return m
}

// awaitAgent waits until the host holds its lease, has read the cluster, and is itself in what it has read: whoever joined finds the
// host there, with the next call.
func (c *Cluster) awaitAgent(ctx context.Context) error {
	a := c.Agent()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		s := a.Status()
		if s.Connected && slices.ContainsFunc(s.Hosts, func(h HostStatus) bool { return h.Alive && h.ID == a.cfg.Host.ID }) {
			return nil
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return fmt.Errorf("take the host's place in the cluster: %s", cmp.Or(s.Problem, "etcd does not show it to this host: see whether it is overloaded"))
		}
	}
}

// abandon takes back an attempt that failed: the keys, then the member of etcd while that still runs, because the other one of two
// decides nothing alone.
func (c *Cluster) abandon(cfg *config) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*opTimeout)
	defer cancel()
	if a := c.Agent(); a != nil {
		if err := c.retire(ctx, a); err != nil {
			c.log.Warn("take back an attempt to join", "error", err)
		}
	}
	if cfg.Member != nil && cfg.Member.ID != 0 {
		if err := takeBackMember(ctx, cfg); err != nil {
			c.log.Warn("take back the member of etcd of an attempt to join", "error", err)
		}
	}
	if r := c.down(); r != nil && r.member != nil {
		r.member.stop()
	}
	EndMember(c.opt.Dir, c.opt.RunDir)
	c.forgetMemory()
	c.mu.Lock()
	c.agent = nil
	c.mu.Unlock()
	if err := os.RemoveAll(c.opt.Dir); err != nil {
		c.log.Warn("remove what an attempt to join has left", "error", err)
	}
}

// Init begins a cluster with an etcd of our own, whose first member runs here.
func (c *Cluster) Init(ctx context.Context, req Request, prefix string) (Result, error) {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	if err := CheckPrefix(prefix); err != nil {
		return Result{}, err
	}
	cfg, err := c.enter(ctx, req, func(ctx context.Context, cfg *config) error {
		cfg.Own, cfg.Cluster = true, hcn.NewGUID()
		cfg.Member = &memberConfig{Name: memberName(cfg.Host), Addrs: req.Addrs, Port: portOf(req), New: true, Token: cfg.Cluster}
		cfg.Member.Initial = cfg.Member.Name + "=" + cfg.Member.peer()
		ca, caPEM, keyPEM, err := newAuthority(time.Now())
		if err != nil {
			return err
		}
		csr, hostKey, err := request("host " + string(cfg.Host))
		if err != nil {
			return err
		}
		cert, err := ca.sign(csr, "host "+string(cfg.Host), req.Addrs, time.Now())
		if err != nil {
			return err
		}
		if err := c.writePKI(caPEM, keyPEM, cert, hostKey); err != nil {
			return err
		}
		cfg.Etcd = c.ownEtcd([]string{cfg.Member.client()}, prefix)
		if err := c.startOwn(ctx, cfg); err != nil {
			return err
		}
		return c.up(cfg)
	})
	if err != nil {
		return Result{}, fmt.Errorf("begin a cluster: %w", err)
	}
	res := Result{Cluster: cfg.Cluster, Host: cfg.Host, Founded: true}
	if res.Token, err = c.Token(ctx, 0); err != nil {
		return res, fmt.Errorf("the cluster is there, but not its first token (`bulkhead cluster token` makes one): %w", err)
	}
	return res, nil
}

func portOf(req Request) uint16 { return cmp.Or(req.Port, DefaultPort) }

// maxPort is the last that may be the first of three.
const maxPort = 65535 - 2

func (c *Cluster) ownEtcd(endpoints []string, prefix string) Etcd {
	return Etcd{Endpoints: endpoints, Prefix: prefix, CACert: c.file(fileCA), Cert: c.file(fileCert), Key: c.file(fileKey)}
}

func (c *Cluster) writePKI(ca, caKey, cert, key []byte) error {
	for name, b := range map[string][]byte{fileCA: ca, fileCAKey: caKey, fileCert: cert, fileKey: key} {
		if b == nil {
			continue
		}
		if err := durable.WriteFile(c.file(name), b); err != nil {
			return fmt.Errorf("keep the cluster's certificates: %w", err)
		}
	}
	return nil
}

// startOwn starts the first member of an etcd and writes the schema.
func (c *Cluster) startOwn(ctx context.Context, cfg *config) error {
	cli, m, err := c.startMember(ctx, cfg)
	if err != nil {
		return err
	}
	defer cli.Close()
	k := keys{cfg.Etcd.Prefix}
	rec := schemaRecord{Version: Schema, Cluster: cfg.Cluster, Since: cfg.Since}
	if _, err := cli.Put(ctx, k.schema(), encode(rec)); err != nil {
		return fmt.Errorf("write the first key: %w; etcd's log ends with: %s", Explain(err), m.lastWords())
	}
	return nil
}

// startMember starts a member and waits until it answers.
func (c *Cluster) startMember(ctx context.Context, cfg *config) (*clientv3.Client, *member, error) {
	m, err := newMember(c.opt.Dir, c.opt.RunDir, cfg.Member, c.log)
	if err != nil {
		return nil, nil, err
	}
	if err := m.ensure(); err != nil {
		return nil, nil, err
	}
	e := cfg.Etcd
	e.Endpoints = []string{cfg.Member.client()}
	cli, err := Dial(e)
	if err != nil {
		return nil, nil, err
	}
	if err := c.awaitMember(ctx, &running{cli: cli, member: m}, cfg); err != nil {
		cli.Close()
		return nil, nil, err
	}
	return cli, m, nil
}

// Join gets into the cluster of a token; member asks to run a member of its etcd here. A host that is in that cluster, and has lost etcd, looks
// for it where the token says.
func (c *Cluster) Join(ctx context.Context, req Request, token string, asMember bool) (Result, error) {
	t, err := ParseToken(token)
	if err != nil {
		return Result{}, err
	}
	if c.isOurs(t) {
		res, err := c.findAgain(ctx, t, asMember)
		if err != nil {
			err = fmt.Errorf("join the cluster: %w", err)
		}
		return res, err
	}
	cfg, err := c.enter(ctx, req, func(ctx context.Context, cfg *config) error {
		cfg.Own = true
		csr, key, err := request("host " + string(cfg.Host))
		if err != nil {
			return err
		}
		r := joinRequest{Token: t.ID, Secret: t.Secret, Host: cfg.Host, Name: cfg.Name, Addrs: cfg.Addrs, CSR: csr, Version: c.opt.Version, Schema: Schema, Member: asMember}
		if asMember {
			cfg.Member = &memberConfig{Name: memberName(cfg.Host), Addrs: req.Addrs, Port: portOf(req)}
			r.Peer = cfg.Member.peer()
			if _, err := newMember(c.opt.Dir, c.opt.RunDir, cfg.Member, c.log); err != nil {
				return err // before the others make room for it
			}
		}
		ans, err := ask(ctx, t, r)
		if err != nil {
			return err
		}
		if err := c.admit(t, &ans); err != nil {
			return err
		}
		if err := c.writePKI(ans.CA, ans.CAKey, ans.Cert, key); err != nil {
			return err
		}
		cfg.Cluster, cfg.Etcd = ans.Cluster, c.ownEtcd(ans.Endpoints, ans.Prefix)
		if asMember {
			cfg.Member.ID, cfg.Member.Initial, cfg.Member.Token = ans.Member, ans.Initial, ans.Cluster
			if err := c.becomeMember(ctx, cfg); err != nil {
				return err
			}
		}
		if err := c.checkCluster(ctx, cfg); err != nil {
			return err
		}
		return c.up(cfg)
	})
	if err != nil {
		return Result{}, fmt.Errorf("join the cluster: %w", err)
	}
	return Result{Cluster: cfg.Cluster, Host: cfg.Host}, nil
}

// admit checks an answer: it came from the cluster of the token, but not all who are in a cluster write with care.
func (c *Cluster) admit(t Token, ans *joinAnswer) error {
	ca, err := parseCert(ans.CA)
	if err != nil || fingerprint(ca) != t.CA {
		return errors.New("the answer holds another CA than the token names")
	}
	if id, err := hcn.ParseGUID(string(ans.Cluster)); err != nil || id.IsZero() {
		return errors.New("the answer names no cluster")
	}
	if len(ans.Endpoints) > 64 || len(ans.Initial) > 16<<10 || len(ans.CAKey) > 16<<10 {
		return errors.New("the answer is too large")
	}
	return nil
}

// becomeMember starts the member that the others have made room for, and gives it its vote when it has caught up.
func (c *Cluster) becomeMember(ctx context.Context, cfg *config) error {
	cli, err := Dial(cfg.Etcd)
	if err != nil {
		return err
	}
	defer cli.Close()
	m, err := newMember(c.opt.Dir, c.opt.RunDir, cfg.Member, c.log)
	if err != nil {
		return err
	}
	if err := m.ensure(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	for {
		tctx, tcancel := context.WithTimeout(ctx, opTimeout)
		_, perr := cli.MemberPromote(tctx, cfg.Member.ID)
		tcancel()
		if perr == nil || errors.Is(perr, rpctypes.ErrMemberNotLearner) { // the answer to an earlier call was lost
			break
		}
		if !m.alive() {
			return fmt.Errorf("etcd ended: its log says: %s", m.lastWords())
		}
		if !sleep(ctx, 250*time.Millisecond) {
			return fmt.Errorf("the new member of etcd does not catch up: %w; see that the others reach %s; its log ends with: %s", Explain(perr), cfg.Member.peer(), m.lastWords())
		}
	}
	cfg.Etcd.Endpoints = append(cfg.Etcd.Endpoints, cfg.Member.client())
	return awaitVote(ctx, cfg)
}

// awaitVote waits until the member knows itself that it has its vote: before that it answers nobody.
func awaitVote(ctx context.Context, cfg *config) error {
	e := cfg.Etcd
	e.Endpoints = []string{cfg.Member.client()}
	own, err := Dial(e)
	if err != nil {
		return err
	}
	defer own.Close()
	for {
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		_, err := own.Get(tctx, (keys{e.Prefix}).schema())
		cancel()
		if err == nil || !silent(err) && !strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrGRPCNotSupportedForLearner)) {
			return nil // what else is wrong, those say who look for the cluster
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return fmt.Errorf("the new member of etcd does not hear that it has a vote: %w", Explain(err))
		}
	}
}

// checkCluster sees that what is in etcd is the cluster that was promised, before anything is written.
func (c *Cluster) checkCluster(ctx context.Context, cfg *config) error {
	cli, err := Dial(cfg.Etcd)
	if err != nil {
		return err
	}
	defer cli.Close()
	tctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	id, err := Find(tctx, cli, cfg.Etcd.Prefix)
	if err != nil {
		return because(ctx, cfg.Etcd, err)
	}
	if id != cfg.Cluster {
		return fmt.Errorf("etcd has cluster %s, and not %s", id, cfg.Cluster)
	}
	return nil
}

// JoinEtcd gets into the cluster in somebody else's etcd, and begins one where there is none.
func (c *Cluster) JoinEtcd(ctx context.Context, req Request, e Etcd) (Result, error) {
	if e.Prefix == "" {
		e.Prefix = DefaultPrefix
	}
	e.Prefix = strings.TrimSuffix(e.Prefix, "/")
	if err := e.Check(time.Now()); err != nil {
		return Result{}, err
	}
	founded := false
	cfg, err := c.enter(ctx, req, func(ctx context.Context, cfg *config) error {
		cli, err := Dial(e)
		if err != nil {
			return err
		}
		defer cli.Close()
		tctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
		defer cancel()
		if cfg.Cluster, err = Find(tctx, cli, e.Prefix); errors.Is(err, ErrNoCluster) {
			founded = true
			cfg.Cluster, err = Found(tctx, cli, e.Prefix)
		}
		if err != nil {
			return because(ctx, e, err)
		}
		cfg.Etcd = e
		return c.up(cfg)
	})
	if err != nil {
		return Result{}, fmt.Errorf("join the cluster in etcd: %w", err)
	}
	return Result{Cluster: cfg.Cluster, Host: cfg.Host, Founded: founded}, nil
}

// Token makes a token that is good for a time; DefaultTokenTime when 0.
func (c *Cluster) Token(ctx context.Context, valid time.Duration) (string, error) {
	c.mu.Lock()
	cfg, r := c.cfg, c.run
	c.mu.Unlock()
	switch {
	case cfg == nil || r == nil:
		return "", errNotJoined
	case !cfg.Own:
		return "", errors.New("the cluster is in an etcd of your own, which knows no tokens: join hosts with `bulkhead join --etcd` and a client certificate")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	var addrs []netip.AddrPort
	for _, h := range r.agent.Hosts() {
		if h.Join == 0 {
			continue
		}
		at := h.Addrs[0]
		if h.ID == cfg.Host { // etcd may not have said yet that this host has moved
			at = cfg.Addrs[0]
		}
		addrs = append(addrs, netip.AddrPortFrom(at, h.Join))
	}
	if len(addrs) == 0 {
		return "", errors.New("no host of the cluster that runs a member of etcd is there just now: start one")
	}
	b, err := os.ReadFile(c.file(fileCA))
	if err != nil {
		return "", fmt.Errorf("read the CA: %w", err)
	}
	ca, err := parseCert(b)
	if err != nil {
		return "", fmt.Errorf("read the CA: %w", err)
	}
	t, err := newToken(ctx, r.cli, cfg.Etcd.Prefix, fingerprint(ca), addrs[:min(len(addrs), 16)], valid)
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

var errNotJoined = errors.New("this host is in no cluster: `bulkhead cluster init` begins one, `bulkhead join` joins one")
