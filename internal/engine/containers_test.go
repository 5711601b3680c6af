package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

var bg = context.Background()

// create makes a container of the test image.
func (e *env) create(name string, args []string, change ...func(*api.ContainerSpec)) (api.ContainerCreated, error) {
	spec := api.ContainerSpec{Name: name, Image: "img", Args: args}
	for _, c := range change {
		c(&spec)
	}
	return e.e.CreateContainer(bg, spec)
}

func (e *env) started(name string, args []string, change ...func(*api.ContainerSpec)) string {
	e.t.Helper()
	c := must(e.create(name, args, change...))(e)
	e.ok(e.e.StartContainer(bg, c.ID))
	return c.ID
}

func (e *env) state(id string) api.ContainerState {
	e.t.Helper()
	return must(e.e.Container(id))(e).State
}

func (e *env) wantStatus(id, status string, code int) {
	e.t.Helper()
	if got := e.state(id); got.Status != status || got.ExitCode != code {
		e.t.Fatalf("container is %s with code %d (%s), want %s with %d", got.Status, got.ExitCode, got.Error, status, code)
	}
}

func restart(name string, retries int) func(*api.ContainerSpec) {
	return func(s *api.ContainerSpec) { s.Restart = api.RestartPolicy{Name: name, MaxRetries: retries} }
}

func autoRemove(s *api.ContainerSpec) { s.AutoRemove = true }

func TestContainerLife(t *testing.T) {
	run(t, func(e *env) {
		c := must(e.create("web", []string{"run"}))(e)
		doc := must(e.e.Container("web"))(e)
		if doc.State.Status != api.StatusCreated || len(doc.Endpoints) != 1 || len(doc.Endpoints[0].Addresses) != 2 || doc.Endpoints[0].Network != "nat" {
			e.t.Fatalf("created: %s", toJSON(doc))
		}
		e.ok(e.e.StartContainer(bg, c.ID[:12]))
		e.ok(e.e.StartContainer(bg, "web")) // runs already
		running := must(e.e.Container("web"))(e)
		if running.State.PID == 0 || running.Namespace.IsZero() || running.Endpoints[0].Interface != "eth0" || running.State.Started == nil {
			e.t.Fatalf("running: %s", toJSON(running))
		}
		if cfg := e.w.ctrs[c.ID].cfg; !strings.Contains(cfg.Hosts, "10.246.0.2\t"+c.ID[:12]+" web") || !strings.Contains(cfg.ResolvConf, "nameserver 10.246.0.1") {
			e.t.Errorf("hosts:\n%s\nresolv.conf:\n%s", cfg.Hosts, cfg.ResolvConf)
		}
		e.wantKind(e.e.RemoveContainer(bg, "web", false), api.KindConflict)
		e.endContainer(c.ID, 3)
		e.settle()
		e.wantStatus(c.ID, api.StatusExited, 3)
		ended := must(e.e.Container("web"))(e)
		if !ended.Namespace.IsZero() || !cmp.Equal(ended.Endpoints[0].Addresses, doc.Endpoints[0].Addresses) || ended.Endpoints[0].MAC != doc.Endpoints[0].MAC {
			e.t.Errorf("ended: %s", toJSON(ended))
		}
		e.ok(e.e.StartContainer(bg, "web"))
		e.ok(e.e.RemoveContainer(bg, "web", true))
		_, err := e.e.Container("web")
		e.wantKind(err, api.KindNotFound)
		for _, err := range []error{e.e.StartContainer(bg, "web"), e.e.StopContainer(bg, "web", api.StopRequest{}), e.e.RemoveContainer(bg, "web", true), e.e.KillContainer(bg, "web", "")} {
			e.wantKind(err, api.KindNotFound)
		}
	})
}

func TestCreateContainerRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*api.ContainerSpec)
		kind   string
	}{
		"name of another": {func(s *api.ContainerSpec) { s.Name = "taken" }, api.KindConflict},
		"bad name":        {func(s *api.ContainerSpec) { s.Name = "../x" }, api.KindInvalid},
		"no image":        {func(s *api.ContainerSpec) { s.Image = "" }, api.KindInvalid},
		"unknown image":   {func(s *api.ContainerSpec) { s.Image = "other" }, api.KindNotFound},
		"unknown network": {func(s *api.ContainerSpec) { s.Networks = []api.NetworkAttachment{{Network: "other"}} }, api.KindNotFound},
		"unknown policy":  {restart("sometimes", 0), api.KindInvalid},
		"policy and --rm": {func(s *api.ContainerSpec) { s.AutoRemove = true; restart("always", 0)(s) }, api.KindInvalid},
		"unknown mode":    {func(s *api.ContainerSpec) { s.NetworkMode = "host" }, api.KindInvalid},
		"ports without network": {func(s *api.ContainerSpec) {
			s.NetworkMode, s.Publish = "none", []api.PublishedPort{{ContainerPort: 80}}
		}, api.KindInvalid},
		"unknown container":           {func(s *api.ContainerSpec) { s.NetworkMode = "container:other" }, api.KindNotFound},
		"sandbox says no":             {func(s *api.ContainerSpec) { s.User = "nobody-knows" }, api.KindInvalid},
		"isolation":                   {func(s *api.ContainerSpec) { s.Isolation = "hyperv" }, api.KindUnsupported},
		"VM in another's compartment": {func(s *api.ContainerSpec) { s.Isolation, s.NetworkMode = "vm", "container:taken" }, api.KindConflict},
		"address in use": {func(s *api.ContainerSpec) {
			s.Networks = []api.NetworkAttachment{{Network: "nat", Addresses: []string{"10.246.0.2"}}}
		}, api.KindInvalid},
		"no address": {func(s *api.ContainerSpec) {
			s.Networks = []api.NetworkAttachment{{Network: "nat", Addresses: []string{"x"}}}
		}, api.KindInvalid},
		"port in use":          {func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 80, HostPort: 8080}} }, api.KindConflict},
		"range beyond the end": {func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 65530, Count: 10}} }, api.KindInvalid},
		"no container port":    {func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{HostPort: 80}} }, api.KindInvalid},
		"sctp":                 {func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 80, Protocol: "sctp"}} }, api.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				must(e.create("taken", nil, func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 80, HostPort: 8080}} }))(e)
				_, err := e.create("c", []string{"run"}, tc.change)
				e.wantKind(err, tc.kind)
				if n, eps := len(e.e.Containers()), len(e.e.Endpoints(hcn.Filter{})); n != 1 || eps != 1 {
					e.t.Errorf("%d containers and %d endpoints after a refused one", n, eps)
				}
			})
		})
	}
}

// A container that says nothing of its isolation has that of the host, but for one that shares another's compartment.
func TestDefaultIsolation(t *testing.T) {
	run(t, func(e *env) {
		e.started("plain", []string{"run"})
		e.e.opt.Isolation = "vm"
		e.started("own", []string{"run"})
		e.started("said", []string{"run"}, func(s *api.ContainerSpec) { s.Isolation = "process" })
		e.started("beside", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "container:plain" })
		for name, want := range map[string]string{"plain": "process", "own": "vm", "said": "process", "beside": "process"} {
			c, err := e.e.Container(name)
			if e.ok(err); c.Spec.Isolation != want {
				e.t.Errorf("%s: %s, want %s", name, c.Spec.Isolation, want)
			}
		}
	})
}

// What happens inside a compartment does not happen to the traffic of a VM: who shares it is in the VM, too, and no side-car is put into it.
func TestCompartmentOfAVM(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("own", []string{"run"}, func(s *api.ContainerSpec) { s.Isolation = "vm" })
		_, err := e.create("c", nil, func(s *api.ContainerSpec) { s.NetworkMode, s.Isolation = "container:own", "process" })
		e.wantKind(err, api.KindConflict)
		const redirect = `[{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"15001","FilterTuple":{"Protocols":"6"}}}]`
		endpoint := e.e.Endpoints(hcn.Filter{})[0]
		if err := e.policies(endpoint, "Add", redirect); err == nil || !strings.Contains(err.Error(), "runs in a VM") {
			e.t.Errorf("a side-car for a VM: %v", err)
		}
		e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
		e.ok(e.policies(endpoint, "Add", redirect))
		if err := e.e.StartContainer(bg, id); err == nil || !strings.Contains(err.Error(), "runs in a VM") {
			e.t.Errorf("a VM with a side-car was started: %v", err)
		}
	})
}

