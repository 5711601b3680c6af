package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// An etcd that is restored from a backup goes back: to earlier revisions, and to keys that are older than what the hosts know. Everything
// that an agent holds by revisions is void then, and nothing would tell it: a watch from a revision that is yet to come waits in silence. So
// it is looked at now and then whether etcd is still the one that it was, and where it is not, in this order:
//
//  1. the host takes its place again, under a new lease where the old one is not known;
//  2. it writes again the networks and blocks that it has in use, where they are missing: an address that a container here has must not be
//     leased by another host. What other hosts had is no block to lease for a while, for they do the same;
//  3. it reads everything, and only then is anything else changed, here and there: what came back with the backup goes with leases that
//     nobody keeps, and what is missing is published again.
//
// Between the backup and now a network may have been deleted, which is back, or changed, which is undone.

// errPutBack ends what an agent does by revisions that are void.
var errPutBack = errors.New("etcd was put back to an earlier state: this host reads it again, and publishes again what it has")

const (
	// lookBackEvery is how often that is looked at while nothing seems wrong.
	lookBackEvery = 30 * time.Second
	// othersBlocks is how long the blocks that others had are left to them.
	othersBlocks = 10 * time.Minute
)

// past is what an agent knew of an etcd before that was put back.
type past struct {
	networks []Network
	own      []ownBlock
	others   map[ownBlock]bool
}

// marked is a key as a revision left it.
type marked struct {
	key string
	rev int64
}

// mark notes the newest value.
func (c *cache) mark(e entry, k kind) {
	if !e.deleted && kept[k] && e.rev >= c.last.rev {
		c.last = marked{e.key, e.rev}
	}
}

// suspicious tells that etcd may be another one than before: the way to it broke, it has elected anew, or what answers is behind. A member
// that lags looks so, too.
func (a *Agent) suspicious(h *etcdserverpb.ResponseHeader) bool {
	if a.breaks.Load() != a.looked.Load() {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.etcd != 0 && h.ClusterId != a.etcd || h.RaftTerm != a.term || a.synced && h.Revision < a.cache.rev
}

// countBreaks counts until ctx ends. The client itself goes on with the next connection as if there had been none before.
func (a *Agent) countBreaks(ctx context.Context) {
	conn := a.cli.ActiveConnection()
	for state := conn.GetState(); conn.WaitForStateChange(ctx, state); state = conn.GetState() {
		a.breaks.Add(1)
	}
}

// lookBack returns errPutBack if etcd is found not to be what it was. While there is something to bring back, that is known.
func (a *Agent) lookBack(ctx context.Context) error {
	a.mu.Lock()
	rev, last, etcd, known := a.cache.rev, a.cache.last, a.etcd, a.past != nil || a.brought
	a.mu.Unlock()
	if rev == 0 || last.key == "" || known {
		return nil
	}
	breaks := a.breaks.Load()
	res, err := a.get(ctx, last.key)
	if err != nil {
		return fmt.Errorf("see whether etcd is the one that it was: %w", err)
	}
	same := etcd == 0 || res.Header.ClusterId == etcd
	if same = same && res.Header.Revision >= rev; same {
		same, err = a.remembers(ctx, last, res)
	}
	if err != nil {
		return err
	}
	a.looked.Store(breaks)
	a.mu.Lock()
	a.term = res.Header.RaftTerm
	a.mu.Unlock()
	if same {
		return nil
	}
	return a.putBack()
}

// lacksOwn tells that a snapshot lacks blocks of this host, which nobody else takes from it but who forgets the host, or deletes the
// network: the snapshot is of an etcd that never knew of them. Locked: a.mu.
func (a *Agent) lacksOwn(entries []entry) bool {
	has := make(map[string]bool, len(entries))
	for _, e := range entries {
		has[e.key] = true
	}
	if has[a.keys.forgotten(a.self.ID)] {
		return false
	}
	for net, of := range a.cache.ownBlocks() {
		for _, p := range of {
			if has[a.keys.network(net)] && !has[a.keys.block(net, p)] {
				return true
			}
		}
	}
	return false
}

// remembers tells whether etcd has seen the last change that this host has seen. What it has compacted away, it may have.
func (a *Agent) remembers(ctx context.Context, last marked, now *clientv3.GetResponse) (bool, error) {
	if len(now.Kvs) > 0 && now.Kvs[0].ModRevision == last.rev {
		return true, nil
	}
	if len(now.Kvs) > 0 && now.Kvs[0].ModRevision < last.rev {
		return false, nil
	}
	then, err := a.get(ctx, last.key, clientv3.WithRev(last.rev), clientv3.WithKeysOnly())
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return true, nil
	case errors.Is(err, rpctypes.ErrFutureRev):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("see whether etcd is the one that it was: %w", err)
	}
	return len(then.Kvs) > 0 && then.Kvs[0].ModRevision == last.rev, nil
}

