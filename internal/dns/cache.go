package dns

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Bounds of what a reply may live in the cache.
const (
	maxTTL         = time.Hour
	maxNegativeTTL = 5 * time.Minute
	// failureTTL keeps a failed question from being asked again at once (RFC
	// 9520 demands a second at least).
	failureTTL = time.Second
	// Expired replies are kept for a day for when no upstream answers; clients
	// get them with staleTTL, and the upstreams are left alone for staleRecheck
	// (RFC 8767).
	maxStale     = 24 * time.Hour
	staleTTL     = 30
	staleRecheck = 30 * time.Second

	// maxEntry is the largest reply worth keeping, entryCost what an entry takes
	// besides it.
	maxEntry  = 16 << 10
	entryCost = 300
)

// cacheKey is all that makes upstreams answer differently.
type cacheKey struct {
	name       string // folded
	typ        dnsmessage.Type
	class      dnsmessage.Class
	do, cd, ad bool
	// servers is empty for the network's upstreams; an endpoint's own ones may
	// know other answers, which are nobody else's.
	servers string
}

func (q *query) key() cacheKey {
	return cacheKey{
		name: q.folded, typ: q.typ, class: q.class,
		do: q.do, cd: q.flags&flagCD != 0, ad: q.flags&flagAD != 0,
	}
}

// entry is a reply as it came, or with a nil msg the memory of a failure.
type entry struct {
	msg     []byte
	layout  layout
	stored  time.Time
	expires time.Time
	recheck time.Time // stale: do not ask before
}

func (e *entry) fresh(now time.Time) bool { return now.Before(e.expires) }

func (e *entry) cost() int { return entryCost + len(e.msg) + 8*len(e.layout.ttls) }

// ttlAt ages a TTL. An expired reply gets one that brings the client back soon.
func (e *entry) ttlAt(now time.Time, stale bool) func(uint32) uint32 {
	if stale {
		return func(uint32) uint32 { return staleTTL }
	}
	age := uint32(now.Sub(e.stored) / time.Second)
	return func(ttl uint32) uint32 {
		ttl = min(ttl, uint32(maxTTL/time.Second))
		return ttl - min(ttl, age)
	}
}

// lifetime is how long a reply may be used; 0 means not at all.
func lifetime(l *layout) time.Duration {
	switch {
	case l.rcode == rcodeNXDomain || l.rcode == rcodeSuccess && !l.hasType:
		if !l.hasSOA {
			return 0
		}
		ttl := time.Duration(min(l.soaTTL, l.minTTL)) * time.Second
		return min(ttl, maxNegativeTTL)
	case l.rcode == rcodeSuccess:
		return min(time.Duration(l.minTTL)*time.Second, maxTTL)
	}
	return 0
}

// cache keeps replies, bounded in number and bytes; the least recently used go
// first. Each network has its own: their upstreams differ, and one must not see
// what another asks.
type cache struct {
	maxEntries, maxBytes int

	mu      sync.Mutex
	entries map[cacheKey]*list.Element
	order   list.List // of *slot, most recently used first
	bytes   int
}

type slot struct {
	key   cacheKey
	entry *entry
}

func newCache(maxEntries, maxBytes int) *cache {
	return &cache{maxEntries: maxEntries, maxBytes: maxBytes, entries: map[cacheKey]*list.Element{}}
}

// get returns what is known, fresh or stale, or nil. Entries are not changed
// once stored.
func (c *cache) get(k cacheKey, now time.Time) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*slot).entry
	if !e.fresh(now) && (e.msg == nil || now.After(e.expires.Add(maxStale))) {
		c.remove(el)
		return nil
	}
	c.order.MoveToFront(el)
	return e
}

// put stores a reply for as long as its TTLs allow. What may not be kept also
// ends what was known before.
func (c *cache) put(k cacheKey, e *entry, now time.Time) {
	ttl := lifetime(&e.layout)
	if len(e.msg) > maxEntry {
		ttl = 0
	}
	e.stored, e.expires = now, now.Add(ttl)
	c.set(k, e, ttl > 0)
}

// putFailure remembers that a question cannot be answered now. What is known
// from before stays, for use while it is so.
func (c *cache) putFailure(k cacheKey, now time.Time) {
	if old := c.get(k, now); old != nil && old.msg != nil {
		again := *old
		again.recheck = now.Add(staleRecheck)
		c.set(k, &again, true)
		return
	}
	c.set(k, &entry{stored: now, expires: now.Add(failureTTL)}, true)
}

func (c *cache) set(k cacheKey, e *entry, keep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[k]; el != nil {
		c.remove(el)
	}
	if !keep {
		return
	}
	c.entries[k] = c.order.PushFront(&slot{k, e})
	c.bytes += e.cost()
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(el *list.Element) {
	s := c.order.Remove(el).(*slot)
	delete(c.entries, s.key)
	c.bytes -= s.entry.cost()
}

// clear forgets everything: other upstreams may know other answers.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.order.Init()
	c.bytes = 0
}

// size is for statistics.
func (c *cache) size() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.bytes
}
