package hcn

import "encoding/json"

// EndpointPolicyType names a policy of an endpoint.
type EndpointPolicyType string

// The endpoint policies of the HCN schema.
const (
	PortMapping                 EndpointPolicyType = "PortMapping"
	OutBoundNAT                 EndpointPolicyType = "OutBoundNAT"
	ACL                         EndpointPolicyType = "ACL"
	TierAcl                     EndpointPolicyType = "TierAcl"
	QOS                         EndpointPolicyType = "QOS"
	L2Driver                    EndpointPolicyType = "L2Driver"
	SDNRoute                    EndpointPolicyType = "SDNRoute"
	ProviderAddress             EndpointPolicyType = "ProviderAddress"
	L4Proxy                     EndpointPolicyType = "L4Proxy"
	L4WFPPROXY                  EndpointPolicyType = "L4WFPPROXY"
	PortName                    EndpointPolicyType = "PortName"
	EncapOverhead               EndpointPolicyType = "EncapOverhead"
	EndpointInterfaceConstraint EndpointPolicyType = "InterfaceConstraint"
	InterfaceParameters         EndpointPolicyType = "InterfaceParameters"
	EndpointVLAN                EndpointPolicyType = "VLAN"
	Iov                         EndpointPolicyType = "Iov"
	Encryption                  EndpointPolicyType = "Encryption"
)

// EndpointPolicy is a policy as it is on the wire. Settings stay the client's bytes, because a query must show them
// again; Decode gives them typed.
type EndpointPolicy struct {
	Type     EndpointPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// NetworkPolicyType names a policy of a network.
type NetworkPolicyType string

// The network policies of the HCN schema.
const (
	SourceMacAddress           NetworkPolicyType = "SourceMacAddress"
	NetAdapterName             NetworkPolicyType = "NetAdapterName"
	NetworkInterfaceConstraint NetworkPolicyType = "InterfaceConstraint"
	VSwitchExtension           NetworkPolicyType = "VSwitchExtension"
	NetworkProviderAddress     NetworkPolicyType = "ProviderAddress"
	DrMacAddress               NetworkPolicyType = "DrMacAddress"
	AutomaticDNS               NetworkPolicyType = "AutomaticDNS"
	RemoteSubnetRoute          NetworkPolicyType = "RemoteSubnetRoute"
	VxlanPort                  NetworkPolicyType = "VxlanPort"
	HostRoute                  NetworkPolicyType = "HostRoute"
	SetPolicy                  NetworkPolicyType = "SetPolicy"
	NetworkL4Proxy             NetworkPolicyType = "L4Proxy"
	LayerConstraint            NetworkPolicyType = "LayerConstraint"
	NetworkACL                 NetworkPolicyType = "NetworkACL"
)

// NetworkPolicy is a policy as it is on the wire.
type NetworkPolicy struct {
	Type     NetworkPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// SubnetPolicyType names a policy of a subnet.
type SubnetPolicyType string

// The subnet policies of the HCN schema.
const (
	VLAN SubnetPolicyType = "VLAN"
	VSID SubnetPolicyType = "VSID"
)

// SubnetPolicy is a policy as it is on the wire.
type SubnetPolicy struct {
	Type     SubnetPolicyType
	Settings json.RawMessage `json:",omitempty"`
}
