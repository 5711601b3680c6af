package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func TestServeLocal(t *testing.T) {
	s := newStage(t, Config{})
	s.net()
	s.port("id=p1", "addr=127.0.0.5", "name=web")
	want := "  Success qr aa rd ra\n  ;Web. A\n  Web. 5 A 127.0.0.5\n"
	check(t, "udp", dig(t, s.ask(clientQuery{name: "Web", typ: 1})), want)
	check(t, "tcp", dig(t, s.askTCP(clientQuery{name: "Web", typ: 1})), want)

	// Several questions on one connection.
	c := s.dialTCP("127.0.0.2")
	for range 3 {
		if err := writeTCP(c, clientQuery{name: "Web", typ: 1}.pack(t)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		b, err := readTCP(c, maxTCP)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "pipelined", dig(t, b), want)
	}

	// What does not fit says so, and fits over TCP.
	for i := range 200 {
		s.port(fmt.Sprintf("id=q%03d", i), fmt.Sprintf("addr=127.1.0.%d", i+1), "name=many")
	}
	for _, edns := range []int{0, 1232, 4096} {
		b := s.ask(clientQuery{name: "many", typ: 1, edns: edns})
		if limit := min(max(edns, minUDP), maxUDP); len(b) > limit || len(b) < limit-40 || !strings.Contains(dig(t, b), " tc") {
			t.Errorf("edns %d: %d bytes\n%s", edns, len(b), dig(t, b))
		}
	}
	if n := strings.Count(dig(t, s.askTCP(clientQuery{name: "many", typ: 1})), "many. 5 A"); n != 200 {
		t.Errorf("%d addresses over TCP", n)
	}
	if st := s.stats(); st.Local != st.Queries || st.Local != 9 || len(st.Broken) != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestForward(t *testing.T) {
	u := newUpstream(t, func(m dnsmessage.Message, _ bool) [][]byte {
		if m.Response || !m.RecursionDesired || len(m.Additionals) != 1 || m.ID == 0x1234 {
			t.Errorf("upstream got %+v", m)
		}
		return [][]byte{respond(m, 0, 2)}
	})
	s := newStage(t, Config{HostResolvers: func() []netip.AddrPort { return []netip.AddrPort{u.addr} }})
	s.net()
	want := "  Success qr rd ra\n  ;Www.Example.COM. A\n  Www.Example.COM. 60 A 198.51.100.1\n  Www.Example.COM. 60 A 198.51.100.2\n"
	check(t, "forwarded", dig(t, s.ask(clientQuery{name: "Www.Example.COM", typ: 1})), want)
	check(t, "cached, another spelling", strings.ToLower(dig(t, s.ask(clientQuery{name: "wWW.example.com", typ: 1}))), strings.ToLower(want))
	check(t, "cached, with EDNS", dig(t, s.ask(clientQuery{name: "Www.Example.COM", typ: 1, edns: 4096})), want+"  additional OPT size 1232\n")
	check(t, "over TCP", dig(t, s.askTCP(clientQuery{name: "Www.Example.COM", typ: 1})), want)
	check(t, "no recursion, known", dig(t, s.ask(clientQuery{name: "Www.Example.COM", typ: 1, noRec: true})), strings.Replace(want, " rd", "", 1))
	check(t, "no recursion, unknown", dig(t, s.ask(clientQuery{name: "other.example.com", typ: 1, noRec: true})), "  Refused qr ra\n  ;other.example.com. A\n")
	st := s.stats()
	if u.udp.Load() != 1 || st.Forwarded != 1 || st.Cached != 4 || st.Refused != 1 || st.CacheEntries != 1 || st.Upstreams[0].Asked != 1 {
		t.Errorf("upstream asked %d times, stats %+v", u.udp.Load(), st)
	}
}

func TestForwardLarge(t *testing.T) {
	// Over UDP the upstream cuts its reply off; we ask again over TCP, and the
	// client in turn has to.
	u := newUpstream(t, func(m dnsmessage.Message, tcp bool) [][]byte {
		b := respond(m, 0, 100)
		if !tcp {
			b = respond(m, 0, 1)
			b[2] |= byte(flagTC >> 8)
		}
		return [][]byte{b}
	})
	s := newStage(t, Config{})
	s.net(u.word())
	for _, edns := range []int{0, 4096} {
		if b := s.ask(clientQuery{name: "big.example.com", typ: 1, edns: edns}); len(b) > 80 || !strings.Contains(dig(t, b), " tc") {
			t.Errorf("%d bytes\n%s", len(b), dig(t, b))
		}
	}
	if n := strings.Count(dig(t, s.askTCP(clientQuery{name: "big.example.com", typ: 1})), "198.51.100."); n != 100 {
		t.Errorf("%d addresses over TCP", n)
	}
	if u.udp.Load() != 1 || u.tcp.Load() != 1 {
		t.Errorf("asked %d times over UDP, %d over TCP", u.udp.Load(), u.tcp.Load())
	}
}

func TestForwardPastBadServers(t *testing.T) {
	dead := netip.MustParseAddrPort("127.0.0.1:1") // refused at once
	for _, tc := range []struct {
		name string
		bad  func(m dnsmessage.Message, tcp bool) [][]byte
		tcp  bool // the answer comes over TCP from the same server
	}{
		{name: "silent", bad: silent},
		{name: "SERVFAIL", bad: func(m dnsmessage.Message, _ bool) [][]byte { return [][]byte{respond(m, 2, 0)} }},
		{name: "REFUSED without question", bad: func(m dnsmessage.Message, _ bool) [][]byte {
			return [][]byte{{byte(m.ID >> 8), byte(m.ID), 0x80, 5, 11: 0}}
		}},
		{name: "malformed", bad: func(m dnsmessage.Message, _ bool) [][]byte {
			b := respond(m, 0, 1)
			return [][]byte{b[:len(b)-20]}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad, good := newUpstream(t, tc.bad), newUpstream(t, answering(1))
			s := newStage(t, Config{})
			s.net("upstream="+dead.String(), bad.word(), good.word())
			began := time.Now()
			got := dig(t, s.ask(clientQuery{name: "www.example.com", typ: 1}))
			check(t, "answer", got, "  Success qr rd ra\n  ;www.example.com. A\n  www.example.com. 60 A 198.51.100.1\n")
			if d := time.Since(began); d > time.Second {
				t.Errorf("took %s", d)
			}
			if bad.udp.Load() == 0 {
				t.Error("the bad server was not asked")
			}
			if st := s.stats(); st.Upstreams[0].Failed != 1 || st.Upstreams[2].Failed != 0 {
				t.Errorf("upstreams %+v", st.Upstreams)
			}
		})
	}
}

// What the servers of one endpoint say is nobody else's answer.
func TestServersOfAnEndpoint(t *testing.T) {
	network, own := newUpstream(t, answering(1)), newUpstream(t, answering(2))
	s := newStage(t, Config{})
	s.net(network.word())
	s.port("id=p1", "addr=127.0.0.3", "name=special", own.word())
	q := clientQuery{name: "www.example.com", typ: 1}
	head := "  Success qr rd ra\n  ;www.example.com. A\n"
	for range 2 { // the second time from the cache
		check(t, "plain", dig(t, s.ask(q)), head+"  www.example.com. 60 A 198.51.100.1\n")
		special := head + "  www.example.com. 60 A 198.51.100.1\n  www.example.com. 60 A 198.51.100.2\n"
		check(t, "special", dig(t, s.send("127.0.0.3", q.pack(t), 6*time.Second)), special)
	}
	if network.udp.Load() != 1 || own.udp.Load() != 1 {
		t.Errorf("the network's was asked %d times, the endpoint's %d times", network.udp.Load(), own.udp.Load())
	}
	// Servers that are changed are asked anew.
	s.port("id=p1", "addr=127.0.0.3", "name=special")
	check(t, "plain again", dig(t, s.send("127.0.0.3", q.pack(t), 6*time.Second)), head+"  www.example.com. 60 A 198.51.100.1\n")
}

// Replies that a stranger could have sent are not taken.
func TestSpoofedReplies(t *testing.T) {
	lies := func(m dnsmessage.Message) [][]byte {
		truth := respond(m, 0, 1)
		wrongID := append([]byte(nil), truth...)
		wrongID[0] ^= 1
		other := m
		other.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("bank.example.com."), Type: 1, Class: 1}}
		isQuery := append([]byte(nil), truth...)
		isQuery[2] &^= 0x80
		otherType := m
		otherType.Questions = []dnsmessage.Question{{Name: m.Questions[0].Name, Type: 28, Class: 1}}
		noQuestion := append([]byte(nil), truth[:headerLen]...)
		for i := 4; i < headerLen; i++ {
			noQuestion[i] = 0
		}
		return [][]byte{wrongID, respond(other, 0, 9), isQuery, respond(otherType, 0, 9), noQuestion, {1}, {}}
	}
	want := "  Success qr rd ra\n  ;www.example.com. A\n  www.example.com. 60 A 198.51.100.1\n"
	t.Run("among them the true one", func(t *testing.T) {
		u := newUpstream(t, func(m dnsmessage.Message, _ bool) [][]byte { return append(lies(m), respond(m, 0, 1)) })
		s := newStage(t, Config{})
		s.net(u.word())
		check(t, "answer", dig(t, s.ask(clientQuery{name: "www.example.com", typ: 1})), want)
		if u.tcp.Load() != 0 {
			t.Error("asked over TCP")
		}
	})
	t.Run("a flood of them", func(t *testing.T) {
		u := newUpstream(t, func(m dnsmessage.Message, tcp bool) [][]byte {
			if tcp {
				return [][]byte{respond(m, 0, 1)}
			}
			return append(lies(m), lies(m)...)
		})
		s := newStage(t, Config{})
		s.net(u.word())
		check(t, "answer", dig(t, s.ask(clientQuery{name: "www.example.com", typ: 1})), want)
		if u.tcp.Load() != 1 {
			t.Errorf("asked %d times over TCP", u.tcp.Load())
		}
	})
}

