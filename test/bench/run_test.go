package bench

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// busybox is the only program of the image that both engines run.
const busybox = "/bin/busybox"

// BenchmarkRun runs a trivial program in a container that is removed afterwards, beside podman, each by its own command.
func BenchmarkRun(b *testing.B) {
	s := configure(b)
	h := testhost.New(b, testhost.WithName("bulkhead"))
	lan := testhost.New(b, testhost.WithName("lan"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	image := filepath.Join(b.TempDir(), "busybox.tar")
	if err := writeImage(image); err != nil {
		b.Fatalf("make an image: %v", err)
	}
	w := newRemote(b, h)
	d := newDaemon(b, h, s.binary)
	ours := func(args ...string) []string { return append([]string{s.binary, "-H", "unix://" + d.socket}, args...) }
	w.do(order{Op: "exec", Argv: ours("image", "import", image, "localhost/busybox:bench")})
	podman := newPodman(b, h, w, image)

	parent := "--cgroup-parent=" + h.CgroupParent() + "/podman" // removed with the host
	cases := []struct {
		name, metric string
		argv         []string
	}{
		{"podman", "run --rm", podman("run", "--rm", parent, "localhost/busybox:bench", "/bin/true")},
		{"bulkhead", "run --rm", ours("run", "--rm", "localhost/busybox:bench", "/bin/true")},
		{"podman", "run --rm -p", podman("run", "--rm", parent, "-p", "127.0.0.1:18080:80", "localhost/busybox:bench", "/bin/true")},
		{"bulkhead", "run --rm -p", ours("run", "--rm", "-p", "18081:80", "localhost/busybox:bench", "/bin/true")},
	}
	section := report.section("2. run --rm of a trivial program, the same root file system, by the command line",
		"podman: Debian's, with netavark, "+strings.TrimSpace(w.do(order{Op: "exec", Argv: podman("--version")}).Output)+", cgroupfs, runc, overlay; both on the same disk.")
	samples := make([]series, len(cases))
	begun := time.Now()
	for i := 0; i < s.runs && !s.enough(i, begun.Add(s.patience)); i++ {
		for i, c := range cases {
			samples[i] = append(samples[i], milliseconds(w.do(order{Op: "exec", Argv: c.argv}).Took))
			pause(b.Context(), settle)
		}
	}
	for i, c := range cases {
		section.add(c.metric, c.name, "ms", samples[i], "podman")
	}
	for _, metric := range []string{"run --rm", "run --rm -p"} {
		report.atMost(metric+", by podman", ratio(section.median(metric, "bulkhead"), section.median(metric, "podman")), 1, "x")
	}
	b.ReportMetric(0, "ns/op")
}

// newPodman sets podman up with directories of its own and gives what makes its command lines.
func newPodman(b *testing.B, h *testhost.Host, w *remote, image string) func(args ...string) []string {
	b.Helper()
	dir := b.TempDir()
	// Root without CAP_SYS_RESOURCE cannot raise limits, and podman asks for its default ones.
	h.WriteFile("/etc/containers/containers.conf", "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nevents_logger = \"none\"\n")
	h.WriteFile("/etc/containers/policy.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	podman := func(args ...string) []string {
		return append([]string{
			"podman", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
			"--network-config-dir", filepath.Join(dir, "networks"), "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--storage-driver", "overlay",
		}, args...)
	}
	w.do(order{Op: "exec", Argv: podman("import", image, "localhost/busybox:bench")})
	return podman
}

// writeImage makes a root file system with busybox and the few names that are used.
func writeImage(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	t := tar.NewWriter(f)
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/", "run/"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	program, err := os.Open(busybox)
	if err != nil {
		return fmt.Errorf("find busybox-static: %w", err)
	}
	defer program.Close()
	info, err := program.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(t, program); err != nil {
		return err
	}
	for _, name := range []string{"true", "sh"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return f.Close()
}

// TestWorkerAnswersErrors sees that what fails in a worker is not taken for a measurement.
func TestWorkerAnswersErrors(t *testing.T) {
	var w worker
	a := w.do(order{Op: "exec", Argv: []string{"false"}})
	if a.Err == "" {
		t.Errorf("a failed program is answered as %+v", a)
	}
	if a := w.do(order{Op: "attach", Kind: "none"}); a.Err == "" {
		t.Errorf("an unknown kind is answered as %+v", a)
	}
	var out strings.Builder
	if err := w.serve(strings.NewReader(`{"Op":"exec","Argv":["true"]}`+"\n"), &out); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out.String()), &a); err != nil || a.Err != "" || a.Took <= 0 {
		t.Errorf("%s: %+v, %v", out.String(), a, err)
	}
}
