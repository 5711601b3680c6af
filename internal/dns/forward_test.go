package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// fakeServers stands in for the upstreams: a reply, an error or silence each,
// and a log of who was asked when.
type fakeServers struct {
	mu     sync.Mutex
	start  time.Time
	asked  []string
	answer map[string]func(ctx context.Context) ([]byte, error)
}

func (s *fakeServers) ask(ctx context.Context, to netip.AddrPort, q *query) (*entry, error) {
	s.mu.Lock()
	s.asked = append(s.asked, fmt.Sprintf("%s@%s", to.Addr(), time.Since(s.start)))
	f := s.answer[to.Addr().String()]
	s.mu.Unlock()
	if f == nil {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	msg, err := f(ctx)
	if err != nil {
		return nil, err
	}
	return readReply(msg, q)
}

func (s *fakeServers) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := strings.Join(s.asked, " ")
	s.asked, s.start = nil, time.Now()
	return l
}

func (s *fakeServers) set(addr string, f func(ctx context.Context) ([]byte, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer[addr] = f
}

func (s *fakeServers) says(addr string, msg []byte) {
	s.set(addr, func(context.Context) ([]byte, error) { return msg, nil })
}

func (s *fakeServers) fails(addr string, err error) {
	s.set(addr, func(context.Context) ([]byte, error) { return nil, err })
}

// inBubble runs a test of a forwarder on a clock of its own.
func inBubble(t *testing.T, f func(t *testing.T, fwd *forwarder, s *fakeServers, ups *[]netip.AddrPort)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &fakeServers{start: time.Now(), answer: map[string]func(context.Context) ([]byte, error){}}
		ups := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")}
		fwd := newForwarder(ctx, func() []netip.AddrPort {
			s.mu.Lock()
			defer s.mu.Unlock()
			return ups
		}, newCache(100, 1<<20))
		fwd.ask = s.ask
		defer fwd.close()
		defer cancel()
		f(t, fwd, s, &ups)
	})
}

func testQuery(t testing.TB, name string, typ dnsmessage.Type) *query {
	t.Helper()
	q, rcode, ok := parseQuery(clientQuery{name: name, typ: typ, edns: maxUDP}.pack(t))
	if !ok || rcode != 0 {
		t.Fatalf("query %s: rcode %d, ok %v", name, rcode, ok)
	}
	return &q
}

// replyTo builds what an upstream says.
func replyTo(t testing.TB, name string, rcode dnsmessage.RCode, rrs ...dnsmessage.Resource) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{Response: true, RecursionAvailable: true, RCode: rcode},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	for _, rr := range rrs {
		if rr.Header.Name.Length == 0 {
			rr.Header.Name = m.Questions[0].Name
		}
		rr.Header.Class = dnsmessage.ClassINET
		if _, ok := rr.Body.(*dnsmessage.SOAResource); ok {
			m.Authorities = append(m.Authorities, rr)
		} else {
			m.Answers = append(m.Answers, rr)
		}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rrA(ttl uint32, last byte) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{TTL: ttl}, Body: &dnsmessage.AResource{A: [4]byte{198, 51, 100, last}}}
}

func rrSOA(ttl, minimum uint32) dnsmessage.Resource {
	root := dnsmessage.MustNewName("example.com.")
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: root, TTL: ttl},
		Body:   &dnsmessage.SOAResource{NS: root, MBox: root, MinTTL: minimum},
	}
}

