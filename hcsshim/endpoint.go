package hcsshim

import (
	"encoding/json"
	"net"
	"strconv"
	"strings"
)

// EndpointState is the state of an endpoint.
type EndpointState uint16

// The states.
const (
	Uninitialized   EndpointState = 0
	Created         EndpointState = 1
	Attached        EndpointState = 2
	AttachedSharing EndpointState = 3
	Detached        EndpointState = 4
	Degraded        EndpointState = 5
	Destroyed       EndpointState = 6
)

func (es EndpointState) String() string {
	names := []string{"Uninitialized", "Created", "Attached", "AttachedSharing", "Detached", "Degraded", "Destroyed"}
	if int(es) < len(names) {
		return names[es]
	}
	return "state " + strconv.Itoa(int(es))
}

// HNSEndpoint is an endpoint.
type HNSEndpoint struct {
	Id                 string            `json:"ID,omitempty"`
	Name               string            `json:",omitempty"`
	VirtualNetwork     string            `json:",omitempty"`
	VirtualNetworkName string            `json:",omitempty"`
	Policies           []json.RawMessage `json:",omitempty"`
	MacAddress         string            `json:",omitempty"`
	IPAddress          net.IP            `json:",omitempty"`
	IPv6Address        net.IP            `json:",omitempty"`
	DNSSuffix          string            `json:",omitempty"`
	DNSServerList      string            `json:",omitempty"`
	DNSDomain          string            `json:",omitempty"`
	GatewayAddress     string            `json:",omitempty"`
	GatewayAddressV6   string            `json:",omitempty"`
	EnableInternalDNS  bool              `json:",omitempty"`
	DisableICC         bool              `json:",omitempty"`
	PrefixLength       uint8             `json:",omitempty"`
	IPv6PrefixLength   uint8             `json:",omitempty"`
	IsRemoteEndpoint   bool              `json:",omitempty"`
	EnableLowMetric    bool              `json:",omitempty"`
	Namespace          *Namespace        `json:",omitempty"`
	EncapOverhead      uint16            `json:",omitempty"`
	SharedContainers   []string          `json:",omitempty"`
	State              EndpointState     `json:",omitempty"`
}

// Namespace is the one that an endpoint is in.
type Namespace struct {
	ID            string
	IsDefault     bool                `json:",omitempty"`
	ResourceList  []NamespaceResource `json:",omitempty"`
	CompartmentId uint32              `json:",omitempty"`
}

// NamespaceResource is something that is in a namespace.
type NamespaceResource struct {
	Type string
	Data json.RawMessage
}

// SystemType says what an endpoint is attached to.
type SystemType string

// The types of systems.
const (
	ContainerType      SystemType = "Container"
	VirtualMachineType SystemType = "VirtualMachine"
	HostType           SystemType = "Host"
)

// EndpointAttachDetachRequest says where an endpoint is to be attached, or detached from.
type EndpointAttachDetachRequest struct {
	ContainerID    string     `json:"ContainerId,omitempty"`
	SystemType     SystemType `json:"SystemType"`
	CompartmentID  uint16     `json:"CompartmentId,omitempty"`
	VirtualNICName string     `json:"VirtualNicName,omitempty"`
}

// EndpointResquestResponse tells whether that worked.
type EndpointResquestResponse struct {
	Success bool
	Error   string
}

// HNSEndpointStats are the counters of an endpoint.
type HNSEndpointStats struct {
	BytesReceived          uint64 `json:"BytesReceived"`
	BytesSent              uint64 `json:"BytesSent"`
	DroppedPacketsIncoming uint64 `json:"DroppedPacketsIncoming"`
	DroppedPacketsOutgoing uint64 `json:"DroppedPacketsOutgoing"`
	EndpointID             string `json:"EndpointId"`
	InstanceID             string `json:"InstanceId"`
	PacketsReceived        uint64 `json:"PacketsReceived"`
	PacketsSent            uint64 `json:"PacketsSent"`
}

// HNSEndpointRequest makes a call about one endpoint; path is what follows /endpoints/.
func HNSEndpointRequest(method, path, request string) (*HNSEndpoint, error) {
	return answered[HNSEndpoint](method, below("endpoints", path), request)
}

// HNSListEndpointRequest shows all endpoints.
func HNSListEndpointRequest() ([]HNSEndpoint, error) {
	return listed[HNSEndpoint]("GET", "/endpoints/", "")
}

// GetHNSEndpointByID shows the endpoint with an ID.
func GetHNSEndpointByID(endpointID string) (*HNSEndpoint, error) {
	return HNSEndpointRequest("GET", endpointID, "")
}

// GetHNSEndpointByName shows the first endpoint with a name.
func GetHNSEndpointByName(endpointName string) (*HNSEndpoint, error) {
	all, err := HNSListEndpointRequest()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == endpointName {
			return &all[i], nil
		}
	}
	return nil, EndpointNotFoundError{EndpointName: endpointName}
}