func TestUpstreamWithoutEDNS(t *testing.T) {
	u := newUpstream(t, func(m dnsmessage.Message, _ bool) [][]byte {
		if len(m.Additionals) > 0 {
			return [][]byte{respond(m, dnsmessage.RCodeFormatError, 0)}
		}
		return [][]byte{respond(m, 0, 1)}
	})
	s := newStage(t, Config{})
	s.net(u.word())
	if got := dig(t, s.ask(clientQuery{name: "www.example.com", typ: 1, edns: 1232})); !strings.Contains(got, "198.51.100.1") {
		t.Error(got)
	}
}

// A network that is told to ask itself must not go in circles.
func TestNeverAsksItself(t *testing.T) {
	s := newStage(t, Config{HostResolvers: func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("[::ffff:127.0.0.1]:53")}
	}})
	s.net()
	check(t, "answer", dig(t, s.ask(clientQuery{name: "www.example.com", typ: 1, edns: 1232})),
		"  ServerFailure qr rd ra\n  ;www.example.com. A\n  additional OPT size 1232 option 15=0016\n")
	st := s.stats()
	if len(st.Upstreams) != 0 || len(st.Failures) != 1 || st.Failures[0].Reason != errNoUpstream.Error() || st.Failures[0].Name != "www.example.com" {
		t.Errorf("stats %+v", st)
	}
}