// outcome puts a result into a word: where it came from and what it says.
func outcome(f *forwarder, q *query) string {
	e, from, err := f.resolve(context.Background(), q, nil)
	if e == nil {
		return "error: " + err.Error()
	}
	src := map[source]string{fromUpstream: "upstream", fromCache: "cache", fromStale: "stale"}[from]
	ttl := "-"
	if len(e.layout.ttls) > 0 {
		at := e.layout.ttls[0]
		v := uint32(e.msg[at])<<24 | uint32(e.msg[at+1])<<16 | uint32(e.msg[at+2])<<8 | uint32(e.msg[at+3])
		ttl = fmt.Sprint(e.ttlAt(time.Now(), from == fromStale)(v))
	}
	return fmt.Sprintf("%s rcode=%d ttl=%s", src, e.layout.rcode, ttl)
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestHeadStart(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
		// The first is silent: the second is asked when its head start is over.
		s.says("192.0.2.2", replyTo(t, "www.example.com", 0, rrA(60, 1)))
		check(t, "answer", outcome(f, testQuery(t, "www.example.com", dnsmessage.TypeA)), "upstream rcode=0 ttl=60")
		check(t, "asked", s.log(), "192.0.2.1@0s 192.0.2.2@100ms")

		// A failure passes the question on at once.
		for _, err := range []error{rcodeError(rcodeServFail), rcodeError(rcodeRefused), errors.New("connection refused"), errMalformed} {
			name := fmt.Sprintf("n%d.example.com", time.Now().UnixNano())
			s.fails("192.0.2.1", err)
			f.health = map[netip.AddrPort]*UpstreamStats{}
			s.says("192.0.2.2", replyTo(t, name, 0, rrA(60, 1)))
			check(t, err.Error(), outcome(f, testQuery(t, name, dnsmessage.TypeA)), "upstream rcode=0 ttl=60")
			check(t, err.Error()+": asked", s.log(), "192.0.2.1@0s 192.0.2.2@0s")
			time.Sleep(time.Second)
			s.log()
		}
	})
}

func TestSilentUpstreamGoesLast(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
		s.fails("192.0.2.1", errNoUDP)
		s.says("192.0.2.2", replyTo(t, "a.example.com", 0, rrA(60, 1)))
		outcome(f, testQuery(t, "a.example.com", dnsmessage.TypeA))
		s.log()
		s.says("192.0.2.2", replyTo(t, "b.example.com", 0, rrA(60, 1)))
		outcome(f, testQuery(t, "b.example.com", dnsmessage.TypeA))
		check(t, "while it rests", s.log(), "192.0.2.2@0s")
		time.Sleep(restTime)
		s.log()
		s.says("192.0.2.1", replyTo(t, "c.example.com", 0, rrA(60, 1)))
		outcome(f, testQuery(t, "c.example.com", dnsmessage.TypeA))
		check(t, "afterwards", s.log(), "192.0.2.1@0s")
	})
}

func TestAllFail(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
		q := testQuery(t, "www.example.com", dnsmessage.TypeA)
		s.fails("192.0.2.1", rcodeError(rcodeServFail))
		s.fails("192.0.2.2", rcodeError(rcodeRefused))
		check(t, "answer", outcome(f, q), "error: ask 192.0.2.1:53: SERVFAIL\nask 192.0.2.2:53: REFUSED")
		check(t, "two rounds", s.log(), "192.0.2.1@0s 192.0.2.2@0s 192.0.2.1@100ms 192.0.2.2@100ms")
		check(t, "at once again", outcome(f, q), "error: failed a moment ago")
		check(t, "nobody asked", s.log(), "")
		time.Sleep(failureTTL)
		s.says("192.0.2.1", replyTo(t, "www.example.com", 0, rrA(60, 1)))
		check(t, "a second later", outcome(f, q), "upstream rcode=0 ttl=60")
	})
}

// A stub resolver gives up after five seconds, and has to hear of us before.
func TestSilenceEndsInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
		began := time.Now()
		got := outcome(f, testQuery(t, "www.example.com", dnsmessage.TypeA))
		if !strings.Contains(got, "no answer in time") || time.Since(began) != answerTime {
			t.Errorf("after %s: %s", time.Since(began), got)
		}
	})
}