// A probe is sent by the stack that has the addresses: the guest's, of a container in a VM.
func TestProbeFromAVM(t *testing.T) {
	run(t, func(e *env) {
		e.started("own", []string{"run"}, func(s *api.ContainerSpec) { s.Isolation = "vm" })
		e.started("plain", []string{"run"})
		var byHost []string
		e.e.opt.Explain.Dial = func(_ context.Context, path, network, _ string, _ uint16) (net.Conn, error) {
			byHost = append(byHost, path+" "+network)
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		e.e.opt.Explain.Host = func(context.Context) (plan.HostView, error) { return plan.HostView{}, nil }
		for _, from := range []string{"own", "plain"} {
			to := map[string]string{"own": "plain", "plain": "own"}[from]
			x, err := e.e.Explain(bg, api.ExplainOptions{From: from, To: to, Protocol: "icmp", Family: 4, Probe: true})
			if err != nil || len(x.Paths) != 1 || x.Paths[0].Probe == nil || !x.Paths[0].Probe.Arrived || x.Paths[0].Probe.Text != refused {
				e.t.Errorf("from %s: %+v, %v", from, x.Paths, err)
			}
		}
		status := func(now string) {
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			for _, c := range e.w.ctrs {
				c.status = now
			}
		}
		status(api.StatusExited) // its shim is gone, and the daemon has not heard yet
		defer status(api.StatusRunning)
		x, err := e.e.Explain(bg, api.ExplainOptions{From: "own", To: "plain", Protocol: "icmp", Family: 4, Probe: true})
		if err != nil || len(x.Paths) != 1 || x.Paths[0].Probe.Sent || !x.Paths[0].Probe.Agrees || !strings.Contains(x.Paths[0].Probe.Text, "nothing is sent: it does not run") {
			e.t.Errorf("from a VM that cannot be asked: %+v, %v", x.Paths, err)
		}
		if len(e.w.dialled) != 1 || !strings.HasPrefix(e.w.dialled[0], "own ip4:icmp ") || len(byHost) != 1 || !strings.HasSuffix(byHost[0], " ip4:icmp") {
			e.t.Errorf("sent from VMs: %q, by the host's kernel: %q", e.w.dialled, byHost)
		}
	})
}

// A container that has no name yet is told by its image.
func TestRefusedContainerIsNamed(t *testing.T) {
	run(t, func(e *env) {
		for name, want := range map[string]string{"c": "create container c: ", "": "create container of image "} {
			_, err := e.create(name, nil, func(s *api.ContainerSpec) { s.User = "nobody-knows" })
			if err == nil || !strings.Contains(err.Error(), want) {
				e.t.Errorf("name %q: got %v, want an error with %q", name, err, want)
			}
		}
	})
}

func TestMadeUpNamesAreUnique(t *testing.T) {
	run(t, func(e *env) {
		seen := map[string]bool{}
		for range 40 {
			c := must(e.create("", nil, func(s *api.ContainerSpec) { s.NetworkMode = "none" }))(e)
			if seen[c.Name] || c.Name == "" {
				e.t.Fatalf("name %q again", c.Name)
			}
			seen[c.Name] = true
		}
	})
}

func TestAmbiguousReference(t *testing.T) {
	run(t, func(e *env) {
		for range 17 { // two of them start with the same digit
			must(e.create("", nil, func(s *api.ContainerSpec) { s.NetworkMode = "none" }))(e)
		}
		var kinds []string
		for _, d := range "0123456789abcdef" {
			_, err := e.e.Container(string(d))
			if a, ok := errors.AsType[*api.Error](err); ok {
				kinds = append(kinds, a.Kind)
			}
		}
		if !slices.Contains(kinds, api.KindConflict) {
			e.t.Errorf("answers to one digit: %v", kinds)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for name, tc := range map[string]struct {
		policy func(*api.ContainerSpec)
		code   int
		runs   int // how often the process ran in all
		status string
	}{
		"none":                         {restart("", 0), 1, 1, api.StatusExited},
		"on-failure, success":          {restart("on-failure", 0), 0, 1, api.StatusExited},
		"on-failure, failure, bounded": {restart("on-failure", 3), 1, 4, api.StatusExited},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				ran := 0
				e.onStart(func() { ran++ })
				id := e.started("c", []string{"exit", itoa(tc.code)}, tc.policy)
				res := must(e.e.WaitContainer(bg, id, ""))(e)
				e.settle()
				e.wantStatus(id, tc.status, tc.code)
				if res.ExitCode != tc.code || ran != tc.runs {
					e.t.Errorf("wait says %d; it ran %d times, want %d", res.ExitCode, ran, tc.runs)
				}
			})
		})
	}
	for _, policy := range []string{"always", "unless-stopped"} {
		t.Run(policy, func(t *testing.T) {
			run(t, func(e *env) {
				id := e.started("c", []string{"run"}, restart(policy, 0))
				for _, code := range []int{0, 1} {
					e.endContainer(id, code)
					e.settle()
					e.wantStatus(id, api.StatusRunning, 0)
				}
				if n := e.state(id).RestartCount; n != 2 {
					e.t.Errorf("restart count %d, want 2", n)
				}
				e.ok(e.e.KillContainer(bg, id, ""))
				e.settle()
				e.wantStatus(id, api.StatusExited, 137) // the user ended it
				e.ok(e.e.StartContainer(bg, id))
				e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
				e.settle()
				e.wantStatus(id, api.StatusExited, 143)
				e.restart()
				e.settle()
				want := map[string]string{"always": api.StatusRunning, "unless-stopped": api.StatusExited}[policy]
				if got := e.state(id); got.Status != want || got.RestartCount != 0 {
					e.t.Errorf("after a restart of the daemon: %s, restart count %d; want %s, 0", got.Status, got.RestartCount, want)
				}
			})
		})
	}
}

// onStart counts processes that are let go.
func (e *env) onStart(fn func()) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.onStart = fn
}

// After a restart of the host all containers want to start, and few do at once.
func TestRestartsAreBounded(t *testing.T) {
	run(t, func(e *env) {
		const n = 40
		for i := range n {
			e.started(fmt.Sprintf("c%d", i), []string{"run"}, restart("always", 0))
		}
		e.stop()
		e.w.reboot()
		var now, most, all atomic.Int32
		e.w.onCreate = func() {
			most.Store(max(most.Load(), now.Add(1)))
			all.Add(1)
			time.Sleep(time.Second)
			now.Add(-1)
		}
		e.start()
		e.settle()
		if want := int32(min(n, runtime.NumCPU()+2)); most.Load() != want || all.Load() != n {
			e.t.Errorf("%d of %d starts at once, want %d", most.Load(), all.Load(), want)
		}
		for _, c := range e.e.Containers() {
			e.wantStatus(c.ID, api.StatusRunning, 0)
		}
	})
}

