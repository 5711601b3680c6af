package hcn

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// maxUnknown bounds the answer of UnknownMembers: a hostile document can hold millions.
const maxUnknown = 32

// UnknownMembers lists the members of a document that T does not have, by path, in order and at most 32. HCN documents may hold
// them and they are ignored; naming them to the client is how a misspelled setting is found. Settings of policies are
// looked into as well.
func UnknownMembers[T any](data []byte) []string {
	if CheckDepth(data) != nil || !json.Valid(data) {
		return nil
	}
	w := unknownWalk{}
	w.walk(data, reflect.TypeFor[T]())
	slices.Sort(w.found)
	return w.found[:min(len(w.found), maxUnknown)]
}

// unknownWalk goes through a document. The path is text only for what is found: most documents hold nothing of the kind, and
// may hold thousands of rules.
type unknownWalk struct {
	path  []step
	found []string
}

// step is a name, or an index where there is none.
type step struct {
	name  []byte
	index int
}

func (w *unknownWalk) at(s step, do func()) {
	w.path = append(w.path, s)
	do()
	w.path = w.path[:len(w.path)-1]
}

func (w *unknownWalk) note() {
	if len(w.found) >= 4*maxUnknown {
		return
	}
	var b strings.Builder
	for _, s := range w.path {
		if s.name == nil {
			b.WriteString(indexed("", s.index))
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(plainName(s.name))
	}
	w.found = append(w.found, b.String())
}

// plainName is a member's name without its escapes.
func plainName(raw []byte) string {
	var s string
	if bytes.IndexByte(raw, '\\') >= 0 && json.Unmarshal([]byte(`"`+string(raw)+`"`), &s) == nil {
		return s
	}
	return string(raw)
}

func (w *unknownWalk) walk(raw []byte, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	i := skipBlanks(raw, 0)
	switch {
	case i >= len(raw):
	case raw[i] == '{':
		if shape, ok := policyShape(raw, t); ok {
			w.walkPolicy(raw, shape)
		} else if t.Kind() == reflect.Struct {
			w.walkMembers(raw, fieldsByName(t), nil)
		}
	case raw[i] == '[' && t.Kind() == reflect.Slice && t != reflect.TypeFor[json.RawMessage]():
		eachElement(raw, func(i int, value []byte) {
			w.at(step{index: i}, func() { w.walk(value, t.Elem()) })
		})
	}
}

// fieldsByName are the exported fields of a struct.
func fieldsByName(t reflect.Type) []reflect.StructField {
	var out []reflect.StructField
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && !f.Anonymous {
			out = append(out, f)
		}
	}
	return out
}

// ignoredMembers are part of the schema for every document and mean nothing here.
var ignoredMembers = []string{"Telemetry"}

func (w *unknownWalk) walkMembers(raw []byte, fields []reflect.StructField, aliases []string) {
	eachMember(raw, func(name, value []byte) bool {
		is := func(s string) bool { return len(s) == len(name) && strings.EqualFold(s, string(name)) }
		if i := slices.IndexFunc(fields, func(f reflect.StructField) bool { return is(f.Name) }); i >= 0 {
			w.at(step{name: name}, func() { w.walk(value, fields[i].Type) })
		} else if !slices.Contains(ignoredMembers, string(name)) && !slices.ContainsFunc(aliases, is) {
			w.at(step{name: name}, w.note)
		}
		return true
	})
}

// aliasMembers are other names that the UnmarshalJSON of a settings type takes.
var aliasMembers = map[reflect.Type][]string{
	reflect.TypeFor[OutboundNatPolicySetting](): {"ExceptionList", "VIP"},
	reflect.TypeFor[L4ProxyPolicySetting]():     {"Exceptions"},
	reflect.TypeFor[L4WfpProxyPolicySetting]():  {"Port"},
}

func (w *unknownWalk) walkPolicy(raw []byte, shape settingsType) {
	eachMember(raw, func(name, value []byte) bool {
		if len(value) > 0 && value[0] == '{' && (strings.EqualFold(string(name), "Settings") || strings.EqualFold(string(name), "Data")) {
			w.at(step{name: name}, func() { w.walkMembers(value, shape.members, aliasMembers[shape.shape]) })
		}
		return true
	})
}

// policyShape is the settings type of a policy object, where t is a kind of policy and the type is known.
func policyShape(raw []byte, t reflect.Type) (s settingsType, ok bool) {
	endpoint, network := t == reflect.TypeFor[EndpointPolicy](), t == reflect.TypeFor[NetworkPolicy]()
	if !endpoint && !network && t != reflect.TypeFor[SubnetPolicy]() {
		return s, false
	}
	typ := ""
	eachMember(raw, func(name, value []byte) bool {
		if strings.EqualFold(string(name), "Type") && len(value) > 1 && value[0] == '"' {
			typ = plainName(value[1 : len(value)-1])
		}
		return true
	})
	switch {
	case endpoint:
		s, ok = endpointSettings[canonicalType(EndpointPolicyType(typ), endpointSettings)]
	case network:
		s, ok = networkSettings[canonicalType(NetworkPolicyType(typ), networkSettings)]
	default:
		s, ok = subnetSettings[canonicalType(SubnetPolicyType(typ), subnetSettings)]
	}
	return s, ok
}
