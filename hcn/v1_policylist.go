package hcn

import (
	"encoding/json"
	"strings"
)

// HNSPolicyList is what version 1 has for load balancers and routes: policies, and the endpoints that they are for.
type HNSPolicyList struct {
	ID         GUID              `json:",omitempty"`
	References []string          `json:",omitempty"` // /endpoints/GUID
	Policies   []json.RawMessage `json:",omitempty"`
}

const endpointReference = "/endpoints/"

// endpoints are those that a list refers to. Clients leave the first slash out, or add one.
func (v *HNSPolicyList) endpoints() ([]GUID, error) {
	var out []GUID
	for i, ref := range v.References {
		path := "/" + strings.Trim(ref, "/")
		id, err := GUID(""), error(nil)
		ours := len(path) > len(endpointReference) && strings.EqualFold(path[:len(endpointReference)], endpointReference)
		if ours {
			id, err = ParseGUID(path[len(endpointReference):])
		}
		if !ours || err != nil {
			return nil, invalid(ErrInvalidJSONReference, indexed("References", i), "%.80q is none to an endpoint: write %s and its GUID", ref, endpointReference)
		}
		out = append(out, id)
	}
	return out, nil
}

// references writes such a list.
func references(endpoints []GUID) []string {
	out := make([]string, len(endpoints))
	for i, id := range endpoints {
		out[i] = endpointReference + string(id)
	}
	return out
}

// RouteFromV1 translates a list of policies ROUTE to version 2.
func RouteFromV1(v *HNSPolicyList) (*HostComputeRoute, error) {
	ends, err := v.endpoints()
	if err != nil {
		return nil, err
	}
	r := &HostComputeRoute{ID: v.ID, SchemaVersion: V2(), HostComputeEndpoints: ends}
	for i, raw := range v.Policies {
		typ, _, err := flatMembers(raw)
		switch {
		case err != nil:
			return nil, prefixError(policyPath(i), err)
		case strings.EqualFold(typ, "ELB"):
			return nil, invalid(ErrRequestUnsupported, policyPath(i), "a route has no load balancer (ELB): make a list of its own for it")
		case !strings.EqualFold(typ, "ROUTE") && !strings.EqualFold(typ, string(SDNRoute)):
			return nil, invalid(ErrInvalidPolicyType, policyPath(i), "%q is no type of a policy list: use ROUTE", typ)
		}
		p, err := EndpointPolicyFromV1(raw)
		if err != nil {
			return nil, prefixError(policyPath(i), err)
		}
		settings, err := p.Decode()
		if err != nil {
			return nil, prefixError(policyPath(i), err)
		}
		if s, ok := settings.(SDNRoutePolicySetting); ok {
			r.Routes = append(r.Routes, s)
		}
	}
	r.Setting = r.Routes
	return r, nil
}

// RouteToV1 translates a route to version 1.
func RouteToV1(r *HostComputeRoute) *HNSPolicyList {
	v := &HNSPolicyList{ID: r.ID, References: references(r.HostComputeEndpoints)}
	for _, s := range r.Routes {
		v.Policies = append(v.Policies, EndpointPolicyToV1(NewEndpointPolicy(SDNRoute, s)))
	}
	return v
}
