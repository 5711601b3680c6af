package hcn

import (
	"encoding/json"
	"slices"
)

// HostComputeRoute is a route at the switch ports of some endpoints. The schema calls the list Routes and clients send it as
// Setting: both are accepted, both are written, and they always hold the same.
type HostComputeRoute struct {
	ID                   GUID                    `json:",omitempty"`
	Owner                string                  `json:",omitempty"`
	Name                 string                  `json:",omitempty"`
	Version              uint64                  `json:",omitempty"`
	HostComputeNetwork   GUID                    `json:",omitempty"`
	HostComputeEndpoints []GUID                  `json:",omitempty"`
	Setting              []SDNRoutePolicySetting `json:",omitempty"`
	Routes               []SDNRoutePolicySetting `json:",omitempty"`
	AdditionalParams     json.RawMessage         `json:",omitempty"`
	Health               *Health                 `json:",omitempty"`
	State                uint16                  `json:",omitempty"`
	SchemaVersion        SchemaVersion           `json:",omitzero"`
}

// SdnRoute is the schema's short name.
type SdnRoute = HostComputeRoute

// UnmarshalJSON fills the list that is missing from the other.
func (r *HostComputeRoute) UnmarshalJSON(b []byte) error {
	type plain HostComputeRoute
	var w plain
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	switch {
	case w.Routes == nil:
		w.Routes = slices.Clone(w.Setting)
	case w.Setting == nil:
		w.Setting = slices.Clone(w.Routes)
	case !slices.Equal(w.Routes, w.Setting):
		return Errorf(ErrInvalidParameter, "Routes and Setting differ: they are two names of one list, give one")
	}
	*r = HostComputeRoute(w)
	return nil
}

// Clone makes an independent copy.
func (r *HostComputeRoute) Clone() *HostComputeRoute {
	if r == nil {
		return nil
	}
	c := *r
	c.HostComputeEndpoints = slices.Clone(r.HostComputeEndpoints)
	c.Setting = slices.Clone(r.Setting)
	c.Routes = slices.Clone(r.Routes)
	c.AdditionalParams = slices.Clone(r.AdditionalParams)
	c.Health = r.Health.clone()
	return &c
}

// Validate checks a route by itself; ValidateFor does so for each of its endpoints.
func (r *HostComputeRoute) Validate() error { return r.validateSchema() }

// ValidateFor checks what a route asks for at an endpoint, the i-th of its list, that is on network n.
func (r *HostComputeRoute) ValidateFor(i int, e *HostComputeEndpoint, n *HostComputeNetwork) error {
	at := indexed("HostComputeEndpoints", i)
	if e.Flags&RemoteEndpoint != 0 {
		return invalid(ErrInvalidRemoteEndpointOperation, at, "endpoint %s is on another host: it has no port here", e.ID)
	}
	if !r.HostComputeNetwork.IsZero() && r.HostComputeNetwork != n.ID {
		return invalid(ErrInvalidParameter, at, "endpoint %s is on network %s, and the route for network %s", e.ID, n.ID, r.HostComputeNetwork)
	}
	if !slices.Contains(supportedEndpointPolicies[SDNRoute], n.Type) {
		return invalid(ErrRequestUnsupported, at, "an SDN route needs a network of type L2Bridge, L2Tunnel or Overlay, that of endpoint %s is %s", e.ID, n.Type)
	}
	for i, s := range r.Routes {
		if err := s.validateOn(n, indexed("Routes", i)); err != nil {
			return err
		}
	}
	return nil
}

func (r *HostComputeRoute) validateSchema() error {
	const code = ErrInvalidParameter
	if err := checkName(code, r.Name); err != nil {
		return err
	}
	if err := checkText(code, "Owner", r.Owner); err != nil {
		return err
	}
	if err := checkOpaque(code, r.AdditionalParams); err != nil {
		return err
	}
	if len(r.HostComputeEndpoints) == 0 {
		return invalid(code, "HostComputeEndpoints", "there is none: a route needs at least one endpoint to apply to")
	}
	if err := checkCount(code, "HostComputeEndpoints", len(r.HostComputeEndpoints), maxBackends); err != nil {
		return err
	}
	for i, id := range r.HostComputeEndpoints {
		if id.IsZero() {
			return invalid(ErrEndpointNotFound, indexed("HostComputeEndpoints", i), "it is empty")
		}
	}
	if len(r.Routes) == 0 {
		return invalid(code, "Routes", "there is none: give at least one")
	}
	if err := checkCount(code, "Routes", len(r.Routes), maxRoutes); err != nil {
		return err
	}
	for i, s := range r.Routes {
		if err := s.validate(indexed("Routes", i)); err != nil {
			return err
		}
		if s.NextHop == "" && !s.NeedEncap {
			return s.leadsNowhere(indexed("Routes", i))
		}
	}
	return nil
}