func TestNoUpstream(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, ups *[]netip.AddrPort) {
		*ups = nil
		check(t, "answer", outcome(f, testQuery(t, "www.example.com", dnsmessage.TypeA)), "error: "+errNoUpstream.Error())
	})
}

func TestCacheTTL(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reply []byte
		live  time.Duration // 0: not kept
		first string
		half  string
	}{
		{"positive", replyTo(t, "x.example.com", 0, rrA(60, 1)), 60 * time.Second, "upstream rcode=0 ttl=60", "cache rcode=0 ttl=30"},
		{"shortest record", replyTo(t, "x.example.com", 0, rrA(60, 1), rrA(20, 2)), 20 * time.Second, "upstream rcode=0 ttl=60", "cache rcode=0 ttl=50"},
		{"capped", replyTo(t, "x.example.com", 0, rrA(864000, 1)), maxTTL, "upstream rcode=0 ttl=3600", "cache rcode=0 ttl=1800"},
		{"zero", replyTo(t, "x.example.com", 0, rrA(0, 1)), 0, "upstream rcode=0 ttl=0", ""},
		{"no such name", replyTo(t, "x.example.com", 3, rrSOA(600, 40)), 40 * time.Second, "upstream rcode=3 ttl=600", "cache rcode=3 ttl=580"},
		{"no data", replyTo(t, "x.example.com", 0, rrSOA(30, 3600)), 30 * time.Second, "upstream rcode=0 ttl=30", "cache rcode=0 ttl=15"},
		{"negative, capped", replyTo(t, "x.example.com", 3, rrSOA(86400, 86400)), maxNegativeTTL, "upstream rcode=3 ttl=3600", "cache rcode=3 ttl=3450"},
		{"negative without SOA", replyTo(t, "x.example.com", 3), 0, "upstream rcode=3 ttl=-", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
				q := testQuery(t, "X.example.com", dnsmessage.TypeA)
				s.says("192.0.2.1", tc.reply)
				check(t, "first", outcome(f, q), tc.first)
				s.log()
				if tc.live > 0 {
					time.Sleep(tc.live / 2)
					check(t, "half way", outcome(f, testQuery(t, "x.EXAMPLE.com", dnsmessage.TypeA)), tc.half)
					time.Sleep(tc.live/2 - time.Nanosecond)
					if got := outcome(f, q); !strings.HasPrefix(got, "cache") {
						t.Errorf("at the end: %s", got)
					}
					check(t, "asked meanwhile", s.log(), "")
					time.Sleep(time.Nanosecond)
				}
				check(t, "afterwards", outcome(f, q), tc.first)
			})
		})
	}
}

// What makes upstreams answer differently must not be mixed up.
func TestCacheKey(t *testing.T) {
	a := testQuery(t, "x.example.com", dnsmessage.TypeA)
	for name, change := range map[string]func(q *query){
		"type":              func(q *query) { q.typ = dnsmessage.TypeAAAA },
		"signatures":        func(q *query) { q.do = true },
		"checking disabled": func(q *query) { q.flags |= flagCD },
		"authentic data":    func(q *query) { q.flags |= flagAD },
	} {
		b := *a
		change(&b)
		if a.key() == b.key() {
			t.Errorf("%s makes no difference", name)
		}
	}
}

