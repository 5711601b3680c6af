package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Load balancers of a network of the cluster. The host that made one publishes it, under its lease, and every host balances for its own
// containers. A service (a virtual address with protocol and port), a name and an ID are one load balancer's: who writes one has looked at
// all of its network, and the write holds only if none was written since. So of two hosts that want the same at once, one is refused.

// Balancer is a load balancer as a host publishes it.
type Balancer struct {
	ID      hcn.GUID                    `json:"id"`
	Network hcn.GUID                    `json:"-"` // by the key
	Host    hcn.GUID                    `json:"-"` // by the key; not set in what is published
	Doc     hcn.HostComputeLoadBalancer `json:"doc"`
}

// BalancerKey names a load balancer of a host.
type BalancerKey struct{ Network, Host, ID hcn.GUID }

func (b *Balancer) check(p parsed) error {
	switch {
	case b.ID != p.id || b.Doc.ID != p.id:
		return fmt.Errorf("the value is of %.40q", string(b.ID))
	case b.Doc.HostComputeNetwork != p.network:
		return fmt.Errorf("the document is of network %.40q", string(b.Doc.HostComputeNetwork))
	case len(b.Doc.FrontendVIPs) == 0:
		return errors.New("it has no virtual address")
	}
	if err := checkText("name", b.Doc.Name, 0); err != nil {
		return err
	}
	return b.Doc.Validate()
}

func (b *Balancer) services() int { return len(b.Doc.FrontendVIPs) * len(b.Doc.PortMappings) }

func (b *Balancer) served() int { return b.services() * len(b.Doc.HostComputeEndpoints) }

// claim is something that one load balancer has. IDs are the whole cluster's, the rest a network's.
type claim struct {
	network hcn.GUID
	id      hcn.GUID
	name    string
	vip     netip.AddrPort
	proto   uint8
}

func (c claim) String() string {
	switch {
	case c.id != "":
		return "the ID " + string(c.id)
	case c.name != "":
		return fmt.Sprintf("the name %q", c.name)
	}
	return plan.ProtocolName(c.proto) + " " + c.vip.String()
}

func (b *Balancer) claims() []claim {
	out := []claim{{id: b.ID}}
	if b.Doc.Name != "" {
		out = append(out, claim{network: b.Network, name: b.Doc.Name})
	}
	for _, a := range b.Doc.VIPs() {
		for _, m := range b.Doc.PortMappings {
			out = append(out, claim{network: b.Network, vip: netip.AddrPortFrom(a, m.External()), proto: uint8(m.Protocol)})
		}
	}
	return out
}

// balancers are a cache's.
type balancers struct {
	all map[BalancerKey]*item[Balancer]
	// claims are who has something, the oldest first.
	claims           map[claim][]*item[Balancer]
	services, served int
}

func newBalancers() balancers {
	return balancers{all: map[BalancerKey]*item[Balancer]{}, claims: map[claim][]*item[Balancer]{}}
}

func olderBalancer(a, b *item[Balancer]) int {
	return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(string(a.v.Host), string(b.v.Host)), strings.Compare(string(a.v.ID), string(b.v.ID)))
}

func (c *cache) putBalancer(k BalancerKey, it *item[Balancer], key string) {
	bs := &c.balancers
	c.dirty.balancers[k] = struct{}{}
	if old := bs.all[k]; old != nil {
		delete(bs.all, k)
		bs.services, bs.served = bs.services-old.v.services(), bs.served-old.v.served()
		for _, cl := range old.v.claims() {
			list := slices.DeleteFunc(slices.Clone(bs.claims[cl]), func(o *item[Balancer]) bool { return o == old })
			if bs.claims[cl] = list; len(list) == 0 {
				delete(bs.claims, cl)
			}
			c.touchRivals(list)
		}
	}
	if it == nil {
		return
	}
	if len(bs.all) >= maxBalancers || bs.services+it.v.services() > maxServices || bs.served+it.v.served() > maxServed {
		c.problem(key, fmt.Errorf("with it the cluster has more than %d load balancers, %d services or %d back ends of all services: left out", maxBalancers, maxServices, maxServed))
		return
	}
	bs.all[k] = it
	bs.services, bs.served = bs.services+it.v.services(), bs.served+it.v.served()
	for _, cl := range it.v.claims() {
		list := append(slices.Clone(bs.claims[cl]), it)
		slices.SortFunc(list, olderBalancer)
		bs.claims[cl] = list
		if len(list) > 1 {
			c.touchRivals(list)
		}
	}
}

