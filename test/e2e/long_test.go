//go:build long

package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestLong runs what takes too long for every change: each has a target of its own in the Makefile.
func TestLong(t *testing.T) { tell(t, "long") }

// TestVMTour runs the commands of docs/container-hosts.md, which start a VM with a daemon in it.
func TestVMTour(t *testing.T) {
	testhost.RequireRoot(t)
	guest, err := filepath.Abs("../../.cache/vm")
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Abs("../../scripts")
	if err != nil {
		t.Fatal(err)
	}
	runTour(t, "../../docs/container-hosts.md", tourist{
		least: 16, limit: 8 * time.Minute,
		before: "ln -s " + scripts + " scripts && bulkhead image import --cmd sh rootfs.tar box",
		daemon: []string{"--vm-kernel", guest, "--vm-agent", filepath.Join(made.dir, "bulkhead-agent"), "--vm-accel", "tcg"},
	})
}
