package hcsshim

// PolicyType names a policy.
type PolicyType string

// The policies of version 1.
const (
	Nat                  PolicyType = "NAT"
	ACL                  PolicyType = "ACL"
	PA                   PolicyType = "PA"
	VLAN                 PolicyType = "VLAN"
	VSID                 PolicyType = "VSID"
	VNet                 PolicyType = "VNET"
	L2Driver             PolicyType = "L2Driver"
	Isolation            PolicyType = "Isolation"
	QOS                  PolicyType = "QOS"
	OutboundNat          PolicyType = "OutBoundNAT"
	ExternalLoadBalancer PolicyType = "ELB"
	Route                PolicyType = "ROUTE"
	Proxy                PolicyType = "PROXY"
)

// Policy is what all of them have.
type Policy struct {
	Type PolicyType `json:"Type"`
}

// NatPolicy publishes a port.
type NatPolicy struct {
	Type                 PolicyType `json:"Type"`
	Protocol             string     `json:",omitempty"`
	InternalPort         uint16     `json:",omitempty"`
	ExternalPort         uint16     `json:",omitempty"`
	ExternalPortReserved bool       `json:",omitempty"`
}

// QosPolicy caps what an endpoint sends.
type QosPolicy struct {
	Type                            PolicyType `json:"Type"`
	MaximumOutgoingBandwidthInBytes uint64
}

// IsolationPolicy puts an endpoint into a VLAN or a virtual network.
type IsolationPolicy struct {
	Type               PolicyType `json:"Type"`
	VLAN               uint
	VSID               uint
	InDefaultIsolation bool
}

// VlanPolicy is a VLAN.
type VlanPolicy struct {
	Type PolicyType `json:"Type"`
	VLAN uint
}

// VsidPolicy is a virtual network.
type VsidPolicy struct {
	Type PolicyType `json:"Type"`
	VSID uint
}

// PaPolicy is where an endpoint's host is.
type PaPolicy struct {
	Type PolicyType `json:"Type"`
	PA   string     `json:"PA"`
}

// OutboundNatPolicy says how the outside sees an endpoint.
type OutboundNatPolicy struct {
	Policy
	VIP              string   `json:"VIP,omitempty"`
	Exceptions       []string `json:"ExceptionList,omitempty"`
	Destinations     []string `json:",omitempty"`
	MaxPortPoolUsage uint16   `json:",omitempty"`
}

// ProxyPolicy sends flows to a proxy.
type ProxyPolicy struct {
	Type          PolicyType `json:"Type"`
	IP            string     `json:",omitempty"`
	Port          string     `json:",omitempty"`
	ExceptionList []string   `json:",omitempty"`
	Destination   string     `json:",omitempty"`
	OutboundNat   bool       `json:",omitempty"`
}

// ActionType is what a rule does.
type ActionType string

// DirectionType is which way a rule looks.
type DirectionType string

// RuleType is where a rule is asked.
type RuleType string

// The words of rules.
const (
	Allow ActionType = "Allow"
	Block ActionType = "Block"

	In  DirectionType = "In"
	Out DirectionType = "Out"

	Host   RuleType = "Host"
	Switch RuleType = "Switch"
)

// ACLPolicy is a rule of an endpoint.
type ACLPolicy struct {
	Type            PolicyType `json:"Type"`
	Id              string     `json:"Id,omitempty"`
	Protocol        uint16     `json:",omitempty"`
	Protocols       string     `json:"Protocols,omitempty"`
	InternalPort    uint16     `json:",omitempty"`
	Action          ActionType
	Direction       DirectionType
	LocalAddresses  string   `json:",omitempty"`
	RemoteAddresses string   `json:",omitempty"`
	LocalPorts      string   `json:"LocalPorts,omitempty"`
	LocalPort       uint16   `json:",omitempty"`
	RemotePorts     string   `json:"RemotePorts,omitempty"`
	RemotePort      uint16   `json:",omitempty"`
	RuleType        RuleType `json:"RuleType,omitempty"`
	Priority        uint16   `json:",omitempty"`
	ServiceName     string   `json:",omitempty"`
}
