package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestAnySequence is what the engine promises: after any operations, failures of
// the kernel, kills of the daemon at any step, restarts of daemon and host, and
// other people's meddling, kernel and plan are the same, nothing is left that
// nobody owns, and one more restart writes nothing.
func TestAnySequence(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		acts := rapid.SliceOfN(rapid.Custom(drawAct), 1, 25).Draw(rt, "acts")
		// rapid ends a test by a panic, which must not end the bubble.
		var failure any
		synctest.Test(t, func(*testing.T) {
			defer func() { failure = recover() }()
			e := &env{t: rt, w: newWorld(), path: path}
			defer e.stop()
			e.w.facts.NICs = []plan.NIC{{Name: "nic1", Index: 7, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0, 7}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}}
			e.start()
			for _, a := range acts {
				e.act(a)
			}
			e.heal()
			e.check()
		})
		if failure != nil {
			panic(failure)
		}
	})
}

// act is one step: operations at the same time, and what befalls them.
type act struct {
	Befalls string // "", "kill", "cut", "restart", "reboot", "fail", "heal", "meddle", "exit", "disk"
	At      int
	Ops     []op
}

type op struct {
	Name    string
	A, B, C int
}

func (a act) String() string { return fmt.Sprintf("%s %d %v", a.Befalls, a.At, a.Ops) }

var opNames = []string{
	"network", "network", "delete network", "endpoint", "endpoint", "delete endpoint", "publish", "unpublish", "namespace", "delete namespace",
	"attach", "attach", "attach", "detach", "list container", "container", "container", "start", "start", "start", "stop", "kill", "remove",
	"connect", "disconnect", "publish container", "compartment", "compartment", "delete compartment",
	"balancer", "balancer", "modify balancer", "delete balancer",
	"guest namespace", "machine", "plug in", "unplug", "guest service", "isolate",
}

func drawAct(t *rapid.T) act {
	befalls := []string{"", "", "", "", "", "", "kill", "cut", "cut", "cut", "restart", "reboot", "fail", "fail", "heal", "meddle", "exit", "exit", "disk"}
	a := act{Befalls: rapid.SampledFrom(befalls).Draw(t, "befalls"), At: rapid.IntRange(1, 12).Draw(t, "at")}
	for range rapid.IntRange(1, 3).Draw(t, "at once") {
		small := rapid.IntRange(0, 4)
		a.Ops = append(a.Ops, op{rapid.SampledFrom(opNames).Draw(t, "op"), small.Draw(t, "a"), small.Draw(t, "b"), small.Draw(t, "c")})
	}
	return a
}

func (e *env) act(a act) {
	switch a.Befalls {
	case "cut":
		e.cutAt("*", a.At)
	case "fail":
		e.failEvery(a.At)
	case "heal":
		e.heal()
	case "meddle":
		e.meddle(a.At)
	case "disk":
		// The loop is to have done its work: what it has learnt goes with it.
		e.heal()
		e.settle()
		e.closeStores()
		before := e.rows()
		defer func() {
			e.settle()
			if d := cmp.Diff(before, e.rows()); d != "" {
				e.t.Errorf("a store that refuses, and rows changed: %s", d)
			}
			e.checkKernel()
			e.restart()
		}()
	case "exit":
		for i, c := range e.e.Containers() {
			if i == a.At%4 {
				e.endContainer(c.ID, a.At%2)
			}
		}
	}
	var wg sync.WaitGroup
	for _, o := range a.Ops {
		wg.Go(func() {
			if err := e.do(o); err != nil && hcn.AsError(err).Detail == "" {
				e.t.Errorf("%v: error without words: %v", o, err)
			}
		})
	}
	wg.Wait()
	switch a.Befalls {
	case "kill":
		e.kill()
		e.start()
	case "restart":
		e.restart()
	case "reboot":
		e.reboot()
	}
	e.revive()
}