func TestStale(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
		q := testQuery(t, "x.example.com", dnsmessage.TypeA)
		reply := replyTo(t, "x.example.com", 0, rrA(60, 1))
		s.says("192.0.2.1", reply)
		outcome(f, q)
		time.Sleep(2 * time.Minute)

		// All fail: the expired answer, and the upstreams get some rest.
		s.fails("192.0.2.1", rcodeError(rcodeServFail))
		s.fails("192.0.2.2", errors.New("network is unreachable"))
		check(t, "all fail", outcome(f, q), "stale rcode=0 ttl=30")
		s.log()
		check(t, "again", outcome(f, q), "stale rcode=0 ttl=30")
		check(t, "asked", s.log(), "")
		time.Sleep(staleRecheck)

		// All silent: the client gets it before it gives up.
		s.set("192.0.2.1", nil)
		s.set("192.0.2.2", nil)
		began := time.Now()
		check(t, "silence", outcome(f, q), "stale rcode=0 ttl=30")
		if d := time.Since(began); d != staleWait {
			t.Errorf("answered after %s", d)
		}
		time.Sleep(staleRecheck + answerTime)

		// They are back.
		s.says("192.0.2.1", reply)
		s.says("192.0.2.2", reply)
		check(t, "back", outcome(f, q), "upstream rcode=0 ttl=60")
		// Nothing is kept for ever.
		time.Sleep(maxStale + 2*time.Minute)
		s.fails("192.0.2.1", rcodeError(rcodeServFail))
		s.fails("192.0.2.2", rcodeError(rcodeServFail))
		if got := outcome(f, q); !strings.HasPrefix(got, "error") {
			t.Errorf("after more than a day: %s", got)
		}
	})
}

func TestOneFlight(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, _ *[]netip.AddrPort) {
		s.set("192.0.2.1", func(context.Context) ([]byte, error) {
			time.Sleep(50 * time.Millisecond)
			return replyTo(t, "x.example.com", 0, rrA(60, 1)), nil
		})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				check(t, "answer", outcome(f, testQuery(t, "x.example.com", dnsmessage.TypeA)), "upstream rcode=0 ttl=60")
			})
		}
		wg.Wait()
		check(t, "asked", s.log(), "192.0.2.1@0s")
	})
}

// A VPN that comes up changes what names mean: nothing that was known before is
// used, not even what is under way.
func TestOtherUpstreams(t *testing.T) {
	inBubble(t, func(t *testing.T, f *forwarder, s *fakeServers, ups *[]netip.AddrPort) {
		q := testQuery(t, "x.example.com", dnsmessage.TypeA)
		s.set("192.0.2.1", func(context.Context) ([]byte, error) {
			time.Sleep(50 * time.Millisecond)
			return replyTo(t, "x.example.com", 0, rrA(60, 1)), nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { check(t, "old", outcome(f, q), "upstream rcode=0 ttl=60") })
		time.Sleep(10 * time.Millisecond)
		s.mu.Lock()
		*ups = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:53")}
		s.mu.Unlock()
		s.says("192.0.2.9", replyTo(t, "x.example.com", 0, rrA(5, 9)))
		check(t, "new", outcome(f, q), "upstream rcode=0 ttl=5")
		wg.Wait()
		check(t, "later", outcome(f, q), "cache rcode=0 ttl=5")
	})
}

func TestCacheBounds(t *testing.T) {
	now := time.Now()
	put := func(c *cache, i int) {
		name := fmt.Sprintf("n%d.example.com", i)
		msg := replyTo(t, name, 0, rrA(60, 1))
		l, err := scan(msg, dnsmessage.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		c.put(cacheKey{name: name}, &entry{msg: msg, layout: l}, now)
	}
	for name, c := range map[string]*cache{"entries": newCache(10, 1<<20), "bytes": newCache(1<<20, 4000)} {
		for i := range 1000 {
			put(c, i)
			c.get(cacheKey{name: "n0.example.com"}, now) // in use, so it stays
		}
		n, size := c.size()
		if n > c.maxEntries || size > c.maxBytes || n < 5 || n != c.order.Len() {
			t.Errorf("%s: %d entries, %d bytes", name, n, size)
		}
		if c.get(cacheKey{name: "n0.example.com"}, now) == nil {
			t.Errorf("%s: the entry in use is gone", name)
		}
		if c.get(cacheKey{name: "n1.example.com"}, now) != nil {
			t.Errorf("%s: the oldest entry is still there", name)
		}
		c.clear()
		if n, size := c.size(); n+size != 0 {
			t.Errorf("%s: %d entries, %d bytes after clear", name, n, size)
		}
	}
}
