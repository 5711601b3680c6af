package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// eventually waits for a condition in words.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testhost.Eventually(t, 30*time.Second, func() error {
		if !cond() {
			return errors.New(what)
		}
		return nil
	})
}

// TestCluster walks through the life of two hosts: a network, blocks, endpoints seen on the other host, changes, an end.
func TestCluster(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/20", "fd77::/64")
	if n.VNI != minVNI {
		t.Errorf("VNI %d", n.VNI)
	}
	eventually(t, "b sees the network", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.nets[n.ID] != nil })
	b4, b6 := a.block(n, "10.77.0.0/20"), a.block(n, "fd77::/64")
	if b4.Bits() != 28 || b6.Bits() != 112 {
		t.Errorf("blocks %s, %s", b4, b6)
	}
	id := guid(0xe, 1)
	ep := endpoint(n, id, "web", b4.Addr(), b6.Addr())
	a.Publish([]Endpoint{ep})
	eventually(t, "b sees the endpoint", func() bool { return b.fact(n.ID, id) != nil })
	if got := b.fact(n.ID, id); got.Host != a.id || got.Name != "web" || got.MAC != ep.MAC || len(got.Addrs) != 2 {
		t.Errorf("b sees %+v", got)
	}
	if a.fact(n.ID, id) != nil {
		t.Error("a host is told of its own endpoint")
	}
	ep.Names = []string{"web", "www"}
	a.Publish([]Endpoint{ep})
	eventually(t, "b sees the new name", func() bool { f := b.fact(n.ID, id); return f != nil && len(f.Names) == 2 })
	a.Publish(nil)
	eventually(t, "the endpoint is gone", func() bool { return b.fact(n.ID, id) == nil })

	a.Publish([]Endpoint{ep})
	eventually(t, "it is back", func() bool { return b.fact(n.ID, id) != nil })
	if err := b.DeleteNetwork(t.Context(), n.ID, false); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), `host "h1"`) {
		t.Errorf("delete a network in use: %v", err)
	}
	a.stop()
	if err := a.Leave(t.Context()); err == nil {
		t.Error("left by a client that is closed")
	}
	eventually(t, "a's endpoints end with its lease", func() bool { return b.fact(n.ID, id) == nil })
	if err := b.DeleteNetwork(t.Context(), n.ID, false); err != nil {
		t.Error(err)
	}
	if len(b.Status().Networks) != 0 || len(b.Status().Problems) != 0 {
		t.Errorf("left: %+v", b.Status())
	}
}

// TestReturn: an agent that starts again in time goes on with the lease, and nobody sees anything; one that comes back after it
// ended publishes again without a conflict, with the same block.
func TestReturn(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2, remembers(t))
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/20")
	p := a.block(n, "10.77.0.0/20")
	id := guid(0xe, 1)
	eps := []Endpoint{endpoint(n, id, "web", p.Addr())}
	a.Publish(eps)
	eventually(t, "b sees it", func() bool { return b.fact(n.ID, id) != nil })
	before, err := s.dial().Get(t.Context(), a.keys.endpoint(n.ID, a.id, id))
	if err != nil {
		t.Fatal(err)
	}

	a.stop()
	a.start(s, "boot 1")
	a.Publish(eps)
	a.connected()
	time.Sleep(testTTL + time.Second) //nolint:forbidigo // the lease must outlive its time
	after, err := s.dial().Get(t.Context(), a.keys.endpoint(n.ID, a.id, id))
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Kvs) != 1 || after.Kvs[0].ModRevision != before.Kvs[0].ModRevision {
		t.Errorf("the endpoint was written again: %v, before %v", after.Kvs, before.Kvs)
	}

	// One that starts while it cannot ask knows what its last agent did. What ended meanwhile goes when it can.
	b.stop()
	b.link.Cut()
	b.start(s, "boot 2")
	if b.take(); b.fact(n.ID, id) == nil || b.nets[n.ID] == nil || b.hosts[a.id] == nil || b.firsts != 0 {
		t.Errorf("it has forgotten: %v %v %v, told %d times that this is all", b.facts, b.nets, b.hosts, b.firsts)
	}
	a.stop()
	eventually(t, "its lease ends", func() bool {
		res, err := s.dial().Get(t.Context(), a.keys.host(a.id))
		return err == nil && len(res.Kvs) == 0
	})
	if b.take(); b.fact(n.ID, id) == nil {
		t.Error("who cannot ask has heard of it")
	}
	b.link.Heal()
	eventually(t, "its names are gone", func() bool { return b.fact(n.ID, id) == nil })
	b.connected()
	if b.mu.Lock(); b.nets[n.ID] == nil || b.hosts[a.id] != nil || b.firsts != 1 {
		t.Errorf("after: %v %v, told %d times that this is all", b.nets, b.hosts, b.firsts)
	}
	b.mu.Unlock()
	a.start(s, "boot 2")
	a.Publish(eps)
	eventually(t, "it is back", func() bool { return b.fact(n.ID, id) != nil })
	eventually(t, "its block is its own still", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.cache.ownBlocks()[n.ID]) == 1 && a.cache.ownBlocks()[n.ID][0] == p
	})
}

