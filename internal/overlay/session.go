package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// keep takes the host's place in the cluster and keeps it until something breaks: the lease ended, its key was removed, etcd is
// away. It returns no nil.
func (a *Agent) keep(ctx context.Context) error {
	lease, rev, kept, err := a.claim(ctx)
	if err != nil {
		return err
	}
	kctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alive, err := a.cli.KeepAlive(kctx, lease)
	if err != nil {
		return fmt.Errorf("keep the host's lease: %w", err)
	}
	a.heardOf(kept)
	lost, void := a.begin(lease, rev)
	if err := a.lookBack(ctx); errors.Is(err, errPutBack) { // else it is looked at again
		return err
	}
	looked := time.Now()
	a.log.Info("this host is in the cluster", "host", a.self.ID, "name", a.self.Name)
	defer func() {
		a.mu.Lock()
		if a.session == nil {
			a.session = ErrAway
		}
		a.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lost:
			return errors.New("the host's key was removed or changed")
		case <-void:
			return errPutBack
		case ka, ok := <-alive:
			if !ok {
				return fmt.Errorf("the host's lease ended: %w", ErrAway)
			}
			a.heardOf(false)
			if a.suspicious(ka.ResponseHeader) || time.Since(looked) > lookBackEvery {
				looked = time.Now()
				if err := a.lookBack(ctx); errors.Is(err, errPutBack) {
					return err
				}
			}
			continue
		case <-a.wake:
		}
		if err := a.renewHost(ctx, lease); err != nil {
			return err
		}
		if err := a.publish(ctx, lease); err != nil {
			return err
		}
		if err := a.publishBalancers(ctx, lease); err != nil {
			return err
		}
	}
}

// renewHost writes the host's own record again if it has changed.
func (a *Agent) renewHost(ctx context.Context, lease clientv3.LeaseID) error {
	a.mu.Lock()
	changed := a.rereg
	a.mu.Unlock()
	if !changed {
		return nil
	}
	now, rev, _, err := a.claim(ctx)
	if err != nil {
		return fmt.Errorf("publish the host's own record: %w", err)
	}
	if now != lease {
		return fmt.Errorf("the host's lease ended: %w", ErrAway)
	}
	a.mu.Lock()
	a.claimed = rev
	a.mu.Unlock()
	return nil
}

// begin notes what was claimed at a revision, and gives what is closed when that is lost. It may be lost already: the watch does not wait.
func (a *Agent) begin(lease clientv3.LeaseID, rev int64) (lost, void <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease != lease {
		// All of what is there belongs to a lease that ended, or to none.
		for at := range a.want {
			a.todo[at] = struct{}{}
		}
		for at := range a.pub {
			a.todo[at] = struct{}{}
		}
		a.own.allAgain()
	}
	a.lease, a.claimed, a.lost, a.session = lease, rev, make(chan struct{}), nil
	a.loseSession(a.gone)
	a.kick()
	return a.lost, a.void
}

