package dns

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// fuzzServer serves one network without sockets; its upstream says what the
// test wants.
func fuzzServer(tb testing.TB, limits Limits) (*Resolver, *server) {
	tb.Helper()
	r := New(Config{Limits: limits})
	sw := &plan.Switch{
		Number: 1, Network: "blue", Mode: plan.ModeNAT,
		Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")}},
		DNS:     plan.DNS{Domain: "blue.internal", Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}},
	}
	port := testPort(parseArgs([]string{"id=p1", "net=blue", "addr=10.1.0.5", "addr=fd00::5", "name=web", "name=*.app"}))
	p := &plan.Plan{
		Switches: map[hcn.GUID]*plan.Switch{"blue": sw},
		Ports:    map[plan.PortID]*plan.Port{"p1": port},
	}
	if _, err := r.Sync(context.Background(), p); err != nil {
		tb.Fatal(err)
	}
	s := r.newServer("blue")
	r.setServer("blue", s)
	tb.Cleanup(r.Close)
	return r, s
}

// FuzzServe sends any bytes as a request. Whatever comes back has to be a
// response, within the client's limit, that a client can read.
func FuzzServe(f *testing.F) {
	for _, q := range []clientQuery{
		{name: "web", typ: dnsmessage.TypeA},
		{name: "x.app", typ: dnsmessage.TypeAAAA, edns: 4096, do: true},
		{name: "5.0.1.10.in-addr.arpa", typ: dnsmessage.TypePTR},
		{name: "nobody", typ: dnsmessage.TypeALL, edns: 512},
		{name: "www.example.com", typ: dnsmessage.TypeMX},
		{name: ".", typ: dnsmessage.TypeNS, class: 3},
	} {
		f.Add(q.pack(f), true)
		f.Add(q.pack(f), false)
	}
	_, s := fuzzServer(f, Limits{ClientRate: 1 << 30})
	f.Fuzz(func(t *testing.T, msg []byte, tcp bool) {
		reply, task := s.quick(nil, msg, netip.MustParseAddr("10.1.0.5"), tcp)
		if task != nil {
			reply = s.fail(nil, task, errNoUpstream)
		}
		if reply == nil {
			return
		}
		limit := maxUDP
		if tcp {
			limit = maxTCP
		}
		checkReply(t, msg, reply, limit)
	})
}

// FuzzUpstreamReply takes any bytes as what an upstream says to our question.
func FuzzUpstreamReply(f *testing.F) {
	f.Add(replyTo(f, "www.example.com", 0, rrA(60, 1), rrA(30, 2)), 512)
	f.Add(replyTo(f, "www.example.com", 3, rrSOA(60, 1)), 1232)
	f.Add(respond(dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("www.example.com."), Type: 1, Class: 1}}}, 0, 100), 65535)
	for _, seed := range hostileReplies() {
		f.Add(seed, 1232)
	}
	f.Fuzz(func(t *testing.T, msg []byte, limit int) {
		request := clientQuery{name: "www.EXAMPLE.com", typ: dnsmessage.TypeA, edns: 1232}.pack(t)
		q, _, _ := parseQuery(request)
		question := appendQuestion(nil, &q)
		sent := buildQuery(&q, question, true)
		if len(msg) >= 2 {
			copy(sent, msg[:2]) // the ID is guessed right
		}
		if !isReply(msg, sent, question) {
			return
		}
		e, err := readReply(msg, &q)
		if err != nil {
			return
		}
		limit = min(max(limit, minUDP), maxTCP)
		c := newCache(10, 1<<20)
		now := time.Now()
		c.put(q.key(), e, now)
		for _, stale := range []bool{false, true} {
			reply := relay(nil, &q, e.msg, &e.layout, limit, edeNone, e.ttlAt(now.Add(7*time.Second), stale))
			checkReply(t, request, reply, limit)
		}
	})
}

