package engine

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// A host of containers is a container here. What is in it, its own daemon knows; this one is the way there, and asks it now and then how
// it is. Whatever it answers is the word of a guest.

// hostSocket is where the daemon in a host of containers answers.
const hostSocket = "/run/bulkhead/bulkhead.sock"

// askWait is how long one may take to say how it is.
const askWait = 5 * time.Second

// The least and the most that the disk of one may have, and the least memory in which its daemon has been seen to work.
const (
	minHostDisk   = 256 << 20
	maxHostDisk   = 16 << 40
	minHostMemory = 384 << 20
	maxHostname   = 63
)

// checkHost completes the spec of a host of containers.
func checkHost(s *api.ContainerSpec) error {
	h := *s.Host
	switch {
	case s.Isolation != "" && s.Isolation != isolationVM:
		return api.Errorf(api.KindInvalid, "isolation: a host of containers has a kernel of its own: use vm, or leave it out")
	case s.NetworkMode != "":
		return api.Errorf(api.KindInvalid, "networkMode: a host of containers has an uplink: name networks, or leave it out for the default one")
	case h.Disk != 0 && (h.Disk < minHostDisk || h.Disk > maxHostDisk):
		return api.Errorf(api.KindInvalid, "host.disk: %d bytes are not between 256 MiB and 16 TiB", h.Disk)
	case s.Resources.Memory != 0 && s.Resources.Memory < minHostMemory:
		return api.Errorf(api.KindInvalid, "resources.memory: %d bytes are less than a host of containers needs: give it 384 MiB or more", s.Resources.Memory)
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"user", s.User != ""},
		{"tty", s.TTY},
		{"openStdin", s.OpenStdin},
		{"readOnly", s.ReadOnly},
		{"mounts", len(s.Mounts) > 0},
		{"capDrop", len(s.CapDrop) > 0},
		{"seccomp", s.Seccomp != ""},
		{"noNewPrivileges", s.NoNewPrivileges},
	} {
		if f.set {
			return api.Errorf(api.KindInvalid, "%s: it does not go with a host of containers: leave it out", f.name)
		}
	}
	if h.Disk == 0 {
		h.Disk = api.DefaultHostDisk
	}
	if s.Resources.Memory == 0 {
		s.Resources.Memory = api.DefaultHostMemory
	}
	if s.Hostname == "" && len(s.Name) <= maxHostname {
		s.Hostname = s.Name
	}
	s.Host, s.Isolation, s.Privileged = &h, isolationVM, true
	return nil
}

// Hosts are the hosts of containers, with what the daemons in them say.
func (e *Engine) Hosts(ctx context.Context) []api.Host {
	var hosts []api.Container
	for _, c := range e.Containers() {
		if c.Spec.Host != nil {
			hosts = append(hosts, c)
		}
	}
	out := make([]api.Host, len(hosts))
	var wg sync.WaitGroup
	for i, c := range hosts {
		wg.Go(func() { out[i] = e.host(ctx, c) })
	}
	wg.Wait()
	return out
}

// Host is one of them.
func (e *Engine) Host(ctx context.Context, ref string) (api.Host, error) {
	c, err := e.findHost(ref)
	if err != nil {
		return api.Host{}, err
	}
	return e.host(ctx, c), nil
}

func (e *Engine) findHost(ref string) (api.Container, error) {
	c, err := e.Container(ref)
	switch {
	case api.IsKind(err, api.KindNotFound):
		return c, api.Errorf(api.KindNotFound, "host %q does not exist", ref).Hint("bulkhead host ls")
	case err != nil:
		return c, err
	case c.Spec.Host == nil:
		return c, api.Errorf(api.KindInvalid, "container %s is no host of containers", c.Name).Hint("bulkhead host ls, or bulkhead host create NAME")
	}
	return c, nil
}

// host asks one how it is.
func (e *Engine) host(ctx context.Context, c api.Container) api.Host {
	h := api.Host{ID: c.ID, Name: c.Name, Image: c.Spec.Image, State: c.State.Status, Disk: c.Spec.Host.Disk}
	for _, ep := range c.Endpoints {
		h.Addresses = append(h.Addresses, ep.Addresses...)
	}
	switch {
	case h.State != api.StatusRunning:
		h.Problem = c.State.Error
	case c.State.Paused:
		h.Problem = "it is paused"
	case e.opt.AskHost == nil:
	default:
		ctx, cancel := context.WithTimeout(ctx, askWait)
		defer cancel()
		info, err := e.opt.AskHost(ctx, func(ctx context.Context) (net.Conn, error) { return e.opt.Sandbox.Dial(ctx, c.ID, hostSocket) })
		if err != nil {
			h.Problem = "its daemon does not answer: " + bounded(err.Error())
			break
		}
		h.Ready, h.Version, h.Kernel = true, bounded(info.Version), bounded(info.Kernel)
	}
	return h
}

// bounded is a guest's text, as much of it as fits a line.
func bounded(s string) string {
	const most = 200
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// DialHost connects with the daemon in a host of containers.
func (e *Engine) DialHost(ctx context.Context, ref string) (net.Conn, error) {
	c, err := e.findHost(ref)
	if err != nil {
		return nil, err
	}
	if c.State.Status != api.StatusRunning {
		return nil, api.Errorf(api.KindConflict, "host %s is %s", c.Name, c.State.Status).Hint("bulkhead start %s", c.Name)
	}
	if c.State.Paused {
		return nil, api.Errorf(api.KindConflict, "host %s is paused", c.Name).Hint("bulkhead unpause %s", c.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	conn, err := e.opt.Sandbox.Dial(ctx, c.ID, hostSocket)
	if err != nil {
		return nil, api.Errorf(api.KindUnavailable, "connect to the daemon in host %s: %s", c.Name, bounded(err.Error())).
			Hint("it may be starting: bulkhead host ls; what it says: bulkhead logs %s", c.Name)
	}
	return conn, nil
}
