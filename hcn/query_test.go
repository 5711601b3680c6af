package hcn

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestFilter(t *testing.T) {
	n := natNetwork(t, NAT)
	e := readDoc[HostComputeEndpoint](t, "endpoint-full")
	ns := readDoc[HostComputeNamespace](t, "namespace")
	kinds := map[string]func(Filter) bool{
		"network":   func(f Filter) bool { return f.MatchNetwork(n) },
		"endpoint":  func(f Filter) bool { return f.MatchEndpoint(e) },
		"namespace": func(f Filter) bool { return f.MatchNamespace(ns) },
	}
	for _, tc := range []struct {
		kind, filter string
		want         bool
	}{
		{"network", ``, true},
		{"network", `{}`, true},
		{"network", `{"Name":"nat"}`, true},
		{"network", `{"name":"nat","Type":"nat","ID":"{7a0c5a0e-1b1a-4a6f-9c61-2f3c5a6b7c8d}"}`, true},
		{"network", `{"Name":"Nat"}`, false},
		{"network", `{"Name":"nat","Type":"Overlay"}`, false},
		{"network", `{"Type":0}`, true},
		{"network", `{"Flags":17}`, true},
		{"network", `{"Flags":16}`, false},
		{"network", `{"Flags":"EnableDnsProxy|EnablePersistent"}`, true},
		{"network", `{"IpAddress":"172.20.0.1"}`, false},
		{"network", `{"Moon":"full"}`, false},
		{"network", `{"Name":["nat"]}`, false},
		{"network", `{"Name":null}`, false},
		{"network", `{"ID":"no GUID"}`, false},
		{"endpoint", `{"VirtualNetwork":"7a0c5a0e-1b1a-4a6f-9c61-2f3c5a6b7c8d"}`, true},
		{"endpoint", `{"HostComputeNetwork":"7A0C5A0E-1B1A-4A6F-9C61-2F3C5A6B7C8D"}`, true},
		{"endpoint", `{"VirtualNetwork":"7a0c5a0e-1b1a-4a6f-9c61-2f3c5a6b7c8e"}`, false},
		{"endpoint", `{"HostComputeNamespace":""}`, true},
		{"endpoint", `{"IpAddress":"172.20.0.5"}`, true},
		{"endpoint", `{"ipaddress":"FD00:20:0::5"}`, true},
		{"endpoint", `{"IpAddress":"172.20.0.6"}`, false},
		{"endpoint", `{"MacAddress":"00-15-5D-10-20-05"}`, true},
		{"endpoint", `{"MacAddress":"00-15-5D-10-20-06"}`, false},
		{"endpoint", `{"Type":"NAT"}`, false},
		{"namespace", `{"ID":"c0ffee00-0000-4000-8000-0000000000aa"}`, true},
		{"namespace", `{"Type":"hostdefault"}`, true},
		{"namespace", `{"VirtualNetwork":"7a0c5a0e-1b1a-4a6f-9c61-2f3c5a6b7c8d"}`, false},
	} {
		// Clients encode the filter into a string inside the query.
		text, err := json.Marshal(map[string]any{"SchemaVersion": V2(), "Flags": 0, "Filter": tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseQuery(string(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		f, err := q.Parse()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := kinds[tc.kind](f); got != tc.want {
			t.Errorf("%s %s: got %v", tc.kind, tc.filter, got)
		}
	}
}

func TestParseQuery(t *testing.T) {
	q, err := ParseQuery("")
	if err != nil || q.WantsV1() || q.Detailed() {
		t.Errorf("empty query: %+v, %v", q, err)
	}
	q, err = ParseQuery(`{"schemaversion":{"major":1},"flags":"detailed","filter":{"Name":"x"}}`)
	if err != nil || !q.WantsV1() || !q.Detailed() || q.Filter != `{"Name":"x"}` {
		t.Errorf("lower case query: %+v, %v", q, err)
	}
	for _, s := range []string{`{`, `[]`, `"x"`, `{"Filter":3}`, `{"Flags":"Loud"}`} {
		if _, err := ParseQuery(s); !errors.Is(err, ErrInvalidJSON) {
			t.Errorf("ParseQuery(%s): %v", s, err)
		}
	}
	for _, s := range []string{`{`, `[]`, `null`, `{"Name":}`, `x`} {
		if _, err := ParseFilter(s); !errors.Is(err, ErrInvalidJSON) {
			t.Errorf("ParseFilter(%s): %v", s, err)
		}
	}
}
