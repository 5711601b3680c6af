package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	c = e.ctrs.row(c.Doc.ID)
	if c != nil && c.Doc.State.Status == api.StatusStarting {
		// Nobody holds it, so its start was cut with the last daemon.
		e.ctrs.adoptLocked(e.ctrs.runCtx(), c)
		c = e.ctrs.row(c.Doc.ID)
	}
	if c == nil {
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
		if c.Doc.State.Paused {
			return paused(c, "start")
		}
		return nil
	}
	if rehearsing(ctx) != nil {
		return e.rehearseStart(ctx, c)
	}
	if c.Doc.State.Status == api.StatusRemoving {
		return beingRemoved(c)
	}
	e.ctrs.resetBackoff(c.Doc.ID)
	return e.ctrs.start(ctx, c, byUser)
}

func beingRemoved(c *containerRow) error {
	return api.Errorf(api.KindConflict, "container %s is being removed", c.Doc.Name).Hint("bulkhead ps -a, until it is gone")
}

// rehearseStart rehearses a start, and of a container that runs the stop before it.
func (e *Engine) rehearseStart(ctx context.Context, c *containerRow) error {
	if c.Doc.State.Status == api.StatusRemoving {
		return beingRemoved(c)
	}
	_, _, err := e.ctrs.changeOr(ctx, c.Doc.ID, func(t *txn, c *containerRow) error { return t.enterCompartment(c, byUser) })
	return asAPI(err)
}

// RestartContainer stops a container and starts it again.
func (e *Engine) RestartContainer(ctx context.Context, ref string, r api.StopRequest) error {
	if rehearsing(ctx) != nil {
		c, unlock, err := e.hold(ref)
		if err != nil {
			return err
		}
		defer unlock()
		return e.rehearseStart(ctx, c)
	}
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
	if c.Doc.State.Paused && e.endsPause(c, signal) {
		if err := e.resume(ctx, c); err != nil && !e.gone(ctx, c.Doc.ID) {
			return err
		}
	}
	return nil
}

