package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// nextAfter is the command that changes what a port's policy said.
func (e *Engine) nextAfter(way *plan.Explanation) string {
	at := e.view.port(way.At)
	if at == nil || at.Kind != plan.PortContainer || len(way.Legs) == 0 {
		return ""
	}
	n := e.view.network(at.Network)
	if n == nil {
		return ""
	}
	switch r := way.Rule; {
	case way.Reason == "isolated":
		return fmt.Sprintf("bulkhead network disconnect %s %s && bulkhead network connect %s %s", n.Name, portName(at), n.Name, portName(at))
	case way.Reason != "policy-out" && way.Reason != "policy-in":
		return "bulkhead drops " + portName(at)
	case r == nil:
		return e.allowCommand(way, at, n)
	case r.Source.ID != "" && e.ownACL(at.Endpoint, r.Source.ID):
		return fmt.Sprintf("bulkhead acl rm%s %s %s", e.whichNetwork(at, n), portName(at), r.Source.ID)
	}
	direction := hcn.DirectionTypeIn
	if way.Reason == "policy-out" {
		direction = hcn.DirectionTypeOut
	}
	return e.removeByHCN(at, way.Rule, direction)
}

// allowCommand adds the rule that would let the packet pass a default.
func (e *Engine) allowCommand(way *plan.Explanation, at *plan.Port, n *plan.Switch) string {
	k := &way.Legs[len(way.Legs)-1].Packet
	direction, remote := "in", k.Src
	if way.Reason == "policy-out" {
		direction, remote = "out", k.Dst
	}
	s := fmt.Sprintf("bulkhead acl add%s --direction %s --action allow --proto %s", e.whichNetwork(at, n), direction, protocolWord(k.Protocol))
	if k.Protocol == 6 || k.Protocol == 17 {
		s += fmt.Sprintf(" --ports %d", k.DstPort)
	}
	return s + fmt.Sprintf(" --remote %s %s", remote, portName(at))
}

// whichNetwork is the flag that a container on several networks needs.
func (e *Engine) whichNetwork(at *plan.Port, n *plan.Switch) string {
	for _, o := range e.view.all() {
		if o != at && o.Kind == plan.PortContainer && o.VNIC.Namespace == at.VNIC.Namespace {
			return " --network " + n.Name
		}
	}
	return ""
}

func (e *Engine) ownACL(endpoint hcn.GUID, id string) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep := e.st.endpoints[endpoint]
	return ep != nil && slices.ContainsFunc(ep.Doc.Policies, func(p hcn.EndpointPolicy) bool {
		s, err := p.Decode()
		acl, ok := s.(hcn.AclPolicySetting)
		return err == nil && ok && acl.Id == id
	})
}

// removeByHCN is the request that takes away a policy which no verb of ours does: a tier, a
// rule of the network, or one without an Id.
func (e *Engine) removeByHCN(at *plan.Port, r *plan.Rule, direction hcn.DirectionType) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep, n := e.st.endpoints[at.Endpoint], e.st.networks[at.Network]
	if ep == nil || n == nil {
		return ""
	}
	for _, p := range ep.Doc.Policies {
		s, err := p.Decode()
		tier, isTier := s.(hcn.TierAclPolicySetting)
		if err == nil && isTier && tier.Name == r.Source.Tier && r.Source.Layer == plan.LayerTier {
			return removePolicy("endpoints", ep.Doc.ID, string(p.Type), string(p.Settings))
		}
		if err == nil && wroteACL(s, r, direction) {
			return removePolicy("endpoints", ep.Doc.ID, string(p.Type), string(p.Settings))
		}
	}
	for _, p := range n.Doc.Policies {
		s, err := p.Decode()
		if err == nil && wroteACL(s, r, direction) {
			return removePolicy("networks", n.Doc.ID, string(p.Type), string(p.Settings))
		}
	}
	return "bulkhead rules " + portName(at)
}

// wroteACL tells whether a policy is the rule that blocked. Of several that are written alike each is.
func wroteACL(s any, r *plan.Rule, direction hcn.DirectionType) bool {
	acl, ok := s.(hcn.AclPolicySetting)
	return ok && acl.Id == r.Source.ID && acl.Priority == r.Source.Priority && acl.Direction == direction && acl.Action == hcn.ActionTypeBlock
}

func removePolicy(kind string, id hcn.GUID, policy, settings string) string {
	var line bytes.Buffer
	if json.Compact(&line, []byte(settings)) == nil {
		settings = line.String()
	}
	body := fmt.Sprintf(`{"ResourceType":"Policy","RequestType":"Remove","Settings":{"Policies":[{"Type":%q,"Settings":%s}]}}`, policy, settings)
	return fmt.Sprintf("curl -sS --unix-socket /run/bulkhead/bulkhead.sock -d %s http://bulkhead/hcn/v2/%s/%s/modify",
		"'"+strings.ReplaceAll(body, "'", `'\''`)+"'", kind, id)
}