// GetHNSEndpointStats shows the counters of the endpoint with an ID.
func GetHNSEndpointStats(endpointName string) (*HNSEndpointStats, error) {
	return answered[HNSEndpointStats]("GET", below("endpointstats", endpointName), "")
}

// HotAttachEndpoint attaches an endpoint to a container that runs, unless it is so already.
func HotAttachEndpoint(containerID string, endpointID string) error {
	endpoint, err := GetHNSEndpointByID(endpointID)
	if err != nil {
		return err
	}
	if attached, err := endpoint.IsAttached(containerID); attached || err != nil {
		return err
	}
	return endpoint.ContainerAttach(containerID, 0)
}

// HotDetachEndpoint detaches an endpoint from a container that runs, unless it is in another.
func HotDetachEndpoint(containerID string, endpointID string) error {
	endpoint, err := GetHNSEndpointByID(endpointID)
	if err != nil {
		return err
	}
	if attached, err := endpoint.IsAttached(containerID); !attached || err != nil {
		return err
	}
	return endpoint.ContainerDetach(containerID)
}

// IsAttached tells whether a container has the endpoint.
func (endpoint *HNSEndpoint) IsAttached(vID string) (bool, error) {
	now, err := GetHNSEndpointByID(endpoint.Id)
	if err != nil {
		return false, err
	}
	for _, c := range now.SharedContainers {
		if vID != "" && strings.Contains(strings.ToLower(c), strings.ToLower(vID)) {
			return true, nil
		}
	}
	return false, nil
}

// Create makes the endpoint.
func (endpoint *HNSEndpoint) Create() (*HNSEndpoint, error) {
	text, err := encoded(endpoint)
	if err != nil {
		return nil, err
	}
	return HNSEndpointRequest("POST", "", text)
}

// Delete deletes the endpoint.
func (endpoint *HNSEndpoint) Delete() (*HNSEndpoint, error) {
	return HNSEndpointRequest("DELETE", endpoint.Id, "")
}

// Update gives the endpoint the policies of the document: those of a type replace the ones that it has of that type.
func (endpoint *HNSEndpoint) Update() (*HNSEndpoint, error) {
	text, err := encoded(endpoint)
	if err != nil {
		return nil, err
	}
	return endpoint, call("POST", below("endpoints", endpoint.Id), text, endpoint)
}

// ApplyACLPolicy adds rules to the endpoint.
func (endpoint *HNSEndpoint) ApplyACLPolicy(policies ...*ACLPolicy) error {
	return apply(endpoint, policies)
}

// ApplyProxyPolicy adds proxies to the endpoint.
func (endpoint *HNSEndpoint) ApplyProxyPolicy(policies ...*ProxyPolicy) error {
	return apply(endpoint, policies)
}

func apply[P any](endpoint *HNSEndpoint, policies []*P) error {
	for _, p := range policies {
		if p == nil {
			continue
		}
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		endpoint.Policies = append(endpoint.Policies, b)
	}
	_, err := endpoint.Update()
	return err
}

// attach asks for an endpoint to be attached or detached.
func (endpoint *HNSEndpoint) attach(what string, request EndpointAttachDetachRequest) error {
	text, err := encoded(request)
	if err != nil {
		return err
	}
	return call("POST", below("endpoints", endpoint.Id)+"/"+what, text, nil)
}

// ContainerAttach attaches the endpoint to a container, which is in a namespace, or in the compartment with a number.
func (endpoint *HNSEndpoint) ContainerAttach(containerID string, compartmentID uint16) error {
	return endpoint.attach("attach", EndpointAttachDetachRequest{ContainerID: containerID, CompartmentID: compartmentID, SystemType: ContainerType})
}

// ContainerDetach detaches the endpoint from a container.
func (endpoint *HNSEndpoint) ContainerDetach(containerID string) error {
	return endpoint.attach("detach", EndpointAttachDetachRequest{ContainerID: containerID, SystemType: ContainerType})
}

// HostAttach attaches the endpoint to the host, or to the compartment with a number.
func (endpoint *HNSEndpoint) HostAttach(compartmentID uint16) error {
	return endpoint.attach("attach", EndpointAttachDetachRequest{CompartmentID: compartmentID, SystemType: HostType})
}

// HostDetach detaches the endpoint from there.
func (endpoint *HNSEndpoint) HostDetach() error {
	return endpoint.attach("detach", EndpointAttachDetachRequest{SystemType: HostType})
}

// VirtualMachineNICAttach attaches the endpoint to a virtual machine's NIC, whose name begins with the ID of the machine: VMID--NICID.
func (endpoint *HNSEndpoint) VirtualMachineNICAttach(virtualMachineNICName string) error {
	return endpoint.attach("attach", EndpointAttachDetachRequest{VirtualNICName: virtualMachineNICName, SystemType: VirtualMachineType})
}

// VirtualMachineNICDetach detaches the endpoint from the machine.
func (endpoint *HNSEndpoint) VirtualMachineNICDetach() error {
	return endpoint.attach("detach", EndpointAttachDetachRequest{SystemType: VirtualMachineType})
}
