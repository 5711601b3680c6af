package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// The documents of HCN. A document that holds an ID is created with it, another with a new one.

func queryValues(q hcn.HostComputeQuery) (url.Values, error) {
	if q == (hcn.HostComputeQuery{}) {
		return nil, nil
	}
	b, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encode the query: %w", err)
	}
	return url.Values{"query": {string(b)}}, nil
}

func (c *Client) enumerate(ctx context.Context, kind string, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	v, err := queryValues(q)
	if err != nil {
		return nil, err
	}
	var ids []hcn.GUID
	err = c.call(ctx, get("/hcn/v2/"+kind, v), &ids)
	return ids, err
}

func object(kind string, id hcn.GUID) string { return "/hcn/v2/" + kind + "/" + segment(string(id)) }

func query[T any](ctx context.Context, c *Client, kind string, id hcn.GUID) (*T, error) {
	v, err := queryValues(hcn.HostComputeQuery{SchemaVersion: hcn.V2(), Flags: hcn.QueryDetailed})
	if err != nil {
		return nil, err
	}
	doc := new(T)
	if err := c.call(ctx, get(object(kind, id), v), doc); err != nil {
		return nil, err
	}
	return doc, nil
}

// all shows every object of a kind. One that goes away meanwhile is left out.
func all[T any](ctx context.Context, c *Client, kind string) ([]T, error) {
	ids, err := c.enumerate(ctx, kind, hcn.HostComputeQuery{})
	if err != nil {
		return nil, err
	}
	list := make([]T, 0, len(ids))
	for _, id := range ids {
		doc, err := query[T](ctx, c, kind, id)
		var gone *hcn.Error
		if errors.As(err, &gone) && gone.HTTPStatus() == http.StatusNotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, *doc)
	}
	return list, nil
}

func create[T any](ctx context.Context, c *Client, kind string, doc T) (*T, error) {
	made := new(T)
	if err := c.call(ctx, post("/hcn/v2/"+kind, nil, doc), made); err != nil {
		return nil, err
	}
	return made, nil
}

// version2 marks a document as what it is: one without SchemaVersion would be read as version 1.
func version2(v *hcn.SchemaVersion) {
	if v.Major == 0 {
		*v = hcn.V2()
	}
}

func (c *Client) modify(ctx context.Context, kind string, id hcn.GUID, r any) error {
	return c.call(ctx, post(object(kind, id)+"/modify", nil, r), nil)
}

func (c *Client) delete(ctx context.Context, kind string, id hcn.GUID) error {
	return c.call(ctx, remove(object(kind, id), nil), nil)
}

// Filter is a query for the objects whose members all have these values, for example {"Name": "nat"}.
func Filter(members map[string]string) hcn.HostComputeQuery {
	b, _ := json.Marshal(members) // a map of strings always encodes
	return hcn.HostComputeQuery{SchemaVersion: hcn.V2(), Filter: string(b)}
}

// Networks shows all networks in detail.
func (c *Client) Networks(ctx context.Context) ([]hcn.HostComputeNetwork, error) {
	return all[hcn.HostComputeNetwork](ctx, c, "networks")
}

// EnumerateNetworks lists the networks that a query selects.
func (c *Client) EnumerateNetworks(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "networks", q)
}

// Network shows a network in detail.
func (c *Client) Network(ctx context.Context, id hcn.GUID) (*hcn.HostComputeNetwork, error) {
	return query[hcn.HostComputeNetwork](ctx, c, "networks", id)
}

// CreateNetwork makes a network.
func (c *Client) CreateNetwork(ctx context.Context, doc *hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error) {
	d := *doc
	version2(&d.SchemaVersion)
	return create(ctx, c, "networks", d)
}

// ModifyNetwork changes a network.
func (c *Client) ModifyNetwork(ctx context.Context, id hcn.GUID, r *hcn.ModifyNetworkSettingRequest) error {
	return c.modify(ctx, "networks", id, r)
}

// DeleteNetwork deletes a network, and its endpoints with it.
func (c *Client) DeleteNetwork(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "networks", id)
}

// Endpoints shows all endpoints in detail.
func (c *Client) Endpoints(ctx context.Context) ([]hcn.HostComputeEndpoint, error) {
	return all[hcn.HostComputeEndpoint](ctx, c, "endpoints")
}

// EnumerateEndpoints lists the endpoints that a query selects.
func (c *Client) EnumerateEndpoints(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "endpoints", q)
}

// Endpoint shows an endpoint in detail.
func (c *Client) Endpoint(ctx context.Context, id hcn.GUID) (*hcn.HostComputeEndpoint, error) {
	return query[hcn.HostComputeEndpoint](ctx, c, "endpoints", id)
}

// CreateEndpoint makes an endpoint on the document's network.
func (c *Client) CreateEndpoint(ctx context.Context, doc *hcn.HostComputeEndpoint) (*hcn.HostComputeEndpoint, error) {
	d := *doc
	version2(&d.SchemaVersion)
	return create(ctx, c, "endpoints", d)
}

