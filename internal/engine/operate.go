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

// hold finds a container and locks it for one operation.
func (e *Engine) hold(ref string) (*containerRow, func(), error) {
	e.mu.RLock()
	c, err := e.st.find(ref)
	e.mu.RUnlock()
	if err != nil {
		return nil, nil, err
	}
	unlock := e.ctrs.lock(c.Doc.ID)
	if c = e.ctrs.row(c.Doc.ID); c == nil {
		unlock()
		return nil, nil, api.Errorf(api.KindNotFound, "container %q does not exist", ref).Hint("bulkhead ps -a")
	}
	return c, unlock, nil
}

// StartContainer starts a container; one that runs already is left alone.
func (e *Engine) StartContainer(ctx context.Context, ref string) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	switch c.Doc.State.Status {
	case api.StatusRunning, api.StatusStarting:
		return nil
	case api.StatusRemoving:
		return api.Errorf(api.KindConflict, "container %s is being removed", c.Doc.Name)
	}
	return e.ctrs.start(ctx, c, false)
}

// StopContainer asks a container to end, and kills it when it does not.
func (e *Engine) StopContainer(ctx context.Context, ref string, r api.StopRequest) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	id := c.Doc.ID
	defer e.ctrs.notify()
	locked := true
	release := func() {
		if locked {
			locked = false
			unlock()
		}
	}
	defer release()
	row, _, err := e.ctrs.change(id, func(_ *txn, c *containerRow) error {
		c.Want, c.Stopped = false, true
		if c.Doc.State.Status == api.StatusRestarting {
			c.Doc.State.Status = api.StatusExited
		}
		if c.Doc.State.Status == api.StatusRunning {
			c.Doc.State.Status = api.StatusStopping
		}
		return nil
	})
	if err != nil {
		return err
	}
	if row.Doc.State.Status != api.StatusStopping {
		return nil
	}
	signal, timeout := e.stopWith(row, r)
	if err := e.opt.Sandbox.Kill(ctx, id, signal); err != nil {
		return api.Errorf(api.KindInternal, "stop container %s: %w", row.Doc.Name, err)
	}
	release() // the exit is settled under the lock
	if timeout >= 0 && !e.ended(ctx, id, timeout) {
		if err := e.opt.Sandbox.Kill(ctx, id, "SIGKILL"); err != nil {
			return api.Errorf(api.KindInternal, "kill container %s: %w", row.Doc.Name, err)
		}
	}
	if !e.ended(ctx, id, waitApplied) {
		return api.Errorf(api.KindUnavailable, "container %s does not end, not even by SIGKILL", row.Doc.Name).Hint("bulkhead inspect %s", row.Doc.Name)
	}
	return nil
}

func (e *Engine) stopWith(c *containerRow, r api.StopRequest) (signal string, timeout time.Duration) {
	signal = r.Signal
	if signal == "" {
		signal = c.Doc.Spec.StopSignal
	}
	if signal == "" {
		if img, err := e.opt.Images.Inspect(c.Doc.ImageID); err == nil {
			signal = img.Config.StopSignal
		}
	}
	if signal == "" {
		signal = "SIGTERM"
	}
	seconds := 10
	if c.Doc.Spec.StopTimeout != nil {
		seconds = *c.Doc.Spec.StopTimeout
	}
	if r.Timeout != nil {
		seconds = *r.Timeout
	}
	return signal, time.Duration(seconds) * time.Second
}

// ended waits until a container is not running any more.
func (e *Engine) ended(ctx context.Context, id string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := e.await(ctx, id, func(c *containerRow) bool { return c == nil || !active(c) })
	return err == nil
}

func active(c *containerRow) bool {
	switch c.Doc.State.Status {
	case api.StatusRunning, api.StatusStopping, api.StatusStarting, api.StatusRestarting:
		return true
	}
	return false
}

