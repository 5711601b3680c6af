package hcn

import "encoding/json"

// EndpointPolicyType names a policy of an endpoint.
type EndpointPolicyType string

// The policies of endpoints.
const (
	PortMapping   EndpointPolicyType = "PortMapping"
	ACL           EndpointPolicyType = "ACL"
	QOS           EndpointPolicyType = "QOS"
	L2Driver      EndpointPolicyType = "L2Driver"
	OutBoundNAT   EndpointPolicyType = "OutBoundNAT"
	SDNRoute      EndpointPolicyType = "SDNRoute"
	L4Proxy       EndpointPolicyType = "L4Proxy"
	L4WFPPROXY    EndpointPolicyType = "L4WFPPROXY"
	PortName      EndpointPolicyType = "PortName"
	EncapOverhead EndpointPolicyType = "EncapOverhead"
	IOV           EndpointPolicyType = "Iov"
	TierAcl       EndpointPolicyType = "TierAcl"
	// NetworkProviderAddress and NetworkInterfaceConstraint are called so beside those of networks.
	NetworkProviderAddress     EndpointPolicyType = "ProviderAddress"
	NetworkInterfaceConstraint EndpointPolicyType = "InterfaceConstraint"
)

// EndpointPolicy is a policy of an endpoint.
type EndpointPolicy struct {
	Type     EndpointPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// NetworkPolicyType names a policy of a network.
type NetworkPolicyType string

// The policies of networks.
const (
	SourceMacAddress    NetworkPolicyType = "SourceMacAddress"
	NetAdapterName      NetworkPolicyType = "NetAdapterName"
	VSwitchExtension    NetworkPolicyType = "VSwitchExtension"
	DrMacAddress        NetworkPolicyType = "DrMacAddress"
	AutomaticDNS        NetworkPolicyType = "AutomaticDNS"
	InterfaceConstraint NetworkPolicyType = "InterfaceConstraint"
	ProviderAddress     NetworkPolicyType = "ProviderAddress"
	RemoteSubnetRoute   NetworkPolicyType = "RemoteSubnetRoute"
	VxlanPort           NetworkPolicyType = "VxlanPort"
	HostRoute           NetworkPolicyType = "HostRoute"
	SetPolicy           NetworkPolicyType = "SetPolicy"
	NetworkL4Proxy      NetworkPolicyType = "L4Proxy"
	LayerConstraint     NetworkPolicyType = "LayerConstraint"
	NetworkACL          NetworkPolicyType = "NetworkACL"
)

// NetworkPolicy is a policy of a network.
type NetworkPolicy struct {
	Type     NetworkPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// SubnetPolicyType names a policy of a subnet.
type SubnetPolicyType string

// The policies of subnets.
const (
	VLAN SubnetPolicyType = "VLAN"
	VSID SubnetPolicyType = "VSID"
)

// SubnetPolicy is a policy of a subnet.
type SubnetPolicy struct {
	Type     SubnetPolicyType
	Settings json.RawMessage `json:",omitempty"`
}

// NatFlags are options of a published port.
type NatFlags uint32

// The flags of published ports.
const (
	NatFlagsNone           NatFlags = 0
	NatFlagsLocalRoutedVip NatFlags = 1
	NatFlagsIPv6           NatFlags = 2
)

// PortMappingPolicySetting publishes a port.
type PortMappingPolicySetting struct {
	Protocol     uint32   `json:",omitempty"`
	InternalPort uint16   `json:",omitempty"`
	ExternalPort uint16   `json:",omitempty"`
	VIP          string   `json:",omitempty"`
	Flags        NatFlags `json:",omitempty"`
}

// ActionType is what a rule does.
type ActionType string

// DirectionType is which way a rule looks.
type DirectionType string

// RuleType is where a rule is asked.
type RuleType string

// The words of rules.
const (
	ActionTypeAllow ActionType = "Allow"
	ActionTypeBlock ActionType = "Block"
	ActionTypePass  ActionType = "Pass"

	DirectionTypeIn  DirectionType = "In"
	DirectionTypeOut DirectionType = "Out"

	RuleTypeHost   RuleType = "Host"
	RuleTypeSwitch RuleType = "Switch"
)

// AclPolicySetting is a rule of an endpoint.
type AclPolicySetting struct {
	Protocols       string `json:",omitempty"`
	Action          ActionType
	Direction       DirectionType
	LocalAddresses  string   `json:",omitempty"`
	RemoteAddresses string   `json:",omitempty"`
	LocalPorts      string   `json:",omitempty"`
	RemotePorts     string   `json:",omitempty"`
	RuleType        RuleType `json:",omitempty"`
	Priority        uint16   `json:",omitempty"`
}

// QosPolicySetting caps what an endpoint sends.
type QosPolicySetting struct {
	MaximumOutgoingBandwidthInBytes uint64
}

// OutboundNatPolicySetting says how the outside sees an endpoint.
type OutboundNatPolicySetting struct {
	VirtualIP        string   `json:",omitempty"`
	Exceptions       []string `json:",omitempty"`
	Destinations     []string `json:",omitempty"`
	Flags            NatFlags `json:",omitempty"`
	MaxPortPoolUsage uint16   `json:",omitempty"`
}

// SDNRoutePolicySetting is a route of an endpoint.
type SDNRoutePolicySetting struct {
	DestinationPrefix string `json:",omitempty"`
	NextHop           string `json:",omitempty"`
	NeedEncap         bool   `json:",omitempty"`
}

// NetworkACLPolicySetting is a rule of a network.
type NetworkACLPolicySetting struct {
	Protocols       string `json:",omitempty"`
	Action          ActionType
	Direction       DirectionType
	LocalAddresses  string   `json:",omitempty"`
	RemoteAddresses string   `json:",omitempty"`
	LocalPorts      string   `json:",omitempty"`
	RemotePorts     string   `json:",omitempty"`
	RuleType        RuleType `json:",omitempty"`
	Priority        uint16   `json:",omitempty"`
}

// ProtocolType is the number of a protocol.
type ProtocolType uint32

// The protocols.
const (
	ProtocolTypeUnknown ProtocolType = 0
	ProtocolTypeICMPv4  ProtocolType = 1
	ProtocolTypeIGMP    ProtocolType = 2
	ProtocolTypeTCP     ProtocolType = 6
	ProtocolTypeUDP     ProtocolType = 17
	ProtocolTypeICMPv6  ProtocolType = 58
)

// L4ProxyPolicySetting sends flows to a proxy.
type L4ProxyPolicySetting struct {
	IP          string       `json:",omitempty"`
	Port        string       `json:",omitempty"`
	Protocol    ProtocolType `json:",omitempty"`
	Exceptions  []string     `json:",omitempty"`
	Destination string
	OutboundNAT bool `json:",omitempty"`
}

// FiveTuple selects what a proxy takes.
type FiveTuple struct {
	Protocols       string `json:",omitempty"`
	LocalAddresses  string `json:",omitempty"`
	RemoteAddresses string `json:",omitempty"`
	LocalPorts      string `json:",omitempty"`
	RemotePorts     string `json:",omitempty"`
	Priority        uint16 `json:",omitempty"`
}

// ProxyExceptions are not taken by a proxy.
type ProxyExceptions struct {
	IpAddressExceptions []string `json:",omitempty"`
	PortExceptions      []string `json:",omitempty"`
}

// L4WfpProxyPolicySetting leads flows to a side-car inside the compartment.
type L4WfpProxyPolicySetting struct {
	InboundProxyPort   string          `json:",omitempty"`
	OutboundProxyPort  string          `json:",omitempty"`
	FilterTuple        FiveTuple       `json:",omitzero"`
	UserSID            string          `json:",omitempty"`
	InboundExceptions  ProxyExceptions `json:",omitzero"`
	OutboundExceptions ProxyExceptions `json:",omitzero"`
}

// PortnameEndpointPolicySetting gives the port a name.
type PortnameEndpointPolicySetting struct {
	Name string `json:",omitempty"`
}

// EncapOverheadEndpointPolicySetting leaves room in the MTU.
type EncapOverheadEndpointPolicySetting struct {
	Overhead uint16 `json:",omitempty"`
}

// IovPolicySetting asks for a NIC's virtual function.
type IovPolicySetting struct {
	IovOffloadWeight    uint32 `json:",omitempty"`
	QueuePairsRequested uint32 `json:",omitempty"`
	InterruptModeration uint32 `json:",omitempty"`
}

// ProviderAddressEndpointPolicySetting is where an endpoint's host is.
type ProviderAddressEndpointPolicySetting struct {
	ProviderAddress string `json:",omitempty"`
}

// InterfaceConstraintPolicySetting names a NIC.
type InterfaceConstraintPolicySetting struct {
	InterfaceGuid        string `json:",omitempty"`
	InterfaceLuid        uint64 `json:",omitempty"`
	InterfaceIndex       uint32 `json:",omitempty"`
	InterfaceMediaType   uint32 `json:",omitempty"`
	InterfaceAlias       string `json:",omitempty"`
	InterfaceDescription string `json:",omitempty"`
}

// SourceMacAddressNetworkPolicySetting is the MAC of what a network sends.
type SourceMacAddressNetworkPolicySetting struct {
	SourceMacAddress string `json:",omitempty"`
}

// NetAdapterNameNetworkPolicySetting names the uplink of a network.
type NetAdapterNameNetworkPolicySetting struct {
	NetworkAdapterName string `json:",omitempty"`
}

// ProviderAddressNetworkPolicySetting is the host's address for the tunnels of a network.
type ProviderAddressNetworkPolicySetting struct {
	ProviderAddress string `json:",omitempty"`
}

// LayerConstraintNetworkPolicySetting names a layer of the switch.
type LayerConstraintNetworkPolicySetting struct {
	LayerId string `json:",omitempty"`
}

// VSwitchExtensionNetworkPolicySetting turns an extension of the switch on or off.
type VSwitchExtensionNetworkPolicySetting struct {
	ExtensionID string `json:",omitempty"`
	Enable      bool   `json:",omitempty"`
}

// DrMacAddressNetworkPolicySetting is the MAC of a network's distributed router.
type DrMacAddressNetworkPolicySetting struct {
	Address string `json:",omitempty"`
}

// AutomaticDNSNetworkPolicySetting has a network answer names.
type AutomaticDNSNetworkPolicySetting struct {
	Enable bool `json:",omitempty"`
}

// VlanPolicySetting is a VLAN.
type VlanPolicySetting struct {
	IsolationId uint32
}

// VsidPolicySetting is a virtual network.
type VsidPolicySetting struct {
	IsolationId uint32
}

// RemoteSubnetRoutePolicySetting is a subnet behind another host.
type RemoteSubnetRoutePolicySetting struct {
	DestinationPrefix           string
	IsolationId                 uint16
	ProviderAddress             string
	DistributedRouterMacAddress string
}

// VxlanPortPolicySetting is the UDP port of an overlay.
type VxlanPortPolicySetting struct {
	Port uint16
}

// SetPolicyType names a kind of address set.
type SetPolicyType string

// The kinds of address sets.
const (
	SetPolicyTypeIpSet       SetPolicyType = "IPSET"
	SetPolicyTypeNestedIpSet SetPolicyType = "NESTEDIPSET"
)

// SetPolicySetting is an address set of a network.
type SetPolicySetting struct {
	Id     string
	Name   string
	Type   SetPolicyType `json:"PolicyType"`
	Values string
}

// TierAclRule is a rule in a tier.
type TierAclRule struct {
	Id                string `json:",omitempty"`
	Protocols         string `json:",omitempty"`
	TierAclRuleAction ActionType
	LocalAddresses    string `json:",omitempty"`
	RemoteAddresses   string `json:",omitempty"`
	LocalPorts        string `json:",omitempty"`
	RemotePorts       string `json:",omitempty"`
	Priority          uint16 `json:",omitempty"`
}

// TierAclPolicySetting is a tier of rules.
type TierAclPolicySetting struct {
	Name         string
	Direction    DirectionType
	Order        uint16
	TierAclRules []TierAclRule `json:",omitempty"`
}
