package hcn

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"
)

func scanned(raw string) map[string]string {
	out := map[string]string{}
	eachMember([]byte(raw), func(name, value []byte) bool { out[string(name)] = string(value); return true })
	return out
}

func TestScan(t *testing.T) {
	for raw, want := range map[string]map[string]string{
		`{}`:                                 {},
		` { } `:                              {},
		`{"a":1}`:                            {"a": "1"},
		` { "a" : 1 , "b" : "x,}\"]" } `:     {"a": "1", "b": `"x,}\"]"`},
		`{"a":{"b":[1,{"c":"}"}]},"d":null}`: {"a": `{"b":[1,{"c":"}"}]}`, "d": "null"},
		`{"a":[],"b":{},"c":-1.5e3}`:         {"a": "[]", "b": "{}", "c": "-1.5e3"},
		`{"a\"b":true,"c":false}`:            {`a\"b`: "true", "c": "false"},
		`[1]`:                                {},
		`"a"`:                                {},
		``:                                   {},
	} {
		if got := scanned(raw); !maps.Equal(got, want) {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
	var list []string
	eachElement([]byte(` [ 1 , "a]" ,{"b":[2]}, [3] , null ]`), func(i int, v []byte) { list = append(list, fmt.Sprint(i, string(v))) })
	if got, want := fmt.Sprint(list), `[01 1"a]" 2{"b":[2]} 3[3] 4null]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// FuzzScan: what is valid is gone through as the decoder does it; what is not ends.
func FuzzScan(f *testing.F) {
	for _, s := range []string{`{"a":1,"b":[1,2,{"c":"\\"}]}`, `{"a":"\"","b":{}}`, `{`, `{"a`, `{"a":`, `{"a":1`, `[1,2`, `{"a":[}`, `{"a":1,}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := map[string]string{}
		n := 0
		eachMember([]byte(s), func(name, value []byte) bool {
			n++
			var k string
			if json.Unmarshal([]byte(`"`+string(name)+`"`), &k) == nil {
				got[k] = string(value)
			}
			return true
		})
		eachElement([]byte(s), func(int, []byte) {})
		var want map[string]json.RawMessage
		if json.Unmarshal([]byte(s), &want) != nil || want == nil {
			return
		}
		for k, v := range want {
			if got[k] != string(v) {
				t.Errorf("%s: member %q is %q, want %q", s, k, got[k], v)
			}
		}
	})
}
