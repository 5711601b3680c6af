package hcn

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

// fixedIDs makes IDs that are the same in every run.
func fixedIDs() func() GUID {
	n := 0
	return func() GUID {
		n++
		return GUID("F1F1F1F1-0000-4000-8000-00000000000" + string(rune('0'+n%10)))
	}
}

// golden compares v's JSON with a file.
func golden(t *testing.T, name string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	path := filepath.Join("testdata", "docs", name+".golden")
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, out.Bytes(), want)
	}
}

func readDoc[T any](t *testing.T, name string) *T {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "docs", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := Decode[T](b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// TestDocuments reads documents as clients spell them and shows them as we do: names of enums, numbers of masks, canonical
// GUIDs, policies as they came, defaults filled in.
func TestDocuments(t *testing.T) {
	full := readDoc[HostComputeNetwork](t, "network-nat")
	full.Defaults(fixedIDs())
	if err := full.Validate(); err != nil {
		t.Errorf("network-nat: %v", err)
	}
	golden(t, "network-nat", full)

	minimal := readDoc[HostComputeNetwork](t, "network-minimal")
	minimal.Defaults(fixedIDs())
	if err := minimal.Validate(); err != nil {
		t.Errorf("network-minimal: %v", err)
	}
	golden(t, "network-minimal", minimal)

	e := readDoc[HostComputeEndpoint](t, "endpoint-full")
	if err := e.ValidateFor(full); err != nil {
		t.Errorf("endpoint-full: %v", err)
	}
	e.Defaults(full)
	golden(t, "endpoint-full", e)

	ns := readDoc[HostComputeNamespace](t, "namespace")
	ns.Defaults(fixedIDs())
	if err := ns.Validate(); err != nil {
		t.Errorf("namespace: %v", err)
	}
	golden(t, "namespace", ns)

	r := readDoc[HostComputeRoute](t, "route")
	if err := r.validateSchema(); err != nil {
		t.Errorf("route: %v", err)
	}
	golden(t, "route", r)

	l := readDoc[HostComputeLoadBalancer](t, "loadbalancer")
	if err := l.validateSchema(); err != nil {
		t.Errorf("loadbalancer: %v", err)
	}
	golden(t, "loadbalancer", l)
}

// TestTypeIsAlwaysThere: a NAT network's type is number 0, and would be the first thing that "omitempty" loses.
func TestTypeIsAlwaysThere(t *testing.T) {
	for _, v := range []any{&HostComputeNetwork{}, &HostComputeNamespace{}, &HNSNetwork{}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), `"Type":"`) {
			t.Errorf("%T: %s has no Type", v, b)
		}
	}
}
