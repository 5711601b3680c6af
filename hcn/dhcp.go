package hcn

import "slices"

// Dhcp tells that the network's endpoints get their addresses from its LAN, by DHCP and router advertisements.
func (n *HostComputeNetwork) Dhcp() bool {
	return slices.ContainsFunc(n.Ipams, func(i Ipam) bool { return i.Type == IpamDhcp })
}

// Leased tells that an endpoint gets its addresses from the LAN: it says so itself, or its network does and the endpoint
// names none.
func (e *HostComputeEndpoint) Leased(n *HostComputeNetwork) bool {
	return e.Flags&RemoteEndpoint == 0 && (e.Flags&EnableDhcp != 0 || n.Dhcp() && len(e.IpConfigurations) == 0)
}

// checkDhcp refuses what contradicts addresses that others give out.
func (n *HostComputeNetwork) checkDhcp() error {
	if !n.Dhcp() {
		return nil
	}
	vlan, placed := uint16(0), false
	for i, ipam := range n.Ipams {
		if ipam.Type != IpamDhcp {
			return invalid(ErrRequestUnsupported, indexed("Ipams", i)+".Type", "a network with addresses of both kinds is not supported by this version: use Dhcp for all of them, "+
				"and name the address of an endpoint that is to have a fixed one")
		}
	}
	for path, s := range n.subnets() {
		if len(s.IpSubnets) > 0 {
			return invalid(ErrRequestUnsupported, path+".IpSubnets", "the LAN's server says which addresses are given out: leave it out")
		}
		if placed && s.VLAN() != vlan {
			return invalid(ErrRequestUnsupported, path+".Policies", "the subnets of a network with addresses by DHCP are in one VLAN: an endpoint has none of their addresses before it asks")
		}
		vlan, placed = s.VLAN(), true
	}
	for i, p := range n.Policies {
		if p.Type == Exclusions {
			return invalid(ErrRequestUnsupported, policyPath(i), "the LAN's server says which addresses are given out: leave Exclusions out, and exclude them there")
		}
	}
	return nil
}

// checkDhcpOn refuses the flag EnableDhcp where nobody can be asked, and beside addresses.
func (e *HostComputeEndpoint) checkDhcpOn(t NetworkType) error {
	switch {
	case e.Flags&EnableDhcp == 0:
		return nil
	case t != Transparent:
		return unsupported("Flags", EnableDhcp.String()+" on a network of type "+t.String())
	case e.Flags&RemoteEndpoint != 0:
		return invalid(ErrInvalidRemoteEndpointOperation, "Flags", "a remote endpoint has its addresses on its own host: leave EnableDhcp out")
	case len(e.IpConfigurations) > 0:
		return invalid(ErrInvalidEndpoint, "IpConfigurations", "they contradict the flag EnableDhcp: leave one of the two out")
	}
	return nil
}
