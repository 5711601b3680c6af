package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
)

func (e *env) isolate(ref, isolation string) (api.IsolationChange, error) {
	return e.e.IsolateContainer(bg, ref, api.IsolationRequest{Isolation: isolation})
}

// apart tells that a container's process is kept apart as its document says.
func (e *env) apart(id, isolation string) {
	e.t.Helper()
	doc := must(e.e.Container(id))(e)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	c := e.w.ctrs[id]
	if doc.Spec.Isolation != isolation || c != nil && c.cfg.Spec.Isolation != isolation {
		e.t.Errorf("isolation %q, of its process %v; want %q", doc.Spec.Isolation, c, isolation)
	}
}

// published has a container publish a port, which it is to keep.
func published(s *api.ContainerSpec) {
	s.Publish = []api.PublishedPort{{HostPort: 8080, ContainerPort: 80}}
}

func TestIsolation(t *testing.T) {
	t.Run("of one that runs", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"run"}, published)
			before := must(e.e.Container(id))(e).Endpoints
			for _, to := range []string{"vm", "process"} {
				time.Sleep(time.Second)
				got := must(e.isolate("c", to))(e)
				if !got.Changed || !got.Restarted || got.Name != "c" {
					e.t.Errorf("%+v", got)
				}
				e.wantStatus(id, api.StatusRunning, 0)
				e.apart(id, to)
				if d := cmp.Diff(before, must(e.e.Container(id))(e).Endpoints); d != "" {
					e.t.Errorf("endpoints: %s", d)
				}
			}
			if got := must(e.isolate("c", "process"))(e); got.Changed || got.Restarted {
				e.t.Errorf("what it has already: %+v", got)
			}
			if runs := e.w.ctrs[id].runs; runs != 1 { // its record is made anew with each start
				e.t.Errorf("let go %d times", runs)
			}
			e.check()
		})
	})
	t.Run("of one that does not run", func(t *testing.T) {
		run(t, func(e *env) {
			id := must(e.create("c", []string{"run"}))(e).ID
			if got := must(e.isolate("c", "vm"))(e); !got.Changed || got.Restarted {
				e.t.Errorf("%+v", got)
			}
			e.wantStatus(id, api.StatusCreated, 0)
			e.restart()
			e.ok(e.e.StartContainer(bg, id))
			e.apart(id, "vm")
		})
	})
	t.Run("whatever becomes of it at its end", func(t *testing.T) {
		for name, change := range map[string]func(*api.ContainerSpec){"removed": autoRemove, "restarted": restart("always", 0), "left": restart("no", 0)} {
			t.Run(name, func(t *testing.T) {
				run(t, func(e *env) {
					id := e.started("c", []string{"run"}, change)
					must(e.isolate("c", "vm"))(e)
					e.wantStatus(id, api.StatusRunning, 0)
					if got := e.state(id); got.RestartCount != 0 {
						e.t.Errorf("counted as a restart: %+v", got)
					}
					e.apart(id, "vm")
				})
			})
		}
	})
	t.Run("of one that does not heed its signal", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"stubborn"})
			begin := time.Now()
			soon := 3
			must(e.e.IsolateContainer(bg, "c", api.IsolationRequest{Isolation: "vm", Timeout: &soon}))(e)
			if took := time.Since(begin); took < 3*time.Second || took > 4*time.Second {
				e.t.Errorf("it took %v", took)
			}
			e.wantStatus(id, api.StatusRunning, 0)
			e.apart(id, "vm")
		})
	})
	t.Run("of one that somebody stops meanwhile", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"stubborn"})
			done := make(chan error)
			go func() { done <- second(e.isolate("c", "vm")) }()
			time.Sleep(time.Second)
			e.ok(e.e.StopContainer(bg, "c", api.StopRequest{}))
			e.ok(<-done)
			e.settle()
			e.wantStatus(id, api.StatusExited, 137)
			e.apart(id, "vm")
		})
	})
	t.Run("with which it does not start", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"run"})
			e.w.startErr = errors.New("the guest is silent")
			_, err := e.isolate("c", "vm")
			if err == nil || !strings.Contains(err.Error(), "with isolation vm") || !strings.Contains(err.Error(), "the guest is silent") {
				e.t.Errorf("%v", err)
			}
			if a, ok := errors.AsType[*api.Error](err); !ok || !strings.Contains(a.Next, "container isolation c process") {
				e.t.Errorf("the next step of %v", err)
			}
			e.w.startErr = nil
			must(e.isolate("c", "process"))(e)
			e.ok(e.e.StartContainer(bg, id))
			e.apart(id, "process")
		})
	})
}

