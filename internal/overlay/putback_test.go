package overlay

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// backup keeps what the only member has on its disk; restore puts that back, as an operator does whose etcd is lost.
func (s *store) backup() {
	s.t.Helper()
	s.swap(filepath.Join(s.dir, s.members[0].name), filepath.Join(s.dir, "backup"))
}

func (s *store) restore() {
	s.t.Helper()
	s.swap(filepath.Join(s.dir, "backup"), filepath.Join(s.dir, s.members[0].name))
}

func (s *store) swap(from, to string) {
	s.t.Helper()
	s.members[0].kill()
	if err := os.RemoveAll(to); err != nil {
		s.t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		s.t.Fatal(err)
	}
	s.members[0].start(s.t)
}

// adds leases a block for a host, and publishes an endpoint that has its first address.
func (h *faultHost) adds(n Network, name string) netip.Prefix {
	h.t.Helper()
	before := map[netip.Prefix]bool{}
	for _, p := range h.Blocks()[n.ID] {
		before[p] = true
	}
	p := h.block(n, n.Prefixes()[0].String())
	if before[p] {
		h.t.Fatalf("%s has block %s already", h.name, p)
	}
	e := endpoint(n, hcn.NewGUID(), name, p.Addr())
	h.eps[e.ID] = e
	h.publish()
	return p
}

// TestPutBack: etcd is restored from a backup. Whether its revisions are behind those that the hosts know, or ahead of them by then, they
// find out, and in the end all know what there is: nothing that came back with the backup, all that was made since, and no address twice.
func TestPutBack(t *testing.T) {
	for name, ahead := range map[string]bool{"behind": false, "ahead": true} {
		t.Run(name, func(t *testing.T) { putBack(t, ahead) })
	}
}

func putBack(t *testing.T, ahead bool) {
	s := startEtcd(t, 1)
	s.found()
	var hosts []*faultHost
	host := func(n int) *faultHost {
		h := &faultHost{testHost: s.host(n, remembers(t)), n: n, eps: map[hcn.GUID]Endpoint{}}
		h.connected()
		hosts = append(hosts, h)
		return h
	}
	a, b := host(1), host(2)
	blue := a.network("blue", "10.77.0.0/24")
	eventually(t, "the network is everywhere", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.nets[blue.ID] != nil })
	a.adds(blue, "gone")
	a.adds(blue, "stays")
	b.adds(blue, "server")
	testhost.Eventually(t, 20*time.Second, func() error { return converged(hosts) })
	s.backup()
	for _, h := range hosts {
		h.connected()
	}

	// What the backup does not know: an endpoint that went, blocks, a network, a host, a restart of a host.
	for id, e := range a.eps {
		if e.Name == "gone" {
			delete(a.eps, id)
		}
	}
	a.publish()
	late := b.adds(blue, "late")
	red := b.network("red", "10.78.0.0/24")
	b.adds(red, "other")
	c := host(3)
	eventually(t, "the networks are everywhere", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.nets) == 2 })
	taken := c.adds(blue, "new")
	testhost.Eventually(t, 20*time.Second, func() error { return converged(hosts) })
	rev := a.Status().Revision
	if ahead {
		for _, h := range hosts {
			h.link.Cut()
		}
	}
	c.stop() // it finds out when it starts
	s.restore()
	cli := s.dial()
	if ahead {
		for i := range rev {
			testhost.Eventually(t, 20*time.Second, func() error {
				_, err := cli.Put(t.Context(), "/other", fmt.Sprint(i))
				return err
			})
		}
	}
	testhost.Eventually(t, 20*time.Second, func() error {
		res, err := cli.Get(t.Context(), "/test", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && (res.Header.Revision > rev) != ahead {
			t.Fatalf("etcd is at revision %d, and was at %d", res.Header.Revision, rev)
		}
		return err
	})
	for _, h := range hosts {
		h.link.Heal()
	}
	c.start(s, "boot 3")
	c.publish()

	// While they find out, nobody leases what another has.
	d := &faultHost{testHost: a.testHost, eps: map[hcn.GUID]Endpoint{}}
	testhost.Eventually(t, 40*time.Second, func() error { return converged(hosts) })
	noDuplicates(t, hosts)
	for _, h := range hosts {
		h.connected()
		h.mu.Lock()
		if h.nets[red.ID] == nil || h.nets[blue.ID] == nil {
			t.Errorf("%s has the networks %v", h.name, h.nets)
		}
		h.mu.Unlock()
		if p := h.Status().Problems; len(p) > 0 {
			t.Errorf("%s: %v", h.name, p)
		}
	}
	if p := d.adds(blue, "again"); p == late || p == taken {
		t.Errorf("block %s was leased twice", p)
	}

	// An etcd with another ID of its own is another one, whatever its revisions say.
	b.Agent.mu.Lock()
	was := b.etcd
	b.etcd++
	b.Agent.mu.Unlock()
	eventually(t, "another ID is noticed", func() bool { b.Agent.mu.Lock(); defer b.Agent.mu.Unlock(); return b.etcd == was })
	b.connected()
}

// TestLeftBlocks: what others had before etcd was put back is not leased for a while, for they are about to write it again.
func TestLeftBlocks(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	h := s.host(1)
	h.connected()
	n := h.network("blue", "10.77.0.0/27") // two blocks
	first, err := h.PickBlock(n.ID, netip.MustParsePrefix("10.77.0.0/27"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Agent.mu.Lock()
	h.left, h.leftUntil = map[ownBlock]bool{{n.ID, first}: true}, time.Now().Add(time.Minute)
	h.Agent.mu.Unlock()
	if p := h.block(n, "10.77.0.0/27"); p == first {
		t.Errorf("it leases %s, which is left to another host", p)
	}
	h.Agent.mu.Lock()
	h.leftUntil = time.Now().Add(-time.Second)
	h.Agent.mu.Unlock()
	if p := h.block(n, "10.77.0.0/27"); p != first {
		t.Errorf("after that time it leases %s, and not %s", p, first)
	}
}
