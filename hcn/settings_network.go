package hcn

import "fmt"

// networkSettings is the union of network policies.
var networkSettings = map[NetworkPolicyType]settingsType{
	SourceMacAddress:           setting[SourceMacAddressPolicySetting](),
	NetAdapterName:             setting[NetAdapterNamePolicySetting](),
	NetworkInterfaceConstraint: setting[InterfaceConstraintPolicySetting](),
	VSwitchExtension:           setting[VSwitchExtensionPolicySetting](),
	NetworkProviderAddress:     setting[ProviderAddressPolicySetting](),
	DrMacAddress:               setting[DrMacAddressPolicySetting](),
	AutomaticDNS:               setting[AutomaticDNSPolicySetting](),
	RemoteSubnetRoute:          setting[RemoteSubnetRoutePolicySetting](),
	VxlanPort:                  setting[VxlanPortPolicySetting](),
	HostRoute:                  setting[EmptySetting](),
	SetPolicy:                  setting[SetPolicySetting](),
	NetworkL4Proxy:             setting[L4ProxyPolicySetting](),
	LayerConstraint:            setting[LayerConstraintPolicySetting](),
	NetworkACL:                 setting[AclPolicySetting](),
	Exclusions:                 setting[ExclusionsSetting](),
	Macvlan:                    setting[EmptySetting](),
	Multicast:                  setting[EmptySetting](),
	NetworkEncryption:          setting[NetworkEncryptionSetting](),
}

// subnetSettings is the union of subnet policies.
var subnetSettings = map[SubnetPolicyType]settingsType{
	VLAN: setting[VlanPolicySetting](),
	VSID: setting[VsidPolicySetting](),
}

// VsidPolicySetting is the virtual subnet of an overlay: its VXLAN network identifier.
type VsidPolicySetting struct {
	IsolationId uint32
}

func (s VsidPolicySetting) validate(path string) error {
	if s.IsolationId < 4096 || s.IsolationId > 16777214 {
		return invalid(ErrInvalidPolicy, path+".IsolationId", "%d is not a virtual subnet: use 4096 to 16777214", s.IsolationId)
	}
	return nil
}

// SourceMacAddressPolicySetting is the MAC of the host's own vNIC on the network.
type SourceMacAddressPolicySetting struct {
	SourceMacAddress MAC `json:",omitempty"`
}

func (s SourceMacAddressPolicySetting) validate(path string) error {
	return checkMAC(ErrInvalidPolicy, path+".SourceMacAddress", s.SourceMacAddress)
}

// NetAdapterNamePolicySetting names the NIC to use; several, joined by commas, are a team.
type NetAdapterNamePolicySetting struct {
	NetworkAdapterName string `json:",omitempty"`
}

func (s NetAdapterNamePolicySetting) validate(path string) error {
	if s.NetworkAdapterName == "" {
		return invalid(ErrInvalidPolicy, path+".NetworkAdapterName", "it is empty: name a network interface of the host")
	}
	return checkText(ErrInvalidPolicy, path+".NetworkAdapterName", s.NetworkAdapterName)
}

// VSwitchExtensionPolicySetting turns an extension of the switch on or off.
type VSwitchExtensionPolicySetting struct {
	ExtensionID GUID `json:",omitempty"`
	Enable      bool `json:",omitempty"`
}

func (s VSwitchExtensionPolicySetting) validate(path string) error {
	if s.ExtensionID.IsZero() {
		return invalid(ErrInvalidPolicy, path+".ExtensionID", "it is missing")
	}
	return nil
}

// DrMacAddressPolicySetting is the MAC of this host's router on an overlay.
type DrMacAddressPolicySetting struct {
	Address MAC `json:",omitempty"`
}

func (s DrMacAddressPolicySetting) validate(path string) error {
	return checkMAC(ErrInvalidPolicy, path+".Address", s.Address)
}

// AutomaticDNSPolicySetting gives endpoints the host's resolvers.
type AutomaticDNSPolicySetting struct {
	Enable bool `json:",omitempty"`
}

