package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkIsolation runs a trivial program in a container with each isolation, the VM booted and restored from a template, and
// weighs a container that sleeps.
func BenchmarkIsolation(b *testing.B) {
	s := configure(b)
	kernel, err := filepath.Abs("../../.cache/vm")
	if err != nil {
		b.Fatal(err)
	}
	if dir := os.Getenv("BENCH_KERNEL"); dir != "" {
		kernel = dir
	}
	image := filepath.Join(b.TempDir(), "busybox.tar")
	if err := writeImage(image); err != nil {
		b.Fatalf("make an image: %v", err)
	}
	section := report.section("11. run --rm of a trivial program by each isolation, and what a container that sleeps takes of the memory",
		"vm, booted: --vm-templates 0; vm: restored from a template. Memory is the proportional set size of the container's processes,",
		"of a VM those of the shim, QEMU and virtiofsd. A VM has 160 MiB, of which the container may use 64.")
	booted := newIsolated(b, s, image, "booted", "--vm-kernel", kernel, "--vm-templates", "0")
	restored := newIsolated(b, s, image, "restored", "--vm-kernel", kernel)
	vm := []string{"--isolation", "vm", "-m", "64m"}
	restored.run(vm...)
	testhost.Eventually(b, 2*time.Minute, func() error {
		if made, _ := filepath.Glob(filepath.Join(restored.d.dir, "state", "vm", "*", "template-????????????????")); len(made) == 0 {
			return fmt.Errorf("there is no template")
		}
		return nil
	})
	cases := []struct {
		name string
		run  func() time.Duration
	}{
		{"process", func() time.Duration { return restored.run() }},
		{"vm, booted", func() time.Duration { return booted.run(vm...) }},
		{"vm", func() time.Duration { return restored.run(vm...) }},
	}
	times := make([]series, len(cases))
	begun := time.Now()
	for i := 0; i < s.runs && !s.enough(i, begun.Add(s.patience)); i++ {
		for i, c := range cases {
			times[i] = append(times[i], milliseconds(c.run()))
			pause(b.Context(), settle)
		}
	}
	for i, c := range cases {
		section.add("run --rm", c.name, "ms", times[i], "process")
	}
	for _, c := range []struct {
		name string
		in   *isolated
		args []string
	}{{"process", restored, nil}, {"vm, booted", booted, vm}, {"vm", restored, vm}} {
		section.add("memory", c.name, "MB", series{c.in.weigh(c.args...)}, "process")
	}
	report.atMost("run --rm in a VM, restored", section.median("run --rm", "vm"), 1000, " ms")
	b.ReportMetric(0, "ns/op")
}

// isolated is a host whose daemon makes VMs.
type isolated struct {
	b *testing.B
	w *remote
	d *daemon
	s settings
}

func newIsolated(b *testing.B, s settings, image, name string, flags ...string) *isolated {
	b.Helper()
	h := testhost.New(b, testhost.WithName(name))
	lan := testhost.New(b, testhost.WithName(name+"-lan"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	i := &isolated{b: b, w: newRemote(b, h), d: newDaemon(b, h, s.binary, flags...), s: s}
	i.ours("image", "import", image, "localhost/busybox:bench")
	return i
}

func (i *isolated) ours(args ...string) answer {
	i.b.Helper()
	return i.w.do(order{Op: "exec", Argv: append([]string{i.s.binary, "-H", "unix://" + i.d.socket}, args...)})
}

func (i *isolated) run(options ...string) time.Duration {
	i.b.Helper()
	return i.ours(append(append([]string{"run", "--rm"}, options...), "localhost/busybox:bench", "/bin/true")...).Took
}

// weigh gives the memory of a container that sleeps, in MB.
func (i *isolated) weigh(options ...string) float64 {
	i.b.Helper()
	i.ours(append(append([]string{"run", "-d", "--name", "sleeper"}, options...), "localhost/busybox:bench", "/bin/busybox", "sleep", "600")...)
	defer i.ours("rm", "-f", "sleeper")
	pause(i.b.Context(), 20*settle)
	var docs []struct {
		State struct {
			PID int `json:"pid"`
		} `json:"state"`
	}
	if err := json.Unmarshal([]byte(i.ours("inspect", "sleeper").Output), &docs); err != nil || len(docs) != 1 {
		i.b.Fatalf("inspect the container: %v", err)
	}
	// Its processes are to be seen in the host only. A child belongs to the thread that has made it.
	const script = `weigh() { grep ^Pss: /proc/$1/smaps_rollup; for kid in $(cat /proc/$1/task/*/children); do weigh $kid; done; }; weigh $0`
	var total float64
	for in := bufio.NewScanner(strings.NewReader(i.w.do(order{Op: "exec", Argv: []string{"sh", "-c", script, strconv.Itoa(docs[0].State.PID)}}).Output)); in.Scan(); {
		f := strings.Fields(in.Text())
		if len(f) != 3 {
			i.b.Fatalf("a process has the size %q", in.Text())
		}
		n, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			i.b.Fatal(err)
		}
		total += n / 1024
	}
	return total
}
