package testhost_test

import (
	"os"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestHostSeesItsOwnThings(t *testing.T) {
	t.Parallel()
	h := testhost.New(t, testhost.WithName("alpha"))
	if got := h.Run(t, "hostname"); got != "alpha" {
		t.Errorf("hostname %q, want alpha", got)
	}
	for script, want := range map[string]string{
		"ls /sys/class/net":                  "lo",
		"ls -A /run/netns /var/lib/bulkhead": "/run/netns:\n\n/var/lib/bulkhead:",
		"stat -f -c %T /sys/fs/bpf":          "bpf_fs",
		"cat /proc/1/comm":                   "bash",
		"test -e /sys/fs/cgroup/cgroup.procs || test -d /sys/fs/cgroup/memory": "",
	} {
		if got := h.Run(t, "bash", "-c", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	h.WriteFile("/etc/resolv.conf", "nameserver 192.0.2.53\n")
	if got := h.Run(t, "cat", "/etc/resolv.conf"); got != "nameserver 192.0.2.53" {
		t.Errorf("resolv.conf in the host: %q", got)
	}
	if real, _ := os.ReadFile("/etc/resolv.conf"); string(real) == "nameserver 192.0.2.53\n" {
		t.Error("the real resolv.conf was written")
	}
	h.MustFail(t, "false")
}
