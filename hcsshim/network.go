package hcsshim

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
)

// Subnet of a network.
type Subnet struct {
	AddressPrefix  string            `json:",omitempty"`
	GatewayAddress string            `json:",omitempty"`
	Policies       []json.RawMessage `json:",omitempty"`
}

// MacPool is a range of MACs, both ends included.
type MacPool struct {
	StartMacAddress string `json:",omitempty"`
	EndMacAddress   string `json:",omitempty"`
}

// HNSNetwork is a network.
type HNSNetwork struct {
	Id                   string            `json:"ID,omitempty"`
	Name                 string            `json:",omitempty"`
	Type                 string            `json:",omitempty"`
	NetworkAdapterName   string            `json:",omitempty"`
	SourceMac            string            `json:",omitempty"`
	Policies             []json.RawMessage `json:",omitempty"`
	MacPools             []MacPool         `json:",omitempty"`
	Subnets              []Subnet          `json:",omitempty"`
	DNSSuffix            string            `json:",omitempty"`
	DNSServerList        string            `json:",omitempty"`
	DNSServerCompartment uint32            `json:",omitempty"`
	ManagementIP         string            `json:",omitempty"`
	AutomaticDNS         bool              `json:",omitempty"`
}

// HNSNetworkRequest makes a call about one network; path is what follows /networks/.
func HNSNetworkRequest(method, path, request string) (*HNSNetwork, error) {
	return answered[HNSNetwork](method, below("networks", path), request)
}

// HNSListNetworkRequest makes a call that answers with networks.
func HNSListNetworkRequest(method, path, request string) ([]HNSNetwork, error) {
	return listed[HNSNetwork](method, below("networks", path), request)
}

// GetHNSNetworkByID shows the network with an ID.
func GetHNSNetworkByID(networkID string) (*HNSNetwork, error) {
	return HNSNetworkRequest("GET", networkID, "")
}

// GetHNSNetworkByName shows the network with a name.
func GetHNSNetworkByName(networkName string) (*HNSNetwork, error) {
	all, err := HNSListNetworkRequest("GET", "", "")
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == networkName {
			return &all[i], nil
		}
	}
	return nil, NetworkNotFoundError{NetworkName: networkName}
}

// Create makes the network.
func (network *HNSNetwork) Create() (*HNSNetwork, error) {
	for i, s := range network.Subnets {
		if s.AddressPrefix != "" && s.GatewayAddress == "" {
			return nil, fmt.Errorf("create network %q: Subnets[%d]: %s has no GatewayAddress: give one", network.Name, i, s.AddressPrefix)
		}
	}
	text, err := encoded(network)
	if err != nil {
		return nil, err
	}
	return HNSNetworkRequest("POST", "", text)
}

// Delete deletes the network.
func (network *HNSNetwork) Delete() (*HNSNetwork, error) {
	return HNSNetworkRequest("DELETE", network.Id, "")
}

// NewEndpoint is the document of an endpoint on the network. Its MAC is written as documents have it.
func (network *HNSNetwork) NewEndpoint(ipAddress net.IP, macAddress net.HardwareAddr) *HNSEndpoint {
	mac := strings.ToUpper(strings.ReplaceAll(macAddress.String(), ":", "-"))
	return &HNSEndpoint{VirtualNetwork: network.Id, IPAddress: ipAddress, MacAddress: mac}
}

// CreateEndpoint makes an endpoint on the network.
func (network *HNSNetwork) CreateEndpoint(endpoint *HNSEndpoint) (*HNSEndpoint, error) {
	endpoint.VirtualNetwork = network.Id
	return endpoint.Create()
}

// CreateRemoteEndpoint makes one that is on another host.
func (network *HNSNetwork) CreateRemoteEndpoint(endpoint *HNSEndpoint) (*HNSEndpoint, error) {
	endpoint.IsRemoteEndpoint = true
	return network.CreateEndpoint(endpoint)
}
