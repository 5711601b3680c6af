package dns

import (
	"net/netip"
	"sync"
	"time"
)

// Limits keep one container from taking the resolver from the others. Zero
// values mean the defaults.
type Limits struct {
	// ClientRate is how many questions a second one address may ask in all.
	ClientRate int
	// ClientQueries and NetworkQueries may wait for upstreams at a time.
	ClientQueries, NetworkQueries int
	// ClientConns and NetworkConns may be open over TCP.
	ClientConns, NetworkConns int
	// ConnIdle is how long a connection may be silent or take over one message,
	// ConnLife how long it may last.
	ConnIdle, ConnLife time.Duration
	// CacheEntries and CacheBytes bound the cache of one network.
	CacheEntries, CacheBytes int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.ClientRate, 10000)
	def(&l.ClientQueries, 256)
	def(&l.NetworkQueries, 2048)
	def(&l.ClientConns, 16)
	def(&l.NetworkConns, 256)
	def(&l.CacheEntries, 4096)
	def(&l.CacheBytes, 2<<20)
	if l.ConnIdle == 0 {
		l.ConnIdle = 10 * time.Second
	}
	if l.ConnLife == 0 {
		l.ConnLife = 2 * time.Minute
	}
	return l
}

// maxClients bounds the memory for clients. The source guard lets a port use its
// own addresses only, so only a very large network comes near.
const maxClients = 16384

// limiter counts what the clients of one network have under way.
type limiter struct {
	limits Limits

	mu      sync.Mutex
	clients map[netip.Addr]*client
	queries int
	conns   int
}

type client struct {
	queries, conns int
	tokens         float64
	last           time.Time
}

func newLimiter(l Limits) *limiter {
	return &limiter{limits: l, clients: map[netip.Addr]*client{}}
}

// allow takes a question off the client's rate. A second's worth may come at
// once.
func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.client(a, now)
	if c == nil {
		return false
	}
	rate := float64(l.limits.ClientRate)
	if d := now.Sub(c.last); d > 0 {
		c.tokens = min(rate, c.tokens+d.Seconds()*rate)
		c.last = now
	}
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	return true
}

func (l *limiter) client(a netip.Addr, now time.Time) *client {
	if c := l.clients[a]; c != nil {
		return c
	}
	if len(l.clients) >= maxClients {
		for k, c := range l.clients {
			if c.queries == 0 && c.conns == 0 && now.Sub(c.last) > time.Second {
				delete(l.clients, k)
			}
		}
		if len(l.clients) >= maxClients {
			return nil
		}
	}
	c := &client{tokens: float64(l.limits.ClientRate), last: now}
	l.clients[a] = c
	return c
}

// beginQuery admits a question that has to wait; endQuery follows if it did.
func (l *limiter) beginQuery(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.client(a, time.Now())
	if c == nil || c.queries >= l.limits.ClientQueries || l.queries >= l.limits.NetworkQueries {
		return false
	}
	c.queries++
	l.queries++
	return true
}

func (l *limiter) endQuery(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients[a].queries--
	l.queries--
}

// beginConn admits a connection; endConn follows if it did.
func (l *limiter) beginConn(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.client(a, time.Now())
	if c == nil || c.conns >= l.limits.ClientConns || l.conns >= l.limits.NetworkConns {
		return false
	}
	c.conns++
	l.conns++
	return true
}

func (l *limiter) endConn(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients[a].conns--
	l.conns--
}
