package netdev

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// In a daemon the process itself lives in the host; in tests only one thread does, and each operation pays for a thread
// that enters it. Benchmarks need the former, so the test binary runs itself again in namespaces of its own.

const inHost = "NETDEV_BENCH_IN_HOST"

// openProcess opens the namespaces that the whole process is in, inside a fresh network and mount namespace; outside of
// one it runs the calling benchmark again there, and skips what is left of it here.
func openProcess(b *testing.B, pool int) *Netdev {
	b.Helper()
	testhost.RequireRoot(b)
	if os.Getenv(inHost) == "" {
		b.Skip("runs by BenchmarkInHost")
	}
	n, err := New(Options{StateDir: b.TempDir(), Pool: pool})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := n.Reset(b.Context()); err != nil && b.Context().Err() == nil {
			b.Error(err)
		}
		n.Close()
	})
	if !n.home.process {
		b.Fatal("the process is not in the host")
	}
	return n
}

// BenchmarkInHost runs the other benchmarks in a process that lives in its host.
func BenchmarkInHost(b *testing.B) {
	testhost.RequireRoot(b)
	if os.Getenv(inHost) != "" {
		b.Skip("this is the inner process")
	}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	const script = `mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t sysfs sysfs /sys && exec "$0" "$@"`
	cmd := exec.CommandContext(b.Context(), "sh", "-c", script, exe, "-test.run=^$", "-test.bench=^Benchmark(AttachDetach|DetachMany|Sync)$")
	cmd.Env = append(os.Environ(), inHost+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
}