// putBack voids what this agent holds by revisions, and keeps what it is to bring back. It returns errPutBack. What is known of the cluster
// stays as it is, in the file too, until etcd has been read: a daemon that is killed before finds out again.
func (a *Agent) putBack() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log.Warn("etcd was put back to an earlier state: this host publishes again what it has", "known_revision", a.cache.rev)
	c, p := a.cache, &past{others: map[ownBlock]bool{}}
	if a.past != nil { // again, before all was done
		p = a.past
	}
	for net, of := range c.blocks {
		for prefix, it := range of {
			if b := (ownBlock{net, prefix}); it.v.Host != a.self.ID {
				p.others[b] = true
			} else if !slices.Contains(p.own, b) {
				p.own = append(p.own, b)
			}
		}
	}
	for b := range a.fresh {
		if !slices.Contains(p.own, b) {
			p.own = append(p.own, b)
		}
	}
	for id, it := range c.networks {
		used := slices.ContainsFunc(p.own, func(b ownBlock) bool { return b.network == id })
		for at := range a.want {
			used = used || at.network == id
		}
		if used && !slices.ContainsFunc(p.networks, func(n Network) bool { return n.ID == id }) {
			p.networks = append(p.networks, it.v)
		}
	}
	a.past, a.brought, a.etcd, a.lease, a.gone, a.claimed = p, false, 0, 0, 0, 0
	c.recalled, a.synced, a.recalled = true, false, true
	a.pub, a.fresh, a.own.pub = map[place]published{}, map[ownBlock]int64{}, map[place]published{}
	for at := range a.want {
		a.todo[at] = struct{}{}
	}
	a.own.allAgain()
	close(a.void)
	a.void = make(chan struct{})
	return errPutBack
}

// bringBack writes what this host has in use and etcd does not know any more. The host has its place by then.
func (a *Agent) bringBack(ctx context.Context) error {
	a.mu.Lock()
	p, ready := a.past, a.lease != 0 && a.session == nil
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	if !ready {
		return fmt.Errorf("take the host's place in an etcd that was put back: %w", ErrAway)
	}
	for i := range p.networks {
		n := &p.networks[i]
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		res, err := a.cli.Txn(tctx).If(absent(a.keys.network(n.ID)), present(a.keys.schema())).Then(clientv3.OpPut(a.keys.network(n.ID), encode(n))).Commit()
		cancel()
		if err != nil {
			return a.away("bring back network "+n.Name, err)
		}
		if res.Succeeded {
			a.log.Warn("a network that etcd had lost is brought back", "network", n.ID, "name", n.Name)
		}
	}
	for _, b := range p.own {
		rev, err := a.tryBlock(ctx, b.network, b.prefix)
		if err != nil {
			return err
		}
		if rev != 0 {
			a.log.Warn("a block of addresses that etcd had lost is brought back", "network", b.network, "block", b.prefix)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.past, a.brought = nil, true
	a.left, a.leftUntil = maps.Clone(p.others), time.Now().Add(othersBlocks)
	return nil
}

// isLeft tells that a block was another host's before etcd was put back, who will want it again. Locked: a.mu.
func (a *Agent) isLeft(b ownBlock) bool {
	if a.left != nil && time.Now().After(a.leftUntil) {
		a.left = nil
	}
	return a.left[b]
}
