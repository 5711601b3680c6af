package engine

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// checkEvery is how often the cheap checks run: what drifts is repaired
	// within a second.
	checkEvery = 400 * time.Millisecond
	// syncEvery is how often everything is compared although nobody asked:
	// netlink tells of most changes, but not of all.
	syncEvery = 30 * time.Second
	// retryFirst and retryMost bound the wait before a failed pass is tried again.
	retryFirst = 250 * time.Millisecond
	retryMost  = 30 * time.Second
	// applyTimeout bounds one applier's turn.
	applyTimeout = 30 * time.Second
)

// pending is what the loop has to do next.
type pending struct {
	mu    sync.Mutex
	dirty plan.Dirty
	rev   uint64
	cause string // of a resync; "" = none asked
	// since the last resync, to space them
	last     time.Time
	took     time.Duration
	retry    time.Duration
	retryDue time.Time
}

func newPending() *pending { return &pending{dirty: emptyDirty(), last: time.Now()} }

func emptyDirty() plan.Dirty {
	return plan.Dirty{Networks: map[hcn.GUID]struct{}{}, Endpoints: map[hcn.GUID]struct{}{}, Namespaces: map[hcn.GUID]struct{}{}}
}

// add notes changed rows and reports whether there are any that concern the plan.
func (p *pending) add(d plan.Dirty, rev uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.dirty.Networks, d.Networks)
	maps.Copy(p.dirty.Endpoints, d.Endpoints)
	maps.Copy(p.dirty.Namespaces, d.Namespaces)
	p.rev = rev
	return len(d.Networks)+len(d.Endpoints)+len(d.Namespaces) > 0
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

// take hands over what is to do. A resync that was just made is not repeated at
// once: on a host with much to list, a storm of events would leave no time for
// anything else. The first one is never delayed.
func (p *pending) take(now time.Time) (dirty plan.Dirty, rev uint64, cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dirty, rev, p.dirty = p.dirty, p.rev, emptyDirty()
	if p.cause == "" && !p.retryDue.IsZero() && !now.Before(p.retryDue) {
		p.cause = "retry"
	}
	if p.cause == "" && now.Sub(p.last) > syncEvery {
		p.cause = "period"
	}
	if p.cause != "" && (p.cause == "start" || now.Sub(p.last) > 2*p.took) {
		cause, p.cause, p.retryDue = p.cause, "", time.Time{}
	}
	return dirty, rev, cause
}

func (p *pending) synced(now time.Time, took time.Duration, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.took = now, took
	if !failed {
		p.retry, p.retryDue = 0, time.Time{}
		return
	}
	p.retry = min(max(2*p.retry, retryFirst), retryMost)
	p.retryDue = now.Add(p.retry)
}

// failed asks for a full comparison soon: what an Update left half done, a Sync
// finishes.
func (p *pending) failed(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retryDue.IsZero() {
		p.retry = min(max(2*p.retry, retryFirst), retryMost)
		p.retryDue = now.Add(p.retry)
	}
}

// status tells callers how the loop did with their objects.
type status struct {
	mu      sync.Mutex
	applied uint64
	errs    map[string]error // by object ID, of its last turn
	changed chan struct{}
	closed  error
}

func newStatus() *status { return &status{errs: map[string]error{}, changed: make(chan struct{})} }

func (s *status) set(rev uint64, touched []string, errs map[string]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = max(s.applied, rev)
	for _, id := range touched {
		delete(s.errs, id)
	}
	maps.Copy(s.errs, errs)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *status) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = err
	close(s.changed)
	s.changed = make(chan struct{})
}

// wait blocks until the loop has applied a revision, and returns the error of
// the first of the objects that has one.
func (s *status) wait(ctx context.Context, rev uint64, ids ...string) error {
	for {
		s.mu.Lock()
		if s.applied >= rev {
			defer s.mu.Unlock()
			for _, id := range ids {
				if err := s.errs[id]; err != nil {
					return err
				}
			}
			return nil
		}
		if s.closed != nil {
			defer s.mu.Unlock()
			return s.closed
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// check asks the appliers that can tell cheaply whether something drifted.
func (e *Engine) check(ctx context.Context) {
	for _, a := range e.opt.Appliers {
		c, ok := a.(Checker)
		if !ok {
			continue
		}
		if fine, err := c.Check(ctx, e.plan); err != nil || !fine {
			e.pending.resync("check")
		}
	}
}

// pass compiles what is dirty and applies it; with a resync due, it has every
// applier compare everything.
func (e *Engine) pass(ctx context.Context) {
	now := time.Now()
	dirty, rev, cause := e.pending.take(now)
	if cause != "" {
		e.refreshFacts(ctx, &dirty)
	}
	e.mu.RLock()
	delta := e.plan.Recompile(e.st.intent(), &e.facts, dirty)
	if rev == 0 {
		rev = e.st.rev
	}
	e.mu.RUnlock()
	e.plan.Revision = rev
	if delta.Empty() && cause == "" {
		e.status.set(rev, nil, nil)
		return
	}
	e.opt.Step("apply")
	errs := map[string]error{}
	if !delta.Empty() && cause != "start" {
		e.update(ctx, delta, errs)
	}
	if cause != "" {
		e.resync(ctx, cause, errs)
	}
	touched := touchedIDs(delta)
	if cause != "" {
		touched = append(touched, e.status.failing()...)
	}
	e.status.set(rev, touched, errs)
	e.attachEvents(delta, errs)
}

// failing lists the objects whose last turn failed.
func (s *status) failing() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.errs))
	for id := range s.errs {
		out = append(out, id)
	}
	return out
}

