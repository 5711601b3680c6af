package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestCheck: whoever asks has what each host heard until the end, and etcd is written to twice by each, however much they have to tell.
func TestCheck(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	var hosts []*testHost
	var reports atomic.Int32
	for n := range 2 {
		h := &testHost{t: t, name: fmt.Sprintf("h%d", n+1), link: s.connect(), id: guid(0xa, n+1)}
		h.prepare = func(c *Config) {
			c.Measured = func(found []PathFound) int { return found[0].Size - 20 }
			c.Probe = func(ctx context.Context, task CheckTask, report func([]PathFound, bool)) error {
				for i := 0; ctx.Err() == nil; i++ { // first what it sends, then what it hears
					p := PathFound{Host: task.Peers[0].ID, From: task.Self.Addrs[0], To: task.Peers[0].Addrs[0], Port: task.Ports[0], MTU: 1500, Size: 1400, Heard: Sums(min(i, 30) / 30)}
					p.Done = i >= 20*(n+1)
					report([]PathFound{p}, p.Done)
					reports.Add(1)
					sleep(ctx, 10*time.Millisecond)
				}
				return nil
			}
		}
		h.start(s, "boot")
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		h.connected()
		testhost.Eventually(t, 20*time.Second, func() error {
			if n := len(h.Hosts()); n != 2 {
				return fmt.Errorf("%s sees %d hosts", h.name, n)
			}
			return nil
		})
	}
	wctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	events := s.dial().Watch(wctx, "/test/v1/check", clientv3.WithPrefix())
	found, err := hosts[0].Check(t.Context(), []hcn.GUID{hosts[0].id, hosts[1].id}, []uint16{4789})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if c := found[h.id]; !c.Done || c.Error != "" || c.Held != 1380 || len(c.Paths) != 1 || !c.Paths[0].Done || c.Paths[0].Heard != SumNone {
			t.Errorf("%s said %+v", h.name, c)
		}
	}
	// The questions and the answers are gone with the lease.
	writes, gone := map[string]int{}, 0
	for res := range events {
		for _, ev := range res.Events {
			if ev.Type == mvccpb.DELETE {
				gone++
			} else {
				writes[string(ev.Kv.Key)]++
			}
		}
		if gone == len(writes) {
			break
		}
	}
	for key, n := range writes {
		if n > 2 {
			t.Errorf("%s was written %d times", key, n)
		}
	}
	if len(writes) != 3 || reports.Load() < 40 {
		t.Errorf("%d keys, %d reports", len(writes), reports.Load())
	}
}

// TestLargestCheck: what hosts say of as many ways as a check may have fits its bound, whatever is wrong with all of them.
func TestLargestCheck(t *testing.T) {
	c := Checked{Check: strings.Repeat("a", 32), Done: true, Held: 1 << 16, Error: clipText(strings.Repeat("<\n", 500), maxName)}
	addr := netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666")
	for range MaxChecked * MaxPorts {
		c.Paths = append(c.Paths, PathFound{
			Host: guid(0xa, 1), From: addr, To: addr, Port: 65535, NIC: strings.Repeat("&", 15), MTU: 1 << 16, Size: 1 << 16, Done: true,
			Error: clipText(strings.Repeat("<é\x00\xff", 500), maxPathError), Answered: 7, Heard: 7, Let: 7, Inside: true, Bad: 7, Damaged: 7,
		})
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if _, err := decode[Checked](kindChecked, []byte(encode(&c))); err != nil {
		t.Error(err)
	}
}

// TestPaths: what a check measured to its end counts for a host, and what was measured before for those that are away.
func TestPaths(t *testing.T) {
	a, b, gone := guid(0xa, 1), guid(0xa, 2), guid(0xa, 3)
	begin := time.Now()
	changes := 0
	c := &Cluster{opt: Options{Dir: t.TempDir(), Changed: func() { changes++ }}, cfg: &config{}}
	way := func(to hcn.GUID, size int, done bool) PathFound {
		return PathFound{Host: to, NIC: "eth0", MTU: 1500, Size: size, Done: done}
	}
	for _, tc := range []struct {
		name  string
		known []hcn.GUID
		found []PathFound
		later time.Duration
		want  map[hcn.GUID]int
	}{
		{name: "first", known: []hcn.GUID{a, b, gone}, found: []PathFound{way(a, 1400, true), way(b, 1500, true), way(gone, 1300, true)}, want: map[hcn.GUID]int{a: 1400, gone: 1300}},
		{name: "a step on the way", known: []hcn.GUID{a, b}, found: []PathFound{way(a, 800, false), way(b, 700, false)}, want: map[hcn.GUID]int{a: 1400, gone: 1300}},
		{name: "not heard of", known: []hcn.GUID{a, b}, found: []PathFound{way(a, 0, true)}, want: map[hcn.GUID]int{a: 1400, gone: 1300}},
		{name: "more, by one of two ports", known: []hcn.GUID{a, b}, found: []PathFound{way(a, 1450, true), way(a, 1440, true)}, want: map[hcn.GUID]int{a: 1440, gone: 1300}},
		{name: "one port was cut", known: []hcn.GUID{a, b}, found: []PathFound{way(a, 1500, true), way(a, 900, false)}, want: map[hcn.GUID]int{a: 1440, gone: 1300}},
		{name: "all", known: []hcn.GUID{a, b}, found: []PathFound{way(a, 1500, true), way(b, 1500, true)}, want: map[hcn.GUID]int{gone: 1300}},
		{name: "away with blocks", known: []hcn.GUID{a, b, gone}, later: goneFor + time.Hour, want: map[hcn.GUID]int{gone: 1300}},
		{name: "gone for good", known: []hcn.GUID{a, b}, later: goneFor + time.Hour, want: map[hcn.GUID]int{}},
	} {
		known := map[hcn.GUID]bool{}
		for _, id := range tc.known {
			known[id] = true
		}
		c.keepPaths(known, tc.found, begin.Add(tc.later))
		got := map[hcn.GUID]int{}
		for id, p := range c.cfg.Paths {
			got[id] = p.Size
		}
		if fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if held := c.measured(New(Config{Host: Host{ID: a}}), []PathFound{way(a, 1350, true)}); held != 1350 || changes != 1 {
		t.Errorf("held to %d, %d changes", held, changes)
	}
}
