package overlay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// testMembership is a host with a Cluster of its own directories; its address is one of many on loopback.
type testMembership struct {
	*Cluster
	t    *testing.T
	opt  Options
	addr netip.Addr
	name string
	stop func()
}

func newMembership(t *testing.T, n int) *testMembership {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root, for a network of its own")
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("etcd is not installed: make deps")
		}
		t.Skip("etcd is not installed: make deps")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	name := "h" + strconv.Itoa(n)
	m := &testMembership{
		t: t, name: name, addr: netip.AddrFrom4([4]byte{192, 0, 2, 100 + byte(n)}),
		opt: Options{Dir: filepath.Join(dir, "cluster"), RunDir: filepath.Join(dir, "run"), Version: "test", Boot: "boot", TTL: testTTL, Log: testLog(t, name)},
	}
	m.open()
	t.Cleanup(func() { m.stop(); EndMember(m.opt.Dir, m.opt.RunDir) })
	return m
}

func (m *testMembership) open() {
	m.t.Helper()
	c, err := Open(m.opt)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Cluster = c
	ctx, cancel := context.WithCancel(context.Background()) // it outlives the test's context, for the cleanup
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	m.stop = func() { cancel(); <-done }
	testhost.Eventually(m.t, 10*time.Second, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.base == nil {
			return fmt.Errorf("it does not run")
		}
		return nil
	})
}

func (m *testMembership) request() Request {
	return Request{Name: m.name, Addrs: []netip.Addr{m.addr}, Port: testPort(m.t)}
}

