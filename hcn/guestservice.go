package hcn

import (
	"encoding/json"
	"slices"
)

// GuestNetworkServiceState is how far the service in a guest is. It is a name on the wire.
type GuestNetworkServiceState uint8

// The states of a guest network service, in the order of their numbers on the wire.
const (
	GuestServiceNone GuestNetworkServiceState = iota
	GuestServiceCreated
	GuestServiceBootstrapping
	GuestServiceSynchronized
	GuestServicePaused
	GuestServiceDesynchronized
	GuestServiceRehydrating
	GuestServiceDegraded
	GuestServiceDestroyed
)

var guestServiceStateNames = names{
	"None", "Created", "Bootstrapping", "Synchronized", "Paused", "Desynchronized", "Rehydrating", "Degraded", "Destroyed",
}

func (s GuestNetworkServiceState) String() string { return guestServiceStateNames.text(int(s)) }

// MarshalText writes the name.
func (s GuestNetworkServiceState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name in any letter case, or the number.
func (s *GuestNetworkServiceState) UnmarshalText(b []byte) error {
	return parseEnum(s, guestServiceStateNames, "State", ErrInvalidParameter, string(b))
}

// UnmarshalJSON reads a name in any letter case, or the number.
func (s *GuestNetworkServiceState) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(s, guestServiceStateNames, "State", ErrInvalidParameter, b)
}

// GuestNetworkServiceFlags is a mask of options of a guest network service.
type GuestNetworkServiceFlags uint32

// The flags of a guest network service.
const (
	GuestServiceIsFlowsteered GuestNetworkServiceFlags = 1 << iota
	GuestServiceIsFlowsteeredSelfManaged
)

var guestServiceFlagNames = flagNames{{1, "IsFlowsteered"}, {2, "IsFlowsteeredSelfManaged"}}

func (f GuestNetworkServiceFlags) String() string { return guestServiceFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *GuestNetworkServiceFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, guestServiceFlagNames, "Flags", ErrInvalidParameter, b)
}

// GuestNetworkService is the service in a VM that gives its compartment what the host says: here, the agent of the VM. A VM has one
// document of it, which tells how far it is.
type GuestNetworkService struct {
	ID                      GUID                     `json:",omitempty"`
	Owner                   string                   `json:",omitempty"`
	Name                    string                   `json:",omitempty"`
	Version                 uint64                   `json:",omitempty"`
	VirtualMachineId        GUID                     `json:",omitempty"`
	MirrorHostNetworking    bool                     `json:",omitempty"`
	MirroredInterfaces      json.RawMessage          `json:",omitempty"`
	GnsRpcServerInformation json.RawMessage          `json:",omitempty"`
	Flags                   GuestNetworkServiceFlags `json:",omitempty"`
	AdditionalParams        json.RawMessage          `json:",omitempty"`
	Health                  *Health                  `json:",omitempty"`
	State                   GuestNetworkServiceState `json:",omitempty"`
	SchemaVersion           SchemaVersion            `json:",omitzero"`
}

// Clone makes an independent copy.
func (g *GuestNetworkService) Clone() *GuestNetworkService {
	if g == nil {
		return nil
	}
	c := *g
	c.MirroredInterfaces = slices.Clone(g.MirroredInterfaces)
	c.GnsRpcServerInformation = slices.Clone(g.GnsRpcServerInformation)
	c.AdditionalParams = slices.Clone(g.AdditionalParams)
	c.Health = g.Health.clone()
	return &c
}

// Validate checks a service that is to be created, and refuses what has no meaning here (ADR 35).
func (g *GuestNetworkService) Validate() error {
	const code = ErrInvalidParameter
	if err := checkName(code, g.Name); err != nil {
		return err
	}
	if err := checkText(code, "Owner", g.Owner); err != nil {
		return err
	}
	if err := checkOpaque(code, g.AdditionalParams); err != nil {
		return err
	}
	if err := checkFlags(code, "Flags", uint32(g.Flags), guestServiceFlagNames); err != nil {
		return err
	}
	switch {
	case g.VirtualMachineId.IsZero():
		return invalid(code, "VirtualMachineId", "it is missing: give that of a container with VM isolation (bulkhead inspect shows it)")
	case g.MirrorHostNetworking:
		return invalid(ErrRequestUnsupported, "MirrorHostNetworking", "the host's interfaces are not mirrored into a VM: leave it out, "+
			"and attach endpoints to the VM's namespace")
	case !empty(g.MirroredInterfaces):
		return invalid(ErrRequestUnsupported, "MirroredInterfaces", "the host's interfaces are not mirrored into a VM: leave it out, "+
			"and attach endpoints to the VM's namespace")
	case !empty(g.GnsRpcServerInformation):
		return invalid(ErrRequestUnsupported, "GnsRpcServerInformation", "the agent of a VM is reached by a channel of its own, which needs no server: leave it out")
	case g.Flags != 0:
		return invalid(ErrRequestUnsupported, "Flags", "%s is not enforced: host and VM have addresses of their own and share no ports, leave it out", g.Flags)
	}
	return nil
}

// empty tells that an opaque member says nothing.
func empty(raw json.RawMessage) bool {
	switch string(raw) {
	case "", "null", "[]", "{}", `""`:
		return true
	}
	return false
}

// GuestServiceResourceType is the part of a guest network service that a request modifies.
type GuestServiceResourceType string

// GuestServiceResourceTypeState is the only part.
const GuestServiceResourceTypeState GuestServiceResourceType = "State"

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *GuestServiceResourceType) UnmarshalJSON(b []byte) error {
	return parseResourceType(t, names{"State"}, b)
}

// ModifyGuestServiceSettingRequest asks something of a guest network service.
type ModifyGuestServiceSettingRequest struct {
	ResourceUri  string                   `json:",omitempty"`
	ResourceType GuestServiceResourceType `json:",omitempty"`
	RequestType  RequestType
	Settings     json.RawMessage `json:",omitempty"`
}

// StateGuestServiceRequest is the settings of such a request.
type StateGuestServiceRequest struct {
	State GuestNetworkServiceState
}

// Validate checks the request. A state is found, not given: what can be asked for is that the guest has all that it is to have.
func (r *ModifyGuestServiceSettingRequest) Validate() error {
	if r.ResourceType != GuestServiceResourceTypeState {
		return missingResourceType("State")
	}
	s, err := requestSettings[StateGuestServiceRequest](r.Settings, r.RequestType)
	if err != nil {
		return err
	}
	switch {
	case r.RequestType == RequestTypeRefresh:
		return nil
	case r.RequestType != RequestTypeUpdate:
		return invalid(ErrRequestUnsupported, "RequestType", "%s says nothing of a state: use Update or Refresh", r.RequestType)
	case s.State != GuestServiceSynchronized:
		return invalid(ErrRequestUnsupported, "Settings.State", "%s is what is found of a VM, and cannot be asked for: use Synchronized, "+
			"or start, stop, pause or remove the VM's container", s.State)
	}
	return nil
}
