package client

import (
	"context"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// CreateNetworkFor makes a network on a NIC that is undone unless it is confirmed within a time.
func (c *Client) CreateNetworkFor(ctx context.Context, doc *hcn.HostComputeNetwork, within time.Duration) (*api.Tentative, error) {
	d := *doc
	version2(&d.SchemaVersion)
	made := new(api.Tentative)
	if err := c.call(ctx, post("/v1/networks", nil, api.TentativeNetwork{Network: d, ConfirmWithin: within.String()}), made); err != nil {
		return nil, err
	}
	return made, nil
}

// attaching marks a change that may attach an endpoint, see ConfirmWithin.
func attaching(r request) request {
	r.attaches = true
	return r
}

// Unconfirmed lists what waits to be confirmed.
func (c *Client) Unconfirmed(ctx context.Context) ([]api.Unconfirmed, error) {
	var list []api.Unconfirmed
	err := c.call(ctx, get("/v1/confirmations", nil), &list)
	return list, err
}

// Confirm keeps what waits for it, by the name or GUID of the network, the endpoint or its container.
func (c *Client) Confirm(ctx context.Context, ref string) error {
	return c.call(ctx, post("/v1/confirmations/"+segment(ref), nil, nil), nil)
}
