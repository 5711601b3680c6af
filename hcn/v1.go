package hcn

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
)

// The documents of version 1 of the API. A v1 object is visible through v2 and the reverse: only v2 documents are stored, and
// the functions beside this file translate at the door. Policies are flat here: their settings stand beside Type.

// HNSNetwork is a network in version 1.
type HNSNetwork struct {
	ID                   GUID   `json:",omitempty"`
	Name                 string `json:",omitempty"`
	Type                 NetworkType
	NetworkAdapterName   string            `json:",omitempty"`
	SourceMac            MAC               `json:",omitempty"`
	Policies             []json.RawMessage `json:",omitempty"`
	MacPools             []MacRange        `json:",omitempty"`
	Subnets              []HNSSubnet       `json:",omitempty"`
	DNSSuffix            string            `json:",omitempty"`
	DNSServerList        string            `json:",omitempty"`
	DNSServerCompartment uint32            `json:",omitempty"`
	ManagementIP         string            `json:",omitempty"`
	AutomaticDNS         bool              `json:",omitempty"`
	DrMacAddress         MAC               `json:",omitempty"`
	NatName              string            `json:",omitempty"`
	Extensions           []HNSExtension    `json:",omitempty"`
	Flags                NetworkFlags      `json:",omitempty"`
	State                uint16            `json:",omitempty"`
	CurrentEndpointCount uint32            `json:",omitempty"`
	TotalEndpoints       uint32            `json:",omitempty"`
	IPv6                 bool              `json:",omitempty"`
	LayeredOn            string            `json:",omitempty"`
}

// HNSExtension is an extension of a switch in version 1.
type HNSExtension struct {
	Id        GUID `json:",omitempty"`
	IsEnabled bool
}

// HNSSubnet is a subnet in version 1.
type HNSSubnet struct {
	ID             GUID              `json:",omitempty"`
	AddressPrefix  string            `json:",omitempty"`
	GatewayAddress string            `json:",omitempty"`
	Policies       []json.RawMessage `json:",omitempty"`
}

// HNSEndpoint is an endpoint in version 1.
type HNSEndpoint struct {
	ID                 GUID              `json:",omitempty"`
	Name               string            `json:",omitempty"`
	VirtualNetwork     GUID              `json:",omitempty"`
	VirtualNetworkName string            `json:",omitempty"`
	Policies           []json.RawMessage `json:",omitempty"`
	MacAddress         MAC               `json:",omitempty"`
	IPAddress          string            `json:",omitempty"`
	IPv6Address        string            `json:",omitempty"`
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
	Namespace          *HNSNamespace     `json:",omitempty"`
	EncapOverhead      uint16            `json:",omitempty"`
	SharedContainers   []string          `json:",omitempty"`
	State              EndpointState     `json:",omitempty"`
}

// HNSNamespace is a namespace in version 1.
type HNSNamespace struct {
	ID              GUID          `json:",omitempty"`
	IsDefault       bool          `json:",omitempty"`
	ResourceList    []HNSResource `json:",omitempty"`
	CompartmentId   uint32        `json:",omitempty"`
	CompartmentGuid GUID          `json:",omitempty"`
	Containers      []string      `json:",omitempty"`
	State           uint16        `json:",omitempty"`
}

// HNSResource is a thing inside a namespace in version 1.
type HNSResource struct {
	Type NamespaceResourceType
	Data HNSResourceData
}

// HNSResourceData names the thing; version 1 spells the member Id.
type HNSResourceData struct {
	Id string
}

// V2 is the resource in version 2.
func (r HNSResource) V2() NamespaceResource {
	return NamespaceResource{Type: r.Type, Data: NamespaceResourceData{ID: r.Data.Id}}
}

// splitList reads a comma string of version 1.
func splitList(s string) []string {
	var out []string
	for _, e := range commaList(s) {
		if e != "" {
			out = append(out, e)
		}
	}
	return out
}

func joinList(l []string) string { return strings.Join(l, ",") }