// TestStopWithoutASignal: what an image names as its stop signal may be no signal here, and the container is stopped nevertheless.
func TestStopWithoutASignal(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"}, func(s *api.ContainerSpec) { s.StopSignal = "SIGFOO" })
		e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
		e.wantStatus(id, api.StatusExited, 143)
	})
	run(t, func(e *env) {
		id := e.started("c", []string{"run"})
		if err := e.e.StopContainer(bg, id, api.StopRequest{Signal: "SIGFOO"}); err == nil {
			t.Error("a signal that somebody asks for by name is sent, or refused")
		}
		e.wantStatus(id, api.StatusRunning, 0)
	})
}

func TestStop(t *testing.T) {
	seconds := func(n int) api.StopRequest { return api.StopRequest{Timeout: &n} }
	for name, tc := range map[string]struct {
		args []string
		req  api.StopRequest
		code int
		took time.Duration
	}{
		"heeds the signal":          {[]string{"run"}, api.StopRequest{}, 143, 0},
		"stubborn, default timeout": {[]string{"stubborn"}, api.StopRequest{}, 137, 10 * time.Second},
		"stubborn, 3 seconds":       {[]string{"stubborn"}, seconds(3), 137, 3 * time.Second},
		"stubborn, at once":         {[]string{"stubborn"}, seconds(0), 137, 0},
		"heeds it, for ever":        {[]string{"run"}, seconds(-1), 143, 0},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				id := e.started("c", tc.args)
				begin := time.Now()
				e.ok(e.e.StopContainer(bg, id, tc.req))
				if took := time.Since(begin); took != tc.took {
					e.t.Errorf("took %v, want %v", took, tc.took)
				}
				e.wantStatus(id, api.StatusExited, tc.code)
				e.ok(e.e.StopContainer(bg, id, tc.req)) // stopped already
			})
		})
	}
	t.Run("stubborn, for ever", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"stubborn"})
			ctx, cancel := context.WithTimeout(bg, time.Hour)
			defer cancel()
			if err := e.e.StopContainer(ctx, id, seconds(-1)); !errors.Is(err, context.DeadlineExceeded) {
				e.t.Errorf("got %v", err)
			}
			e.wantStatus(id, api.StatusStopping, 0)
			e.ok(e.e.KillContainer(bg, id, ""))
		})
	})
	t.Run("client leaves", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"stubborn"})
			ctx, cancel := context.WithCancel(bg)
			go func() { _ = e.e.StopContainer(ctx, id, api.StopRequest{}) }()
			synctest.Wait()
			cancel()
			time.Sleep(9 * time.Second)
			e.wantStatus(id, api.StatusStopping, 0) // not killed early
			time.Sleep(2 * time.Second)
			e.wantStatus(id, api.StatusExited, 137)
		})
	})
	t.Run("the daemon is killed meanwhile", func(t *testing.T) {
		for wait, rest := range map[int]time.Duration{30: 25 * time.Second, 6: time.Second, 2: 0} {
			run(t, func(e *env) {
				id := e.started("c", []string{"stubborn"})
				go func() { _ = e.e.StopContainer(bg, id, seconds(wait)) }()
				synctest.Wait()
				e.stored()
				time.Sleep(time.Second)
				e.kill()
				time.Sleep(4 * time.Second)
				e.start()
				if rest > 0 {
					time.Sleep(rest - 500*time.Millisecond)
					e.wantStatus(id, api.StatusStopping, 0) // not killed early
				}
				time.Sleep(time.Second)
				e.wantStatus(id, api.StatusExited, 137)
			})
		}
		run(t, func(e *env) {
			id := e.started("c", []string{"stubborn"})
			ctx, cancel := context.WithCancel(bg)
			go func() { _ = e.e.StopContainer(ctx, id, seconds(-1)) }()
			synctest.Wait()
			e.stored()
			cancel()
			e.kill()
			e.start()
			time.Sleep(time.Hour)
			e.wantStatus(id, api.StatusStopping, 0) // for ever is for ever
			e.ok(e.e.KillContainer(bg, id, ""))
		})
	})
	t.Run("no such signal", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"run"}, restart("always", 0))
			e.wantKind(e.e.StopContainer(bg, id, api.StopRequest{Signal: "SIGFOO"}), api.KindInvalid)
			e.wantStatus(id, api.StatusRunning, 0)
			e.wantKind(e.e.KillContainer(bg, id, "SIGFOO"), api.KindInvalid)
		})
	})
	t.Run("while it waits for a restart", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"exit", "1"}, restart("unless-stopped", 0))
			time.Sleep(5 * time.Second)
			e.wantKind(e.e.RemoveContainer(bg, id, false), api.KindConflict)
			e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
			e.settle()
			e.wantStatus(id, api.StatusExited, 1)
		})
	})
	t.Run("removed while it waits for a restart", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"exit", "1"}, restart("always", 0))
			time.Sleep(5 * time.Second)
			e.ok(e.e.RemoveContainer(bg, id, true))
		})
	})
	t.Run("restart", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"run"})
			pid := e.state(id).PID
			e.ok(e.e.RestartContainer(bg, id, api.StopRequest{}))
			if now := e.state(id); now.Status != api.StatusRunning || now.PID == pid {
				e.t.Errorf("after a restart: %+v", now)
			}
		})
	})
}

