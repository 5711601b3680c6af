package overlay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A watch is a snapshot plus events. The snapshot is read in pages at one revision; events go on from there, and a watch that
// breaks goes on after the last revision that was taken in. Only when etcd has compacted that revision away is everything
// read again, and compared with what is here: what did not change is not told to anybody.

// firstPage is how many keys a page of a snapshot has. Values have bounds only once they are here, so a page that is larger
// than a message may be is asked for again, smaller.
const firstPage = 1000

// watch runs until something breaks. It returns no nil.
func (a *Agent) watch(ctx context.Context) error {
	a.mu.Lock()
	void := a.void // from here on, whoever finds out that etcd was put back ends this
	a.mu.Unlock()
	if err := a.lookBack(ctx); err != nil {
		return err
	}
	if err := a.bringBack(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	synced, rev := a.synced, a.cache.rev
	a.mu.Unlock()
	if !synced {
		if err := a.list(ctx); err != nil {
			return err
		}
		a.mu.Lock()
		rev = a.cache.rev
		a.mu.Unlock()
	}
	err := a.follow(ctx, rev, void)
	if errors.Is(err, rpctypes.ErrCompacted) {
		a.log.Info("etcd has compacted what this host had not seen yet: it reads everything again", "revision", rev)
		if err := a.list(ctx); err != nil {
			return err
		}
		a.mu.Lock()
		rev = a.cache.rev
		a.mu.Unlock()
		return a.follow(ctx, rev, void)
	}
	return err
}

// list takes a snapshot in.
func (a *Agent) list(ctx context.Context) error {
	entries, rev, err := a.snapshot(ctx)
	if err != nil {
		return fmt.Errorf("read the cluster's keys: %w", err)
	}
	a.mu.Lock()
	if err := a.checkSchema(entries); err != nil {
		a.mu.Unlock()
		return err
	}
	if !a.brought && a.lacksOwn(entries) {
		a.mu.Unlock()
		return a.putBack()
	}
	a.brought = false
	clear(a.doubt.held)
	missed := a.missed(entries)
	a.cache.reset(entries, rev, func(key string) bool { return a.holdMissed(key, rev, missed) })
	a.takeOwn(entries, rev)
	a.synced = true
	a.saveSoon()
	a.advance()
	a.advanceChecks()
	a.mu.Unlock()
	a.cfg.Seen(rev)
	a.cfg.Changed()
	return nil
}

// skips tells which keys a light agent does not keep.
func (a *Agent) skips(key string) bool {
	if !a.cfg.Light {
		return false
	}
	p, err := a.keys.parse(key)
	switch p.kind {
	case kindHost:
		return p.id != a.cfg.Host.ID
	case kindEndpoint, kindBalancer:
		return p.host != a.cfg.Host.ID
	default:
		return err != nil
	}
}

// advance tells those who wait for the cache. Locked: a.mu.
func (a *Agent) advance() {
	close(a.moved)
	a.moved = make(chan struct{})
}

// advanceChecks tells those who wait for a check of the underlay. Locked: a.mu.
func (a *Agent) advanceChecks() {
	close(a.checks)
	a.checks = make(chan struct{})
}

// checkSchema refuses a snapshot of another version.
func (a *Agent) checkSchema(entries []entry) error {
	for _, e := range entries {
		if e.key == a.keys.schema() {
			return checkSchema(a.keys, e.value)
		}
	}
	return noCluster(a.keys)
}

func noCluster(k keys) error {
	return fmt.Errorf("%w has its keys below %s of this etcd: `bulkhead cluster init` makes one, or choose the prefix that the other hosts have", ErrNoCluster, k.prefix)
}

func checkSchema(k keys, value []byte) error {
	s, err := decode[schemaRecord](kindSchema, value)
	if err != nil {
		return fmt.Errorf("%s holds no record of Bulkhead's (%w): choose another prefix", k.schema(), err)
	}
	if s.Version != Schema {
		return fmt.Errorf("%w: the cluster at %s has version %d, this program speaks version %d: run the same version of Bulkhead on all hosts, "+
			"or join a cluster with another prefix", ErrSchema, k.prefix, s.Version, Schema)
	}
	return nil
}

// snapshot reads all keys at one revision.
func (a *Agent) snapshot(ctx context.Context) ([]entry, int64, error) {
	for {
		out, rev, err := a.snapshotAt(ctx)
		if !errors.Is(err, rpctypes.ErrCompacted) { // it took too long: begin anew
			return out, rev, err
		}
	}
}

func (a *Agent) snapshotAt(ctx context.Context) (out []entry, rev int64, err error) {
	all, eps := a.keys.all(), a.keys.endpoints()
	after, end := clientv3.GetPrefixRangeEnd(eps), clientv3.GetPrefixRangeEnd(all)
	if !a.cfg.Light {
		rev, err = a.readRange(ctx, all, end, 0, &out)
		return out, rev, err
	}
	// Of the endpoints its own only, which are found by the networks.
	if rev, err = a.readRange(ctx, all, eps, 0, &out); err != nil {
		return nil, 0, err
	}
	if _, err = a.readRange(ctx, after, end, rev, &out); err != nil {
		return nil, 0, err
	}
	for _, e := range out {
		if p, err := a.keys.parse(e.key); err == nil && p.kind == kindNetwork {
			own := a.keys.endpointsBy(p.id, a.cfg.Host.ID)
			if _, err := a.readRange(ctx, own, clientv3.GetPrefixRangeEnd(own), rev, &out); err != nil {
				return nil, 0, err
			}
		}
	}
	return out, rev, nil
}

// readRange adds the keys of a range, at a revision, or at the newest where that is 0; it gives the revision.
func (a *Agent) readRange(ctx context.Context, from, end string, rev int64, out *[]entry) (int64, error) {
	page := int64(firstPage)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(page)}
		if rev != 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		res, err := a.get(ctx, from, opts...)
		if tooLarge(err) && page > 1 {
			page = max(page/4, 1)
			continue
		}
		if err != nil {
			return 0, err
		}
		if rev == 0 {
			rev = res.Header.Revision
			a.mu.Lock()
			a.etcd = res.Header.ClusterId
			a.mu.Unlock()
		}
		for _, kv := range res.Kvs {
			if len(*out) >= 4*maxObjects {
				return 0, fmt.Errorf("there are more than %d keys below %s", 4*maxObjects, a.keys.prefix)
			}
			if !a.skips(string(kv.Key)) {
				*out = append(*out, a.entryOf(kv))
			}
		}
		if !res.More || len(res.Kvs) == 0 {
			return rev, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

func (a *Agent) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return a.cli.Get(ctx, key, opts...)
}

func tooLarge(err error) bool {
	return err != nil && status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max")
}

// entryOf keeps of a value no more than would be read of its kind: the rest only says that it is too large.
func (a *Agent) entryOf(kv *mvccpb.KeyValue) entry {
	value := kv.Value
	p, _ := a.keys.parse(string(kv.Key)) // of a foreign key nothing is read
	if most := maxValue[p.kind] + 1; len(value) > most {
		value = append([]byte(nil), value[:most]...)
	}
	return entry{key: string(kv.Key), value: value, created: kv.CreateRevision, rev: kv.ModRevision, lease: kv.Lease}
}

// follow takes events in, from the one after rev, until void is closed.
func (a *Agent) follow(ctx context.Context, rev int64, void <-chan struct{}) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	events := a.cli.Watch(ctx, a.keys.all(), clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithCreatedNotify(), clientv3.WithFragment(), clientv3.WithProgressNotify())
	due := time.NewTicker(doubtEvery)
	defer due.Stop()
	for {
		select {
		case <-void:
			return errPutBack
		case <-due.C:
			if a.believeDue() {
				a.cfg.Changed()
			}
		case res, ok := <-events:
			if !ok {
				return fmt.Errorf("watch: %w", errors.Join(errors.New("it ended"), ctx.Err()))
			}
			if err := res.Err(); err != nil {
				return fmt.Errorf("watch: %w", err)
			}
			if len(res.Events) > 0 && a.suspicious(res.Header) { // before anything of another etcd is taken for what came next
				if err := a.lookBack(ctx); err != nil {
					return err
				}
			}
			if err := a.takeIn(&res); err != nil {
				return err
			}
		}
	}
}