func (c *cache) touchRivals(list []*item[Balancer]) {
	for _, it := range list {
		c.dirty.balancers[it.v.key()] = struct{}{}
	}
}

func (b *Balancer) key() BalancerKey { return BalancerKey{b.Network, b.Host, b.ID} }

// touchBalancer marks one, and those that count or do not by it.
func (c *cache) touchBalancer(k BalancerKey) {
	c.dirty.balancers[k] = struct{}{}
	if it := c.balancers.all[k]; it != nil {
		for _, cl := range it.v.claims() {
			if list := c.balancers.claims[cl]; len(list) > 1 {
				c.touchRivals(list)
			}
		}
	}
}

// balancerCounts says why a load balancer does not count; nil: it does.
func (c *cache) balancerCounts(it *item[Balancer]) error {
	if err := c.balancerStands(it); err != nil {
		return err
	}
	for _, cl := range it.v.claims() {
		if o := c.rival(cl, it); o != nil && olderBalancer(o, it) < 0 {
			return fmt.Errorf("%s is that of load balancer %s of host %s, which is older", cl, o.v.ID, o.v.Host)
		}
	}
	return nil
}

// balancerStands says why it would not count if it were the only one.
func (c *cache) balancerStands(it *item[Balancer]) error {
	n, err := c.network(it.v.Network)
	switch {
	case err != nil:
		return fmt.Errorf("its network: %w", err)
	case n == nil:
		return fmt.Errorf("its network %s is not there", it.v.Network)
	case c.hosts[it.v.Host] == nil:
		return fmt.Errorf("its host %s is not there", it.v.Host)
	}
	for _, a := range it.v.Doc.VIPs() {
		for _, p := range n.v.Prefixes() {
			if p.Contains(a) {
				return fmt.Errorf("its virtual address %s lies in the subnet %s of the network", a, p)
			}
		}
	}
	return nil
}

// rival is the first beside one that has something.
func (c *cache) rival(cl claim, beside *item[Balancer]) *item[Balancer] {
	for _, o := range c.balancers.claims[cl] {
		if o.v.key() != beside.v.key() && c.balancerStands(o) == nil {
			return o
		}
	}
	return nil
}

func (c *cache) sortedBalancers() (out []Balancer) {
	for _, it := range c.balancers.all {
		if c.balancerCounts(it) == nil {
			out = append(out, it.v)
		}
	}
	slices.SortFunc(out, func(a, b Balancer) int {
		return cmp.Or(strings.Compare(a.Doc.Name, b.Doc.Name), strings.Compare(string(a.ID), string(b.ID)))
	})
	return out
}

// ownBalancers are what this host has to publish.
type ownBalancers struct {
	want map[place]Balancer
	// held are wanted, too: somebody is about to make them, and wants to know first that they are his.
	held map[place]*Balancer
	pub  map[place]published
	todo map[place]struct{}
	// refused says why one is not published.
	refused map[place]string
}

func newOwnBalancers() ownBalancers {
	return ownBalancers{want: map[place]Balancer{}, held: map[place]*Balancer{}, pub: map[place]published{}, todo: map[place]struct{}{}, refused: map[place]string{}}
}

func (o *ownBalancers) wanted(at place) (Balancer, bool) {
	if b := o.held[at]; b != nil {
		return *b, true
	}
	b, ok := o.want[at]
	return b, ok
}

// allAgain has all of them looked at.
func (o *ownBalancers) allAgain() {
	for at := range o.want {
		o.todo[at] = struct{}{}
	}
	for at := range o.pub {
		o.todo[at] = struct{}{}
	}
}