// TestForeground is `run --rm`: attach, start, wait; nothing of a process that
// ends at once is lost, nor its code, although it is removed.
func TestForeground(t *testing.T) {
	for name, wait := range map[string]string{"not-running": "", "next-exit": "next-exit", "removed": "removed"} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				c := must(e.create("c", []string{"echo", "hello"}, autoRemove))(e)
				var out bytes.Buffer
				attach := must(e.e.PrepareAttach(bg, c.ID))(e)
				attached, ended := make(chan error), make(chan error)
				go func() { attached <- attach(bg, api.Streams{Stdout: &out}) }()
				if wait == "next-exit" { // begins before the start, as no other can
					go func() { _, err := e.e.WaitContainer(bg, c.ID, wait); ended <- err }()
					synctest.Wait()
				}
				e.ok(e.e.StartContainer(bg, c.ID))
				e.ok(<-attached)
				if out.String() != "hello" {
					e.t.Errorf("output %q", out.String())
				}
				if wait == "next-exit" {
					e.ok(<-ended)
					return
				}
				must(e.e.WaitContainer(bg, c.ID, wait))(e)
			})
		})
	}
	t.Run("the wait comes when it is removed", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"exit", "42"}, autoRemove)
			e.settle()
			_, err := e.e.Container(id)
			e.wantKind(err, api.KindNotFound)
			for _, ref := range []string{id, "c"} {
				if res := must(e.e.WaitContainer(bg, ref, ""))(e); res.ExitCode != 42 {
					e.t.Errorf("wait for %.12s: code %d", ref, res.ExitCode)
				}
			}
			_, err = e.e.WaitContainer(bg, "nobody", "")
			e.wantKind(err, api.KindNotFound)
			_, err = e.e.WaitContainer(bg, id, "tomorrow")
			e.wantKind(err, api.KindInvalid)
		})
	})
	t.Run("removed by force while it runs", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"run"})
			code := make(chan int)
			go func() { res, _ := e.e.WaitContainer(bg, id, ""); code <- res.ExitCode }()
			synctest.Wait()
			e.ok(e.e.RemoveContainer(bg, id, true))
			if got := <-code; got != 137 {
				e.t.Errorf("code %d, want 137", got)
			}
		})
	})
	t.Run("failed start", func(t *testing.T) {
		run(t, func(e *env) {
			e.w.startErr = errors.New(`exec: "nope": executable file not found in $PATH`)
			c := must(e.create("c", nil, autoRemove))(e)
			attached := make(chan struct{})
			go func() {
				defer close(attached)
				_ = e.e.AttachContainer(bg, c.ID, api.Streams{})
			}()
			synctest.Wait()
			if err := e.e.StartContainer(bg, c.ID); err == nil || !strings.Contains(err.Error(), "not found in $PATH") {
				e.t.Errorf("start: %v", err)
			}
			<-attached // ends, however
			if res := must(e.e.WaitContainer(bg, c.ID, ""))(e); res.ExitCode != 127 {
				e.t.Errorf("code %d, want 127", res.ExitCode)
			}
			e.settle()
			if n := len(e.e.Containers()); n != 0 {
				e.t.Errorf("%d containers after a failed start with --rm", n)
			}
		})
	})
	t.Run("client leaves before the start", func(t *testing.T) {
		run(t, func(e *env) {
			c := must(e.create("c", []string{"run"}))(e)
			ctx, cancel := context.WithCancel(bg)
			_ = must(e.e.PrepareAttach(ctx, c.ID))(e)
			cancel()
			synctest.Wait()
			e.ok(e.e.StartContainer(bg, c.ID))
			if n := len(e.w.ctrs[c.ID].conns); n != 0 {
				e.t.Errorf("%d connections of a client that left", n)
			}
		})
	})
	t.Run("removed before the start", func(t *testing.T) {
		run(t, func(e *env) {
			c := must(e.create("c", []string{"run"}))(e)
			attached := make(chan error)
			go func() { attached <- e.e.AttachContainer(bg, c.ID, api.Streams{}) }()
			synctest.Wait()
			e.ok(e.e.RemoveContainer(bg, c.ID, false))
			e.wantKind(<-attached, api.KindNotFound)
		})
	})
	t.Run("attach to one that ended", func(t *testing.T) {
		run(t, func(e *env) {
			id := e.started("c", []string{"exit", "0"})
			e.settle()
			_, err := e.e.PrepareAttach(bg, id)
			e.wantKind(err, api.KindConflict)
		})
	})
}

func TestFailedStartIsUndone(t *testing.T) {
	run(t, func(e *env) {
		c := must(e.create("c", []string{"run"}, func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 80}} }))(e)
		before := e.w.text()
		check := func(code int) {
			e.t.Helper()
			if err := e.e.StartContainer(bg, "c"); err == nil {
				e.t.Fatal("the start succeeded")
			}
			e.w.mu.Lock()
			e.w.startErr, e.w.fail = nil, nil
			e.w.mu.Unlock()
			e.settle()
			e.wantStatus(c.ID, api.StatusFailed, code)
			if got := e.w.text(); got != before {
				e.t.Errorf("kernel before:\n%s\nafter:\n%s", before, got)
			}
			if e.state(c.ID).Error == "" {
				e.t.Error("no reason is shown")
			}
		}
		e.w.startErr = errors.New("permission denied")
		check(126)
		for i := range 5 {
			e.failingFor(i, must(e.e.Container("c"))(e).Endpoints[0].ID)
			check(125)
		}
		e.ok(e.e.StartContainer(bg, "c"))
	})
}

