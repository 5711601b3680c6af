package hcn

import (
	"encoding/json"
	"reflect"
)

// RequestType is what a modify request does.
type RequestType uint8

// The request types, in the order of their numbers on the wire.
const (
	RequestTypeAdd RequestType = iota
	RequestTypeRemove
	RequestTypeUpdate
	RequestTypeRefresh
	RequestTypeReset
)

var requestTypeNames = names{"Add", "Remove", "Update", "Refresh", "Reset"}

func (t RequestType) String() string { return requestTypeNames.text(int(t)) }

// MarshalText writes the name.
func (t RequestType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name in any letter case, or the number.
func (t *RequestType) UnmarshalText(b []byte) error {
	return parseEnum(t, requestTypeNames, "RequestType", ErrInvalidJSON, string(b))
}

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *RequestType) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(t, requestTypeNames, "RequestType", ErrInvalidJSON, b)
}

// NetworkResourceType is the part of a network that a request modifies. It is kept as text: a request that names none must be
// refused, not read as the first.
type NetworkResourceType string

// The parts of a network.
const (
	NetworkResourceTypePolicy    NetworkResourceType = "Policy"
	NetworkResourceTypeDNS       NetworkResourceType = "DNS"
	NetworkResourceTypeExtension NetworkResourceType = "Extension"
	NetworkResourceTypeSubnet    NetworkResourceType = "Subnet"
	NetworkResourceTypeIPSubnet  NetworkResourceType = "IPSubnet"
)

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *NetworkResourceType) UnmarshalJSON(b []byte) error {
	return parseResourceType(t, names{"Policy", "DNS", "Extension", "Subnet", "IPSubnet"}, b)
}

// EndpointResourceType is the part of an endpoint that a request modifies.
type EndpointResourceType string

// The parts of an endpoint.
const (
	EndpointResourceTypePort   EndpointResourceType = "Port"
	EndpointResourceTypePolicy EndpointResourceType = "Policy"
)

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *EndpointResourceType) UnmarshalJSON(b []byte) error {
	return parseResourceType(t, names{"Port", "Policy"}, b)
}

func parseResourceType[T ~string](dst *T, n names, b []byte) error {
	if err := parseWordJSON(dst, n, "ResourceType", b); err != nil {
		return Errorf(ErrInvalidJSON, "%s", AsError(err).Detail)
	}
	return nil
}

// ModifyNetworkSettingRequest changes a network.
type ModifyNetworkSettingRequest struct {
	ResourceUri  string              `json:",omitempty"`
	ResourceType NetworkResourceType `json:",omitempty"`
	RequestType  RequestType
	Settings     json.RawMessage `json:",omitempty"`
}

// ModifyEndpointSettingRequest changes an endpoint.
type ModifyEndpointSettingRequest struct {
	ResourceUri  string               `json:",omitempty"`
	ResourceType EndpointResourceType `json:",omitempty"`
	RequestType  RequestType
	Settings     json.RawMessage `json:",omitempty"`
}

// ModifyNamespaceSettingRequest attaches something to a namespace or detaches it.
type ModifyNamespaceSettingRequest struct {
	ResourceUri  string                 `json:",omitempty"`
	ResourceType *NamespaceResourceType `json:",omitempty"`
	RequestType  RequestType
	Settings     json.RawMessage `json:",omitempty"`
}

// PolicyNetworkRequest is the settings of a network request for Policy.
type PolicyNetworkRequest struct {
	Policies []NetworkPolicy
}

// PolicyEndpointRequest is the settings of an endpoint request for Policy.
type PolicyEndpointRequest struct {
	Policies []EndpointPolicy
}

// SubnetNetworkRequest is the settings of a network request for Subnet. Remove needs only each ID.
type SubnetNetworkRequest struct {
	Subnets []Subnet
}

// IpSubnetNetworkRequest is the settings of a network request for IPSubnet.
type IpSubnetNetworkRequest struct {
	SubnetId  GUID
	IpSubnets []IpSubnet
}

// ExtensionNetworkRequest is the settings of a network request for Extension.
type ExtensionNetworkRequest struct {
	Id        GUID
	IsEnabled bool
}

// PortEndpointRequest is the settings of an endpoint request for Port: make a switch port for a NIC of a VM.
type PortEndpointRequest struct {
	PortId           GUID
	VirtualNicName   string `json:",omitempty"`
	VirtualMachineId GUID   `json:",omitempty"`
}