// TestTwin: a copy of a host is told that the first lives.
func TestTwin(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a := s.host(1)
	a.connected()
	twin := &testHost{t: t, name: "h1", link: s.connect(), id: a.id}
	twin.start(s, "another boot")
	eventually(t, "the twin is refused", func() bool { return strings.Contains(twin.Status().Problem, "another host has this one's ID") })
	if !a.Status().Connected {
		t.Error("the first one suffers")
	}
	a.stop()
	twin.connected()
}

// TestPartition: a host that is cut off keeps what it knows, its endpoints vanish elsewhere, and all is well after.
func TestPartition(t *testing.T) {
	s := startEtcd(t, 3)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/20")
	pa, pb := a.block(n, "10.77.0.0/20"), b.block(n, "10.77.0.0/20")
	if pa == pb {
		t.Fatalf("both have %s", pa)
	}
	ida, idb, idc := guid(0xe, 1), guid(0xe, 2), guid(0xe, 3)
	a.Publish([]Endpoint{endpoint(n, ida, "web", pa.Addr())})
	b.Publish([]Endpoint{endpoint(n, idb, "db", pb.Addr())})
	eventually(t, "they see each other", func() bool { return a.fact(n.ID, idb) != nil && b.fact(n.ID, ida) != nil })

	a.link.Cut()
	a.Publish([]Endpoint{endpoint(n, ida, "web", pa.Addr()), endpoint(n, idc, "new", pa.Addr().Next())})
	eventually(t, "a's endpoint is gone at b", func() bool { return b.fact(n.ID, ida) == nil })
	eventually(t, "a says that it is cut off", func() bool { return !a.Status().Connected })
	if a.fact(n.ID, idb) == nil {
		t.Error("a has forgotten what it knew")
	}
	if _, err := a.LeaseBlock(t.Context(), n.ID, netip.MustParsePrefix("10.77.0.0/20"), nil); !errors.Is(err, ErrAway) {
		t.Errorf("a block without etcd: %v", err)
	}
	b.Publish(nil)
	a.link.Heal()
	eventually(t, "a is back, with what it made meanwhile", func() bool { return b.fact(n.ID, ida) != nil && b.fact(n.ID, idc) != nil })
	eventually(t, "a has heard that b's is gone", func() bool { return a.fact(n.ID, idb) == nil })
}

