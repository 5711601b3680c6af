package hcn

import "encoding/json"

// NetworkType says how a network is connected. The schema calls it NetworkMode; clients call it the network's type.
type NetworkType uint8

// The network types, in the order of their numbers on the wire.
const (
	NAT NetworkType = iota
	ICS
	Transparent
	L2Bridge
	L2Tunnel
	Overlay
	Private
	Internal
	Mirrored
	Infiniband
	ConstrainedICS
)

var networkTypeNames = names{
	"NAT", "ICS", "Transparent", "L2Bridge", "L2Tunnel", "Overlay", "Private", "Internal", "Mirrored",
	"Infiniband", "ConstrainedICS",
}

func (t NetworkType) String() string { return networkTypeNames.text(int(t)) }

// MarshalText writes the name.
func (t NetworkType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name in any letter case, or the number.
func (t *NetworkType) UnmarshalText(b []byte) error {
	return parseEnum(t, networkTypeNames, "Type", ErrInvalidNetworkType, string(b))
}

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *NetworkType) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(t, networkTypeNames, "Type", ErrInvalidNetworkType, b)
}

// NetworkFlags is a mask of network options.
type NetworkFlags uint32

// The network flags.
const (
	EnableDnsProxy NetworkFlags = 1 << iota
	EnableDhcpServer
	NetworkEnableMirroring
	EnableNonPersistent
	EnablePersistent
	IsolateVSwitch
	EnableFlowSteering
	DisableSharing
	EnableFirewall
	SuppressMediaDisconnect
	DisableHostPort
	WeakHostReceiveAdapter
	WeakHostSendAdapter
	EnableIov
)

var networkFlagNames = flagNames{
	{1, "EnableDnsProxy"},
	{2, "EnableDhcpServer"},
	{4, "EnableMirroring"},
	{8, "EnableNonPersistent"},
	{16, "EnablePersistent"},
	{32, "IsolateVSwitch"},
	{64, "EnableFlowSteering"},
	{128, "DisableSharing"},
	{256, "EnableFirewall"},
	{512, "SuppressMediaDisconnect"},
	{1024, "DisableHostPort"},
	{2048, "WeakHostReceiveAdapter"},
	{4096, "WeakHostSendAdapter"},
	{8192, "EnableIov"},
}

func (f NetworkFlags) String() string { return networkFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *NetworkFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, networkFlagNames, "Flags", ErrInvalidNetwork, b)
}

// IpamType says who gives out a network's addresses.
type IpamType uint8

// The ipam types.
const (
	IpamStatic IpamType = iota
	IpamDhcp
)

var ipamTypeNames = names{"Static", "Dhcp"}

func (t IpamType) String() string { return ipamTypeNames.text(int(t)) }

// MarshalText writes the name.
func (t IpamType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name in any letter case, or the number.
func (t *IpamType) UnmarshalText(b []byte) error {
	return parseEnum(t, ipamTypeNames, "Ipams.Type", ErrInvalidNetwork, string(b))
}

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *IpamType) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(t, ipamTypeNames, "Ipams.Type", ErrInvalidNetwork, b)
}

// Ipam is an address space of a network.
type Ipam struct {
	Type    IpamType
	Subnets []Subnet `json:",omitempty"`
}

// SubnetFlags is a mask of subnet options.
type SubnetFlags uint32

// DoNotReserveGatewayAddress lets an endpoint have the gateway's address, and the gateway be the host's own.
const DoNotReserveGatewayAddress SubnetFlags = 1

var subnetFlagNames = flagNames{{1, "DoNotReserveGatewayAddress"}}

func (f SubnetFlags) String() string { return subnetFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *SubnetFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, subnetFlagNames, "Subnets.Flags", ErrInvalidSubnet, b)
}

// Subnet is a prefix of a network. Its gateway is the next hop of the default route in Routes.
type Subnet struct {
	ID              GUID           `json:",omitempty"`
	IpAddressPrefix string         `json:",omitempty"`
	Policies        []SubnetPolicy `json:",omitempty"`
	Routes          []Route        `json:",omitempty"`
	IpSubnets       []IpSubnet     `json:",omitempty"`
	Flags           SubnetFlags    `json:",omitempty"`
}

// IpSubnetFlags is a mask of options of an IpSubnet.
type IpSubnetFlags uint32

// The flags of an IpSubnet.
const (
	EnableBroadcast IpSubnetFlags = 1 << iota
	ReserveNetworkAddress
)

var ipSubnetFlagNames = flagNames{{1, "EnableBroadcast"}, {2, "ReserveNetworkAddress"}}

func (f IpSubnetFlags) String() string { return ipSubnetFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *IpSubnetFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, ipSubnetFlagNames, "IpSubnets.Flags", ErrInvalidIPSubnet, b)
}

// IpSubnet is a finer block inside a subnet. When a subnet has any, addresses are given out from them alone.
type IpSubnet struct {
	ID              GUID          `json:",omitempty"`
	Name            string        `json:",omitempty"`
	IpAddressPrefix string        `json:",omitempty"`
	Flags           IpSubnetFlags `json:",omitempty"`
}

// HostComputeNetwork is an address space plus a way to reach outside; it owns a virtual switch.
type HostComputeNetwork struct {
	ID               GUID   `json:",omitempty"`
	Owner            string `json:",omitempty"`
	Name             string `json:",omitempty"`
	Version          uint64 `json:",omitempty"`
	Type             NetworkType
	Policies         []NetworkPolicy `json:",omitempty"`
	MacPool          MacPool         `json:",omitzero"`
	Dns              Dns             `json:",omitzero"`
	Ipams            []Ipam          `json:",omitempty"`
	Flags            NetworkFlags    `json:",omitempty"`
	AdditionalParams json.RawMessage `json:",omitempty"`
	Health           *Health         `json:",omitempty"`
	State            uint16          `json:",omitempty"`
	SchemaVersion    SchemaVersion   `json:",omitzero"`
}

// NetworkCreated is the State of a network that can be used.
const NetworkCreated uint16 = 1
