package server

import (
	"context"
	"reflect"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// guestKind is that of guest network services: the agents of VMs.
func (s *Server) guestKind() kind {
	b := s.backend
	return kind{
		singular: "guest network service", document: reflect.TypeFor[hcn.GuestNetworkService](),
		modify:    reflect.TypeFor[hcn.ModifyGuestServiceSettingRequest](),
		enumerate: func(f hcn.Filter) []hcn.GUID { return b.GuestNetworkServices(f) },
		get: func(id hcn.GUID) (view, error) {
			doc, err := b.GuestNetworkService(context.Background(), id) // it has a limit of its own
			return guestView(doc), err
		},
		create: func(ctx context.Context, c creation) (view, error) {
			doc, err := decodeNoting[hcn.GuestNetworkService](c) // there is no other version of it
			if err != nil {
				return nil, err
			}
			made, err := b.CreateGuestNetworkService(ctx, c.id, *doc)
			return guestView(made), err
		},
		change: func(ctx context.Context, id hcn.GUID, body []byte) ([]string, error) {
			r, err := hcn.Decode[hcn.ModifyGuestServiceSettingRequest](body)
			if err != nil {
				return nil, err
			}
			ignored := hcn.UnknownMembers[hcn.ModifyGuestServiceSettingRequest](body)
			ignored = append(ignored, inSettings[hcn.StateGuestServiceRequest](r.Settings)...)
			return ignored, b.ModifyGuestNetworkService(ctx, id, r)
		},
		remove: b.DeleteGuestNetworkService,
	}
}

func guestView(doc hcn.GuestNetworkService) view {
	return func(q hcn.HostComputeQuery, _ bool) any {
		if !q.Detailed() {
			doc.Health = nil
		}
		return doc
	}
}

// machines tells the VM that containers are in: a utility VM, or one that is a host of containers.
func (s *Server) machines(containers []string, extra *hcn.ExtraHealth) {
	for _, id := range containers {
		c, err := s.backend.Container(id)
		if err != nil || c.ID != id || c.VirtualMachineID == "" {
			continue
		}
		if c.Spec.Host != nil {
			extra.VirtualMachine = string(c.VirtualMachineID)
		} else {
			extra.UtilityVM = string(c.VirtualMachineID)
		}
		return
	}
}

// vmPort is the request that an attachment of version 1 is, whose NIC is named as Windows names those of VMs: the VM's ID, two dashes,
// and an ID of the NIC.
func (s *Server) vmPort(a *hnsAttachment) (*hcn.PortEndpointRequest, error) {
	vm, nic, _ := strings.Cut(a.VirtualNicName, "--")
	id, err := hcn.ParseGUID(vm)
	if err != nil {
		return nil, hcn.Errorf(hcn.ErrSystemNotFound, "VirtualNicName: %q does not begin with the ID of a VM: write VMID--NICID (bulkhead inspect of a container with VM isolation shows the first)", cutText(a.VirtualNicName))
	}
	p := &hcn.PortEndpointRequest{VirtualMachineId: id, VirtualNicName: a.VirtualNicName}
	if port, err := hcn.ParseGUID(nic); err == nil {
		p.PortId = port
	}
	return p, nil
}

// hnsPort makes the port of a VM for an endpoint, or takes it away.
func (s *Server) hnsPort(ctx context.Context, id hcn.GUID, what hcn.RequestType, p *hcn.PortEndpointRequest) (any, error) {
	return struct{}{}, s.backend.ModifyEndpoint(ctx, id, &hcn.ModifyEndpointSettingRequest{
		ResourceType: hcn.EndpointResourceTypePort, RequestType: what, Settings: settings(p),
	})
}
