package client

import (
	"context"

	"github.com/bulkhead-net/bulkhead/api"
)

// Volumes lists the named volumes.
func (c *Client) Volumes(ctx context.Context) ([]api.Volume, error) {
	var l []api.Volume
	err := c.call(ctx, get("/v1/volumes", nil), &l)
	return l, err
}

// RemoveVolume removes a named volume that no container mounts, with its content.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	return c.call(ctx, remove("/v1/volumes/"+segment(name), nil), nil)
}
