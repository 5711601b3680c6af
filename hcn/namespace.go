package hcn

import "encoding/json"

// NamespaceType says where a compartment is.
type NamespaceType uint8

// The namespace types, in the order of their numbers on the wire.
const (
	NamespaceTypeHost NamespaceType = iota
	NamespaceTypeHostDefault
	NamespaceTypeGuest
	NamespaceTypeGuestDefault
)

// InGuest tells whether the compartment is in a VM: Guest is one made for its containers, GuestDefault the one that those have which
// name none.
func (t NamespaceType) InGuest() bool {
	return t == NamespaceTypeGuest || t == NamespaceTypeGuestDefault
}

var namespaceTypeNames = names{"Host", "HostDefault", "Guest", "GuestDefault"}

func (t NamespaceType) String() string { return namespaceTypeNames.text(int(t)) }

// MarshalText writes the name.
func (t NamespaceType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name in any letter case, or the number.
func (t *NamespaceType) UnmarshalText(b []byte) error {
	return parseEnum(t, namespaceTypeNames, "Type", ErrInvalidParameter, string(b))
}

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *NamespaceType) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(t, namespaceTypeNames, "Type", ErrInvalidParameter, b)
}

// NamespaceResourceType is the kind of a thing inside a namespace.
type NamespaceResourceType uint8

// The kinds of namespace resources, in the order of their numbers on the wire.
const (
	NamespaceResourceTypeContainer NamespaceResourceType = iota
	NamespaceResourceTypeEndpoint
)

var namespaceResourceTypeNames = names{"Container", "Endpoint"}

func (t NamespaceResourceType) String() string { return namespaceResourceTypeNames.text(int(t)) }

// MarshalText writes the name.
func (t NamespaceResourceType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name in any letter case, or the number.
func (t *NamespaceResourceType) UnmarshalText(b []byte) error {
	return parseEnum(t, namespaceResourceTypeNames, "Resources.Type", ErrInvalidParameter, string(b))
}

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *NamespaceResourceType) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(t, namespaceResourceTypeNames, "Resources.Type", ErrInvalidParameter, b)
}

// NamespaceResource is an endpoint or a container in a namespace. Its ID is a GUID for an endpoint and free text for a
// container.
type NamespaceResource struct {
	Type NamespaceResourceType
	Data NamespaceResourceData
}

// UnmarshalJSON reads the resource and puts the ID of an endpoint into canonical form.
func (r *NamespaceResource) UnmarshalJSON(b []byte) error {
	type plain NamespaceResource
	if err := json.Unmarshal(b, (*plain)(r)); err != nil {
		return err
	}
	if g, err := ParseGUID(r.Data.ID); err == nil && r.Type == NamespaceResourceTypeEndpoint {
		r.Data.ID = string(g)
	}
	return nil
}

// NamespaceResourceData names the thing.
type NamespaceResourceData struct {
	ID string
}

// HostComputeNamespace is the named holder of one compartment.
type HostComputeNamespace struct {
	ID                    GUID   `json:",omitempty"`
	Owner                 string `json:",omitempty"`
	Name                  string `json:",omitempty"`
	Version               uint64 `json:",omitempty"`
	NamespaceId           uint32 `json:",omitempty"`
	NamespaceGuid         GUID   `json:",omitempty"`
	Type                  NamespaceType
	Resources             []NamespaceResource `json:",omitempty"`
	CreateWithCompartment bool                `json:",omitempty"`
	ReadyOnCreate         bool                `json:",omitempty"`
	AdditionalParams      json.RawMessage     `json:",omitempty"`
	Health                *Health             `json:",omitempty"`
	State                 uint16              `json:",omitempty"`
	SchemaVersion         SchemaVersion       `json:",omitzero"`
}

// HostDefaultCompartment is the number of the host's own network stack (Windows HNS behaviour).
const HostDefaultCompartment uint32 = 1
