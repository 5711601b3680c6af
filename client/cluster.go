package client

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// Cluster shows this host's part in a cluster, and the cluster.
func (c *Client) Cluster(ctx context.Context) (api.Cluster, error) {
	var cl api.Cluster
	err := c.call(ctx, get("/v1/cluster", nil), &cl)
	return cl, err
}

// InitCluster begins a cluster.
func (c *Client) InitCluster(ctx context.Context, r api.ClusterInit) (api.ClusterJoined, error) {
	var j api.ClusterJoined
	err := c.call(ctx, post("/v1/cluster/init", nil, r), &j)
	return j, err
}

// JoinCluster gets the host into a cluster.
func (c *Client) JoinCluster(ctx context.Context, r api.ClusterJoin) (api.ClusterJoined, error) {
	var j api.ClusterJoined
	err := c.call(ctx, post("/v1/cluster/join", nil, r), &j)
	return j, err
}

// LeaveCluster takes the host out of its cluster.
func (c *Client) LeaveCluster(ctx context.Context, force bool) error {
	return c.call(ctx, post("/v1/cluster/leave", nil, api.ClusterLeave{Force: force}), nil)
}

// ClusterToken makes a token that lets hosts join.
func (c *Client) ClusterToken(ctx context.Context, valid time.Duration) (string, error) {
	r := api.ClusterTokenRequest{}
	if valid != 0 {
		r.ValidFor = valid.String()
	}
	var t api.ClusterToken
	err := c.call(ctx, post("/v1/cluster/tokens", nil, r), &t)
	return t.Token, err
}

// RotateClusterKeys has all hosts change the keys that they encrypt with.
func (c *Client) RotateClusterKeys(ctx context.Context) (api.ClusterKeys, error) {
	var k api.ClusterKeys
	err := c.call(ctx, post("/v1/cluster/keys", nil, nil), &k)
	return k, err
}

// ForgetClusterHost removes a host that will not come back, by its name or ID.
func (c *Client) ForgetClusterHost(ctx context.Context, ref string, force bool) error {
	return c.call(ctx, remove("/v1/cluster/hosts/"+segment(ref), url.Values{"force": {strconv.FormatBool(force)}}), nil)
}

// CheckCluster has hosts send each other packets like those of tunnels: this one and those that are named, or all.
func (c *Client) CheckCluster(ctx context.Context, hosts ...string) (api.ClusterCheck, error) {
	var res api.ClusterCheck
	err := c.call(ctx, post("/v1/cluster/check", nil, api.ClusterCheckRequest{Hosts: hosts}), &res)
	return res, err
}

// CreateClusterNetwork makes a network on all hosts of the cluster.
func (c *Client) CreateClusterNetwork(ctx context.Context, doc *hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error) {
	d := *doc
	version2(&d.SchemaVersion)
	made := new(hcn.HostComputeNetwork)
	if err := c.call(ctx, post("/v1/cluster/networks", nil, d), made); err != nil {
		return nil, err
	}
	return made, nil
}

// DeleteClusterNetwork deletes a network on all hosts; with force also while there are endpoints on it.
func (c *Client) DeleteClusterNetwork(ctx context.Context, id hcn.GUID, force bool) error {
	return c.call(ctx, remove("/v1/cluster/networks/"+segment(string(id)), url.Values{"force": {strconv.FormatBool(force)}}), nil)
}
