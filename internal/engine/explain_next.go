package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
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
		return e.joinCommand(at, n)
	case way.Reason != "policy-out" && way.Reason != "policy-in":
		return "bulkhead drops " + plan.Word(portName(at))
	case r == nil:
		return e.allowCommand(way, at, n)
	case r.Source.Implied && r.Source.Layer == plan.LayerHost:
		k := &way.Legs[len(way.Legs)-1].Packet
		return fmt.Sprintf("bulkhead acl add%s --rule-type host --direction in --action allow --proto %s %s", e.whichNetwork(at, n), protocolWord(k.Protocol), plan.Word(portName(at)))
	case r.Source.ID != "" && e.ownACL(at.Endpoint, r.Source.ID):
		end := ""
		if strings.HasPrefix(r.Source.ID, "-") { // not a flag
			end = " --"
		}
		return fmt.Sprintf("bulkhead acl rm%s%s %s %s", e.whichNetwork(at, n), end, plan.Word(portName(at)), plan.Word(r.Source.ID))
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
	return s + fmt.Sprintf(" --remote %s %s", remote, plan.Word(portName(at)))
}

// joinCommand has an isolated endpoint replaced by one that is not: what keeps it apart is a flag, which it has from its making.
func (e *Engine) joinCommand(at *plan.Port, n *plan.Switch) string {
	name, network := plan.Word(portName(at)), plan.Word(n.Name)
	e.mu.RLock()
	defer e.mu.RUnlock()
	if ns := e.compartmentAlone(at); ns != "" {
		return fmt.Sprintf("bulkhead endpoint rm %s && bulkhead endpoint create --network %s --name %s && bulkhead namespace attach %s %s", name, network, name, plan.Word(ns), name)
	}
	return fmt.Sprintf("bulkhead network disconnect %s %s && bulkhead network connect %s %s", network, name, network, name)
}

// compartmentAlone names the compartment of an endpoint that is of no container; "" with one. The caller holds e.mu.
func (e *Engine) compartmentAlone(at *plan.Port) string {
	ep := e.st.endpoints[at.Endpoint]
	if ep == nil {
		return ""
	}
	ns := e.st.namespaces[ep.Doc.HostComputeNamespace]
	if ns == nil || len(ns.Containers) > 0 {
		return ""
	}
	return string(ns.Doc.ID)
}

// whichNetwork is the flag that a container on several networks needs.
func (e *Engine) whichNetwork(at *plan.Port, n *plan.Switch) string {
	for _, o := range e.view.all() {
		if o != at && o.Kind == plan.PortContainer && o.VNIC.Namespace == at.VNIC.Namespace {
			return " --network " + plan.Word(n.Name)
		}
	}
	return ""
}

// ownACL tells whether the endpoint has one ACL of that Id, and no other that would go with it.
func (e *Engine) ownACL(endpoint hcn.GUID, id string) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep, found := e.st.endpoints[endpoint], 0
	if ep == nil {
		return false
	}
	for _, p := range ep.Doc.Policies {
		s, err := p.Decode()
		if acl, ok := s.(hcn.AclPolicySetting); err == nil && ok && acl.Id == id {
			found++
		}
	}
	return found == 1
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
	return "bulkhead rules " + plan.Word(portName(at))
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
	return fmt.Sprintf("curl -sS --unix-socket /run/bulkhead/bulkhead.sock -d %s http://bulkhead/hcn/v2/%s/%s/modify", plan.Word(body), kind, id)
}
