package engine

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

const (
	// backoffFirst and backoffMost bound the wait before a restart policy starts
	// a container again; one that ran for backoffReset starts over.
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	backoffReset = 10 * time.Second
	// opTimeout bounds one step of the sandbox.
	opTimeout = 2 * time.Minute
	// lookAgain is the wait before a container is looked at again whose state
	// could not be read, or not be stored.
	lookAgain = 2 * time.Second
)

// supervisor looks after containers: one operation at a time on each, exits,
// restart policies.
type supervisor struct {
	e  *Engine
	mu sync.Mutex
	// locks by container; refs counts who holds or waits.
	locks map[string]*ctrLock
	// changed is closed and replaced whenever a container's state changes.
	changed chan struct{}
	backoff map[string]time.Duration
	// waiting holds who attached before the start, by container.
	waiting map[string][]*attacher
	ends    *ends
	// starting holds a place for each restart that may go on at once.
	starting chan struct{}
	tasks    sync.WaitGroup
	ctx      context.Context
	stopped  bool
}

// ctrLock is held by who has put something into the channel. It is held over waits of seconds, so it is handed on in order, and who
// waits for it is seen to wait by tests whose clock goes on when all do: a mutex gives neither.
type ctrLock struct {
	held chan struct{}
	refs int
}

func newSupervisor(e *Engine) *supervisor {
	return &supervisor{
		e: e, locks: map[string]*ctrLock{}, changed: make(chan struct{}), backoff: map[string]time.Duration{},
		waiting: map[string][]*attacher{}, ends: newEnds(), ctx: context.Background(),
		starting: make(chan struct{}, runtime.NumCPU()+2),
	}
}

func (s *supervisor) lock(id string) (unlock func()) {
	s.mu.Lock()
	l := s.locks[id]
	if l == nil {
		l = &ctrLock{held: make(chan struct{}, 1)}
		s.locks[id] = l
	}
	l.refs++
	s.mu.Unlock()
	l.held <- struct{}{}
	return func() {
		<-l.held
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.refs--; l.refs == 0 {
			delete(s.locks, id)
		}
	}
}

func (s *supervisor) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *supervisor) watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// spawn runs fn beside; run waits for it. Once the daemon stops nothing is begun.
func (s *supervisor) spawn(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.tasks.Go(fn)
	}
}

// after runs fn after a wait, unless the daemon stops before.
func (s *supervisor) after(wait time.Duration, fn func()) {
	s.spawn(func() {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-s.runCtx().Done():
		case <-t.C:
			fn()
		}
	})
}

func (s *supervisor) runCtx() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ctx
}

// begin ties what is spawned from here on to the daemon's life.
func (s *supervisor) begin(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
}

// run follows exits until ctx ends.
func (s *supervisor) run(ctx context.Context, exits <-chan api.SandboxExit) {
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.stopped = true
			s.mu.Unlock()
			s.tasks.Wait()
			return
		case x, ok := <-exits:
			if !ok {
				exits = nil
				continue
			}
			s.spawn(func() { s.exited(ctx, x.ID) })
		}
	}
}

// row reads a container's row.
func (s *supervisor) row(id string) *containerRow {
	s.e.mu.RLock()
	defer s.e.mu.RUnlock()
	return s.e.st.containers[id]
}

// change replaces a container's row by what fn makes of a copy.
func (s *supervisor) change(id string, fn func(t *txn, c *containerRow) error) (*containerRow, uint64, error) {
	return s.changeOr(context.Background(), id, fn)
}

// changeOr is change, or a rehearsal of it.
func (s *supervisor) changeOr(ctx context.Context, id string, fn func(t *txn, c *containerRow) error) (*containerRow, uint64, error) {
	var row containerRow
	rev, err := s.e.commitOr(ctx, func(t *txn) error {
		old := t.st.containers[id]
		if old == nil {
			return api.Errorf(api.KindNotFound, "container %.12s does not exist", id).Hint("bulkhead ps -a shows those that are there")
		}
		row = *old
		if err := fn(t, &row); err != nil {
			return err
		}
		t.putContainer(id, &row)
		return nil
	})
	s.notify()
	return &row, rev, err
}