func (a *Agent) takeIn(res *clientv3.WatchResponse) error {
	a.mu.Lock()
	a.watching = nil
	doubted := a.doubted(res.Events)
	for _, ev := range res.Events {
		e := a.entryOf(ev.Kv)
		if ev.Type == mvccpb.DELETE {
			e.value, e.deleted = nil, true
		}
		if e.key == a.keys.schema() {
			err := noCluster(a.keys)
			if !e.deleted {
				err = checkSchema(a.keys, e.value)
			}
			if err != nil {
				a.synced, a.recalled = false, true // what is there by then is read anew: this event would come again and again
				a.mu.Unlock()
				return err
			}
		}
		if a.skips(e.key) || e.deleted && doubted[e.rev] && a.hold(e) {
			continue
		}
		a.release(e)
		a.cache.put(e)
		a.ownEvent(e)
	}
	if len(res.Events) > 0 {
		a.cache.rev = max(a.cache.rev, res.Events[len(res.Events)-1].Kv.ModRevision)
	}
	if res.IsProgressNotify() { // nothing of ours up to there: what is compacted meanwhile need not be read again
		a.cache.rev = max(a.cache.rev, res.Header.Revision)
	}
	dirty := !a.cache.dirty.empty()
	a.saveSoon()
	a.advance()
	a.mu.Unlock()
	if len(res.Events) > 0 {
		a.cfg.Seen(res.Events[len(res.Events)-1].Kv.ModRevision)
	}
	if dirty {
		a.cfg.Changed()
	}
	return nil
}

