package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func asVM(s *api.ContainerSpec) { s.Isolation = isolationVM }

func inNamespace(id hcn.GUID) func(*api.ContainerSpec) {
	return func(s *api.ContainerSpec) { s.NetworkMode = "namespace:" + string(id) }
}

func (e *env) port(ep hcn.GUID, request, settings string) error {
	r := decode[hcn.ModifyEndpointSettingRequest](e, fmt.Sprintf(`{"ResourceType":"Port","RequestType":%q,"Settings":%s}`, request, settings))
	return e.e.ModifyEndpoint(bg, ep, &r)
}

func (e *env) guestService(machine hcn.GUID) (hcn.GuestNetworkService, error) {
	return e.e.CreateGuestNetworkService(bg, "", hcn.GuestNetworkService{VirtualMachineId: machine})
}

func (e *env) syncNamespace(id hcn.GUID) error {
	r := decode[hcn.ModifyNamespaceSettingRequest](e, `{"ResourceType":"Endpoint","RequestType":"Refresh"}`)
	return e.e.ModifyNamespace(bg, id, &r)
}

// nicsOf are the MACs that a container's VM has.
func (e *env) nicsOf(id string) (macs []string) {
	got := must(e.sb.GuestNICs(bg, id, api.GuestNICsRequest{}))(e)
	for _, n := range got.NICs {
		macs = append(macs, n.MAC)
	}
	return macs
}

func (e *env) faulty(f guestFault) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.guest = f
}

func macText(m hcn.MAC) string { return strings.ToLower(strings.ReplaceAll(string(m), "-", ":")) }

// TestGuestNamespace: a namespace of type Guest or GuestDefault is the compartment of a VM that is run in it, and of no other.
func TestGuestNamespace(t *testing.T) {
	for _, kind := range []hcn.NamespaceType{hcn.NamespaceTypeGuest, hcn.NamespaceTypeGuestDefault} {
		t.Run(kind.String(), func(t *testing.T) { testGuestNamespace(t, kind.String()) })
	}
}

func testGuestNamespace(t *testing.T, kind string) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		ns := must(e.namespace(`{"Name":"pod","Type":"` + kind + `",` + v2 + `}`))(e)
		first, second := must(e.endpoint(epDoc(n.ID, `"Name":"first"`)))(e), must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, first.ID))
		e.ok(e.syncNamespace(ns.ID)) // no VM is known
		e.ok(e.port(first.ID, "Add", `{}`))
		e.ok(e.port(first.ID, "Remove", `{}`))
		e.ok(e.attach(ns.ID, first.ID))
		id := e.started("own", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "namespace:pod" })
		doc := must(e.e.Container(id))(e)
		if ns.Type.String() != kind || doc.Namespace != ns.ID || doc.Spec.Isolation != "vm" || doc.VirtualMachineID != api.VirtualMachineID(id) || len(doc.Endpoints) != 1 || doc.Endpoints[0].ID != first.ID {
			e.t.Errorf("%+v", doc)
		}
		if hosts := e.w.ctrs[id].cfg.Hosts; !strings.Contains(hosts, first.IpConfigurations[0].IpAddress) {
			e.t.Errorf("its own name is not known: %s", hosts)
		}
		if got := must(e.e.Namespace(ns.ID))(e); !slices.Equal(got.Containers(), []string{id}) {
			e.t.Errorf("%+v", got.Resources)
		}
		e.ok(e.attach(ns.ID, second.ID))
		for range 2 {
			e.ok(e.syncNamespace(ns.ID))
			if got := e.nicsOf(id); len(got) != 2 {
				e.t.Errorf("it has %v", got)
			}
		}
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(first.ID)))
		e.ok(e.syncNamespace(ns.ID))
		if d := cmp.Diff([]string{macText(second.MacAddress)}, e.nicsOf(id)); d != "" {
			e.t.Error(d)
		}
		e.wantCode(e.e.DeleteNamespace(bg, ns.ID), hcn.ErrRequestUnsupported)

		// Who shares its compartment is in its VM; the namespace stays when all have gone.
		side := e.started("side", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "container:own" })
		e.ok(e.e.RemoveContainer(bg, "own", true))
		e.ok(e.e.RemoveContainer(bg, side, true))
		if got := must(e.e.Namespace(ns.ID))(e); len(got.Containers()) != 0 || len(got.Endpoints()) != 1 {
			e.t.Errorf("%+v", got.Resources)
		}
		e.ok(e.e.DeleteNamespace(bg, ns.ID))
	})
}