// adopt brings the store and the sandbox together after a start of the daemon:
// whatever an operation was cut at is finished or undone here. It returns when
// each container is locked for that, before the first operation is let in: one
// that a client begins is not to be taken for one that was cut short.
func (s *supervisor) adopt(ctx context.Context) (exits <-chan api.SandboxExit) {
	exits = s.e.opt.Sandbox.Exits(ctx)
	known := map[string]bool{}
	s.e.mu.RLock()
	for id := range s.e.st.containers {
		known[id] = true
	}
	spared := map[string]bool{} // the row of which could not be read
	for _, a := range s.e.st.aside {
		spared[a.id] = a.kind == "container"
	}
	s.e.mu.RUnlock()
	found, err := s.e.opt.Sandbox.List(ctx)
	if err != nil {
		s.e.log.Error("list sandboxes", "error", err)
	}
	for id := range known {
		unlock := s.lock(id)
		s.spawn(func() {
			defer unlock()
			s.adoptOne(ctx, id)
		})
	}
	for _, id := range found {
		if known[id] || spared[id] {
			continue
		}
		s.spawn(func() {
			if err := s.e.opt.Sandbox.Remove(ctx, id); err != nil {
				s.e.log.Error("remove a sandbox that nobody knows", "container", id, "error", err)
			}
		})
	}
	return exits
}

// adoptOne looks at one container. The caller holds its lock.
func (s *supervisor) adoptOne(ctx context.Context, id string) {
	if c := s.row(id); c != nil {
		s.adoptLocked(ctx, c)
	}
}

func (s *supervisor) adoptLocked(ctx context.Context, c *containerRow) {
	id := c.Doc.ID
	if c.Removing {
		if err := s.remove(ctx, c); err != nil {
			s.e.log.Error("remove a container", "container", id, "error", err)
		}
		return
	}
	st, err := s.e.opt.Sandbox.State(ctx, id)
	if err != nil {
		s.e.log.Error("look at a container", "container", id, "error", err)
		s.after(lookAgain, func() {
			unlock := s.lock(id)
			defer unlock()
			s.adoptOne(ctx, id)
		})
		return
	}
	switch c.Doc.State.Status {
	case api.StatusRunning, api.StatusStopping:
		s.adoptRunning(ctx, c, st)
	case api.StatusStarting:
		s.adoptStarting(ctx, c, st)
	case api.StatusRestarting:
		s.cleanup(ctx, c)
		s.restartLater(id, 0, false)
	default:
		s.adoptStill(ctx, c, st)
	}
}

func (s *supervisor) adoptRunning(ctx context.Context, c *containerRow, st api.SandboxState) {
	if st.Status == api.StatusRunning && st.Paused != c.Doc.State.Paused {
		// The last run of the daemon had no time to note it.
		if err := s.e.notePaused(c, st.Paused); err != nil {
			s.e.log.Error("note that a container is paused", "container", c.Doc.ID, "error", err)
		}
	}
	switch {
	case st.Status != api.StatusRunning:
		s.ended(ctx, c, st)
		if c := s.row(c.Doc.ID); c != nil && c.Want && c.Doc.State.Status == api.StatusExited {
			s.restartLater(c.Doc.ID, 0, false) // the host went down with it, and is back
		}
	case c.Doc.State.Status == api.StatusStopping:
		s.spawn(func() {
			if err := s.e.stop(ctx, c.Doc.ID, c.Stopping.rest(time.Now()), c.Stopping.again()); err != nil {
				s.e.log.Warn("go on stopping a container", "container", c.Doc.ID, "error", err)
			}
		})
	}
}

