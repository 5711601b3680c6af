package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// How a container is kept apart: by namespaces of the host's kernel, or by a kernel of its own.
const (
	isolationProcess = "process"
	isolationVM      = "vm"
)

// joinVM has a container that shares the compartment of one with VM isolation be in its VM, and gives the ID of that one: a compartment
// is on one side of a VM's border.
func (e *Engine) joinVM(spec *api.ContainerSpec) (vmOf string, err error) {
	if ref, ok := strings.CutPrefix(spec.NetworkMode, "namespace:"); ok {
		return "", e.joinGuest(spec, ref)
	}
	ref, ok := strings.CutPrefix(spec.NetworkMode, "container:")
	if !ok {
		return "", nil
	}
	e.mu.RLock()
	other, err := e.st.find(ref)
	e.mu.RUnlock()
	if err != nil {
		return "", err
	}
	theirs := cmp.Or(other.Doc.Spec.Isolation, isolationProcess)
	switch {
	case spec.Isolation != "" && spec.Isolation != theirs:
		return "", api.Errorf(api.KindConflict, "isolation: container %s, whose compartment it is to share, has %s isolation", other.Doc.Name, theirs).
			Hint("leave --isolation out, or give this one networks of its own")
	case theirs != isolationVM:
		return "", nil
	case other.Doc.Spec.Host != nil:
		return "", api.Errorf(api.KindConflict, "networkMode: container %s is a host of containers, with compartments of its own", other.Doc.Name).
			Hint("bulkhead --host %s run …", other.Doc.Name)
	case spec.GuestKernel != "" && spec.GuestKernel != other.Doc.Spec.GuestKernel:
		return "", api.Errorf(api.KindConflict, "guestKernel: it is to be in the VM of container %s, which has a kernel", other.Doc.Name).Hint("leave --guest-kernel out")
	case other.Shares != "":
		return "", api.Errorf(api.KindConflict, "networkMode: container %s is itself in the VM of another", other.Doc.Name).Hint("name that one: bulkhead inspect %s", other.Doc.Name)
	}
	spec.Isolation, spec.GuestKernel = isolationVM, other.Doc.Spec.GuestKernel
	return other.Doc.ID, nil
}

// joinGuest has a container's VM be in a namespace that a client made for it.
func (e *Engine) joinGuest(spec *api.ContainerSpec, ref string) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ns, err := e.st.guestNamespace(ref)
	if err != nil {
		return err
	}
	spec.NetworkMode, spec.Isolation = "namespace:"+string(ns.Doc.ID), cmp.Or(spec.Isolation, isolationVM)
	return nil
}

// IsolateContainer changes how a container is kept apart. Everything else of it stays: files, names, endpoints with their addresses,
// MACs, rules and published ports. One that runs is stopped and started again. The change is one transaction, which for a container
// that runs also says that it is to be started at its end: whatever cuts the way short, the next run of the daemon goes on with it.
func (e *Engine) IsolateContainer(ctx context.Context, ref string, r api.IsolationRequest) (api.IsolationChange, error) {
	done := api.IsolationChange{Isolation: r.Isolation}
	c, unlock, err := e.hold(ref)
	if err != nil {
		return done, err
	}
	release := func() { unlock(); unlock = func() {} }
	defer func() { unlock() }()
	done.Name = c.Doc.Name
	if r.Isolation == cmp.Or(c.Doc.Spec.Isolation, isolationProcess) && (r.GuestKernel == "" || r.GuestKernel == c.Doc.Spec.GuestKernel) {
		return done, nil
	}
	kernel, warnings, err := e.checkIsolation(ctx, c, r)
	if done.Warnings = warnings; err != nil {
		return done, sandboxError("change the isolation of container "+c.Doc.Name, err)
	}
	change := func(t *txn, c *containerRow) error { return t.isolate(c, r, kernel) }
	runs := c.Doc.State.Status == api.StatusRunning
	if rehearsing(ctx) != nil {
		_, _, err := e.ctrs.changeOr(ctx, c.Doc.ID, func(t *txn, c *containerRow) error {
			if err := change(t, c); err != nil || !runs {
				return err
			}
			return t.enterCompartment(c, byUser)
		})
		return done, asAPI(err)
	}
	if !runs {
		_, _, err := e.ctrs.change(c.Doc.ID, change)
		if done.Changed = err == nil; done.Changed {
			e.isolated(c, r.Isolation)
		}
		return done, asAPI(err)
	}
	stop := api.StopRequest{Signal: r.Signal, Timeout: r.Timeout}
	row, err := e.askToEnd(ctx, c, stop, true, change)
	if err != nil {
		return done, asAPI(err)
	}
	e.opt.Step("isolate")
	done.Changed, done.Restarted = true, true
	e.isolated(c, r.Isolation)
	release() // its end needs it
	if err := e.seeEnd(ctx, row, stop); err != nil {
		return done, err
	}
	return done, e.startedAgain(ctx, row)
}

