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
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
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

// host is a simulated one.
type host struct {
	agent *overlay.Agent
	cli   *clientv3.Client
	eps   []overlay.Endpoint
	mu    sync.Mutex
	seen  []seenAt
}

// seenAt is when a host had taken in a revision.
type seenAt struct {
	rev int64
	at  time.Time
}

func (h *host) note(rev int64) {
	now := time.Now()
	h.mu.Lock()
	h.seen = append(h.seen, seenAt{rev, now})
	h.mu.Unlock()
}

// when a host had seen a revision; zero: not yet.
func (h *host) when(rev int64) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, _ := slices.BinarySearchFunc(h.seen, rev, func(s seenAt, r int64) int { return int(s.rev - r) })
	if i == len(h.seen) {
		return time.Time{}
	}
	return h.seen[i].at
}

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

// begin starts etcd as `bulkhead cluster init` does.
func begin(ctx context.Context, dir string) (overlay.Etcd, func(), error) {
	opt := overlay.Options{Dir: filepath.Join(dir, "cluster"), RunDir: dir, Version: "sim", Boot: "sim"}
	c, err := overlay.Open(opt)
	if err != nil {
		return overlay.Etcd{}, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	end := func() {
		cancel()
		<-done
		overlay.EndMember(opt.Dir, opt.RunDir)
	}
	for {
		_, err = c.Init(ctx, overlay.Request{Name: "sim", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, "")
		if err == nil || !strings.Contains(err.Error(), "is starting") {
			break
		}
		pause(ctx, 10*time.Millisecond)
	}
	if err != nil {
		end()
		return overlay.Etcd{}, nil, err
	}
	return c.Status(ctx).Etcd, end, nil
}

func guid(kind, n int) hcn.GUID {
	g, err := hcn.ParseGUID(fmt.Sprintf("%08x-0000-4000-8000-%012x", kind, n))
	if err != nil {
		panic(err)
	}
	return g
}

// the hosts are on networks of a hundred hosts each.
const hostsPerNetwork = 100

// agentOf is the agent of a host, by number, with a connection of its own.
func agentOf(etcd overlay.Etcd, i int, seen func(int64)) (*overlay.Agent, *clientv3.Client, error) {
	cli, err := overlay.Dial(etcd)
	if err != nil {
		return nil, nil, err
	}
	addr := netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)})
	return overlay.New(overlay.Config{
		Client: cli, Prefix: etcd.Prefix, Light: true, Seen: seen, TTL: ttl,
		Host: overlay.Host{ID: guid(0xa, i+1), Name: fmt.Sprintf("host%d", i), Addrs: []netip.Addr{addr.Next()}, Version: "sim", Boot: "sim"},
	}), cli, nil
}

// ttl lasts from the time at which a host was given its endpoints until it is started.
const ttl = 10 * time.Minute

// startHosts has all hosts come at once, as after a power cut: each goes on with the lease and the endpoints that it has.
func startHosts(ctx context.Context, etcd overlay.Etcd, n, per int) (hosts []*host, stop func(), err error) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		for _, h := range hosts {
			h.cli.Close()
		}
	})
	for i := range n {
		h := &host{eps: endpointsOf(i, per)}
		if h.agent, h.cli, err = agentOf(etcd, i, h.note); err != nil {
			stop()
			return nil, stop, err
		}
		h.agent.Publish(h.eps)
		hosts = append(hosts, h)
		wg.Go(func() { h.agent.Run(ctx) })
	}
	for _, h := range hosts {
		if err := connected(ctx, h.agent); err != nil {
			stop()
			return nil, stop, err
		}
	}
	return hosts, stop, nil
}

func connected(ctx context.Context, a *overlay.Agent) error {
	for until := time.Now().Add(5 * time.Minute); !a.Status().Connected; pause(ctx, 10*time.Millisecond) {
		if time.Now().After(until) || ctx.Err() != nil {
			return fmt.Errorf("%s is not connected: %s", a.Self().Name, a.Status().Problem)
		}
	}
	return nil
}

func networkID(k int) hcn.GUID { return guid(0xb, k+1) }

const subnetText = "10.64.0.0/16"

func makeNetwork(ctx context.Context, a *overlay.Agent, k int) error {
	_, err := a.CreateNetwork(ctx, func(t overlay.Taken) (overlay.Network, error) {
		id, name := networkID(k), fmt.Sprintf("net%d", k)
		doc := hcn.HostComputeNetwork{
			ID: id, Name: name, Type: hcn.Overlay, SchemaVersion: hcn.V2(), Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{IpAddressPrefix: subnetText}}}},
		}
		return overlay.Network{ID: id, Name: name, VNI: t.VNI, Doc: doc}, nil
	})
	return err
}

