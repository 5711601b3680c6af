package hcn

import "slices"

// remotePolicies are those of a remote endpoint: where it is, and what it is called.
var remotePolicies = []EndpointPolicyType{ProviderAddress, Aliases, L2Driver, EncapOverhead}

// ByHost tells that an endpoint is neither on this network nor on another host's part of it: its addresses are in none of the network's
// subnets, and the network's endpoints reach them by the host, or it is a machine of the network's LAN, or behind it. It is there to be a
// back end of load balancers.
func (e *HostComputeEndpoint) ByHost(n *HostComputeNetwork) bool {
	if e.Flags&RemoteEndpoint == 0 || len(e.IpConfigurations) == 0 || !n.ByHost() {
		return false
	}
	for _, c := range e.IpConfigurations {
		if a, err := parseAddr(c.IpAddress); err != nil || !c.IpSubnetId.IsZero() || n.SubnetOf(a) != nil && n.Type != L2Bridge && n.Type != Transparent {
			return false
		}
	}
	return true
}

// ByHost tells that endpoints of the network reach what is outside of it by the host, or are on a LAN.
func (n *HostComputeNetwork) ByHost() bool {
	return n.Type == NAT || n.Type == L2Bridge || n.Type == Transparent && !n.Macvlan() || n.HasHostRoute()
}

// HasHostRoute tells that the host is to reach the endpoints of an overlay network.
func (n *HostComputeNetwork) HasHostRoute() bool {
	return n.Type == Overlay && slices.ContainsFunc(n.Policies, func(p NetworkPolicy) bool { return p.Type == HostRoute })
}

// validateByHost refuses what means nothing for an endpoint that the host reaches.
func (e *HostComputeEndpoint) validateByHost() error {
	for i, p := range e.Policies {
		if p.Type != ProviderAddress && p.Type != L2Driver && p.Type != EncapOverhead {
			return invalid(ErrInvalidRemoteEndpointOperation, policyPath(i), "%s has no effect on an endpoint that is reached by the host: leave it out", p.Type)
		}
	}
	return nil
}

// validateRemote holds an endpoint against what it is: here, on another host, or reached by this one.
func (e *HostComputeEndpoint) validateRemote(n *HostComputeNetwork) error {
	if e.ByHost(n) {
		return e.validateByHost()
	}
	if n.Type == NAT && e.Flags&RemoteEndpoint != 0 {
		return invalid(ErrRequestUnsupported, "Flags", "RemoteEndpoint on network %s of type NAT, which no other host has a part of: leave the flag out, or give only addresses that are in none of its subnets", n.label())
	}
	if n.Type != Overlay {
		return nil
	}
	at := slices.IndexFunc(e.Policies, func(p EndpointPolicy) bool { return p.Type == ProviderAddress })
	if e.Flags&RemoteEndpoint == 0 {
		if at >= 0 {
			if err := n.validateProvider(e.Policies[at], policyPath(at)); err != nil {
				return err
			}
		}
		return e.validateHostRoute(n)
	}
	if n.Encrypted() {
		return invalid(ErrRequestUnsupported, "Flags", "RemoteEndpoint: network %s is encrypted, and hosts are reached by the keys that the cluster tells: "+
			"make the endpoint on its host", n.label())
	}
	switch {
	case at < 0:
		return invalid(ErrInvalidEndpoint, "Policies", `a remote endpoint on an overlay needs {"Type":"ProviderAddress","Settings":{"ProviderAddress":ip}}: the address of its host`)
	case e.MacAddress == "":
		return invalid(ErrInvalidEndpoint, "MacAddress", "a remote endpoint on an overlay needs the MAC that it has on its host")
	}
	for i, p := range e.Policies {
		if !slices.Contains(remotePolicies, p.Type) {
			return invalid(ErrInvalidRemoteEndpointOperation, policyPath(i), "%s has no effect on an endpoint of another host: set it there", p.Type)
		}
	}
	return nil
}

// followProvider gives a ProviderAddress that the endpoint e had already the address that the network has by now: it names this host,
// whose address may have changed since.
func (e *HostComputeEndpoint) followProvider(had *HostComputeEndpoint, n *HostComputeNetwork) {
	own, err := NetworkSettingsOf[ProviderAddressPolicySetting](n.Policies)
	if err != nil || len(own) == 0 || n.Type != Overlay || e.Flags&RemoteEndpoint != 0 {
		return
	}
	for i, p := range e.Policies {
		if p.Type == ProviderAddress && slices.ContainsFunc(had.Policies, func(o EndpointPolicy) bool { return o.Type == p.Type && string(o.Settings) == string(p.Settings) }) {
			e.Policies[i] = NewEndpointPolicy(ProviderAddress, own[0])
		}
	}
}

// validateProvider: plugins for Windows tell each endpoint the host's own address, which is taken as long as it is that.
func (n *HostComputeNetwork) validateProvider(p EndpointPolicy, path string) error {
	own, err := NetworkSettingsOf[ProviderAddressPolicySetting](n.Policies)
	if err != nil {
		return err
	}
	v, err := p.Decode()
	if err != nil {
		return err
	}
	s, _ := v.(ProviderAddressPolicySetting)
	a, _ := parseAddr(s.ProviderAddress)
	if slices.ContainsFunc(own, func(o ProviderAddressPolicySetting) bool {
		b, err := parseAddr(o.ProviderAddress)
		return err == nil && a == b
	}) {
		return nil
	}
	return invalid(ErrInvalidPolicy, path, "the endpoint is on this host, and its network says by which address that is reached: "+
		"give that one, leave the policy out, or set the flag RemoteEndpoint")
}

// validateHostRoute: the way to the outside, and from there, is by the host.
func (e *HostComputeEndpoint) validateHostRoute(n *HostComputeNetwork) error {
	if n.HasHostRoute() {
		return nil
	}
	for i, p := range e.Policies {
		code := map[EndpointPolicyType]ErrorCode{OutBoundNAT: ErrInvalidPolicy, PortMapping: ErrMappingNotSupported}[p.Type]
		if code != 0 {
			return invalid(code, policyPath(i), `%s on an overlay goes by the host, to which network %s has no way: add the policy {"Type":"HostRoute","Settings":{}} to it`, p.Type, n.label())
		}
	}
	return nil
}