// requestSettings reads the settings of a request. Only Refresh and Reset may leave them out.
func requestSettings[T any](raw json.RawMessage, what RequestType) (T, error) {
	var none T
	if len(raw) == 0 || string(raw) == "null" {
		if what == RequestTypeRefresh || what == RequestTypeReset {
			return none, nil
		}
		return none, invalid(ErrInvalidJSON, "Settings", "it is missing")
	}
	v, err := Decode[T](raw)
	if err != nil {
		e := AsError(err)
		return none, Errorf(e.Code, "Settings%s", settingsPath(e.Detail, reflect.TypeFor[T]()))
	}
	return *v, nil
}

// Validate checks what can be said of the request without its network.
func (r *ModifyNetworkSettingRequest) Validate() error {
	var err error
	switch r.ResourceType {
	case NetworkResourceTypePolicy:
		_, err = r.policies()
	case NetworkResourceTypeDNS:
		var s Dns
		if s, err = requestSettings[Dns](r.Settings, r.RequestType); err == nil {
			err = s.validate(ErrInvalidNetwork, "Settings")
		}
	case NetworkResourceTypeExtension:
		var s ExtensionNetworkRequest
		if s, err = requestSettings[ExtensionNetworkRequest](r.Settings, r.RequestType); err == nil && s.Id.IsZero() && r.needsSettings() {
			err = invalid(ErrSwitchExtensionNotFound, "Settings.Id", "it is missing")
		}
	case NetworkResourceTypeSubnet:
		_, err = requestSettings[SubnetNetworkRequest](r.Settings, r.RequestType)
	case NetworkResourceTypeIPSubnet:
		_, err = requestSettings[IpSubnetNetworkRequest](r.Settings, r.RequestType)
	default:
		err = missingResourceType("Policy, DNS, Extension, Subnet, IPSubnet")
	}
	return err
}

// policies reads the policies of a request and checks them.
func (r *ModifyNetworkSettingRequest) policies() ([]NetworkPolicy, error) {
	s, err := requestSettings[PolicyNetworkRequest](r.Settings, r.RequestType)
	if err != nil {
		return nil, err
	}
	return s.Policies, validateRequested(s.Policies, r.RequestType, func(p NetworkPolicy, at string) error {
		if p.Type == SetPolicy {
			return nil // it may be large, and is checked with the network that comes of it
		}
		return validatePolicy(p.Type, p.Settings, at, networkSettings)
	})
}

func (r *ModifyNetworkSettingRequest) needsSettings() bool {
	return r.RequestType != RequestTypeRefresh && r.RequestType != RequestTypeReset
}

func missingResourceType(list string) error {
	return invalid(ErrInvalidJSON, "ResourceType", "it is missing: use one of %s", list)
}

func validateRequested[P any](list []P, what RequestType, check func(p P, at string) error) error {
	if err := checkCount(ErrInvalidPolicy, "Settings.Policies", len(list), maxPolicies); err != nil {
		return err
	}
	if what == RequestTypeReset || what == RequestTypeRemove {
		return nil // Reset reads types alone, and what Remove does not find is an error of its own
	}
	for i, p := range list {
		if err := check(p, "Settings."+policyPath(i)); err != nil {
			return err
		}
	}
	return nil
}

// Apply is the network after the request. The network itself is not touched: all of the request holds, or none of it.
// newID makes the IDs of new subnets.
func (r *ModifyNetworkSettingRequest) Apply(n *HostComputeNetwork, newID func() GUID) (*HostComputeNetwork, error) {
	var policies []NetworkPolicy
	var err error
	if r.ResourceType == NetworkResourceTypePolicy {
		policies, err = r.policies() // what may be large is read once
	} else {
		err = r.Validate()
	}
	if err != nil {
		return nil, err
	}
	c := n.Clone()
	if r.RequestType == RequestTypeRefresh {
		return c, nil
	}
	switch r.ResourceType {
	case NetworkResourceTypePolicy:
		c.Policies, err = ModifyNetworkPolicies(c.Policies, r.RequestType, policies)
		if err == nil {
			err = c.checkSetsUnused(n)
		}
	case NetworkResourceTypeDNS:
		err = r.applyDNS(c)
	case NetworkResourceTypeExtension:
		err = r.applyExtension(c)
	case NetworkResourceTypeSubnet:
		err = r.applySubnets(c)
	case NetworkResourceTypeIPSubnet:
		err = r.applyIPSubnets(c)
	}
	if err != nil {
		return nil, err
	}
	c.Defaults(newID)
	if err := c.Validate(); err != nil {
		return nil, r.inRequest(err, c)
	}
	return c, nil
}

