package overlay

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// loses takes the host's address away: nobody reaches anything there, and nothing can listen there. It gives another one.
func (m *testMembership) loses() netip.Addr {
	m.t.Helper()
	old := m.addr.String()
	if out, err := exec.CommandContext(m.t.Context(), "ip", "route", "add", "unreachable", old, "table", "local").CombinedOutput(); err != nil {
		m.t.Fatalf("take %s away: %v: %s", old, err, out)
	}
	m.t.Cleanup(func() { _ = exec.Command("ip", "route", "del", "unreachable", old, "table", "local").Run() }) //nolint:noctx,forbidigo // the test's context is over
	a := m.addr.As4()
	a[3] += 20
	m.addr = netip.AddrFrom4(a)
	return m.addr
}

// follows waits until a host knows all members where they are, and until they know each other there.
func (m *testMembership) follows(members ...*testMembership) {
	m.t.Helper()
	testhost.Eventually(m.t, 30*time.Second, func() error {
		var clients, peers []string
		for _, o := range members {
			o.mu.Lock()
			c := o.cfg.Member
			o.mu.Unlock()
			if c.Addrs[0] != o.addr {
				return fmt.Errorf("%s has its member at %s, and not at %s", o.name, c.Addrs[0], o.addr)
			}
			clients, peers = append(clients, c.client()), append(peers, c.peer())
		}
		slices.Sort(clients)
		slices.Sort(peers)
		m.mu.Lock()
		r, kept := m.run, slices.Sorted(slices.Values(m.cfg.Etcd.Endpoints))
		m.mu.Unlock()
		if r == nil {
			return fmt.Errorf("%s has not started", m.name)
		}
		if asks := slices.Sorted(slices.Values(r.cli.Endpoints())); !slices.Equal(asks, clients) || !slices.Equal(kept, clients) {
			return fmt.Errorf("%s asks %v and keeps %v, want %v", m.name, asks, kept, clients)
		}
		ctx, cancel := context.WithTimeout(m.t.Context(), opTimeout)
		defer cancel()
		res, err := r.cli.MemberList(ctx)
		if err != nil {
			return fmt.Errorf("%s lists the members: %w", m.name, err)
		}
		var at []string
		for _, o := range res.Members {
			at = append(at, o.PeerURLs...)
		}
		if slices.Sort(at); !slices.Equal(at, peers) {
			return fmt.Errorf("the members know each other at %v, want %v", at, peers)
		}
		return nil
	})
	testhost.Eventually(m.t, 30*time.Second, func() error { // and they can be reached there
		s := m.Status(m.t.Context())
		for _, o := range s.Members {
			if o.Problem != "" {
				return fmt.Errorf("%s sees of %s: %s", m.name, o.Name, o.Problem)
			}
		}
		if !s.Status.Connected || s.Untold != "" || len(s.Members) != len(members) {
			return fmt.Errorf("%s: connected %v, %d members, %q, %q", m.name, s.Status.Connected, len(s.Members), s.Status.Problem, s.Untold)
		}
		return nil
	})
}

// TestMemberMoves: a member of etcd moves with its host, the only one and one of two, also when that was cut; the hosts find it, and others
// join by it.
func TestMemberMoves(t *testing.T) {
	a, b, c := newMembership(t, 1), newMembership(t, 2), newMembership(t, 3)
	if _, err := a.Init(t.Context(), a.request(), ""); err != nil {
		t.Fatal(err)
	}
	if err := a.Move([]netip.Addr{a.loses()}); err != nil {
		t.Fatal(err)
	}
	a.follows(a)
	token, err := a.Token(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), b.request(), token, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), c.request(), token, false); err != nil {
		t.Fatal(err)
	}
	c.follows(a, b)

	// One of two, while all of them run.
	if err := a.Move([]netip.Addr{a.loses()}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*testMembership{a, b, c} {
		m.follows(a, b)
	}

	// A daemon was killed when it had kept no more than where its host is; its etcd still runs where it was.
	b.stop()
	was := readPid(filepath.Join(b.opt.RunDir, "etcd.pid"))
	b.keeps(func(cfg *config) { cfg.Addrs = []netip.Addr{b.loses()} })
	b.open()
	for _, m := range []*testMembership{a, b, c} {
		m.follows(a, b)
	}
	if was == nil || was.lives() {
		t.Errorf("its old etcd: %v", was)
	}

	// The whole host went down in between, when what is kept said where its member is to be, and the others did not know.
	b.stop()
	readPid(filepath.Join(b.opt.RunDir, "etcd.pid")).end()
	old := b.addr
	b.keeps(func(cfg *config) { cfg.Addrs = []netip.Addr{b.loses()} })
	var err2 error
	if b.Cluster, err2 = Open(b.opt); err2 != nil {
		t.Fatal(err2)
	}
	if _, err := b.relocate(b.cfg, time.Now()); err != nil {
		t.Fatal(err)
	}
	if cfg := b.kept(); cfg.Member.Addrs[0] != b.addr || cfg.Member.Addrs[0] == old {
		t.Fatalf("it keeps %v", cfg.Member.Addrs)
	}
	b.open()
	for _, m := range []*testMembership{a, b, c} {
		m.follows(a, b)
	}
	before := readPid(filepath.Join(b.opt.RunDir, "etcd.pid"))
	b.stop()
	b.open()
	b.follows(a, b)
	if after := readPid(filepath.Join(b.opt.RunDir, "etcd.pid")); *after != *before {
		t.Errorf("etcd was started again without need: %v, before %v", after, before)
	}
}