// PublishBalancers says which load balancers this host has: all of them.
func (a *Agent) PublishBalancers(all []Balancer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := make(map[place]Balancer, len(all))
	for _, b := range all {
		at := place{b.Network, b.ID}
		b.Host = ""
		if old, ok := a.own.want[at]; !ok || encode(old) != encode(b) {
			a.own.todo[at] = struct{}{}
		}
		next[at] = b
	}
	for at := range a.own.want {
		if _, ok := next[at]; !ok {
			a.own.todo[at] = struct{}{}
		}
	}
	a.own.want = next
	a.kick()
}

// ClaimBalancer publishes a load balancer that is about to be made or changed, so that nobody else can have its services, name and ID:
// ErrClash says who does. Until release is called it stays published; then what PublishBalancers has said counts.
func (a *Agent) ClaimBalancer(ctx context.Context, b Balancer) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	at := place{b.Network, b.ID}
	b.Host = ""
	a.mu.Lock()
	a.own.held[at] = &b
	a.mu.Unlock()
	release = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.own.held[at] == &b {
			delete(a.own.held, at)
		}
		a.own.todo[at] = struct{}{}
		a.kick()
	}
	for range 50 {
		rev, err := a.tryClaim(ctx, at, &b)
		if err != nil {
			release()
			return nil, err
		}
		if rev != 0 {
			if err := a.settle(ctx, rev); err != nil {
				release() // or it would be published for good, and never made
				return nil, err
			}
			return release, nil
		}
		if !sleep(ctx, jitter(20*time.Millisecond)) { // the watch says who was first
			release()
			return nil, ctx.Err()
		}
	}
	release()
	return nil, fmt.Errorf("claim load balancer %s: others make some without a pause: %w", b.ID, ErrAway)
}

func (a *Agent) tryClaim(ctx context.Context, at place, b *Balancer) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	a.mu.Lock()
	lease, err := a.lease, cmp.Or(a.session, a.watching)
	if err == nil {
		err = a.clash(b)
	} else {
		err = fmt.Errorf("claim load balancer %s: %w: %w", b.ID, ErrAway, err)
	}
	t := a.balancerTxn(at.network, lease)
	t.put(a, at, encode(b))
	a.mu.Unlock()
	if err != nil {
		return 0, err
	}
	res, err := a.cli.Txn(ctx).If(t.guards...).Then(t.ops...).Commit()
	if err != nil {
		return 0, a.away("publish load balancer "+string(b.ID), err)
	}
	if !res.Succeeded {
		return 0, nil
	}
	t.done(a, res.Header.Revision)
	return res.Header.Revision, nil
}

// clash says what of one that this host wants is another's. Locked: a.mu.
func (a *Agent) clash(b *Balancer) error {
	mine := *b
	mine.Host = a.self.ID
	it := &item[Balancer]{v: mine}
	if most := maxValue[kindBalancer]; len(encode(b)) > most {
		return fmt.Errorf("%w: its document has more than %d bytes", ErrExhausted, most)
	}
	if n := a.cache.networks[b.Network]; n == nil {
		return fmt.Errorf("network %s of the cluster: %w", b.Network, ErrNotFound)
	}
	for _, cl := range mine.claims() {
		if o := a.cache.rival(cl, it); o != nil {
			return fmt.Errorf("%w: %s belongs to load balancer %s of host %s: choose another, or delete that one there", ErrClash, cl, o.v.title(), a.hostName(o.v.Host))
		}
	}
	bs, had := &a.cache.balancers, Balancer{}
	if old := bs.all[mine.key()]; old != nil {
		had = old.v
	}
	if bs.services-had.services()+b.services() > maxServices || bs.served-had.served()+b.served() > maxServed || len(bs.all) >= maxBalancers && had.ID == "" {
		return fmt.Errorf("%w: with it the cluster would have more than %d load balancers, %d services or %d back ends of all services: delete those that nobody uses",
			ErrExhausted, maxBalancers, maxServices, maxServed)
	}
	return nil
}

func (b *Balancer) title() string {
	if b.Doc.Name == "" {
		return string(b.ID)
	}
	return fmt.Sprintf("%q (%s)", b.Doc.Name, b.ID)
}