// populate gives every host its block and endpoints, by an agent for each that ends when they are published: were all of them to watch
// already, each endpoint would be told to each, and it is not that which is measured.
func populate(ctx context.Context, etcd overlay.Etcd, n, per int) error {
	for i := range n { // first, so that everybody finds its network
		if i%hostsPerNetwork != 0 {
			continue
		}
		if err := actAs(ctx, etcd, i, func(a *overlay.Agent) error { return makeNetwork(ctx, a, i/hostsPerNetwork) }); err != nil {
			return err
		}
	}
	errs := make(chan error, n)
	places := make(chan struct{}, 4)
	for i := range n {
		places <- struct{}{}
		go func() {
			defer func() { <-places }()
			errs <- actAs(ctx, etcd, i, func(a *overlay.Agent) error { return fill(ctx, a, etcd, i, per) })
		}()
	}
	var all []error
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// actAs runs the agent of a host for as long as fn.
func actAs(ctx context.Context, etcd overlay.Etcd, i int, fn func(*overlay.Agent) error) error {
	a, cli, err := agentOf(etcd, i, nil)
	if err != nil {
		return err
	}
	defer cli.Close()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { a.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	if err := connected(ctx, a); err != nil {
		return err
	}
	return fn(a)
}

// fill leases what the endpoints of a host need, and publishes them.
func fill(ctx context.Context, a *overlay.Agent, etcd overlay.Etcd, i, per int) error {
	net, subnet := networkID(i/hostsPerNetwork), netip.MustParsePrefix(subnetText)
	eps := endpointsOf(i, per)
	for _, ep := range eps {
		if _, err := lease(ctx, a, net, subnet, ep.Addrs[0]); err != nil {
			return err
		}
	}
	a.Publish(eps)
	prefix := fmt.Sprintf("%s/v1/endpoints/%s/%s/", etcd.Prefix, net.Lower(), a.Self().ID.Lower())
	cli, err := overlay.Dial(etcd)
	if err != nil {
		return err
	}
	defer cli.Close()
	for until := time.Now().Add(2 * time.Minute); ; pause(ctx, 10*time.Millisecond) {
		res, err := cli.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && int(res.Count) == per {
			return nil
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return fmt.Errorf("the endpoints of %s are not published: %w", a.Self().Name, errors.Join(err, ctx.Err()))
		}
	}
}

// endpointsOf are those of a host, by its number. Its addresses are a /24's of its network's: of several blocks, all its own.
func endpointsOf(i, per int) (eps []overlay.Endpoint) {
	a := netip.AddrFrom4([4]byte{10, 64, byte(i % hostsPerNetwork), 1})
	for k := range per {
		name := fmt.Sprintf("c%d-%d", i, k)
		eps = append(eps, overlay.Endpoint{
			ID: guid(0xe, i<<12|k), Network: networkID(i / hostsPerNetwork), Name: name, Names: []string{name, "web"},
			MAC: overlay.MAC{2, 0, byte(i >> 8), byte(i), 0, byte(k)}, Addrs: []netip.Addr{a},
		})
		a = a.Next()
	}
	return eps
}

// pause waits for a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// lease waits for the network, which the host may not have seen yet, and for an etcd that is busy.
func lease(ctx context.Context, a *overlay.Agent, net hcn.GUID, subnet netip.Prefix, at netip.Addr) (p netip.Prefix, err error) {
	for until := time.Now().Add(5 * time.Minute); time.Now().Before(until); pause(ctx, 50*time.Millisecond) {
		if p, err = a.LeaseBlock(ctx, net, subnet, at); !errors.Is(err, overlay.ErrNotFound) && !errors.Is(err, overlay.ErrAway) {
			break
		}
	}
	return p, err
}

// wholeAgent starts one that keeps everything.
func wholeAgent(ctx context.Context, etcd overlay.Etcd, want int) (*host, func(), error) {
	cli, err := overlay.Dial(etcd)
	if err != nil {
		return nil, nil, err
	}
	h := &host{cli: cli}
	total := 0
	var mu sync.Mutex
	h.agent = overlay.New(overlay.Config{
		Client: cli, Prefix: etcd.Prefix, Seen: h.note, TTL: 30 * time.Second,
		Host: overlay.Host{ID: guid(0xa, 1<<30), Name: "whole", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Version: "sim", Boot: "sim"},
		Changed: func() {
			mu.Lock()
			defer mu.Unlock()
			if u, ok := h.agent.Take(); ok {
				total = max(total, len(u.Endpoints))
			}
		},
	})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { h.agent.Run(ctx); close(done) }()
	stop := sync.OnceFunc(func() { cancel(); <-done; cli.Close() })
	for until := time.Now().Add(2 * time.Minute); ; pause(ctx, 20*time.Millisecond) {
		mu.Lock()
		n := total
		mu.Unlock()
		if n == want && h.agent.Status().Connected {
			return h, stop, nil
		}
		if time.Now().After(until) || ctx.Err() != nil {
			stop()
			return nil, nil, fmt.Errorf("a whole agent was told of %d endpoints of %d: %s", n, want, h.agent.Status().Problem)
		}
	}
}

// heapOfOne is what a whole agent keeps, alone in this process.
func heapOfOne(ctx context.Context, etcd overlay.Etcd, want int) (int64, error) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what the first finds to be finalized goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	h, stop, err := wholeAgent(ctx, etcd, want)
	if err != nil {
		return 0, err
	}
	defer stop()
	after := heap()
	runtime.KeepAlive(h)
	return after - before, nil
}

// change has hosts change an endpoint each, at a steady rate; it gives when each was made, by its number.
func change(ctx context.Context, hosts []*host, o options) map[int]time.Time {
	made := map[int]time.Time{}
	tick := time.NewTicker(time.Duration(float64(time.Second) / o.rate))
	defer tick.Stop()
	for seq := range o.changes {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return made
		}
		// One after the other: two changes of one endpoint could melt into one.
		h := hosts[seq%len(hosts)]
		h.eps = slices.Clone(h.eps)
		ep := &h.eps[seq/len(hosts)%len(h.eps)]
		ep.Name = fmt.Sprintf("change-%d", seq)
		made[seq] = time.Now()
		h.agent.Publish(h.eps)
	}
	return made
}

