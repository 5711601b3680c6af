package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// backoffFirst and backoffMost bound the wait before a restart policy starts
	// a container again; one that ran for backoffReset starts over.
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	backoffReset = 10 * time.Second
	// opTimeout bounds one step of the sandbox.
	opTimeout = 2 * time.Minute
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
	tasks   sync.WaitGroup
	ctx     context.Context
}

type ctrLock struct {
	sync.Mutex
	refs int
}

func newSupervisor(e *Engine) *supervisor {
	return &supervisor{e: e, locks: map[string]*ctrLock{}, changed: make(chan struct{}), backoff: map[string]time.Duration{}, ctx: context.Background()}
}

func (s *supervisor) lock(id string) (unlock func()) {
	s.mu.Lock()
	l := s.locks[id]
	if l == nil {
		l = &ctrLock{}
		s.locks[id] = l
	}
	l.refs++
	s.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
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

// run adopts what runs already, starts what should, and follows exits until ctx
// ends.
func (s *supervisor) run(ctx context.Context) {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	exits := s.e.opt.Sandbox.Exits(ctx)
	s.adopt(ctx)
	for {
		select {
		case <-ctx.Done():
			s.tasks.Wait()
			return
		case x, ok := <-exits:
			if !ok {
				exits = nil
				continue
			}
			s.tasks.Go(func() { s.settle(ctx, x.ID) })
		}
	}
}

// adopt brings the store and the sandbox together after a start of the daemon:
// whatever an operation was cut at is finished or undone here.
func (s *supervisor) adopt(ctx context.Context) {
	known := map[string]bool{}
	s.e.mu.RLock()
	for id := range s.e.st.containers {
		known[id] = true
	}
	s.e.mu.RUnlock()
	found, err := s.e.opt.Sandbox.List(ctx)
	if err != nil {
		s.e.log.Error("list sandboxes", "error", err)
	}
	for _, id := range found {
		if !known[id] {
			if err := s.e.opt.Sandbox.Remove(ctx, id); err != nil {
				s.e.log.Error("remove a sandbox that nobody knows", "container", id, "error", err)
			}
		}
	}
	for id := range known {
		s.tasks.Go(func() { s.settle(ctx, id) })
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
	var row containerRow
	rev, err := s.e.commit(func(t *txn) error {
		old := t.st.containers[id]
		if old == nil {
			return api.Errorf(api.KindNotFound, "container %.12s does not exist", id)
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

// settle brings one container to where its row wants it.
func (s *supervisor) settle(ctx context.Context, id string) {
	unlock := s.lock(id)
	defer unlock()
	c := s.row(id)
	if c == nil {
		return
	}
	if c.Removing {
		if err := s.remove(ctx, c, true); err != nil {
			s.e.log.Error("remove a container", "container", id, "error", err)
		}
		return
	}
	st, err := s.e.opt.Sandbox.State(ctx, id)
	if err != nil {
		s.e.log.Error("look at a container", "container", id, "error", err)
		return
	}
	if st.Status == api.StatusRunning {
		if c.Doc.State.Status != api.StatusRunning && c.Doc.State.Status != api.StatusStopping {
			s.markRunning(c, st)
		}
		return
	}
	switch c.Doc.State.Status {
	case api.StatusRunning, api.StatusStopping:
		s.ended(ctx, c, st)
	case api.StatusStarting, api.StatusRestarting:
		// Cut between create and start: undo, and start anew if it should run.
		s.cleanup(ctx, c)
		s.restartLater(ctx, c, 0)
	default:
		s.bootStart(ctx, c)
	}
}

// bootStart starts, after a restart of the daemon or the host, what a restart
// policy keeps running.
func (s *supervisor) bootStart(ctx context.Context, c *containerRow) {
	policy := c.Doc.Spec.Restart.Name
	if c.Want || policy == "always" && c.Doc.State.Started != nil || policy == "unless-stopped" && !c.Stopped && c.Doc.State.Started != nil {
		s.restartLater(ctx, c, 0)
	}
}

func (s *supervisor) markRunning(c *containerRow, st api.SandboxState) {
	_, _, err := s.change(c.Doc.ID, func(_ *txn, c *containerRow) error {
		c.Doc.State.Status, c.Doc.State.PID, c.Doc.State.Error = api.StatusRunning, st.PID, ""
		started := st.Started.UTC()
		if started.IsZero() || started.Year() < 2000 {
			started = time.Now().UTC()
		}
		c.Doc.State.Started, c.Doc.State.Finished = &started, nil
		return nil
	})
	if err != nil {
		s.e.log.Error("note that a container runs", "container", c.Doc.ID, "error", err)
	}
}

// ended notes how a container ended, takes its kernel objects away and follows
// its restart policy.
func (s *supervisor) ended(ctx context.Context, c *containerRow, st api.SandboxState) {
	id := c.Doc.ID
	s.cleanup(ctx, c)
	ran := time.Duration(0)
	restart := false
	row, rev, err := s.change(id, func(t *txn, c *containerRow) error {
		now := time.Now().UTC()
		if c.Doc.State.Started != nil {
			ran = now.Sub(*c.Doc.State.Started)
		}
		if !st.Finished.IsZero() {
			now = st.Finished.UTC()
		}
		stopping := c.Doc.State.Status == api.StatusStopping
		c.Doc.State.Status, c.Doc.State.PID = api.StatusExited, 0
		c.Doc.State.ExitCode, c.Doc.State.OOMKilled, c.Doc.State.Finished = st.ExitCode, st.OOMKilled, &now
		if st.Status == "" {
			c.Doc.State.Error = "its process is gone, and nothing says how it ended"
			c.Doc.State.ExitCode = 255
		}
		restart = !stopping && restartWanted(c)
		c.Want = restart
		t.leaveCompartment(c)
		return nil
	})
	if err != nil {
		s.e.log.Error("note how a container ended", "container", id, "error", err)
		return
	}
	if err := s.e.applied(ctx, rev); err != nil {
		s.e.log.Warn("take a container's network away", "container", id, "error", err)
	}
	s.e.event("container", "die", id, row.Doc.Name, map[string]string{"exitCode": itoa(row.Doc.State.ExitCode)})
	if st.OOMKilled {
		s.e.event("container", "oom", id, row.Doc.Name, nil)
	}
	switch {
	case restart:
		s.restartLater(ctx, row, ran)
	case row.Doc.Spec.AutoRemove:
		if err := s.remove(ctx, row, true); err != nil {
			s.e.log.Error("remove a container that ended", "container", id, "error", err)
		}
	}
}

func restartWanted(c *containerRow) bool {
	p := c.Doc.Spec.Restart
	switch p.Name {
	case "always":
		return true
	case "unless-stopped":
		return !c.Stopped
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
func (s *supervisor) restartLater(ctx context.Context, c *containerRow, ran time.Duration) {
	id := c.Doc.ID
	s.mu.Lock()
	wait := s.backoff[id]
	if ran > backoffReset {
		wait = 0
	}
	s.backoff[id] = min(max(2*wait, backoffFirst), backoffMost)
	s.mu.Unlock()
	row, _, err := s.change(id, func(_ *txn, c *containerRow) error {
		c.Doc.State.Status, c.Want = api.StatusRestarting, true
		return nil
	})
	if err != nil {
		s.e.log.Error("restart a container", "container", id, "error", err)
		return
	}
	s.tasks.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		unlock := s.lock(id)
		defer unlock()
		now := s.row(id)
		if now == nil || now.Removing || !now.Want || now.Doc.State.Status != api.StatusRestarting {
			return
		}
		if err := s.start(ctx, now, true); err != nil {
			s.e.log.Warn("restart a container", "container", id, "name", row.Doc.Name, "error", err)
			if row := s.row(id); row != nil && restartWanted(row) && !row.Stopped {
				s.restartLater(ctx, row, 0)
			}
		}
	})
}

// start gives a container its compartment, makes its sandbox and lets its
// process go. What fails is undone; the container is then failed, with the reason.
func (s *supervisor) start(ctx context.Context, c *containerRow, again bool) error {
	id := c.Doc.ID
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	row, rev, err := s.change(id, func(t *txn, c *containerRow) error {
		c.Doc.State.Status, c.Doc.State.Error, c.Want, c.Stopped = api.StatusStarting, "", true, false
		c.Doc.State.Finished = nil
		if again {
			c.Doc.State.RestartCount++
		} else {
			c.Doc.State.RestartCount = 0
		}
		return t.enterCompartment(c)
	})
	if err != nil {
		return asAPI(err)
	}
	ids := []string{string(row.Doc.Namespace)}
	for _, ep := range row.Endpoints {
		ids = append(ids, string(ep))
	}
	err = s.e.applied(ctx, rev, ids...)
	if err != nil {
		err = fmt.Errorf("attach its endpoints: %w", err)
	} else {
		err = s.launch(ctx, row)
	}
	if err == nil {
		return nil
	}
	s.cleanup(ctx, row)
	_, rev, cerr := s.change(id, func(t *txn, c *containerRow) error {
		c.Doc.State.Status, c.Doc.State.PID, c.Doc.State.Error = api.StatusFailed, 0, err.Error()
		c.Doc.State.ExitCode = startExitCode(err)
		c.Want = false
		t.leaveCompartment(c)
		return nil
	})
	if cerr == nil {
		cerr = s.e.applied(ctx, rev)
	}
	if cerr != nil {
		s.e.log.Error("undo a failed start", "container", id, "error", cerr)
	}
	return api.Errorf(kindOf(err), "start container %s: %w", row.Doc.Name, err)
}

func kindOf(err error) string {
	var a *api.Error
	if errors.As(err, &a) {
		return a.Kind
	}
	return api.KindInternal
}

// startExitCode is the code that shells use for a command that cannot be run:
// 127 when there is none of that name, 126 when it cannot be executed.
func startExitCode(err error) int {
	text := err.Error()
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		return 127
	case strings.Contains(text, "permission denied"):
		return 126
	}
	return 125
}

// launch makes the sandbox and starts it.
func (s *supervisor) launch(ctx context.Context, c *containerRow) error {
	s.e.opt.Step("launch")
	cfg, err := s.e.sandboxConfig(ctx, c)
	if err != nil {
		return err
	}
	if err := s.e.opt.Sandbox.Create(ctx, cfg); err != nil {
		return err
	}
	s.e.opt.Step("created")
	if err := s.e.opt.Sandbox.Start(ctx, c.Doc.ID); err != nil {
		return err
	}
	s.e.opt.Step("started")
	st, err := s.e.opt.Sandbox.State(ctx, c.Doc.ID)
	if err != nil {
		return err
	}
	s.markRunning(c, st)
	s.e.event("container", "start", c.Doc.ID, c.Doc.Name, nil)
	if st.Status != api.StatusRunning {
		// A short one: it ended before we looked, and its exit may have been
		// reported before it was marked as running.
		s.tasks.Go(func() { s.settle(s.runCtx(), c.Doc.ID) })
	}
	return nil
}

func (s *supervisor) runCtx() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ctx
}

// enterCompartment makes a container's namespace and attaches its endpoints, or
// joins the compartment of the one whose network it shares.
func (t *txn) enterCompartment(c *containerRow) error {
	if c.Shares != "" {
		other := t.st.containers[c.Shares]
		if other == nil || other.Doc.Namespace.IsZero() || t.st.namespaces[other.Doc.Namespace] == nil {
			return api.Errorf(api.KindConflict, "container %.12s, whose network this one shares, is not running", c.Shares).Hint("bulkhead start %.12s", c.Shares)
		}
		ns := t.st.namespaces[other.Doc.Namespace]
		c.Doc.Namespace = ns.Doc.ID
		return t.modifyContainers(ns, hcn.RequestTypeAdd, c.Doc.ID)
	}
	if old := t.st.namespaces[c.Doc.Namespace]; old != nil {
		// Left by a start that was cut short.
		t.dropNamespace(old.Doc.ID)
	}
	ns, err := t.newNamespace("", hcn.HostComputeNamespace{Owner: "bulkhead", Name: c.Doc.Name, SchemaVersion: hcn.V2()}, nil)
	if err != nil {
		return err
	}
	row := *ns
	row.Containers = []string{c.Doc.ID}
	t.putNamespace(ns.Doc.ID, &row)
	c.Doc.Namespace = ns.Doc.ID
	c.Endpoints = slices.DeleteFunc(slices.Clone(c.Endpoints), func(id hcn.GUID) bool { return t.st.endpoints[id] == nil })
	for _, ep := range c.Endpoints {
		if _, err := t.attach(ep, ns.Doc.ID); err != nil {
			return err
		}
	}
	return nil
}

// leaveCompartment takes a container out of its namespace; the last one takes
// the namespace with it.
func (t *txn) leaveCompartment(c *containerRow) {
	ns := t.st.namespaces[c.Doc.Namespace]
	c.Doc.Namespace = ""
	if ns == nil {
		return
	}
	row := *ns
	row.Containers = slices.DeleteFunc(slices.Clone(ns.Containers), func(id string) bool { return id == c.Doc.ID })
	if len(row.Containers) == 0 {
		t.dropNamespace(ns.Doc.ID)
		return
	}
	t.putNamespace(ns.Doc.ID, &row)
}

// remove takes a container away, with its endpoints and its storage. It may be
// called again after being cut short.
func (s *supervisor) remove(ctx context.Context, c *containerRow, volumes bool) error {
	id := c.Doc.ID
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	row, _, err := s.change(id, func(_ *txn, c *containerRow) error {
		c.Removing, c.Want, c.Doc.State.Status = true, false, api.StatusRemoving
		return nil
	})
	if err != nil {
		return err
	}
	s.e.opt.Step("remove")
	if err := s.e.opt.Sandbox.Remove(ctx, id); err != nil {
		return fmt.Errorf("remove the sandbox of container %.12s: %w", id, err)
	}
	rev, err := s.e.commit(func(t *txn) error {
		c := *row
		t.leaveCompartment(&c)
		for _, ep := range row.Endpoints {
			t.dropEndpoint(ep)
		}
		t.putContainer(id, nil)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.e.applied(ctx, rev); err != nil {
		s.e.log.Warn("take a removed container's network away", "container", id, "error", err)
	}
	s.mu.Lock()
	delete(s.backoff, id)
	s.mu.Unlock()
	s.notify()
	s.e.event("container", "remove", id, row.Doc.Name, nil)
	return nil
}

// sandboxConfig resolves a container's spec against its image and network.
func (e *Engine) sandboxConfig(ctx context.Context, c *containerRow) (api.SandboxConfig, error) {
	img, err := e.opt.Images.Inspect(c.Doc.ImageID)
	if err != nil {
		return api.SandboxConfig{}, fmt.Errorf("find its image: %w", err)
	}
	layers, err := e.opt.Images.Layers(ctx, img.ID)
	if err != nil {
		return api.SandboxConfig{}, fmt.Errorf("unpack its image: %w", err)
	}
	cfg := api.SandboxConfig{
		ID: c.Doc.ID, Name: c.Doc.Name, Spec: c.Doc.Spec, Image: img.Config, Layers: layers,
		NetnsPath: plan.NamespacePath(c.Doc.Namespace), Hostname: hostnameOf(c.Doc.ID, &c.Doc.Spec),
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	source := c
	if c.Shares != "" {
		if other := e.st.containers[c.Shares]; other != nil {
			source = other
			cfg.Hostname = hostnameOf(other.Doc.ID, &other.Doc.Spec)
		}
	}
	cfg.Hosts = e.st.hostsFile(source, &c.Doc.Spec, cfg.Hostname)
	cfg.ResolvConf = e.st.resolvConf(source, &c.Doc.Spec, e.facts.Resolvers)
	return cfg, nil
}
