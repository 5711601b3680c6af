package hcn

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
)

// canonicalize spells the settings of a policy as the schema does: exact names of members, numbers for masks and protocols,
// names for enums. Clients decode what a query shows into fixed types, so a "tcp" that we accept must not come out again.
// Whatever needs no change stays as the client wrote it, and so do members that the schema does not know.
func canonicalize(raw json.RawMessage, s settingsType) json.RawMessage {
	if len(raw) == 0 {
		return raw
	}
	v, err := s.decode(raw)
	if err != nil {
		return raw // Validate says what is wrong with it
	}
	if s.spelled(raw, v) {
		return raw
	}
	canonical := canonicalSettings(v)
	var given, ours map[string]json.RawMessage
	if json.Unmarshal(raw, &given) != nil || json.Unmarshal(canonical, &ours) != nil {
		return raw
	}
	out := make(map[string]json.RawMessage, len(given))
	changed := false
	for name, value := range given {
		field, known := fieldName(s.shape, name)
		if !known {
			out[name] = value
			continue
		}
		better, present := ours[field]
		switch {
		case present && !jsonEqual(better, value):
			out[field] = better
			changed = true
		case !present && !isZeroJSON(value):
			changed = true // a zero that is spelled in words, such as "None"
		default:
			out[field] = value
			changed = changed || field != name
		}
	}
	if !changed {
		return raw
	}
	return mustSettings(out)
}

// spelled tells that settings are written as canonicalize would write them. Those of nearly all rules are.
func (s settingsType) spelled(raw []byte, v any) bool {
	given := reflect.ValueOf(v)
	if given.Kind() != reflect.Struct {
		return false
	}
	return eachMember(raw, func(name, value []byte) bool {
		f, exact := s.fields[string(name)]
		switch {
		case !exact:
			_, known := fieldName(s.shape, string(name))
			return !known && bytes.IndexByte(name, '\\') < 0
		case f.plain:
			return true
		}
		at := given.FieldByIndex(f.index)
		switch at.Interface().(type) {
		case json.Marshaler, encoding.TextMarshaler:
			return false
		}
		return at.Kind() == reflect.String && isText(value, at.String()) || at.CanUint() && string(value) == strconv.FormatUint(at.Uint(), 10)
	})
}

// fieldName finds the exact name of a member.
func fieldName(t reflect.Type, name string) (string, bool) {
	for _, f := range reflect.VisibleFields(t) {
		if strings.EqualFold(f.Name, name) {
			return f.Name, true
		}
	}
	return "", false
}

func isZeroJSON(raw json.RawMessage) bool {
	switch string(raw) {
	case "0", `""`, "false", "null", "[]":
		return true
	}
	return false
}