// adoptStarting goes on with a start that was cut short. A process that was let
// go is never let go a second time.
func (s *supervisor) adoptStarting(ctx context.Context, c *containerRow, st api.SandboxState) {
	switch st.Status {
	case api.StatusRunning:
		if err := s.markRunning(c, st); err != nil {
			s.e.log.Error("note that a container runs", "container", c.Doc.ID, "error", err)
		}
	case api.StatusExited:
		s.ended(ctx, c, st)
	default:
		s.cleanup(ctx, c)
		s.restartLater(c.Doc.ID, 0, false)
	}
}

// adoptStill looks at a container that does not run, nor should as far as its row
// says: what its end left over goes, and a restart policy may start it.
func (s *supervisor) adoptStill(ctx context.Context, c *containerRow, st api.SandboxState) {
	if st.Status != "" {
		s.cleanup(ctx, c)
	}
	policy, ran := c.Doc.Spec.Restart.Name, c.Doc.State.Started != nil
	switch {
	case c.Want, policy == "always" && ran, policy == "unless-stopped" && ran && !c.Stopped:
		s.restartLater(c.Doc.ID, 0, false)
	case c.Doc.Spec.AutoRemove && c.Doc.State.Status != api.StatusCreated:
		if err := s.remove(ctx, c); err != nil {
			s.e.log.Error("remove a container that ended", "container", c.Doc.ID, "error", err)
		}
	}
}

// exited handles the end of a container's process. It may be told twice of one.
func (s *supervisor) exited(ctx context.Context, id string) {
	unlock := s.lock(id)
	defer unlock()
	c := s.row(id)
	if c == nil || c.Doc.State.Status != api.StatusRunning && c.Doc.State.Status != api.StatusStopping {
		return
	}
	st, err := s.e.opt.Sandbox.State(ctx, id)
	if err != nil {
		s.e.log.Error("look at a container", "container", id, "error", err)
		s.after(lookAgain, func() { s.exited(ctx, id) })
		return
	}
	if st.Status != api.StatusRunning {
		s.ended(ctx, c, st)
	}
}

// ended notes how a container ended, takes its kernel objects away and follows
// its restart policy. It is noted before anything is taken away: a crash must not
// cost the exit code.
func (s *supervisor) ended(ctx context.Context, c *containerRow, st api.SandboxState) {
	id := c.Doc.ID
	var ran time.Duration
	restart, again := false, false
	row, rev, err := s.change(id, func(t *txn, c *containerRow) error {
		ran = noteEnd(c, st)
		again = c.Stopping.again() && !c.Stopped
		// What the end of the host takes along is wanted still, by the daemon's next run.
		c.Want = again || (c.Doc.State.Status != api.StatusStopping || c.Stopping.halts()) && !c.Stopped && restartWanted(c)
		restart = c.Want && !c.Stopping.halts()
		c.Stopping = nil
		c.Doc.State.Status = api.StatusExited
		t.leaveCompartment(c)
		return nil
	})
	if err != nil {
		s.e.log.Error("note how a container ended", "container", id, "error", err)
		s.after(lookAgain, func() { s.exited(ctx, id) })
		return
	}
	s.cleanup(ctx, c)
	if err := s.e.applied(ctx, rev); err != nil {
		s.e.log.Warn("take a container's network away", "container", id, "error", err)
	}
	if !restart {
		s.ends.put(row)
		s.notify()
	}
	s.e.event("container", "die", id, row.Doc.Name, map[string]string{"exitCode": itoa(row.Doc.State.ExitCode)})
	if st.OOMKilled {
		s.e.event("container", "oom", id, row.Doc.Name, nil)
	}
	switch {
	case again:
		s.resetBackoff(id)
		s.restartLater(id, 0, false)
	case restart:
		s.restartLater(id, ran, true)
	case row.Doc.Spec.AutoRemove:
		if err := s.remove(ctx, row); err != nil {
			s.e.log.Error("remove a container that ended", "container", id, "error", err)
		}
	}
}