// NetworkFromV1 translates a network to version 2.
func NetworkFromV1(v *HNSNetwork) (*HostComputeNetwork, error) {
	n := &HostComputeNetwork{
		ID: v.ID, Name: v.Name, Type: v.Type, Flags: v.Flags, State: v.State, SchemaVersion: V2(),
		MacPool: MacPool{Ranges: v.MacPools},
		Dns:     Dns{Search: splitList(v.DNSSuffix), ServerList: splitList(v.DNSServerList)},
	}
	n = n.Clone()
	var subnets []Subnet
	for i, s := range v.Subnets {
		sub, err := subnetFromV1(s, v.Type)
		if err != nil {
			return nil, prefixError(indexed("Subnets", i), err)
		}
		if sub != nil {
			subnets = append(subnets, *sub)
		}
	}
	// Without a subnet the LAN gives the addresses, and the VLAN is that of its server.
	dhcp := n.Type == Transparent && len(subnets) == 0
	if dhcp {
		subnets = []Subnet{{}}
	}
	for i, raw := range v.Policies {
		if err := networkPolicyFromV1(n, subnets, raw); err != nil {
			return nil, prefixError(policyPath(i), err)
		}
	}
	switch {
	case dhcp && len(subnets[0].Policies) > 0:
		n.Ipams = []Ipam{{Type: IpamDhcp, Subnets: subnets}}
	case !dhcp && len(subnets) > 0:
		n.Ipams = []Ipam{{Subnets: subnets}}
	}
	n.addPoliciesFromV1(v)
	return n, nil
}

func prefixError(path string, err error) error {
	e := AsError(err)
	return Errorf(e.Code, "%s: %s", path, e.Detail)
}

// addPoliciesFromV1 turns members of version 1 into the policies they became.
func (n *HostComputeNetwork) addPoliciesFromV1(v *HNSNetwork) {
	if v.NetworkAdapterName != "" {
		n.Policies = append(n.Policies, NewNetworkPolicy(NetAdapterName, NetAdapterNamePolicySetting{v.NetworkAdapterName}))
	}
	if v.SourceMac != "" {
		n.Policies = append(n.Policies, NewNetworkPolicy(SourceMacAddress, SourceMacAddressPolicySetting{v.SourceMac}))
	}
	if v.AutomaticDNS {
		n.Policies = append(n.Policies, NewNetworkPolicy(AutomaticDNS, AutomaticDNSPolicySetting{true}))
	}
	if ip := v.ManagementIP; ip != "" {
		if p, err := netip.ParsePrefix(ip); err == nil { // some clients write it as it is on their adapter, with the length
			ip = p.Addr().String()
		}
		n.Policies = append(n.Policies, NewNetworkPolicy(NetworkProviderAddress, ProviderAddressPolicySetting{ip}))
	}
	if v.DrMacAddress != "" {
		n.Policies = append(n.Policies, NewNetworkPolicy(DrMacAddress, DrMacAddressPolicySetting{v.DrMacAddress}))
	}
	for _, x := range v.Extensions {
		n.Policies = append(n.Policies, NewNetworkPolicy(VSwitchExtension, VSwitchExtensionPolicySetting{x.Id, x.IsEnabled}))
	}
}

// subnetFromV1 is nil for the prefix 0.0.0.0/0, by which clients of version 1 say "choose one". In version 1 the gateway may be
// left out on networks whose gateway is ours: it is then the first address (Windows HNS behaviour).
func subnetFromV1(s HNSSubnet, t NetworkType) (*Subnet, error) {
	if s.AddressPrefix == "0.0.0.0/0" || s.AddressPrefix == "" && s.GatewayAddress == "" {
		return nil, nil
	}
	out := &Subnet{ID: s.ID, IpAddressPrefix: s.AddressPrefix}
	p, err := parsePrefix(s.AddressPrefix)
	if err != nil {
		return nil, invalid(ErrInvalidPrefix, "AddressPrefix", "%w", err)
	}
	gw := s.GatewayAddress
	if gw == "" && (t == NAT || t == ICS || t == Internal) {
		gw = p.Masked().Addr().Next().String()
	}
	if gw != "" {
		out.Routes = []Route{{NextHop: gw, DestinationPrefix: defaultDestination(p)}}
	}
	for i, raw := range s.Policies {
		pol, err := subnetPolicyFromV1(raw)
		if err != nil {
			return nil, prefixError(policyPath(i), err)
		}
		out.Policies = append(out.Policies, pol)
	}
	return out, nil
}