// balancerTxn is a transaction about load balancers of one network.
type balancerTxn struct {
	lease   clientv3.LeaseID
	guards  []clientv3.Cmp
	ops     []clientv3.Op
	bytes   int
	becomes map[place]published
}

// balancerTxn begins one, which holds only while this host has its key by its lease, the network is there, and all that was written of
// the network's load balancers is in the cache. Locked: a.mu.
func (a *Agent) balancerTxn(network hcn.GUID, lease clientv3.LeaseID) *balancerTxn {
	of := a.keys.balancersOf(network)
	return &balancerTxn{lease: lease, becomes: map[place]published{}, guards: []clientv3.Cmp{
		clientv3.Compare(clientv3.LeaseValue(a.keys.host(a.self.ID)), "=", lease), present(a.keys.network(network)),
		clientv3.Compare(clientv3.ModRevision(of), "<", a.cache.rev+1).WithPrefix(),
	}}
}

func (t *balancerTxn) put(a *Agent, at place, raw string) {
	t.ops = append(t.ops, clientv3.OpPut(a.keys.balancer(at.network, a.self.ID, at.id), raw, clientv3.WithLease(t.lease)))
	t.bytes += len(raw)
	t.becomes[at] = published{raw: raw, lease: t.lease}
}

// done notes what etcd has now.
func (t *balancerTxn) done(a *Agent, rev int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, p := range t.becomes {
		if a.own.pub[at].rev > rev {
			continue // the watch was faster, and knows of more
		}
		if p.rev = rev; p.raw == "" {
			delete(a.own.pub, at)
		} else {
			a.own.pub[at] = p
		}
	}
}

// maxBatchBytes keeps a transaction below what etcd takes in one request.
const maxBatchBytes = 512 << 10

// publishBalancers writes the difference between what is wanted and what etcd has, until there is none.
func (a *Agent) publishBalancers(ctx context.Context, lease clientv3.LeaseID) error {
	for misses := 0; ; {
		a.mu.Lock()
		t, gone := a.nextBalancers(lease)
		a.mu.Unlock()
		if len(gone) > 0 {
			if err := a.withdraw(ctx, gone); err != nil {
				return err
			}
		}
		if len(t.ops) == 0 {
			if len(gone) == 0 {
				return nil
			}
			continue
		}
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		res, err := a.cli.Txn(tctx).If(t.guards...).Then(t.ops...).Else(clientv3.OpGet(a.keys.host(a.self.ID), clientv3.WithKeysOnly())).Commit()
		cancel()
		if err == nil && res.Succeeded {
			t.done(a, res.Header.Revision)
			misses = 0
			_ = a.waitFor(ctx, res.Header.Revision) // else the next one is compared with less than there is
			continue
		}
		a.mu.Lock()
		for at := range t.becomes {
			a.own.todo[at] = struct{}{}
		}
		a.mu.Unlock()
		if err != nil {
			return fmt.Errorf("publish %d load balancers: %w", len(t.ops), err)
		}
		if kvs := res.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || clientv3.LeaseID(kvs[0].Lease) != lease {
			return fmt.Errorf("the host's lease ended: %w", ErrAway)
		}
		// Others write meanwhile. With many of them that may take a while, and is no reason to end the session.
		misses = min(misses+1, 6)
		_ = a.waitFor(ctx, res.Header.Revision)
		if !sleep(ctx, jitter(10*time.Millisecond<<misses)) {
			return ctx.Err()
		}
	}
}

