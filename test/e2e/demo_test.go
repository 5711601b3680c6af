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

// TestDemos runs what a newcomer runs first. A demo checks each thing that it shows, and that it leaves nothing behind.
func TestDemos(t *testing.T) {
	t.Parallel()
	testhost.RequireRoot(t)
	for _, name := range []string{"demo.sh", "demo-overlay.sh"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 8*time.Minute)
			defer cancel()
			c := exec.CommandContext(ctx, "scripts/"+name)
			c.Dir = "../.."
			c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) } // its hosts go with it
			c.WaitDelay = 20 * time.Second
			out, err := c.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "All of it is true.") {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}
