package hcn

import "slices"

// This file is the one place that says which parts of the schema have no effect yet. A document that asks for such a part is
// decoded and checked like any other and then refused, because a setting accepted without effect is a defect: somebody would
// believe in a packet filter that is not there. Who implements a part adds it here, and nothing else has to change.

// ClaimedVersion is the one of the service that clients derive features from: the highest whose features are all there (ADR 9).
func ClaimedVersion() Version { return Version{Major: 15, Minor: 0} }

// Claim is what the service says of itself.
type Claim struct {
	Version
	// Features are those of later versions that are there as well. Clients of Windows do not know this member; that of package hcsshim/hcn does.
	Features []string `json:",omitempty"`
}

// FeatureModifyLoadbalancer is that load balancers change in place.
const FeatureModifyLoadbalancer = "ModifyLoadbalancer"

// ClaimOf is the claim of a version, with what is there besides.
func ClaimOf(v Version) Claim {
	return Claim{Version: v, Features: []string{FeatureModifyLoadbalancer}}
}

// supportedNetworkTypes are the types that can be created.
var supportedNetworkTypes = []NetworkType{NAT, Internal, Private, Transparent, L2Bridge, L2Tunnel, Overlay}

// supportedNetworkFlags are the flags that are enforced, by network type. IsolateVSwitch asks for a switch that no other
// network shares, and DisableHostPort on a Private network for a switch without host port: both are always so.
var supportedNetworkFlags = map[NetworkType]NetworkFlags{
	NAT:      commonNetworkFlags | EnableDnsProxy,
	Internal: commonNetworkFlags | EnableDnsProxy,
	Private:  commonNetworkFlags | DisableHostPort,
	// Its switch has no host port, and so none to disable: the host keeps its NIC.
	Transparent: commonNetworkFlags,
	L2Bridge:    commonNetworkFlags,
	L2Tunnel:    commonNetworkFlags,
	// Its switch is its own, and its resolver always answers.
	Overlay: commonNetworkFlags | EnableDnsProxy,
}

// Types that have much in common.
var (
	onLAN      = []NetworkType{Transparent, L2Bridge, L2Tunnel}
	withUplink = append([]NetworkType{Overlay}, onLAN...)
	everywhere = append([]NetworkType{NAT, Internal, Private}, withUplink...)
)

const commonNetworkFlags = EnableNonPersistent | EnablePersistent | IsolateVSwitch | DisableSharing

// supportedSubnetFlags are the flags of a subnet that are enforced. On a network with a host port the gateway is that port's
// address, so it cannot be given out there; without one nothing has to be reserved.
var supportedSubnetFlags = map[NetworkType]SubnetFlags{
	Private:     DoNotReserveGatewayAddress,
	Transparent: DoNotReserveGatewayAddress,
	L2Bridge:    DoNotReserveGatewayAddress,
	L2Tunnel:    DoNotReserveGatewayAddress,
}

// supportedIpSubnetFlags are the flags of an IpSubnet that are enforced.
const supportedIpSubnetFlags IpSubnetFlags = 0

// supportedEndpointFlags are the endpoint flags that are enforced; EnableDhcp as checkDhcpOn says,
// RemoteEndpoint where the host reaches them, or the LAN.
const supportedEndpointFlags = RemoteEndpoint | EnableLowInterfaceMetric | DisableInterComputeCommunication | OverrideDNSServerOrder | EnableDhcp

// supportedEndpointPolicies are the endpoint policies that are enforced, each with the network types that do it. L2Driver is
// historical and has nothing to enforce.
var supportedEndpointPolicies = map[EndpointPolicyType][]NetworkType{
	PortMapping:         {NAT, L2Bridge, L2Tunnel, Overlay}, // but for loopback on the LAN, see checkSupportOn, and see validateHostRoute
	OutBoundNAT:         {NAT, L2Bridge, L2Tunnel, Overlay}, // but for what unsupportedSettings names
	ProviderAddress:     {Overlay},                          // of remote endpoints, or what is so anyway
	SDNRoute:            {L2Bridge, L2Tunnel, Overlay},      // but for what its validateOn names
	ACL:                 everywhere,
	TierAcl:             everywhere,
	QOS:                 everywhere,
	IncomingQOS:         everywhere,
	PortName:            everywhere,
	EncapOverhead:       everywhere,
	InterfaceParameters: everywhere,
	L4Proxy:             {NAT, Internal},
	L4WFPPROXY:          {NAT, Internal, Transparent, L2Bridge, L2Tunnel, Overlay},
	EndpointVLAN:        onLAN,
	L2Driver:            everywhere,
	InterfaceName:       everywhere,
	GatewayPriority:     everywhere,
	Aliases:             everywhere,
}

