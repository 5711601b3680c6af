package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// starter says who starts a container.
type starter uint8

const (
	byUser   starter = iota // who begins the count of restarts anew
	byPolicy                // counted
	byDaemon                // after a restart of the daemon or the host
)

func restartedBy(policy bool) starter {
	if policy {
		return byPolicy
	}
	return byDaemon
}

// start gives a container its compartment, makes its sandbox and lets its
// process go. What fails is undone; the container is then failed, with the
// reason. The caller holds the container's lock.
func (s *supervisor) start(ctx context.Context, c *containerRow, by starter) error {
	id := c.Doc.ID
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	s.e.mu.RLock()
	eps := s.e.st.attachable(c, by)
	s.e.mu.RUnlock()
	if err := s.e.stillVacant(ctx, eps...); err != nil {
		return s.failStart(ctx, c, by, err)
	}
	row, rev, err := s.changeOr(ctx, id, func(t *txn, c *containerRow) error {
		c.Doc.State.Status, c.Doc.State.Error, c.Want, c.Stopped = api.StatusStarting, "", true, false
		c.Doc.State.Finished = nil
		switch by {
		case byUser:
			c.Doc.State.RestartCount = 0
		case byPolicy:
			c.Doc.State.RestartCount++
		case byDaemon:
		}
		if err := t.enterCompartment(c, by); err != nil {
			return err
		}
		eps = t.st.attachable(c, byPolicy) // without those that are not attached even so
		return nil
	})
	if err != nil {
		return s.failStart(ctx, c, by, err)
	}
	wait := []object{namespaceObject(row.Doc.Namespace)}
	for _, ep := range eps {
		wait = append(wait, portObject(ep))
	}
	if err := s.e.applied(ctx, rev, wait...); err != nil {
		return s.failStart(ctx, row, by, fmt.Errorf("attach its endpoints: %w", err))
	}
	if err := s.e.announce(ctx, eps...); err != nil {
		return s.failStart(ctx, row, by, err)
	}
	if err := s.e.awaitLeases(ctx, eps...); err != nil {
		return s.failStart(ctx, row, by, err)
	}
	if err := s.launch(ctx, row); err != nil {
		return s.failStart(ctx, row, by, err)
	}
	return nil
}

// failStart undoes a start and notes why.
func (s *supervisor) failStart(ctx context.Context, c *containerRow, by starter, err error) error {
	id := c.Doc.ID
	s.cleanup(ctx, c)
	// The daemon's own end is no failure of the container: the next run goes on.
	ending := by != byUser && s.runCtx().Err() != nil
	row, rev, cerr := s.change(id, func(t *txn, c *containerRow) error {
		t.leaveCompartment(c)
		if ending {
			c.Doc.State.Status, c.Want = api.StatusRestarting, true
			return nil
		}
		now := time.Now().UTC()
		c.Doc.State.Status, c.Doc.State.PID, c.Doc.State.Error = api.StatusFailed, 0, err.Error()
		c.Doc.State.ExitCode, c.Doc.State.Finished = startExitCode(err), &now
		c.Want = false
		return nil
	})
	if cerr == nil {
		cerr = s.e.applied(ctx, rev)
	}
	if cerr != nil {
		s.e.log.Error("undo a failed start", "container", id, "error", cerr)
	}
	next := "bulkhead inspect " + c.Doc.Name + ", or bulkhead logs " + c.Doc.Name
	if c.Doc.Spec.AutoRemove {
		next = "check the command, the image and the flags; the container is removed"
	}
	err = named("start", c.Doc.Name, err, next)
	if ending {
		return err
	}
	if row.Doc.ID == "" {
		return err // it is not there any more
	}
	s.ends.put(row)
	s.notify()
	if row.Doc.Spec.AutoRemove {
		if rerr := s.remove(ctx, row); rerr != nil {
			s.e.log.Error("remove a container that could not be started", "container", id, "error", rerr)
		}
	}
	return err
}

// named says which container an error is about, as people call it, and what to do
// next unless the error knows that better.
func named(doing, name string, err error, next string) error {
	err = asAPI(err)
	if inner, ok := errors.AsType[*api.Error](err); ok && inner.Next != "" {
		next = inner.Next
	}
	return api.Errorf(kindOf(err), "%s container %s: %w", doing, name, err).Hint("%s", next)
}

