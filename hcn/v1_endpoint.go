package hcn

import "encoding/json"

// EndpointFromV1 translates an endpoint to version 2. A network that is given by name alone is the caller's to look up.
func EndpointFromV1(v *HNSEndpoint) (*HostComputeEndpoint, error) {
	e := &HostComputeEndpoint{
		ID: v.ID, Name: v.Name, HostComputeNetwork: v.VirtualNetwork, MacAddress: v.MacAddress, State: v.State, SchemaVersion: V2(),
		Dns: Dns{Domain: v.DNSDomain, Search: splitList(v.DNSSuffix), ServerList: splitList(v.DNSServerList)},
	}
	if v.Namespace != nil {
		e.HostComputeNamespace = v.Namespace.ID
	}
	for _, f := range []struct {
		on   bool
		flag EndpointFlags
	}{
		{v.IsRemoteEndpoint, RemoteEndpoint},
		{v.DisableICC, DisableInterComputeCommunication},
		{v.EnableLowMetric, EnableLowInterfaceMetric},
	} {
		if f.on {
			e.Flags |= f.flag
		}
	}
	if v.IPAddress != "" {
		e.IpConfigurations = append(e.IpConfigurations, IpConfig{IpAddress: v.IPAddress, PrefixLength: v.PrefixLength})
	}
	if v.IPv6Address != "" {
		e.IpConfigurations = append(e.IpConfigurations, IpConfig{IpAddress: v.IPv6Address, PrefixLength: v.IPv6PrefixLength})
	}
	if v.GatewayAddress != "" {
		e.Routes = append(e.Routes, Route{NextHop: v.GatewayAddress, DestinationPrefix: "0.0.0.0/0"})
	}
	if v.GatewayAddressV6 != "" {
		e.Routes = append(e.Routes, Route{NextHop: v.GatewayAddressV6, DestinationPrefix: "::/0"})
	}
	for i, raw := range v.Policies {
		p, err := EndpointPolicyFromV1(raw)
		if err != nil {
			return nil, prefixError(policyPath(i), err)
		}
		e.Policies = append(e.Policies, p)
	}
	if v.EncapOverhead != 0 {
		e.Policies = append(e.Policies, NewEndpointPolicy(EncapOverhead, EncapOverheadPolicySetting{v.EncapOverhead}))
	}
	return e, nil
}

// EndpointToV1 translates an endpoint to version 1. The network gives its name and whether its resolver answers; it may be nil.
// SharedContainers is the caller's to fill in, from the namespace.
func EndpointToV1(e *HostComputeEndpoint, n *HostComputeNetwork) *HNSEndpoint {
	v := &HNSEndpoint{
		ID: e.ID, Name: e.Name, VirtualNetwork: e.HostComputeNetwork, MacAddress: e.MacAddress, State: e.State,
		DNSDomain: e.Dns.Domain, DNSSuffix: joinList(e.Dns.Search), DNSServerList: joinList(e.Dns.ServerList),
		IsRemoteEndpoint: e.Flags&RemoteEndpoint != 0,
		DisableICC:       e.Flags&DisableInterComputeCommunication != 0,
		EnableLowMetric:  e.Flags&EnableLowInterfaceMetric != 0,
	}
	if n != nil {
		v.VirtualNetworkName = n.Name
		v.EnableInternalDNS = n.Flags&EnableDnsProxy != 0
	}
	if !e.HostComputeNamespace.IsZero() {
		v.Namespace = &HNSNamespace{ID: e.HostComputeNamespace}
	}
	for _, c := range e.IpConfigurations {
		switch family(c) {
		case 6:
			if v.IPv6Address == "" {
				v.IPv6Address, v.IPv6PrefixLength = c.IpAddress, c.PrefixLength
			}
		default:
			if v.IPAddress == "" {
				v.IPAddress, v.PrefixLength = c.IpAddress, c.PrefixLength
			}
		}
	}
	for _, r := range e.Routes {
		dst, via, err := r.Parse()
		switch {
		case err != nil || dst.Bits() != 0:
		case via.Is4() && v.GatewayAddress == "":
			v.GatewayAddress = via.String()
		case via.Is6() && v.GatewayAddressV6 == "":
			v.GatewayAddressV6 = via.String()
		}
	}
	for _, p := range e.Policies {
		if s, err := p.Decode(); err == nil && p.Type == EncapOverhead {
			v.EncapOverhead = s.(EncapOverheadPolicySetting).Overhead
			continue
		}
		v.Policies = append(v.Policies, EndpointPolicyToV1(p))
	}
	return v
}

// UpdatePoliciesV1 is what a v1 update makes of a list: the policies given replace those of the same types, and an empty list
// clears ACLs only (Windows HNS behaviour).
func UpdatePoliciesV1(current []EndpointPolicy, given []json.RawMessage) ([]EndpointPolicy, error) {
	if len(given) == 0 {
		return ModifyEndpointPolicies(current, RequestTypeReset, []EndpointPolicy{{Type: ACL}})
	}
	list := make([]EndpointPolicy, len(given))
	for i, raw := range given {
		p, err := EndpointPolicyFromV1(raw)
		if err != nil {
			return nil, prefixError(policyPath(i), err)
		}
		list[i] = p
	}
	return ModifyEndpointPolicies(current, RequestTypeUpdate, list)
}