// supportedNetworkPolicies are the network policies that are enforced. VSwitchExtension is kept for the clients that set it:
// there are no filtering extensions. LayerConstraint gets an answer of its own where switches are not shared, see checkSupport.
var supportedNetworkPolicies = map[NetworkPolicyType][]NetworkType{
	AutomaticDNS:               {NAT, Transparent, L2Bridge, L2Tunnel, Overlay}, // enabled only, see checkSupport: a closed network asks nobody outside
	NetAdapterName:             withUplink,
	NetworkInterfaceConstraint: withUplink,
	NetworkProviderAddress:     withUplink,
	DrMacAddress:               {Overlay},
	VxlanPort:                  {Overlay},
	RemoteSubnetRoute:          {Overlay},
	HostRoute:                  {Overlay},
	Multicast:                  {Overlay},
	NetworkEncryption:          {Overlay},
	SourceMacAddress:           {NAT, Internal, Transparent, L2Bridge, L2Tunnel}, // on a LAN that of the NIC alone, which the service checks
	NetworkACL:                 everywhere,
	NetworkL4Proxy:             {NAT, Internal},
	SetPolicy:                  everywhere,
	LayerConstraint:            everywhere,
	VSwitchExtension:           everywhere,
	Exclusions:                 everywhere,
	Macvlan:                    {Transparent},
}

// supportedSubnetPolicies are the subnet policies that are enforced.
var supportedSubnetPolicies = map[SubnetPolicyType][]NetworkType{VLAN: onLAN, VSID: {Overlay}}

// unsupportedSettings names the part of an enforced policy's settings that is not enforced, or is empty.
func unsupportedSettings(settings any) string {
	s, ok := settings.(OutboundNatPolicySetting)
	switch {
	case ok && s.MaxPortPoolUsage != 0:
		return "is not enforced with MaxPortPoolUsage: leave it out, endpoints take no ports out of a pool here, and none can use up another's"
	case ok && s.Flags&NatLocalRoutedVip != 0:
		return "is not enforced by this version with the flag LocalRoutedVip: leave it out, VirtualIP has to be an address of the host"
	}
	return ""
}

func unsupported(path, what string) error {
	return invalid(ErrRequestUnsupported, path, "%s is not enforced by this version: leave it out", what)
}

// checkSupport refuses what Validate found correct but nothing enforces.
func (n *HostComputeNetwork) checkSupport() error {
	if extra := n.Flags &^ supportedNetworkFlags[n.Type]; extra != 0 {
		return unsupported("Flags", extra.String()+" on a network of type "+n.Type.String())
	}
	for i, p := range n.Policies {
		if !slices.Contains(supportedNetworkPolicies[p.Type], n.Type) {
			return unsupported(policyPath(i), "policy "+string(p.Type)+" on a network of type "+n.Type.String())
		}
		if p.Type != LayerConstraint && p.Type != AutomaticDNS {
			continue // those with a condition alone are read again
		}
		settings, err := p.Decode()
		if err != nil {
			return err
		}
		if s, ok := settings.(LayerConstraintPolicySetting); ok && !slices.Contains(onLAN, n.Type) {
			return invalid(ErrLayerNotFound, policyPath(i)+".Settings.LayerId", "no switch has the ID %s that a network of type %s could share: "+
				"each has a switch of its own, leave the policy out", s.LayerId, n.Type)
		}
		if s, ok := settings.(AutomaticDNSPolicySetting); ok && !s.Enable {
			return unsupported(policyPath(i), "policy AutomaticDNS with Enable false, beside naming servers in Dns.ServerList,")
		}
	}
	if err := n.checkDhcp(); err != nil {
		return err
	}
	if err := n.checkMacvlan(); err != nil {
		return err
	}
	if err := n.checkEncrypted(); err != nil {
		return err
	}
	if n.Type == Transparent && len(n.AllSubnets()) == 0 && !n.Dhcp() {
		return invalid(ErrInvalidNetwork, "Ipams", "a Transparent network needs a subnet of its LAN, or addresses by DHCP: give the ipam one, or leave Ipams out for DHCP")
	}
	for path, s := range n.subnets() {
		if extra := s.Flags &^ supportedSubnetFlags[n.Type]; extra != 0 {
			return unsupported(path+".Flags", extra.String()+" on a network of type "+n.Type.String())
		}
		for i, p := range s.Policies {
			if !slices.Contains(supportedSubnetPolicies[p.Type], n.Type) {
				return unsupported(path+"."+policyPath(i), "policy "+string(p.Type)+" on a network of type "+n.Type.String())
			}
		}
		for i, b := range s.IpSubnets {
			if extra := b.Flags &^ supportedIpSubnetFlags; extra != 0 {
				return unsupported(indexed(path+".IpSubnets", i)+".Flags", extra.String())
			}
		}
	}
	return nil
}