// claim puts the host's key under a lease: the one that it had, if that is alive, or a new one. It gives the revision of that, and whether
// the lease is the old one.
func (a *Agent) claim(ctx context.Context) (lease clientv3.LeaseID, rev int64, kept bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	a.mu.Lock()
	self := a.self
	a.rereg = false // what changes from here on is told after
	a.mu.Unlock()
	key := a.keys.host(self.ID)
	res, err := a.cli.Txn(ctx).Then(clientv3.OpGet(a.keys.schema()), clientv3.OpGet(key), clientv3.OpGet(a.keys.forgotten(self.ID))).Commit()
	if err != nil {
		return 0, 0, false, fmt.Errorf("read the host's key: %w", err)
	}
	got := res.Responses
	if kvs := got[0].GetResponseRange().Kvs; len(kvs) == 0 {
		return 0, 0, false, noCluster(a.keys)
	} else if err := checkSchema(a.keys, kvs[0].Value); err != nil {
		return 0, 0, false, err
	}
	if kvs := got[2].GetResponseRange().Kvs; len(kvs) > 0 {
		return 0, 0, false, forgottenError(kvs[0].Value)
	}
	mod := int64(0)
	if kvs := got[1].GetResponseRange().Kvs; len(kvs) > 0 {
		mod = kvs[0].ModRevision
		old, err := decode[Host](kindHost, kvs[0].Value)
		ttl, terr := a.cli.TimeToLive(ctx, clientv3.LeaseID(kvs[0].Lease))
		live := kvs[0].Lease != 0 && terr == nil && ttl.TTL > 0
		switch {
		case err == nil && live && old.Boot != self.Boot && old.Session != self.Session:
			return 0, 0, false, fmt.Errorf("%w: %q with the addresses %v lives under %s; if it is this host before its restart, this ends by itself within %s, "+
				"if it is a copy of this host, `bulkhead cluster leave --force` on one of the two and join it anew", ErrTwin, old.Name, old.Addrs, self.ID, a.cfg.TTL)
		case live:
			lease = clientv3.LeaseID(kvs[0].Lease)
			if _, err := a.cli.KeepAliveOnce(ctx, lease); err != nil {
				lease = 0
			}
		}
	}
	kept = lease != 0
	if !kept {
		g, err := a.cli.Grant(ctx, max(1, int64(a.cfg.TTL/time.Second)))
		if err != nil {
			return 0, 0, false, fmt.Errorf("get a lease: %w", err)
		}
		lease = g.ID
	}
	put, err := a.cli.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", mod), absent(a.keys.forgotten(self.ID)), present(a.keys.schema())).
		Then(clientv3.OpPut(key, encode(&self), clientv3.WithLease(lease))).Commit()
	if err != nil {
		return 0, 0, false, fmt.Errorf("publish the host: %w", err)
	}
	if !put.Succeeded {
		return 0, 0, false, errors.New("somebody else changed the host's key just now")
	}
	return lease, put.Header.Revision, kept, nil
}

func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

func present(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), ">", 0) }

func forgottenError(value []byte) error {
	f, err := decode[forgotten](kindForgotten, value)
	if err != nil || f.check() != nil {
		f = forgotten{By: "somebody"}
	}
	return fmt.Errorf("%w by %s at %s: its addresses may be those of others by now, so nothing of it is published; `bulkhead cluster leave --force`, then join anew",
		ErrForgotten, f.By, f.At.UTC().Format(time.RFC3339))
}

const (
	// batch is how many endpoints one transaction writes: etcd takes 128 operations unless told otherwise.
	batch = 100
	// maxGuards is how many comparisons a transaction may have, by the same bound.
	maxGuards = 120
)

// publish writes the difference between what is wanted and what etcd has, until there is none.
func (a *Agent) publish(ctx context.Context, lease clientv3.LeaseID) error {
	for misses := 0; ; {
		a.mu.Lock()
		b := a.nextBatch(lease)
		a.mu.Unlock()
		if len(b.ops) == 0 {
			return nil
		}
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		res, err := a.cli.Txn(tctx).If(b.guards...).Then(b.ops...).Else(clientv3.OpGet(a.keys.host(a.self.ID), clientv3.WithKeysOnly())).Commit()
		cancel()
		if err != nil {
			a.retry(b)
			return fmt.Errorf("publish %d endpoints: %w", len(b.ops), err)
		}
		if res.Succeeded {
			a.mu.Lock()
			for at, p := range b.becomes {
				if have := a.pub[at]; res.Header.Revision >= have.rev {
					p.rev = res.Header.Revision
					if p.raw == "" && a.want[at].raw == "" {
						delete(a.pub, at)
					} else {
						a.pub[at] = p
					}
				}
			}
			a.mu.Unlock()
			misses = 0
			continue
		}
		// Of what the guards ask for, this host has seen something else. The watch will say what, in a moment.
		a.retry(b)
		if kvs := res.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || clientv3.LeaseID(kvs[0].Lease) != lease {
			return fmt.Errorf("the host's lease ended: %w", ErrAway)
		}
		if misses++; misses > 6 {
			return fmt.Errorf("publish endpoints of network %s: etcd has changed in between: %w", b.network, ErrAway)
		}
		if !sleep(ctx, jitter(20*time.Millisecond<<misses)) {
			return ctx.Err()
		}
	}
}

// retry has the endpoints of a batch looked at again.
func (a *Agent) retry(b pubBatch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at := range b.becomes {
		a.todo[at] = struct{}{}
	}
}

// pubBatch is a transaction that publishes endpoints of one network.
type pubBatch struct {
	network hcn.GUID
	guards  []clientv3.Cmp
	ops     []clientv3.Op
	becomes map[place]published
}