// ModifyEndpoint changes an endpoint.
func (c *Client) ModifyEndpoint(ctx context.Context, id hcn.GUID, r *hcn.ModifyEndpointSettingRequest) error {
	return c.modify(ctx, "endpoints", id, r)
}

// DeleteEndpoint deletes an endpoint.
func (c *Client) DeleteEndpoint(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "endpoints", id)
}

// EndpointStats are the counters of an endpoint.
func (c *Client) EndpointStats(ctx context.Context, id hcn.GUID) (api.NetworkStats, error) {
	var stats api.NetworkStats
	err := c.call(ctx, get("/v1/endpoints/"+segment(string(id))+"/stats", nil), &stats)
	return stats, err
}

// Routes shows all SDN routes in detail.
func (c *Client) Routes(ctx context.Context) ([]hcn.HostComputeRoute, error) {
	return all[hcn.HostComputeRoute](ctx, c, "routes")
}

// EnumerateRoutes lists the SDN routes that a query selects.
func (c *Client) EnumerateRoutes(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "routes", q)
}

// Route shows an SDN route in detail.
func (c *Client) Route(ctx context.Context, id hcn.GUID) (*hcn.HostComputeRoute, error) {
	return query[hcn.HostComputeRoute](ctx, c, "routes", id)
}

// CreateRoute makes an SDN route for the document's endpoints.
func (c *Client) CreateRoute(ctx context.Context, doc *hcn.HostComputeRoute) (*hcn.HostComputeRoute, error) {
	d := *doc
	version2(&d.SchemaVersion)
	return create(ctx, c, "routes", d)
}

// DeleteRoute deletes an SDN route.
func (c *Client) DeleteRoute(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "routes", id)
}

// Namespaces shows all namespaces in detail.
func (c *Client) Namespaces(ctx context.Context) ([]hcn.HostComputeNamespace, error) {
	return all[hcn.HostComputeNamespace](ctx, c, "namespaces")
}

// EnumerateNamespaces lists the namespaces that a query selects.
func (c *Client) EnumerateNamespaces(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "namespaces", q)
}

// Namespace shows a namespace in detail.
func (c *Client) Namespace(ctx context.Context, id hcn.GUID) (*hcn.HostComputeNamespace, error) {
	return query[hcn.HostComputeNamespace](ctx, c, "namespaces", id)
}

// CreateNamespace makes a namespace and its compartment.
func (c *Client) CreateNamespace(ctx context.Context, doc *hcn.HostComputeNamespace) (*hcn.HostComputeNamespace, error) {
	d := *doc
	version2(&d.SchemaVersion)
	return create(ctx, c, "namespaces", d)
}

// ModifyNamespace attaches something to a namespace or detaches it.
func (c *Client) ModifyNamespace(ctx context.Context, id hcn.GUID, r *hcn.ModifyNamespaceSettingRequest) error {
	return c.modify(ctx, "namespaces", id, r)
}

// DeleteNamespace deletes a namespace.
func (c *Client) DeleteNamespace(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "namespaces", id)
}

// AttachEndpoint puts an endpoint into a namespace.
func (c *Client) AttachEndpoint(ctx context.Context, namespace, endpoint hcn.GUID) error {
	return c.changeNamespace(ctx, hcn.RequestTypeAdd, namespace, endpoint)
}

// DetachEndpoint takes an endpoint out of a namespace.
func (c *Client) DetachEndpoint(ctx context.Context, namespace, endpoint hcn.GUID) error {
	return c.changeNamespace(ctx, hcn.RequestTypeRemove, namespace, endpoint)
}

func (c *Client) changeNamespace(ctx context.Context, what hcn.RequestType, namespace, endpoint hcn.GUID) error {
	kind := hcn.NamespaceResourceTypeEndpoint
	settings, err := json.Marshal(struct{ EndpointId hcn.GUID }{endpoint})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	r := post(object("namespaces", namespace)+"/modify", nil, &hcn.ModifyNamespaceSettingRequest{ResourceType: &kind, RequestType: what, Settings: settings})
	if what == hcn.RequestTypeAdd {
		r = attaching(r)
	}
	return c.call(ctx, r, nil)
}

// SyncNamespace waits until the VM in a namespace of type Guest has what is attached there, and nothing else. Without one that runs
// there is nothing to wait for.
func (c *Client) SyncNamespace(ctx context.Context, id hcn.GUID) error {
	kind := hcn.NamespaceResourceTypeEndpoint
	return c.ModifyNamespace(ctx, id, &hcn.ModifyNamespaceSettingRequest{ResourceType: &kind, RequestType: hcn.RequestTypeRefresh})
}