func touchedIDs(d *plan.Delta) []string {
	out := make([]string, 0, len(d.Namespaces)+len(d.Switches)+len(d.Ports))
	for id := range d.Namespaces {
		out = append(out, string(id))
	}
	for id := range d.Switches {
		out = append(out, string(id))
	}
	for id := range d.Ports {
		out = append(out, string(id))
	}
	return out
}

// update runs the appliers over the delta. A port that one of them failed for
// is left out for the rest, so that no port comes up without its program.
func (e *Engine) update(ctx context.Context, delta *plan.Delta, errs map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	for i, a := range e.opt.Appliers {
		e.opt.Step(stepNames[min(i, len(stepNames)-1)])
		err := a.Update(ctx, e.plan, delta)
		if err == nil {
			continue
		}
		e.log.Warn("apply a change", "applier", i, "error", err)
		e.pending.failed(time.Now())
		objects, rest := split(err)
		for id, err := range objects {
			errs[id] = errors.Join(errs[id], err)
			if c, ok := delta.Ports[plan.PortID(id)]; ok && c.New != nil {
				delete(delta.Ports, plan.PortID(id))
			}
		}
		if rest != nil {
			for _, id := range touchedIDs(delta) {
				errs[id] = errors.Join(errs[id], rest)
			}
			clear(delta.Ports)
			clear(delta.Switches)
			clear(delta.Namespaces)
			return
		}
	}
}

// stepNames name the points where tests cut a pass, one before each applier.
var stepNames = []string{"apply-devices", "apply-switch", "apply-nat", "apply-up", "apply-names"}

// split sorts the errors of an applier by object; rest belongs to none.
func split(err error) (objects map[string]error, rest error) {
	objects = map[string]error{}
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // takes this very error apart
			for _, err := range joined.Unwrap() {
				walk(err)
			}
			return
		}
		var o *plan.ObjectError
		if errors.As(err, &o) {
			objects[o.ID] = errors.Join(objects[o.ID], o.Err)
			return
		}
		rest = errors.Join(rest, err)
	}
	walk(err)
	return objects, rest
}

// refreshFacts looks at the host again. A change of what the plan follows makes
// every network dirty.
func (e *Engine) refreshFacts(ctx context.Context, dirty *plan.Dirty) {
	f, err := e.opt.Facts(ctx)
	if err != nil {
		e.log.Warn("look at the host", "error", err)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.UplinkMTU != e.facts.UplinkMTU {
		for id := range e.st.networks {
			dirty.Networks[id] = struct{}{}
		}
	}
	e.warnCollisions(&f)
	e.facts = f
}

// resync has every applier compare the whole plan with the kernel.
func (e *Engine) resync(ctx context.Context, cause string, errs map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	begin := time.Now()
	failed := false
	var drift []plan.Drift
	for i, a := range e.opt.Appliers {
		e.opt.Step("sync-" + stepNames[min(i, len(stepNames)-1)])
		d, err := a.Sync(ctx, e.plan)
		drift = append(drift, d...)
		if err == nil {
			continue
		}
		failed = true
		e.log.Warn("compare with the kernel", "applier", i, "cause", cause, "error", err)
		objects, rest := split(err)
		for id, err := range objects {
			errs[id] = errors.Join(errs[id], err)
		}
		if rest != nil && i == 0 {
			break // without devices the rest only fails as well
		}
	}
	e.pending.synced(time.Now(), time.Since(begin), failed)
	if cause == "start" {
		// What the last run left half done is no drift: nobody else did it.
		drift = onlyVanished(drift)
	}
	e.report(drift)
}

const foundVanished = "vanished"

func onlyVanished(in []plan.Drift) (out []plan.Drift) {
	for _, d := range in {
		if d.Found == foundVanished {
			out = append(out, d)
		}
	}
	return out
}