// TestIsolationRefused: nothing is touched.
func TestIsolationRefused(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"})
		refused := func(err error, kind, want string) {
			e.t.Helper()
			e.wantKind(err, kind)
			if err == nil || !strings.Contains(err.Error(), want) {
				e.t.Errorf("%v: it does not say %q", err, want)
			}
			e.wantStatus(id, api.StatusRunning, 0)
			e.apart(id, "process")
		}
		refused(second(e.isolate("none-such", "vm")), api.KindNotFound, "")
		refused(second(e.isolate("c", "")), api.KindInvalid, "isolation")
		refused(second(e.isolate("c", "hyperv")), api.KindUnsupported, "hyperv")
		e.w.noVM = errors.New("qemu-system-x86_64 is not installed")
		refused(second(e.isolate("c", "vm")), api.KindInvalid, "qemu-system-x86_64 is not installed")
		e.w.noVM = nil
		must(e.create("side", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "container:c" }))(e)
		refused(second(e.isolate("c", "vm")), api.KindConflict, "side")
		refused(second(e.isolate("side", "vm")), api.KindConflict, "shares the compartment of container c")
		if _, err := e.create("inside", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode, s.Isolation = "container:c", "vm" }); err == nil {
			e.t.Error("a container in a VM shares the compartment of one that is in none")
		}
		e.ok(e.e.RemoveContainer(bg, "side", false))
		e.ok(e.e.PauseContainer(bg, "c"))
		refused(second(e.isolate("c", "vm")), api.KindConflict, "paused")
		e.ok(e.e.UnpauseContainer(bg, "c"))
		ep := must(e.e.Container(id))(e).Endpoints[0].ID
		e.ok(e.policies(ep, "Add", `[{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"15001","FilterTuple":{"Protocols":"6"}}}]`))
		refused(second(e.isolate("c", "vm")), api.KindUnsupported, "L4WFPPROXY")
		if e.w.ctrs[id].runs != 1 {
			e.t.Error("it was started anew")
		}
	})
}

// TestIsolationPlanned: it is asked about beforehand, and nothing happens.
func TestIsolationPlanned(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"})
		p, err := e.e.Plan(bg, func(ctx context.Context) error {
			return second(e.e.IsolateContainer(ctx, "c", api.IsolationRequest{Isolation: "vm"}))
		})
		e.ok(err)
		if len(p.Objects) == 0 {
			e.t.Error("a container that runs leaves its compartment, and enters another")
		}
		e.apart(id, "process")
		e.wantStatus(id, api.StatusRunning, 0)
	})
}

// TestCutIsolation kills the daemon at every step: the container has the one isolation or the other, whole, and runs.
func TestCutIsolation(t *testing.T) {
	for cut := 1; cut < 100; cut++ {
		passed := false
		run(t, func(e *env) {
			id := e.started("c", []string{"run"}, published)
			before := must(e.e.Container(id))(e).Endpoints
			e.settle()
			e.cutAt("*", cut)
			_, err := e.isolate("c", "vm")
			passed = e.uncut()
			if passed {
				e.ok(err)
			}
			e.restart()
			e.settle()
			now := must(e.e.Container(id))(e)
			e.wantStatus(id, api.StatusRunning, 0)
			e.apart(id, now.Spec.Isolation)
			if d := cmp.Diff(before, now.Endpoints); d != "" {
				e.t.Errorf("cut %d: endpoints: %s", cut, d)
			}
			must(e.isolate("c", "vm"))(e)
			e.apart(id, "vm")
			e.check()
		})
		if passed || t.Failed() {
			return
		}
	}
	t.Fatal("the operation has no end")
}

