package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// answerTime is what a question may take in all. The resolvers of libc give
	// up after five seconds; an answer, even a bad one, has to come before.
	answerTime = 4500 * time.Millisecond
	// headStart of each upstream before the next is asked as well.
	headStart = 100 * time.Millisecond
	// roundPause before the upstreams are asked once more, all having failed.
	roundPause = 100 * time.Millisecond
	rounds     = 2
	// staleWait is when a client gets an expired reply while the upstreams are
	// still being asked (RFC 8767).
	staleWait = 1800 * time.Millisecond
	// An upstream that has been silent goes to the end of the line for a while.
	restTime = 10 * time.Second
	// maxUpstreams are asked, no more: others are a mistake or an attack.
	maxUpstreams = 8
	// maxHealth bounds what is remembered of servers, which endpoints may name.
	maxHealth = 64
)

var (
	errNoUpstream = errors.New("no upstream: the network names none and the host has none")
	errRecently   = errors.New("failed a moment ago")
)

// source says where an answer came from.
type source uint8

const (
	fromUpstream source = iota
	fromCache
	fromStale
)

// forwarder asks the upstreams of one network.
type forwarder struct {
	upstreams func() []netip.AddrPort
	ask       func(ctx context.Context, to netip.AddrPort, q *query) (*entry, error)
	cache     *cache

	// Questions under way belong to the forwarder, not to who asked first: their
	// answer goes into the cache even when nobody waits any more.
	ctx context.Context
	wg  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	flights map[cacheKey]*flight
	last    []netip.AddrPort
	health  map[netip.AddrPort]*UpstreamStats
}

// flight is a question under way, and all who wait for it.
type flight struct {
	done  chan struct{}
	entry *entry
	err   error
}

func newForwarder(ctx context.Context, upstreams func() []netip.AddrPort, c *cache) *forwarder {
	return &forwarder{
		ctx: ctx, upstreams: upstreams, ask: ask, cache: c,
		flights: map[cacheKey]*flight{}, health: map[netip.AddrPort]*UpstreamStats{},
	}
}

// choose says whom to ask for an endpoint, its own servers before the network's,
// and under which key the answer is kept.
func (f *forwarder) choose(q *query, own []netip.AddrPort) (cacheKey, []netip.AddrPort) {
	upstreams, k := f.current(), q.key()
	if len(own) > 0 {
		upstreams = own[:min(len(own), maxUpstreams)]
		k.servers = fmt.Sprint(upstreams)
	}
	return k, upstreams
}

// resolve answers from the cache or the upstreams, and from what has expired
// when those are too slow or fail.
func (f *forwarder) resolve(ctx context.Context, q *query, own []netip.AddrPort) (*entry, source, error) {
	k, upstreams := f.choose(q, own)
	now := time.Now()
	e := f.cache.get(k, now)
	switch {
	case e != nil && e.msg == nil:
		return nil, fromCache, errRecently
	case e != nil && e.fresh(now):
		return e, fromCache, nil
	case e != nil && now.Before(e.recheck):
		return e, fromStale, nil
	}
	fl := f.fly(k, q, upstreams)
	if fl == nil {
		return nil, fromUpstream, context.Canceled
	}
	var late <-chan time.Time
	if e != nil {
		t := time.NewTimer(staleWait)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-fl.done:
	case <-late:
		return e, fromStale, nil
	case <-ctx.Done():
		return nil, fromUpstream, context.Cause(ctx)
	}
	if fl.err != nil && e != nil {
		return e, fromStale, fl.err
	}
	return fl.entry, fromUpstream, fl.err
}

// cached answers a client that does not want others to be asked.
func (f *forwarder) cached(q *query, own []netip.AddrPort) *entry {
	k, _ := f.choose(q, own)
	now := time.Now()
	if e := f.cache.get(k, now); e != nil && e.msg != nil && e.fresh(now) {
		return e
	}
	return nil
}

