package hcn

import "encoding/json"

// EndpointFlags is a mask of endpoint options.
type EndpointFlags uint32

// The endpoint flags.
const (
	RemoteEndpoint EndpointFlags = 1 << iota
	DisableInterComputeCommunication
	EndpointEnableMirroring
	EnableLowInterfaceMetric
	OverrideDNSServerOrder
	EnableDhcp
)

var endpointFlagNames = flagNames{
	{1, "RemoteEndpoint"},
	{2, "DisableInterComputeCommunication"},
	{4, "EnableMirroring"},
	{8, "EnableLowInterfaceMetric"},
	{16, "OverrideDNSServerOrder"},
	{32, "EnableDhcp"},
}

func (f EndpointFlags) String() string { return endpointFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *EndpointFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, endpointFlagNames, "Flags", ErrInvalidEndpoint, b)
}

// EndpointState is where an endpoint is in its life. It is a number on the wire.
type EndpointState uint16

// The states of an endpoint.
const (
	EndpointUninitialized EndpointState = iota
	EndpointCreated
	EndpointAttached
	EndpointAttachedSharing
	EndpointDetached
	EndpointDegraded
	EndpointDestroyed
)

var endpointStateNames = names{
	"Uninitialized", "Created", "Attached", "AttachedSharing", "Detached", "Degraded", "Destroyed",
}

func (s EndpointState) String() string { return endpointStateNames.text(int(s)) }

// IpConfig is one address of an endpoint.
type IpConfig struct {
	IpAddress    string `json:",omitempty"`
	PrefixLength uint8  `json:",omitempty"`
	IpSubnetId   GUID   `json:",omitempty"`
}

// HostComputeEndpoint is the identity of one vNIC: addresses, routes, names and policies. It exists before and after any
// attachment to a namespace.
type HostComputeEndpoint struct {
	ID                   GUID             `json:",omitempty"`
	Owner                string           `json:",omitempty"`
	Name                 string           `json:",omitempty"`
	Version              uint64           `json:",omitempty"`
	HostComputeNetwork   GUID             `json:",omitempty"`
	HostComputeNamespace GUID             `json:",omitempty"`
	Policies             []EndpointPolicy `json:",omitempty"`
	IpConfigurations     []IpConfig       `json:",omitempty"`
	Dns                  Dns              `json:",omitzero"`
	Routes               []Route          `json:",omitempty"`
	MacAddress           MAC              `json:",omitempty"`
	Flags                EndpointFlags    `json:",omitempty"`
	AdditionalParams     json.RawMessage  `json:",omitempty"`
	Health               *Health          `json:",omitempty"`
	State                EndpointState    `json:",omitempty"`
	SchemaVersion        SchemaVersion    `json:",omitzero"`
}