func TestSharedCompartment(t *testing.T) {
	run(t, func(e *env) {
		main := must(e.create("main", []string{"run"}))(e)
		side := must(e.create("side", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "container:main" }))(e)
		e.wantKind(e.e.StartContainer(bg, side.ID), api.KindConflict)
		e.ok(e.e.StartContainer(bg, main.ID))
		e.ok(e.e.StartContainer(bg, side.ID))
		a, b := must(e.e.Container("main"))(e), must(e.e.Container("side"))(e)
		if a.Namespace != b.Namespace || e.w.ctrs[main.ID].cfg.NetnsPath != e.w.ctrs[side.ID].cfg.NetnsPath {
			e.t.Errorf("compartments %s and %s", a.Namespace, b.Namespace)
		}
		e.wantKind(e.e.ConnectContainer(bg, "side", api.NetworkAttachment{Network: "nat"}), api.KindConflict)
		// The owner goes and comes back while the other one stays.
		e.ok(e.e.StopContainer(bg, "main", api.StopRequest{}))
		e.ok(e.e.StartContainer(bg, "main"))
		e.ok(e.e.RestartContainer(bg, "side", api.StopRequest{}))
		if a, b := must(e.e.Container("main"))(e), must(e.e.Container("side"))(e); a.Namespace != b.Namespace {
			e.t.Errorf("compartments %s and %s after both were started again", a.Namespace, b.Namespace)
		}
		e.ok(e.e.RemoveContainer(bg, "main", true))
		e.settle()
		e.ok(e.e.StopContainer(bg, "side", api.StopRequest{}))
		e.wantKind(e.e.StartContainer(bg, "side"), api.KindConflict)
	})
}

func TestPublishLive(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"}, func(s *api.ContainerSpec) {
			s.Publish = []api.PublishedPort{{ContainerPort: 80, HostPort: 8080, Expose: "all", Count: 2}}
		})
		got := must(e.e.PublishPorts(bg, "c", []api.PublishedPort{{ContainerPort: 53, Protocol: "udp"}, {ContainerPort: 81, HostPort: 9090, Expose: "lan"}}))(e)
		want := []string{"all:8080->80/tcp", "all:8081->81/tcp", "127.0.0.1:50000->53/udp", "[::1]:50000->53/udp", "lan:9090->81/tcp"}
		if d := cmp.Diff(want, got); d != "" {
			e.t.Error(d)
		}
		_, err := e.e.PublishPorts(bg, "c", []api.PublishedPort{{ContainerPort: 1, HostPort: 8080}})
		e.wantKind(err, api.KindConflict)
		e.ok(e.e.UnpublishPorts(bg, "c", []api.PublishedPort{{ContainerPort: 80, HostPort: 8080, Expose: "all", Count: 2}, {ContainerPort: 53, HostPort: 50000, Protocol: "udp"}}))
		e.wantKind(e.e.UnpublishPorts(bg, "c", []api.PublishedPort{{ContainerPort: 80, HostPort: 8080}}), api.KindNotFound)
		doc := must(e.e.Container(id))(e)
		if d := cmp.Diff([]string{"lan:9090->81/tcp"}, doc.Endpoints[0].Ports); d != "" || len(doc.Spec.Publish) != 1 {
			e.t.Errorf("%s; spec %+v", d, doc.Spec.Publish)
		}
		e.failing(2, false)
		_, err = e.e.PublishPorts(bg, "c", []api.PublishedPort{{ContainerPort: 82, HostPort: 9191}})
		e.wantKind(err, api.KindInternal)
		e.failing(-1, false)
		if doc := must(e.e.Container(id))(e); len(doc.Spec.Publish) != 1 || len(doc.Endpoints[0].Ports) != 1 {
			e.t.Errorf("a refused port stayed: %s", toJSON(doc))
		}
	})
}

func TestConnectAndDisconnect(t *testing.T) {
	run(t, func(e *env) {
		must(e.network(netDoc("back", "Internal", 7)))(e)
		e.started("c", []string{"run"})
		e.ok(e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "back", Aliases: []string{"db"}, Addresses: []string{"10.7.0.9"}}))
		e.wantKind(e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "back"}), api.KindConflict)
		e.wantKind(e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "other"}), api.KindNotFound)
		doc := must(e.e.Container("c"))(e)
		if len(doc.Endpoints) != 2 || doc.Endpoints[1].Interface != "eth1" || doc.Endpoints[1].Addresses[0] != "10.7.0.9/24" || len(doc.Endpoints[1].Addresses) != 2 {
			e.t.Errorf("endpoints %s", toJSON(doc.Endpoints))
		}
		e.ok(e.e.DisconnectContainer(bg, "c", "nat"))
		e.wantKind(e.e.DisconnectContainer(bg, "c", "nat"), api.KindNotFound)
		_, err := e.e.PublishPorts(bg, "c", []api.PublishedPort{{ContainerPort: 80}})
		e.wantKind(err, api.KindConflict) // Internal does not publish
		e.ok(e.e.DisconnectContainer(bg, "c", "back"))
		e.ok(e.e.RestartContainer(bg, "c", api.StopRequest{})) // on no network, as the user wants
		e.failing(0, false)
		e.wantKind(e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "back"}), api.KindInternal)
		e.failing(-1, false)
		if doc := must(e.e.Container("c"))(e); len(doc.Endpoints) != 0 {
			e.t.Errorf("a failed connection stayed: %s", toJSON(doc.Endpoints))
		}
	})
}