func TestBadRequests(t *testing.T) {
	s := newStage(t, Config{})
	s.net()
	s.port("id=p1", "addr=127.0.0.5", "name=web")
	good := clientQuery{name: "web", typ: 1, edns: 1232}.pack(t)
	edit := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	for _, tc := range []struct {
		name string
		msg  []byte
		want string // "" for no answer
	}{
		{"a response", edit(func(b []byte) []byte { b[2] |= 0x80; return b }), ""},
		{"a fragment", good[:11], ""},
		{"nothing", nil, ""},
		{"an update", edit(func(b []byte) []byte { b[2] |= 5 << 3; return b }), "NotImplemented"},
		{"two questions", edit(func(b []byte) []byte { b[5] = 2; return b }), "FormatError"},
		{"no question", edit(func(b []byte) []byte { b[5] = 0; return b }), "FormatError"},
		{"a cut off question", good[:15], "FormatError"},
		{"a pointer in circles", append(append([]byte(nil), good[:12]...), 0xc0, 12, 0, 1, 0, 1), "FormatError"},
		{"two OPTs", edit(func(b []byte) []byte { b[11] = 2; return append(b, b[len(b)-11:]...) }), "FormatError"},
		{"missing records", edit(func(b []byte) []byte { b[7] = 9; return b }), "FormatError"},
		{"an EDNS version to come", edit(func(b []byte) []byte { b[len(b)-5] = 1; return b }), "Success"},
		{"a good one", good, "Success"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wait := 3 * time.Second
			if tc.want == "" {
				wait = 100 * time.Millisecond
			}
			b := s.send("127.0.0.2", tc.msg, wait)
			if (b == nil) != (tc.want == "") {
				t.Fatalf("answer %x", b)
			}
			if b != nil && !strings.HasPrefix(dig(t, b), "  "+tc.want) {
				t.Errorf("got\n%s", dig(t, b))
			}
		})
	}
	// BADVERS is in the upper bits of the code, in the OPT.
	b := s.send("127.0.0.2", edit(func(b []byte) []byte { b[len(b)-5] = 1; return b }), time.Second)
	if len(b) < 11 || b[len(b)-6] != rcodeBadVers>>4 {
		t.Errorf("BADVERS: %x", b)
	}
}