func kindOf(err error) string {
	if a, ok := errors.AsType[*api.Error](asAPI(err)); ok {
		return a.Kind
	}
	return api.KindInternal
}

// startExitCode is the code that shells use for a command that cannot be run:
// 127 when there is none of that name, 126 when it cannot be executed.
func startExitCode(err error) int {
	text := strings.ToLower(err.Error())
	switch {
	case strings.Contains(text, "executable file") && strings.Contains(text, "not found"), strings.Contains(text, "no such file or directory"):
		return 127
	case strings.Contains(text, "permission denied"):
		return 126
	}
	return 125
}

// launch makes the sandbox, connects who attached already, and starts it.
func (s *supervisor) launch(ctx context.Context, c *containerRow) error {
	id := c.Doc.ID
	s.e.opt.Step("launch")
	cfg, err := s.e.sandboxConfig(ctx, c)
	if err != nil {
		return err
	}
	if err := s.e.opt.Sandbox.Create(ctx, cfg); err != nil {
		return err
	}
	s.e.opt.Step("created")
	s.connectWaiting(ctx, id)
	if err := s.e.opt.Sandbox.Start(ctx, id); err != nil {
		return err
	}
	s.e.opt.Step("started")
	st, err := s.e.opt.Sandbox.State(ctx, id)
	if err != nil {
		return err
	}
	if st.Status != api.StatusRunning && st.Status != api.StatusExited {
		return fmt.Errorf("its process is gone: the sandbox says %q", st.Status)
	}
	if err := s.markRunning(c, st); err != nil {
		return err
	}
	s.e.event("container", "start", id, c.Doc.Name, nil)
	if st.Status == api.StatusExited {
		// A short one: it ended before we looked, and its exit may have been
		// reported before it was marked as running.
		s.spawn(func() { s.exited(s.runCtx(), id) })
	}
	return nil
}

func (s *supervisor) markRunning(c *containerRow, st api.SandboxState) error {
	_, _, err := s.change(c.Doc.ID, func(_ *txn, c *containerRow) error {
		c.Doc.State = api.ContainerState{Status: api.StatusRunning, PID: st.PID, RestartCount: c.Doc.State.RestartCount, VMFiles: st.VMFiles}
		started := st.Started.UTC()
		if st.Started.IsZero() {
			started = time.Now().UTC()
		}
		c.Doc.State.Started = &started
		return nil
	})
	return err
}

// enterCompartment makes a container's namespace and attaches its endpoints, or
// joins the compartment of the one whose network it shares.
func (t *txn) enterCompartment(c *containerRow, by starter) error {
	t.leaveCompartment(c) // of a start that was cut short
	if c.Shares != "" {
		other := t.st.containers[c.Shares]
		if other == nil {
			return api.Errorf(api.KindConflict, "container %.12s, whose network this one shares, is removed", c.Shares).Hint("bulkhead rm %s", c.Doc.Name)
		}
		ns := t.st.namespaces[other.Doc.Namespace]
		if ns == nil || ns.Vanished {
			return api.Errorf(api.KindConflict, "container %s, whose network this one shares, is not running", other.Doc.Name).Hint("bulkhead start %s", other.Doc.Name)
		}
		c.Doc.Namespace = ns.Doc.ID
		return t.modifyContainers(ns, hcn.RequestTypeAdd, c.Doc.ID)
	}
	if c.In != "" {
		return t.enterGuest(c, by)
	}
	here := slices.DeleteFunc(slices.Clone(c.Endpoints), func(id hcn.GUID) bool { return t.st.endpoints[id] == nil })
	if len(here) == 0 && len(c.Endpoints) > 0 {
		return api.Errorf(api.KindConflict, "the networks that container %s was on are deleted", c.Doc.Name).Hint("bulkhead network connect %s %s", DefaultNetworkName, c.Doc.Name)
	}
	c.Endpoints = here
	doc := hcn.HostComputeNamespace{Owner: "bulkhead", Name: c.Doc.Name, SchemaVersion: hcn.V2()}
	if c.Doc.Spec.Isolation == isolationVM {
		doc.Type = hcn.NamespaceTypeGuest
	}
	ns, err := t.newNamespace("", doc)
	if err != nil {
		return err
	}
	row := *ns
	row.Containers, row.Kept = []string{c.Doc.ID}, false
	t.putNamespace(ns.Doc.ID, &row)
	c.Doc.Namespace = ns.Doc.ID
	for _, ep := range t.st.attachable(c, by) {
		if _, err := t.attach(ep, ns.Doc.ID); err != nil {
			return err
		}
	}
	return nil
}