// checkReply reads a reply the way a client does.
func checkReply(t *testing.T, request, reply []byte, limit int) {
	t.Helper()
	if len(reply) > limit {
		t.Fatalf("%d bytes, limit %d", len(reply), limit)
	}
	if reply[0] != request[0] || reply[1] != request[1] {
		t.Fatalf("ID %x for %x", reply[:2], request[:2])
	}
	var p dnsmessage.Parser
	h, err := p.Start(reply)
	if err != nil || !h.Response {
		t.Fatalf("reply %x: %v", reply, err)
	}
	if err := p.SkipAllQuestions(); err != nil {
		t.Fatalf("reply %x: %v", reply, err)
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil || p.SkipAllAdditionals() != nil {
		t.Fatalf("reply %x cannot be read", reply)
	}
	// Our own walker, stricter than a codec, agrees.
	q, _, _ := parseQuery(request)
	if q.asked {
		if _, err := scan(reply, q.typ); err != nil {
			t.Fatalf("reply %x: %v", reply, err)
		}
	}
}

// hostileReplies have the right question and something wrong behind it.
func hostileReplies() map[string][]byte {
	head := func(an, ns, ar byte, body ...byte) []byte {
		b := []byte{0, 0, 0x81, 0x80, 0, 1, 0, an, 0, ns, 0, ar}
		b = appendName(b, "www.example.com")
		return append(append(b, 0, 1, 0, 1), body...)
	}
	return map[string][]byte{
		"pointer to itself":      head(1, 0, 0, 0xc0, 33, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4),
		"pointer forward":        head(1, 0, 0, 0xc0, 40, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4),
		"pointer into header":    head(1, 0, 0, 0xc0, 4, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4),
		"pointer cut off":        head(1, 0, 0, 0xc0),
		"reserved label type":    head(1, 0, 0, 0x80, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4),
		"data cut off":           head(1, 0, 0, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 200, 1, 2, 3, 4),
		"record cut off":         head(1, 0, 0, 0xc0, 12, 0, 1, 0, 1),
		"missing records":        head(9, 0, 0),
		"short address":          head(1, 0, 0, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 3, 1, 2, 3),
		"CNAME into itself":      head(1, 0, 0, 0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 45),
		"CNAME longer than data": head(1, 0, 0, 0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 3, 'w'),
		"short SOA":              head(0, 1, 0, 0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 9, 0, 2, 0, 0),
		"OPT among answers":      head(1, 0, 0, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0),
	}
}

func TestHostileReplies(t *testing.T) {
	for name, msg := range hostileReplies() {
		if l, err := scan(msg, dnsmessage.TypeA); err == nil {
			t.Errorf("%s: taken as %+v", name, l)
		}
	}
}

// BenchmarkLocal answers one name of a network of a thousand endpoints, from
// bytes to bytes.
func BenchmarkLocal(b *testing.B) {
	_, s := fuzzServer(b, Limits{ClientRate: 1 << 30})
	for i := range 1000 {
		p := testPort(parseArgs([]string{"net=blue", "addr=10.1.0.9"}))
		p.ID = plan.PortID(string(rune('A'+i%26)) + string(rune('0'+i/26)))
		p.Names, p.VNIC.Namespace = []string{"name-" + string(p.ID)}, string(p.ID)
		if err := s.r.index.setPort(nil, p); err != nil {
			b.Fatal(err)
		}
	}
	for name, q := range map[string]clientQuery{
		"A": {name: "web.blue.internal", typ: dnsmessage.TypeA, edns: 1232}, "NXDOMAIN": {name: "nobody", typ: dnsmessage.TypeA},
		"wildcard": {name: "x.app", typ: dnsmessage.TypeAAAA},
	} {
		b.Run(name, func(b *testing.B) {
			msg, client := q.pack(b), netip.MustParseAddr("10.1.0.5")
			buf := make([]byte, 0, maxUDP)
			b.ReportAllocs()
			for b.Loop() {
				if reply, _ := s.quick(buf, msg, client, false); reply == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkUpdate changes one port on a network with a thousand others that
// share a name with it.
func BenchmarkUpdate(b *testing.B) {
	r, _ := fuzzServer(b, Limits{})
	var last *plan.Port
	for i := range 1000 {
		last = testPort(parseArgs([]string{"net=blue", "addr=10.1.0.9", "name=pool"}))
		last.ID = plan.PortID(string(rune('A'+i%26)) + string(rune('0'+i/26)))
		last.VNIC.Namespace = string(last.ID)
		if err := r.index.setPort(nil, last); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		d := &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{last.ID: {Old: last, New: last}}}
		if err := r.Update(b.Context(), nil, d); err != nil {
			b.Fatal(err)
		}
	}
}
