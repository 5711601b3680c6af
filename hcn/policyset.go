package hcn

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
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

// key is what a policy is compared by. Lists of thousands of rules are compared through maps of keys: comparing each with each
// would take minutes.
type key struct {
	// meaning is equal for policies that mean the same: order, spelling of names and absent against zero members make no
	// difference.
	meaning any
	// handle is what Remove knows the policy by: its identity where the type has one, else the meaning.
	handle any
}

// typed is the meaning of settings that Go can compare, and of others as text.
type typed struct {
	typ      string
	settings any
}

func (k policyKind[P]) keys(list []P) []key {
	out := make([]key, len(list))
	for i, p := range list {
		out[i] = k.key(p)
	}
	return out
}

func (k policyKind[P]) key(p P) key {
	v, err := k.decode(p)
	if err != nil { // not of this schema: its JSON is all there is
		if v, err = jsonValue(k.settings(p)); err != nil {
			v = string(k.settings(p))
		}
	}
	c := key{meaning: typed{k.typ(p), v}}
	if v != nil && !reflect.TypeOf(v).Comparable() {
		c.meaning = typed{k.typ(p), string(canonicalSettings(v))}
	}
	c.handle = c.meaning
	if id := identity(v); id != "" {
		c.handle = k.typ(p) + " with " + id
	}
	return c
}

// add appends. The same policy again changes nothing, so that a client may repeat itself.
func (k policyKind[P]) add(current, request []P) ([]P, error) {
	list := slices.Clone(current)
	have, named := map[any]bool{}, map[any]bool{}
	for _, c := range k.keys(current) {
		have[c.meaning], named[c.handle] = true, true
	}
	for i, c := range k.keys(request) {
		if have[c.meaning] {
			continue
		}
		if named[c.handle] {
			return nil, invalid(ErrPolicyAlreadyExists, "Settings."+policyPath(i), "there is a %s already: remove it first, or use Update", c.handle)
		}
		have[c.meaning], named[c.handle] = true, true
		list = append(list, request[i])
	}
	return list, nil
}

func (k policyKind[P]) remove(current, request []P) ([]P, error) {
	have, gone := map[any]bool{}, map[any]bool{}
	keys := k.keys(current)
	for _, c := range keys {
		have[c.handle] = true
	}
	for i, c := range k.keys(request) {
		if !have[c.handle] || gone[c.handle] {
			return nil, invalid(ErrPolicyNotFound, "Settings."+policyPath(i), "there is no %s with these settings: query the object for what it has", k.typ(request[i]))
		}
		gone[c.handle] = true
	}
	var list []P
	for i, c := range keys {
		if !gone[c.handle] {
			list = append(list, current[i])
		}
	}
	return list, nil
}

// update replaces all policies of the types named and leaves other types alone: policy engines send their whole set of ACLs
// and rely on NAT and routes surviving. Address sets are replaced one by one, by Id.
func (k policyKind[P]) update(current, request []P) []P {
	types, sets, have := map[string]bool{}, map[string]bool{}, map[any]bool{}
	for _, p := range request {
		if k.typ(p) == string(SetPolicy) {
			sets[k.setID(p)] = true
		} else {
			types[k.typ(p)] = true
		}
	}
	list := slices.DeleteFunc(slices.Clone(current), func(p P) bool {
		return types[k.typ(p)] || len(sets) > 0 && k.typ(p) == string(SetPolicy) && sets[k.setID(p)]
	})
	if len(request) == 1 { // there is nothing that it could repeat
		return append(list, request[0])
	}
	for i, c := range k.keys(request) {
		if !have[c.meaning] {
			have[c.meaning] = true
			list = append(list, request[i])
		}
	}
	return list
}

// setID is the Id of a set, read without its addresses.
func (k policyKind[P]) setID(p P) string {
	var s setHead
	if json.Unmarshal(k.settings(p), &s) != nil {
		return ""
	}
	return s.Id
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
func EqualEndpointPolicies(a, b EndpointPolicy) bool {
	return endpointPolicyKind.key(a).meaning == endpointPolicyKind.key(b).meaning
}

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

// wholeNumbers writes numbers such as 80.0 and 8e1 as 80: to JSON they are the same, to an integer of Go they are not. ok is
// false when there was none.
func wholeNumbers(raw json.RawMessage) (out json.RawMessage, ok bool) {
	v, err := jsonValue(raw)
	if err != nil {
		return nil, false
	}
	v, ok = whole(v)
	if !ok {
		return nil, false
	}
	out, err = json.Marshal(v)
	return out, err == nil
}

func whole(v any) (_ any, changed bool) {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		const exact = 1 << 53 // up to here a float64 holds every integer
		if err != nil || f != math.Trunc(f) || math.Abs(f) > exact || !strings.ContainsAny(v.String(), ".eE") {
			return v, false
		}
		return json.Number(strconv.FormatInt(int64(f), 10)), true
	case map[string]any:
		for name, member := range v {
			w, c := whole(member)
			v[name], changed = w, changed || c
		}
		return v, changed
	case []any:
		for i, e := range v {
			w, c := whole(e)
			v[i], changed = w, changed || c
		}
		return v, changed
	}
	return v, false
}
