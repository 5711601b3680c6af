package e2e

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestDemo runs what a newcomer runs first. It checks each thing that it shows, and that it leaves nothing behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	testhost.RequireRoot(t)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 8*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "scripts/demo.sh")
	c.Dir = "../.."
	c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) } // its hosts go with it
	c.WaitDelay = 20 * time.Second
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "All of it is true.") {
		t.Fatalf("%v\n%s", err, out)
	}
}