// TestFrozen: etcd stands still for longer than leases last, and ends them all as it goes on. Nobody loses what he knows of those that are
// there, nor does one that has started again meanwhile; who is not goes a little later.
func TestFrozen(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b, c := s.host(1, remembers(t)), s.host(2), s.host(3)
	for _, h := range []*testHost{a, b, c} {
		h.connected()
	}
	n := a.network("blue", "10.77.0.0/20")
	eps := map[*testHost]Endpoint{}
	for i, h := range []*testHost{a, b, c} {
		eps[h] = endpoint(n, guid(0xe, i), "web", h.block(n, "10.77.0.0/20").Addr())
		h.Publish([]Endpoint{eps[h]})
	}
	eventually(t, "all know all", func() bool { return a.factCount() == 2 && b.factCount() == 2 && c.factCount() == 2 })
	before, err := s.dial().Get(t.Context(), a.keys.host(a.id))
	if err != nil {
		t.Fatal(err)
	}

	s.members[0].signal(t, syscall.SIGSTOP)
	c.stop()
	a.stop()
	a.start(s, "boot 1")
	a.take()
	a.Publish([]Endpoint{eps[a]})
	time.Sleep(2*testTTL + time.Second) //nolint:forbidigo // the leases' time is over
	again := endpoint(n, guid(0xe, 9), "other", eps[b].Addrs...)
	b.Publish([]Endpoint{again}) // with the address of one that is gone
	s.members[0].signal(t, syscall.SIGCONT)
	a.connected()
	b.connected()
	eventually(t, "a knows what b has now", func() bool { return a.fact(n.ID, again.ID) != nil && a.fact(n.ID, eps[b].ID) == nil })
	eventually(t, "the dead host is gone", func() bool { return a.fact(n.ID, eps[c].ID) == nil && b.fact(n.ID, eps[c].ID) == nil })
	after, err := s.dial().Get(t.Context(), a.keys.host(a.id))
	if err != nil || len(after.Kvs) != 1 || after.Kvs[0].Lease == before.Kvs[0].Lease {
		t.Errorf("etcd has not ended the lease: %v, %v", after, err)
	}
	for h, want := range map[*testHost]int{a: 3, b: 2} { // c and its endpoint; the one that b has deleted
		if h.mu.Lock(); h.losses != want || len(h.facts) != 1 || len(h.hosts) != 2 {
			t.Errorf("%s has lost %d endpoints and hosts, and knows %v, %v", h.name, h.losses, h.facts, h.hosts)
		}
		h.mu.Unlock()
	}
}

// TestMembers: of three members one is killed, one stands still; then all are killed and come back.
func TestMembers(t *testing.T) {
	s := startEtcd(t, 3)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/20")
	p := a.block(n, "10.77.0.0/20")
	publish := func(i int) {
		t.Helper()
		id := guid(0xe, i)
		a.Publish([]Endpoint{endpoint(n, id, "web", p.Addr())})
		eventually(t, fmt.Sprintf("b sees change %d", i), func() bool { return b.fact(n.ID, id) != nil && b.factCount() == 1 })
	}
	publish(1)
	for i, m := range s.members {
		m.kill()
		publish(10 + i)
		m.start(t)
		eventually(t, "it is back", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := s.dial().Status(ctx, "https://"+m.client)
			return err == nil
		})
	}
	s.members[0].signal(t, syscall.SIGSTOP)
	publish(20)
	s.members[0].signal(t, syscall.SIGCONT)
	for _, m := range s.members {
		m.kill()
	}
	eventually(t, "a misses etcd", func() bool { return !a.Status().Connected })
	for _, m := range s.members {
		m.start(t)
	}
	publish(30)
	a.connected()
}

// TestCompaction: a watch that is behind what etcd keeps reads everything again, and tells only what changed.
func TestCompaction(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/20")
	p := a.block(n, "10.77.0.0/20")
	eps := []Endpoint{endpoint(n, guid(0xe, 1), "one", p.Addr()), endpoint(n, guid(0xe, 2), "two", p.Addr().Next())}
	a.Publish(eps)
	eventually(t, "b sees both", func() bool { return b.factCount() == 2 })
	one := b.fact(n.ID, guid(0xe, 1))

	b.link.Cut()
	eps[1] = endpoint(n, guid(0xe, 3), "three", p.Addr().Next())
	a.Publish(eps)
	var rev int64
	eventually(t, "a has published", func() bool {
		res, err := s.dial().Get(t.Context(), a.keys.endpoint(n.ID, a.id, guid(0xe, 3)))
		if err != nil || len(res.Kvs) == 0 {
			return false
		}
		rev = res.Header.Revision
		return true
	})
	if _, err := s.dial().Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(9 * time.Second) //nolint:forbidigo // until the old connections are given up
	b.link.Heal()
	eventually(t, "b has caught up", func() bool {
		return b.fact(n.ID, guid(0xe, 3)) != nil && b.fact(n.ID, guid(0xe, 2)) == nil && b.factCount() == 2
	})
	if b.fact(n.ID, guid(0xe, 1)) != one {
		t.Error("what did not change was told again")
	}
}

