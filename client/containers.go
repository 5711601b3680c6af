package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// A container goes by its ID, a unique beginning of it, or its name.

func container(ref, verb string) string {
	return "/v1/containers/" + segment(ref) + verb
}

// segment makes one segment of a path. A dot or two would be taken for a way up, and nothing for no segment at all.
func segment(s string) string {
	switch s {
	case "":
		return "%20"
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	return url.PathEscape(s)
}

// CreateContainer makes a container; it does not start it.
func (c *Client) CreateContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error) {
	var made api.ContainerCreated
	err := c.call(ctx, post("/v1/containers", nil, spec), &made)
	return made, err
}

// RunContainer makes a container and starts it. One that does not start is there all the same, unless it has AutoRemove.
func (c *Client) RunContainer(ctx context.Context, spec api.ContainerSpec) (api.ContainerCreated, error) {
	var made api.ContainerCreated
	err := c.call(ctx, post("/v1/containers", url.Values{"start": {"true"}}, spec), &made)
	return made, err
}

// Containers lists all containers.
func (c *Client) Containers(ctx context.Context) ([]api.Container, error) {
	var l []api.Container
	err := c.call(ctx, get("/v1/containers", nil), &l)
	return l, err
}

// Container shows a container.
func (c *Client) Container(ctx context.Context, ref string) (api.Container, error) {
	var one api.Container
	err := c.call(ctx, get(container(ref, ""), nil), &one)
	return one, err
}

// StartContainer starts a container.
func (c *Client) StartContainer(ctx context.Context, ref string) error {
	return c.call(ctx, attaching(post(container(ref, "/start"), nil, nil)), nil)
}

// StopContainer stops a container and returns when it has.
func (c *Client) StopContainer(ctx context.Context, ref string, how api.StopRequest) error {
	return c.call(ctx, post(container(ref, "/stop"), nil, how), nil)
}

// RestartContainer stops a container and starts it again.
func (c *Client) RestartContainer(ctx context.Context, ref string, how api.StopRequest) error {
	return c.call(ctx, post(container(ref, "/restart"), nil, how), nil)
}

// IsolateContainer changes a container's isolation; one that runs is stopped and started again.
func (c *Client) IsolateContainer(ctx context.Context, ref string, r api.IsolationRequest) (api.IsolationChange, error) {
	var change api.IsolationChange
	err := c.call(ctx, post(container(ref, "/isolation"), nil, r), &change)
	return change, err
}

// KillContainer sends a signal; "" is SIGKILL.
func (c *Client) KillContainer(ctx context.Context, ref, signal string) error {
	v := url.Values{}
	if signal != "" {
		v.Set("signal", signal)
	}
	return c.call(ctx, post(container(ref, "/kill"), v, nil), nil)
}

// PauseContainer freezes a container's processes.
func (c *Client) PauseContainer(ctx context.Context, ref string) error {
	return c.call(ctx, post(container(ref, "/pause"), nil, nil), nil)
}

// UnpauseContainer lets a paused container go on.
func (c *Client) UnpauseContainer(ctx context.Context, ref string) error {
	return c.call(ctx, post(container(ref, "/unpause"), nil, nil), nil)
}

// RemoveContainer removes a container, with force also one that runs.
func (c *Client) RemoveContainer(ctx context.Context, ref string, force bool) error {
	v := url.Values{}
	if force {
		v.Set("force", "true")
	}
	return c.call(ctx, remove(container(ref, ""), v), nil)
}

// WaitContainer waits until a container does not run ("" or "not-running"), or is gone ("removed").
func (c *Client) WaitContainer(ctx context.Context, ref, condition string) (api.WaitResult, error) {
	v := url.Values{}
	if condition != "" {
		v.Set("condition", condition)
	}
	var res api.WaitResult
	err := c.call(ctx, post(container(ref, "/wait"), v, nil), &res)
	return res, err
}

// ContainerLogs gives each line to a function, which ends the reading with an error.
func (c *Client) ContainerLogs(ctx context.Context, ref string, o api.LogOptions, each func(api.LogLine) error) error {
	v := url.Values{
		"follow": {strconv.FormatBool(o.Follow)}, "tail": {strconv.Itoa(o.Tail)},
		"stdout": {strconv.FormatBool(o.Stdout)}, "stderr": {strconv.FormatBool(o.Stderr)},
	}
	for name, t := range map[string]time.Time{"since": o.Since, "until": o.Until} {
		if !t.IsZero() {
			v.Set(name, t.Format(time.RFC3339Nano))
		}
	}
	return readLines(ctx, c, get(container(ref, "/logs"), v), each)
}

// ContainerStats shows what a container uses.
func (c *Client) ContainerStats(ctx context.Context, ref string) (api.Stats, error) {
	var s api.Stats
	err := c.call(ctx, get(container(ref, "/stats"), nil), &s)
	return s, err
}

// StreamStats gives what a container uses to a function each second, until it fails or ctx ends.
func (c *Client) StreamStats(ctx context.Context, ref string, each func(api.Stats) error) error {
	return readLines(ctx, c, get(container(ref, "/stats"), url.Values{"stream": {"true"}}), each)
}

// PublishPorts publishes ports of a container and says how.
func (c *Client) PublishPorts(ctx context.Context, ref string, ports []api.PublishedPort) ([]string, error) {
	var got []string
	err := c.call(ctx, post(container(ref, "/publish"), nil, ports), &got)
	return got, err
}

// UnpublishPorts takes published ports back.
func (c *Client) UnpublishPorts(ctx context.Context, ref string, ports []api.PublishedPort) error {
	return c.call(ctx, request{method: http.MethodDelete, path: container(ref, "/publish"), body: ports}, nil)
}

// ConnectContainer connects a container to a further network.
func (c *Client) ConnectContainer(ctx context.Context, ref string, to api.NetworkAttachment) error {
	return c.call(ctx, attaching(post(container(ref, "/networks"), nil, to)), nil)
}

// DisconnectContainer takes a container off a network, by the network's name or GUID.
func (c *Client) DisconnectContainer(ctx context.Context, ref, network string) error {
	return c.call(ctx, remove(container(ref, "/networks/"+segment(network)), nil), nil)
}
