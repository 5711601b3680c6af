package overlay

import (
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// An etcd that stands still for longer than leases last, as on machines that are paused, ends them as it goes on, before anybody could have
// kept his. All hosts are there, and would take from each other's data planes what they publish again a moment later. So a host that has
// just been without etcd for so long does not believe at once that others have ended: what a lease's end removes stays until it is
// published again, or until the others have had their time to come back. So it is after a restart of the daemon by which its lease has ended.

// doubt is what an agent does not believe yet. Guarded by the agent's mu.
type doubt struct {
	heard time.Time // when etcd last said that it keeps this host's lease
	until time.Time // of the time after a silence
	held  map[string]entry
	due   time.Time // when those are believed
}

// patience is how long etcd may be silent before leases end that nobody gave up, and how long others have after that.
func (a *Agent) patience() time.Duration { return a.cfg.TTL * 2 / 3 }

// heardOf notes that etcd keeps this host's lease; kept: one that it had before this agent began.
func (a *Agent) heardOf(kept bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.silent(now) && (!kept || !a.doubt.heard.IsZero()) {
		a.doubt.until = now.Add(a.patience())
	}
	a.doubt.heard = now
}

// silent tells that etcd has said nothing for long, or nothing yet to one that goes on with what another has known. Locked: a.mu.
func (a *Agent) silent(now time.Time) bool {
	if a.doubt.heard.IsZero() {
		return a.cfg.known != nil
	}
	return now.Sub(a.doubt.heard) > a.patience()
}

// doubted are the revisions among events at which a host ended, while that is not believed. A lease's end removes all that it had by one.
// Locked: a.mu.
func (a *Agent) doubted(events []*clientv3.Event) map[int64]bool {
	if !a.shaken() {
		return nil
	}
	out := map[int64]bool{}
	for _, ev := range events {
		if ev.Type != mvccpb.DELETE {
			continue
		}
		if p, err := a.keys.parse(string(ev.Kv.Key)); err == nil && p.kind == kindHost && p.id != a.self.ID {
			out[ev.Kv.ModRevision] = true
		}
	}
	return out
}

// shaken tells that what has ended is not believed at once. Locked: a.mu.
func (a *Agent) shaken() bool {
	now := time.Now()
	return a.silent(now) || now.Before(a.doubt.until)
}

// missed are the hosts that a snapshot lacks, while it is not believed that they have ended. Locked: a.mu.
func (a *Agent) missed(entries []entry) map[hcn.GUID]bool {
	if !a.shaken() {
		return nil
	}
	out := map[hcn.GUID]bool{}
	for id := range a.cache.hosts {
		out[id] = id != a.self.ID
	}
	for _, e := range entries {
		if p, err := a.keys.parse(e.key); err == nil && p.kind == kindHost {
			delete(out, p.id)
		}
	}
	return out
}

// holdMissed keeps a key that a snapshot lacks, if it is of one of these hosts. Locked: a.mu.
func (a *Agent) holdMissed(key string, rev int64, missed map[hcn.GUID]bool) bool {
	p, err := a.keys.parse(key)
	host := p.host
	if p.kind == kindHost {
		host = p.id
	}
	return err == nil && missed[host] && a.hold(entry{key: key, deleted: true, rev: rev})
}

// hold keeps what is removed with a host, and tells whether it is of that kind. Locked: a.mu.
func (a *Agent) hold(e entry) bool {
	switch p, err := a.keys.parse(e.key); {
	case err != nil || p.kind == kindHost && p.id == a.self.ID:
		return false
	case p.kind != kindHost && p.kind != kindEndpoint && p.kind != kindBalancer:
		return false
	}
	if len(a.doubt.held) == 0 {
		a.doubt.held, a.doubt.due = map[string]entry{}, time.Now().Add(a.patience())
		a.log.Info("hosts have ended as etcd came back: they are waited for", "for", a.patience())
	}
	a.doubt.held[e.key] = e
	return true
}

// release lets go of what is held where an event says what has become of it: the key itself, and what has an address that another endpoint
// of its host has now. Locked: a.mu.
func (a *Agent) release(e entry) {
	if len(a.doubt.held) == 0 {
		return
	}
	delete(a.doubt.held, e.key)
	p, err := a.keys.parse(e.key)
	if err != nil || p.kind != kindEndpoint || e.deleted {
		return
	}
	ep, err := decode[Endpoint](kindEndpoint, e.value)
	if err != nil {
		return
	}
	for key, old := range a.doubt.held {
		o, err := a.keys.parse(key)
		if err != nil || o.kind != kindEndpoint || o.network != p.network || o.host != p.host {
			continue
		}
		for _, it := range a.cache.endpoints[o.network][o.id] {
			if it.v.Host == p.host && slices.ContainsFunc(ep.Addrs, func(x netip.Addr) bool { return slices.Contains(it.v.Addrs, x) }) {
				a.believe(old)
				break
			}
		}
	}
}

// believe takes one in that was held. Locked: a.mu.
func (a *Agent) believe(e entry) {
	delete(a.doubt.held, e.key)
	a.cache.put(e)
	a.ownEvent(e)
}

// believeDue takes all in whose time is over, and tells whether there was any.
func (a *Agent) believeDue() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.doubt.held) == 0 || time.Now().Before(a.doubt.due) {
		return false
	}
	for _, e := range a.doubt.held {
		a.believe(e)
	}
	a.saveSoon()
	a.advance()
	return true
}

// doubtEvery is how often it is looked whether the time of what is held is over.
const doubtEvery = 500 * time.Millisecond
