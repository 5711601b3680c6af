package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	code := 0
	err := inside(func() error { code = m.Run(); return nil })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// TestSmall is the simulation in a size for CI: all changes are seen by all hosts, soon. How soon at full size, a quiet machine tells.
func TestSmall(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("etcd is not installed: make deps")
		}
		t.Skip("etcd is not installed: make deps")
	}
	r, err := run(t.Context(), 12, options{perHost: 10, changes: 60, rate: 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.p99 == 0 || r.p99 > 5*time.Second || r.whole == 0 || r.endpoints != 120 {
		t.Errorf("%+v", r)
	}
}
