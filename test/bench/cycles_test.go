package bench

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// atOnce is how many containers run side by side.
const atOnce = 4

// BenchmarkCycles makes endpoints and containers and removes them, again and again, and fails when something of them is
// left: in the kernel, on the disk or in the daemon. BENCH_CYCLES=2000 is the long form; BENCH_CONTAINERS bounds the
// containers among them, which take longer.
func BenchmarkCycles(b *testing.B) {
	s := configure(b)
	cycles := s.cycles(b, "BENCH_CYCLES", map[bool]int{true: 5, false: 50}[s.quick])
	containers := s.cycles(b, "BENCH_CONTAINERS", cycles)
	h := testhost.New(b, testhost.WithName("bulkhead"))
	lan := testhost.New(b, testhost.WithName("lan"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	image := filepath.Join(b.TempDir(), "busybox.tar")
	if err := writeImage(image); err != nil {
		b.Fatalf("make an image: %v", err)
	}
	f := newFleet(newDaemon(b, h, s.binary))
	ours := func(args ...string) []string {
		return append([]string{s.binary, "-H", "unix://" + f.d.socket}, args...)
	}
	hands := make([]*remote, atOnce)
	for i := range hands {
		hands[i] = newRemote(b, h)
	}
	hands[0].do(order{Op: "exec", Argv: ours("image", "import", image, "localhost/busybox:bench")})
	round := func(endpoints, containers int) {
		for range endpoints {
			f.attach(extra)
			f.detach(extra)
		}
		var wg sync.WaitGroup
		for i, w := range hands {
			run := order{Op: "exec", Argv: ours("run", "--rm", "-p", fmt.Sprintf("%d:80", 18081+i), "localhost/busybox:bench", "/bin/true")}
			wg.Go(func() {
				for k := i; k < containers; k += atOnce {
					w.do(run)
				}
			})
		}
		wg.Wait()
	}
	round(2*atOnce, 2*atOnce) // pools fill, and what is made once is made
	f.attach(0)
	before := takeInventory(b, f.d)
	round(cycles, containers)
	section := report.section(fmt.Sprintf("7. what is left of %d endpoints and %d containers", cycles, containers),
		fmt.Sprintf("endpoint: a compartment with an endpoint and a published port, made and removed; container: run --rm -p, %d at a time.", atOnce),
		"things: links, addresses, routes, namespaces, nftables, pins, state files, mounts, cgroups, processes.")
	var after inventory
	var left string
	for deadline := time.Now().Add(90 * time.Second); ; pause(b.Context(), time.Second) {
		after = takeInventory(b, f.d)
		if left = after.beyond(before); left == "" || time.Now().After(deadline) {
			break
		}
	}
	if left != "" {
		b.Errorf("left after %d endpoints and %d containers:\n%s", cycles, containers, left)
	}
	for _, m := range []struct {
		metric, unit string
		of           func(inventory) int
	}{
		{"things", "", func(i inventory) int { return strings.Count(i.host, "\n") + 1 }},
		{"map entries", "", func(i inventory) int { return i.total() }},
		{"open files", "", func(i inventory) int { return i.files }},
		{"threads", "", func(i inventory) int { return i.threads }},
		{"memory", "MB", func(i inventory) int { return i.memory }},
	} {
		section.add(m.metric, "before", m.unit, series{float64(m.of(before))}, "")
		section.add(m.metric, "after", m.unit, series{float64(m.of(after))}, "")
	}
	b.ReportMetric(0, "ns/op")
}

// cycles is how many there are to be: what a variable of the environment says, or def.
func (s *settings) cycles(b *testing.B, name string, def int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s=%s: give a number, at least 1", name, text)
	}
	return n
}

// inventory is what there is on the host and in the daemon.
type inventory struct {
	host           string
	maps           map[string]int
	files, threads int
	memory         int // MB
}

func takeInventory(b *testing.B, d *daemon) inventory {
	b.Helper()
	i := inventory{host: d.host.Snapshot(b), maps: d.host.MapEntries(b)}
	dir := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		b.Fatalf("look at the daemon: %v", err)
	}
	i.files = len(files)
	i.threads = figure(firstLine(dir+"status", "Threads:"))
	i.memory = figure(firstLine(dir+"status", "VmRSS:")) >> 10
	return i
}

// figure is the first number of a line "Name: number unit".
func figure(line string) int {
	_, value, _ := strings.Cut(line, ":")
	if fields := strings.Fields(value); len(fields) > 0 {
		n, _ := strconv.Atoi(fields[0]) // the kernel writes it
		return n
	}
	return 0
}

func (i inventory) total() (n int) {
	for _, m := range i.maps {
		n += m
	}
	return n
}

// spare is how many files more a daemon may have open at one moment than at another: calls and timers that are under way.
const spare = 8

// beyond says what there is more, or else, than there was.
func (i inventory) beyond(was inventory) string {
	var out []string
	had := strings.Split(was.host, "\n")
	for line := range strings.Lines(i.host) {
		line = strings.TrimSuffix(line, "\n")
		if k := slices.Index(had, line); k >= 0 {
			had = slices.Delete(had, k, k+1)
			continue
		}
		out = append(out, "+ "+line)
	}
	for _, line := range had {
		out = append(out, "- "+line)
	}
	for _, name := range slices.Sorted(maps.Keys(i.maps)) {
		if i.maps[name] > was.maps[name] {
			out = append(out, fmt.Sprintf("%s has %d entries, had %d", name, i.maps[name], was.maps[name]))
		}
	}
	if i.files > was.files+spare {
		out = append(out, fmt.Sprintf("the daemon has %d open files, had %d", i.files, was.files))
	}
	return strings.Join(out, "\n")
}

func TestInventoryBeyond(t *testing.T) {
	was := inventory{host: "link a\nlink b", maps: map[string]int{"m": 1}, files: 10}
	if got := was.beyond(was); got != "" {
		t.Errorf("the same: %q", got)
	}
	now := inventory{host: "link a\nlink a", maps: map[string]int{"m": 2}, files: 30}
	want := "+ link a\n- link b\nm has 2 entries, had 1\nthe daemon has 30 open files, had 10"
	if got := now.beyond(was); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
