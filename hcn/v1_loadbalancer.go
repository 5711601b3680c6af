package hcn

import (
	"encoding/json"
	"slices"
	"strings"
)

// IsLoadBalancer tells that a list holds the ports of a load balancer.
func (v *HNSPolicyList) IsLoadBalancer() bool {
	return slices.ContainsFunc(v.Policies, func(raw json.RawMessage) bool {
		typ, _, err := flatMembers(raw)
		return err == nil && strings.EqualFold(typ, "ELB")
	})
}

// hnsELB is one port of a load balancer in version 1.
type hnsELB struct {
	Type         string
	Protocol     Protocol `json:",omitempty"`
	InternalPort uint16   `json:",omitempty"`
	ExternalPort uint16   `json:",omitempty"`
	SourceVIP    string   `json:",omitempty"`
	VIPs         []string `json:",omitempty"`
	ILB          bool     `json:",omitempty"`
	IsDSR        bool     `json:",omitempty"`
}

// LoadBalancerFromV1 translates a policy list to version 2.
func LoadBalancerFromV1(v *HNSPolicyList) (*HostComputeLoadBalancer, error) {
	ends, err := v.endpoints()
	if err != nil {
		return nil, err
	}
	l := &HostComputeLoadBalancer{ID: v.ID, HostComputeEndpoints: ends}
	if len(v.Policies) == 0 {
		return nil, invalid(ErrInvalidPolicy, "Policies", "there is none: give one of type ELB for each port")
	}
	for i, raw := range v.Policies {
		if err := l.addELB(raw, i == 0, indexed("Policies", i)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *HostComputeLoadBalancer) addELB(raw json.RawMessage, first bool, at string) error {
	e, err := Decode[hnsELB](raw)
	if err != nil {
		return invalid(CodeOf(err), at, "%s", AsError(err).Detail)
	}
	switch {
	case strings.EqualFold(e.Type, "ROUTE"):
		return invalid(ErrRequestUnsupported, at, "a load balancer has no routes: make a list of its own for it")
	case !strings.EqualFold(e.Type, "ELB"):
		return invalid(ErrInvalidPolicyType, at+".Type", "%.40q is not ELB", e.Type)
	}
	flags := LoadBalancerFlags(0)
	if e.IsDSR {
		flags |= EnableDirectServerReturn
	}
	if first {
		l.FrontendVIPs, l.SourceVIP, l.Flags = e.VIPs, e.SourceVIP, flags
	} else if !slices.Equal(l.FrontendVIPs, e.VIPs) || l.SourceVIP != e.SourceVIP || l.Flags != flags {
		return invalid(ErrInvalidPolicy, at, "its VIPs, SourceVIP or IsDSR are not those of the first policy: make a list of its own for it")
	}
	m := LoadBalancerPortMapping{Protocol: e.Protocol, InternalPort: e.InternalPort, ExternalPort: e.ExternalPort}
	if e.ILB {
		m.Flags |= EnableInternalLoadBalancer
	}
	l.PortMappings = append(l.PortMappings, m)
	return nil
}

// LoadBalancerToV1 shows a load balancer as a policy list.
func LoadBalancerToV1(l *HostComputeLoadBalancer) *HNSPolicyList {
	v := &HNSPolicyList{ID: l.ID, References: references(l.HostComputeEndpoints)}
	for _, m := range l.PortMappings {
		// Such a value can always be encoded.
		raw, _ := json.Marshal(hnsELB{
			Type: "ELB", Protocol: m.Protocol, InternalPort: m.InternalPort, ExternalPort: m.ExternalPort, SourceVIP: l.SourceVIP,
			VIPs: l.FrontendVIPs, ILB: m.Flags&EnableInternalLoadBalancer != 0, IsDSR: l.Flags&EnableDirectServerReturn != 0,
		})
		v.Policies = append(v.Policies, raw)
	}
	return v
}