func (AutomaticDNSPolicySetting) validate(string) error { return nil }

// RemoteSubnetRoutePolicySetting says behind which host a prefix of an overlay lives.
type RemoteSubnetRoutePolicySetting struct {
	DestinationPrefix           string `json:",omitempty"`
	IsolationId                 uint32 `json:",omitempty"`
	ProviderAddress             string `json:",omitempty"`
	DistributedRouterMacAddress MAC    `json:",omitempty"`
}

func (s RemoteSubnetRoutePolicySetting) validate(path string) error {
	if _, err := parsePrefix(s.DestinationPrefix); err != nil {
		return invalid(ErrInvalidPolicy, path+".DestinationPrefix", "%w", err)
	}
	if err := (VsidPolicySetting{s.IsolationId}).validate(path); err != nil {
		return err
	}
	if err := (ProviderAddressPolicySetting{s.ProviderAddress}).validate(path); err != nil {
		return err
	}
	return checkMAC(ErrInvalidPolicy, path+".DistributedRouterMacAddress", s.DistributedRouterMacAddress)
}

// VxlanPortPolicySetting is the UDP port of an overlay.
type VxlanPortPolicySetting struct {
	Port uint16 `json:",omitempty"`
}

func (s VxlanPortPolicySetting) validate(path string) error {
	if s.Port == 0 {
		return invalid(ErrInvalidPolicy, path+".Port", "it is missing: 4789 is the usual one")
	}
	return nil
}

// SetPolicyType is the kind of an address set.
type SetPolicyType string

// The kinds of address sets. The values of a nested set are the Ids of plain ones.
const (
	SetPolicyTypeIpSet       SetPolicyType = "IPSET"
	SetPolicyTypeNestedIpSet SetPolicyType = "NESTEDIPSET"
)

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *SetPolicyType) UnmarshalJSON(b []byte) error {
	return parseWordJSON(t, names{"IPSET", "NESTEDIPSET"}, "PolicyType", b)
}

// SetPolicySetting is a named address set, used by Id in the address fields of ACLs.
type SetPolicySetting struct {
	Id         string        `json:",omitempty"`
	Name       string        `json:",omitempty"`
	PolicyType SetPolicyType `json:",omitempty"`
	Values     string        `json:",omitempty"`
}

func (s SetPolicySetting) validate(path string) error {
	if s.Id == "" {
		return invalid(ErrInvalidPolicy, path+".Id", "it is missing: ACLs name the set by it")
	}
	if err := checkSetID(path+".Id", s.Id); err != nil {
		return err
	}
	if err := checkText(ErrInvalidPolicy, path+".Name", s.Name); err != nil {
		return err
	}
	if s.PolicyType == "" {
		return invalid(ErrInvalidPolicy, path+".PolicyType", "it is missing: use IPSET or NESTEDIPSET")
	}
	values := commaList(s.Values)
	if err := checkCount(ErrInvalidPolicy, path+".Values", len(values), maxSetValues); err != nil {
		return err
	}
	for i, v := range values { // there may be a hundred thousand: what is only for an error is made for an error
		at := func() string { return fmt.Sprintf("%s.Values, entry %d", path, i+1) }
		if s.PolicyType == SetPolicyTypeNestedIpSet {
			if v == "" {
				return invalid(ErrInvalidPolicy, at(), "it is empty: name a set by its Id")
			}
			if err := checkText(ErrInvalidPolicy, at(), v); err != nil {
				return err
			}
		} else if _, err := parseAddrOrPrefix(v); err != nil {
			return invalid(ErrInvalidPolicy, at(), "%w", err)
		}
	}
	return nil
}

// LayerConstraintPolicySetting asks for a certain switch.
type LayerConstraintPolicySetting struct {
	LayerId GUID `json:",omitempty"`
}

func (s LayerConstraintPolicySetting) validate(path string) error {
	if s.LayerId.IsZero() {
		return invalid(ErrInvalidPolicy, path+".LayerId", "it is missing")
	}
	return nil
}
