package overlay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestFresh: a block that this host has just leased is its own, whether or not the watch has seen that.
func TestFresh(t *testing.T) {
	a := New(Config{Host: Host{ID: guid(0xa, 1)}})
	n := testNetwork("blue", 4096, "10.64.0.0/16")
	subnet := netip.MustParsePrefix("10.64.0.0/16")
	a.synced, a.cache.rev, a.cache.networks[n.ID] = true, 7, &item[Network]{v: n}
	first, mine, err := a.pickBlock(n.ID, subnet, nil)
	if err != nil || mine {
		t.Fatalf("%v, %v", mine, err)
	}
	a.fresh[ownBlock{n.ID, first}] = 8
	if p, mine, err := a.pickBlock(n.ID, subnet, addrs(t, first.Addr().Next())); p != first || !mine || err != nil {
		t.Errorf("the block of an address of its own: %s, %v, %v", p, mine, err)
	}
	if p, mine, err := a.pickBlock(n.ID, subnet, nil); p == first || mine || err != nil {
		t.Errorf("another one: %s, %v, %v", p, mine, err)
	}
	a.cache.rev = 8 // the watch knows better: it is free again
	if p, mine, err := a.pickBlock(n.ID, subnet, nil); p != first || mine || err != nil {
		t.Errorf("given back: %s, %v, %v", p, mine, err)
	}
}

// TestLost: a host's key that is removed while the host takes it is lost to it, and one that was removed before is not.
func TestLost(t *testing.T) {
	a := New(Config{Host: Host{ID: guid(0xa, 1)}})
	removed := func(rev int64) { a.ownEvent(entry{key: a.keys.host(guid(0xa, 1)), deleted: true, rev: rev}) }
	lost := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	removed(10)
	first, _ := a.begin(1, 9)
	if !lost(first) {
		t.Error("removed after it was written, and before that was known here")
	}
	second, _ := a.begin(2, 11)
	if removed(10); lost(second) {
		t.Error("removed before it was written again")
	}
	a.takeOwn(nil, 10)
	if lost(second) {
		t.Error("read before it was written again")
	}
	if removed(12); !lost(second) {
		t.Error("removed")
	}
	third, _ := a.begin(3, 13)
	if a.takeOwn(nil, 14); !lost(third) {
		t.Error("a snapshot does not have it")
	}
}

// TestTakeFirst: what is taken first says that it is all, even where that is nothing.
func TestTakeFirst(t *testing.T) {
	a := New(Config{Host: Host{ID: guid(0xa, 1)}})
	if _, ok := a.Take(); ok {
		t.Error("taken before anything is known")
	}
	a.synced = true
	if u, ok := a.Take(); !ok || !u.First || u.Blocks == nil {
		t.Errorf("%+v, %v", u, ok)
	}
	if _, ok := a.Take(); ok {
		t.Error("nothing twice")
	}
	a.cache.dirty.hosts[guid(0xa, 2)] = struct{}{}
	if u, ok := a.Take(); !ok || u.First || u.Blocks != nil {
		t.Errorf("%+v, %v", u, ok)
	}
}

// TestWhyEnds: who does not wait any more is not kept by the search for a reason.
func TestWhyEnds(t *testing.T) {
	s := &store{t: t, dir: t.TempDir()}
	ca, caPEM, _, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.ca = ca
	write(t, filepath.Join(s.dir, "ca.pem"), caPEM)
	silent, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	e := s.client("host", time.Now())
	e.Endpoints = []string{"https://" + silent.Addr().String()}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	begin := time.Now()
	if err := because(ctx, e, context.DeadlineExceeded); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "cannot be reached") || time.Since(begin) > time.Second {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}
}

// TestRenewalShown: that a certificate could not be renewed is in the report.
func TestRenewalShown(t *testing.T) {
	r := &running{agent: New(Config{})}
	cfg := &config{Own: true, Member: &memberConfig{}}
	c := &Cluster{opt: Options{Dir: t.TempDir()}, log: r.agent.log, cfg: cfg, run: r}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.keepCertificate(ctx, r, cfg); close(done) }()
	defer func() { cancel(); <-done }()
	for until := time.Now().Add(10 * time.Second); ; sleep(ctx, 5*time.Millisecond) {
		if m := c.Status(ctx); strings.Contains(m.Renewal, fileCert) {
			break
		} else if time.Now().After(until) {
			t.Fatalf("%+v", m)
		}
	}
}

// TestComeBack: an agent that has ended is nobody's, and the membership is tried again.
func TestComeBack(t *testing.T) {
	c := &Cluster{opt: Options{Dir: t.TempDir(), Changed: func() {}}, again: make(chan struct{}, 1), cfg: &config{Cluster: hcn.NewGUID()}}
	c.agent = New(Config{})
	c.log = c.agent.log
	c.base = t.Context()
	c.comeBack()
	if c.Agent() != nil || !c.Joined() || c.trouble == nil || len(c.again) != 1 {
		t.Errorf("agent %v, joined %v, trouble %v, asked again %d", c.Agent(), c.Joined(), c.trouble, len(c.again))
	}
}