// RemoveContainer removes a container; one that runs only with force. Volumes
// without a name are part of a container and go with it; named ones stay.
func (e *Engine) RemoveContainer(ctx context.Context, ref string, force bool) error {
	c, unlock, err := e.hold(ref)
	if api.IsKind(err, api.KindNotFound) {
		return e.orForget(ctx, "container", ref, err)
	}
	if err != nil {
		return err
	}
	defer unlock()
	if active(c) && !force {
		return api.Errorf(api.KindConflict, "container %s is %s", c.Doc.Name, c.Doc.State.Status).Hint("bulkhead stop %s, or bulkhead rm -f %s", c.Doc.Name, c.Doc.Name)
	}
	if rehearsing(ctx) != nil {
		_, err := e.commitOr(ctx, func(t *txn) error { t.dropContainer(c.Doc.ID); return nil })
		return err
	}
	if err := e.ctrs.remove(ctx, c); err != nil {
		return api.Errorf(api.KindInternal, "remove container %s: %w", c.Doc.Name, err)
	}
	return nil
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

// ExecContainer runs a further process in a container and returns its exit code.
func (e *Engine) ExecContainer(ctx context.Context, ref string, spec api.ExecSpec, s api.Streams) (int, error) {
	if len(spec.Args) == 0 {
		return 0, api.Errorf(api.KindInvalid, "args: there is no command to run").Hint("name one, as in bulkhead exec NAME sh")
	}
	c, err := e.running(ref)
	if err != nil {
		return 0, err
	}
	if c.Doc.State.Paused {
		return 0, paused(c, "exec in")
	}
	code, err := e.opt.Sandbox.Exec(ctx, c.Doc.ID, spec, s)
	if err != nil {
		err = named("exec in", c.Doc.Name, err, "bulkhead inspect "+c.Doc.Name+", or bulkhead logs "+c.Doc.Name)
	}
	return code, err
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
	e.mu.RLock()
	in := e.st.inCompartment(c)
	e.mu.RUnlock()
	for _, id := range in {
		if n, err := e.EndpointStats(id); err == nil && n.Interface != "" {
			s.Networks = append(s.Networks, n)
		}
	}
	return s, nil
}

// publisher is the endpoint that carries a container's published ports.
func (s *state) publisher(c *containerRow) (*plan.Endpoint, *plan.Network, error) {
	for _, kinds := range [][]hcn.NetworkType{{hcn.NAT}, {hcn.Overlay}, {hcn.L2Bridge, hcn.L2Tunnel}} {
		for _, id := range c.Endpoints {
			ep := s.endpoints[id]
			if ep == nil {
				continue
			}
			if n := s.networks[ep.Doc.HostComputeNetwork]; n != nil && slices.Contains(kinds, n.Doc.Type) && (n.Doc.Type != hcn.Overlay || n.Doc.HasHostRoute()) {
				return ep, n, nil
			}
		}
	}
	return nil, nil, api.Errorf(api.KindConflict, "container %s is on no network that publishes ports: NAT, L2Bridge, L2Tunnel, or an Overlay with the policy HostRoute", c.Doc.Name).Hint("bulkhead network connect %s %s", DefaultNetworkName, c.Doc.Name)
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
	err = e.modifyEndpoint(ctx, ep.Doc.ID, r, func(t *txn) {
		row := *t.st.containers[c.Doc.ID]
		row.Doc.Spec.Publish = changePublish(row.Doc.Spec.Publish, ports, kind)
		t.putContainer(c.Doc.ID, &row)
	})
	if err != nil {
		if now := e.ctrs.row(c.Doc.ID); now != nil && !slices.Equal(now.Doc.Spec.Publish, c.Doc.Spec.Publish) {
			_, _, cerr := e.ctrs.change(c.Doc.ID, func(_ *txn, now *containerRow) error {
				now.Doc.Spec.Publish = c.Doc.Spec.Publish
				return nil
			})
			err = errors.Join(err, cerr)
		}
		if errors.Is(err, hcn.ErrPolicyNotFound) {
			return nil, api.Errorf(api.KindNotFound, "container %s does not publish that port", c.Doc.Name).Hint("bulkhead port %s", c.Doc.Name)
		}
		return nil, asAPI(err)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if now := e.st.endpoints[ep.Doc.ID]; now != nil {
		return portTexts(now), nil
	}
	return nil, nil
}

// changePublish follows a change of the published ports in what the user asked
// for. An entry whose port was picked by us is known by what it leads to.
func changePublish(have, ports []api.PublishedPort, kind hcn.RequestType) []api.PublishedPort {
	have = slices.Clone(have)
	if kind == hcn.RequestTypeAdd {
		return append(have, ports...)
	}
	return slices.DeleteFunc(have, func(p api.PublishedPort) bool {
		return slices.ContainsFunc(ports, func(gone api.PublishedPort) bool {
			if p.HostPort == 0 {
				gone.HostPort = 0
			}
			return normal(p) == normal(gone)
		})
	})
}

func normal(p api.PublishedPort) api.PublishedPort {
	p.Protocol, p.Expose, p.Count = cmp.Or(p.Protocol, "tcp"), cmp.Or(p.Expose, "loopback"), max(p.Count, 1)
	return p
}

// ConnectContainer puts a container on a further network, running or not.
func (e *Engine) ConnectContainer(ctx context.Context, ref string, a api.NetworkAttachment) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Shares != "" {
		return api.Errorf(api.KindConflict, "container %s uses the compartment of another", c.Doc.Name).
			Hint("bulkhead inspect %s says whose: connect that one", c.Doc.Name)
	}
	var made hcn.GUID
	connect := func(t *txn, c *containerRow) error {
		n, err := t.st.findNetwork(a.Network)
		if err != nil {
			return err
		}
		for _, id := range c.Endpoints {
			if ep := t.st.endpoints[id]; ep != nil && ep.Doc.HostComputeNetwork == n.Doc.ID {
				return api.Errorf(api.KindConflict, "container %s is on network %s already", c.Doc.Name, n.Doc.Name).
					Hint("bulkhead network disconnect %s %s, to connect it anew", n.Doc.Name, c.Doc.Name)
			}
		}
		ep, err := t.containerEndpoint("", c, a, false)
		if err != nil {
			return err
		}
		made = ep.Doc.ID
		// Those whose networks were deleted are gone for good.
		c.Endpoints = slices.DeleteFunc(slices.Clone(c.Endpoints), func(id hcn.GUID) bool { return t.st.endpoints[id] == nil })
		c.Endpoints = append(c.Endpoints, made)
		if err := t.checkSlots(c); err != nil {
			return err
		}
		if t.st.namespaces[c.Doc.Namespace] != nil {
			_, err = t.attach(made, c.Doc.Namespace)
		}
		return err
	}
	err = e.vacant(ctx, func(t *txn) ([]*plan.Endpoint, error) {
		row := *c
		err := connect(t, &row)
		return []*plan.Endpoint{t.st.endpoints[made]}, err
	})
	if err != nil {
		return asAPI(err)
	}
	_, rev, err := e.ctrs.changeOr(ctx, c.Doc.ID, connect)
	if err != nil {
		return asAPI(err)
	}
	err = e.applied(ctx, rev, portObject(made))
	if now := e.ctrs.row(c.Doc.ID); err == nil && now != nil && now.Doc.Namespace != "" {
		if err = e.announce(ctx, made); err == nil {
			err = e.awaitLeases(context.WithoutCancel(ctx), made)
		}
	}
	if err != nil {
		e.undo(ctx, "container", c.Doc.ID, func(t *txn) { t.disconnect(c.Doc.ID, made) })
		return api.Errorf(whyCut(err), "connect container %s to network %s: %w", c.Doc.Name, a.Network, err)
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
	rev, err := e.commitOr(ctx, func(t *txn) error {
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
