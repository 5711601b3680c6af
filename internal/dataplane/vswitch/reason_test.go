package vswitch

import (
	"testing"

	"github.com/cilium/ebpf/btf"
)

// TestReasonsHaveWords holds the enum, which C owns, and its words together.
func TestReasonsHaveWords(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName("drop_reason", &enum); err != nil {
		t.Fatal(err)
	}
	names := map[string]Reason{}
	for _, v := range enum.Values {
		if v.Name == "DROP_NONE" || v.Name == "DROP_QUIET" {
			continue
		}
		r := Reason(v.Value)
		if r.Explain() == "" {
			t.Errorf("%s has no words", v.Name)
		}
		if other, ok := names[r.String()]; ok {
			t.Errorf("%d and %d are both called %s", other, r, r)
		}
		names[r.String()] = r
	}
	if len(names) != len(Reasons()) {
		t.Errorf("%d reasons in C, %d in Go", len(names), len(Reasons()))
	}
}
