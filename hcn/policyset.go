package hcn

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
)

// This file is the algebra of policy lists: what Add, Remove, Update, Refresh and Reset make of a list. The functions are
// pure and return a new list; the old one stays as it was, which is what makes a modify request all or nothing.

// policyKind lets one algebra serve both kinds of policies.
type policyKind[P any] struct {
	typ      func(P) string
	settings func(P) json.RawMessage
	decode   func(P) (any, error)
}

var endpointPolicyKind = policyKind[EndpointPolicy]{
	typ:      func(p EndpointPolicy) string { return string(p.Type) },
	settings: func(p EndpointPolicy) json.RawMessage { return p.Settings },
	decode:   EndpointPolicy.Decode,
}

var networkPolicyKind = policyKind[NetworkPolicy]{
	typ:      func(p NetworkPolicy) string { return string(p.Type) },
	settings: func(p NetworkPolicy) json.RawMessage { return p.Settings },
	decode:   NetworkPolicy.Decode,
}

// ModifyEndpointPolicies is the list that a modify request makes of current.
func ModifyEndpointPolicies(current []EndpointPolicy, what RequestType, request []EndpointPolicy) ([]EndpointPolicy, error) {
	list, err := endpointPolicyKind.modify(current, what, request)
	return clonePolicies(list), err
}

// ModifyNetworkPolicies is the list that a modify request makes of current.
func ModifyNetworkPolicies(current []NetworkPolicy, what RequestType, request []NetworkPolicy) ([]NetworkPolicy, error) {
	list, err := networkPolicyKind.modify(current, what, request)
	return cloneNetworkPolicies(list), err
}

func (k policyKind[P]) modify(current []P, what RequestType, request []P) ([]P, error) {
	switch what {
	case RequestTypeAdd:
		return k.add(current, request)
	case RequestTypeRemove:
		return k.remove(current, request)
	case RequestTypeUpdate:
		return k.update(current, request), nil
	case RequestTypeRefresh:
		return current, nil
	case RequestTypeReset:
		return slices.DeleteFunc(slices.Clone(current), func(p P) bool {
			return slices.ContainsFunc(request, func(r P) bool { return k.typ(r) == k.typ(p) })
		}), nil
	}
	return nil, invalid(ErrInvalidJSON, "RequestType", "%s is not known", what)
}

// add appends. The same policy again changes nothing, so that a client may repeat itself.
func (k policyKind[P]) add(current, request []P) ([]P, error) {
	list := slices.Clone(current)
	for i, p := range request {
		if slices.ContainsFunc(list, func(o P) bool { return k.equal(o, p) }) {
			continue
		}
		id := k.identity(p)
		if id != "" && slices.ContainsFunc(list, func(o P) bool { return k.typ(o) == k.typ(p) && k.identity(o) == id }) {
			return nil, invalid(ErrPolicyAlreadyExists, policyPath(i), "there is a %s with %s already: remove it first, or use Update", k.typ(p), id)
		}
		list = append(list, p)
	}
	return list, nil
}

func (k policyKind[P]) remove(current, request []P) ([]P, error) {
	list := slices.Clone(current)
	for i, p := range request {
		before := len(list)
		list = slices.DeleteFunc(list, func(o P) bool { return k.same(o, p) })
		if len(list) == before {
			return nil, invalid(ErrPolicyNotFound, policyPath(i), "there is no %s with these settings: query the object for what it has", k.typ(p))
		}
	}
	return list, nil
}

// update replaces all policies of the types named and leaves other types alone: policy engines send their whole set of ACLs
// and rely on NAT and routes surviving. Address sets are replaced one by one, by Id.
func (k policyKind[P]) update(current, request []P) []P {
	list := slices.DeleteFunc(slices.Clone(current), func(o P) bool {
		return slices.ContainsFunc(request, func(p P) bool {
			if k.typ(o) != k.typ(p) {
				return false
			}
			return k.typ(p) != string(SetPolicy) || k.same(o, p)
		})
	})
	for _, p := range request {
		if !slices.ContainsFunc(list, func(o P) bool { return k.equal(o, p) }) {
			list = append(list, p)
		}
	}
	return list
}

// same is the rule of Remove: by identity where the type has one, else by all settings.
func (k policyKind[P]) same(a, b P) bool {
	if k.typ(a) != k.typ(b) {
		return false
	}
	if id := k.identity(b); id != "" {
		return k.identity(a) == id
	}
	return k.equal(a, b)
}

func (k policyKind[P]) identity(p P) string {
	v, err := k.decode(p)
	if err != nil {
		return ""
	}
	return identity(v)
}

// equal compares type and settings by meaning: order, spelling of names and absent against zero members make no difference.
func (k policyKind[P]) equal(a, b P) bool {
	if k.typ(a) != k.typ(b) {
		return false
	}
	if jsonEqual(k.settings(a), k.settings(b)) {
		return true
	}
	va, errA := k.decode(a)
	vb, errB := k.decode(b)
	return errA == nil && errB == nil && bytes.Equal(canonicalSettings(va), canonicalSettings(vb))
}

// canonicalSettings is the settings' own JSON, in which zero members are left out.
func canonicalSettings(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}

// EqualEndpointPolicies reports whether two policies mean the same.
func EqualEndpointPolicies(a, b EndpointPolicy) bool { return endpointPolicyKind.equal(a, b) }

// jsonEqual compares two JSON texts by value. Numbers keep their digits, so that large ones are not rounded into equality.
func jsonEqual(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	va, errA := jsonValue(a)
	vb, errB := jsonValue(b)
	return errA == nil && errB == nil && reflect.DeepEqual(va, vb)
}

func jsonValue(raw json.RawMessage) (any, error) {
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}
