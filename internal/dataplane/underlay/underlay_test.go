package underlay

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

const (
	alpha = hcn.GUID("AAAAAAAA-0000-4000-8000-000000000001")
	beta  = hcn.GUID("BBBBBBBB-0000-4000-8000-000000000001")
)

// lab is two hosts with a router between them, which drops what it is told.
//
//	alpha 10.1.0.1 ── 10.1.0.254 router 10.2.0.254 ── 10.2.0.1 beta
type lab struct{ alpha, router, beta *testhost.Host }

func newLab(t *testing.T) lab {
	t.Helper()
	l := lab{testhost.New(t, testhost.WithName("alpha")), testhost.New(t, testhost.WithName("router")), testhost.New(t, testhost.WithName("beta"))}
	l.router.Forwarding(true)
	for _, side := range []struct {
		h   *testhost.Host
		net string
	}{{l.alpha, "1"}, {l.beta, "2"}} {
		l.router.Connect(side.h, testhost.Cable{
			Dev: "r" + side.net, PeerDev: "eth0", Addrs: []string{"10." + side.net + ".0.254/24", "2001:db8:" + side.net + "::fe/64"},
			PeerAddrs: []string{"10." + side.net + ".0.1/24", "2001:db8:" + side.net + "::1/64"},
		})
		side.h.Route("10.0.0.0/8", "10."+side.net+".0.254")
		side.h.Route("2001:db8::/32", "2001:db8:"+side.net+"::fe")
	}
	return l
}

func (l lab) drop(t *testing.T, rules string) {
	t.Helper()
	l.router.Run(t, "nft", "flush ruleset\ntable inet t {\nchain f {\ntype filter hook forward priority 0; "+rules+"\n}\n}")
}