func TestContainerWithoutItsNetwork(t *testing.T) {
	run(t, func(e *env) {
		back := must(e.network(netDoc("back", "NAT", 8)))(e)
		id := e.started("c", []string{"run"})
		e.ok(e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "back"}))
		e.ok(e.e.DeleteNetwork(bg, back.ID))
		e.ok(e.e.RestartContainer(bg, "c", api.StopRequest{})) // one of two is left
		e.ok(e.e.DeleteNetwork(bg, e.e.Networks(hcn.Filter{})[0]))
		e.wantStatus(id, api.StatusRunning, 0)
		e.ok(e.e.StopContainer(bg, "c", api.StopRequest{}))
		err := e.e.StartContainer(bg, "c")
		e.wantKind(err, api.KindConflict)
		_, err = e.create("d", nil)
		e.wantKind(err, api.KindNotFound) // the default network is gone
		must(e.network(netDoc("new", "NAT", 7)))(e)
		e.ok(e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "new"}))
		e.ok(e.e.StartContainer(bg, "c"))
	})
}

func TestContainerReports(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"}, func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 80, HostPort: 8080}} })
		if s := must(e.e.ContainerStats(bg, "c"))(e); s.ID != id || s.Name != "c" || len(s.Networks) != 1 || s.Networks[0].Interface != "eth0" {
			e.t.Errorf("stats %+v", s)
		}
		if code := must(e.e.ExecContainer(bg, "c", api.ExecSpec{Args: []string{"true"}}, api.Streams{}))(e); code != 7 {
			e.t.Errorf("exec: %d", code)
		}
		_, err := e.e.ExecContainer(bg, "c", api.ExecSpec{}, api.Streams{})
		e.wantKind(err, api.KindInvalid)
		var lines []string
		e.ok(e.e.ContainerLogs(bg, "c", api.LogOptions{}, func(l api.LogLine) error { lines = append(lines, l.Line); return nil }))
		if !cmp.Equal(lines, []string{"hello"}) {
			e.t.Errorf("logs %v", lines)
		}
		if info := e.e.Info(); info.Containers != 1 || info.Running != 1 || info.Networks != 1 {
			e.t.Errorf("info %+v", info)
		}
		if img := must(e.e.Image("img"))(e); img.Containers != 1 {
			e.t.Errorf("image is used by %d containers", img.Containers)
		}
		e.wantKind(e.e.RemoveImage(bg, "img", false), api.KindConflict)
		var holder []string
		for _, a := range e.e.Addresses() {
			holder = append(holder, a.Container)
		}
		if !slices.Contains(holder, "c") {
			e.t.Errorf("no address is the container's: %v", holder)
		}
		e.ok(e.e.StopContainer(bg, "c", api.StopRequest{}))
		if p := e.e.Published(); len(p) != 2 || p[0].Active || p[0].Container != "c" || p[0].Expose != "loopback" {
			e.t.Errorf("published while stopped: %s", toJSON(p))
		}
		_, err = e.e.ContainerStats(bg, "c")
		e.wantKind(err, api.KindConflict)
	})
}

// Servers that a user names are upstreams of the networks' resolvers, whose names
// stay known; the container asks them itself where nobody else can.
func TestContainerDNS(t *testing.T) {
	run(t, func(e *env) {
		dns := func(servers ...string) func(*api.ContainerSpec) {
			return func(s *api.ContainerSpec) { s.DNS = hcn.Dns{ServerList: servers} }
		}
		id := e.started("web", nil, dns("192.0.2.53", "127.0.0.1"))
		want := "nameserver 127.0.0.1\nnameserver 10.246.0.1\n"
		if got := e.w.ctrs[id].cfg.ResolvConf; !strings.HasPrefix(got, want) {
			e.t.Errorf("resolv.conf:\n%s", got)
		}
		doc := must(e.e.Container("web"))(e)
		ep := must(e.e.Endpoint(doc.Endpoints[0].ID))(e)
		if !slices.Equal(ep.Dns.ServerList, []string{"192.0.2.53", "127.0.0.1"}) {
			e.t.Errorf("the endpoint's document: %s", toJSON(ep.Dns))
		}
		if got := e.e.plan.Ports[plan.EndpointPortID(ep.ID)].Upstreams; len(got) != 1 || got[0].String() != "192.0.2.53:53" {
			e.t.Errorf("upstreams %v", got)
		}
		none := e.started("none", nil, dns("192.0.2.53"), func(s *api.ContainerSpec) { s.NetworkMode = "none" })
		if got := e.w.ctrs[none].cfg.ResolvConf; got != "nameserver 192.0.2.53\n" {
			e.t.Errorf("resolv.conf without a network:\n%s", got)
		}
		_, err := e.create("bad", nil, dns("192.0.2.53\nsearch evil"))
		e.wantKind(err, api.KindInvalid)
		_, err = e.create("shares", nil, dns("192.0.2.53"), func(s *api.ContainerSpec) { s.NetworkMode = "container:web" })
		e.wantKind(err, api.KindInvalid)
	})
}