// TestGuestNamespaceRefused: nothing is made of what cannot be.
func TestGuestNamespaceRefused(t *testing.T) {
	run(t, func(e *env) {
		host, guest := must(e.namespace(`{"Name":"twice",`+v2+`}`))(e), must(e.namespace(`{"Name":"twice","Type":"Guest",`+v2+`}`))(e)
		own := e.started("own", []string{"run"}, asVM)
		mine := must(e.e.Container(own))(e).Namespace
		if got := must(e.e.Namespace(mine))(e); got.Type != hcn.NamespaceTypeGuest {
			e.t.Errorf("the compartment of a VM is one of type %s", got.Type)
		}
		for want, change := range map[string]func(*api.ContainerSpec){
			"does not exist":            inNamespace("none-such"),
			"several namespaces":        inNamespace("twice"),
			"is of type Host":           inNamespace(host.ID),
			"comes and goes with":       inNamespace(mine),
			"compartment of a VM":       func(s *api.ContainerSpec) { inNamespace(guest.ID)(s); s.Isolation = "process" },
			"publishes no ports of its": func(s *api.ContainerSpec) { inNamespace(guest.ID)(s); published(s) },
		} {
			if _, err := e.create("x", nil, change); err == nil || !strings.Contains(err.Error(), want) {
				e.t.Errorf("%s: %v", want, err)
			}
		}
		must(e.create("first", []string{"run"}, inNamespace(guest.ID)))(e)
		if _, err := e.create("x", nil, inNamespace(guest.ID)); err == nil || !strings.Contains(err.Error(), "container first") {
			e.t.Errorf("a second VM in it: %v", err)
		}
		if _, err := e.isolate("first", "process"); err == nil || !strings.Contains(err.Error(), "compartment of a VM") {
			e.t.Errorf("%v", err)
		}
		e.ok(e.e.DeleteNamespace(bg, guest.ID))
		if err := e.e.StartContainer(bg, "first"); err == nil || !strings.Contains(err.Error(), "is gone") {
			e.t.Errorf("its namespace is deleted: %v", err)
		}
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"Policies":[{"Type":"L4WFPPROXY","Settings":{"OutboundProxyPort":"15001","FilterTuple":{"Protocols":"6"}}}]`)))(e)
		other := must(e.namespace(`{"Type":"Guest",` + v2 + `}`))(e)
		e.wantCode(e.attach(other.ID, ep.ID), hcn.ErrRequestUnsupported)
		e.wantCode(e.port(ep.ID, "Add", fmt.Sprintf(`{"VirtualMachineId":%q}`, api.VirtualMachineID(own))), hcn.ErrRequestUnsupported)
	})
}

// TestVMPort: an endpoint with a port of a VM is in that whenever it runs, and its port goes with the VM.
func TestVMPort(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		id := must(e.create("own", []string{"run"}, asVM))(e).ID
		vm := api.VirtualMachineID(id)
		ep, other := must(e.endpoint(epDoc(n.ID, `"AdditionalParams":{"mine":1}`)))(e), must(e.endpoint(epDoc(n.ID, "")))(e)
		const port = "C0FFEE00-0000-4000-8000-000000000001"
		add := fmt.Sprintf(`{"PortId":%q,"VirtualMachineId":%q,"VirtualNicName":"n"}`, port, vm)
		e.wantCode(e.port(ep.ID, "Remove", `{}`), hcn.ErrPortNotFound)
		e.wantCode(e.port(ep.ID, "Refresh", `{}`), hcn.ErrPortNotFound)
		e.wantCode(e.port(hcn.NewGUID(), "Add", add), hcn.ErrEndpointNotFound)
		e.wantCode(e.port(ep.ID, "Add", `{}`), hcn.ErrInvalidParameter)
		e.wantCode(e.port(ep.ID, "Add", fmt.Sprintf(`{"VirtualMachineId":%q}`, hcn.NewGUID())), hcn.ErrSystemNotFound)
		e.ok(e.port(ep.ID, "Add", add)) // of a VM that does not run
		e.ok(e.port(ep.ID, "Update", add))
		e.wantCode(e.port(other.ID, "Add", add), hcn.ErrPortAlreadyExists)
		e.wantCode(e.port(ep.ID, "Add", fmt.Sprintf(`{"PortId":%q,"VirtualMachineId":%q}`, hcn.NewGUID(), vm)), hcn.ErrPortAlreadyExists)
		got := must(e.e.Endpoint(ep.ID))(e)
		want := fmt.Sprintf(`{"SwitchId":%q,"SwitchPortId":%q,"VirtualMachineId":%q,"VirtualNicName":"n","mine":1}`, n.SwitchGUID(), port, vm)
		if string(got.AdditionalParams) != want || got.State != hcn.EndpointCreated {
			e.t.Errorf("%s, %s: want %s", got.State, got.AdditionalParams, want)
		}

		has := func(attached bool) {
			e.t.Helper()
			doc := must(e.e.Endpoint(ep.ID))(e)
			c := must(e.e.Container(id))(e)
			if (doc.HostComputeNamespace == c.Namespace && c.Namespace != "") != attached {
				e.t.Fatalf("in namespace %q, the VM in %q: want it there: %t", doc.HostComputeNamespace, c.Namespace, attached)
			}
			if attached && !slices.Contains(e.nicsOf(id), macText(ep.MacAddress)) {
				e.t.Errorf("the VM has %v", e.nicsOf(id))
			}
		}
		e.ok(e.e.StartContainer(bg, id))
		has(true)
		e.restart()
		has(true)
		e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
		has(false)
		e.reboot()
		e.ok(e.e.StartContainer(bg, id))
		has(true)
		e.ok(e.port(ep.ID, "Refresh", `{}`))
		e.wantCode(e.port(ep.ID, "Remove", fmt.Sprintf(`{"PortId":%q}`, hcn.NewGUID())), hcn.ErrPortNotFound)
		e.wantCode(e.port(ep.ID, "Remove", fmt.Sprintf(`{"VirtualMachineId":%q}`, hcn.NewGUID())), hcn.ErrPortNotFound)
		e.ok(e.port(ep.ID, "Remove", add))
		has(false)
		if slices.Contains(e.nicsOf(id), macText(ep.MacAddress)) {
			e.t.Error("the VM has it still")
		}
		if got := must(e.e.Endpoint(ep.ID))(e); string(got.AdditionalParams) != `{"mine":1}` {
			e.t.Errorf("%s", got.AdditionalParams)
		}

		// While it runs; a VM is not named where the endpoint is in its namespace.
		e.ok(e.port(ep.ID, "Add", add))
		has(true)
		e.ok(e.attach(must(e.e.Container(id))(e).Namespace, other.ID))
		e.ok(e.port(other.ID, "Add", `{"VirtualNicName":"o"}`))
		e.wantCode(e.port(other.ID, "Add", fmt.Sprintf(`{"PortId":%q}`, port)), hcn.ErrPortAlreadyExists)
		side := must(e.namespace(`{` + v2 + `}`))(e)
		third := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(side.ID, third.ID))
		e.wantCode(e.port(third.ID, "Add", fmt.Sprintf(`{"VirtualMachineId":%q}`, vm)), hcn.ErrEndpointNamespaceAlreadyExists)
		e.wantCode(e.port(third.ID, "Add", `{}`), hcn.ErrInvalidParameter)

		e.ok(e.e.RemoveContainer(bg, id, true))
		for _, ep := range []hcn.GUID{ep.ID, other.ID} {
			if got := e.e.st.endpoints[ep]; got.Port != nil || got.Attach != nil {
				e.t.Errorf("the VM is gone, and its port is there: %+v", got)
			}
		}
	})
}

// TestVMPortRefusedByGuest: what the guest does not take over is taken back, with the reason.
func TestVMPortRefusedByGuest(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		id := e.started("own", []string{"run"}, asVM)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		add := fmt.Sprintf(`{"VirtualMachineId":%q}`, api.VirtualMachineID(id))
		for want, f := range map[string]guestFault{
			"it has no NIC for endpoint": {lacks: map[string]bool{macText(ep.MacAddress): true}},
			"at most 8 NICs":             {says: "a VM has at most 8 NICs"},
			"nobody is there":            {silent: errors.New("nobody is there")},
		} {
			e.faulty(f)
			began := time.Now()
			err := e.port(ep.ID, "Add", add)
			e.wantCode(err, hcn.ErrNetAdapterTimeout)
			if !strings.Contains(err.Error(), want) || time.Since(began) > syncWait+time.Minute {
				e.t.Errorf("%s: after %v: %v", want, time.Since(began), err)
			}
			if got := must(e.e.Endpoint(ep.ID))(e); got.HostComputeNamespace != "" || got.State != hcn.EndpointCreated || got.AdditionalParams != nil {
				e.t.Errorf("%s: it is left as %+v", want, got)
			}
		}
		e.faulty(guestFault{keeps: []api.GuestNIC{{Name: "eth9", MAC: "02:00:00:00:00:99"}}})
		if err := e.syncNamespace(must(e.e.Container(id))(e).Namespace); err == nil || !strings.Contains(err.Error(), "still has the NIC eth9") {
			e.t.Errorf("%v", err)
		}
		e.faulty(guestFault{})
		e.ok(e.e.PauseContainer(bg, id))
		e.wantCode(e.syncNamespace(must(e.e.Container(id))(e).Namespace), hcn.ErrDegradedOperation)
		e.ok(e.e.UnpauseContainer(bg, id))
		e.ok(e.port(ep.ID, "Add", add))
	})
}

// TestSlots: what a VM has no slot for is refused at once, whichever way it comes.
func TestSlots(t *testing.T) {
	run(t, func(e *env) {
		var nets []api.NetworkAttachment
		for i := range api.MostGuestNICs + 1 {
			must(e.network(netDoc(fmt.Sprint("net", i), "NAT", 20+i)))(e)
			nets = append(nets, api.NetworkAttachment{Network: fmt.Sprint("net", i)})
		}
		last := nets[api.MostGuestNICs]
		on := func(n int) func(*api.ContainerSpec) {
			return func(s *api.ContainerSpec) { s.Networks = slices.Clone(nets[:n]) }
		}
		e.wantKind(second(e.create("over", []string{"run"}, asVM, on(api.MostGuestNICs+1))), api.KindConflict)
		must(e.create("many", []string{"run"}, on(api.MostGuestNICs+1)))(e)
		e.wantKind(second(e.isolate("many", "vm")), api.KindConflict)

		id := must(e.create("full", []string{"run"}, asVM, on(api.MostGuestNICs)))(e).ID
		spare := must(e.endpoint(epDoc(must(e.network(netDoc("spare", "NAT", 7)))(e).ID, "")))(e)
		add := fmt.Sprintf(`{"VirtualMachineId":%q}`, api.VirtualMachineID(id))
		for range 2 {
			e.wantKind(e.e.ConnectContainer(bg, "full", last), api.KindConflict)
			e.wantCode(e.port(spare.ID, "Add", add), hcn.ErrRequestUnsupported)
			e.ok(e.e.StartContainer(bg, "full"))
		}
		e.wantCode(e.attach(must(e.e.Container(id))(e).Namespace, spare.ID), hcn.ErrRequestUnsupported)
		if got := must(e.e.Endpoint(spare.ID))(e); got.HostComputeNamespace != "" || got.AdditionalParams != nil {
			e.t.Errorf("it is left as %+v", got)
		}
		e.ok(e.e.DisconnectContainer(bg, "full", "net0"))
		e.ok(e.e.ConnectContainer(bg, "full", last))
	})
}

// TestCutPlugIn kills the daemon at every step: the endpoint has the port and is in the VM, or neither.
func TestCutPlugIn(t *testing.T) {
	for cut := 1; cut < 100; cut++ {
		passed := false
		run(t, func(e *env) {
			n := must(e.network(netDoc("net", "NAT", 7)))(e)
			id := e.started("own", []string{"run"}, asVM)
			ep := must(e.endpoint(epDoc(n.ID, "")))(e)
			must(e.guestService(api.VirtualMachineID(id)))(e)
			e.settle()
			e.cutAt("*", cut)
			err := e.port(ep.ID, "Add", fmt.Sprintf(`{"VirtualMachineId":%q}`, api.VirtualMachineID(id)))
			if err == nil {
				err = e.e.RemoveContainer(bg, id, true)
			}
			if passed = e.uncut(); passed {
				e.ok(err)
			}
			e.restart()
			e.settle()
			row := e.e.st.endpoints[ep.ID]
			if (row.Port != nil) != (row.Attach != nil) {
				e.t.Errorf("cut %d: port %+v, attachment %+v", cut, row.Port, row.Attach)
			}
			e.check()
		})
		if passed || t.Failed() {
			return
		}
	}
	t.Fatal("the operation has no end")
}

// TestGuestServices: the document of a VM's service tells how that is, and what changes.
func TestGuestServices(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		id := must(e.create("own", []string{"run"}, asVM))(e).ID
		vm := api.VirtualMachineID(id)
		_, err := e.guestService(hcn.NewGUID())
		e.wantCode(err, hcn.ErrSystemNotFound)
		_, err = e.guestService("")
		e.wantCode(err, hcn.ErrInvalidParameter)
		g := must(e.guestService(vm))(e)
		_, err = e.guestService(vm)
		e.wantCode(err, hcn.ErrObjectAlreadyExists)
		_, err = e.e.CreateGuestNetworkService(bg, g.ID, hcn.GuestNetworkService{VirtualMachineId: vm})
		e.wantCode(err, hcn.ErrObjectAlreadyExists)
		f, err := hcn.ParseFilter(fmt.Sprintf(`{"VirtualMachineId":%q}`, vm))
		e.ok(err)
		if got := e.e.GuestNetworkServices(f); !slices.Equal(got, []hcn.GUID{g.ID}) {
			e.t.Errorf("listed: %v", got)
		}
		state := func(want hcn.GuestNetworkServiceState, words string) {
			e.t.Helper()
			time.Sleep(5 * time.Second)
			got := must(e.e.GuestNetworkService(bg, g.ID))(e)
			if got.State != want || !strings.Contains(string(got.Health.Data), words) {
				e.t.Errorf("%s, %s: want %s with %q", got.State, got.Health.Data, want, words)
			}
		}
		modify := func(doc string) error {
			r := decode[hcn.ModifyGuestServiceSettingRequest](e, doc)
			return e.e.ModifyGuestNetworkService(bg, g.ID, &r)
		}
		const synchronized = `{"ResourceType":"State","RequestType":"Update","Settings":{"State":"Synchronized"}}`
		state(hcn.GuestServiceCreated, "")
		e.wantCode(modify(synchronized), hcn.ErrDegradedOperation)
		e.ok(e.e.StartContainer(bg, id))
		state(hcn.GuestServiceSynchronized, "MAC")
		e.ok(modify(synchronized))
		e.wantCode(modify(`{"ResourceType":"State","RequestType":"Update","Settings":{"State":"Paused"}}`), hcn.ErrRequestUnsupported)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.faulty(guestFault{lacks: map[string]bool{macText(ep.MacAddress): true}, says: "no slot is free"})
		e.ok(e.attach(must(e.e.Container(id))(e).Namespace, ep.ID))
		state(hcn.GuestServiceDesynchronized, "no slot is free")
		e.wantCode(modify(`{"ResourceType":"State","RequestType":"Refresh"}`), hcn.ErrNetAdapterTimeout)
		e.faulty(guestFault{})
		state(hcn.GuestServiceSynchronized, macText(ep.MacAddress))
		e.faulty(guestFault{silent: errors.New("it sulks")})
		state(hcn.GuestServiceDegraded, "it sulks")
		e.faulty(guestFault{})
		e.ok(e.e.PauseContainer(bg, id))
		state(hcn.GuestServicePaused, "")
		e.ok(e.e.UnpauseContainer(bg, id))
		e.restart()
		state(hcn.GuestServiceSynchronized, "")
		e.endContainer(id, 1)
		state(hcn.GuestServiceCreated, "")
		e.ok(e.e.RemoveContainer(bg, id, true))
		_, err = e.e.GuestNetworkService(bg, g.ID)
		e.wantCode(err, hcn.ErrElementNotFound)
		e.wantCode(e.e.DeleteGuestNetworkService(bg, g.ID), hcn.ErrElementNotFound)
		e.wantCode(modify(synchronized), hcn.ErrElementNotFound)
	})
}

// TestGuestServiceEvents: who watches is told of each state and of what NICs there are, by the numbers of HCN.
func TestGuestServiceEvents(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		id := must(e.create("own", []string{"run"}, func(s *api.ContainerSpec) { s.Isolation, s.NetworkMode = "vm", "none" }))(e).ID
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		events := must(e.e.Subscribe(ctx, e.e.LastEvent()))(e)
		g := must(e.guestService(api.VirtualMachineID(id)))(e)
		step := func(do func() error) {
			e.ok(do())
			time.Sleep(5 * time.Second)
		}
		time.Sleep(time.Second)
		step(func() error { return e.e.StartContainer(bg, id) })
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		step(func() error { return e.port(ep.ID, "Add", fmt.Sprintf(`{"VirtualMachineId":%q}`, g.VirtualMachineId)) })
		step(func() error { return e.port(ep.ID, "Remove", `{}`) })
		step(func() error { return e.e.PauseContainer(bg, id) })
		step(func() error { return e.e.UnpauseContainer(bg, id) })
		step(func() error { return e.e.DeleteGuestNetworkService(bg, g.ID) })
		step(func() error { return e.e.RemoveContainer(bg, id, true) })
		cancel()
		var got []string
		for ev := range events {
			if ev.Kind != "guestnetworkservice" {
				continue
			}
			var data struct {
				State      string
				Interfaces []api.GuestNIC
			}
			_ = json.Unmarshal(ev.HCN.Data, &data)
			text := fmt.Sprintf("%#x %s %d", uint32(ev.HCN.Type), data.State, len(data.Interfaces))
			if ev.HCN.ID != g.ID {
				text = "of another: " + text
			}
			if n := len(got); n == 0 || got[n-1] != text {
				got = append(got, text)
			}
		}
		got = slices.DeleteFunc(got, func(s string) bool {
			return strings.Contains(s, "Bootstrapping") || strings.Contains(s, "Desynchronized")
		})
		want := []string{
			"0x7  0", "0x11 Created 0", "0x11 Synchronized 0", "0x12  1", "0x12  0", "0x11 Paused 0", "0x11 Synchronized 0", "0x8  0",
		}
		if d := cmp.Diff(want, slices.Compact(got)); d != "" {
			e.t.Errorf("events (-want +got):\n%s", d)
		}
	})
}