// TestVandal: somebody removes and changes our keys; they are written again. What others write that is not ours is left out and reported.
func TestVandal(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/20")
	p := a.block(n, "10.77.0.0/20")
	id := guid(0xe, 1)
	a.Publish([]Endpoint{endpoint(n, id, "web", p.Addr())})
	eventually(t, "b sees it", func() bool { return b.fact(n.ID, id) != nil })
	cli, key := s.dial(), a.keys.endpoint(n.ID, a.id, id)
	put := func(k, v string) {
		t.Helper()
		if _, err := cli.Put(t.Context(), k, v); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cli.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	written := func() bool {
		res, err := cli.Get(t.Context(), key)
		return err == nil && len(res.Kvs) == 1 && res.Kvs[0].Lease != 0 && strings.Contains(string(res.Kvs[0].Value), `"web"`)
	}
	eventually(t, "a removed key is written again", written)
	put(key, `{"id":"`+string(id)+`","mac":"02:00:00:00:00:01","addrs":["10.77.0.9"]}`)
	eventually(t, "a changed key is written again", written)
	for _, value := range []string{"garbage", `{"id":"` + string(a.id) + `","name":"h1","addrs":["192.0.2.66"]}`} {
		if _, err := cli.Put(t.Context(), a.keys.host(a.id), value); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a host writes its own key again", func() bool {
			res, err := cli.Get(t.Context(), a.keys.host(a.id))
			return err == nil && len(res.Kvs) == 1 && string(res.Kvs[0].Value) == encode(&a.self) && res.Kvs[0].Lease != 0
		})
		eventually(t, "its endpoint counts again", func() bool { return b.fact(n.ID, id) != nil && len(b.Status().Problems) == 0 })
	}
	if _, err := cli.Delete(t.Context(), a.keys.host(a.id)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a removed host registers again", func() bool {
		res, err := cli.Get(t.Context(), a.keys.host(a.id))
		return err == nil && len(res.Kvs) == 1
	})
	a.connected()
	eventually(t, "b sees it again", func() bool { return b.fact(n.ID, id) != nil })

	other := p.Addr().Next()
	for k, v := range map[string]string{
		"/test/v1/nonsense":                                    "x",
		"/test/v1/hosts/not-a-guid":                            "{}",
		a.keys.host(guid(0xa, 66)):                             "{not json",
		a.keys.host(guid(0xa, 67)):                             `{"id":"` + string(guid(0xa, 68)) + `","name":"x","addrs":["192.0.2.9"]}`,
		a.keys.host(guid(0xa, 69)):                             `{"id":"` + string(guid(0xa, 69)) + `","name":"x\u001b[2J","addrs":["192.0.2.9"]}`,
		a.keys.network(guid(0xb, 1)):                           strings.Repeat("x", 300<<10),
		a.keys.endpoint(n.ID, b.id, guid(0xe, 7)):              `{"id":"` + string(guid(0xe, 7)) + `","mac":"02:00:00:00:00:01","addrs":["` + other.String() + `"]}`,
		a.keys.endpoint(n.ID, guid(0xa, 70), guid(0xe, 8)):     `{"id":"` + string(guid(0xe, 8)) + `","mac":"02:00:00:00:00:01","addrs":["10.77.1.1"]}`,
		a.keys.endpoint(guid(0xb, 9), a.id, guid(0xe, 9)):      `{"id":"` + string(guid(0xe, 9)) + `","mac":"02:00:00:00:00:01","addrs":["10.77.1.1"]}`,
		a.keys.endpoint(n.ID, guid(0xa, 71), guid(0xe, 10)):    `{"id":"` + string(guid(0xe, 10)) + `","mac":"01:00:5e:00:00:01","addrs":["10.77.1.1"]}`,
		a.keys.block(n.ID, netip.MustParsePrefix("0.0.0.0/0")): `{"host":"` + string(b.id) + `"}`,
	} {
		put(k, v)
	}
	c := s.host(3) // reads a snapshot with all of it, with a page that is too large for a message at first
	c.connected()
	for _, h := range []*testHost{a, c} {
		eventually(t, "the foreign keys are reported", func() bool { return len(h.Status().Problems) >= 8 })
		for key, why := range h.Status().Problems {
			t.Logf("%s: %s", key, why)
		}
		if h.fact(n.ID, guid(0xe, 7)) != nil || h.fact(n.ID, guid(0xe, 8)) != nil {
			t.Error("an endpoint in a block of another host counts")
		}
		if len(h.Hosts()) > 3 {
			t.Errorf("hosts %v", h.Hosts())
		}
	}
	// b publishes nothing by itself, and removes what was put there in its name.
	eventually(t, "b removes what is not its own", func() bool {
		res, err := cli.Get(t.Context(), a.keys.endpoint(n.ID, b.id, guid(0xe, 7)))
		return err == nil && len(res.Kvs) == 0
	})
}