// check runs both sides until both have sent all, and gives what alpha has found and beta heard.
func (l lab) check(t *testing.T, a, b string) (from, to Found) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	addrs := map[hcn.GUID]netip.Addr{alpha: netip.MustParseAddr(a), beta: netip.MustParseAddr(b)}
	var mu sync.Mutex
	var wg, senders sync.WaitGroup
	found := map[hcn.GUID]Found{}
	for _, side := range []struct {
		h         *testhost.Host
		self, far hcn.GUID
	}{{l.alpha, alpha, beta}, {l.beta, beta, alpha}} {
		var p *Probe
		var err error
		side.h.Do(func() {
			p, err = Open(Task{
				Check: [16]byte{1, 2, 3}, Host: side.self, NICs: []string{"eth0"}, Settle: 50 * time.Millisecond,
				Paths: []Path{{Host: side.far, From: addrs[side.self], To: addrs[side.far], Port: 4789, MTU: 1500}},
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		senders.Add(1)
		sent := sync.OnceFunc(senders.Done)
		wg.Go(func() {
			p.Run(ctx, func(f []Found, done bool) {
				mu.Lock()
				found[side.self] = f[0]
				mu.Unlock()
				if done {
					sent()
				}
			})
			sent()
		})
	}
	senders.Wait()
	time.AfterFunc(2*reportEvery, cancel)
	wg.Wait()
	return found[alpha], found[beta]
}

// TestUnderlay: what a network does to tunnels' packets is found: nothing, a smaller MTU, a blocked port, one way only, packets without a
// checksum dropped, checksums spoilt.
func TestUnderlay(t *testing.T) {
	l := newLab(t)
	for _, tc := range []struct {
		name, rules  string
		mtu          string
		size4, size6 int
		heard4       Sum
		heard6       Sum
	}{
		{name: "whole", size4: 1500, size6: 1500, heard4: SumNone | SumWhole | SumLeft, heard6: SumWhole | SumLeft},
		{name: "small", mtu: "1402", size4: 1402, size6: 1402, heard4: SumNone | SumWhole | SumLeft, heard6: SumWhole | SumLeft},
		{name: "blocked", rules: "udp dport 4789 drop;"},
		{name: "one way", rules: `iifname "r2" udp dport 4789 drop;`, heard4: SumNone | SumWhole | SumLeft, heard6: SumWhole | SumLeft},
		{name: "no sum", rules: "udp dport 4789 udp checksum 0 drop;", size4: 1500, size6: 1500, heard4: SumWhole | SumLeft, heard6: SumWhole | SumLeft},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.drop(t, tc.rules)
			mtu := "1500"
			if tc.mtu != "" {
				mtu = tc.mtu
			}
			l.router.Run(t, "ip", "link", "set", "r2", "mtu", mtu)
			var wg sync.WaitGroup
			for _, f := range []struct {
				a, b  string
				size  int
				heard Sum
			}{{"10.1.0.1", "10.2.0.1", tc.size4, tc.heard4}, {"2001:db8:1::1", "2001:db8:2::1", tc.size6, tc.heard6}} {
				wg.Go(func() {
					from, to := l.check(t, f.a, f.b)
					if from.Size != f.size || to.Heard != f.heard || to.BadSum|to.Damaged != 0 || from.Error != "" || !from.Done {
						t.Errorf("%s to %s: sender %+v, receiver %+v; want %d and %v", f.a, f.b, from, to, f.size, f.heard)
					}
				})
			}
			wg.Wait()
		})
	}
	t.Run("no way", func(t *testing.T) {
		l.alpha.Run(t, "ip", "route", "del", "10.0.0.0/8")
		if from, _ := l.check(t, "10.1.0.1", "10.2.0.1"); from.Error == "" || from.Size != 0 {
			t.Errorf("without a route: %+v", from)
		}
	})
}

// TestAnswers: a host that has asked for all it may still answers, and one that asks too much is answered no more than that.
func TestAnswers(t *testing.T) {
	l := newLab(t)
	open := func(h *testhost.Host, self, far hcn.GUID, from, to string) *Probe {
		var p *Probe
		var err error
		h.Do(func() {
			p, err = Open(Task{Check: [16]byte{1}, Host: self, NICs: []string{"eth0"}, Paths: []Path{{Host: far, From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Port: 4789, MTU: 1500}}})
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := open(l.alpha, alpha, beta, "10.1.0.1", "10.2.0.1"), open(l.beta, beta, alpha, "10.2.0.1", "10.1.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait(); a.close(); b.close() }()
	for _, p := range []*Probe{a, b} {
		wg.Go(func() { p.listen(ctx, p.taps[0]) })
	}
	ask := func() bool {
		b.asks <- struct{}{}
		return b.ask(ctx, b.task.Paths[0], SumWhole, 1400, 1, time.Second)
	}
	a.answers <- struct{}{} // and nothing in a.asks
	if !ask() {
		t.Error("no answer")
	}
	if ask() {
		t.Error("an answer beyond what it may send")
	}
}

// TestFrames: a frame is read as it was made; what was changed on its way shows, and of what is no frame nothing is read.
func TestFrames(t *testing.T) {
	src, dst := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1")
	n := note{kind: kindProbe, sum: SumWhole, size: 300, check: [16]byte{9}, from: alpha}
	udp := datagram(src, dst, 50000, 4789, n.encode(dst, 300))
	ip := append([]byte{0x45, 0, 1, 44, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1}, udp...)
	if p, err := decode(ip, true); err != nil || p.note != n || p.size != 300 || p.badSum || p.damaged || p.port != 4789 || p.src != src || p.dst != dst {
		t.Errorf("%+v, %v", p, err)
	}
	for i := range ip {
		b := slices.Clone(ip)
		b[i] ^= 0x10
		p, err := decode(b, true)
		outside := i < 28 && (i < 12 || i >= 20) && i != 22 && i != 23 // the IP header but for the addresses, and the ports
		if err == nil && !outside && !p.badSum {
			t.Errorf("byte %d was changed: %+v", i, p)
		}
		if err == nil && i >= 28+tunnelLen && !p.damaged {
			t.Errorf("byte %d of the note was changed: %+v", i, p)
		}
	}
	for n := range ip {
		if _, err := decode(ip[:n], true); err == nil {
			t.Errorf("the first %d bytes are taken for a frame", n)
		}
	}
}
