package hcn

import (
	"encoding/json"

	"github.com/Microsoft/go-winio/pkg/guid"
)

// IpConfig is an address of an endpoint.
type IpConfig struct {
	IpAddress    string `json:",omitempty"`
	PrefixLength uint8  `json:",omitempty"`
}

// EndpointFlags are options of an endpoint.
type EndpointFlags uint32

// The flags of endpoints.
var (
	EndpointFlagsNone                     EndpointFlags
	EndpointFlagsRemoteEndpoint           EndpointFlags = 1
	EndpointFlagsDisableICC               EndpointFlags = 2
	EndpointFlagsEnableMirroring          EndpointFlags = 4
	EndpointFlagsEnableLowInterfaceMetric EndpointFlags = 8
	EndpointFlagsOverrideDNSServerOrder   EndpointFlags = 16
	EndpointFlagsEnableDhcp               EndpointFlags = 32
)

// HostComputeEndpoint is an endpoint.
type HostComputeEndpoint struct {
	Id                   string           `json:"ID,omitempty"`
	Name                 string           `json:",omitempty"`
	HostComputeNetwork   string           `json:",omitempty"`
	HostComputeNamespace string           `json:",omitempty"`
	Policies             []EndpointPolicy `json:",omitempty"`
	IpConfigurations     []IpConfig       `json:",omitempty"`
	Dns                  Dns              `json:",omitzero"`
	Routes               []Route          `json:",omitempty"`
	MacAddress           string           `json:",omitempty"`
	Flags                EndpointFlags    `json:",omitempty"`
	Health               Health           `json:",omitzero"`
	SchemaVersion        SchemaVersion    `json:",omitzero"`
}

// EndpointResourceType is the part of an endpoint that a request modifies.
type EndpointResourceType string

// The parts of an endpoint.
var (
	EndpointResourceTypePolicy EndpointResourceType = "Policy"
	EndpointResourceTypePort   EndpointResourceType = "Port"
)

// ModifyEndpointSettingRequest changes an endpoint.
type ModifyEndpointSettingRequest struct {
	ResourceType EndpointResourceType `json:",omitempty"`
	RequestType  RequestType          `json:",omitempty"`
	Settings     json.RawMessage      `json:",omitempty"`
}

// PolicyEndpointRequest are policies to add, remove or put in place of others.
type PolicyEndpointRequest struct {
	Policies []EndpointPolicy `json:",omitempty"`
}

// VmEndpointRequest makes a port for an endpoint in a VM. One that names no VM means that in whose namespace the endpoint is.
type VmEndpointRequest struct {
	PortId           guid.GUID `json:",omitzero"`
	VirtualNicName   string    `json:",omitempty"`
	VirtualMachineId guid.GUID `json:",omitzero"`
}

const endpoints = "endpoints"

// ListEndpoints shows all endpoints.
func ListEndpoints() ([]HostComputeEndpoint, error) { return ListEndpointsQuery(defaultQuery()) }

// ListEndpointsQuery shows those that a query selects.
func ListEndpointsQuery(query HostComputeQuery) ([]HostComputeEndpoint, error) {
	return list[HostComputeEndpoint](endpoints, query)
}

// ListEndpointsOfNetwork shows those of a network.
func ListEndpointsOfNetwork(networkId string) ([]HostComputeEndpoint, error) {
	return ListEndpointsQuery(filtered("HostComputeNetwork", networkId))
}

// GetEndpointByID shows the one with an ID.
func GetEndpointByID(endpointId string) (*HostComputeEndpoint, error) {
	return first[HostComputeEndpoint](endpoints, filtered("ID", endpointId), EndpointNotFoundError{EndpointID: endpointId})
}

// GetEndpointByName shows the one with a name.
func GetEndpointByName(endpointName string) (*HostComputeEndpoint, error) {
	return first[HostComputeEndpoint](endpoints, filtered("Name", endpointName), EndpointNotFoundError{EndpointName: endpointName})
}

// Create makes the endpoint on its network.
func (endpoint *HostComputeEndpoint) Create() (*HostComputeEndpoint, error) {
	doc := *endpoint
	doc.Health = Health{}
	return create(endpoints, &doc)
}

// Delete deletes the endpoint.
func (endpoint *HostComputeEndpoint) Delete() error { return remove(endpoints, endpoint.Id) }

// ModifyEndpointSettings changes an endpoint.
func ModifyEndpointSettings(endpointId string, request *ModifyEndpointSettingRequest) error {
	return modify(endpoints, endpointId, request)
}

// ApplyPolicy adds, removes or replaces policies of the endpoint.
func (endpoint *HostComputeEndpoint) ApplyPolicy(requestType RequestType, endpointPolicy PolicyEndpointRequest) error {
	raw, err := settings(endpointPolicy)
	if err != nil {
		return err
	}
	return ModifyEndpointSettings(endpoint.Id, &ModifyEndpointSettingRequest{ResourceType: EndpointResourceTypePolicy, RequestType: requestType, Settings: raw})
}

// NamespaceAttach puts the endpoint into a namespace.
func (endpoint *HostComputeEndpoint) NamespaceAttach(namespaceId string) error {
	return AddNamespaceEndpoint(namespaceId, endpoint.Id)
}

// NamespaceDetach takes the endpoint out of a namespace.
func (endpoint *HostComputeEndpoint) NamespaceDetach(namespaceId string) error {
	return RemoveNamespaceEndpoint(namespaceId, endpoint.Id)
}