// SwitchGUID is the identity of the network's switch: that of the NIC for those on a LAN, which share it, else the network's own.
func (n *HostComputeNetwork) SwitchGUID() GUID {
	if s, err := NetworkSettingsOf[NetAdapterNamePolicySetting](n.Policies); err == nil && len(s) > 0 && slices.Contains(onLAN, n.Type) && !n.Macvlan() {
		return SwitchOfNIC(s[0].NetworkAdapterName)
	}
	return n.ID
}

// checkTypeSupport comes before all else: which rules hold depends on the type.
func (n *HostComputeNetwork) checkTypeSupport() error {
	if slices.Contains(supportedNetworkTypes, n.Type) {
		return nil
	}
	return invalid(ErrInvalidNetworkType, "Type", "networks of type %s cannot be created by this version: use NAT, Internal, Private, Transparent, L2Bridge, L2Tunnel or Overlay", n.Type)
}

// checkSupport refuses what no network type enforces; checkSupportOn refuses what the endpoint's own type does not.
func (e *HostComputeEndpoint) checkSupport() error {
	if extra := e.Flags &^ supportedEndpointFlags; extra != 0 {
		return unsupported("Flags", extra.String())
	}
	for i, p := range e.Policies {
		if len(supportedEndpointPolicies[p.Type]) == 0 {
			return unsupported(policyPath(i), "policy "+string(p.Type))
		}
		if p.Type != OutBoundNAT {
			continue // rules, of which there may be thousands, have no such part
		}
		settings, err := p.Decode()
		if err != nil {
			return err
		}
		if why := unsupportedSettings(settings); why != "" {
			return invalid(ErrRequestUnsupported, policyPath(i), "policy %s %s", p.Type, why)
		}
	}
	return nil
}

func (e *HostComputeEndpoint) checkSupportOn(t NetworkType) error {
	if err := e.checkDhcpOn(t); err != nil {
		return err
	}
	if e.Flags&RemoteEndpoint != 0 && !slices.Contains([]NetworkType{NAT, Transparent, L2Bridge, Overlay}, t) {
		return unsupported("Flags", "RemoteEndpoint on a network of type "+t.String())
	}
	for i, p := range e.Policies {
		if slices.Contains(supportedEndpointPolicies[p.Type], t) {
			if err := checkLoopback(p, t, policyPath(i)); err != nil {
				return err
			}
			continue
		}
		if p.Type == PortMapping {
			return invalid(ErrMappingNotSupported, policyPath(i), "a network of type %s does not publish ports: use one of type NAT, L2Bridge or L2Tunnel, or an Overlay with the policy HostRoute", t)
		}
		return unsupported(policyPath(i), "policy "+string(p.Type)+" on a network of type "+t.String())
	}
	return nil
}

// checkLoopback refuses what a container with an address of the LAN cannot be given: what comes from the host's loopback would have to
// be answered there by way of the NIC.
func checkLoopback(p EndpointPolicy, t NetworkType, path string) error {
	if p.Type != PortMapping || !slices.Contains(onLAN, t) {
		return nil
	}
	settings, err := p.Decode()
	if err != nil {
		return err
	}
	if s, ok := settings.(PortMappingPolicySetting); ok {
		if a, one := s.Addr(); one && a.IsLoopback() {
			return invalid(ErrMappingNotSupported, path+".Settings.VIP", "a network of type %s publishes ports to the LAN and not at the loopback: "+
				"name an address of the host, or none (--expose lan)", t)
		}
	}
	return nil
}