// noteEnd writes what the sandbox knows of an end into the row, and returns how
// long the process ran.
func noteEnd(c *containerRow, st api.SandboxState) time.Duration {
	state := &c.Doc.State
	finished := st.Finished.UTC()
	if st.Finished.IsZero() {
		finished = time.Now().UTC()
	}
	if started := st.Started.UTC(); !st.Started.IsZero() {
		state.Started = &started
	}
	state.Paused = false
	state.PID, state.ExitCode, state.OOMKilled, state.Error = 0, st.ExitCode, st.OOMKilled, st.Error
	state.Finished = &finished
	if st.Status != api.StatusExited {
		state.ExitCode, state.Error = 255, "its process is gone, and nothing says how it ended"
	}
	if state.Started == nil {
		return 0
	}
	return finished.Sub(*state.Started)
}

// restartWanted tells what the policy says about a container that ended by itself.
func restartWanted(c *containerRow) bool {
	p := c.Doc.Spec.Restart
	switch p.Name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return c.Doc.State.ExitCode != 0 && (p.MaxRetries == 0 || c.Doc.State.RestartCount < p.MaxRetries)
	}
	return false
}

// cleanup removes a container's process side: the runtime's state and its mounts.
func (s *supervisor) cleanup(ctx context.Context, c *containerRow) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if err := s.e.opt.Sandbox.Delete(ctx, c.Doc.ID); err != nil {
		s.e.log.Error("clean up after a container", "container", c.Doc.ID, "error", err)
	}
}

// restartLater starts a container again after a wait that grows with each try.
// Tries of the policy are counted, those after a restart of the daemon are not.
// The caller holds the container's lock.
func (s *supervisor) restartLater(id string, ran time.Duration, count bool) {
	wait := s.nextWait(id, ran)
	_, _, err := s.change(id, func(t *txn, c *containerRow) error {
		t.leaveCompartment(c) // of a start that was cut short
		c.Doc.State.Status, c.Want = api.StatusRestarting, true
		return nil
	})
	if err != nil {
		s.e.log.Error("restart a container", "container", id, "error", err)
		s.after(wait+lookAgain, func() {
			unlock := s.lock(id)
			defer unlock()
			if c := s.row(id); c != nil && c.Want && !c.Removing && c.Doc.State.Status != api.StatusRunning {
				s.restartLater(id, 0, count)
			}
		})
		return
	}
	s.after(wait, func() { s.restart(id, count) })
}

func (s *supervisor) nextWait(id string, ran time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := s.backoff[id]
	if ran > backoffReset {
		wait = 0
	}
	s.backoff[id] = min(max(2*wait, backoffFirst), backoffMost)
	return wait
}

func (s *supervisor) resetBackoff(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.backoff, id)
}

// restart starts a container for its policy or after a restart of the daemon or
// the host. Only so many go on at once: after a reboot all of them want to start,
// and each takes longer the more it shares the processors with.
func (s *supervisor) restart(id string, count bool) {
	select {
	case s.starting <- struct{}{}:
	case <-s.runCtx().Done():
		return
	}
	defer func() { <-s.starting }()
	unlock := s.lock(id)
	defer unlock()
	c := s.row(id)
	if c == nil || c.Removing || !c.Want || c.Doc.State.Status != api.StatusRestarting {
		return
	}
	ctx := s.runCtx()
	err := s.start(ctx, c, restartedBy(count))
	if err == nil || ctx.Err() != nil {
		return
	}
	s.e.log.Warn("restart a container", "container", id, "name", c.Doc.Name, "error", err)
	if errors.Is(err, errCutOff) {
		return // it would do so again, or run without its network
	}
	if c := s.row(id); c != nil && !c.Removing && !c.Stopped && restartWanted(c) {
		s.restartLater(id, 0, true)
	}
}
