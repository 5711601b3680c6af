package vswitch

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestProbe(t *testing.T) {
	th.RequireRoot(t)
	for _, f := range Probe() {
		if f.Needed && !f.OK {
			t.Errorf("%s (since %s): %s", f.Name, f.Since, f.Detail)
		}
	}
}

// TestRequire names all that is missing, with its version, and nothing that can be done
// without.
func TestRequire(t *testing.T) {
	lacks := func() error { return fmt.Errorf("probe: %w", ebpf.ErrNotSupported) }
	fails := errors.New("no permission")
	err := require([]requirement{
		{name: "alpha", since: "5.1", needed: true, ask: lacks},
		{name: "beta", since: "5.2", needed: true, ask: func() error { return nil }},
		{name: "gamma", since: "5.3", needed: true, ask: lacks},
		{name: "delta", since: "6.6", ask: lacks},
		{name: "epsilon", since: "5.4", needed: true, ask: func() error { return fails }},
	})
	if !errors.Is(err, fails) {
		t.Errorf("%v hides the failed probe", err)
	}
	for word, want := range map[string]bool{"alpha": true, "5.1": true, "beta": false, "gamma": true, "delta": false, "epsilon": true} {
		if strings.Contains(fmt.Sprint(err), word) != want {
			t.Errorf("%v: mentions %s: %v, want %v", err, word, !want, want)
		}
	}
}
