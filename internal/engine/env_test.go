package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// tester is what *testing.T and *rapid.T share.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Error(args ...any)
	Errorf(format string, args ...any)
}

// env is a daemon in a world. Time in it is fake (testing/synctest), so waiting
// costs nothing.
type env struct {
	t    tester
	w    *world
	path string
	e    *Engine
	db   *store.DB
	// passing is the store that a restart of the host empties.
	passing *store.DB
	sb      sandbox
	leases  *fakeLeases
	cancel  context.CancelFunc
	done    chan struct{}
	runErr  error
	// cut kills the daemon when the step of this name is passed for the n-th time.
	cut   string
	cutIn int
	// onStep is called once, by the loop, at the step of its name.
	onStep map[string]func()
	// reach is what the daemon asks from its start on.
	reach Reach
}

// run is a test with a daemon that is up, and with the invariants checked at its
// end.
func run(t *testing.T, fn func(e *env)) {
	t.Helper()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		e := &env{t: t, w: newWorld(), path: filepath.Join(dir, "state.db")}
		defer e.stop()
		e.start()
		fn(e)
		e.check()
	})
}

// memoryDir is a directory whose files are in memory, where there is one: these
// tests write some ten thousand transactions.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "bulkhead-test-") //nolint:usetesting // the disk would be what these tests wait for
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// cutAt arms the kill; "" disarms it.
func (e *env) cutAt(step string, n int) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.cut, e.cutIn = step, n
}

// uncut has it cut no more, and tells whether it was not: there were fewer steps.
func (e *env) uncut() bool {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.cut = ""
	return e.cutIn > 0
}

// reopen gives the daemon a store that works again.
func (e *env) reopen() {
	e.t.Helper()
	db, err := store.Open(e.path)
	e.ok(err)
	e.e.mu.Lock()
	defer e.e.mu.Unlock()
	passing, err := store.Open(e.path + ".run")
	e.ok(err)
	e.db, e.e.opt.DB, e.passing, e.e.opt.Passing = db, db, passing, passing
}

