package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestRestartKeepsEverything: the same documents, and not one write.
func TestRestartKeepsEverything(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{"Name":"pod",` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, publish(mapping(`"Protocol":6,"InternalPort":80`)))))(e)
		must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.started("c", []string{"run"}, func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 80}} })
		must(e.create("d", nil))(e)
		dump := func() string {
			e.settle()
			var b strings.Builder
			for _, id := range e.e.Networks(hcn.Filter{}) {
				b.WriteString(toJSON(must(e.e.Network(id))(e)) + "\n")
			}
			for _, id := range e.e.Endpoints(hcn.Filter{}) {
				b.WriteString(toJSON(must(e.e.Endpoint(id))(e)) + "\n")
			}
			for _, id := range e.e.Namespaces(hcn.Filter{}) {
				b.WriteString(toJSON(must(e.e.Namespace(id))(e)) + "\n")
			}
			b.WriteString(toJSON(e.e.Containers()) + "\n" + toJSON(e.e.Addresses()) + "\n" + toJSON(e.e.Published()))
			return b.String()
		}
		before := dump()
		e.w.mu.Lock()
		e.w.writes = nil
		e.w.mu.Unlock()
		for _, how := range []func(){e.restart, func() { e.kill(); e.start() }} {
			how()
			if d := cmp.Diff(before, dump()); d != "" {
				e.t.Errorf("after a restart: %s", d)
			}
		}
		if len(e.w.writes) > 0 {
			e.t.Errorf("writes: %v", e.w.writes)
		}
	})
}

func TestHostRestart(t *testing.T) {
	run(t, func(e *env) {
		keep := must(e.network(netDoc("keep", "NAT", 7)))(e)
		doc := decode[hcn.HostComputeNetwork](e, netDoc("lose", "NAT", 8))
		doc.Flags = hcn.EnableNonPersistent
		lose := must(e.e.CreateNetwork(bg, "", doc))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		kept := must(e.endpoint(epDoc(keep.ID, "")))(e)
		lost := must(e.endpoint(epDoc(lose.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)))))(e)
		e.ok(e.attach(ns.ID, kept.ID))
		e.ok(e.attach(ns.ID, lost.ID))
		ids := map[string]string{}
		for _, policy := range []string{"no", "on-failure", "always", "unless-stopped"} {
			ids[policy] = e.started(policy, []string{"run"}, restart(policy, 0))
		}
		ids["rm"] = e.started("rm", []string{"run"}, autoRemove)
		ids["stopped"] = e.started("stopped", []string{"run"}, restart("unless-stopped", 0))
		e.ok(e.e.StopContainer(bg, "stopped", api.StopRequest{}))
		address := must(e.e.Container("always"))(e).Endpoints[0].Addresses

		e.reboot()
		if got := slices.DeleteFunc(e.told(), func(s string) bool { return !strings.HasPrefix(s, "drift") }); len(got) > 0 {
			e.t.Errorf("taken for somebody else's doing: %v", got)
		}
		e.settle()
		if got := e.e.Networks(filter(e, `{"Name":"lose"}`)); len(got) != 0 {
			e.t.Errorf("a network that does not persist: %v", got)
		}
		if _, err := e.e.Namespace(ns.ID); !errors.Is(err, hcn.ErrElementNotFound) {
			e.t.Errorf("a namespace of the last run of the host: %v", err)
		}
		if got := must(e.e.Endpoint(kept.ID))(e); got.State != hcn.EndpointCreated || got.HostComputeNamespace != "" || addrs(got) != addrs(kept) {
			e.t.Errorf("endpoint: %s", toJSON(got))
		}
		for name, want := range map[string]string{
			"no": api.StatusExited, "on-failure": api.StatusRunning, "always": api.StatusRunning,
			"unless-stopped": api.StatusRunning, "stopped": api.StatusExited,
		} {
			if got := e.state(ids[name]); got.Status != want {
				e.t.Errorf("%s: %s, want %s", name, got.Status, want)
			}
		}
		if _, err := e.e.Container("rm"); !api.IsKind(err, api.KindNotFound) {
			e.t.Errorf("a container with --rm after a restart of the host: %v", err)
		}
		if got := must(e.e.Container("always"))(e); !cmp.Equal(got.Endpoints[0].Addresses, address) {
			e.t.Errorf("addresses %v, before %v", got.Endpoints[0].Addresses, address)
		}
	})
}

// TestHalt: what the host's shutdown ends stays down until the daemon starts again, and has its exit code.
func TestHalt(t *testing.T) {
	halt := api.StopRequest{Halt: true}
	policies := func(e *env) map[string]string {
		ids := map[string]string{}
		for _, policy := range []string{"no", "on-failure", "always", "unless-stopped"} {
			ids[policy] = e.started(policy, []string{"stubborn"}, restart(policy, 0))
		}
		ids["stopped"] = e.started("stopped", []string{"run"}, restart("unless-stopped", 0))
		e.ok(e.e.StopContainer(bg, "stopped", api.StopRequest{}))
		ids["rm"] = e.started("rm", []string{"run"}, autoRemove)
		ids["crashing"] = e.started("crashing", []string{"exit", "3"}, restart("always", 0))
		return ids
	}
	want := map[string]string{
		"no": api.StatusExited, "on-failure": api.StatusRunning, "always": api.StatusRunning,
		"unless-stopped": api.StatusRunning, "stopped": api.StatusExited,
	}
	check := func(e *env, ids map[string]string) {
		e.t.Helper()
		for name, status := range want {
			if got := e.state(ids[name]); got.Status != status {
				e.t.Errorf("%s: %s, want %s", name, got.Status, status)
			}
		}
		if c := must(e.e.Container("crashing"))(e); c.State.RestartCount < 2 {
			e.t.Errorf("crashing: %s", toJSON(c.State))
		}
		e.ok(e.e.RemoveContainer(bg, "crashing", true))
	}
	for name, how := range map[string]func(e *env){"the host restarts": (*env).reboot, "the daemon restarts": (*env).restart} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				ids := policies(e)
				for ref := range ids {
					e.ok(e.e.StopContainer(bg, ref, halt))
				}
				e.settle()
				for name, id := range ids {
					if name == "rm" {
						if _, err := e.e.Container(id); !api.IsKind(err, api.KindNotFound) {
							e.t.Errorf("a container with --rm after its end: %v", err)
						}
					} else if got := e.state(id); got.Status != api.StatusExited {
						e.t.Errorf("%s: %s", name, got.Status)
					}
				}
				e.wantStatus(ids["always"], api.StatusExited, 137)
				how(e)
				e.settle()
				check(e, ids)
			})
		})
	}
	t.Run("the host is faster", func(t *testing.T) {
		run(t, func(e *env) {
			ids := policies(e)
			for ref := range ids {
				go func() { _ = e.e.StopContainer(bg, ref, halt) }()
			}
			synctest.Wait()
			time.Sleep(time.Second)
			e.wantStatus(ids["always"], api.StatusStopping, 0)
			e.reboot()
			e.settle()
			check(e, ids)
		})
	})
	t.Run("a user has the last word", func(t *testing.T) {
		run(t, func(e *env) {
			ids := policies(e)
			for ref := range ids {
				e.ok(e.e.StopContainer(bg, ref, halt))
			}
			e.ok(e.e.StopContainer(bg, "unless-stopped", api.StopRequest{}))
			e.ok(e.e.StartContainer(bg, "no"))
			e.restart()
			e.settle()
			e.wantStatus(ids["no"], api.StatusRunning, 0)
			e.wantStatus(ids["unless-stopped"], api.StatusExited, 137)
			e.ok(e.e.RemoveContainer(bg, "crashing", true))
		})
	})
}

// TestExitsWhileTheDaemonIsAway: what ended meanwhile is noted, with its code.
func TestExitsWhileTheDaemonIsAway(t *testing.T) {
	run(t, func(e *env) {
		plain := e.started("plain", []string{"run"})
		rm := e.started("rm", []string{"run"}, autoRemove)
		always := e.started("always", []string{"run"}, restart("always", 0))
		stubborn := e.started("stubborn", []string{"stubborn"})
		go func() { _ = e.e.StopContainer(bg, stubborn, api.StopRequest{}) }()
		synctest.Wait()
		time.Sleep(time.Second)
		e.kill()
		for _, id := range []string{plain, rm, always} {
			e.w.mu.Lock()
			e.w.ctrs[id].end(5)
			e.w.mu.Unlock()
		}
		// A sandbox that no row knows.
		e.w.ctrs["leftover"], e.w.disk["leftover"] = &fakeContainer{status: api.StatusRunning}, true
		e.start()
		e.settle()
		e.wantStatus(plain, api.StatusExited, 5)
		e.wantStatus(always, api.StatusRunning, 0)
		e.wantStatus(stubborn, api.StatusExited, 137) // the stop went on
		if res := must(e.e.WaitContainer(bg, rm, ""))(e); res.ExitCode != 5 {
			e.t.Errorf("removed on the way: code %d", res.ExitCode)
		}
	})
}

// TestCutEverywhere kills the daemon at every step of every operation on a
// container, and starts it again. A process is never let go twice, nothing is
// left, and the container ends as it should.
func TestCutEverywhere(t *testing.T) {
	ops := map[string]struct {
		args []string
		// before brings the container to where op begins.
		before func(e *env, id string)
		op     func(e *env, id string) error
		want   []string // the statuses it may have afterwards, "" = removed
	}{
		"create": {nil, nil, nil, []string{api.StatusCreated, ""}},
		"start":  {[]string{"run"}, nil, func(e *env, id string) error { return e.e.StartContainer(bg, id) }, []string{api.StatusRunning, api.StatusCreated}},
		"job":    {[]string{"exit", "0"}, nil, func(e *env, id string) error { return e.e.StartContainer(bg, id) }, []string{api.StatusExited, api.StatusCreated}},
		"stop":   {[]string{"run"}, start, func(e *env, id string) error { return e.e.StopContainer(bg, id, api.StopRequest{}) }, []string{api.StatusExited, api.StatusRunning}},
		"remove": {[]string{"run"}, start, func(e *env, id string) error { return e.e.RemoveContainer(bg, id, true) }, []string{"", api.StatusRunning}},
		"publish": {[]string{"run"}, start, func(e *env, id string) error {
			_, err := e.e.PublishPorts(bg, id, []api.PublishedPort{{ContainerPort: 80}})
			return err
		}, []string{api.StatusRunning}},
		"connect": {[]string{"run"}, start, func(e *env, id string) error {
			return e.e.ConnectContainer(bg, id, api.NetworkAttachment{Network: "back"})
		}, []string{api.StatusRunning}},
		"disconnect": {[]string{"run"}, start, func(e *env, id string) error { return e.e.DisconnectContainer(bg, id, "nat") }, []string{api.StatusRunning}},
		"delete network": {[]string{"run"}, start, func(e *env, _ string) error {
			return e.e.DeleteNetwork(bg, e.e.Networks(hcn.Filter{})[0])
		}, []string{api.StatusRunning}},
	}
	for name, tc := range ops {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for cut := 1; cut < 100; cut++ {
				passed := false
				run(t, func(e *env) {
					must(e.network(netDoc("back", "Internal", 7)))(e)
					runs := 0
					e.onStart(func() { runs++ })
					var id string
					if tc.op == nil {
						e.settle()
						e.cutAt("*", cut)
					}
					c, err := e.create("c", tc.args, func(s *api.ContainerSpec) { s.Publish = []api.PublishedPort{{ContainerPort: 81, HostPort: 8081}} })
					if id = c.ID; tc.op != nil {
						e.ok(err)
						if tc.before != nil {
							tc.before(e, id)
						}
						e.settle()
						e.cutAt("*", cut)
						err = tc.op(e, id)
						synctest.Wait()
					}
					passed = e.uncut()
					if passed {
						e.ok(err)
					}
					e.restart()
					e.settle()
					status := ""
					for _, c := range e.e.Containers() {
						status = c.State.Status
					}
					if !slices.Contains(tc.want, status) {
						e.t.Errorf("cut %d: container is %q, want one of %q", cut, status, tc.want)
					}
					if runs > 1 {
						e.t.Errorf("cut %d: its process was let go %d times", cut, runs)
					}
				})
				if passed || t.Failed() {
					return
				}
			}
			t.Fatal("the operation has no end")
		})
	}
}

func start(e *env, id string) { e.ok(e.e.StartContainer(bg, id)) }

// TestStoreRefuses: a full disk or a store that cannot be written is an error to
// the caller; nothing changes, and the daemon lives.
func TestStoreRefuses(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)))))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		c := must(e.create("c", []string{"run"}))(e)
		running := e.started("r", []string{"run"})
		e.settle()
		before := e.w.text()
		held := len(e.w.held)
		e.closeStores()
		web := `[` + mapping(`"Protocol":6,"InternalPort":81,"ExternalPort":8081`) + `]`
		for name, err := range map[string]error{
			"create network":   second(e.network(netDoc("b", "NAT", 8))),
			"create endpoint":  second(e.endpoint(epDoc(n.ID, publish(mapping(`"Protocol":6,"InternalPort":80`))))),
			"create namespace": second(e.namespace(`{` + v2 + `}`)),
			"modify":           e.policies(ep.ID, "Update", web),
			"detach":           e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(ep.ID)),
			"delete endpoint":  e.e.DeleteEndpoint(bg, ep.ID),
			"delete namespace": e.e.DeleteNamespace(bg, ns.ID),
			"delete network":   e.e.DeleteNetwork(bg, n.ID),
			"create container": second(e.create("d", nil)),
			"start":            e.e.StartContainer(bg, c.ID),
			"stop":             e.e.StopContainer(bg, running, api.StopRequest{}),
			"remove":           e.e.RemoveContainer(bg, running, true),
		} {
			if err == nil || !strings.Contains(err.Error(), "store the change") {
				e.t.Errorf("%s with a store that cannot be written: %v", name, err)
			}
		}
		e.settle()
		if d := cmp.Diff(before, e.w.text()); d != "" || len(e.w.held) != held {
			e.t.Errorf("kernel changed: %s; %d ports are held, before %d", d, len(e.w.held), held)
		}
		// One that ends now cannot be noted yet, but is when the disk is there again.
		e.endContainer(running, 4)
		e.settle()
		e.reopen()
		e.settle()
		e.wantStatus(running, api.StatusExited, 4)
		e.wantStatus(c.ID, api.StatusCreated, 0)
		must(e.network(netDoc("b", "NAT", 8)))(e)
	})
}

func second[T any](_ T, err error) error { return err }

// TestStopAnswersCallers: nobody waits for a daemon that goes.
func TestStopAnswersCallers(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"})
		created := must(e.create("d", []string{"run"}))(e)
		errs := make(chan error, 2)
		go func() { _, err := e.e.WaitContainer(bg, id, ""); errs <- err }()
		go func() { errs <- e.e.AttachContainer(bg, created.ID, api.Streams{}) }()
		synctest.Wait()
		e.stop()
		for range 2 {
			if err := <-errs; !errors.Is(err, hcn.ErrManagerStopped) {
				e.t.Errorf("got %v", err)
			}
		}
		_, err := e.e.CreateNamespace(context.Background(), "", hcn.HostComputeNamespace{SchemaVersion: hcn.V2()})
		if err == nil {
			e.t.Error("an operation after the end succeeded")
		}
		e.start()
		e.wantStatus(id, api.StatusRunning, 0)
	})
}

// TestDriftIsRepaired and told, by kind.
func TestDriftIsRepaired(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"Name":"web",`+publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)))))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.settle()
		want := e.w.text()
		for i := range 5 {
			events := e.watch()
			e.w.mu.Lock()
			delete(e.w.kernel[i], portObject(ep.ID))
			e.w.kernel[1][object{"network", "LEFTOVER"}] = "x"
			e.w.mu.Unlock()
			e.e.Wake("test")
			time.Sleep(time.Second) // as long as it may take
			synctest.Wait()
			if got := e.w.text(); got != want {
				e.t.Errorf("layer %d: %s", i, cmp.Diff(want, got))
			}
			if got := events(); !slices.Contains(got, "drift repair port "+string(ep.ID)+" missing") {
				e.t.Errorf("layer %d: events %v", i, got)
			}
		}
	})
}

