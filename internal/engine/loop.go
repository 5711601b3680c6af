package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// checkEvery is how often the cheap checks run: what drifts is repaired
	// within a second.
	checkEvery = 400 * time.Millisecond
	// applyTimeout bounds one pass through the appliers, and firstTimeout one before everything was compared once: a host
	// that starts has more to do, and less time for it. systemd waits a minute longer.
	applyTimeout = 30 * time.Second
	firstTimeout = 4 * time.Minute
)

// stepNames name the points where tests cut a pass, one before each applier.
var stepNames = []string{"apply-devices", "apply-nat", "apply-switch", "apply-up", "apply-names"}

func stepName(i int) string { return stepNames[min(i, len(stepNames)-1)] }

// appliers lists them stage by stage.
func (e *Engine) appliers() []Applier {
	var out []Applier
	for _, s := range e.opt.Stages {
		out = append(out, s...)
	}
	return out
}

// check asks the appliers that can tell cheaply whether something drifted.
func (e *Engine) check(ctx context.Context) {
	for _, a := range e.appliers() {
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
// applier compare everything. Callers are told of their change before that: they
// do not wait for the rest of the host.
func (e *Engine) pass(ctx context.Context) {
	cause := e.pending.due(time.Now())
	if cause != "" || e.pending.anyMoved() {
		if err := e.refreshFacts(ctx); err != nil {
			e.log.Warn("compare with what the host was", "error", err)
		}
	}
	e.followNICs()
	moved := e.pending.takeMoved()
	e.takeLeases(false)
	e.takeOver()
	e.mu.RLock()
	w := e.pending.take()
	delta := e.plan.Recompile(e.st.intent(), &e.facts, w.dirty)
	e.mu.RUnlock()
	e.plan.Revision = w.rev
	e.view.apply(delta)
	// A daemon that is told to stop finishes the pass: half of one would be told
	// to callers as their failure.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.passTimeout())
	defer cancel()
	errs := map[object]error{}
	touched := touchedObjects(delta)
	if cause != causeStart {
		if !delta.Empty() {
			e.opt.Step("apply")
			begin := time.Now()
			e.cut(ctx, delta, &w)
			e.update(ctx, delta, errs)
			e.keepPorts(delta)
			e.opt.Meter.Pass(false, time.Since(begin))
		}
		e.publish(w.events, errs)
		e.status.set(w.rev, touched, errs)
	}
	e.announceMoved(moved)
	if cause != "" {
		e.opt.Step("sync")
		errs = e.resync(ctx, cause)
		if cause == causeStart {
			e.publish(w.events, errs)
		}
		e.status.replace(w.rev, errs)
	}
	e.publishCluster(delta, cause == causeStart)
	if cause != "" || len(touched) > 0 {
		e.syncLeases(ctx)
	}
	e.leases.broadcast()
}

// update runs the appliers over the delta. What one of them failed for is left
// out for the rest.
func (e *Engine) update(ctx context.Context, delta *plan.Delta, errs map[object]error) {
	var fresh []hcn.GUID
	for id, c := range delta.Namespaces {
		if c.Old == nil {
			fresh = append(fresh, id)
		}
	}
	first := 0
	for _, stage := range e.opt.Stages {
		for i, err := range e.updateStage(ctx, stage, first, delta) {
			if err == nil {
				continue
			}
			e.log.Warn("apply a change", "step", stepName(first+i), "error", err)
			e.pending.failed(time.Now())
			objects, rest := split(err)
			for k, err := range objects {
				strike(delta, k, err, errs)
			}
			if rest != nil {
				strikeAll(delta, rest, errs)
			}
		}
		first += len(stage)
	}
	e.noteMade(fresh, errs)
}

// sideBySide is how many objects a change has to touch for the appliers of a stage
// to work at a time. To wake another processor takes 0.1 to 0.3 ms, as long as an
// applier needs for one object or two.
const sideBySide = 8

// updateStage runs the appliers of a stage, side by side if there is much to do,
// the first of them here.
func (e *Engine) updateStage(ctx context.Context, stage Stage, number int, delta *plan.Delta) []error {
	errs := make([]error, len(stage))
	update := func(i int) {
		e.opt.Step(stepName(number + i))
		errs[i] = stage[i].Update(ctx, e.plan, delta)
	}
	if len(delta.Ports)+len(delta.Namespaces)+len(delta.Switches)+len(delta.Balancers)+len(delta.Remotes) < sideBySide {
		for i := range stage {
			update(i)
		}
		return errs
	}
	var wg sync.WaitGroup
	for i := 1; i < len(stage); i++ {
		wg.Go(func() { update(i) })
	}
	update(0)
	wg.Wait()
	return errs
}

// cut has what the delta takes away cut off, and tells those who wait for it. With
// a delta that makes something too, they wait for the whole: events are in the
// order of commits, and that of a removal leaves before its caller is answered.
func (e *Engine) cut(ctx context.Context, delta *plan.Delta, w *work) {
	if !onlyTakesAway(delta) {
		return
	}
	for _, a := range e.appliers() {
		c, ok := a.(Cutter)
		if !ok {
			continue
		}
		if err := c.Cut(ctx, delta); err != nil {
			e.log.Warn("cut off what was taken away", "error", err)
			return // they are told when the Update is through
		}
	}
	e.opt.Step("cut")
	e.publish(w.events, nil)
	w.events = nil
	e.status.setCut(w.rev)
	runtime.Gosched() // who waits goes on here and now, and not when another processor has woken up for it
}

func onlyTakesAway(d *plan.Delta) bool {
	for _, c := range d.Ports {
		if c.New != nil {
			return false
		}
	}
	for _, c := range d.Namespaces {
		if c.New != nil {
			return false
		}
	}
	for _, c := range d.Switches {
		if c.New != nil {
			return false
		}
	}
	for _, c := range d.Balancers {
		if c.Old == nil {
			return false
		}
	}
	return true
}

// keepPorts takes the host ports again of endpoints that left the plan and not the
// store: the data path gives up what it does not serve, but a stopped container's
// ports stay its own.
func (e *Engine) keepPorts(delta *plan.Delta) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, c := range delta.Ports {
		if c.New != nil || len(c.Old.Forwards) == 0 {
			continue
		}
		if ep := e.st.endpoints[c.Old.Endpoint]; ep != nil {
			e.holdPorts(ep)
		}
	}
}

// holdPorts takes an endpoint's host ports, if it has not got them. One that
// somebody took meanwhile is the endpoint's on paper only: attaching it says so.
func (e *Engine) holdPorts(ep *plan.Endpoint) {
	for _, f := range plan.Forwards(ep) {
		if err := e.opt.Ports.Retake(f, ownerOf(ep)); err != nil {
			e.log.Warn("hold a published port", "endpoint", ep.Doc.ID, "error", err)
		}
	}
}

// refreshFacts looks at the host again, for the loop or for somebody who needs to know now: one look at a time, for an
// older one must not take the place of a newer. A change of what the plan follows makes every network dirty.
func (e *Engine) refreshFacts(ctx context.Context) error {
	e.looking.Lock()
	defer e.looking.Unlock()
	f, err := e.opt.Facts(ctx)
	if err != nil {
		return fmt.Errorf("look at the host: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.UplinkMTU != e.facts.UplinkMTU {
		dirty := emptyDirty()
		for id := range e.st.networks {
			dirty.Networks[id] = struct{}{}
		}
		e.pending.add(dirty, e.st.rev, nil)
	}
	dirty := emptyDirty()
	for id, n := range e.st.networks {
		old, now := e.facts.NIC(n.Uplink), f.NIC(n.Uplink)
		if old != nil && f.NICOf(n) == nil {
			e.log.Warn("the NIC of a network is gone", "network", n.Doc.Name, "nic", n.Uplink)
		}
		if !sameNIC(now, old) {
			dirty.Networks[id] = struct{}{}
		}
		if old != nil && now != nil && old.MAC != now.MAC { // neighbours know containers by the old one, where they have that of the NIC
			e.pending.move(n.Uplink)
		}
	}
	if len(dirty.Networks) > 0 {
		e.pending.add(dirty, e.st.rev, nil)
		e.kick()
	}
	e.warnCollisions(&f)
	e.facts = f
	return nil
}

// resync has every applier compare the whole plan with the kernel.
func (e *Engine) resync(ctx context.Context, cause string) map[object]error {
	begin := time.Now()
	errs := map[object]error{}
	failed, whole := !e.makeNamespaces(ctx, errs), true
	var drift []plan.Drift
	for i, a := range e.appliers() {
		e.opt.Step("sync-" + stepName(i))
		d, err := a.Sync(ctx, e.plan)
		drift = append(drift, d...)
		if err == nil {
			continue
		}
		failed = true
		e.log.Warn("compare with the kernel", "applier", i, "cause", cause, "error", err)
		objects, rest := split(err)
		for k, err := range objects {
			errs[k] = errors.Join(errs[k], err)
		}
		if rest == nil {
			continue
		}
		// It says nothing about any one object, so those that failed before are
		// the ones that it keeps failed.
		for k, err := range e.status.failing() {
			errs[k] = errors.Join(errs[k], err)
		}
		if i == 0 {
			whole = false
			break // without devices the rest only fails as well
		}
	}
	e.noteCompared(whole && ctx.Err() == nil)
	took := time.Since(begin)
	e.opt.Meter.Pass(true, took)
	e.log.Debug("compared with the kernel", "cause", cause, "took", took)
	e.pending.synced(time.Now(), took, failed)
	if cause == causeStart {
		// What the last run left half done is no drift: nobody else did it. Nor is what a restart of the host took.
		drift = slices.DeleteFunc(drift, func(d plan.Drift) bool {
			return d.Found != foundVanished || plan.OwnNamespace(hcn.GUID(d.ID))
		})
	}
	e.report(drift)
	return errs
}

func (e *Engine) wasCompared() bool {
	select {
	case <-e.compared:
		return true
	default:
		return false
	}
}

func (e *Engine) passTimeout() time.Duration {
	if e.wasCompared() {
		return applyTimeout
	}
	return firstTimeout
}

// noteCompared notes the first comparison that came to its end.
func (e *Engine) noteCompared(whole bool) {
	switch {
	case e.wasCompared():
	case whole:
		close(e.compared)
	default:
		e.log.Warn("the first comparison with the kernel did not come to its end, and is made again")
	}
}

// makeNamespaces makes the compartments that were never made: a crash came
// between the store and the kernel, or an applier failed. A Sync cannot know
// them from those that somebody removed, and makes neither.
func (e *Engine) makeNamespaces(ctx context.Context, errs map[object]error) bool {
	fresh := map[hcn.GUID]plan.Change[plan.Namespace]{}
	e.mu.RLock()
	for id, ns := range e.plan.Namespaces {
		if row := e.st.namespaces[id]; row != nil && !e.madeLocked(row) {
			fresh[id] = plan.Change[plan.Namespace]{New: ns}
		}
	}
	e.mu.RUnlock()
	if len(fresh) == 0 || len(e.opt.Stages) == 0 {
		return true
	}
	e.opt.Step("make-namespaces")
	err := e.opt.Stages[0][0].Update(ctx, e.plan, &plan.Delta{Namespaces: fresh})
	objects, rest := split(err)
	for k, err := range objects {
		errs[k] = errors.Join(errs[k], err)
	}
	if err != nil {
		e.log.Warn("make compartments", "error", err)
	}
	if rest == nil {
		e.noteMade(slices.Collect(maps.Keys(fresh)), errs)
	}
	return err == nil
}

// madeLocked tells whether a namespace's compartment was ever made. Locked: e.mu.
func (e *Engine) madeLocked(row *plan.NamespaceRow) bool {
	_, now := e.made[row.Doc.ID]
	return row.Made || now
}

// noteMade remembers what was made without an error. The rows learn of it with
// the next change, or the next look at the clock, so that making a namespace
// costs one write and not two.
func (e *Engine) noteMade(ids []hcn.GUID, errs map[object]error) {
	if len(ids) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if row := e.st.namespaces[id]; row != nil && !row.Made && errs[namespaceObject(id)] == nil {
			e.made[id] = struct{}{}
		}
	}
}

// keepMade stores what noteMade remembers.
func (e *Engine) keepMade() {
	e.mu.RLock()
	n := len(e.made)
	e.mu.RUnlock()
	if n == 0 {
		return
	}
	// commit adds the marks by itself to whatever is stored.
	if _, err := e.commit(func(t *txn) error { t.markMade(); return nil }); err != nil {
		e.log.Warn("note the compartments that were made", "error", err)
	}
}