// stored waits until the disk has everything.
func (e *env) stored() {
	for {
		e.e.mu.RLock()
		busy := e.e.storing
		e.e.mu.RUnlock()
		if !busy {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (e *env) start() {
	e.t.Helper()
	e.prepare()
	e.launch()
	select {
	case <-e.e.Ready():
	case <-e.done:
		if e.runErr != nil {
			e.t.Fatalf("run: %v", e.runErr)
		}
	}
}

func (e *env) prepare() {
	e.t.Helper()
	e.w.mu.Lock()
	e.w.gen++
	gen := e.w.gen
	clear(e.w.held)
	e.w.mu.Unlock()
	db, err := store.Open(e.path)
	if err != nil {
		e.t.Fatal(err)
	}
	if e.passing, err = store.Open(e.path + ".run"); err != nil {
		e.t.Fatal(err)
	}
	e.db = db
	e.sb = sandbox{w: e.w, gen: gen, exits: new([]chan api.SandboxExit)}
	opt := Options{
		DB: db, Passing: e.passing, Ports: reserver{e.w, gen}, Sandbox: e.sb, Images: images{}, Kernels: kernels{e.w}, Step: e.step,
		Facts: func(context.Context) (plan.Facts, error) {
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			return e.w.facts, nil
		},
		Counters: func(*plan.Port) (api.NetworkStats, error) { return api.NetworkStats{BytesSent: 1}, nil },
	}
	opt.Reach = e.reach
	opt.Netns, opt.Moved = e.w.identify, e.w.moved
	e.leases = &fakeLeases{w: e.w, gen: gen, engine: func() *Engine { return e.e }}
	opt.Leases, opt.Probe = e.leases, DefaultProbe
	opt.Stages = []Stage{
		{applier{e.w, gen, 0}, cutter{applier{e.w, gen, 2}}}, {cutter{applier{e.w, gen, 1}}}, {applier{e.w, gen, 3}}, {applier{e.w, gen, 4}},
	}
	if e.e, err = New(opt); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) launch() {
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel, e.done = cancel, make(chan struct{})
	done, engine := e.done, e.e
	go func() {
		defer close(done)
		e.runErr = engine.Run(ctx)
	}()
}

// step kills the daemon where a test wants it: its store is shut and its fakes
// have no effect any more, as if it had been gone.
func (e *env) step(name string) {
	e.w.mu.Lock()
	hit, once := false, e.onStep[name]
	delete(e.onStep, name)
	if e.cut == name || e.cut == "*" {
		e.cutIn--
		hit = e.cutIn == 0
	}
	if hit {
		e.w.gen++
	}
	e.w.mu.Unlock()
	if hit {
		e.closeStores()
	}
	if once != nil {
		once()
	}
}

// stop ends the daemon as a signal does, or what is left of a killed one.
func (e *env) stop() {
	if e.cancel != nil {
		e.cancel()
		<-e.done
		e.closeStores()
		e.cancel = nil
	}
}

func (e *env) closeStores() { _ = errors.Join(e.db.Close(), e.passing.Close()) }

// reboot is a restart of the host.
func (e *env) reboot() {
	e.kill()
	e.w.reboot()
	_ = os.Remove(e.path + ".run")
	e.start()
}

// kill ends the daemon as SIGKILL does.
func (e *env) kill() {
	e.w.mu.Lock()
	e.w.gen++
	e.w.mu.Unlock()
	e.closeStores()
	e.stop()
}

func (e *env) restart() {
	e.t.Helper()
	e.stop()
	e.start()
}

// revision of the store.
func (e *env) revision() uint64 {
	e.e.mu.RLock()
	defer e.e.mu.RUnlock()
	return e.e.st.rev
}

// settle waits until the daemon has nothing to do. Restarts of containers and
// retries come within the time it gives.
func (e *env) settle() {
	synctest.Wait()
	time.Sleep(2 * time.Minute)
	synctest.Wait()
}

// check holds the invariants: the kernel is as the intent says, nothing is held
// by nobody, and a restart writes nothing.
func (e *env) check() {
	e.t.Helper()
	e.settle()
	e.checkKernel()
	e.checkOwners()
	e.w.mu.Lock()
	e.w.writes = nil
	e.w.mu.Unlock()
	e.restart()
	e.settle()
	e.w.mu.Lock()
	writes := e.w.writes
	e.w.mu.Unlock()
	if len(writes) > 0 {
		e.t.Errorf("a restart wrote:\n%s", strings.Join(writes, "\n"))
	}
	e.checkKernel()
	e.checkOwners()
}

func (e *env) checkKernel() {
	e.t.Helper()
	e.e.mu.RLock()
	want := plan.Compile(e.e.st.intent(), &e.e.facts)
	e.e.mu.RUnlock()
	if d := cmp.Diff(kernelText(wanted(want)), e.w.text()); d != "" {
		e.t.Errorf("kernel (-plan +kernel):\n%s", d)
	}
}

// checkOwners looks for what belongs to nobody.
func (e *env) checkOwners() {
	e.t.Helper()
	e.e.mu.RLock()
	defer e.e.mu.RUnlock()
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	st := e.e.st
	ports := map[hostPort]string{}
	for id, ep := range st.endpoints {
		if st.networks[ep.Doc.HostComputeNetwork] == nil {
			e.t.Errorf("endpoint %s has no network", id)
		}
		if ep.Attach != nil && st.namespaces[ep.Attach.Namespace] == nil {
			e.t.Errorf("endpoint %s is attached to nothing", id)
		}
		if (ep.Attach != nil) != (ep.Doc.HostComputeNamespace != "") {
			e.t.Errorf("endpoint %s: the document says namespace %q", id, ep.Doc.HostComputeNamespace)
		}
		for k := range hostPorts(ep) {
			ports[k] = ownerOf(ep)
		}
		if ep.Doc.Owner == "bulkhead" && !e.ownedByContainer(id) {
			e.t.Errorf("endpoint %s of no container", id)
		}
	}
	for _, b := range st.balancers {
		for _, f := range plan.BalancerForwards(b, st.networks[b.Network]) {
			if !isNoHosts(f) {
				ports[hostPortOf(f)] = balancerOwner(b)
			}
		}
	}
	if d := cmp.Diff(fmt.Sprint(ports), fmt.Sprint(e.w.held)); d != "" {
		e.t.Errorf("reservations (-endpoints +held):\n%s", d)
	}
	for id, ns := range st.namespaces {
		for _, c := range ns.Containers {
			if row := st.containers[c]; (ns.Doc.Owner == "bulkhead" || ns.Kept) && len(c) == containerIDLen && (row == nil || row.Doc.Namespace != id) {
				e.t.Errorf("namespace %s of container %.12s, which is not in it", id, c)
			}
		}
		if ns.Doc.Owner == "bulkhead" && len(ns.Containers) == 0 {
			e.t.Errorf("namespace %s of no container", id)
		}
	}
	for id, b := range st.balancers {
		for _, ep := range b.Doc.HostComputeEndpoints {
			if st.endpoints[ep] == nil {
				e.t.Errorf("load balancer %s has the back end %s, which is gone", id, ep)
			}
		}
	}
	for machine := range st.byMachine {
		if machine != "" && st.machines[machine] == "" {
			e.t.Errorf("ports of VM %s, which is gone", machine)
		}
	}
	for machine, g := range st.guestOf {
		if st.machines[machine] == "" {
			e.t.Errorf("guest network service %s of VM %s, which is gone", g, machine)
		}
	}
	for id := range e.w.disk {
		if st.containers[id] == nil {
			e.t.Errorf("storage of container %.12s, which is gone", id)
		}
	}
	for id, c := range e.w.ctrs {
		row := st.containers[id]
		if row == nil || row.Doc.State.Status != api.StatusRunning || c.status != api.StatusRunning {
			e.t.Errorf("sandbox of container %.12s is %s, its row %+v", id, c.status, row)
		}
	}
	for id, row := range st.containers {
		if (row.Doc.State.Status == api.StatusRunning) != (e.w.ctrs[id] != nil) {
			e.t.Errorf("container %.12s (%s) is %s, without a process", id, row.Doc.Name, row.Doc.State.Status)
		}
	}
	e.checkIndexes()
	if len(e.e.status.failing()) > 0 {
		e.t.Errorf("objects that fail: %v", e.e.status.failing())
	}
	if n := len(e.e.ctrs.waiting); n > 0 {
		e.t.Errorf("%d attachers wait for nothing", n)
	}
}

func (e *env) ownedByContainer(id hcn.GUID) bool {
	for _, c := range e.e.st.containers {
		if slices.Contains(c.Endpoints, id) {
			return true
		}
	}
	return false
}

// checkIndexes holds the indexes in memory against rows that are loaded anew.
func (e *env) checkIndexes() {
	e.t.Helper()
	fresh, err := load(e.db, e.passing)
	if err != nil {
		e.t.Fatal(err)
	}
	text := func(s *state) string {
		return fmt.Sprint(len(s.networks), len(s.endpoints), s.addrs, s.macs, s.netNames, s.ctrNames, s.ports, s.numbers, s.settings, len(s.balancers), len(s.byBackend), len(s.bySource), s.frontends, len(s.routes), len(s.routesOf), s.services, s.served, s.machines, s.guestOf, s.vmPorts, s.byMachine, s.inside, len(s.shared), len(s.sharedBy), len(s.sharedAt), s.sharedServices, s.sharedServed)
	}
	if d := cmp.Diff(text(fresh), text(e.e.st)); d != "" {
		e.t.Errorf("indexes (-store +memory):\n%s", d)
	}
}

// The documents of tests are JSON, as clients send them.

func decode[T any](e *env, doc string) T {
	e.t.Helper()
	v, err := hcn.Decode[T]([]byte(doc))
	if err != nil {
		e.t.Fatalf("%s: %v", doc, err)
	}
	return *v
}

func (e *env) network(doc string) (hcn.HostComputeNetwork, error) {
	return e.e.CreateNetwork(context.Background(), "", decode[hcn.HostComputeNetwork](e, doc))
}

func (e *env) endpoint(doc string) (hcn.HostComputeEndpoint, error) {
	return e.e.CreateEndpoint(context.Background(), "", "", decode[hcn.HostComputeEndpoint](e, doc))
}

func (e *env) namespace(doc string) (hcn.HostComputeNamespace, error) {
	return e.e.CreateNamespace(context.Background(), "", decode[hcn.HostComputeNamespace](e, doc))
}

func (e *env) balancer(doc string) (hcn.HostComputeLoadBalancer, error) {
	return e.e.CreateLoadBalancer(context.Background(), "", decode[hcn.HostComputeLoadBalancer](e, doc))
}

func (e *env) attach(ns, ep hcn.GUID) error {
	return e.modifyNamespace(ns, "Add", "Endpoint", string(ep))
}

func (e *env) modifyNamespace(ns hcn.GUID, request, kind, id string) error {
	doc := fmt.Sprintf(`{"ResourceType":%q,"RequestType":%q,"Settings":{"%sId":%q}}`, kind, request, kind, id)
	r := decode[hcn.ModifyNamespaceSettingRequest](e, doc)
	return e.e.ModifyNamespace(context.Background(), ns, &r)
}

func (e *env) policies(ep hcn.GUID, request, policies string) error {
	r := decode[hcn.ModifyEndpointSettingRequest](e, fmt.Sprintf(`{"ResourceType":"Policy","RequestType":%q,"Settings":{"Policies":%s}}`, request, policies))
	return e.e.ModifyEndpoint(context.Background(), ep, &r)
}

// must ends the test at an error.
func must[T any](v T, err error) func(e *env) T {
	return func(e *env) T {
		e.t.Helper()
		if err != nil {
			e.t.Fatal(err)
		}
		return v
	}
}

func (e *env) ok(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// wantCode ends the test unless err carries the HCN code, and words beside it.
func (e *env) wantCode(err error, code hcn.ErrorCode) {
	e.t.Helper()
	if !errors.Is(err, code) {
		e.t.Fatalf("got error %v, want %s", err, code.Name())
	}
	if hcn.AsError(err).Detail == "" {
		e.t.Fatalf("%v says nothing about the object", err)
	}
}

func (e *env) wantKind(err error, kind string) {
	e.t.Helper()
	if !api.IsKind(err, kind) {
		e.t.Fatalf("got error %v, want one of kind %s", err, kind)
	}
}

func toJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