// takeOwn compares what a snapshot has of this host's endpoints with what we know. Locked: a.mu.
func (a *Agent) takeOwn(entries []entry, rev int64) {
	seen := map[place]bool{}
	for _, e := range entries {
		if p, err := a.keys.parse(e.key); err == nil && p.kind == kindEndpoint && p.host == a.self.ID {
			seen[place{p.network, p.id}] = true
		}
		a.ownEvent(e)
	}
	a.missedBalancers(entries, rev)
	for at, p := range a.pub {
		if !seen[at] && p.rev <= rev && p.raw != "" {
			a.pub[at] = published{rev: rev}
			a.todo[at] = struct{}{}
		}
	}
	if a.cache.hosts[a.self.ID] == nil {
		a.loseSession(rev)
	}
	a.kick()
}

// ownEvent follows what becomes of our own keys: somebody may have removed or changed them. Locked: a.mu.
func (a *Agent) ownEvent(e entry) {
	p, err := a.keys.parse(e.key)
	if err != nil {
		return
	}
	switch {
	case p.kind == kindCheck, p.kind == kindChecked:
		a.advanceChecks()
	case p.kind == kindHost && p.id == a.self.ID:
		if e.deleted || string(e.value) != encode(&a.self) && !a.rereg { // somebody else has changed it
			a.loseSession(e.rev)
		}
	case p.kind == kindHost && e.deleted: // what it had counts no more
		for at := range a.own.refused {
			a.retryBalancers(at.network)
		}
	case p.kind == kindBlock:
		if len(a.unpublished) > 0 {
			for at := range a.unpublished {
				if at.network == p.network {
					a.todo[at] = struct{}{}
				}
			}
			a.kick()
		}
	case p.kind == kindNetwork:
		a.retryBalancers(p.id)
		for at := range a.unpublished {
			if at.network == p.id {
				a.todo[at] = struct{}{}
				a.kick()
			}
		}
	case p.kind == kindBalancer:
		a.balancerEvent(p, e)
	case p.kind == kindQuestion, p.kind == kindAnswer:
		a.askEvent(p, e)
	case p.kind == kindEndpoint && p.host == a.self.ID:
		at := place{p.network, p.id}
		have := a.pub[at]
		if e.rev <= have.rev {
			return
		}
		now := published{rev: e.rev}
		if !e.deleted {
			now.raw, now.lease = string(e.value), clientv3.LeaseID(e.lease)
		}
		if now.raw == "" && a.want[at].raw == "" {
			delete(a.pub, at)
			return
		}
		a.pub[at] = now
		if now.raw != a.want[at].raw || now.lease != a.lease {
			a.todo[at] = struct{}{}
			a.kick()
		}
	}
}

// loseSession ends the session, if that wrote the host's key before the revision at which it is gone. Locked: a.mu.
func (a *Agent) loseSession(gone int64) {
	a.gone = max(a.gone, gone)
	if gone <= a.claimed || a.lease == 0 {
		return
	}
	select {
	case <-a.lost:
	default:
		close(a.lost)
	}
}