// TestSchema: a prefix of another version, or of nobody, is refused before anything is written.
func TestSchema(t *testing.T) {
	s := startEtcd(t, 1)
	cli := s.dial()
	count := func() int64 {
		res, err := cli.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		return res.Count
	}
	a := s.host(1)
	eventually(t, "there is no cluster", func() bool { return strings.Contains(a.Status().Problem, "no cluster") })
	if n := count(); n != 0 {
		t.Errorf("%d keys were written", n)
	}
	if _, err := cli.Put(t.Context(), "/test/schema", `{"version":2}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another version", func() bool {
		return strings.Contains(a.Status().Problem, "has version 2, this program speaks version 1")
	})
	if _, err := Found(t.Context(), cli, "/test"); !errors.Is(err, ErrSchema) {
		t.Errorf("found: %v", err)
	}
	if n := count(); n != 1 {
		t.Errorf("%d keys", n)
	}
	if _, err := cli.Put(t.Context(), "/test/schema", `hello`); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(t.Context(), cli, "/test"); err == nil || !strings.Contains(err.Error(), "no record of Bulkhead's") {
		t.Errorf("find: %v", err)
	}

	// Who is in a cluster whose record is changed, or removed, goes on when it is what it was.
	if _, err := cli.Delete(t.Context(), "/test/schema"); err != nil {
		t.Fatal(err)
	}
	s.found()
	a.connected()
	was, err := cli.Get(t.Context(), "/test/schema")
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range []clientv3.Op{clientv3.OpPut("/test/schema", `{"version":2}`), clientv3.OpDelete("/test/schema")} {
		if _, err := cli.Do(t.Context(), do); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is noticed", func() bool { return !a.Status().Connected })
		if _, err := cli.Put(t.Context(), "/test/schema", string(was.Kvs[0].Value)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "what comes after is seen", func() bool {
			res, err := cli.Put(t.Context(), a.keys.host(guid(0xa, 9)), encode(&Host{ID: guid(0xa, 9), Name: "h9", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return a.waitFor(ctx, res.Header.Revision) == nil && a.Status().Connected
		})
	}
}

// TestClash: VNI, name, ID and prefix that somebody has are refused with whose they are.
func TestClash(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a := s.host(1)
	a.connected()
	n := a.network("blue", "10.77.0.0/20")
	for _, tc := range []struct {
		name string
		n    Network
		want string
	}{
		{"VNI", testNetwork("red", n.VNI, "10.78.0.0/20"), `VNI 4096 belongs to network "blue"`},
		{"name", testNetwork("blue", 5000, "10.78.0.0/20"), `the name "blue" belongs to network ` + string(n.ID)},
		{"underlay", testNetwork("red", 5000, "192.0.2.0/24"), `has the address 192.0.2.1 of host "h1"`},
		{"small VNI", testNetwork("red", 7, "10.78.0.0/20"), `VNI 7, must be 4096`},
	} {
		if _, err := a.CreateNetwork(t.Context(), func(Taken) (Network, error) { return tc.n, nil }); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	b := s.host(2)
	b.connected()
	p := a.block(n, "10.77.0.0/20")
	if _, err := b.LeaseBlock(t.Context(), n.ID, netip.MustParsePrefix("10.77.0.0/20"), addrs(t, p.Addr())); !errors.Is(err, ErrClash) || !strings.Contains(err.Error(), `"h1"`) {
		t.Errorf("an address in another's block: %v", err)
	}
	// Of many addresses one is enough: in a block of this host's, or in one that is free.
	mine, free := b.block(n, "10.77.0.0/20"), netip.MustParsePrefix("10.77.0.0/28")
	for free == p || free == mine {
		free = netip.PrefixFrom(netipx.PrefixLastIP(free).Next(), 28)
	}
	for _, tc := range []struct {
		of   []netip.Addr
		want netip.Prefix // invalid: there is none
	}{
		{[]netip.Addr{free.Addr()}, free},
		{[]netip.Addr{p.Addr(), free.Addr().Next()}, free},
		{[]netip.Addr{p.Addr(), mine.Addr()}, mine},
		{[]netip.Addr{p.Addr(), p.Addr().Next()}, netip.Prefix{}},
	} {
		got, err := b.PickBlock(n.ID, netip.MustParsePrefix("10.77.0.0/20"), addrs(t, tc.of...), nil)
		if got != tc.want && tc.want.IsValid() || errors.Is(err, ErrExhausted) == tc.want.IsValid() {
			t.Errorf("one of %v: %s, %v, want %s", tc.of, got, err, tc.want)
		}
	}
	small := a.network("small", "10.79.0.0/27")
	a.block(small, "10.79.0.0/27")
	b.block(small, "10.79.0.0/27")
	if _, err := b.LeaseBlock(t.Context(), small.ID, netip.MustParsePrefix("10.79.0.0/27"), nil); !errors.Is(err, ErrExhausted) {
		t.Errorf("a third block of two: %v", err)
	}
}

func addrs(t *testing.T, list ...netip.Addr) *netipx.IPSet {
	t.Helper()
	var b netipx.IPSetBuilder
	for _, a := range list {
		b.Add(a)
	}
	set, err := b.IPSet()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestTogether: hosts that make networks and lease blocks at the same moment get different ones.
func TestTogether(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	const hosts = 6
	var all []*testHost
	for i := range hosts {
		all = append(all, s.host(i+1))
	}
	for _, h := range all {
		h.connected()
	}
	shared := all[0].network("shared", "10.70.0.0/25") // eight blocks
	for _, h := range all {
		eventually(t, "the network is everywhere", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.nets[shared.ID] != nil })
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	vnis, blocks := map[uint32]string{}, map[netip.Prefix]string{}
	for _, h := range all {
		wg.Go(func() {
			for i := range 3 {
				name := fmt.Sprintf("%s-%d", h.name, i)
				n, err := h.CreateNetwork(t.Context(), func(tk Taken) (Network, error) { return testNetwork(name, tk.VNI, "10.77.0.0/20"), nil })
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if o := vnis[n.VNI]; o != "" {
					t.Errorf("VNI %d is that of %s and %s", n.VNI, o, name)
				}
				vnis[n.VNI] = name
				mu.Unlock()
			}
			p, err := h.LeaseBlock(t.Context(), shared.ID, netip.MustParsePrefix("10.70.0.0/25"), nil)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if o := blocks[p]; o != "" {
				t.Errorf("block %s is that of %s and %s", p, o, h.name)
			}
			blocks[p] = h.name
		})
	}
	wg.Wait()
	if len(vnis) != 3*hosts || len(blocks) != hosts {
		t.Errorf("%d VNIs, %d blocks", len(vnis), len(blocks))
	}
}

// TestForget: an operator frees the blocks of a dead host, and keeps it from coming back with its old addresses.
func TestForget(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/28")
	p := a.block(n, "10.77.0.0/28")
	id := guid(0xe, 1)
	a.Publish([]Endpoint{endpoint(n, id, "web", p.Addr())})
	eventually(t, "b sees it", func() bool { return b.fact(n.ID, id) != nil })
	if err := b.Forget(t.Context(), a.id, false); !errors.Is(err, ErrInUse) {
		t.Errorf("forget a host that is alive: %v", err)
	}
	a.link.Cut()
	eventually(t, "a is gone", func() bool { return len(b.Hosts()) == 1 })
	if _, err := b.LeaseBlock(t.Context(), n.ID, netip.MustParsePrefix("10.77.0.0/28"), nil); !errors.Is(err, ErrExhausted) {
		t.Errorf("a's block is free: %v", err)
	}
	if hs := b.Status().Hosts; len(hs) != 2 || hs[1].ID != a.id || hs[1].Name != "h1" || hs[1].Alive || hs[1].Blocks != 1 {
		t.Errorf("the host that is gone: %+v", hs)
	}
	if err := b.Forget(t.Context(), a.id, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a's block is free", func() bool {
		_, err := b.LeaseBlock(t.Context(), n.ID, netip.MustParsePrefix("10.77.0.0/28"), nil)
		return err == nil
	})
	idb := guid(0xe, 2)
	b.Publish([]Endpoint{endpoint(n, idb, "db", p.Addr())})
	a.link.Heal()
	eventually(t, "a is told", func() bool { return strings.Contains(a.Status().Problem, "removed from the cluster by h2") })
	if b.fact(n.ID, id) != nil || len(b.Hosts()) != 1 {
		t.Error("a is back")
	}
	eventually(t, "a knows who has the address", func() bool { return a.fact(n.ID, idb) != nil })
}

// TestExpired: certificates that have ended are named before anything is tried.
func TestExpired(t *testing.T) {
	s := startEtcd(t, 1)
	long := time.Now().Add(-certValidity - 24*time.Hour)
	old := s.client("old", long)
	old.Endpoints = s.cfg.Endpoints
	if _, err := Dial(old); err == nil || !strings.Contains(err.Error(), "old.pem expired at") {
		t.Errorf("expired: %v", err)
	}
	foreign := &store{t: t, dir: t.TempDir()}
	ca, caPEM, _, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign.ca = ca
	write(t, foreign.dir+"/ca.pem", caPEM)
	cfg := foreign.client("foreign", time.Now())
	cfg.Endpoints = s.cfg.Endpoints
	try := func(cfg Etcd) error {
		cli, err := Dial(cfg)
		if err != nil {
			return err
		}
		defer cli.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = Find(ctx, cli, "/test")
		return because(t.Context(), cfg, err)
	}
	if err := try(cfg); err == nil || !strings.Contains(err.Error(), "not of the CA that was given") {
		t.Errorf("a foreign CA: %v", err)
	}
	cfg.CACert = s.cfg.CACert
	if err := try(cfg); err == nil || !strings.Contains(err.Error(), "does not accept this host's client certificate") {
		t.Errorf("a foreign client: %v", err)
	}
	cfg.Endpoints = []string{"https://" + freePort(t)}
	if err := try(cfg); err == nil || !strings.Contains(err.Error(), "nothing listens there") {
		t.Errorf("nobody: %v", err)
	}
	cfg.Endpoints = []string{"http://127.0.0.1:2379"}
	if err := try(cfg); err == nil || !strings.Contains(err.Error(), "only used by https") {
		t.Errorf("http: %v", err)
	}
}

// TestLeave: a host that leaves takes all of it along.
func TestLeave(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.77.0.0/28")
	p := a.block(n, "10.77.0.0/28")
	a.Publish([]Endpoint{endpoint(n, guid(0xe, 1), "web", p.Addr())})
	eventually(t, "b sees it", func() bool { return b.factCount() == 1 })
	cli := s.dial()
	a.cli = cli
	a.stop()
	if err := a.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing of a is left", func() bool { return b.factCount() == 0 && len(b.Hosts()) == 1 && len(b.Status().Hosts) == 1 })
	res, err := cli.Get(t.Context(), "/test/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range res.Kvs {
		if strings.Contains(string(kv.Key), a.id.Lower()) {
			t.Errorf("left: %s", kv.Key)
		}
	}
}
