package dns

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what a network's resolver has done since it started.
type Stats struct {
	// Listening sockets, as "10.0.0.1:53/udp"; Broken ones wait for repair.
	Listening, Broken []string

	Queries   uint64 // well-formed questions
	Local     uint64 // answered from the plan, negative answers included
	Forwarded uint64 // answered by an upstream
	Cached    uint64 // answered from the cache
	Stale     uint64 // answered with expired data, upstreams being away
	Failed    uint64 // answered SERVFAIL
	Refused   uint64 // answered REFUSED
	Limited   uint64 // not answered: over a limit
	Malformed uint64 // answered FORMERR, NOTIMP or BADVERS, or dropped

	CacheEntries, CacheBytes int
	Upstreams                []UpstreamStats
	// Failures are the most recent ones, the last one last.
	Failures []Failure
}

// UpstreamStats is how one upstream does.
type UpstreamStats struct {
	Addr          netip.AddrPort
	Asked, Failed uint64
	LastError     string

	restUntil time.Time
}

// Failure is a question that was not answered well, and why.
type Failure struct {
	Time   time.Time
	Client netip.Addr
	Name   string
	Type   string
	Reason string
	// Refused is about a question that nobody is to answer: of a closed network, for a name outside.
	Refused bool
}

const keptFailures = 32

type counters struct {
	queries, local, forwarded, cached, stale, failed, refused, limited, malformed atomic.Uint64

	mu       sync.Mutex
	failures []Failure // a ring once it is full
	next     int
}

// fail keeps a failure.
func (c *counters) fail(f Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) < keptFailures {
		c.failures = append(c.failures, f)
		return
	}
	c.failures[c.next] = f
	c.next = (c.next + 1) % keptFailures
}

func (c *counters) snapshot() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{
		Queries: c.queries.Load(), Local: c.local.Load(), Forwarded: c.forwarded.Load(),
		Cached: c.cached.Load(), Stale: c.stale.Load(), Failed: c.failed.Load(),
		Refused: c.refused.Load(), Limited: c.limited.Load(), Malformed: c.malformed.Load(),
	}
	s.Failures = append(append(s.Failures, c.failures[c.next:]...), c.failures[:c.next]...)
	return s
}