// TestKernels: a container has a kernel that its image can run on, or is refused.
func TestKernels(t *testing.T) {
	vm := func(kernel string) func(*api.ContainerSpec) {
		return func(s *api.ContainerSpec) { s.Isolation, s.GuestKernel = "vm", kernel }
	}
	has := func(e *env, id, kernel, dir string) {
		e.t.Helper()
		if got := must(e.e.Container(id))(e).GuestKernelID; got != kernel || e.w.ctrs[id].cfg.GuestKernel != dir {
			e.t.Errorf("kernel %q at %q, want %q at %q", got, e.w.ctrs[id].cfg.GuestKernel, kernel, dir)
		}
	}
	t.Run("of its image's choice", func(t *testing.T) {
		run(t, func(e *env) {
			e.w.noKernel = api.Errorf(api.KindUnsupported, "it wants another")
			e.wantKind(second(e.create("c", []string{"run"})), api.KindUnsupported)
			has(e, e.started("vm", []string{"run"}, vm("")), "sha256:2", "/kernel")
			if used := e.e.imagesInUse(); !cmp.Equal(used, []string{"sha256:1", "sha256:2"}) {
				e.t.Errorf("in use: %v", used)
			}
			e.wantKind(second(e.isolate("vm", "process")), api.KindUnsupported)
		})
	})
	t.Run("of the user's choice", func(t *testing.T) {
		run(t, func(e *env) {
			e.wantKind(second(e.create("c", nil, vm("other"))), api.KindNotFound)
			e.wantKind(second(e.create("c", nil, vm("kernel"), func(s *api.ContainerSpec) { s.Isolation = "" })), api.KindInvalid)
			id := e.started("c", []string{"run"}, vm("kernel"))
			has(e, id, "sha256:2", "/kernel")
			if got := must(e.isolate("c", "vm"))(e); got.Changed {
				e.t.Errorf("it has a kernel of its own already: %+v", got)
			}
			must(e.isolate("c", "process"))(e)
			has(e, id, "", "")
			must(e.isolate("c", "vm"))(e)
			has(e, id, "", "")
			must(e.e.IsolateContainer(bg, "c", api.IsolationRequest{Isolation: "vm", GuestKernel: "kernel"}))(e)
			has(e, id, "sha256:2", "/kernel")
		})
	})
	t.Run("of a host that has another by now", func(t *testing.T) {
		run(t, func(e *env) {
			c, own := e.started("c", []string{"run"}), e.started("own", []string{"run"}, vm(""))
			has(e, own, "", "")
			e.ok(e.e.StopContainer(bg, c, api.StopRequest{}))
			e.ok(e.e.StopContainer(bg, own, api.StopRequest{}))
			e.w.noKernel = api.Errorf(api.KindUnsupported, "it wants another")
			e.wantKind(e.e.StartContainer(bg, c), api.KindUnsupported)
			e.ok(e.e.StartContainer(bg, own))
			has(e, own, "", "/kernel")
		})
	})
}

// TestPod holds that what shares the compartment of a container in a VM is in that VM, for as long as it shares it.
func TestPod(t *testing.T) {
	run(t, func(e *env) {
		vmOf := func(id string) string {
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			return e.w.ctrs[id].cfg.VMOf
		}
		own := e.started("own", []string{"run"}, func(s *api.ContainerSpec) { s.Isolation = "vm" })
		side := e.started("side", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "container:own" })
		must(e.create("edge", []string{"run"}, asHost))(e)
		doc := must(e.e.Container(side))(e)
		if doc.Spec.Isolation != "vm" || doc.Namespace != must(e.e.Container(own))(e).Namespace {
			e.t.Errorf("it is in another compartment: %+v", doc)
		}
		if got := vmOf(side); got != own {
			e.t.Errorf("it is in the VM of %q", got)
		}
		if got := vmOf(own); got != "" {
			e.t.Errorf("the first is in the VM of %q", got)
		}
		for name, change := range map[string]func(s *api.ContainerSpec){
			"process isolation": func(s *api.ContainerSpec) { s.NetworkMode, s.Isolation = "container:own", "process" },
			"another kernel":    func(s *api.ContainerSpec) { s.NetworkMode, s.GuestKernel = "container:own", "kernel" },
			"a member's VM":     func(s *api.ContainerSpec) { s.NetworkMode = "container:side" },
			"a host's VM":       func(s *api.ContainerSpec) { s.NetworkMode = "container:edge" },
			"nobody's VM":       func(s *api.ContainerSpec) { s.NetworkMode = "container:none-such" },
		} {
			if _, err := e.create("more", []string{"run"}, change); err == nil {
				e.t.Errorf("%s was taken", name)
			}
		}
		for _, name := range []string{"own", "side"} {
			if _, err := e.isolate(name, "process"); err == nil || !strings.Contains(err.Error(), "shares") {
				e.t.Errorf("the isolation of %s changes: %v", name, err)
			}
		}
	})
}