// Validate checks what can be said of the request without its endpoint.
func (r *ModifyEndpointSettingRequest) Validate() error {
	switch r.ResourceType {
	case EndpointResourceTypePolicy:
		_, err := r.policies()
		return err
	case EndpointResourceTypePort:
		_, err := r.Port()
		return err
	}
	return missingResourceType("Policy, Port")
}

// Port reads the settings of a request for Port, and checks them.
func (r *ModifyEndpointSettingRequest) Port() (PortEndpointRequest, error) {
	s, err := requestSettings[PortEndpointRequest](r.Settings, r.RequestType)
	if err != nil {
		return s, err
	}
	return s, checkText(ErrInvalidParameter, "Settings.VirtualNicName", s.VirtualNicName)
}

// policies reads the policies of a request and checks them.
func (r *ModifyEndpointSettingRequest) policies() ([]EndpointPolicy, error) {
	s, err := requestSettings[PolicyEndpointRequest](r.Settings, r.RequestType)
	if err != nil {
		return nil, err
	}
	return s.Policies, validateRequested(s.Policies, r.RequestType, func(p EndpointPolicy, at string) error {
		if p.Type == ACL {
			return nil // there may be thousands, which are checked with the endpoint that comes of it
		}
		return validatePolicy(p.Type, p.Settings, at, endpointSettings)
	})
}

// NewEndpointPolicyRequest makes a request that changes an endpoint's policies.
func NewEndpointPolicyRequest(t RequestType, policies []EndpointPolicy) (*ModifyEndpointSettingRequest, error) {
	settings, err := json.Marshal(PolicyEndpointRequest{Policies: policies})
	if err != nil {
		return nil, Errorf(ErrInvalidPolicy, "%w", err)
	}
	return &ModifyEndpointSettingRequest{ResourceType: EndpointResourceTypePolicy, RequestType: t, Settings: settings}, nil
}

// Apply is the endpoint after the request, checked against its network. The endpoint itself is not touched.
func (r *ModifyEndpointSettingRequest) Apply(e *HostComputeEndpoint, n *HostComputeNetwork) (*HostComputeEndpoint, error) {
	if r.ResourceType != EndpointResourceTypePolicy {
		return e.Clone(), r.Validate()
	}
	policies, err := r.policies()
	if err != nil {
		return nil, err
	}
	c := e.Clone()
	if r.RequestType == RequestTypeRefresh {
		return c, nil
	}
	if c.Policies, err = ModifyEndpointPolicies(c.Policies, r.RequestType, policies); err != nil {
		return nil, err
	}
	c.followProvider(e, n)
	if err := c.ValidateFor(n); err != nil {
		return nil, inRequest(err, policyPaths(c.Policies, policies, "endpoint"))
	}
	return c, nil
}

// Resource is what the request attaches or detaches; the ID of an endpoint is in canonical form. For Refresh and Reset, which
// need no settings, the ID may be empty: all of that type.
func (r *ModifyNamespaceSettingRequest) Resource() (NamespaceResource, error) {
	if r.ResourceType == nil {
		return NamespaceResource{}, missingResourceType("Endpoint, Container")
	}
	s, err := requestSettings[struct{ EndpointId, ContainerId, ID string }](r.Settings, r.RequestType)
	if err != nil {
		return NamespaceResource{}, err
	}
	res := NamespaceResource{Type: *r.ResourceType, Data: NamespaceResourceData{ID: s.ContainerId}}
	field := "Settings.ContainerId"
	if res.Type == NamespaceResourceTypeEndpoint {
		res.Data.ID, field = s.EndpointId, "Settings.EndpointId"
	}
	if res.Data.ID == "" {
		res.Data.ID = s.ID
	}
	if res.Data.ID == "" {
		if r.RequestType == RequestTypeRefresh || r.RequestType == RequestTypeReset {
			return res, nil
		}
		return NamespaceResource{}, invalid(ErrInvalidJSON, field, "it is missing")
	}
	if res.Type == NamespaceResourceTypeEndpoint {
		id, err := ParseGUID(res.Data.ID)
		if err != nil {
			return NamespaceResource{}, Errorf(ErrGUIDConversionFailure, "%s: %s", field, AsError(err).Detail)
		}
		res.Data.ID = string(id)
	}
	return res, res.validate("Settings")
}

// Validate checks the request.
func (r *ModifyNamespaceSettingRequest) Validate() error {
	_, err := r.Resource()
	return err
}
