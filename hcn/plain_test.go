package hcn

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// What is read without the decoder is read as the decoder does: documents are drawn of which some are plain, some not, and some not
// even JSON.
func TestPlainSettingsAreReadAsTheDecoderDoes(t *testing.T) {
	t.Parallel()
	values := []string{
		`""`, `"10.0.0.0/8"`, `"a,b"`, `"é"`, "\"\xff\"", `"a\u0062"`, `"a\\"`, "\"a\tb\"", "\"\x7f\"", `"Allow"`, `"block"`, `"In"`, `"Switch"`, `"IPSET"`, `"TCP"`, `"6"`,
		`0`, `6`, `17`, `256`, `65535`, `65536`, `4294967296`, `007`, `-1`, `1.0`, `1e2`, `true`, `false`, `null`, `{}`, `{"a":1}`, `[]`, `["x"]`, `tru`, `"open`, ``,
	}
	blanks := []string{"", "", "", " ", "\n\t", "\r"}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(list []string) string { return list[rnd.IntN(len(list))] }
	types := map[string]settingsType{}
	for k, s := range endpointSettings {
		types[string(k)] = s
	}
	for k, s := range networkSettings {
		types["network "+string(k)] = s
	}
	plain := 0
	for name, s := range types {
		var names []string
		for n := range s.fields {
			names = append(names, n)
		}
		slices.Sort(names)
		for range 4000 {
			var b strings.Builder
			b.WriteString(pick(blanks) + "{")
			for i := range rnd.IntN(5) {
				if i > 0 {
					b.WriteString(pick([]string{",", ",", ",", ",", ",", "", ",,"}))
				}
				member := "Unknown"
				if len(names) > 0 && rnd.IntN(20) > 0 {
					member = pick(names)
				}
				if rnd.IntN(20) == 0 {
					member = strings.ToLower(member)
				}
				b.WriteString(pick(blanks) + `"` + member + `"` + pick(blanks) + pick([]string{":", ":", ":", ":", ":", ":", ""}) + pick(blanks) + pick(values) + pick(blanks))
			}
			b.WriteString(pick([]string{"}", "}", "}", "}", "}", "}", "", "} ", "}x", "},"}))
			raw := []byte(b.String())
			want := reflect.New(s.shape)
			err := json.Unmarshal(raw, want.Interface())
			got, special := reflect.New(s.shape), want.Type().Implements(reflect.TypeFor[json.Unmarshaler]())
			if !special && s.shape.Kind() == reflect.Struct && decodePlain(raw, got.Elem(), s.fields) {
				plain++
				if err != nil || !reflect.DeepEqual(got.Interface(), want.Interface()) {
					t.Fatalf("%s: %q is read as %+v, by the decoder as %+v, %v", name, raw, got.Elem(), want.Elem(), err)
				}
			}
			policy := []byte(`{"Type":"x",` + pick(blanks) + `"Settings":` + string(raw) + pick([]string{"}", "}", "} ", ""}))
			if typ, settings, ok := plainPolicy(policy); ok {
				var w policyWire
				if err := json.Unmarshal(policy, &w); err != nil || typ != *w.Type || string(settings) != string(w.Settings) {
					t.Fatalf("%q is read as %s, %s, by the decoder as %+v, %v", policy, typ, settings, w, err)
				}
			}
		}
	}
	if plain < 1000 {
		t.Errorf("only %d were plain", plain)
	}
}

func BenchmarkDecodeRule(b *testing.B) {
	p := NewEndpointPolicy(ACL, AclPolicySetting{
		Action: ActionTypeBlock, Direction: DirectionTypeIn, RuleType: RuleTypeSwitch, Priority: 100, RemoteAddresses: "172.16.0.0/24", Protocols: "6", LocalPorts: "1000-1001",
	})
	doc, err := json.Marshal(p)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("policy", func(b *testing.B) {
		for b.Loop() {
			if err := json.Unmarshal(doc, new(EndpointPolicy)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("settings", func(b *testing.B) {
		for b.Loop() {
			if _, err := p.Decode(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
