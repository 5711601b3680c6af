// Command overlaysim drives a real etcd with many hosts of a cluster that are agents and nothing else, and reports how long a change takes
// to be seen by all of them, what it costs etcd, and how both grow.
//
//	go run ./test/overlaysim -hosts 10,100,1000 -per-host 50 -changes 200
//
// It needs root, for a network of its own in which loopback has the addresses of a host, and Debian's etcd-server.
//
// Each simulated host has a connection of its own, a lease, a block of addresses, its endpoints published under the lease, and a watch of
// everything: what a daemon does, by the same code. It only keeps nothing of the others' endpoints, because a thousand copies of fifty
// thousand fit no machine; what a copy costs is measured at one whole agent. A change is timed from the call that makes it to the
// moment at which a host's watch has taken it in.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	hosts   []int
	perHost int
	changes int
	rate    float64
}

func main() {
	var o options
	sizes := flag.String("hosts", "10,50", "how many hosts, one run for each number")
	flag.IntVar(&o.perHost, "per-host", 50, "endpoints of each host")
	flag.IntVar(&o.changes, "changes", 200, "changes that are timed")
	flag.Float64Var(&o.rate, "rate", 20, "changes a second")
	flag.Parse()
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "overlaysim: -hosts %q is no number of hosts\n", s)
			os.Exit(2)
		}
		o.hosts = append(o.hosts, n)
	}
	err := inside(func() error { return simulate(context.Background(), o, os.Stdout) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "overlaysim:", err)
		os.Exit(1)
	}
}

const insideEnv = "BULKHEAD_OVERLAYSIM_INSIDE"

// inside runs fn in a process with a network of its own.
func inside(fn func() error) error {
	if os.Getenv(insideEnv) != "" {
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", "192.0.2.1/24", "dev", "lo"}} {
			if out, err := exec.CommandContext(context.Background(), "ip", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %v: %w: %s", args, err, out)
			}
		}
		return fn()
	}
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd.Run()
}

// result of one run.
type result struct {
	hosts, endpoints int
	filled           time.Duration // until all endpoints are in etcd, by a few agents that act for all hosts
	start            time.Duration // until all hosts are back, watch, and have their lease and endpoints
	p50, p99, max    time.Duration
	whole            time.Duration // p99 of one whole agent, which keeps everything
	etcdCPU          float64       // seconds of processor for each second of changes
	etcdRSS, etcdDB  int64
	agentHeap        int64 // of a whole agent with all of it
}

func simulate(ctx context.Context, o options, out io.Writer) error {
	fmt.Fprintf(out, "%s processors, %d endpoints a host, %d changes at %.0f a second, one member of etcd, TLS, %s\n\n", strconv.Itoa(runtime.NumCPU()), o.perHost, o.changes, o.rate, diskOf(os.TempDir()))
	fmt.Fprintln(out, "HOSTS  ENDPOINTS    FILLED   STARTED    P50      P99      MAX      WHOLE P99  ETCD CPU  ETCD RSS  ETCD DB   AGENT HEAP")
	for _, n := range o.hosts {
		r, err := run(ctx, n, o)
		if err != nil {
			return fmt.Errorf("%d hosts: %w", n, err)
		}
		fmt.Fprintf(out, "%5d  %9d  %8s  %8s  %7s  %7s  %7s  %9s  %7.0f%%  %8s  %7s  %10s\n", r.hosts, r.endpoints, r.filled.Round(10*time.Millisecond), r.start.Round(10*time.Millisecond), ms(r.p50), ms(r.p99), ms(r.max), ms(r.whole),
			100*r.etcdCPU, mib(r.etcdRSS), mib(r.etcdDB), mib(r.agentHeap))
	}
	return nil
}

// diskOf says what etcd's files are on: the time of a change has a write to it.
func diskOf(dir string) string {
	var st syscall.Statfs_t
	const tmpfs = 0x01021994
	if err := syscall.Statfs(dir, &st); err != nil {
		return "an unknown disk"
	}
	if st.Type == tmpfs {
		return "no disk: " + dir + " is memory"
	}
	return "each write synced to the disk below " + dir
}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

func mib(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// run is one simulation, with an etcd of its own.
func run(ctx context.Context, n int, o options) (r result, err error) {
	dir, err := os.MkdirTemp("", "overlaysim-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	etcd, end, err := begin(ctx, dir)
	if err != nil {
		return r, err
	}
	defer end()
	begun := time.Now()
	if err := populate(ctx, etcd, n, o.perHost); err != nil {
		return r, fmt.Errorf("give the hosts endpoints: %w", err)
	}
	r.filled = time.Since(begun)
	begun = time.Now()
	hosts, stop, err := startHosts(ctx, etcd, n, o.perHost)
	if err != nil {
		return r, err
	}
	defer stop()
	r.hosts, r.endpoints, r.start = n, n*o.perHost, time.Since(begun)
	revs, err := followChanges(ctx, etcd)
	if err != nil {
		return r, err
	}
	whole, stopWhole, err := wholeAgent(ctx, etcd, n*o.perHost)
	if err != nil {
		return r, err
	}
	defer func() { stopWhole() }()
	before, err := scrape(ctx, etcd)
	if err != nil {
		return r, err
	}
	began := time.Now()
	made := change(ctx, hosts, o)
	times, wholes, last, err := collect(ctx, hosts, whole, made, revs)
	if err != nil {
		return r, err
	}
	after, err := scrape(ctx, etcd)
	if err != nil {
		return r, err
	}
	r.p50, r.p99, r.max = quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1)
	r.whole = quantile(wholes, 0.99)
	// The work is over when the last host has seen the last change.
	r.etcdCPU = (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / last.Sub(began).Seconds()
	r.etcdRSS, r.etcdDB = int64(after["process_resident_memory_bytes"]), int64(after["etcd_mvcc_db_total_size_in_bytes"])
	// The others end first: of a thousand that work, nobody can tell what one has.
	stop()
	stopWhole()
	stopWhole = func() {}
	r.agentHeap, err = heapOfOne(ctx, etcd, n*o.perHost)
	return r, err
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}
