package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// port is where all resolvers listen.
const port = 53

// server is the resolver of one network.
type server struct {
	network hcn.GUID
	r       *Resolver
	fwd     *forwarder
	limiter *limiter
	count   counters
	log     *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // of all goroutines of sockets, connections and questions

	listens []netip.Addr // counted among the Resolver's own, under its lock

	mu    sync.Mutex
	dns   plan.DNS
	socks map[sockKey]*sock
}

func (r *Resolver) newServer(network hcn.GUID) *server {
	s := &server{
		network: network, r: r, limiter: newLimiter(r.limits), socks: map[sockKey]*sock{},
		log: r.cfg.Log.With("network", string(network)),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.fwd = newForwarder(s.ctx, func() []netip.AddrPort { return r.upstreams(network) },
		newCache(r.limits.CacheEntries, r.limits.CacheBytes))
	return s
}

// apply makes the sockets be what the network wants. Those that stay the same
// are not touched; what broke, or is bound to a device that has been made anew,
// is opened again and told as drift.
func (s *server) apply(ctx context.Context, want plan.DNS, check bool) ([]plan.Drift, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dns = want
	keys := sockKeys(want)
	for k, so := range s.socks {
		if !slices.Contains(keys, k) {
			so.close()
			delete(s.socks, k)
		}
	}
	index := -1
	if check && s.r.cfg.DeviceIndex != nil && len(keys) > 0 {
		var err error
		if index, err = s.r.cfg.DeviceIndex(ctx, want.Namespace, want.Device); err != nil {
			return nil, fmt.Errorf("find device %s of the resolver: %w", want.Device, err)
		}
	}
	var drift []plan.Drift
	var errs []error
	for _, k := range keys {
		found := ""
		if so := s.socks[k]; so != nil {
			if found = so.fault(index); found == "" {
				continue
			}
			so.close()
			delete(s.socks, k)
		}
		so, err := s.open(ctx, k)
		if err != nil {
			errs = append(errs, fmt.Errorf("open resolver on %s: %w", k, err))
			continue
		}
		s.socks[k] = so
		if found != "" {
			drift = append(drift, plan.Drift{Object: "resolver " + k.String(), ID: string(s.network), Found: found})
		}
	}
	return drift, errors.Join(errs...)
}

// stop ends the server and waits for all that it runs.
func (s *server) stop() {
	s.cancel()
	s.mu.Lock()
	for k, so := range s.socks {
		so.close()
		delete(s.socks, k)
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.fwd.close()
}

// task is a question that has to wait for others.
type task struct {
	q         query
	client    netip.Addr
	network   hcn.GUID         // whose upstreams to ask
	upstreams []netip.AddrPort // the asker's own, which come before
	limit     int
	began     time.Time
}

// quick answers what can be answered at once, into buf. A task is for wait; with
// neither, there is nothing to send.
func (s *server) quick(buf, msg []byte, client netip.Addr, tcp bool) ([]byte, *task) {
	now := time.Now()
	if !s.limiter.allow(client, now) {
		s.count.limited.Add(1)
		return nil, nil
	}
	q, rcode, ok := parseQuery(msg)
	if !ok {
		s.count.malformed.Add(1)
		return nil, nil
	}
	limit := q.size
	if tcp {
		limit = maxTCP
	}
	if rcode != rcodeSuccess {
		s.count.malformed.Add(1)
		s.trace(&q, client, "malformed", "request cannot be read", now)
		r := newReply(buf, &q, rcode, false, limit, edeNone)
		return r.done(), nil
	}
	s.count.queries.Add(1)
	var space [16]netip.Addr
	v := s.r.index.decide(s.network, &q, client, s.r.cfg.ForwardSingleLabel, space[:0])
	if v.kind == kindForward {
		return nil, &task{q: q, client: client, network: v.network, upstreams: s.r.notOurs(v.upstreams), limit: limit, began: now}
	}
	return s.local(buf, &q, client, limit, &v, now), nil
}

// local writes the answer to what is ours.
func (s *server) local(buf []byte, q *query, client netip.Addr, limit int, v *verdict, began time.Time) []byte {
	if v.kind == kindRefuse {
		s.count.refused.Add(1)
		s.count.fail(Failure{Time: time.Now(), Client: client, Name: q.folded, Type: typeName(q.typ), Reason: v.reason, Refused: true})
		s.trace(q, client, "refused", v.reason, began)
		r := newReply(buf, q, rcodeRefused, false, limit, edeProhibited)
		return r.done()
	}
	s.count.local.Add(1)
	rcode, result := rcodeSuccess, "answered"
	if v.kind == kindNXDomain {
		rcode, result = rcodeNXDomain, "no such name"
	}
	r := newReply(buf, q, rcode, true, limit, edeNone)
	switch {
	case v.ptr != "":
		r.record(sectionAnswer, dnsmessage.TypePTR, localTTL, appendName(nil, v.ptr))
	case v.kind == kindAnswer:
		turn := int(s.r.turn.Add(1) % uint32(len(v.addrs)))
		for i := range v.addrs {
			if !r.addr(v.addrs[(i+turn)%len(v.addrs)], localTTL) {
				break
			}
		}
	default:
		r.soa(v.soa, v.serial, negativeTTL)
	}
	s.trace(q, client, result, v.reason, began)
	return r.done()
}

// wait answers a task from cache or upstreams. Over the limits it answers
// nothing: the client asks again, when the flood may be over.
func (s *server) wait(buf []byte, t *task) []byte {
	fwd := s.r.forwarder(t.network)
	if t.q.flags&flagRD == 0 {
		return s.notRecursive(buf, t, fwd)
	}
	if fwd == nil {
		return s.fail(buf, t, errors.New("network is gone"))
	}
	e, from, err := fwd.resolve(s.ctx, &t.q, t.upstreams)
	if e == nil {
		return s.fail(buf, t, err)
	}
	ede := edeNone
	switch from {
	case fromUpstream:
		s.count.forwarded.Add(1)
		s.trace(&t.q, t.client, "forwarded", "", t.began)
	case fromCache:
		s.count.cached.Add(1)
		s.trace(&t.q, t.client, "cached", "", t.began)
	case fromStale:
		s.count.stale.Add(1)
		if ede = edeStale; e.layout.rcode == rcodeNXDomain {
			ede = edeStaleNXDomain
		}
		reason := "upstreams are slow"
		if err != nil {
			reason = err.Error()
			s.failed(&t.q, t.client, "answered with expired data: "+reason)
		}
		s.trace(&t.q, t.client, "stale", reason, t.began)
	}
	return relay(buf, &t.q, e.msg, &e.layout, t.limit, ede, e.ttlAt(time.Now(), from == fromStale))
}

// notRecursive answers who asks for no recursion: with what is known.
func (s *server) notRecursive(buf []byte, t *task, fwd *forwarder) []byte {
	if fwd != nil {
		if e := fwd.cached(&t.q, t.upstreams); e != nil {
			s.count.cached.Add(1)
			s.trace(&t.q, t.client, "cached", "", t.began)
			return relay(buf, &t.q, e.msg, &e.layout, t.limit, edeNone, e.ttlAt(time.Now(), false))
		}
	}
	s.count.refused.Add(1)
	s.trace(&t.q, t.client, "refused", "not known, and no recursion wanted", t.began)
	r := newReply(buf, &t.q, rcodeRefused, false, t.limit, edeNone)
	return r.done()
}

func (s *server) fail(buf []byte, t *task, err error) []byte {
	if s.ctx.Err() != nil {
		return nil // we are stopping; silence lets the client ask the next one
	}
	s.count.failed.Add(1)
	s.failed(&t.q, t.client, err.Error())
	s.trace(&t.q, t.client, "failed", err.Error(), t.began)
	r := newReply(buf, &t.q, rcodeServFail, false, t.limit, edeNoUpstream)
	return r.done()
}

func (s *server) failed(q *query, client netip.Addr, reason string) {
	s.count.fail(Failure{Time: time.Now(), Client: client, Name: q.folded, Type: typeName(q.typ), Reason: reason})
}

// trace is the query log.
func (s *server) trace(q *query, client netip.Addr, result, reason string, began time.Time) {
	if !s.log.Enabled(s.ctx, slog.LevelDebug) {
		return
	}
	s.log.LogAttrs(s.ctx, slog.LevelDebug, "dns query",
		slog.String("client", client.String()), slog.String("name", q.folded), slog.String("type", typeName(q.typ)),
		slog.String("result", result), slog.String("reason", reason), slog.Duration("took", time.Since(began)))
}

func (s *server) stats() Stats {
	st := s.count.snapshot()
	st.CacheEntries, st.CacheBytes = s.fwd.cache.size()
	s.fwd.current()
	st.Upstreams = s.fwd.stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range sockKeys(s.dns) {
		if so := s.socks[k]; so != nil && so.fault(-1) == "" {
			st.Listening = append(st.Listening, k.String())
		} else {
			st.Broken = append(st.Broken, k.String())
		}
	}
	return st
}