// NetworkToV1 translates a network to version 1. Counters of endpoints are the caller's to fill in.
func NetworkToV1(n *HostComputeNetwork) *HNSNetwork {
	c := n.Clone()
	v := &HNSNetwork{
		ID: c.ID, Name: c.Name, Type: c.Type, Flags: c.Flags, State: c.State, MacPools: c.MacPool.Ranges,
		DNSSuffix: joinList(c.Dns.Search), DNSServerList: joinList(c.Dns.ServerList),
	}
	if c.Type == NAT {
		v.NatName = c.Name
	}
	for _, s := range c.subnets() {
		sub := HNSSubnet{ID: s.ID, AddressPrefix: s.IpAddressPrefix}
		if gw, ok := s.Gateway(); ok {
			sub.GatewayAddress = gw.String()
		}
		for _, p := range s.Policies {
			sub.Policies = append(sub.Policies, subnetPolicyToV1(p))
		}
		p, err := s.Prefix()
		v.IPv6 = v.IPv6 || err == nil && p.Addr().Is6()
		v.Subnets = append(v.Subnets, sub)
	}
	if vlan := c.commonVLAN(); vlan != nil {
		v.Policies = append(v.Policies, vlan)
	}
	for _, p := range c.Policies {
		v.addPolicyFromV2(p)
	}
	return v
}

// commonVLAN is the policy by which a document of version 1 puts a whole network into a VLAN; nil if its subnets are in none, or in
// several.
func (n *HostComputeNetwork) commonVLAN() json.RawMessage {
	var vlan json.RawMessage
	for i, s := range n.AllSubnets() {
		var own json.RawMessage
		for _, p := range s.Policies {
			if p.Type == VLAN {
				own = subnetPolicyToV1(p)
			}
		}
		if own == nil || i > 0 && !bytes.Equal(own, vlan) {
			return nil
		}
		vlan = own
	}
	return vlan
}

func (v *HNSNetwork) addPolicyFromV2(p NetworkPolicy) {
	settings, err := p.Decode()
	if err != nil {
		v.Policies = append(v.Policies, flatten(string(p.Type), p.Settings))
		return
	}
	switch s := settings.(type) {
	case NetAdapterNamePolicySetting:
		v.NetworkAdapterName = s.NetworkAdapterName
	case SourceMacAddressPolicySetting:
		v.SourceMac = s.SourceMacAddress
	case AutomaticDNSPolicySetting:
		v.AutomaticDNS = s.Enable
	case ProviderAddressPolicySetting:
		v.ManagementIP = s.ProviderAddress
	case DrMacAddressPolicySetting:
		v.DrMacAddress = s.Address
	case VSwitchExtensionPolicySetting:
		v.Extensions = append(v.Extensions, HNSExtension{s.ExtensionID, s.Enable})
	default:
		v.Policies = append(v.Policies, flatten(string(p.Type), p.Settings))
	}
}

// NamespaceFromV1 translates a namespace to version 2. Resources are attached by requests, not by the document.
func NamespaceFromV1(v *HNSNamespace) *HostComputeNamespace {
	n := &HostComputeNamespace{ID: v.ID, NamespaceId: v.CompartmentId, NamespaceGuid: v.CompartmentGuid, SchemaVersion: V2()}
	if v.IsDefault {
		n.Type = NamespaceTypeHostDefault
	}
	return n
}

// NamespaceToV1 translates a namespace to version 1.
func NamespaceToV1(n *HostComputeNamespace) *HNSNamespace {
	v := &HNSNamespace{
		ID: n.ID, IsDefault: n.Type == NamespaceTypeHostDefault || n.Type == NamespaceTypeGuestDefault,
		CompartmentId: n.NamespaceId, CompartmentGuid: n.NamespaceGuid, Containers: n.Containers(), State: n.State,
	}
	for _, r := range n.Resources {
		v.ResourceList = append(v.ResourceList, HNSResource{Type: r.Type, Data: HNSResourceData{Id: r.Data.ID}})
	}
	return v
}