// TestPortTakenAgainBeforeTheDiskRefuses: two changes of one endpoint that are on
// their way to the disk together, one giving a port up and one taking it again.
func TestPortTakenAgainBeforeTheDiskRefuses(t *testing.T) {
	for name, refuse := range map[string]bool{"and is stored": false, "and is refused": true} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				ep := must(e.endpoint(epDoc(n.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)))))(e)
				e.settle()
				e.e.mu.Lock()
				e.e.storing = true // by nobody yet
				e.e.mu.Unlock()
				if refuse {
					e.closeStores()
				}
				for _, port := range []string{"9090", "8080"} {
					go func() {
						err := e.policies(ep.ID, "Update", `[`+mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":`+port)+`]`)
						if (err != nil) != refuse {
							e.t.Errorf("to port %s: %v", port, err)
						}
					}()
					synctest.Wait()
				}
				e.e.storeAll()
				synctest.Wait()
				if refuse {
					e.reopen()
				}
				if p := e.e.Published(); len(p) != 2 || p[0].HostPort != 8080 || len(e.w.held) != 2 {
					e.t.Errorf("published: %s; held: %v", toJSON(p), e.w.held)
				}
			})
		})
	}
}

// TestComparedLater: a first comparison that does not come to its end has the API answer, and is made again before it is
// said that everything was compared.
func TestComparedLater(t *testing.T) {
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		e := &env{t: t, w: newWorld(), path: filepath.Join(dir, "state.db")}
		defer e.stop()
		tries := 0
		e.w.fail = func(applier int, k *object) error {
			if applier == 0 && k == nil {
				if tries++; tries <= 3 {
					return errors.New("the kernel takes too long")
				}
			}
			return nil
		}
		e.start() // waits until the API answers
		select {
		case <-e.e.Compared():
			t.Error("said to be compared after a comparison that failed as a whole")
		default:
		}
		time.Sleep(10 * time.Second)
		select {
		case <-e.e.Compared():
		default:
			t.Errorf("not compared after %d tries", tries)
		}
		e.check()
	})
}
