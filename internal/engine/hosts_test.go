package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

func asHost(s *api.ContainerSpec) { s.Host, s.Isolation = &api.ContainerHost{}, "" }

func TestCheckHost(t *testing.T) {
	t.Parallel()
	spec := api.ContainerSpec{Name: "edge", Image: "i", Host: &api.ContainerHost{}}
	given := spec.Host
	if err := checkSpec(&spec); err != nil {
		t.Fatal(err)
	}
	if spec.Isolation != "vm" || !spec.Privileged || spec.Host.Disk != 8<<30 || spec.Resources.Memory != 1<<30 || spec.Hostname != "edge" {
		t.Errorf("completed to %+v, %+v", spec, spec.Host)
	}
	if given.Disk != 0 {
		t.Error("the caller's document was changed")
	}
	for want, change := range map[string]func(*api.ContainerSpec){
		"isolation:":        func(s *api.ContainerSpec) { s.Isolation = "process" },
		"networkMode:":      func(s *api.ContainerSpec) { s.NetworkMode = "none" },
		"host.disk:":        func(s *api.ContainerSpec) { s.Host.Disk = 1 << 20 },
		"16 TiB":            func(s *api.ContainerSpec) { s.Host.Disk = 1 << 62 },
		"resources.memory:": func(s *api.ContainerSpec) { s.Resources.Memory = 64 << 20 },
		"user:":             func(s *api.ContainerSpec) { s.User = "alice" },
		"readOnly:":         func(s *api.ContainerSpec) { s.ReadOnly = true },
		"mounts:":           func(s *api.ContainerSpec) { s.Mounts = []api.Mount{{Type: "tmpfs", Target: "/run"}} },
		"capDrop:":          func(s *api.ContainerSpec) { s.CapDrop = []string{"ALL"} },
		"seccomp:":          func(s *api.ContainerSpec) { s.Seccomp = "unconfined" },
		"noNewPrivileges:":  func(s *api.ContainerSpec) { s.NoNewPrivileges = true },
		"tty:":              func(s *api.ContainerSpec) { s.TTY = true },
	} {
		s := api.ContainerSpec{Name: "edge", Image: "i", Host: &api.ContainerHost{}}
		change(&s)
		if err := checkSpec(&s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestHosts holds what is said of a host as it comes and goes, and that its daemon is reached while it runs, also by the next daemon.
func TestHosts(t *testing.T) {
	run(t, func(e *env) {
		id := must(e.create("edge", []string{"run"}, asHost))(e).ID
		e.started("web", []string{"run"})
		e.e.opt.AskHost = func(ctx context.Context, dial func(context.Context) (net.Conn, error)) (api.Info, error) {
			conn, err := dial(ctx)
			if err != nil {
				return api.Info{}, err
			}
			text, err := io.ReadAll(conn)
			return api.Info{Version: strings.Repeat(string(text), 10), Kernel: "6.1"}, err
		}
		one := func() api.Host {
			hosts := e.e.Hosts(bg)
			if len(hosts) != 1 || hosts[0].Name != "edge" || hosts[0].ID != id || len(hosts[0].Addresses) == 0 || hosts[0].Disk != 8<<30 {
				e.t.Fatalf("%+v", hosts)
			}
			return hosts[0]
		}
		if h := one(); h.Ready || h.State != api.StatusCreated {
			e.t.Errorf("before its start: %+v", h)
		}
		if _, err := e.e.DialHost(bg, "edge"); !api.IsKind(err, api.KindConflict) {
			e.t.Errorf("before its start: %v", err)
		}
		e.ok(e.e.StartContainer(bg, "edge"))
		// A guest's answer is cut to a line.
		if h := one(); !h.Ready || len(h.Version) != 200 || !strings.HasPrefix(h.Version, id+" /run/bulkhead/bulkhead.sock") || h.Kernel != "6.1" {
			e.t.Errorf("%+v", h)
		}
		conn := must(e.e.DialHost(bg, "edge"))(e)
		if text, err := io.ReadAll(conn); err != nil || string(text) != id+" /run/bulkhead/bulkhead.sock" {
			e.t.Errorf("connected with %q, %v", text, err)
		}
		e.e.opt.AskHost = func(ctx context.Context, _ func(context.Context) (net.Conn, error)) (api.Info, error) {
			<-ctx.Done() // a guest that is silent
			return api.Info{}, errors.New("no answer")
		}
		began := time.Now()
		if h := one(); h.Ready || !strings.Contains(h.Problem, "no answer") || time.Since(began) > 6*time.Second {
			e.t.Errorf("after %v: %+v", time.Since(began), h)
		}
		if _, err := e.isolate("edge", "process"); err == nil || !strings.Contains(err.Error(), "a host of containers has a kernel of its own") {
			e.t.Errorf("without a kernel of its own: %v", err)
		}
		for ref, kind := range map[string]string{"none": api.KindNotFound, "web": api.KindInvalid} {
			if _, err := e.e.DialHost(bg, ref); !api.IsKind(err, kind) {
				e.t.Errorf("%s: %v", ref, err)
			}
			if _, err := e.e.Host(bg, ref); !api.IsKind(err, kind) {
				e.t.Errorf("%s: %v", ref, err)
			}
		}
		e.restart()
		if h := one(); h.State != api.StatusRunning {
			e.t.Errorf("after a restart of the daemon: %+v", h)
		}
		must(e.e.DialHost(bg, id[:12]))(e).Close()
		e.endContainer(id, 1)
		e.settle()
		if h := one(); h.Ready || h.State != api.StatusExited {
			e.t.Errorf("at its end: %+v", h)
		}
	})
}