// TestFoundAgain: where the only member moves, the other hosts cannot hear of it; a new token says where it is, to those of its cluster alone.
func TestFoundAgain(t *testing.T) {
	a, b := newMembership(t, 1), newMembership(t, 2)
	if _, err := a.Init(t.Context(), a.request(), ""); err != nil {
		t.Fatal(err)
	}
	token, err := a.Token(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	was, err := b.Join(t.Context(), b.request(), token, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), b.request(), token, false); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("join again without need: %v", err)
	}
	if err := a.Move([]netip.Addr{a.loses()}); err != nil {
		t.Fatal(err)
	}
	a.connected()
	testhost.Eventually(t, 40*time.Second, func() error {
		if s := b.Status(t.Context()); s.Status.Connected {
			return errors.New("b has not noticed")
		}
		return nil
	})
	if err := lostBy(b.cfg, because(t.Context(), b.cfg.Etcd, context.DeadlineExceeded)); !strings.Contains(err.Error(), "`bulkhead join` here") {
		t.Errorf("b says: %v", err)
	}
	if _, err := b.Join(t.Context(), b.request(), token, false); err == nil || !strings.Contains(err.Error(), "as the token says") {
		t.Errorf("a token from before: %v", err)
	}
	if token, err = a.Token(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Join(t.Context(), b.request(), token, true); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("become a member by the way: %v", err)
	}
	now, err := b.Join(t.Context(), b.request(), token, false)
	if err != nil || now.Host != was.Host || now.Cluster != was.Cluster {
		t.Fatalf("%+v, %v; it was %+v", now, err, was)
	}
	b.follows(a)

	// Who shows no certificate of a host is told nothing.
	door := netip.AddrPortFrom(a.addr, a.cfg.Member.Port+2)
	pool, err := readCAs(a.file(fileCA), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if ans, err := askDoor(t.Context(), door, "where", struct{}{}, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}); err == nil || len(ans.Endpoints) > 0 || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("without a certificate: %+v, %v", ans, err)
	}
}

// TestMembersSwap: two members of etcd have each other's address. Members of one machine differ in their ports too, so what they tell the others
// is tried without them.
func TestMembersSwap(t *testing.T) {
	s := startEtcd(t, 3)
	cli := s.dial()
	res, err := cli.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one, two := res.Members[0], res.Members[1]
	at := func(m *etcdserverpb.Member, port uint16) *memberConfig {
		return &memberConfig{Name: m.Name, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.77")}, Port: port}
	}
	for _, m := range []*memberConfig{at(one, 1000), at(two, 2000)} {
		if _, err := tellMember(t.Context(), cli, m); err != nil {
			t.Fatal(err)
		}
	}
	swapped := []*memberConfig{at(one, 2000), at(two, 1000)}
	for i := range 3 { // each of them asks again until it is done
		for j, m := range swapped {
			other, err := tellMember(t.Context(), cli, m)
			switch {
			case i == 0 && j == 0:
				if !other || err == nil || !strings.Contains(err.Error(), two.Name) {
					t.Errorf("the first one: %v, %v", other, err)
				}
			case err != nil:
				t.Errorf("%s: %v", m.Name, err)
			case i == 2 && other:
				t.Errorf("%s was told again", m.Name)
			}
		}
	}
	if res, err = cli.MemberList(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range res.Members {
		for _, want := range swapped {
			if m.Name == want.Name && !slices.Equal(m.PeerURLs, []string{want.peer()}) {
				t.Errorf("%s is known at %v, want %s", m.Name, m.PeerURLs, want.peer())
			}
		}
	}
}

// kept is what the host keeps of its membership.
func (m *testMembership) kept() config {
	m.t.Helper()
	b, err := os.ReadFile(m.file(fileConfig))
	if err != nil {
		m.t.Fatal(err)
	}
	var cfg config
	if err := json.Unmarshal(b, &cfg); err != nil {
		m.t.Fatal(err)
	}
	return cfg
}

// keeps changes that, while no daemon runs.
func (m *testMembership) keeps(change func(*config)) {
	m.t.Helper()
	cfg := m.kept()
	change(&cfg)
	if err := m.save(&cfg); err != nil {
		m.t.Fatal(err)
	}
}