// enterGuest puts a container's VM into the namespace that a client made for it.
func (t *txn) enterGuest(c *containerRow, by starter) error {
	ns := t.st.namespaces[c.In]
	if ns == nil || ns.Vanished {
		return api.Errorf(api.KindConflict, "namespace %s, which is the compartment of container %s, is gone", c.In, c.Doc.Name).
			Hint("bulkhead rm %s, and make it again in another: namespaces end with the run of the host", c.Doc.Name)
	}
	c.Doc.Namespace = ns.Doc.ID
	if err := t.modifyContainers(ns, hcn.RequestTypeAdd, c.Doc.ID); err != nil {
		return err
	}
	for _, ep := range t.st.attachable(c, by) {
		if _, err := t.attach(ep, ns.Doc.ID); err != nil {
			return err
		}
	}
	return nil
}

// leaveCompartment takes a container out of its namespace, with its endpoints; the
// last of ours takes the namespace with it, whatever else a client listed there,
// unless that was made by a client.
func (t *txn) leaveCompartment(c *containerRow) {
	ns := t.st.namespaces[c.Doc.Namespace]
	c.Doc.Namespace = ""
	if ns == nil {
		return
	}
	row := *ns
	row.Containers = slices.DeleteFunc(slices.Clone(ns.Containers), func(id string) bool { return id == c.Doc.ID })
	if !ns.Kept && !slices.ContainsFunc(row.Containers, func(id string) bool { return t.st.containers[id] != nil }) {
		t.dropNamespace(ns.Doc.ID)
		return
	}
	for _, id := range c.Endpoints {
		if ep := t.st.endpoints[id]; ep != nil && ep.Attach != nil && ep.Attach.Namespace == ns.Doc.ID {
			t.putEndpoint(id, detached(ep))
		}
	}
	t.putNamespace(ns.Doc.ID, &row)
}

// dropContainer takes a container's row away, with its endpoints.
func (t *txn) dropContainer(id string) {
	now := t.st.containers[id]
	if now == nil {
		return
	}
	c := *now
	t.leaveCompartment(&c)
	if c.Shares == "" {
		t.dropMachine(api.VirtualMachineID(id))
	}
	for _, ep := range c.Endpoints {
		t.dropEndpoint(ep)
	}
	t.putContainer(id, nil)
}

// killedExitCode is that of a process which SIGKILL ended.
const killedExitCode = 128 + 9

// remove takes a container away, with its endpoints and its storage. It may be
// called again after being cut short. The caller holds the container's lock.
func (s *supervisor) remove(ctx context.Context, c *containerRow) error {
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
	s.e.opt.Step("removed")
	if row.Doc.State.Finished == nil && row.Doc.State.Started != nil {
		// It was running, and was killed. Who waits asks when the row is gone.
		killed := *row
		killed.Doc.State.ExitCode = killedExitCode
		s.ends.put(&killed)
		s.e.event("container", "die", id, row.Doc.Name, map[string]string{"exitCode": itoa(killedExitCode)})
	}
	rev, err := s.e.commit(func(t *txn) error { t.dropContainer(id); return nil })
	if err != nil {
		return err
	}
	if err := s.e.applied(ctx, rev); err != nil {
		s.e.log.Warn("take a removed container's network away", "container", id, "error", err)
	}
	s.resetBackoff(id)
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
	kernel, err := e.kernelOf(ctx, c)
	if err != nil {
		return api.SandboxConfig{}, err
	}
	cfg := api.SandboxConfig{
		ID: c.Doc.ID, Name: c.Doc.Name, Spec: c.Doc.Spec, Image: img.Config, Layers: layers, GuestKernel: kernel,
		NetnsPath: plan.NamespacePath(c.Doc.Namespace),
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if c.Doc.Spec.Isolation == isolationVM {
		cfg.VMOf = c.Shares
	}
	cfg.Hostname, cfg.Hosts, cfg.ResolvConf = e.st.etcFiles(c, e.facts.Resolvers)
	return cfg, nil
}
