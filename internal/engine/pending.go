package engine

import (
	"maps"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// syncEvery is how often everything is compared although nobody asked:
	// netlink tells of most changes, but not of all.
	syncEvery = 30 * time.Second
	// retryFirst and retryMost bound the wait before a failed pass is tried again.
	retryFirst = 250 * time.Millisecond
	retryMost  = 30 * time.Second
	// syncShare is the part of the time, one in so many, that comparisons may take in the long run: on a host with much to
	// list, a storm of events would leave no time for anything else. syncAhead is how much of it may be taken in advance,
	// so that a repair seldom waits.
	syncShare = 3
	syncAhead = time.Second
)

// causeStart is the cause of the first comparison.
const causeStart = "start"

// pending is what the loop has to do next.
type pending struct {
	mu       sync.Mutex
	dirty    plan.Dirty
	rev      uint64
	events   []queued
	cause    string    // of a resync; "" = none asked
	last     time.Time // of the last resync
	paid     time.Time // when the resyncs so far would have been made in their share of the time
	retry    time.Duration
	retryDue time.Time
	moved    map[string]struct{} // NICs
}

// work is what one pass takes.
type work struct {
	dirty  plan.Dirty
	rev    uint64
	events []queued
}

func newPending(rev uint64) *pending {
	return &pending{dirty: emptyDirty(), rev: rev, last: time.Now()}
}

func emptyDirty() plan.Dirty {
	return plan.NoDirt()
}

// add notes a commit: its changed rows, its revision, and what it tells.
func (p *pending) add(d plan.Dirty, rev uint64, events []queued) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.dirty.Networks, d.Networks)
	maps.Copy(p.dirty.Endpoints, d.Endpoints)
	maps.Copy(p.dirty.Namespaces, d.Namespaces)
	maps.Copy(p.dirty.Remotes, d.Remotes)
	maps.Copy(p.dirty.Balancers, d.Balancers)
	p.dirty.Secure = p.dirty.Secure || d.Secure
	p.rev = rev
	p.events = append(p.events, events...)
}

func (p *pending) all(in *plan.Intent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = plan.DirtyAll(in)
}

func (p *pending) resync(cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause == "" {
		p.cause = cause
	}
}

// move notes that a NIC has moved.
func (p *pending) move(nic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moved == nil {
		p.moved = map[string]struct{}{}
	}
	p.moved[nic] = struct{}{}
}

func (p *pending) anyMoved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.moved) > 0
}

// takeMoved hands over the NICs that have moved.
func (p *pending) takeMoved() map[string]struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	moved := p.moved
	p.moved = nil
	return moved
}

// take hands over the changes. It is called under the engine's lock, and the
// plan is compiled before that is let go: with a change that came in between,
// the plan would hold a part of what the change is about.
func (p *pending) take() work {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := work{dirty: p.dirty, rev: p.rev, events: p.events}
	p.dirty, p.events = emptyDirty(), nil
	return w
}

// due tells whether everything is to be compared now, and why; "" = no. The first
// one is never delayed, others keep to their share of the time.
func (p *pending) due(now time.Time) (cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause == "" && !p.retryDue.IsZero() && !now.Before(p.retryDue) {
		p.cause = "retry"
	}
	if p.cause == "" && now.Sub(p.last) > syncEvery {
		p.cause = "period"
	}
	if p.cause != "" && (p.cause == causeStart || !now.Before(p.paid.Add(-syncAhead))) {
		cause, p.cause, p.retryDue = p.cause, "", time.Time{}
	}
	return cause
}

// next is when a comparison that is asked for will be due, if one is.
func (p *pending) next(now time.Time) (after time.Duration, asked bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause == "" && p.retryDue.IsZero() {
		return 0, false
	}
	when := p.paid.Add(-syncAhead)
	if p.cause == "" && p.retryDue.After(when) {
		when = p.retryDue
	}
	return max(0, when.Sub(now)), true
}

func (p *pending) synced(now time.Time, took time.Duration, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = now
	if begin := now.Add(-took); p.paid.Before(begin) {
		p.paid = begin
	}
	p.paid = p.paid.Add(syncShare * took)
	if !failed {
		p.retry, p.retryDue = 0, time.Time{}
		return
	}
	p.again(now)
}

// failed asks for a full comparison soon: what an Update left half done, a Sync
// finishes.
func (p *pending) failed(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retryDue.IsZero() {
		p.again(now)
	}
}

func (p *pending) again(now time.Time) {
	p.retry = min(max(2*p.retry, retryFirst), retryMost)
	p.retryDue = now.Add(p.retry)
}