func (e *Engine) isolated(c *containerRow, isolation string) {
	e.event("container", "isolate", c.Doc.ID, c.Doc.Name, map[string]string{"isolation": isolation})
}

// checkIsolation refuses what a container cannot have with an isolation, and what this host lacks for it. It gives the image of the
// kernel that it is to have.
func (e *Engine) checkIsolation(ctx context.Context, c *containerRow, r api.IsolationRequest) (kernel string, warnings []string, err error) {
	spec := c.Doc.Spec
	spec.Isolation, spec.GuestKernel = r.Isolation, r.GuestKernel
	if r.Isolation == "" {
		return "", nil, api.Errorf(api.KindInvalid, "isolation: it is missing").Hint("use process or vm")
	}
	if err := checkSpec(&spec); err != nil {
		return "", nil, err
	}
	switch s := c.Doc.State; {
	case s.Paused:
		return "", nil, api.Errorf(api.KindConflict, "it is paused").Hint("bulkhead unpause %s", c.Doc.Name)
	case s.Status == api.StatusStopping, s.Status == api.StatusRemoving:
		return "", nil, api.Errorf(api.KindConflict, "it is %s", s.Status).Hint("try again when it has ended: bulkhead wait %s", c.Doc.Name)
	}
	img, err := e.opt.Images.Inspect(c.Doc.ImageID)
	if err != nil {
		return "", nil, err
	}
	return e.checkSandbox(ctx, c.Doc.ID, "", spec, img)
}

// sandboxError says what was being done; what a sandbox refuses is the document's fault.
func sandboxError(doing string, err error) error {
	if a, ok := errors.AsType[*api.Error](err); ok {
		return api.Errorf(a.Kind, "%s: %w", doing, err).Hint("%s", a.Next)
	}
	return api.Errorf(api.KindInvalid, "%s: %w", doing, err)
}

// checkSandbox picks the kernel for a container, and refuses what cannot be as far as that shows beforehand.
func (e *Engine) checkSandbox(ctx context.Context, id, vmOf string, spec api.ContainerSpec, img api.Image) (kernel string, warnings []string, err error) {
	kernel, dir, err := e.pickKernel(ctx, spec, img.ID)
	if err != nil {
		return "", nil, err
	}
	warnings, err = e.opt.Sandbox.Check(api.SandboxConfig{
		ID: id, VMOf: vmOf, Name: spec.Name, Spec: spec, Image: img.Config, GuestKernel: dir, Hostname: hostnameOf(id, &spec),
	})
	return kernel, warnings, err
}

// pickKernel finds the kernel that a container of an image is to run on, and refuses the image where there is none that it can.
func (e *Engine) pickKernel(ctx context.Context, spec api.ContainerSpec, image string) (kernel, dir string, err error) {
	if spec.Isolation != isolationVM {
		return "", "", e.opt.Kernels.Host(image)
	}
	if kernel, err = e.opt.Kernels.Guest(ctx, image, spec.GuestKernel); err != nil || kernel == "" {
		return "", "", err
	}
	dir, err = e.kernelDir(ctx, kernel)
	return kernel, dir, err
}

// kernelDir unpacks the image of a kernel.
func (e *Engine) kernelDir(ctx context.Context, kernel string) (string, error) {
	dirs, err := e.opt.Images.Layers(ctx, kernel)
	if err != nil {
		return "", fmt.Errorf("unpack its kernel's image: %w", err)
	}
	if len(dirs) != 1 {
		return "", api.Errorf(api.KindInvalid, "image %.19s has %d layers, and the image of a kernel has one", kernel, len(dirs)).Hint("bulkhead image import-kernel makes one")
	}
	return dirs[0], nil
}

