package client

import (
	"context"
	"io"
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

// NICs lists the links of the host that may carry networks.
func (c *Client) NICs(ctx context.Context) ([]api.NIC, error) {
	var l []api.NIC
	err := c.call(ctx, get("/v1/nics", nil), &l)
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

// Flows gives lines about flows to a function, which ends the reading with an error.
func (c *Client) Flows(ctx context.Context, o api.FlowOptions, each func(api.FlowLine) error) error {
	v := url.Values{"endpoint": o.Endpoints, "recent": {strconv.FormatBool(o.Recent)}, "follow": {strconv.FormatBool(o.Follow)}}
	for name, text := range map[string]string{"protocol": o.Protocol, "sort": o.Sort} {
		if text != "" {
			v.Set(name, text)
		}
	}
	for name, n := range map[string]int{"port": int(o.Port), "limit": o.Limit} {
		if n != 0 {
			v.Set(name, strconv.Itoa(n))
		}
	}
	return readLines(ctx, c, get("/v1/flows", v), each)
}

// Explain says what becomes of a packet.
func (c *Client) Explain(ctx context.Context, o api.ExplainOptions) (api.Explanation, error) {
	v := url.Values{"from": {o.From}, "to": {o.To}, "probe": {strconv.FormatBool(o.Probe)}}
	if o.Protocol != "" {
		v.Set("protocol", o.Protocol)
	}
	for name, n := range map[string]int{"port": int(o.Port), "family": o.Family} {
		if n != 0 {
			v.Set(name, strconv.Itoa(n))
		}
	}
	var x api.Explanation
	err := c.call(ctx, get("/v1/explain", v), &x)
	return x, err
}

// Rules lists the rules of a container's or an endpoint's ports, as the switch evaluates them.
func (c *Client) Rules(ctx context.Context, ref string) ([]api.EndpointRules, error) {
	var l []api.EndpointRules
	err := c.call(ctx, get("/v1/rules/"+segment(ref), nil), &l)
	return l, err
}

// Capture gives a pcapng file that grows until the capture ends. Closing it ends the capture.
func (c *Client) Capture(ctx context.Context, o api.CaptureOptions) (io.ReadCloser, error) {
	v := url.Values{"host": o.Hosts}
	for name, text := range map[string]string{"target": o.Target, "point": o.Point, "protocol": o.Protocol} {
		if text != "" {
			v.Set(name, text)
		}
	}
	for name, n := range map[string]int{"port": int(o.Port), "packets": o.Packets, "snaplen": o.Snaplen} {
		if n != 0 {
			v.Set(name, strconv.Itoa(n))
		}
	}
	if o.Duration != 0 {
		v.Set("duration", o.Duration.String())
	}
	res, err := c.send(ctx, get("/v1/capture", v))
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}