// rows prints the state in memory.
func (e *env) rows() string {
	e.e.mu.RLock()
	defer e.e.mu.RUnlock()
	st := e.e.st
	return toJSON([]any{st.networks, st.endpoints, st.namespaces, st.containers, st.settings, st.balancers, st.guests}) +
		fmt.Sprint(st.addrs, st.macs, st.netNames, st.ctrNames, st.ports)
}

// revive starts the daemon again if the cut has hit it.
func (e *env) revive() {
	e.w.mu.Lock()
	dead := e.w.gen != e.sb.gen
	if dead {
		e.cut = ""
	}
	e.w.mu.Unlock()
	if dead {
		e.restart()
	}
}

// failEvery makes one write in n fail, by turns alone and with its whole call.
func (e *env) failEvery(n int) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	count := 0
	e.w.fail = func(_ int, k *object) error {
		count++
		if count%(n+1) == 0 && (k == nil) == (count%2 == 0) {
			return errors.New("no buffer space available")
		}
		return nil
	}
}

func (e *env) heal() {
	e.w.mu.Lock()
	e.w.fail, e.cut = nil, ""
	e.w.mu.Unlock()
	e.revive()
}

// meddle takes something out of the kernel that is ours.
func (e *env) meddle(n int) {
	e.w.mu.Lock()
	var keys []string
	layer := e.w.kernel[n%5]
	byText := map[string]object{}
	for k := range layer {
		s := k.kind + k.id
		keys, byText[s] = append(keys, s), k
	}
	if slices.Sort(keys); len(keys) > 0 {
		delete(layer, byText[keys[n%len(keys)]])
	}
	e.w.mu.Unlock()
	e.e.Wake("meddle")
}

func pick[T any](list []T, n int) (v T, ok bool) {
	if len(list) == 0 {
		return v, false
	}
	return list[n%len(list)], true
}

// do carries out an operation on what there is.
func (e *env) do(o op) error {
	net, hasNet := pick(e.e.Networks(hcn.Filter{}), o.A)
	ep, hasEp := pick(e.e.Endpoints(hcn.Filter{}), o.B)
	ns, hasNs := pick(e.e.Namespaces(hcn.Filter{}), o.C)
	ctr, hasCtr := pick(e.e.Containers(), o.A)
	port := fmt.Sprintf(`"Protocol":6,"InternalPort":80,"ExternalPort":%d`, 8000+o.C)
	switch o.Name {
	case "network":
		kind := []string{"NAT", "Internal", "Private", "Transparent", "L2Bridge"}[o.A]
		doc := netDoc(fmt.Sprint("n", o.B), kind, 20+o.B)
		if kind == "Transparent" && o.C%2 == 0 {
			doc = strings.Replace(doc, `"Ipams"`, `"Policies":[{"Type":"Bulkhead.Macvlan","Settings":{}}],"Ipams"`, 1)
		}
		return second(e.network(doc))
	case "namespace":
		return second(e.namespace(`{` + v2 + `}`))
	case "guest namespace":
		return second(e.namespace(`{"Type":"Guest",` + v2 + `}`))
	case "machine":
		return second(e.create(fmt.Sprint("c", o.A), [][]string{{"run"}, {"exit", "0"}, {"run"}, {"run"}, {"stubborn"}}[o.B], func(s *api.ContainerSpec) {
			if s.Isolation = "vm"; hasNs && o.C%2 == 0 {
				s.Isolation, s.NetworkMode = "", "namespace:"+string(ns)
			}
		}))
	case "container":
		return second(e.create(fmt.Sprint("c", o.A), [][]string{{"run"}, {"exit", "0"}, {"exit", "1"}, {"run"}, {"stubborn"}}[o.B], e.randomSpec(o)))
	}
	if hasNet {
		switch o.Name {
		case "delete network":
			return e.e.DeleteNetwork(bg, net)
		case "compartment":
			return second(e.makeCompartment(epDoc(net, publish(mapping(port)))))
		case "endpoint":
			more := ""
			if o.B%2 == 0 {
				more = publish(mapping(port))
			}
			return second(e.endpoint(epDoc(net, more)))
		}
	}
	if lb, ok := pick(e.e.LoadBalancers(hcn.Filter{}), o.A); ok {
		switch o.Name {
		case "delete balancer":
			return e.e.DeleteLoadBalancer(bg, lb)
		case "modify balancer":
			doc, err := e.e.LoadBalancer(lb)
			if err != nil {
				return err
			}
			if doc.HostComputeEndpoints = nil; hasEp && o.C%2 == 0 {
				doc.HostComputeEndpoints = []hcn.GUID{ep}
			}
			return e.e.ModifyLoadBalancer(bg, lb, doc)
		}
	}
	if hasEp {
		switch o.Name {
		case "balancer":
			return second(e.balancer(lbDoc(o.C, ep)))
		case "delete endpoint":
			return e.e.DeleteEndpoint(bg, ep)
		case "publish":
			return e.policies(ep, "Update", `[`+mapping(port)+`]`)
		case "plug in":
			return e.port(ep, "Add", fmt.Sprintf(`{"VirtualMachineId":%q}`, ctr.VirtualMachineID))
		case "unplug":
			return e.port(ep, "Remove", `{}`)
		case "unpublish":
			return e.policies(ep, "Remove", `[`+mapping(port)+`]`)
		}
	}
	if hasNs {
		switch {
		case o.Name == "delete compartment":
			return e.e.DeleteCompartment(bg, ns)
		case o.Name == "delete namespace":
			return e.e.DeleteNamespace(bg, ns)
		case o.Name == "attach" && hasEp:
			return e.attach(ns, ep)
		case o.Name == "detach" && hasEp:
			return e.modifyNamespace(ns, "Remove", "Endpoint", string(ep))
		case o.Name == "list container":
			return e.modifyNamespace(ns, []string{"Add", "Remove"}[o.B%2], "Container", "foreign")
		}
	}
	if hasCtr {
		return e.doContainer(o, ctr)
	}
	return nil
}

