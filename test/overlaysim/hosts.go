package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

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

// pause waits for a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
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
