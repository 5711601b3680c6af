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

const referencePrefix = "endpoints/"

// RouteFromV1 translates a list of policies ROUTE to version 2.
func RouteFromV1(v *HNSPolicyList) (*HostComputeRoute, error) {
	r := &HostComputeRoute{ID: v.ID, SchemaVersion: V2()}
	for i, ref := range v.References {
		path := strings.Trim(ref, "/")
		if len(path) > len(referencePrefix) && strings.EqualFold(path[:len(referencePrefix)], referencePrefix) {
			path = path[len(referencePrefix):]
		}
		id, err := ParseGUID(path)
		if err != nil {
			return nil, invalid(CodeOf(err), indexed("References", i), "%s: write it like /endpoints/GUID", AsError(err).Detail)
		}
		r.HostComputeEndpoints = append(r.HostComputeEndpoints, id)
	}
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
	v := &HNSPolicyList{ID: r.ID}
	for _, id := range r.HostComputeEndpoints {
		v.References = append(v.References, "/"+referencePrefix+string(id))
	}
	for _, s := range r.Routes {
		v.Policies = append(v.Policies, EndpointPolicyToV1(NewEndpointPolicy(SDNRoute, s)))
	}
	return v
}
