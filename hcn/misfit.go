package hcn

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// What is wrong with a document is told in the words of JSON and by a path. The decoder names types of Go, and only some of the
// members on the way.

// misfit says where and why a document is not one of type t.
func misfit(code ErrorCode, t reflect.Type, data []byte, err error) error {
	path := PathOfMisfit(t, data)
	if path == "" {
		return jsonError(code, err)
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return Errorf(code, "%s", placed(path, MisfitJSON(kind)))
	}
	e := AsError(jsonError(code, err))
	// Types that read themselves begin with the last name of the path, or with all of it.
	names := strings.Split(withoutIndexes(path), ".")
	for i := range names {
		own := strings.Join(names[i:], ".")
		if rest, ok := strings.CutPrefix(e.Detail, own); ok && (rest == "" || rest[0] == ' ' || rest[0] == ':') {
			return &Error{Code: e.Code, Text: e.Text, Detail: path + rest, cause: err}
		}
	}
	return &Error{Code: e.Code, Text: e.Text, Detail: placed(path, e.Detail), cause: err}
}

func placed(path, text string) string {
	if path == "" {
		return text
	}
	return path + ": " + text
}

func withoutIndexes(path string) string {
	var b strings.Builder
	inside := false
	for _, r := range path {
		switch r {
		case '[':
			inside = true
		case ']':
			inside = false
		default:
			if !inside {
				b.WriteRune(r)
			}
		}
	}
	return b.String()
}

// PathOfMisfit is the path of the first member of a document that does not fit a type by itself, or "" where it is none of
// them alone.
func PathOfMisfit(t reflect.Type, data []byte) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Struct:
		all := members(data)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			value := all[name]
			field, known := memberField(t, name)
			if known && !fits(t, mustSettings(map[string]json.RawMessage{name: value})) {
				return joined(field.Name, field.Tag, PathOfMisfit(field.Type, value))
			}
		}
	case reflect.Slice:
		var list []json.RawMessage
		if json.Unmarshal(data, &list) != nil {
			return ""
		}
		for i, e := range list {
			if !fits(t.Elem(), e) {
				return indexed("", i) + below(PathOfMisfit(t.Elem(), e))
			}
		}
	default:
	}
	return ""
}

// members are those of an object, and none of anything else.
func members(data []byte) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(data, &m) != nil {
		return nil
	}
	return m
}

func fits(t reflect.Type, data []byte) bool {
	return json.Unmarshal(data, reflect.New(t).Interface()) == nil
}

// memberField finds the field of a member by its name in JSON, in any letter case.
func memberField(t reflect.Type, name string) (reflect.StructField, bool) {
	for _, f := range reflect.VisibleFields(t) {
		if f.IsExported() && !f.Anonymous && strings.EqualFold(jsonName(f.Name, f.Tag), name) {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func jsonName(name string, tag reflect.StructTag) string {
	if given, _, _ := strings.Cut(tag.Get("json"), ","); given != "" {
		return given
	}
	return name
}

func joined(name string, tag reflect.StructTag, rest string) string {
	return jsonName(name, tag) + below(rest)
}

// below is what follows a name in a path.
func below(rest string) string {
	if rest == "" || rest[0] == '[' {
		return rest
	}
	return "." + rest
}

// MisfitJSON says in the words of JSON what stands where something else is wanted.
func MisfitJSON(err *json.UnmarshalTypeError) string {
	given := map[string]string{"bool": "true or false", "array": "a list", "object": "an object", "string": "a string", "number": "a number"}[err.Value]
	if given == "" {
		given = err.Value // such as "number 70000"
	}
	return given + " stands where " + wantedJSON(err.Type) + " is wanted"
}

func wantedJSON(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return wantedJSON(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		return "a whole number"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return "a whole number from 0 to " + strconv.FormatUint(1<<t.Bits()-1, 10)
	case reflect.Uint64, reflect.Uint:
		return "a whole number of 0 or more"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "a list"
	default:
		return "an object"
	}
}