// nextBatch takes what is to be done off the list, as much as fits one transaction. It writes only while this host holds its key by
// its lease, the network is there, and the blocks are this host's: an address cannot be published by two. Locked: a.mu.
func (a *Agent) nextBatch(lease clientv3.LeaseID) pubBatch {
	b := pubBatch{becomes: map[place]published{}}
	if !a.synced {
		return b // not before it is known what is there
	}
	blocks := map[netip.Prefix]bool{}
	for at := range a.todo {
		if len(b.ops) >= batch || len(b.guards) >= maxGuards {
			break
		}
		if len(b.ops) > 0 && at.network != b.network {
			continue
		}
		want, have := a.want[at], a.pub[at]
		key := a.keys.endpoint(at.network, a.self.ID, at.id)
		if want.raw == "" {
			delete(a.todo, at)
			delete(a.unpublished, at)
			if have.raw != "" {
				b.add(a.keys, at, a.self.ID, lease, clientv3.OpDelete(key), published{})
			}
			continue
		}
		guards, why := a.guard(at.network, want.addrs, blocks)
		if why != "" {
			delete(a.todo, at)
			a.unpublished[at] = why
			if have.raw != "" { // as it was before, it does not hold either
				b.add(a.keys, at, a.self.ID, lease, clientv3.OpDelete(key), published{})
			}
			continue
		}
		if len(b.guards)+len(guards) > maxGuards && len(b.ops) > 0 {
			continue
		}
		delete(a.todo, at)
		delete(a.unpublished, at)
		if have.raw == want.raw && have.lease == lease {
			continue
		}
		b.add(a.keys, at, a.self.ID, lease, clientv3.OpPut(key, want.raw, clientv3.WithLease(lease)), published{raw: want.raw, lease: lease})
		b.guards = append(b.guards, guards...)
		for p := range a.blocksOf(at.network, want.addrs) {
			blocks[p] = true
		}
	}
	return b
}

func (b *pubBatch) add(k keys, at place, self hcn.GUID, lease clientv3.LeaseID, op clientv3.Op, p published) {
	if len(b.ops) == 0 {
		b.network = at.network
		b.guards = append(b.guards, clientv3.Compare(clientv3.LeaseValue(k.host(self)), "=", lease))
	}
	b.ops = append(b.ops, op)
	b.becomes[at] = p
}

// blocksOf are the blocks that addresses lie in.
func (a *Agent) blocksOf(net hcn.GUID, addrs []netip.Addr) map[netip.Prefix]*item[block] {
	out := map[netip.Prefix]*item[block]{}
	n := a.cache.networks[net]
	if n == nil {
		return out
	}
	for _, s := range n.v.Prefixes() {
		for _, addr := range addrs {
			if p, err := addr.Prefix(BlockBits(s)); err == nil && s.Contains(addr) {
				out[p] = a.cache.blocks[net][p]
			}
		}
	}
	return out
}

// guard gives the comparisons that an endpoint's addresses need, without those that the batch has, or says why it cannot be
// published.
func (a *Agent) guard(net hcn.GUID, addrs []netip.Addr, has map[netip.Prefix]bool) (out []clientv3.Cmp, why string) {
	if a.cache.networks[net] == nil {
		return nil, fmt.Sprintf("network %s is not in the cluster", net)
	}
	blocks := a.blocksOf(net, addrs)
	for _, addr := range addrs {
		if !a.cache.owns(net, a.self.ID, addr) {
			p, it := blockOf(blocks, addr)
			switch {
			case !p.IsValid():
				return nil, fmt.Sprintf("address %s is in no subnet of the network", addr)
			case it == nil:
				return nil, fmt.Sprintf("address %s is in block %s, which this host has not leased", addr, p)
			}
			return nil, fmt.Sprintf("address %s is in block %s of host %s: delete the endpoint, or have that host give the block back", addr, p, a.hostName(it.v.Host))
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(blocks), plan.ComparePrefixes) {
		if !has[p] {
			out = append(out, clientv3.Compare(clientv3.CreateRevision(a.keys.block(net, p)), "=", blocks[p].created))
		}
	}
	if len(has) == 0 {
		out = append(out, present(a.keys.network(net)))
	}
	return out, ""
}

func blockOf(blocks map[netip.Prefix]*item[block], a netip.Addr) (netip.Prefix, *item[block]) {
	for p, it := range blocks {
		if p.Contains(a) {
			return p, it
		}
	}
	return netip.Prefix{}, nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter spreads the waits of many hosts that lost the same etcd.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
