package hcn

import "slices"

func (h *Health) clone() *Health {
	if h == nil {
		return nil
	}
	c := Health{Data: slices.Clone(h.Data)}
	if h.Extra != nil {
		x := *h.Extra
		x.Resources = slices.Clone(x.Resources)
		x.SharedContainers = slices.Clone(x.SharedContainers)
		c.Extra = &x
	}
	return &c
}

func (d Dns) clone() Dns {
	d.Search = slices.Clone(d.Search)
	d.ServerList = slices.Clone(d.ServerList)
	d.Options = slices.Clone(d.Options)
	return d
}

// cloneEach copies a list and then each entry's own references.
func cloneEach[T any](list []T, inner func(*T)) []T {
	c := slices.Clone(list)
	for i := range c {
		inner(&c[i])
	}
	return c
}

func clonePolicies(list []EndpointPolicy) []EndpointPolicy {
	return cloneEach(list, func(p *EndpointPolicy) { p.Settings = slices.Clone(p.Settings) })
}

func cloneNetworkPolicies(list []NetworkPolicy) []NetworkPolicy {
	return cloneEach(list, func(p *NetworkPolicy) { p.Settings = slices.Clone(p.Settings) })
}

func cloneSubnets(list []Subnet) []Subnet {
	return cloneEach(list, func(s *Subnet) {
		s.Policies = cloneEach(s.Policies, func(p *SubnetPolicy) { p.Settings = slices.Clone(p.Settings) })
		s.Routes = slices.Clone(s.Routes)
		s.IpSubnets = slices.Clone(s.IpSubnets)
	})
}

// Clone makes an independent copy.
func (n *HostComputeNetwork) Clone() *HostComputeNetwork {
	if n == nil {
		return nil
	}
	c := *n
	c.Policies = cloneNetworkPolicies(n.Policies)
	c.MacPool.Ranges = slices.Clone(n.MacPool.Ranges)
	c.Dns = n.Dns.clone()
	c.Ipams = cloneEach(n.Ipams, func(i *Ipam) { i.Subnets = cloneSubnets(i.Subnets) })
	c.AdditionalParams = slices.Clone(n.AdditionalParams)
	c.Health = n.Health.clone()
	return &c
}

// Clone makes an independent copy.
func (e *HostComputeEndpoint) Clone() *HostComputeEndpoint {
	if e == nil {
		return nil
	}
	c := *e
	c.Policies = clonePolicies(e.Policies)
	c.IpConfigurations = slices.Clone(e.IpConfigurations)
	c.Dns = e.Dns.clone()
	c.Routes = slices.Clone(e.Routes)
	c.AdditionalParams = slices.Clone(e.AdditionalParams)
	c.Health = e.Health.clone()
	return &c
}

// Clone makes an independent copy.
func (n *HostComputeNamespace) Clone() *HostComputeNamespace {
	if n == nil {
		return nil
	}
	c := *n
	c.Resources = slices.Clone(n.Resources)
	c.AdditionalParams = slices.Clone(n.AdditionalParams)
	c.Health = n.Health.clone()
	return &c
}