// current gives the upstreams; a change of them empties the cache, because a VPN
// that comes or goes changes what names mean.
func (f *forwarder) current() []netip.AddrPort {
	ups := f.upstreams()
	if len(ups) > maxUpstreams {
		ups = ups[:maxUpstreams]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(ups, f.last) {
		f.last = slices.Clone(ups)
		f.cache.clear()
		clear(f.flights) // they land, but nobody joins them any more
		for u := range f.health {
			if !slices.Contains(ups, u) {
				delete(f.health, u)
			}
		}
	}
	return f.last
}

// fly joins the flight of a question or starts it; nil after close.
func (f *forwarder) fly(k cacheKey, q *query, upstreams []netip.AddrPort) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	if fl := f.flights[k]; fl != nil {
		return fl
	}
	fl := &flight{done: make(chan struct{})}
	f.flights[k] = fl
	question := *q
	f.wg.Go(func() {
		ctx, cancel := context.WithTimeoutCause(f.ctx, answerTime, errors.New("no answer in time"))
		defer cancel()
		fl.entry, fl.err = f.askAll(ctx, &question, upstreams)
		f.land(k, fl, upstreams)
	})
	return fl
}

// land stores the result and lets the waiting go.
func (f *forwarder) land(k cacheKey, fl *flight, upstreams []netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case k.servers == "" && !slices.Equal(upstreams, f.last):
		// An answer of servers that are ours no more; only for who asked then.
		if fl.entry != nil {
			fl.entry.stored = now
		}
	case fl.err == nil:
		f.cache.put(k, fl.entry, now)
	case f.ctx.Err() == nil:
		f.cache.putFailure(k, now)
	}
	if f.flights[k] == fl {
		delete(f.flights, k)
	}
	close(fl.done)
}

// askAll asks the upstreams in turn and, when all have said no, once more.
func (f *forwarder) askAll(ctx context.Context, q *query, upstreams []netip.AddrPort) (*entry, error) {
	if len(upstreams) == 0 {
		return nil, errNoUpstream
	}
	var errs error
	for round := range rounds {
		e, err := f.race(ctx, q, f.order(upstreams))
		if err == nil {
			return e, nil
		}
		errs = err
		if round+1 < rounds {
			t := time.NewTimer(roundPause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errs
}

// order puts upstreams that lately failed to answer behind the others.
func (f *forwarder) order(upstreams []netip.AddrPort) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	sorted := slices.Clone(upstreams)
	resting := func(u netip.AddrPort) int {
		if h := f.health[u]; h != nil && now.Before(h.restUntil) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(sorted, func(a, b netip.AddrPort) int { return resting(a) - resting(b) })
	return sorted
}

// race asks one upstream after the other, each with a head start before the
// next, and takes the first good reply.
func (f *forwarder) race(ctx context.Context, q *query, upstreams []netip.AddrPort) (*entry, error) {
	type result struct {
		entry *entry
		err   error
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	results := make(chan result, len(upstreams))
	started, failed := 0, 0
	start := func() {
		u := upstreams[started]
		started++
		wg.Go(func() {
			e, err := f.ask(ctx, u, q)
			f.judge(ctx, u, err)
			if err != nil {
				err = fmt.Errorf("ask %s: %w", u, err)
			}
			results <- result{e, err}
		})
	}
	start()
	next := time.NewTicker(headStart)
	defer next.Stop()
	var errs []error
	for {
		select {
		case <-next.C:
			if started < len(upstreams) && ctx.Err() == nil {
				start()
			}
		case r := <-results:
			if r.err == nil {
				return r.entry, nil
			}
			errs = append(errs, r.err)
			failed++
			if started < len(upstreams) && ctx.Err() == nil {
				start()
				next.Reset(headStart)
			} else if failed == started {
				return nil, errors.Join(errs...)
			}
		}
	}
}

// judge remembers how an upstream did.
func (f *forwarder) judge(ctx context.Context, u netip.AddrPort, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return // another one was faster
	}
	h := f.health[u]
	if h == nil {
		if len(f.health) >= maxHealth {
			clear(f.health)
		}
		h = &UpstreamStats{Addr: u}
		f.health[u] = h
	}
	h.Asked++
	if err == nil {
		h.restUntil = time.Time{}
		return
	}
	h.Failed++
	h.LastError = err.Error()
	if _, ok := errors.AsType[rcodeError](err); !ok {
		h.restUntil = time.Now().Add(restTime)
	}
}

// stats of the upstreams that are in use.
func (f *forwarder) stats() []UpstreamStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []UpstreamStats
	for _, u := range f.last {
		if h := f.health[u]; h != nil {
			all = append(all, *h)
		} else {
			all = append(all, UpstreamStats{Addr: u})
		}
	}
	return all
}

// close waits for what is under way; the caller has canceled the context.
func (f *forwarder) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.wg.Wait()
}