// await waits for a container to be as wanted; nil means that it is gone. It
// returns the last row that there was.
func (e *Engine) await(ctx context.Context, id string, cond func(*containerRow) bool) (*containerRow, error) {
	var last *containerRow
	for {
		changed := e.ctrs.watch()
		c := e.ctrs.row(id)
		if c != nil {
			last = c
		}
		if cond(c) {
			return last, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// RestartContainer stops a container and starts it again.
func (e *Engine) RestartContainer(ctx context.Context, ref string, r api.StopRequest) error {
	if err := e.StopContainer(ctx, ref, r); err != nil {
		return err
	}
	return e.StartContainer(ctx, ref)
}

// KillContainer sends a signal (SIGKILL when none is named).
func (e *Engine) KillContainer(ctx context.Context, ref, signal string) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Doc.State.Status != api.StatusRunning && c.Doc.State.Status != api.StatusStopping {
		return api.Errorf(api.KindConflict, "container %s is not running", c.Doc.Name).Hint("bulkhead start %s", c.Doc.Name)
	}
	if signal == "" {
		signal = "SIGKILL"
	}
	if strings.EqualFold(signal, "SIGKILL") || strings.EqualFold(signal, "KILL") || signal == "9" {
		if _, _, err := e.ctrs.change(c.Doc.ID, func(_ *txn, c *containerRow) error { c.Stopped = true; return nil }); err != nil {
			return err
		}
	}
	if err := e.opt.Sandbox.Kill(ctx, c.Doc.ID, signal); err != nil {
		return api.Errorf(api.KindInvalid, "send %.40s to container %s: %w", signal, c.Doc.Name, err)
	}
	return nil
}

// RemoveContainer removes a container; one that runs only with force.
func (e *Engine) RemoveContainer(ctx context.Context, ref string, force, volumes bool) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	if active(c) && !force {
		return api.Errorf(api.KindConflict, "container %s is %s", c.Doc.Name, c.Doc.State.Status).Hint("bulkhead stop %s, or bulkhead rm -f %s", c.Doc.Name, c.Doc.Name)
	}
	if err := e.ctrs.remove(ctx, c, volumes); err != nil {
		return api.Errorf(api.KindInternal, "remove container %s: %w", c.Doc.Name, err)
	}
	return nil
}

// WaitContainer waits until a container has ended ("" or "not-running"), or is
// removed ("removed"), and says how it ended.
func (e *Engine) WaitContainer(ctx context.Context, ref, condition string) (api.WaitResult, error) {
	e.mu.RLock()
	c, err := e.st.find(ref)
	e.mu.RUnlock()
	if err != nil {
		return api.WaitResult{}, err
	}
	var cond func(*containerRow) bool
	switch condition {
	case "", "not-running":
		cond = func(c *containerRow) bool { return c == nil || c.Removing || !active(c) }
	case "removed":
		cond = func(c *containerRow) bool { return c == nil }
	default:
		return api.WaitResult{}, api.Errorf(api.KindInvalid, "condition %.40q is not known: use not-running or removed", condition)
	}
	last, err := e.await(ctx, c.Doc.ID, cond)
	if err != nil {
		return api.WaitResult{}, err
	}
	if last == nil {
		last = c
	}
	return api.WaitResult{ExitCode: last.Doc.State.ExitCode, Error: last.Doc.State.Error}, nil
}

// running finds a container that runs.
func (e *Engine) running(ref string) (*containerRow, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	c, err := e.st.find(ref)
	if err != nil {
		return nil, err
	}
	if c.Doc.State.Status != api.StatusRunning && c.Doc.State.Status != api.StatusStopping {
		return nil, api.Errorf(api.KindConflict, "container %s is not running", c.Doc.Name).Hint("bulkhead start %s", c.Doc.Name)
	}
	return c, nil
}

// AttachContainer connects streams with a container's process. One that is only
// created is waited for, so that a client can attach before it starts and miss
// nothing.
func (e *Engine) AttachContainer(ctx context.Context, ref string, s api.Streams) error {
	c, err := e.running(ref)
	if err != nil {
		return err
	}
	return e.opt.Sandbox.Attach(ctx, c.Doc.ID, s)
}

// ExecContainer runs a further process in a container and returns its exit code.
func (e *Engine) ExecContainer(ctx context.Context, ref string, spec api.ExecSpec, s api.Streams) (int, error) {
	if len(spec.Args) == 0 {
		return 0, api.Errorf(api.KindInvalid, "args: there is no command to run")
	}
	c, err := e.running(ref)
	if err != nil {
		return 0, err
	}
	return e.opt.Sandbox.Exec(ctx, c.Doc.ID, spec, s)
}

// ContainerLogs reads what a container wrote.
func (e *Engine) ContainerLogs(ctx context.Context, ref string, o api.LogOptions, emit func(api.LogLine) error) error {
	e.mu.RLock()
	c, err := e.st.find(ref)
	e.mu.RUnlock()
	if err != nil {
		return err
	}
	return e.opt.Sandbox.Logs(ctx, c.Doc.ID, o, emit)
}

// ContainerStats reads a container's use of resources now.
func (e *Engine) ContainerStats(ctx context.Context, ref string) (api.Stats, error) {
	c, err := e.running(ref)
	if err != nil {
		return api.Stats{}, err
	}
	s, err := e.opt.Sandbox.Stats(ctx, c.Doc.ID)
	if err != nil {
		return s, err
	}
	s.ID, s.Name = c.Doc.ID, c.Doc.Name
	for _, id := range c.Endpoints {
		if n, err := e.EndpointStats(id); err == nil && n.Interface != "" {
			s.Networks = append(s.Networks, n)
		}
	}
	return s, nil
}

// publisher is the endpoint that carries a container's published ports.
func (s *state) publisher(c *containerRow) (*plan.Endpoint, *plan.Network, error) {
	for _, id := range c.Endpoints {
		ep := s.endpoints[id]
		if ep == nil {
			continue
		}
		if n := s.networks[ep.Doc.HostComputeNetwork]; n != nil && n.Doc.Type == hcn.NAT {
			return ep, n, nil
		}
	}
	return nil, nil, api.Errorf(api.KindConflict, "container %s is on no NAT network, so it cannot publish ports", c.Doc.Name).Hint("bulkhead network connect %s %s", DefaultNetworkName, c.Doc.Name)
}

// PublishPorts publishes further ports of a container, running or not, and
// returns them as text.
func (e *Engine) PublishPorts(ctx context.Context, ref string, ports []api.PublishedPort) ([]string, error) {
	return e.changePorts(ctx, ref, ports, hcn.RequestTypeAdd)
}

// UnpublishPorts takes published ports back.
func (e *Engine) UnpublishPorts(ctx context.Context, ref string, ports []api.PublishedPort) error {
	_, err := e.changePorts(ctx, ref, ports, hcn.RequestTypeRemove)
	return err
}

func (e *Engine) changePorts(ctx context.Context, ref string, ports []api.PublishedPort, kind hcn.RequestType) ([]string, error) {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e.mu.RLock()
	ep, n, err := e.st.publisher(c)
	e.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	var policies []hcn.EndpointPolicy
	for i, p := range ports {
		more, err := publishPolicies(p, has6(&n.Doc))
		if err != nil {
			return nil, fmt.Errorf("ports[%d]: %w", i, err)
		}
		policies = append(policies, more...)
	}
	r, err := hcn.NewEndpointPolicyRequest(kind, policies)
	if err != nil {
		return nil, err
	}
	if err := e.ModifyEndpoint(ctx, ep.Doc.ID, r); err != nil {
		if errors.Is(err, hcn.ErrPolicyNotFound) {
			return nil, api.Errorf(api.KindNotFound, "container %s does not publish that port", c.Doc.Name).Hint("bulkhead port %s", c.Doc.Name)
		}
		return nil, asAPI(err)
	}
	_, _, err = e.ctrs.change(c.Doc.ID, func(_ *txn, c *containerRow) error {
		c.Doc.Spec.Publish = slices.Clone(c.Doc.Spec.Publish)
		if kind == hcn.RequestTypeAdd {
			c.Doc.Spec.Publish = append(c.Doc.Spec.Publish, ports...)
			return nil
		}
		c.Doc.Spec.Publish = slices.DeleteFunc(c.Doc.Spec.Publish, func(p api.PublishedPort) bool { return slices.Contains(ports, p) })
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if now := e.st.endpoints[ep.Doc.ID]; now != nil {
		return portTexts(now), nil
	}
	return nil, nil
}

// ConnectContainer puts a container on a further network, running or not.
func (e *Engine) ConnectContainer(ctx context.Context, ref string, a api.NetworkAttachment) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Shares != "" {
		return api.Errorf(api.KindConflict, "container %s uses the compartment of another: connect that one", c.Doc.Name)
	}
	var made hcn.GUID
	_, rev, err := e.ctrs.change(c.Doc.ID, func(t *txn, c *containerRow) error {
		n, err := t.st.findNetwork(a.Network)
		if err != nil {
			return err
		}
		for _, id := range c.Endpoints {
			if ep := t.st.endpoints[id]; ep != nil && ep.Doc.HostComputeNetwork == n.Doc.ID {
				return api.Errorf(api.KindConflict, "container %s is on network %s already", c.Doc.Name, n.Doc.Name)
			}
		}
		ep, err := t.containerEndpoint(c, a, false)
		if err != nil {
			return err
		}
		made = ep.Doc.ID
		c.Endpoints = append(slices.Clone(c.Endpoints), made)
		if t.st.namespaces[c.Doc.Namespace] != nil {
			_, err = t.attach(made, c.Doc.Namespace)
		}
		return err
	})
	if err != nil {
		return asAPI(err)
	}
	if err := e.applied(ctx, rev, string(made)); err != nil {
		e.undo(ctx, "container", c.Doc.ID, func(t *txn) { t.disconnect(c.Doc.ID, made) })
		return api.Errorf(api.KindInternal, "connect container %s to network %s: %w", c.Doc.Name, a.Network, err)
	}
	e.event("container", "connect", c.Doc.ID, c.Doc.Name, map[string]string{"network": a.Network})
	return nil
}

func (t *txn) disconnect(container string, ep hcn.GUID) {
	t.dropEndpoint(ep)
	if c := t.st.containers[container]; c != nil {
		row := *c
		row.Endpoints = slices.DeleteFunc(slices.Clone(c.Endpoints), func(id hcn.GUID) bool { return id == ep })
		t.putContainer(container, &row)
	}
}

// DisconnectContainer takes a container off a network.
func (e *Engine) DisconnectContainer(ctx context.Context, ref, network string) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	rev, err := e.commit(func(t *txn) error {
		n, err := t.st.findNetwork(network)
		if err != nil {
			return err
		}
		for _, id := range c.Endpoints {
			if ep := t.st.endpoints[id]; ep != nil && ep.Doc.HostComputeNetwork == n.Doc.ID {
				t.disconnect(c.Doc.ID, id)
				return nil
			}
		}
		return api.Errorf(api.KindNotFound, "container %s is not on network %s", c.Doc.Name, network).Hint("bulkhead inspect %s", c.Doc.Name)
	})
	e.ctrs.notify()
	if err != nil {
		return err
	}
	if err := e.applied(ctx, rev); err != nil {
		return api.Errorf(api.KindInternal, "disconnect container %s from network %s: %w", c.Doc.Name, network, err)
	}
	e.event("container", "disconnect", c.Doc.ID, c.Doc.Name, map[string]string{"network": network})
	return nil
}
