package client

import (
	"context"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// LoadBalancers shows all load balancers.
func (c *Client) LoadBalancers(ctx context.Context) ([]hcn.HostComputeLoadBalancer, error) {
	return all[hcn.HostComputeLoadBalancer](ctx, c, "loadbalancers")
}

// EnumerateLoadBalancers lists the load balancers that a query selects.
func (c *Client) EnumerateLoadBalancers(ctx context.Context, q hcn.HostComputeQuery) ([]hcn.GUID, error) {
	return c.enumerate(ctx, "loadbalancers", q)
}

// LoadBalancer shows a load balancer.
func (c *Client) LoadBalancer(ctx context.Context, id hcn.GUID) (*hcn.HostComputeLoadBalancer, error) {
	return query[hcn.HostComputeLoadBalancer](ctx, c, "loadbalancers", id)
}

// CreateLoadBalancer makes a load balancer.
func (c *Client) CreateLoadBalancer(ctx context.Context, doc *hcn.HostComputeLoadBalancer) (*hcn.HostComputeLoadBalancer, error) {
	d := *doc
	version2(&d.SchemaVersion)
	return create(ctx, c, "loadbalancers", d)
}

// ModifyLoadBalancer gives a load balancer another document.
func (c *Client) ModifyLoadBalancer(ctx context.Context, id hcn.GUID, doc *hcn.HostComputeLoadBalancer) error {
	d := *doc
	version2(&d.SchemaVersion)
	return c.modify(ctx, "loadbalancers", id, d)
}

// DeleteLoadBalancer deletes a load balancer.
func (c *Client) DeleteLoadBalancer(ctx context.Context, id hcn.GUID) error {
	return c.delete(ctx, "loadbalancers", id)
}