// testPort finds three ports in a row.
func testPort(t *testing.T) uint16 {
	t.Helper()
	for range 50 {
		first := netip.MustParseAddrPort(freePort(t)).Port()
		free := true
		for i := range uint16(3) {
			ln, err := net.Listen("tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), first+i).String()) //nolint:noctx,gosec // it does not block
			if err != nil {
				free = false
				break
			}
			ln.Close()
		}
		if free {
			return first
		}
	}
	t.Fatal("no three ports in a row")
	return 0
}

func (m *testMembership) connected() {
	m.t.Helper()
	testhost.Eventually(m.t, 40*time.Second, func() error {
		if s := m.Status(m.t.Context()); !s.Status.Connected {
			return fmt.Errorf("%s is not connected: %s", m.name, s.Status.Problem)
		}
		return nil
	})
}

// age gives the host a certificate that was signed long ago, by the CA that another one has.
func (m *testMembership) age(ca *testMembership, at time.Time) {
	m.t.Helper()
	authority, _, err := ca.authority()
	if err != nil {
		m.t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(m.file(fileCert), m.file(fileKey))
	if err != nil {
		m.t.Fatal(err)
	}
	var addrs []netip.Addr
	if ca == m {
		addrs = []netip.Addr{m.addr}
	}
	cert, err := authority.issue(pair.Leaf.PublicKey, pair.Leaf.Subject.CommonName, addrs, at)
	if err != nil {
		m.t.Fatal(err)
	}
	write(m.t, m.file(fileCert), cert)
}

// nothingLeft: a host in no cluster has no file of one, and no process.
func (m *testMembership) nothingLeft() {
	m.t.Helper()
	if m.Joined() {
		m.t.Errorf("%s is in a cluster", m.name)
	}
	if _, err := os.Stat(m.opt.Dir); !os.IsNotExist(err) {
		m.t.Errorf("%s: %s is left (%v)", m.name, m.opt.Dir, err)
	}
	if p := readPid(filepath.Join(m.opt.RunDir, "etcd.pid")); p != nil {
		m.t.Errorf("%s: etcd is left: %v", m.name, p)
	}
}

// TestMembership: init, joins with and without a member of etcd, restarts in any order, leaving, and what is refused.
func TestMembership(t *testing.T) {
	a, b, c, d := newMembership(t, 1), newMembership(t, 2), newMembership(t, 3), newMembership(t, 4)
	res, err := a.Init(t.Context(), a.request(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Init(t.Context(), a.request(), ""); err == nil || !strings.Contains(err.Error(), "is in cluster "+string(res.Cluster)+" already") {
		t.Errorf("twice: %v", err)
	}
	if _, err := b.Join(t.Context(), b.request(), res.Token, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), c.request(), res.Token, true); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Join(t.Context(), d.request(), res.Token, false); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*testMembership{a, b, c, d} {
		m.connected()
		testhost.Eventually(t, 10*time.Second, func() error {
			if s := m.Status(t.Context()); len(s.Status.Hosts) != 4 || len(s.Members) != 3 || s.Cluster != res.Cluster || s.Status.Cluster != res.Cluster {
				return fmt.Errorf("%s sees %d hosts, %d members, %s", m.name, len(s.Status.Hosts), len(s.Members), s.MemberErr)
			}
			return nil
		})
	}

	// The daemon is restarted, its etcd goes on.
	before := readPid(filepath.Join(a.opt.RunDir, "etcd.pid"))
	a.stop()
	if before == nil || !before.lives() {
		t.Fatal("etcd ended with the daemon")
	}
	a.open()
	a.connected()
	if after := readPid(filepath.Join(a.opt.RunDir, "etcd.pid")); *after != *before {
		t.Errorf("etcd was started again: %v, before %v", after, before)
	}
	// Everything ends, as by a power cut, and comes back in another order.
	for _, m := range []*testMembership{a, b, c, d} {
		m.stop()
	}
	for _, m := range []*testMembership{a, b, c} {
		readPid(filepath.Join(m.opt.RunDir, "etcd.pid")).end()
	}
	// Meanwhile certificates came near their end. Who is back renews his own, by himself or by one that has a member.
	near := time.Now().Add(-certValidity + 24*time.Hour)
	a.age(a, near)
	d.age(a, near)
	for _, m := range []*testMembership{d, c, a, b} {
		m.open()
	}
	for _, m := range []*testMembership{a, b, c, d} {
		m.connected()
	}
	for _, m := range []*testMembership{a, d} {
		testhost.Eventually(t, 20*time.Second, func() error {
			if s := m.Status(t.Context()); time.Until(s.Expires) < certValidity/2 {
				return fmt.Errorf("the certificate of %s lasts until %s", m.name, s.Expires)
			}
			return nil
		})
	}

	// Any member lets hosts join, and any host makes tokens.
	token, err := d.Token(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if tok, err := ParseToken(token); err != nil || len(tok.Addrs) != 3 {
		t.Errorf("token %+v, %v", tok, err)
	}
	if err := a.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	a.nothingLeft()
	e := newMembership(t, 5)
	if _, err := e.Join(t.Context(), e.request(), token, false); err != nil {
		t.Fatal(err)
	}
	e.connected()
	testhost.Eventually(t, 10*time.Second, func() error {
		if s := e.Status(t.Context()); len(s.Status.Hosts) != 4 || len(s.Members) != 2 {
			return fmt.Errorf("%d hosts, %d members", len(s.Status.Hosts), len(s.Members))
		}
		return nil
	})
	pair, err := tls.LoadX509KeyPair(e.file(fileCert), e.file(fileKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Leave(t.Context(), false); err != nil {
		t.Error(err)
	}
	e.nothingLeft()
	pool, err := readCAs(b.file(fileCA), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// A copy of what it had is good until its time is over, and not renewed.
	door := netip.AddrPortFrom(b.addr, b.run.agent.Self().Join)
	if _, err := askDoor(t.Context(), door, "renew", renewal{}, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}}); err == nil || !strings.Contains(err.Error(), "is not in the cluster now") {
		t.Errorf("a host that has left asks for a certificate: %v", err)
	}
	if err := e.Leave(t.Context(), false); err == nil || !strings.Contains(err.Error(), "in no cluster") {
		t.Errorf("left twice: %v", err)
	}
}

// TestRefused: whatever is wrong with an attempt, nothing of it is left, here and there.
func TestRefused(t *testing.T) {
	a, b, o := newMembership(t, 1), newMembership(t, 2), newMembership(t, 3)
	res, err := a.Init(t.Context(), a.request(), "")
	if err != nil {
		t.Fatal(err)
	}
	other, err := o.Init(t.Context(), o.request(), "")
	if err != nil {
		t.Fatal(err)
	}
	good, err := ParseToken(res.Token)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ParseToken(other.Token)
	if err != nil {
		t.Fatal(err)
	}
	change := func(fn func(*Token)) string {
		tok := good
		fn(&tok)
		return tok.String()
	}
	for _, tc := range []struct{ name, token, want string }{
		{"no token", "hello", `this is no token`},
		{"cut off", res.Token[:len(res.Token)-9], "the token is damaged"},
		{"wrong secret", change(func(t *Token) { t.Secret = randomHex(16) }), "the token is unknown, or its time is over"},
		{"unknown", change(func(t *Token) { t.ID = randomHex(8) }), "the token is unknown, or its time is over"},
		{"another cluster's address", change(func(t *Token) { t.Addrs = foreign.Addrs }), "its CA has another fingerprint"},
		{"another cluster's secret", change(func(t *Token) { t.ID, t.Secret = foreign.ID, foreign.Secret }), "the token is unknown"},
		{"nobody there", change(func(t *Token) { t.Addrs = []netip.AddrPort{netip.MustParseAddrPort(freePort(b.t))} }), "nothing listens there"},
	} {
		for _, member := range []bool{false, true} {
			if _, err := b.Join(t.Context(), b.request(), tc.token, member); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
			}
			b.nothingLeft()
		}
	}
	// A member that cannot start, because somebody has its port; and one that has its vote already when that turns out.
	req := b.request()
	for _, offset := range []uint16{1, 2} {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(b.addr, req.Port+offset).String()) //nolint:noctx // it does not block
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Join(t.Context(), req, res.Token, true)
		ln.Close()
		if err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("port %d is taken: %v", offset, err)
		}
		b.nothingLeft()
		if s := a.Status(t.Context()); len(s.Members) != 1 || len(s.Status.Hosts) != 1 {
			t.Errorf("port %d is taken, left at the others: %+v", offset, s)
		}
		a.connected()
		if _, err := a.Token(t.Context(), 0); err != nil { // etcd writes
			t.Error(err)
		}
	}
	if _, err := b.Join(t.Context(), req, res.Token, true); err != nil {
		t.Fatal(err)
	}
	b.connected()
	if err := b.Leave(t.Context(), false); err != nil {
		t.Error(err)
	}
	b.nothingLeft()
	if _, err := b.Join(t.Context(), b.request(), res.Token, false); err != nil {
		t.Fatal(err)
	}
	if err := a.Leave(t.Context(), false); err == nil || !strings.Contains(err.Error(), "the only member of etcd runs here, and 1 other hosts need it") {
		t.Errorf("the last member left: %v", err)
	}
	a.connected()
	if err := a.Leave(t.Context(), true); err != nil {
		t.Error(err)
	}
	a.nothingLeft()
	testhost.Eventually(t, 30*time.Second, func() error {
		if s := b.Status(t.Context()); s.Status.Connected || !strings.Contains(s.Status.Problem, "nothing listens there") {
			return fmt.Errorf("%+v", s.Status.Problem)
		}
		return nil
	})
	if err := b.Leave(t.Context(), false); err == nil || !strings.Contains(err.Error(), "the cluster cannot be told") {
		t.Errorf("left without etcd: %v", err)
	}
	if err := b.Leave(t.Context(), true); err != nil {
		t.Error(err)
	}
	b.nothingLeft()
}

// TestAddedAgain: a member whose first attempt ended the moment it began is added again.
func TestAddedAgain(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	d := &door{cli: s.dial(), adding: make(chan struct{}, 1), log: testLog(t, "door")}
	req := &joinRequest{Host: guid(0xa, 2), Peer: "https://192.0.2.9:2390"}
	for range 3 {
		var ans joinAnswer
		if err := d.addMember(t.Context(), req, &ans); err != nil {
			t.Fatal(err)
		}
		if err := removeMember(t.Context(), d.cli, ans.Member); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOwnEtcd: a cluster in the user's own etcd, with a prefix; and what is refused.
func TestOwnEtcd(t *testing.T) {
	s := startEtcd(t, 1)
	a, b := newMembership(t, 1), newMembership(t, 2)
	e := s.cfg
	e.Prefix = "/ops/bulkhead/"
	res, err := a.JoinEtcd(t.Context(), a.request(), e)
	if err != nil || !res.Founded {
		t.Fatalf("%+v, %v", res, err)
	}
	res2, err := b.JoinEtcd(t.Context(), b.request(), e)
	if err != nil || res2.Founded || res2.Cluster != res.Cluster {
		t.Fatalf("%+v, %v", res2, err)
	}
	b.connected()
	if _, err := a.Token(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "knows no tokens") {
		t.Errorf("token: %v", err)
	}
	b.stop()
	b.open()
	b.connected()
	if err := b.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft()
	for _, tc := range []struct {
		name, want string
		change     func(*Etcd)
	}{
		{"no file", "read the CA certificate", func(e *Etcd) { e.CACert += "x" }},
		{"http", "only used by https", func(e *Etcd) { e.Endpoints = []string{"http://127.0.0.1:1"} }},
		{"prefix", "must begin with a slash", func(e *Etcd) { e.Prefix = "x" }},
		{"nobody", "nothing listens there", func(e *Etcd) { e.Endpoints = []string{"https://" + freePort(t)} }},
		{"expired", "expired at", func(e *Etcd) {
			*e = s.client("old", time.Now().Add(-certValidity-time.Hour*24))
			e.Endpoints = s.cfg.Endpoints
		}},
	} {
		bad := s.cfg
		tc.change(&bad)
		if _, err := b.JoinEtcd(t.Context(), b.request(), bad); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		b.nothingLeft()
	}
}

// TestForgetMember: a host that is forgotten takes no part in etcd either, and one that never came is in nobody's way.
func TestForgetMember(t *testing.T) {
	a, b, c := newMembership(t, 1), newMembership(t, 2), newMembership(t, 3)
	res, err := a.Init(t.Context(), a.request(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*testMembership{b, c} {
		if _, err := m.Join(t.Context(), m.request(), res.Token, true); err != nil {
			t.Fatal(err)
		}
		m.connected()
	}
	gone := c.Status(t.Context()).Host
	if err := a.Forget(t.Context(), gone, false); !errors.Is(err, ErrInUse) {
		t.Errorf("forget a host that is alive: %v", err)
	}
	c.stop()
	readPid(filepath.Join(c.opt.RunDir, "etcd.pid")).end()
	testhost.Eventually(t, 30*time.Second, func() error {
		if n := len(a.Status(t.Context()).Status.Hosts); n != 2 {
			return fmt.Errorf("%d hosts", n)
		}
		return nil
	})
	if err := a.Forget(t.Context(), gone, false); err != nil { // it has no blocks: its member alone tells of it
		t.Fatal(err)
	}
	if s := a.Status(t.Context()); len(s.Members) != 2 {
		t.Errorf("members: %+v", s.Members)
	}
	if err := a.Forget(t.Context(), gone, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("forgotten twice: %v", err)
	}
	a.mu.Lock()
	cli := a.run.cli
	a.mu.Unlock()
	if err := patiently(t.Context(), func() error {
		_, err := cli.MemberAddAsLearner(t.Context(), []string{"https://192.0.2.250:9"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	d := newMembership(t, 4)
	if _, err := d.Join(t.Context(), d.request(), res.Token, true); err != nil {
		t.Fatal(err)
	}
	d.connected()
	if s := d.Status(t.Context()); len(s.Members) != 3 {
		t.Errorf("members: %+v", s.Members)
	}
}

// TestCut: an attempt that a crash cut leaves nothing at the next start.
func TestCut(t *testing.T) {
	a := newMembership(t, 1)
	a.stop()
	if err := os.MkdirAll(filepath.Join(a.opt.Dir, "etcd"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(a.opt.Dir, fileCert), []byte("x"))
	a.open()
	a.nothingLeft()
	if _, err := a.Init(t.Context(), a.request(), ""); err != nil {
		t.Fatal(err)
	}
	// The same with its etcd running: the crash came before the last file.
	a.stop()
	p := readPid(filepath.Join(a.opt.RunDir, "etcd.pid"))
	if err := os.Remove(filepath.Join(a.opt.Dir, fileConfig)); err != nil {
		t.Fatal(err)
	}
	a.open()
	a.nothingLeft()
	if p.lives() {
		t.Error("etcd is left")
	}
}
