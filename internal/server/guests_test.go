package server

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestGuests is the way of a VM's port and service from the client to the engine and back.
func TestGuests(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	const vm = hcn.GUID("11111111-2222-8333-8444-DDDDDDDDDDDD")
	g, err := r.CreateGuestNetworkService(ctx, &hcn.GuestNetworkService{VirtualMachineId: vm})
	if err != nil || g.VirtualMachineId != vm || g.State != hcn.GuestServiceSynchronized || g.Health != nil {
		t.Fatalf("made %+v, %v", g, err)
	}
	if got, err := r.GuestNetworkService(ctx, g.ID); err != nil || got.Health == nil {
		t.Errorf("in detail %+v, %v", got, err)
	}
	if all, err := r.GuestNetworkServices(ctx); err != nil || len(all) != 1 || all[0].ID != g.ID {
		t.Errorf("listed %+v, %v", all, err)
	}
	if ids, err := r.EnumerateGuestNetworkServices(ctx, hcn.HostComputeQuery{}); err != nil || len(ids) != 1 {
		t.Errorf("listed %+v, %v", ids, err)
	}
	synchronize := &hcn.ModifyGuestServiceSettingRequest{ResourceType: hcn.GuestServiceResourceTypeState, RequestType: hcn.RequestTypeRefresh}
	if err := r.ModifyGuestNetworkService(ctx, g.ID, synchronize); err != nil {
		t.Error(err)
	}
	if err := r.DeleteGuestNetworkService(ctx, g.ID); err != nil {
		t.Error(err)
	}
	if err := r.ModifyGuestNetworkService(ctx, g.ID, synchronize); !errors.Is(err, hcn.ErrElementNotFound) {
		t.Errorf("after the end: %v", err)
	}
	n, err := r.CreateNetwork(ctx, &hcn.HostComputeNetwork{Name: "n", Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{
		IpAddressPrefix: "172.20.0.0/24", Routes: []hcn.Route{{NextHop: "172.20.0.1", DestinationPrefix: "0.0.0.0/0"}},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	ep, err := r.CreateEndpoint(ctx, &hcn.HostComputeEndpoint{HostComputeNetwork: n.ID, AdditionalParams: json.RawMessage(`{"SwitchId":"A","SwitchPortId":"B"}`)})
	if err != nil {
		t.Fatal(err)
	}
	ns, err := r.CreateNamespace(ctx, &hcn.HostComputeNamespace{Type: hcn.NamespaceTypeGuest})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"plug in": r.PlugIn(ctx, ep.ID, hcn.PortEndpointRequest{VirtualMachineId: vm}), "unplug": r.Unplug(ctx, ep.ID, hcn.PortEndpointRequest{}),
		"sync": r.SyncNamespace(ctx, ns.ID),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := r.PlugIn(ctx, ep.ID, hcn.PortEndpointRequest{VirtualNicName: "a\a"}); !errors.Is(err, hcn.ErrInvalidParameter) {
		t.Errorf("a NIC with a bell: %v", err)
	}
	if got, err := r.Endpoint(ctx, ep.ID); err != nil || got.Health == nil || string(got.Health.Extra.Resources) != `{"Allocators":[{"EndpointPortGuid":"B","SwitchId":"A"}]}` {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestMachines: the VM that a namespace is in is told with it, by what it is.
func TestMachines(t *testing.T) {
	f := newFake()
	s := &Server{backend: f}
	f.containers["vm"] = api.Container{ID: "vm", VirtualMachineID: "A"}
	f.containers["host"] = api.Container{ID: "host", VirtualMachineID: "B", Spec: api.ContainerSpec{Host: &api.ContainerHost{}}}
	f.containers["plain"] = api.Container{ID: "plain"}
	for in, want := range map[string]hcn.ExtraHealth{
		"": {}, "plain": {}, "foreign": {}, "foreign vm": {UtilityVM: "A"}, "plain host": {VirtualMachine: "B"},
	} {
		var got hcn.ExtraHealth
		if s.machines(strings.Fields(in), &got); got.UtilityVM != want.UtilityVM || got.VirtualMachine != want.VirtualMachine {
			t.Errorf("%q: %+v", in, got)
		}
	}
}