// One client's questions wait for a silent server; it reaches its limit, and
// others do not notice.
func TestClientLimit(t *testing.T) {
	u := newUpstream(t, silent)
	s := newStage(t, Config{Limits: Limits{ClientQueries: 4, ClientConns: 2, ConnIdle: 300 * time.Millisecond}})
	s.net(u.word())
	s.port("id=p1", "addr=127.0.0.5", "name=web")
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 66)}, net.UDPAddrFromAddrPort(s.addrs["udp"]))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 20 {
		if _, err := c.Write(clientQuery{name: fmt.Sprintf("n%d.example.com", i), typ: 1}.pack(t)); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "questions over the limit", func() bool { return s.stats().Limited == 16 })
	if b := s.send("127.0.0.66", clientQuery{name: "web", typ: 1}.pack(t), time.Second); b == nil {
		t.Error("the client gets no local answers any more")
	}
	if n := u.udp.Load(); n > 4 {
		t.Errorf("the upstream was asked %d times", n)
	}
	// Another client is admitted: its question reaches the upstream.
	before := u.udp.Load()
	question := clientQuery{name: "other.example.com", typ: 1}.pack(t)
	go s.send("127.0.0.67", question, 100*time.Millisecond) //nolint:staticcheck // fails only where loopback itself does
	waitFor(t, "the other client's question", func() bool { return u.udp.Load() > before })

	// Connections: the third is closed at once, the others when they are idle.
	conns := []net.Conn{s.dialTCP("127.0.0.66"), s.dialTCP("127.0.0.66")}
	waitFor(t, "both connections", func() bool {
		s.r.servers["blue"].limiter.mu.Lock()
		defer s.r.servers["blue"].limiter.mu.Unlock()
		return s.r.servers["blue"].limiter.conns == 2
	})
	began := time.Now()
	if _, err := s.dialTCP("127.0.0.66").Read(make([]byte, 1)); err == nil || time.Since(began) > 250*time.Millisecond {
		t.Errorf("third connection: %v after %s", err, time.Since(began))
	}
	if b := s.askTCP(clientQuery{name: "web", typ: 1}); b == nil {
		t.Error("another client has no connection")
	}
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(began) > 2*time.Second {
			t.Errorf("idle connection: %v after %s", err, time.Since(began))
		}
	}
}