// changes knows the revisions of changes.
type changes struct {
	mu   sync.Mutex
	revs map[int]int64
}

// followChanges watches for the names that change gives.
func followChanges(ctx context.Context, etcd overlay.Etcd) (*changes, error) {
	cli, err := overlay.Dial(etcd)
	if err != nil {
		return nil, err
	}
	c := &changes{revs: map[int]int64{}}
	go func() {
		defer cli.Close()
		for res := range cli.Watch(ctx, etcd.Prefix+"/v1/endpoints/", clientv3.WithPrefix()) {
			for _, ev := range res.Events {
				var ep struct{ Name string }
				var seq int
				if json.Unmarshal(ev.Kv.Value, &ep) != nil {
					continue
				}
				if _, err := fmt.Sscanf(ep.Name, "change-%d", &seq); err == nil {
					c.mu.Lock()
					if c.revs[seq] == 0 {
						c.revs[seq] = ev.Kv.ModRevision
					}
					c.mu.Unlock()
				}
			}
		}
	}()
	return c, nil
}

// collect waits until all hosts have seen all changes, and gives how long each took for each host.
func collect(ctx context.Context, hosts []*host, whole *host, made map[int]time.Time, c *changes) (times, wholes []time.Duration, last time.Time, err error) {
	for seq, at := range made {
		var rev int64
		for until := time.Now().Add(time.Minute); rev == 0; pause(ctx, 5*time.Millisecond) {
			c.mu.Lock()
			rev = c.revs[seq]
			c.mu.Unlock()
			if time.Now().After(until) || ctx.Err() != nil {
				return nil, nil, last, fmt.Errorf("change %d was not written", seq)
			}
		}
		for _, h := range append(slices.Clip(hosts), whole) {
			var t time.Time
			for until := time.Now().Add(time.Minute); t.IsZero(); {
				if t = h.when(rev); !t.IsZero() {
					break
				}
				if time.Now().After(until) {
					return nil, nil, last, fmt.Errorf("change %d was not seen by a host", seq)
				}
				pause(ctx, 5*time.Millisecond)
			}
			if t.After(last) {
				last = t
			}
			if h == whole {
				wholes = append(wholes, t.Sub(at))
			} else {
				times = append(times, t.Sub(at))
			}
		}
	}
	return times, wholes, last, nil
}

// scrape reads etcd's metrics.
func scrape(ctx context.Context, etcd overlay.Etcd) (map[string]float64, error) {
	pair, err := tls.LoadX509KeyPair(etcd.Cert, etcd.Key)
	if err != nil {
		return nil, err
	}
	// It is our own, on loopback: who it is does not matter here.
	tr := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, etcd.Endpoints[0]+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := map[string]float64{}
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), " "); ok {
			if f, err := strconv.ParseFloat(value, 64); err == nil {
				out[name] = f
			}
		}
	}
	return out, nil
}
