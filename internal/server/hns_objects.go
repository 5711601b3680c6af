package server

import (
	"context"
	"encoding/json"
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

// hnsAttach attaches an endpoint to the compartment that is meant, and notes the container there. A container shares the endpoint
// with those that are there already; what is attached is not attached again.
func (s *Server) hnsAttach(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	a, err := decodeNoting[hnsAttachment](c.creation())
	if err != nil {
		return nil, err
	}
	ep, err := s.backend.Endpoint(id)
	if err != nil {
		return nil, err
	}
	if strings.EqualFold(a.SystemType, "VirtualMachine") {
		p, err := s.vmPort(a)
		if err != nil {
			return nil, err
		}
		return s.hnsPort(ctx, id, hcn.RequestTypeAdd, p)
	}
	home, err := s.compartment(ctx, a, &ep)
	if err != nil {
		return nil, err
	}
	ns, err := s.backend.Namespace(home)
	if err != nil {
		return nil, err
	}
	container, known := member(ns, a.ContainerId)
	if in := ep.HostComputeNamespace; in != "" && (in != home || known || container == "") {
		return nil, alreadyAttached(&ep)
	}
	err = s.changeNamespace(ctx, home, hcn.RequestTypeAdd, hcn.NamespaceResourceTypeEndpoint, string(id))
	if err == nil && container != "" && !known {
		err = s.changeNamespace(ctx, home, hcn.RequestTypeAdd, hcn.NamespaceResourceTypeContainer, container)
	}
	return struct{}{}, err
}

func alreadyAttached(ep *hcn.HostComputeEndpoint) error {
	return hcn.Errorf(hcn.ErrEndpointAlreadyAttached, "endpoint %s is in namespace %s: detach it first", ep.ID, ep.HostComputeNamespace)
}

// member finds a container in a namespace as clients compare its ID, without regard to case.
func member(ns hcn.HostComputeNamespace, id string) (string, bool) {
	for _, c := range ns.Containers() {
		if strings.EqualFold(c, id) {
			return c, true
		}
	}
	return id, false
}

// compartment is the namespace to attach an endpoint in: the host's own, one by its number, or that of the container.
func (s *Server) compartment(ctx context.Context, a *hnsAttachment, ep *hcn.HostComputeEndpoint) (hcn.GUID, error) {
	host := strings.EqualFold(a.SystemType, "Host")
	switch number := uint32(a.CompartmentId); {
	case host && (number == 0 || number == hcn.HostDefaultCompartment):
		id, ok := s.findNamespace(func(ns hcn.HostComputeNamespace) bool { return ns.Type == hcn.NamespaceTypeHostDefault })
		switch {
		case ok:
			return id, nil
		case ep.HostComputeNamespace != "":
			return "", alreadyAttached(ep)
		}
		return s.backend.HostNamespace(ctx)
	case number != 0:
		id, ok := s.findNamespace(func(ns hcn.HostComputeNamespace) bool { return ns.NamespaceId == number })
		if !ok {
			return "", hcn.Errorf(hcn.ErrNetCompartmentNotFound, "no namespace has the compartment %d", number)
		}
		return id, nil
	}
	for _, c := range s.spellings(a.ContainerId) {
		id, ok := s.findNamespace(func(ns hcn.HostComputeNamespace) bool { _, in := member(ns, c); return in })
		if ok {
			return id, nil
		}
	}
	return "", hcn.Errorf(hcn.ErrSystemNotFound, "no namespace holds the container %q: give its CompartmentId, or add it to a namespace first",
		cutText(a.ContainerId))
}

// spellings are an ID as it is given, and the whole ID if it is the name or the beginning of a container of ours.
func (s *Server) spellings(id string) []string {
	if id == "" {
		return nil
	}
	all := []string{id}
	if c, err := s.backend.Container(id); err == nil {
		all = append(all, c.ID)
	}
	return all
}

func (s *Server) findNamespace(is func(hcn.HostComputeNamespace) bool) (hcn.GUID, bool) {
	for _, id := range s.backend.Namespaces(hcn.Filter{}) {
		if ns, err := s.backend.Namespace(id); err == nil && is(ns) {
			return id, true
		}
	}
	return "", false
}

// hnsDetach undoes an attach. While other containers share the endpoint it stays with them. The last container leaves its namespace
// with the last endpoint: a stale entry would keep the namespace from being deleted.
func (s *Server) hnsDetach(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	a, err := decodeNoting[hnsAttachment](c.creation())
	if err != nil {
		return nil, err
	}
	ep, err := s.backend.Endpoint(id)
	if err != nil {
		return nil, err
	}
	if strings.EqualFold(a.SystemType, "VirtualMachine") {
		return s.hnsPort(ctx, id, hcn.RequestTypeRemove, &hcn.PortEndpointRequest{})
	}
	if ep.HostComputeNamespace.IsZero() {
		return nil, hcn.Errorf(hcn.ErrEndpointNotAttached, "endpoint %s is in no namespace", id)
	}
	ns, err := s.backend.Namespace(ep.HostComputeNamespace)
	if err != nil {
		return nil, err
	}
	container, known := member(ns, a.ContainerId)
	others := len(ns.Containers())
	if known {
		others--
	}
	shared := container != "" && others > 0
	if !shared {
		if err := s.changeNamespace(ctx, ns.ID, hcn.RequestTypeRemove, hcn.NamespaceResourceTypeEndpoint, string(id)); err != nil {
			return nil, err
		}
	}
	if !known || !shared && len(ns.Endpoints()) > 1 {
		return struct{}{}, nil
	}
	return struct{}{}, s.changeNamespace(ctx, ns.ID, hcn.RequestTypeRemove, hcn.NamespaceResourceTypeContainer, container)
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

// hnsModifyNetwork changes a network's policies, where those given replace the ones of the same types, and its extensions one by
// one. Nothing else of it can be changed by version 1.
func (s *Server) hnsModifyNetwork(ctx context.Context, id hcn.GUID, c hnsCall) (any, error) {
	v, err := decodeNoting[hcn.HNSNetwork](c.creation())
	if err != nil {
		return nil, err
	}
	given, err := hcn.NetworkFromV1(&hcn.HNSNetwork{Policies: v.Policies})
	if err != nil {
		return nil, err
	}
	var requests []*hcn.ModifyNetworkSettingRequest
	if len(given.Policies) > 0 {
		requests = append(requests, &hcn.ModifyNetworkSettingRequest{
			ResourceType: hcn.NetworkResourceTypePolicy, RequestType: hcn.RequestTypeUpdate,
			Settings: settings(hcn.PolicyNetworkRequest{Policies: given.Policies}),
		})
	}
	for _, x := range v.Extensions {
		requests = append(requests, &hcn.ModifyNetworkSettingRequest{
			ResourceType: hcn.NetworkResourceTypeExtension, RequestType: hcn.RequestTypeUpdate,
			Settings: settings(hcn.ExtensionNetworkRequest(x)),
		})
	}
	for _, r := range requests {
		if err := s.backend.ModifyNetwork(ctx, id, r); err != nil {
			return nil, flatPath(err)
		}
	}
	return s.hnsGet(ctx, id, c)
}