func TestClientRate(t *testing.T) {
	l := newLimiter(Limits{ClientRate: 100}.withDefaults())
	now := time.Now()
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	count := func(a netip.Addr, now time.Time) (n int) {
		for range 1000 {
			if l.allow(a, now) {
				n++
			}
		}
		return n
	}
	if n := count(a, now); n != 100 {
		t.Errorf("%d at once", n)
	}
	if n := count(b, now); n != 100 {
		t.Errorf("%d of another client", n)
	}
	if n := count(a, now.Add(100*time.Millisecond)); n != 10 {
		t.Errorf("%d a tenth of a second later", n)
	}
	// Addresses that nobody has do not fill the memory, nor lock others out.
	for i := range 3 * maxClients {
		l.allow(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), now.Add(time.Duration(i)*time.Millisecond))
	}
	if len(l.clients) > maxClients || !l.allow(b, now.Add(time.Hour)) {
		t.Errorf("%d clients", len(l.clients))
	}
}

func TestRepair(t *testing.T) {
	woken := make(chan struct{}, 8)
	var device atomic.Int32
	device.Store(7)
	s := newStage(t, Config{
		Wake:        func() { woken <- struct{}{} },
		DeviceIndex: func(context.Context, string, string) (int, error) { return int(device.Load()), nil },
	})
	s.net()
	s.port("id=p1", "addr=127.0.0.5", "name=web")
	sync := func(want ...string) {
		t.Helper()
		drift, err := s.r.Sync(t.Context(), s.p)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range drift {
			got = append(got, d.ID+" "+d.Object+" "+d.Found)
		}
		check(t, "drift", strings.Join(got, ", "), strings.Join(want, ", "))
		s.ask(clientQuery{name: "web", typ: 1})
		s.askTCP(clientQuery{name: "web", typ: 1})
		if st := s.stats(); len(st.Listening) != 2 || len(st.Broken) != 0 {
			t.Errorf("stats %+v", st)
		}
	}
	sync()
	if s.opens != 2 {
		t.Errorf("%d sockets opened, an unchanged plan opens none", s.opens)
	}
	// Sockets that break wake the engine, and Sync opens them again.
	for _, c := range s.conns {
		c.Close()
	}
	<-woken
	<-woken
	if st := s.stats(); len(st.Broken) != 2 {
		t.Errorf("stats %+v", st)
	}
	sync("blue resolver 127.0.0.1:53/udp closed", "blue resolver 127.0.0.1:53/tcp closed")
	// A device made anew leaves sockets that hear nothing.
	device.Store(8)
	sync("blue resolver 127.0.0.1:53/udp bound to a device that is gone", "blue resolver 127.0.0.1:53/tcp bound to a device that is gone")
	sync()

	// A socket that cannot be opened is the network's error, and tried again.
	s.setSwitch("blue", nil)
	s.fail = errors.New("no such device")
	sw := testSwitch(t, parseArgs([]string{"id=blue", "num=1", "mode=nat", "subnet=127.0.0.0/8,127.0.0.1"}))
	sw.DNS.Listen = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	s.p.Switches["blue"] = sw
	err := s.r.Update(t.Context(), s.p, &plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{"blue": {New: sw}}})
	var oe *plan.ObjectError
	if !errors.As(err, &oe) || oe.Kind != "network" || oe.ID != "blue" {
		t.Errorf("error %v", err)
	}
	s.fail = nil
	sync()

	// A network without resolver closes its sockets and keeps its names.
	off := *sw
	off.DNS.Listen = nil
	s.setSwitch("blue", &off)
	if _, ok := s.r.Stats("blue"); ok {
		t.Error("still serving")
	}
	s.setSwitch("blue", sw)
	sync()
}

func TestBadName(t *testing.T) {
	r := New(Config{})
	defer r.Close()
	newWorld(t, r)
	p := testPort(parseArgs([]string{"id=p1", "net=blue", "addr=10.0.0.5", "name=good", "name=" + strings.Repeat("x", 64), "name=a..b"}))
	err := r.Update(t.Context(), &plan.Plan{}, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"p1": {New: p}}})
	var oe *plan.ObjectError
	if !errors.As(err, &oe) || oe.Kind != "port" || oe.ID != "p1" || !errors.Is(err, errName) {
		t.Errorf("error %v", err)
	}
	if z := r.index.zones["blue"]; len(z.names) != 1 || len(z.names["good"]) != 1 {
		t.Errorf("names %v", z.names)
	}
}