// kernelOf is where the kernel is that a container starts with. It keeps the image that it was given; the host's kernel and the
// installed one may be others by now.
func (e *Engine) kernelOf(ctx context.Context, c *containerRow) (dir string, err error) {
	if c.Doc.GuestKernelID != "" {
		return e.kernelDir(ctx, c.Doc.GuestKernelID)
	}
	_, dir, err = e.pickKernel(ctx, c.Doc.Spec, c.Doc.ImageID)
	return dir, err
}

// isolate changes the row, if what others have of the container allows it.
func (t *txn) isolate(c *containerRow, r api.IsolationRequest, kernel string) error {
	if other := t.st.containers[c.Shares]; other != nil {
		return api.Errorf(api.KindConflict, "change the isolation of container %s: it shares the compartment of container %s, and so its isolation", c.Doc.Name, other.Doc.Name).
			Hint("bulkhead rm %s, and give it networks of its own", c.Doc.Name)
	}
	for _, other := range t.st.containers {
		if other.Shares == c.Doc.ID {
			return api.Errorf(api.KindConflict, "change the isolation of container %s: container %s shares its compartment, and so its isolation", c.Doc.Name, other.Doc.Name).
				Hint("bulkhead rm %s, and make it again after the change", other.Doc.Name)
		}
	}
	if r.Isolation != isolationVM {
		t.dropMachine(api.VirtualMachineID(c.Doc.ID))
	}
	if r.Isolation == isolationVM {
		for _, id := range c.Endpoints {
			if ep := t.st.endpoints[id]; ep != nil && len(plan.Redirects(ep)) > 0 {
				return sideCarError(ep, c)
			}
		}
	}
	c.Doc.Spec.Isolation, c.Doc.Spec.GuestKernel, c.Doc.GuestKernelID = r.Isolation, r.GuestKernel, kernel
	return t.checkSlots(c)
}

// errNotYet ends a wait.
var errNotYet = errors.New("it takes longer than it should, and goes on")

// startedAgain waits until a container that is started again at its end runs, and says why it does not.
func (e *Engine) startedAgain(ctx context.Context, before *containerRow) error {
	name := before.Doc.Name
	ctx, cancel := context.WithTimeoutCause(ctx, 2*opTimeout, errNotYet) // a start is bounded, and others may be before it
	defer cancel()
	var gone bool
	last, err := e.await(ctx, before.Doc.ID, func(c *containerRow) bool {
		if gone = c == nil; gone {
			return true
		}
		switch s := c.Doc.State; s.Status {
		case api.StatusFailed, api.StatusRunning:
			return true
		case api.StatusExited:
			return !c.Want || startedAfter(s.Started, before.Doc.State.Started)
		case api.StatusRestarting: // by its policy: it ran, and nobody had time to see it
			return startedAfter(s.Started, before.Doc.State.Started)
		}
		return false
	})
	switch {
	case errors.Is(err, errStopping):
		return api.Errorf(api.KindUnavailable, "container %s has ended, and is started again when the daemon is: %w", name, err)
	case errors.Is(context.Cause(ctx), errNotYet):
		return api.Errorf(api.KindUnavailable, "start container %s with isolation %s: %w", name, before.Doc.Spec.Isolation, errNotYet).Hint("bulkhead inspect %s", name)
	case err != nil:
		return err
	case gone:
		return api.Errorf(api.KindConflict, "container %s was removed meanwhile", name).Hint("bulkhead ps -a")
	case last.Doc.State.Status == api.StatusFailed:
		return api.Errorf(api.KindInternal, "start container %s with isolation %s: %s", name, last.Doc.Spec.Isolation, last.Doc.State.Error).
			Hint("bulkhead logs %s; back: bulkhead container isolation %s %s, and start it", name, name, otherIsolation(last.Doc.Spec.Isolation))
	}
	return nil
}

func startedAfter(now, before *time.Time) bool {
	return now != nil && (before == nil || now.After(*before))
}

func otherIsolation(isolation string) string {
	if isolation == isolationVM {
		return isolationProcess
	}
	return isolationVM
}
