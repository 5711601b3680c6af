package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// The documents of HCN. An ID that is given beside a document wins over the document's own; the zero ID asks for that, or for a
// new one.

func hcnValues(id hcn.GUID, q *hcn.HostComputeQuery) (url.Values, error) {
	v := url.Values{}
	if !id.IsZero() {
		v.Set("id", string(id))
	}
	if q != nil && *q != (hcn.HostComputeQuery{}) {
		b, err := json.Marshal(q)
		if err != nil {
			return nil, fmt.Errorf("encode the query: %w", err)
		}
		v.Set("query", string(b))
	}
	return v, nil
}

func (c *Client) enumerate(ctx context.Context, kind string, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	v, err := hcnValues("", &q)
	if err != nil {
		return nil, err
	}
	var ids []hcn.GUID
	err = c.call(ctx, get("/hcn/v2/"+kind, v), &ids)
	return ids, err
}

func object(kind string, id hcn.GUID) string {
	return "/hcn/v2/" + kind + "/" + url.PathEscape(string(id))
}

func query[T any](ctx context.Context, c *Client, kind string, id hcn.GUID) (T, error) {
	var doc T
	v, err := hcnValues("", &hcn.HostComputeQuery{SchemaVersion: hcn.V2(), Flags: hcn.QueryDetailed})
	if err != nil {
		return doc, err
	}
	err = c.call(ctx, get(object(kind, id), v), &doc)
	return doc, err
}

// create has a document of version 2 made: one without SchemaVersion would be read as version 1.
func create[T any](ctx context.Context, c *Client, kind string, values url.Values, doc T) (T, error) {
	var made T
	err := c.call(ctx, post("/hcn/v2/"+kind, values, doc), &made)
	return made, err
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

// Networks lists networks.
func (c *Client) Networks(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "networks", q)
}

// Network shows a network in detail.
func (c *Client) Network(ctx context.Context, id hcn.GUID) (hcn.HostComputeNetwork, error) {
	return query[hcn.HostComputeNetwork](ctx, c, "networks", id)
}

// CreateNetwork makes a network.
func (c *Client) CreateNetwork(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error) {
	v, err := hcnValues(id, nil)
	if err != nil {
		return doc, err
	}
	if doc.SchemaVersion.Major == 0 {
		doc.SchemaVersion = hcn.V2()
	}
	return create(ctx, c, "networks", v, doc)
}

// ModifyNetwork changes a network.
func (c *Client) ModifyNetwork(ctx context.Context, id hcn.GUID, r *hcn.ModifyNetworkSettingRequest) error {
	return c.modify(ctx, "networks", id, r)
}

// DeleteNetwork deletes a network, and its endpoints with it.
func (c *Client) DeleteNetwork(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "networks", id)
}

// Endpoints lists endpoints.
func (c *Client) Endpoints(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "endpoints", q)
}

// Endpoint shows an endpoint in detail.
func (c *Client) Endpoint(ctx context.Context, id hcn.GUID) (hcn.HostComputeEndpoint, error) {
	return query[hcn.HostComputeEndpoint](ctx, c, "endpoints", id)
}

// CreateEndpoint makes an endpoint on a network; the zero network stands for the document's.
func (c *Client) CreateEndpoint(ctx context.Context, id, network hcn.GUID, doc hcn.HostComputeEndpoint) (hcn.HostComputeEndpoint, error) {
	v, err := hcnValues(id, nil)
	if err != nil {
		return doc, err
	}
	if !network.IsZero() {
		v.Set("network", string(network))
	}
	if doc.SchemaVersion.Major == 0 {
		doc.SchemaVersion = hcn.V2()
	}
	return create(ctx, c, "endpoints", v, doc)
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
	err := c.call(ctx, get("/v1/endpoints/"+url.PathEscape(string(id))+"/stats", nil), &stats)
	return stats, err
}

// Namespaces lists namespaces.
func (c *Client) Namespaces(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "namespaces", q)
}

// Namespace shows a namespace in detail.
func (c *Client) Namespace(ctx context.Context, id hcn.GUID) (hcn.HostComputeNamespace, error) {
	return query[hcn.HostComputeNamespace](ctx, c, "namespaces", id)
}

// CreateNamespace makes a namespace and its compartment.
func (c *Client) CreateNamespace(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNamespace) (hcn.HostComputeNamespace, error) {
	v, err := hcnValues(id, nil)
	if err != nil {
		return doc, err
	}
	if doc.SchemaVersion.Major == 0 {
		doc.SchemaVersion = hcn.V2()
	}
	return create(ctx, c, "namespaces", v, doc)
}

// ModifyNamespace attaches something to a namespace or detaches it.
func (c *Client) ModifyNamespace(ctx context.Context, id hcn.GUID, r *hcn.ModifyNamespaceSettingRequest) error {
	return c.modify(ctx, "namespaces", id, r)
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
	return c.ModifyNamespace(ctx, namespace, &hcn.ModifyNamespaceSettingRequest{ResourceType: &kind, RequestType: what, Settings: settings})
}

// DeleteNamespace deletes a namespace.
func (c *Client) DeleteNamespace(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "namespaces", id)
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
