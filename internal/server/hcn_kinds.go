package server

import (
	"context"
	"encoding/json"
	"reflect"

	"github.com/bulkhead-net/bulkhead/hcn"
)

func (s *Server) networkKind() kind {
	b := s.backend
	return kind{
		singular: "network", document: reflect.TypeFor[hcn.HostComputeNetwork](),
		modify:    reflect.TypeFor[hcn.ModifyNetworkSettingRequest](),
		enumerate: func(f hcn.Filter) []hcn.GUID { return b.Networks(f) },
		get:       s.network,
		create: func(ctx context.Context, c creation) (view, error) {
			doc, err := networkDocument(c)
			if err != nil {
				return nil, err
			}
			made, err := b.CreateNetwork(ctx, c.id, *doc)
			return s.networkView(made), err
		},
		change: func(ctx context.Context, id hcn.GUID, body []byte) ([]string, error) {
			r, err := hcn.Decode[hcn.ModifyNetworkSettingRequest](body)
			if err != nil {
				return nil, err
			}
			ignored := hcn.UnknownMembers[hcn.ModifyNetworkSettingRequest](body)
			switch r.ResourceType {
			case hcn.NetworkResourceTypePolicy:
				ignored = append(ignored, inSettings[hcn.PolicyNetworkRequest](r.Settings)...)
			case hcn.NetworkResourceTypeDNS:
				ignored = append(ignored, inSettings[hcn.Dns](r.Settings)...)
			case hcn.NetworkResourceTypeExtension:
				ignored = append(ignored, inSettings[hcn.ExtensionNetworkRequest](r.Settings)...)
			case hcn.NetworkResourceTypeSubnet:
				ignored = append(ignored, inSettings[hcn.SubnetNetworkRequest](r.Settings)...)
			case hcn.NetworkResourceTypeIPSubnet:
				ignored = append(ignored, inSettings[hcn.IpSubnetNetworkRequest](r.Settings)...)
			}
			return ignored, b.ModifyNetwork(ctx, id, r)
		},
		remove: b.DeleteNetwork,
		turned: func(id hcn.GUID) func() []hcn.DirectionType {
			before, _ := b.Network(id)
			return func() []hcn.DirectionType {
				after, _ := b.Network(id)
				return hcn.TurnedNetworkDefaults(before.Policies, after.Policies)
			}
		},
	}
}

// inSettings names the ignored members of a request's settings.
func inSettings[T any](raw json.RawMessage) []string {
	names := hcn.UnknownMembers[T](raw)
	for i, n := range names {
		names[i] = "Settings." + n
	}
	return names
}

func networkDocument(c creation) (*hcn.HostComputeNetwork, error) {
	if !c.v1 {
		return decodeNoting[hcn.HostComputeNetwork](c)
	}
	v, err := decodeNoting[hcn.HNSNetwork](c)
	if err != nil {
		return nil, err
	}
	return hcn.NetworkFromV1(v)
}

func (s *Server) network(id hcn.GUID) (view, error) {
	doc, err := s.backend.Network(id)
	if err != nil {
		return nil, err
	}
	return s.networkView(doc), nil
}

func (s *Server) networkView(doc hcn.HostComputeNetwork) view {
	return func(q hcn.HostComputeQuery, v1 bool) any {
		if v1 {
			return s.networkV1(&doc)
		}
		doc.Health = nil
		if q.Detailed() {
			doc.Health = s.networkHealth(&doc)
		}
		return doc
	}
}

func (s *Server) networkV1(doc *hcn.HostComputeNetwork) *hcn.HNSNetwork {
	v := hcn.NetworkToV1(doc)
	if id := doc.SwitchGUID(); id != doc.ID {
		v.LayeredOn = string(id)
	}
	n := len(s.backend.Endpoints(equals("HostComputeNetwork", string(doc.ID))))
	v.CurrentEndpointCount, v.TotalEndpoints = uint32(n), uint32(n)
	return v
}

// equals is the filter for one member. Encoding a string cannot fail, nor can reading what was encoded.
func equals(member, value string) hcn.Filter {
	b, _ := json.Marshal(map[string]string{member: value})
	f, _ := hcn.ParseFilter(string(b))
	return f
}

