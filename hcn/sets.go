package hcn

import (
	"encoding/json"
	"slices"
	"strings"
)

// This file holds who refers to an address set. A rule that names a set which is not there would match nothing, and its
// author would believe in a filter that is not there: so such a rule is refused, and so is the removal of a set in use.

// setHead is what names a set and its kind: the rest may be a hundred thousand addresses, which most questions are not about.
type setHead struct {
	Id         string
	PolicyType SetPolicyType
}

// setKinds are the address sets of the network by Id.
func (n *HostComputeNetwork) setKinds() (map[string]SetPolicyType, error) {
	out := map[string]SetPolicyType{}
	for i, p := range n.Policies {
		if p.Type != SetPolicy {
			continue
		}
		var s setHead
		if err := json.Unmarshal(p.Settings, &s); err != nil {
			return nil, invalid(ErrInvalidPolicy, policyPath(i)+".Settings", "%w", err)
		}
		out[s.Id] = s.PolicyType
	}
	return out, nil
}

// validateSets checks what a network's own policies say about its sets.
func validateSets(settings []any) error {
	kinds := map[string]SetPolicyType{}
	for _, v := range settings {
		if s, ok := v.(SetPolicySetting); ok {
			kinds[s.Id] = s.PolicyType
		}
	}
	for i, v := range settings {
		at := policyPath(i) + ".Settings"
		switch s := v.(type) {
		case SetPolicySetting:
			for _, id := range s.Members() {
				switch kinds[id] {
				case SetPolicyTypeIpSet:
				case SetPolicyTypeNestedIpSet:
					return invalid(ErrInvalidPolicy, at+".Values", "%s is a nested set itself: name sets of type IPSET", quote(id))
				default:
					return noSet(at+".Values", id)
				}
			}
		case AclPolicySetting:
			if err := s.match().checkSets(at, kinds); err != nil {
				return err
			}
		}
	}
	return nil
}

func noSet(path, id string) error {
	return invalid(ErrInvalidPolicy, path, "%s is no address, and the network has no address set with that Id: add a SetPolicy to the network first",
		quote(id))
}

// setRefs are the Ids of sets in the address fields, each with its field.
func (m aclMatch) setRefs(yield func(field, id string) bool) {
	for _, f := range []struct{ name, list string }{{"LocalAddresses", m.localAddresses}, {"RemoteAddresses", m.remoteAddresses}} {
		for _, id := range parseAddressList(f.list).Sets {
			if !yield(f.name, id) {
				return
			}
		}
	}
}

func (m aclMatch) checkSets(path string, kinds map[string]SetPolicyType) error {
	for field, id := range m.setRefs {
		if kinds[id] == "" {
			return noSet(path+"."+field, id)
		}
	}
	return nil
}

// matches yields the match part of every rule of the endpoint, with its path in the document.
func (e *HostComputeEndpoint) matches(yield func(path string, m aclMatch) bool) {
	for i, p := range e.Policies {
		if p.Type != ACL && p.Type != TierAcl {
			continue
		}
		v, err := p.Decode()
		if err != nil {
			continue // Validate reports it
		}
		switch s := v.(type) {
		case AclPolicySetting:
			if !yield(policyPath(i)+".Settings", s.match()) {
				return
			}
		case TierAclPolicySetting:
			for j, r := range s.TierAclRules {
				if !yield(policyPath(i)+".Settings."+indexed("TierAclRules", j), r.match()) {
					return
				}
			}
		}
	}
}

// validateSetsFor checks that the sets which the endpoint's rules name are there.
func (e *HostComputeEndpoint) validateSetsFor(n *HostComputeNetwork) error {
	var kinds map[string]SetPolicyType
	for path, m := range e.matches {
		for field, id := range m.setRefs {
			if kinds == nil { // most endpoints name no set, and sets are large
				var err error
				if kinds, err = n.setKinds(); err != nil {
					return err
				}
			}
			if kinds[id] == "" {
				return noSet(path+"."+field, id)
			}
		}
	}
	return nil
}

// RemovedSets are the Ids of the address sets that a network had before a change and has no longer.
func RemovedSets(before, after *HostComputeNetwork) ([]string, error) {
	had, err := before.setKinds()
	if err != nil {
		return nil, err
	}
	has, err := after.setKinds()
	if err != nil {
		return nil, err
	}
	var out []string
	for id := range had {
		if has[id] == "" {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out, nil
}

// UsesSet finds a rule of the endpoint that names one of the sets: the set, or "".
func (e *HostComputeEndpoint) UsesSet(ids []string) string {
	for _, m := range e.matches {
		for _, id := range m.setRefs {
			if slices.Contains(ids, id) {
				return id
			}
		}
	}
	return ""
}

// checkSetsUnused refuses to take sets away, which before had, from under the network's own policies.
func (n *HostComputeNetwork) checkSetsUnused(before *HostComputeNetwork) error {
	gone, err := RemovedSets(before, n)
	if err != nil || len(gone) == 0 {
		return err
	}
	for i, p := range n.Policies {
		v, err := p.Decode()
		if err != nil {
			return err
		}
		switch s := v.(type) {
		case SetPolicySetting:
			for _, id := range s.Members() {
				if slices.Contains(gone, id) {
					return inUse(id, "set "+quote(s.Id))
				}
			}
		case AclPolicySetting:
			for _, id := range s.match().setRefs {
				if slices.Contains(gone, id) {
					return inUse(id, "the network's "+policyPath(i)+" (NetworkACL "+quote(s.Id)+")")
				}
			}
		}
	}
	return nil
}

func inUse(id, by string) error {
	return Errorf(ErrEntityHasReferences, "address set %s is used by %s: change that first", quote(id), by)
}

// checkSetID: a rule has to be able to name the set.
func checkSetID(path, id string) error {
	if strings.ContainsAny(id, "/:., ") {
		return invalid(ErrInvalidPolicy, path, "rules could not name %s: leave out / : . , and blanks, which are for addresses and lists", quote(id))
	}
	return checkText(ErrInvalidPolicy, path, id)
}
