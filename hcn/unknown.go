package hcn

import (
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
	var v any
	if CheckDepth(data) != nil || json.Unmarshal(data, &v) != nil {
		return nil
	}
	var out []string
	walkUnknown(v, reflect.TypeFor[T](), "", &out)
	slices.Sort(out)
	return out[:min(len(out), maxUnknown)]
}

func walkUnknown(v any, t reflect.Type, path string, out *[]string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case map[string]any:
		if shape, ok := policyShape(v, t); ok {
			walkPolicy(v, shape, path, out)
			return
		}
		if t.Kind() == reflect.Struct {
			walkMembers(v, t, path, out)
		}
	case []any:
		if t.Kind() == reflect.Slice && t != reflect.TypeFor[json.RawMessage]() {
			for i, e := range v {
				walkUnknown(e, t.Elem(), indexed(path, i), out)
			}
		}
	}
}

// ignoredMembers are part of the schema for every document and mean nothing here.
var ignoredMembers = []string{"Telemetry"}

func walkMembers(m map[string]any, t reflect.Type, path string, out *[]string) {
	fields := reflect.VisibleFields(t)
	for name, v := range m {
		i := slices.IndexFunc(fields, func(f reflect.StructField) bool {
			return f.IsExported() && !f.Anonymous && strings.EqualFold(f.Name, name)
		})
		at := strings.TrimPrefix(path+"."+name, ".")
		switch {
		case i >= 0:
			walkUnknown(v, fields[i].Type, at, out)
		case !slices.Contains(ignoredMembers, name) && len(*out) < 4*maxUnknown:
			*out = append(*out, at)
		}
	}
}

// aliasMembers are other names that the UnmarshalJSON of a settings type takes.
var aliasMembers = map[reflect.Type][]string{
	reflect.TypeFor[OutboundNatPolicySetting](): {"ExceptionList", "VIP"},
	reflect.TypeFor[L4ProxyPolicySetting]():     {"Exceptions"},
	reflect.TypeFor[L4WfpProxyPolicySetting]():  {"Port"},
}

func walkPolicy(m map[string]any, shape reflect.Type, path string, out *[]string) {
	for name, v := range m {
		if strings.EqualFold(name, "Type") {
			continue
		}
		settings, ok := v.(map[string]any)
		if !ok || !strings.EqualFold(name, "Settings") && !strings.EqualFold(name, "Data") {
			continue
		}
		known := map[string]any{}
		for k, x := range settings {
			if !slices.ContainsFunc(aliasMembers[shape], func(a string) bool { return strings.EqualFold(a, k) }) {
				known[k] = x
			}
		}
		walkMembers(known, shape, strings.TrimPrefix(path+"."+name, "."), out)
	}
}

// policyShape is the settings type of a policy object, where t is a kind of policy and the type is known.
func policyShape(m map[string]any, t reflect.Type) (reflect.Type, bool) {
	name := ""
	for k, v := range m {
		if s, ok := v.(string); ok && strings.EqualFold(k, "Type") {
			name = s
		}
	}
	var s settingsType
	var ok bool
	switch t {
	case reflect.TypeFor[EndpointPolicy]():
		s, ok = endpointSettings[canonicalType(EndpointPolicyType(name), endpointSettings)]
	case reflect.TypeFor[NetworkPolicy]():
		s, ok = networkSettings[canonicalType(NetworkPolicyType(name), networkSettings)]
	case reflect.TypeFor[SubnetPolicy]():
		s, ok = subnetSettings[canonicalType(SubnetPolicyType(name), subnetSettings)]
	}
	return s.shape, ok
}