// nextBalancers takes what is to be done off the list: what is to go, and as much of one network as fits a transaction. Locked: a.mu.
func (a *Agent) nextBalancers(lease clientv3.LeaseID) (t *balancerTxn, gone []place) {
	t = &balancerTxn{}
	if !a.synced {
		return t, nil // not before it is known what is there
	}
	network, taken := hcn.GUID(""), map[claim]bool{}
	for _, at := range slices.SortedFunc(maps.Keys(a.own.todo), comparePlaces) {
		b, ok := a.own.wanted(at)
		have := a.own.pub[at]
		if !ok {
			delete(a.own.todo, at)
			delete(a.own.refused, at)
			if have.raw != "" {
				gone = append(gone, at)
			}
			continue
		}
		raw := encode(&b)
		if have.raw == raw && have.lease == lease {
			delete(a.own.todo, at)
			delete(a.own.refused, at)
			continue
		}
		if network != "" && network != at.network || len(t.ops) >= batch || t.bytes+len(raw) > maxBatchBytes && len(t.ops) > 0 {
			continue
		}
		if slices.ContainsFunc(b.claims(), func(cl claim) bool { return taken[cl] }) {
			continue // one of this transaction has it: next time that is known
		}
		delete(a.own.todo, at)
		if err := a.clash(&b); err != nil {
			a.own.refused[at] = err.Error()
			if have.raw != "" { // as it was before, it does not hold either
				gone = append(gone, at)
			}
			continue
		}
		delete(a.own.refused, at)
		if network == "" {
			network, t = at.network, a.balancerTxn(at.network, lease)
		}
		t.put(a, at, raw)
		for _, cl := range b.claims() {
			taken[cl] = true
		}
	}
	return t, gone
}

func comparePlaces(a, b place) int {
	return cmp.Or(strings.Compare(string(a.network), string(b.network)), strings.Compare(string(a.id), string(b.id)))
}

// withdraw removes what this host publishes and has no more.
func (a *Agent) withdraw(ctx context.Context, gone []place) error {
	for part := range slices.Chunk(gone, batch) {
		t := &balancerTxn{becomes: map[place]published{}}
		for _, at := range part {
			t.ops = append(t.ops, clientv3.OpDelete(a.keys.balancer(at.network, a.self.ID, at.id)))
			t.becomes[at] = published{}
		}
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		res, err := a.cli.Txn(tctx).Then(t.ops...).Commit()
		cancel()
		if err != nil {
			a.mu.Lock()
			for _, at := range part {
				a.own.todo[at] = struct{}{}
			}
			a.mu.Unlock()
			return fmt.Errorf("remove %d load balancers: %w", len(part), err)
		}
		t.done(a, res.Header.Revision)
	}
	return nil
}

// balancerEvent follows what becomes of load balancers: of our own, which somebody may have removed or changed, and of others', which
// may have had what ours wants. Locked: a.mu.
func (a *Agent) balancerEvent(p parsed, e entry) {
	if p.host != a.self.ID {
		a.retryBalancers(p.network)
		return
	}
	at := place{p.network, p.id}
	if e.rev <= a.own.pub[at].rev {
		return
	}
	now := published{rev: e.rev}
	if !e.deleted {
		now.raw, now.lease = string(e.value), clientv3.LeaseID(e.lease)
	}
	b, ok := a.own.wanted(at)
	if now.raw == "" && !ok {
		delete(a.own.pub, at)
		return
	}
	a.own.pub[at] = now
	if !ok || now.raw != encode(&b) || now.lease != a.lease {
		a.own.todo[at] = struct{}{}
		a.kick()
	}
}

// retryBalancers looks again at those of a network that were refused. Locked: a.mu.
func (a *Agent) retryBalancers(network hcn.GUID) {
	for at := range a.own.refused {
		if at.network == network {
			a.own.todo[at] = struct{}{}
			a.kick()
		}
	}
}

// missedBalancers compares what a snapshot has of this host's load balancers with what we know. Locked: a.mu.
func (a *Agent) missedBalancers(entries []entry, rev int64) {
	seen := map[place]bool{}
	for _, e := range entries {
		if p, err := a.keys.parse(e.key); err == nil && p.kind == kindBalancer && p.host == a.self.ID {
			seen[place{p.network, p.id}] = true
		}
	}
	for at, p := range a.own.pub {
		if !seen[at] && p.rev <= rev && p.raw != "" {
			a.own.pub[at] = published{rev: rev}
			a.own.todo[at] = struct{}{}
		}
	}
	for at := range a.own.refused {
		a.own.todo[at] = struct{}{}
	}
}
