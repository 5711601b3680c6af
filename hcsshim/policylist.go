package hcsshim

import (
	"encoding/json"
	"slices"
)

// RoutePolicy is a route of endpoints.
type RoutePolicy struct {
	Policy
	DestinationPrefix string `json:"DestinationPrefix,omitempty"`
	NextHop           string `json:"NextHop,omitempty"`
	EncapEnabled      bool   `json:"NeedEncap,omitempty"`
}

// LBPolicy is a port of a load balancer.
type LBPolicy struct {
	Policy
	Protocol     uint16 `json:"Protocol,omitempty"`
	InternalPort uint16
	ExternalPort uint16
}

// ELBPolicy is a load balancer of one port.
type ELBPolicy struct {
	LBPolicy
	SourceVIP string   `json:"SourceVIP,omitempty"`
	VIPs      []string `json:"VIPs,omitempty"`
	ILB       bool     `json:"ILB,omitempty"`
	DSR       bool     `json:"IsDSR,omitempty"`
}

// PolicyList is a load balancer or a route, of the endpoints that it refers to.
type PolicyList struct {
	ID                 string            `json:"ID,omitempty"`
	EndpointReferences []string          `json:"References,omitempty"`
	Policies           []json.RawMessage `json:"Policies,omitempty"`
}

// HNSPolicyListRequest makes a call about one list; path is what follows /policylists/.
func HNSPolicyListRequest(method, path, request string) (*PolicyList, error) {
	return answered[PolicyList](method, below("policylists", path), request)
}

// PolicyListRequest is the same.
func PolicyListRequest(method, path, request string) (*PolicyList, error) {
	return HNSPolicyListRequest(method, path, request)
}

// HNSListPolicyListRequest shows all lists.
func HNSListPolicyListRequest() ([]PolicyList, error) {
	return listed[PolicyList]("GET", "/policylists/", "")
}

// GetPolicyListByID shows the list with an ID.
func GetPolicyListByID(policyListID string) (*PolicyList, error) {
	return PolicyListRequest("GET", policyListID, "")
}

// Create makes the list.
func (policylist *PolicyList) Create() (*PolicyList, error) {
	text, err := encoded(policylist)
	if err != nil {
		return nil, err
	}
	return PolicyListRequest("POST", "", text)
}

// Delete deletes the list.
func (policylist *PolicyList) Delete() (*PolicyList, error) {
	return PolicyListRequest("DELETE", policylist.ID, "")
}

// again deletes and creates it with other endpoints, as this API promises.
func (policylist *PolicyList) again(references []string) (*PolicyList, error) {
	if _, err := policylist.Delete(); err != nil {
		return nil, err
	}
	policylist.EndpointReferences = references
	return policylist.Create()
}

func reference(endpoint *HNSEndpoint) string { return "/endpoints/" + endpoint.Id }

// AddEndpoint adds an endpoint.
func (policylist *PolicyList) AddEndpoint(endpoint *HNSEndpoint) (*PolicyList, error) {
	return policylist.again(append(slices.Clone(policylist.EndpointReferences), reference(endpoint)))
}

// RemoveEndpoint removes an endpoint.
func (policylist *PolicyList) RemoveEndpoint(endpoint *HNSEndpoint) (*PolicyList, error) {
	return policylist.again(slices.DeleteFunc(slices.Clone(policylist.EndpointReferences), func(r string) bool { return r == reference(endpoint) }))
}

// listOf makes a list of one policy.
func listOf(endpoints []HNSEndpoint, policy any) (*PolicyList, error) {
	b, err := json.Marshal(policy)
	if err != nil {
		return nil, err
	}
	list := &PolicyList{Policies: []json.RawMessage{b}}
	for i := range endpoints {
		list.EndpointReferences = append(list.EndpointReferences, reference(&endpoints[i]))
	}
	return list.Create()
}

// AddLoadBalancer makes a load balancer of one port.
func AddLoadBalancer(endpoints []HNSEndpoint, isILB bool, sourceVIP, vip string, protocol uint16, internalPort uint16, externalPort uint16) (*PolicyList, error) {
	policy := ELBPolicy{SourceVIP: sourceVIP, ILB: isILB}
	policy.Type, policy.Protocol, policy.InternalPort, policy.ExternalPort = ExternalLoadBalancer, protocol, internalPort, externalPort
	if vip != "" {
		policy.VIPs = []string{vip}
	}
	return listOf(endpoints, policy)
}

// AddRoute makes a route of endpoints.
func AddRoute(endpoints []HNSEndpoint, destinationPrefix string, nextHop string, encapEnabled bool) (*PolicyList, error) {
	policy := RoutePolicy{DestinationPrefix: destinationPrefix, NextHop: nextHop, EncapEnabled: encapEnabled}
	policy.Type = Route
	return listOf(endpoints, policy)
}
