package server

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// settings encodes the settings of a request that we make ourselves; such values always can be.
func settings(v any) json.RawMessage {
	b, _ := json.Marshal(v)
	return b
}

// hnsStats are the counters of an endpoint in version 1.
type hnsStats struct {
	BytesReceived, BytesSent, PacketsReceived, PacketsSent uint64
	DroppedPacketsIncoming, DroppedPacketsOutgoing         uint64
	EndpointId, InstanceId                                 hcn.GUID
}

func (s *Server) hnsEndpointStats(_ context.Context, id hcn.GUID, _ hnsCall) (any, error) {
	n, err := s.backend.EndpointStats(id)
	if err != nil {
		return nil, err
	}
	return hnsStats{
		BytesReceived: n.BytesReceived, BytesSent: n.BytesSent, PacketsReceived: n.PacketsReceived, PacketsSent: n.PacketsSent,
		DroppedPacketsIncoming: n.DroppedIncoming, DroppedPacketsOutgoing: n.DroppedOutgoing, EndpointId: id, InstanceId: id,
	}, nil
}

// hnsAttachment says where an endpoint is to be attached.
type hnsAttachment struct {
	ContainerId    string
	SystemType     string
	CompartmentId  uint16
	VirtualNicName string
}

// hnsAttach attaches an endpoint to a compartment by its number. Attaching by container alone is not possible: a compartment is
// there before its first container.
func (s *Server) hnsAttach(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	a, err := decodeNoting[hnsAttachment](c.creation())
	if err != nil {
		return nil, err
	}
	ns, err := s.compartment(a)
	if err != nil {
		return nil, err
	}
	err = s.changeNamespace(ctx, ns, hcn.RequestTypeAdd, hcn.NamespaceResourceTypeEndpoint, string(id))
	if err == nil && a.ContainerId != "" {
		err = s.changeNamespace(ctx, ns, hcn.RequestTypeAdd, hcn.NamespaceResourceTypeContainer, a.ContainerId)
	}
	return struct{}{}, err
}

func (s *Server) compartment(a *hnsAttachment) (hcn.GUID, error) {
	number := uint32(a.CompartmentId)
	if strings.EqualFold(a.SystemType, "Host") && number == 0 {
		number = hcn.HostDefaultCompartment
	}
	if strings.EqualFold(a.SystemType, "VirtualMachine") || number == 0 {
		return "", hcn.Errorf(hcn.ErrNotImplemented, "attach by CompartmentId: SystemType %q without it cannot be attached by this version", a.SystemType)
	}
	for _, id := range s.backend.Namespaces(hcn.Filter{}) {
		if ns, err := s.backend.Namespace(id); err == nil && ns.NamespaceId == number {
			return id, nil
		}
	}
	return "", hcn.Errorf(hcn.ErrNetCompartmentNotFound, "no namespace has the compartment %d", number)
}

// hnsDetach undoes an attach. The container that came with it leaves its namespace with the last endpoint: a stale entry would keep
// the namespace from being deleted.
func (s *Server) hnsDetach(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	a, err := decodeNoting[hnsAttachment](c.creation())
	if err != nil {
		return nil, err
	}
	ep, err := s.backend.Endpoint(id)
	if err != nil {
		return nil, err
	}
	home := ep.HostComputeNamespace
	if home.IsZero() {
		return nil, hcn.Errorf(hcn.ErrEndpointNotAttached, "endpoint %s is in no namespace", id)
	}
	if err := s.changeNamespace(ctx, home, hcn.RequestTypeRemove, hcn.NamespaceResourceTypeEndpoint, string(id)); err != nil {
		return nil, err
	}
	ns, err := s.backend.Namespace(home)
	if err != nil || a.ContainerId == "" || !slices.Contains(ns.Containers(), a.ContainerId) || hasEndpoint(ns) {
		return struct{}{}, nil //nolint:nilerr // a namespace that is gone has no container left
	}
	return struct{}{}, s.changeNamespace(ctx, home, hcn.RequestTypeRemove, hcn.NamespaceResourceTypeContainer, a.ContainerId)
}

func hasEndpoint(ns hcn.HostComputeNamespace) bool {
	return slices.ContainsFunc(ns.Resources, func(r hcn.NamespaceResource) bool { return r.Type == hcn.NamespaceResourceTypeEndpoint })
}

func (s *Server) hnsAddResource(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	return s.hnsResource(ctx, id, c, hcn.RequestTypeAdd)
}

func (s *Server) hnsRemoveResource(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	return s.hnsResource(ctx, id, c, hcn.RequestTypeRemove)
}

func (s *Server) hnsResource(ctx context.Context, id hcn.GUID, c hnsCall, what hcn.RequestType) (any, error) {
	res, err := decodeNoting[hcn.HNSResource](c.creation())
	if err != nil {
		return nil, err
	}
	if err := s.changeNamespace(ctx, id, what, res.Type, res.Data.Id); err != nil {
		return nil, err
	}
	return s.hnsGet(ctx, id, c)
}

func (s *Server) changeNamespace(ctx context.Context, ns hcn.GUID, what hcn.RequestType, typ hcn.NamespaceResourceType, id string) error {
	member := "ContainerId"
	if typ == hcn.NamespaceResourceTypeEndpoint {
		member = "EndpointId"
	}
	return s.backend.ModifyNamespace(ctx, ns, &hcn.ModifyNamespaceSettingRequest{
		ResourceType: &typ, RequestType: what, Settings: settings(map[string]string{member: id}),
	})
}
