package engine

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// This file holds the way of a change: into memory at once, under the engine's
// lock; then to the disk and to the kernel side by side; the caller hears of it
// when both are done.
//
// Writing to the disk first and to the kernel afterwards costs every caller the
// sum of the two, and syncing under the lock makes every reader wait for the
// disk. Side by side, a crash in between leaves kernel objects that no row
// wants, or rows whose objects are not made yet. The next start prunes the first
// and makes the second, as it has to in any case, and nobody was told of either.
// Transactions that meet at the disk share one sync.

// txn is one change of the state: all of it holds, or none. It is applied to the
// memory at once, and taken back if it fails.
type txn struct {
	e    *Engine
	st   *state
	undo []func()
	save []saving
	// after runs under the lock when the transaction is stored.
	after  []func()
	dirty  plan.Dirty
	events []queued
	// facts of the host that a new network is held against.
	facts *plan.Facts
	// stored gets the outcome of the write.
	stored chan error
	// writes says that its commit has to write, with it whatever else is not stored yet.
	writes bool
	// dry transactions are taken back, whatever comes of them.
	dry bool
	// full are subnets of which the cluster has no block to give.
	full map[subnetKey]bool
	// tentative, unless nil, is the change whose attachments are to be confirmed.
	tentative *tentative
	// adopting: its networks are a cluster's.
	adopting bool
}

// saving is one row of a change on its way to its store, and back to what it was.
type saving struct {
	// passing rows end with the run of the host: they are in the store that does too.
	passing   bool
	put, back func(*store.Tx) error
}

// commitOnce runs fn as a transaction, waits until it is stored, and returns the
// revision to wait for in the kernel: that of the newest change which concerns
// the plan, so that nobody waits for the loop over one which does not.
func (e *Engine) commitOnce(fn func(*txn) error) (uint64, error) {
	t, rev, err := e.change(fn)
	if err != nil || t == nil {
		return rev, err
	}
	// The loop goes on with the change here and now, and not when another processor has woken up for it: that one gets the writing.
	runtime.Gosched()
	// Who waits anyway writes: another goroutine is another processor to wake.
	if t.writes && e.storeBatch() {
		go e.storeAll()
	}
	if err := <-t.stored; err != nil {
		return 0, api.Errorf(api.KindInternal, "store the change: %w", err).
			Hint("nothing was changed; see that the state directory can be written and its disk has space, then try again")
	}
	return rev, nil
}

// change is the part of a commit that is done under the lock. The transaction is
// nil when there is nothing to store.
func (e *Engine) change(fn func(*txn) error) (*txn, uint64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &txn{e: e, st: e.st, dirty: emptyDirty(), facts: &e.facts, stored: make(chan error, 1)}
	if err := fn(t); err != nil {
		t.rollBack()
		return nil, 0, err
	}
	if len(t.save) > 0 {
		t.markMade()
	}
	concerns := len(t.dirty.Networks)+len(t.dirty.Endpoints)+len(t.dirty.Namespaces)+len(t.dirty.Balancers) > 0
	if concerns {
		e.st.rev++
	}
	if concerns || len(t.events) > 0 {
		e.pending.add(t.dirty, e.st.rev, t.events)
		e.kick()
	}
	if len(t.save) == 0 {
		t.finish()
		return nil, e.st.rev, nil
	}
	e.unstored = append(e.unstored, t)
	if !e.storing {
		e.storing, t.writes = true, true
	}
	return t, e.st.rev, nil
}

func (t *txn) rollBack() {
	for _, undo := range slices.Backward(t.undo) {
		undo()
	}
}

// holdPorts takes the host ports of what was restored: a later change may have
// taken over one that an earlier one gave up, and released it on its way back.
func (t *txn) holdPorts() {
	for id := range t.dirty.Endpoints {
		if ep := t.st.endpoints[id]; ep != nil {
			t.e.holdPorts(ep)
		}
	}
}

func (t *txn) finish() {
	for _, f := range t.after {
		f()
	}
}

// storeAll writes transactions until none is left. It has no owner that waits for
// it: every commit does, for its own.
func (e *Engine) storeAll() {
	for e.storeBatch() {
	}
}

// storeBatch writes the transactions that are not stored yet in one go, and tells
// whether others came meanwhile. When none did, the next commit writes.
func (e *Engine) storeBatch() (more bool) {
	e.mu.Lock()
	batch := e.unstored
	lasting, passing := e.opt.DB, e.opt.Passing
	e.unstored = nil
	e.mu.Unlock()
	begin := time.Now()
	err := e.write(lasting, passing, batch)
	e.opt.Meter.Commit(time.Since(begin), err)
	if err != nil {
		e.unstorable(batch, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		for _, t := range batch {
			t.finish()
			t.stored <- nil
		}
	}
	e.storing = len(e.unstored) > 0
	return e.storing
}

// write writes a batch, to the store that outlives the host's run first. A crash in
// between leaves what a restart of the host leaves too: endpoints and containers
// without their compartments.
func (e *Engine) write(lasting, passing *store.DB, batch []*txn) (err error) {
	// It runs for one caller and writes for others too: they must not wait for ever when it panics.
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("the store made the daemon panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("the store is damaged: %v", p)
		}
	}()
	var last, pass []saving
	for _, t := range batch {
		for _, s := range t.save {
			if s.passing && passing != nil {
				pass = append(pass, s)
			} else {
				last = append(last, s)
			}
		}
	}
	if err := put(lasting, last); err != nil {
		return err
	}
	if len(last) > 0 && len(pass) > 0 {
		e.opt.Step("half-stored")
	}
	err = put(passing, pass)
	if err == nil || len(last) == 0 {
		return err
	}
	_, back := lasting.Update(func(tx *store.Tx) error {
		for _, s := range slices.Backward(last) {
			if err := s.back(tx); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, back)
}

func put(db *store.DB, rows []saving) error {
	if len(rows) == 0 {
		return nil
	}
	_, err := db.Update(func(tx *store.Tx) error {
		for _, s := range rows {
			if err := s.put(tx); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// unstorable takes back transactions that the disk refused, and those made since
// on top of them. The loop then brings the kernel back to what is stored.
func (e *Engine) unstorable(batch []*txn, err error) {
	e.mu.Lock()
	batch = append(batch, e.unstored...)
	e.unstored = nil
	for _, t := range slices.Backward(batch) {
		t.rollBack()
	}
	for _, t := range batch {
		t.holdPorts()
	}
	e.st.rev++
	for _, t := range batch {
		e.pending.add(t.dirty, e.st.rev, nil)
	}
	e.pending.add(emptyDirty(), e.st.rev, []queued{{ev: gapEvent(), listAgain: true}})
	e.kick()
	e.mu.Unlock()
	for _, t := range batch {
		t.stored <- err
	}
}
