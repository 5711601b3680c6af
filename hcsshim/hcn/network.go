package hcn

import "encoding/json"

// Route of a subnet or an endpoint.
type Route struct {
	NextHop           string `json:",omitempty"`
	DestinationPrefix string `json:",omitempty"`
	Metric            uint16 `json:",omitempty"`
}

// SubnetFlags are options of a subnet.
type SubnetFlags uint32

// The flags of subnets.
const (
	SubnetFlagsNone                       SubnetFlags = 0
	SubnetFlagsDoNotReserveGatewayAddress SubnetFlags = 1
)

// Subnet of a network.
type Subnet struct {
	IpAddressPrefix string            `json:",omitempty"`
	Policies        []json.RawMessage `json:",omitempty"`
	Routes          []Route           `json:",omitempty"`
	Flags           SubnetFlags       `json:",omitempty"`
}

// Ipam is an address space: Type is Static or DHCP.
type Ipam struct {
	Type    string   `json:",omitempty"`
	Subnets []Subnet `json:",omitempty"`
}

// MacRange is a range of MACs, both ends included.
type MacRange struct {
	StartMacAddress string `json:",omitempty"`
	EndMacAddress   string `json:",omitempty"`
}

// MacPool is where a network's MACs come from.
type MacPool struct {
	Ranges []MacRange `json:",omitempty"`
}

// Dns of a network or an endpoint.
type Dns struct {
	Domain     string   `json:",omitempty"`
	Search     []string `json:",omitempty"`
	ServerList []string `json:",omitempty"`
	Options    []string `json:",omitempty"`
}

// NetworkType says how a network is connected.
type NetworkType string

// The types of networks.
const (
	NAT         NetworkType = "NAT"
	Transparent NetworkType = "Transparent"
	L2Bridge    NetworkType = "L2Bridge"
	L2Tunnel    NetworkType = "L2Tunnel"
	ICS         NetworkType = "ICS"
	Private     NetworkType = "Private"
	Overlay     NetworkType = "Overlay"
)

// NetworkFlags are options of a network.
type NetworkFlags uint32

// The flags of networks.
const (
	None                NetworkFlags = 0
	EnableNonPersistent NetworkFlags = 8
	DisableHostPort     NetworkFlags = 1024
	EnableIov           NetworkFlags = 8192
)

// ExtraParams are what the service knows beside the document.
type ExtraParams struct {
	Resources        json.RawMessage `json:",omitempty"`
	SharedContainers json.RawMessage `json:",omitempty"`
	LayeredOn        string          `json:",omitempty"`
	SwitchGuid       string          `json:",omitempty"`
	UtilityVM        string          `json:",omitempty"`
	VirtualMachine   string          `json:",omitempty"`
}

// Health of an object; shown by detailed queries.
type Health struct {
	Data  any         `json:",omitempty"`
	Extra ExtraParams `json:",omitzero"`
}

// HostComputeNetwork is a network.
type HostComputeNetwork struct {
	Id            string          `json:"ID,omitempty"`
	Name          string          `json:",omitempty"`
	Type          NetworkType     `json:",omitempty"`
	Policies      []NetworkPolicy `json:",omitempty"`
	MacPool       MacPool         `json:",omitzero"`
	Dns           Dns             `json:",omitzero"`
	Ipams         []Ipam          `json:",omitempty"`
	Flags         NetworkFlags    `json:",omitempty"`
	Health        Health          `json:",omitzero"`
	SchemaVersion SchemaVersion   `json:",omitzero"`
}

// NetworkResourceType is the part of a network that a request modifies.
type NetworkResourceType string

// The parts of a network.
var (
	NetworkResourceTypePolicy    NetworkResourceType = "Policy"
	NetworkResourceTypeDNS       NetworkResourceType = "DNS"
	NetworkResourceTypeExtension NetworkResourceType = "Extension"
)

// ModifyNetworkSettingRequest changes a network.
type ModifyNetworkSettingRequest struct {
	ResourceType NetworkResourceType `json:",omitempty"`
	RequestType  RequestType         `json:",omitempty"`
	Settings     json.RawMessage     `json:",omitempty"`
}

// PolicyNetworkRequest are policies to add or remove.
type PolicyNetworkRequest struct {
	Policies []NetworkPolicy `json:",omitempty"`
}

const networks = "networks"

// ListNetworks shows all networks.
func ListNetworks() ([]HostComputeNetwork, error) { return ListNetworksQuery(defaultQuery()) }

// ListNetworksQuery shows those that a query selects.
func ListNetworksQuery(query HostComputeQuery) ([]HostComputeNetwork, error) {
	return list[HostComputeNetwork](networks, query)
}

// GetNetworkByID shows the one with an ID.
func GetNetworkByID(networkID string) (*HostComputeNetwork, error) {
	return first[HostComputeNetwork](networks, filtered("ID", networkID), NetworkNotFoundError{NetworkID: networkID})
}

// GetNetworkByName shows the one with a name.
func GetNetworkByName(networkName string) (*HostComputeNetwork, error) {
	return first[HostComputeNetwork](networks, filtered("Name", networkName), NetworkNotFoundError{NetworkName: networkName})
}

// Create makes the network.
func (network *HostComputeNetwork) Create() (*HostComputeNetwork, error) {
	doc := *network
	doc.Health = Health{}
	return create(networks, &doc)
}

// Delete deletes the network.
func (network *HostComputeNetwork) Delete() error { return remove(networks, network.Id) }

// ModifyNetworkSettings changes the network.
func (network *HostComputeNetwork) ModifyNetworkSettings(request *ModifyNetworkSettingRequest) error {
	return modify(networks, network.Id, request)
}

func (network *HostComputeNetwork) change(what RequestType, policies PolicyNetworkRequest) error {
	raw, err := settings(policies)
	if err != nil {
		return err
	}
	return network.ModifyNetworkSettings(&ModifyNetworkSettingRequest{ResourceType: NetworkResourceTypePolicy, RequestType: what, Settings: raw})
}

// AddPolicy adds policies.
func (network *HostComputeNetwork) AddPolicy(networkPolicy PolicyNetworkRequest) error {
	return network.change(RequestTypeAdd, networkPolicy)
}

// RemovePolicy removes policies.
func (network *HostComputeNetwork) RemovePolicy(networkPolicy PolicyNetworkRequest) error {
	return network.change(RequestTypeRemove, networkPolicy)
}

// CreateEndpoint makes an endpoint on the network.
func (network *HostComputeNetwork) CreateEndpoint(endpoint *HostComputeEndpoint) (*HostComputeEndpoint, error) {
	endpoint.HostComputeNetwork = network.Id
	return endpoint.Create()
}

// CreateRemoteEndpoint makes an endpoint that is on another host.
func (network *HostComputeNetwork) CreateRemoteEndpoint(endpoint *HostComputeEndpoint) (*HostComputeEndpoint, error) {
	endpoint.Flags |= EndpointFlagsRemoteEndpoint
	return network.CreateEndpoint(endpoint)
}