func (s *Server) endpointKind() kind {
	b := s.backend
	return kind{
		singular: "endpoint", document: reflect.TypeFor[hcn.HostComputeEndpoint](),
		modify:    reflect.TypeFor[hcn.ModifyEndpointSettingRequest](),
		enumerate: func(f hcn.Filter) []hcn.GUID { return b.Endpoints(f) },
		get:       s.endpoint,
		create: func(ctx context.Context, c creation) (view, error) {
			doc, err := s.endpointDocument(c)
			if err != nil {
				return nil, err
			}
			if err := oneNetwork(c.network, doc.HostComputeNetwork); err != nil {
				return nil, err
			}
			made, err := b.CreateEndpoint(ctx, c.id, c.network, *doc)
			return s.endpointView(made), err
		},
		change: func(ctx context.Context, id hcn.GUID, body []byte) ([]string, error) {
			r, err := hcn.Decode[hcn.ModifyEndpointSettingRequest](body)
			if err != nil {
				return nil, err
			}
			ignored := hcn.UnknownMembers[hcn.ModifyEndpointSettingRequest](body)
			switch r.ResourceType {
			case hcn.EndpointResourceTypePolicy:
				ignored = append(ignored, inSettings[hcn.PolicyEndpointRequest](r.Settings)...)
			case hcn.EndpointResourceTypePort:
				ignored = append(ignored, inSettings[hcn.PortEndpointRequest](r.Settings)...)
			}
			return ignored, b.ModifyEndpoint(ctx, id, r)
		},
		remove: b.DeleteEndpoint,
		turned: func(id hcn.GUID) func() []hcn.DirectionType {
			// Neither look-up fails when the change succeeds.
			before, _ := b.Endpoint(id)
			return func() []hcn.DirectionType {
				after, _ := b.Endpoint(id)
				return hcn.TurnedDefaults(before.Policies, after.Policies)
			}
		},
	}
}

// oneNetwork refuses an endpoint without a network, or with two. The document's may be left out where the call names it.
func oneNetwork(called, written hcn.GUID) error {
	switch {
	case called.IsZero() && written.IsZero():
		return hcn.Errorf(hcn.ErrInvalidEndpoint, "HostComputeNetwork: it is missing: give the GUID of the endpoint's network")
	case !called.IsZero() && !written.IsZero() && called != written:
		return hcn.Errorf(hcn.ErrInvalidEndpoint, "HostComputeNetwork: the document says %s, the call %s", written, called)
	}
	return nil
}

// endpointDocument reads an endpoint. Version 1 may name its network instead of giving its GUID.
func (s *Server) endpointDocument(c creation) (*hcn.HostComputeEndpoint, error) {
	if !c.v1 {
		return decodeNoting[hcn.HostComputeEndpoint](c)
	}
	v, err := decodeNoting[hcn.HNSEndpoint](c)
	if err != nil {
		return nil, err
	}
	if c.network.IsZero() && v.VirtualNetwork.IsZero() && v.VirtualNetworkName != "" {
		found := s.backend.Networks(equals("Name", v.VirtualNetworkName))
		if len(found) == 0 {
			return nil, hcn.Errorf(hcn.ErrNetworkNotFound, "VirtualNetworkName: no network has the name %q", cutText(v.VirtualNetworkName))
		}
		v.VirtualNetwork = found[0]
	}
	return hcn.EndpointFromV1(v)
}

func (s *Server) endpoint(id hcn.GUID) (view, error) {
	doc, err := s.backend.Endpoint(id)
	if err != nil {
		return nil, err
	}
	return s.endpointView(doc), nil
}

func (s *Server) endpointView(doc hcn.HostComputeEndpoint) view {
	return func(q hcn.HostComputeQuery, v1 bool) any {
		if v1 {
			return s.endpointV1(&doc)
		}
		doc.Health = nil
		if q.Detailed() {
			doc.Health = s.endpointHealth(&doc)
		}
		return doc
	}
}