// TestDNSOrder: the servers of an endpoint with OverrideDNSServerOrder come first, whatever the order of attachment.
func TestDNSOrder(t *testing.T) {
	run(t, func(e *env) {
		e.w.mu.Lock()
		e.w.facts.NICs = []plan.NIC{{
			Name: "eth0", Index: 3, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 1},
			Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")},
		}}
		e.w.mu.Unlock()
		back := must(e.network(netDoc("back", "NAT", 77)))(e)
		must(e.network(strings.Replace(netDoc("office", "Transparent", 78), `"Ipams"`, `"Dns":{"ServerList":["10.78.0.53","10.78.0.54","10.78.0.55"]},"Ipams"`, 1)))(e)
		for _, tc := range []struct {
			name     string
			networks []api.NetworkAttachment
			want     string
		}{
			{
				"plain",
				[]api.NetworkAttachment{{Network: DefaultNetworkName}, {Network: "back"}, {Network: "office"}},
				"nameserver 10.246.0.1\nnameserver fd",
			},
			{
				"nat",
				[]api.NetworkAttachment{{Network: DefaultNetworkName}, {Network: "back", DNSFirst: true}},
				"nameserver 10.77.0.1\nnameserver fd00:77::1\nnameserver 10.246.0.1\n",
			},
			{
				"lan",
				[]api.NetworkAttachment{{Network: DefaultNetworkName}, {Network: "office", DNSFirst: true}},
				"nameserver 10.78.0.53\nnameserver 10.78.0.54\nnameserver 10.246.0.1\n",
			},
			{
				"only-lan",
				[]api.NetworkAttachment{{Network: "office", DNSFirst: true}},
				"nameserver 10.78.0.53\nnameserver 10.78.0.54\nnameserver 10.78.0.55\n",
			},
		} {
			id := e.started(tc.name, nil, func(s *api.ContainerSpec) { s.Networks = tc.networks })
			if got := e.w.ctrs[id].cfg.ResolvConf; !strings.HasPrefix(got, tc.want) {
				e.t.Errorf("%s: resolv.conf:\n%s", tc.name, got)
			}
		}
		// An endpoint that somebody else put into the compartment counts for whoever starts there next.
		id := e.started("joined", nil, func(s *api.ContainerSpec) { s.Networks = []api.NetworkAttachment{{Network: DefaultNetworkName}} })
		c := must(e.e.Container(id))(e)
		ep := must(e.endpoint(epDoc(back.ID, `"Flags":"OverrideDNSServerOrder"`)))(e)
		e.ok(e.attach(c.Namespace, ep.ID))
		id = e.started("sharer", nil, func(s *api.ContainerSpec) { s.NetworkMode = "container:joined" })
		if got := e.w.ctrs[id].cfg.ResolvConf; !strings.HasPrefix(got, "nameserver 10.77.0.1\n") {
			e.t.Errorf("joined: resolv.conf:\n%s", got)
		}
	})
}

func TestVolumes(t *testing.T) {
	run(t, func(e *env) {
		must(e.create("db", nil, func(s *api.ContainerSpec) {
			s.Mounts = []api.Mount{{Type: "volume", Source: "data", Target: "/data"}, {Type: "bind", Source: "spare", Target: "/x"}}
		}))(e)
		all := must(e.e.Volumes())(e)
		if len(all) != 2 || !slices.Equal(all[0].Containers, []string{"db"}) || len(all[1].Containers) != 0 {
			e.t.Errorf("volumes: %s", toJSON(all))
		}
		e.wantKind(e.e.RemoveVolume(bg, "data"), api.KindConflict)
		e.ok(e.e.RemoveVolume(bg, "spare"))
		e.wantKind(e.e.RemoveVolume(bg, "none"), api.KindNotFound)
		e.ok(e.e.RemoveContainer(bg, "db", false))
		e.ok(e.e.RemoveVolume(bg, "data"))
	})
}

// TestNetworkNamedTwice: connect refuses a second endpoint on a network, and so does run.
func TestNetworkNamedTwice(t *testing.T) {
	run(t, func(e *env) {
		_, err := e.create("c", []string{"run"}, func(s *api.ContainerSpec) {
			s.Networks = []api.NetworkAttachment{{Network: DefaultNetworkName}, {Network: DefaultNetworkName}}
		})
		e.wantKind(err, api.KindInvalid)
		if !strings.Contains(err.Error(), "named twice") {
			e.t.Error(err)
		}
	})
}
