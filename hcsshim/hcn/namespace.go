package hcn

import "encoding/json"

// NamespaceResourceEndpoint is an endpoint in a namespace.
type NamespaceResourceEndpoint struct {
	Id string `json:"ID"`
}

// NamespaceResourceContainer is a container in a namespace.
type NamespaceResourceContainer struct {
	Id string `json:"ID"`
}

// NamespaceResourceType says what is in a namespace.
type NamespaceResourceType string

// What may be in a namespace.
var (
	NamespaceResourceTypeContainer NamespaceResourceType = "Container"
	NamespaceResourceTypeEndpoint  NamespaceResourceType = "Endpoint"
)

// NamespaceResource is something in a namespace.
type NamespaceResource struct {
	Type NamespaceResourceType
	Data json.RawMessage
}

// NamespaceType says whose namespace it is.
type NamespaceType string

// The types of namespaces.
var (
	NamespaceTypeHost         NamespaceType = "Host"
	NamespaceTypeHostDefault  NamespaceType = "HostDefault"
	NamespaceTypeGuest        NamespaceType = "Guest"
	NamespaceTypeGuestDefault NamespaceType = "GuestDefault"
)

// HostComputeNamespace is a namespace, with the compartment that it is.
type HostComputeNamespace struct {
	Id            string              `json:"ID,omitempty"`
	NamespaceId   uint32              `json:",omitempty"`
	Type          NamespaceType       `json:",omitempty"`
	Resources     []NamespaceResource `json:",omitempty"`
	SchemaVersion SchemaVersion       `json:",omitzero"`
	ReadyOnCreate bool                `json:",omitempty"`
}

// ModifyNamespaceSettingRequest changes what is in a namespace.
type ModifyNamespaceSettingRequest struct {
	ResourceType NamespaceResourceType `json:",omitempty"`
	RequestType  RequestType           `json:",omitempty"`
	Settings     json.RawMessage       `json:",omitempty"`
}

const namespaces = "namespaces"

// ListNamespaces shows all namespaces.
func ListNamespaces() ([]HostComputeNamespace, error) { return ListNamespacesQuery(defaultQuery()) }

// ListNamespacesQuery shows those that a query selects.
func ListNamespacesQuery(query HostComputeQuery) ([]HostComputeNamespace, error) {
	return list[HostComputeNamespace](namespaces, query)
}

// GetNamespaceByID shows the one with an ID.
func GetNamespaceByID(namespaceId string) (*HostComputeNamespace, error) {
	return first[HostComputeNamespace](namespaces, filtered("ID", namespaceId), NamespaceNotFoundError{NamespaceID: namespaceId})
}

// resources gives the IDs of what of a type is in a namespace.
func resources(namespaceId string, of NamespaceResourceType) ([]string, error) {
	ns, err := GetNamespaceByID(namespaceId)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, r := range ns.Resources {
		if r.Type != of {
			continue
		}
		var data struct{ ID string }
		if err := json.Unmarshal(r.Data, &data); err != nil {
			return nil, err
		}
		ids = append(ids, data.ID)
	}
	return ids, nil
}

// GetNamespaceEndpointIds gives the endpoints in a namespace.
func GetNamespaceEndpointIds(namespaceId string) ([]string, error) {
	return resources(namespaceId, NamespaceResourceTypeEndpoint)
}

// GetNamespaceContainerIds gives the containers in a namespace.
func GetNamespaceContainerIds(namespaceId string) ([]string, error) {
	return resources(namespaceId, NamespaceResourceTypeContainer)
}

// NewNamespace gives the document of a namespace to create.
func NewNamespace(nsType NamespaceType) *HostComputeNamespace {
	return &HostComputeNamespace{Type: nsType, SchemaVersion: V2SchemaVersion()}
}

// Create makes the namespace.
func (namespace *HostComputeNamespace) Create() (*HostComputeNamespace, error) {
	return create(namespaces, namespace)
}

// Delete deletes the namespace.
func (namespace *HostComputeNamespace) Delete() error { return remove(namespaces, namespace.Id) }

// Sync waits until the VM that a namespace of type Guest or GuestDefault is in has what is attached there, and nothing else. Others have nothing to wait
// for: endpoints are in their compartment when they are attached.
func (namespace *HostComputeNamespace) Sync() error {
	if namespace.Type != NamespaceTypeGuest && namespace.Type != NamespaceTypeGuestDefault {
		return nil
	}
	return ModifyNamespaceSettings(namespace.Id, &ModifyNamespaceSettingRequest{ResourceType: NamespaceResourceTypeEndpoint, RequestType: RequestTypeRefresh})
}

// ModifyNamespaceSettings changes what is in a namespace.
func ModifyNamespaceSettings(namespaceId string, request *ModifyNamespaceSettingRequest) error {
	return modify(namespaces, namespaceId, request)
}

func changeNamespace(what RequestType, namespaceId, endpointId string) error {
	raw, err := settings(map[string]string{"EndpointId": endpointId})
	if err != nil {
		return err
	}
	return ModifyNamespaceSettings(namespaceId, &ModifyNamespaceSettingRequest{ResourceType: NamespaceResourceTypeEndpoint, RequestType: what, Settings: raw})
}

// AddNamespaceEndpoint puts an endpoint into a namespace.
func AddNamespaceEndpoint(namespaceId string, endpointId string) error {
	return changeNamespace(RequestTypeAdd, namespaceId, endpointId)
}

// RemoveNamespaceEndpoint takes an endpoint out of a namespace.
func RemoveNamespaceEndpoint(namespaceId string, endpointId string) error {
	return changeNamespace(RequestTypeRemove, namespaceId, endpointId)
}