// PlugIn makes a port of a VM for an endpoint: it is in the VM's compartment whenever that runs. A VM that is not named is the one in
// whose namespace the endpoint is.
func (c *Client) PlugIn(ctx context.Context, endpoint hcn.GUID, port hcn.PortEndpointRequest) error {
	return c.changePort(ctx, hcn.RequestTypeAdd, endpoint, port)
}

// Unplug takes an endpoint's port of a VM away, and the endpoint out of the VM.
func (c *Client) Unplug(ctx context.Context, endpoint hcn.GUID, port hcn.PortEndpointRequest) error {
	return c.changePort(ctx, hcn.RequestTypeRemove, endpoint, port)
}

func (c *Client) changePort(ctx context.Context, what hcn.RequestType, endpoint hcn.GUID, port hcn.PortEndpointRequest) error {
	settings, err := json.Marshal(port)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return c.ModifyEndpoint(ctx, endpoint, &hcn.ModifyEndpointSettingRequest{ResourceType: hcn.EndpointResourceTypePort, RequestType: what, Settings: settings})
}

// GuestNetworkServices shows all guest network services in detail.
func (c *Client) GuestNetworkServices(ctx context.Context) ([]hcn.GuestNetworkService, error) {
	return all[hcn.GuestNetworkService](ctx, c, "guestnetworkservices")
}

// EnumerateGuestNetworkServices lists the guest network services that a query selects.
func (c *Client) EnumerateGuestNetworkServices(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "guestnetworkservices", q)
}

// GuestNetworkService shows a guest network service in detail.
func (c *Client) GuestNetworkService(ctx context.Context, id hcn.GUID) (*hcn.GuestNetworkService, error) {
	return query[hcn.GuestNetworkService](ctx, c, "guestnetworkservices", id)
}

// CreateGuestNetworkService makes the document of a VM's service.
func (c *Client) CreateGuestNetworkService(ctx context.Context, doc *hcn.GuestNetworkService) (*hcn.GuestNetworkService, error) {
	d := *doc
	version2(&d.SchemaVersion)
	return create(ctx, c, "guestnetworkservices", d)
}

// ModifyGuestNetworkService asks something of a guest network service.
func (c *Client) ModifyGuestNetworkService(ctx context.Context, id hcn.GUID, r *hcn.ModifyGuestServiceSettingRequest) error {
	return c.modify(ctx, "guestnetworkservices", id, r)
}

// DeleteGuestNetworkService deletes a guest network service. The VM has its agent and its NICs as before.
func (c *Client) DeleteGuestNetworkService(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "guestnetworkservices", id)
}

// HCNVersion is the version that clients of HCN derive features from.
func (c *Client) HCNVersion(ctx context.Context) (hcn.Version, error) {
	var v hcn.Version
	out, err := c.HNS(ctx, http.MethodGet, "/globals/version", nil)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return v, api.Errorf(api.KindInternal, "read the version: %w", err)
	}
	return v, nil
}

// HCN makes a call of version 2 with documents as text; path is what follows /hcn/v2.
func (c *Client) HCN(ctx context.Context, method, path string, query url.Values, document json.RawMessage) (json.RawMessage, error) {
	r := request{method: method, path: "/hcn/v2/" + strings.TrimPrefix(path, "/"), query: query}
	if document != nil {
		r.body = document
	}
	res, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return readAll(res.Body)
}

// HNS makes a call of version 1; path is that of the Host Networking Service, such as /networks/. The answer is its Output.
func (c *Client) HNS(ctx context.Context, method, path string, document json.RawMessage) (json.RawMessage, error) {
	r := request{method: method, path: "/hns/v1/" + strings.TrimPrefix(path, "/")}
	if document != nil {
		r.body = document
	}
	res, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := readAll(res.Body)
	if err != nil {
		return nil, err
	}
	var envelope struct {
		Success bool
		Output  json.RawMessage
	}
	if err := json.Unmarshal(b, &envelope); err != nil {
		return nil, api.Errorf(api.KindInternal, "read the answer to %s %s: %w", method, path, err)
	}
	if !envelope.Success {
		return nil, recordOf(b, res.Status)
	}
	return envelope.Output, nil
}

// CreateCompartment makes a namespace and the endpoints in it, in one step.
func (c *Client) CreateCompartment(ctx context.Context, doc api.Compartment) (*api.Compartment, error) {
	version2(&doc.Namespace.SchemaVersion)
	doc.Endpoints = slices.Clone(doc.Endpoints)
	for i := range doc.Endpoints {
		version2(&doc.Endpoints[i].SchemaVersion)
	}
	var made api.Compartment
	if err := c.call(ctx, post("/v1/compartments", nil, doc), &made); err != nil {
		return nil, err
	}
	return &made, nil
}

// DeleteCompartment deletes a namespace and the endpoints in it.
func (c *Client) DeleteCompartment(ctx context.Context, namespace hcn.GUID) error {
	return c.call(ctx, remove("/v1/compartments/"+segment(string(namespace)), nil), nil)
}