// endpointV1 adds what is known elsewhere. A network or namespace that went away meanwhile is one that there is nothing to say of.
func (s *Server) endpointV1(doc *hcn.HostComputeEndpoint) *hcn.HNSEndpoint {
	var network *hcn.HostComputeNetwork
	if n, err := s.backend.Network(doc.HostComputeNetwork); err == nil {
		network = &n
	}
	v := hcn.EndpointToV1(doc, network)
	if doc.HostComputeNamespace.IsZero() {
		return v
	}
	if ns, err := s.backend.Namespace(doc.HostComputeNamespace); err == nil {
		v.SharedContainers = ns.Containers()
		v.Namespace = &hcn.HNSNamespace{ID: ns.ID, CompartmentId: ns.NamespaceId, CompartmentGuid: ns.NamespaceGuid}
	}
	return v
}

func (s *Server) namespaceKind() kind {
	b := s.backend
	return kind{
		singular: "namespace", document: reflect.TypeFor[hcn.HostComputeNamespace](),
		modify:    reflect.TypeFor[hcn.ModifyNamespaceSettingRequest](),
		enumerate: func(f hcn.Filter) []hcn.GUID { return b.Namespaces(f) },
		get:       s.namespace,
		create: func(ctx context.Context, c creation) (view, error) {
			doc, err := namespaceDocument(c)
			if err != nil {
				return nil, err
			}
			made, err := b.CreateNamespace(ctx, c.id, *doc)
			return s.namespaceView(made), err
		},
		change: func(ctx context.Context, id hcn.GUID, body []byte) ([]string, error) {
			r, err := hcn.Decode[hcn.ModifyNamespaceSettingRequest](body)
			if err != nil {
				return nil, err
			}
			ignored := hcn.UnknownMembers[hcn.ModifyNamespaceSettingRequest](body)
			ignored = append(ignored, inSettings[struct{ EndpointId, ContainerId, ID string }](r.Settings)...)
			return ignored, b.ModifyNamespace(ctx, id, r)
		},
		remove: b.DeleteNamespace,
	}
}

func namespaceDocument(c creation) (*hcn.HostComputeNamespace, error) {
	if !c.v1 {
		return decodeNoting[hcn.HostComputeNamespace](c)
	}
	v, err := decodeNoting[hcn.HNSNamespace](c)
	if err != nil {
		return nil, err
	}
	return hcn.NamespaceFromV1(v), nil
}

func (s *Server) namespace(id hcn.GUID) (view, error) {
	doc, err := s.backend.Namespace(id)
	if err != nil {
		return nil, err
	}
	return s.namespaceView(doc), nil
}

func (s *Server) namespaceView(doc hcn.HostComputeNamespace) view {
	return func(q hcn.HostComputeQuery, v1 bool) any {
		if v1 {
			return hcn.NamespaceToV1(&doc)
		}
		doc.Health = nil
		if q.Detailed() {
			doc.Health = &hcn.Health{Extra: &hcn.ExtraHealth{SharedContainers: containerList(doc)}}
			s.machines(doc.Containers(), doc.Health.Extra)
		}
		return doc
	}
}

// routeKind is that of SDN routes. HCN offers no change of one: clients delete it and make another.
func (s *Server) routeKind() kind {
	b := s.backend
	return kind{
		singular: "route", document: reflect.TypeFor[hcn.HostComputeRoute](), modify: reflect.TypeFor[hcn.HostComputeRoute](),
		enumerate: func(f hcn.Filter) []hcn.GUID { return b.Routes(f) },
		get: func(id hcn.GUID) (view, error) {
			doc, err := b.Route(id)
			return routeView(doc), err
		},
		create: func(ctx context.Context, c creation) (view, error) {
			doc, err := routeDocument(c)
			if err != nil {
				return nil, err
			}
			made, err := b.CreateRoute(ctx, c.id, *doc)
			return routeView(made), err
		},
		change: func(_ context.Context, id hcn.GUID, _ []byte) ([]string, error) {
			if _, err := b.Route(id); err != nil {
				return nil, err
			}
			return nil, hcn.Errorf(hcn.ErrNotImplemented, "route %s: a route cannot be changed: delete it and create another", id)
		},
		remove: b.DeleteRoute,
	}
}

func routeDocument(c creation) (*hcn.HostComputeRoute, error) {
	return listDocument(c, hcn.RouteFromV1)
}

func routeView(doc hcn.HostComputeRoute) view { return listView(doc, hcn.RouteToV1) }