func (e *env) randomSpec(o op) func(*api.ContainerSpec) {
	return func(s *api.ContainerSpec) {
		switch o.C {
		case 0:
			s.AutoRemove = true
		case 1:
			s.Restart = api.RestartPolicy{Name: "on-failure", MaxRetries: 2}
		case 2:
			s.Publish = []api.PublishedPort{{ContainerPort: 80}, {ContainerPort: 81, HostPort: 8001, Expose: "all"}}
		case 3:
			s.NetworkMode = fmt.Sprint("container:c", o.B)
		}
	}
}

func (e *env) doContainer(o op, c api.Container) error {
	switch o.Name {
	case "guest service":
		return second(e.guestService(c.VirtualMachineID))
	case "isolate":
		soon := o.B
		return second(e.e.IsolateContainer(bg, c.ID, api.IsolationRequest{Isolation: []string{"vm", "process"}[o.C%2], Timeout: &soon}))
	case "start":
		return e.e.StartContainer(bg, c.ID)
	case "stop":
		return e.e.StopContainer(bg, c.ID, api.StopRequest{Timeout: &o.B})
	case "kill":
		return e.e.KillContainer(bg, c.ID, "")
	case "remove":
		return e.e.RemoveContainer(bg, c.ID, true)
	case "connect":
		return e.e.ConnectContainer(bg, c.ID, api.NetworkAttachment{Network: fmt.Sprint("n", o.B)})
	case "disconnect":
		return e.e.DisconnectContainer(bg, c.ID, []string{"nat", "n0", "n1", "n2", "n3"}[o.B])
	case "publish container":
		ports := []api.PublishedPort{{ContainerPort: 82, HostPort: uint16(8000 + o.C)}}
		if o.B%2 == 0 {
			return e.e.UnpublishPorts(bg, c.ID, ports)
		}
		return second(e.e.PublishPorts(bg, c.ID, ports))
	}
	return nil
}
