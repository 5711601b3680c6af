package client

import (
	"context"
	"net/url"
	"strconv"

	"github.com/bulkhead-net/bulkhead/api"
)

// Addresses is the report of who has which address.
func (c *Client) Addresses(ctx context.Context) ([]api.Address, error) {
	var l []api.Address
	err := c.call(ctx, get("/v1/addresses", nil), &l)
	return l, err
}

// Published lists published ports and who can reach them.
func (c *Client) Published(ctx context.Context) ([]api.Published, error) {
	var l []api.Published
	err := c.call(ctx, get("/v1/published", nil), &l)
	return l, err
}

// Doctor checks the host and the daemon.
func (c *Client) Doctor(ctx context.Context) ([]api.Check, error) {
	var l []api.Check
	err := c.call(ctx, get("/v1/doctor", nil), &l)
	return l, err
}

// Info says what the daemon is.
func (c *Client) Info(ctx context.Context) (api.Info, error) {
	var info api.Info
	err := c.call(ctx, get("/v1/info", nil), &info)
	return info, err
}

// Drops gives lines about dropped frames to a function, which ends the reading with an error.
func (c *Client) Drops(ctx context.Context, o api.DropOptions, each func(api.DropLine) error) error {
	v := url.Values{"endpoint": o.Endpoints, "reason": o.Reasons, "tail": {strconv.Itoa(o.Tail)}, "follow": {strconv.FormatBool(o.Follow)}}
	return readLines(ctx, c, get("/v1/drops", v), each)
}
