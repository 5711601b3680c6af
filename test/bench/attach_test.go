package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkAttach attaches and detaches one endpoint, a fresh namespace with a published port, while more and more
// others stand. Cases are interleaved, sample by sample.
func BenchmarkAttach(b *testing.B) {
	s := configure(b)
	uplink := testhost.New(b, testhost.WithName("lan"))
	h := testhost.New(b, testhost.WithName("bulkhead"))
	h.Connect(uplink, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	a := &attachRun{b: b, s: s, fleet: newFleet(newDaemon(b, h, s.binary))}
	// On a throwaway host the usual place of the state is in memory: what is left of HCN calls is what the disk has no part in.
	m := testhost.New(b, testhost.WithName("memory"))
	a.memory = newFleet(newDaemon(b, m, s.binary, "--state-dir", "/var/lib/bulkhead"))
	a.raw = newRemote(b, testhost.New(b, testhost.WithName("raw")))
	a.cni = newRemote(b, testhost.New(b, testhost.WithName("cni")))
	a.section = report.section("1. attach and detach of one endpoint: namespace, vNIC, addresses, routes, one published port",
		"bulkhead: one API call each way over the unix socket (/v1/compartments); it ends with the host's run, and is stored in /run.",
		"bulkhead, HCN calls: two calls each way, the namespace and the endpoint, which outlives the host's run and is on disk when it is answered.",
		"disk sync: what a commit costs on this disk by itself: two writes of a page, each synced. HCN calls have one in an attach, and one in a detach.",
		"raw netlink: the same kernel objects without a daemon, a store or a check; detach waits for the kernel.",
		"cni: bridge and portmap of Debian's containernetworking-plugins, IPv4 only, the namespace included.")
	for _, n := range s.points {
		a.point(n)
	}
	a.aims()
	b.ReportMetric(0, "ns/op")
}

type attachRun struct {
	b        *testing.B
	s        settings
	fleet    *fleet
	memory   *fleet // only at the first point
	raw, cni *remote
	section  *Section
	standing int
	cniCount int
}

// extra is the number of the endpoint that comes and goes.
const extra = 5000

func (a *attachRun) point(n int) {
	begin := time.Now()
	a.fleet.fill(a.standing, n)
	if grown := n - a.standing; grown >= 90 {
		each := milliseconds(time.Since(begin)) / float64(grown)
		a.section.add("attach, 8 at a time", fmt.Sprintf("bulkhead, each from %d to %d", a.standing, n), "ms", series{each}, "")
	}
	for i := a.standing; i < n; i++ {
		a.raw.do(order{Op: "attach", Kind: "raw", Index: i})
	}
	withCNI := n <= a.s.cniMost
	for ; withCNI && a.cniCount < n; a.cniCount++ {
		a.cni.do(order{Op: "attach", Kind: "cni", Index: a.cniCount})
	}
	a.standing = n
	a.fleet.attach(extra)
	a.fleet.verify(extra)
	a.fleet.detach(extra)
	pause(a.b.Context(), 10*settle)
	disk := newDisk(a.b)
	var syncs, calls series
	times := map[string]*[2]series{"raw netlink": {}, "bulkhead": {}, "cni": {}, "bulkhead, HCN calls": {}, "bulkhead, no pool": {}, "HCN calls, state in memory": {}}
	first := n == a.s.points[0]
	if first {
		a.memory.fill(0, n)
	}
	begun := time.Now()
	for i := 0; i < a.s.samples && !a.s.enough(i, begun); i++ {
		if first {
			a.sample(times["HCN calls, state in memory"], a.memory.attachHCN, a.memory.detachHCN)
		}
		a.sample(times["bulkhead"], a.fleet.attach, a.fleet.detach)
		a.sample(times["bulkhead, HCN calls"], a.fleet.attachHCN, a.fleet.detachHCN)
		syncs = append(syncs, milliseconds(disk.commit()))
		calls = append(calls, milliseconds(a.fleet.ask()))
		a.sample(times["raw netlink"], a.of(a.raw, "raw", "attach"), a.of(a.raw, "raw", "detach"))
		if withCNI && i < a.s.cniSamples {
			a.sample(times["cni"], a.of(a.cni, "cni", "attach"), a.of(a.cni, "cni", "detach"))
		}
	}
	a.withoutPool(n, times["bulkhead, no pool"])
	a.note(n, times)
	a.section.add(fmt.Sprintf("disk sync, %d standing", n), "one commit", "ms", syncs, "")
	a.section.add(fmt.Sprintf("API call, %d standing", n), "bulkhead, reads a network", "ms", calls, "")
}

// withoutPool restarts the daemon, which touches no endpoint, and measures without namespaces kept ready; at the first
// and the last point.
func (a *attachRun) withoutPool(n int, into *[2]series) {
	if n != a.s.points[0] && n != a.s.points[len(a.s.points)-1] {
		return
	}
	d := a.fleet.d
	d.stop()
	d.start("--namespace-pool", "0")
	a.section.add("daemon start", fmt.Sprintf("bulkhead, %d standing", n), "ms", series{milliseconds(d.started)}, "")
	pause(a.b.Context(), 10*settle)
	begun := time.Now()
	for i := 0; i < a.s.samples && !a.s.enough(i, begun); i++ {
		a.sample(into, a.fleet.attach, a.fleet.detach)
	}
	d.stop()
	d.start()
}

// disk is a file beside the daemon's state that is written the way its store writes.
type disk struct {
	b *testing.B
	f *os.File
}

func newDisk(b *testing.B) *disk {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "pages"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	d := &disk{b: b, f: f}
	d.commit() // the first one makes the file longer
	return d
}

// commit writes two pages, the second after the first is on disk, as data and what points to it.
func (d *disk) commit() time.Duration {
	d.b.Helper()
	start := time.Now()
	for page := range int64(2) {
		_, err := d.f.WriteAt(bytes.Repeat([]byte{byte(start.Nanosecond())}, 4096), page*4096)
		if err == nil {
			err = unix.Fdatasync(int(d.f.Fd()))
		}
		if err != nil {
			d.b.Fatalf("sync a page: %v", err)
		}
	}
	return time.Since(start)
}

func (a *attachRun) sample(into *[2]series, attach, detach func(int) time.Duration) {
	pause(a.b.Context(), settle)
	into[0] = append(into[0], milliseconds(attach(extra)))
	pause(a.b.Context(), settle)
	into[1] = append(into[1], milliseconds(detach(extra)))
}

func (a *attachRun) of(r *remote, kind, op string) func(int) time.Duration {
	return func(i int) time.Duration { return r.do(order{Op: op, Kind: kind, Index: i}).Took }
}

func (a *attachRun) note(n int, times map[string]*[2]series) {
	for i, op := range []string{"attach", "detach"} {
		metric := fmt.Sprintf("%s, %d standing", op, n)
		a.section.add(metric, "raw netlink", "ms", times["raw netlink"][i], "")
		for _, name := range []string{"bulkhead", "bulkhead, HCN calls", "bulkhead, no pool", "HCN calls, state in memory", "cni"} {
			if samples := times[name][i]; len(samples) > 0 {
				a.section.add(metric, name, "ms", samples, "raw netlink")
			}
		}
	}
}

func (a *attachRun) aims() {
	first, last := a.s.points[0], a.s.points[len(a.s.points)-1]
	at := func(op string, n int, name string) float64 {
		return a.section.median(fmt.Sprintf("%s, %d standing", op, n), name)
	}
	report.atMost(fmt.Sprintf("attach by raw netlink, %d standing", first), ratio(at("attach", first, "bulkhead"), at("attach", first, "raw netlink")), 1.5, "x")
	report.atMost("HCN attach by raw netlink, state in memory", ratio(at("attach", first, "HCN calls, state in memory"), at("attach", first, "raw netlink")), 1.5, "x")
	if last != first {
		report.atMost(fmt.Sprintf("attach by raw netlink, %d standing", last), ratio(at("attach", last, "bulkhead"), at("attach", last, "raw netlink")), 1.5, "x")
		grown := ratio(at("attach", last, "bulkhead"), at("attach", first, "bulkhead"))
		raw := ratio(at("attach", last, "raw netlink"), at("attach", first, "raw netlink"))
		report.atMost(fmt.Sprintf("growth to %d standing, by that of raw netlink", last), ratio(grown, max(raw, 1)), 1.4, "x")
	}
	for _, n := range a.s.points {
		report.atLeast(fmt.Sprintf("CNI attach by ours, %d standing", n), ratio(at("attach", n, "cni"), at("attach", n, "bulkhead")), 20)
	}
	report.atMost("attach through the API", at("attach", last, "bulkhead"), 2, " ms")
	report.atMost("detach through the API", at("detach", last, "bulkhead"), 1, " ms")
}
