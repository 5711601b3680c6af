package vswitch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestRoom: tables that are full are made larger, under traffic: what the rules stop stays stopped, what they let pass passes, a
// connection goes on, and a daemon that starts again finds it all and writes nothing.
func TestRoom(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		l := newLab(t, mode)
		l.in(func() error {
			if err := l.a.Close(); err != nil {
				return err
			}
			return os.RemoveAll(DefaultBPFDir)
		})
		const room = 16
		l.room = room
		l.open()
		w := &wire{pair: newPairIn(l)}
		open, blocked := to(plan.Allow, unix.IPPROTO_UDP, 1000), to(plan.Block, unix.IPPROTO_UDP, 2000)
		w.rulesA(list(plan.Allow, open, blocked), nil)

		to := netip.AddrPortFrom(w.b.Addrs[0], 7)
		w.hostB.TCPEcho(to)
		conn, err := w.hostA.DialContext(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		leaks, passed := w.count(t, 2000), w.count(t, 1000)
		var sent, tried atomic.Int64
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() { w.pester(stop, 0, 2000, &tried) })
		wg.Go(func() { w.pester(stop, 0, 1000, &sent) })

		for _, n := range []int{100, 300} { // behind both: they decide nothing of this
			before := l.a.objs.BhRulesV1.MaxEntries()
			w.rulesA(list(plan.Allow, append([]plan.Rule{open, blocked}, filler(n)...)...), nil)
			if err := exchange(conn, 10_000); err != nil {
				t.Fatalf("with %d rules: %v", n, err)
			}
			if now := l.a.objs.BhRulesV1.MaxEntries(); now != growth*before {
				t.Errorf("with %d rules there is room for %d, before for %d", n, now, before)
			}
		}
		if rest := l.a.objs.BhRemotesV1.MaxEntries(); rest != room {
			t.Errorf("the table of remotes, of which there are none, has grown to %d", rest)
		}
		close(stop)
		wg.Wait()
		th.Eventually(t, 10*time.Second, func() error {
			if passed.Load() != sent.Load() {
				return fmt.Errorf("%d packets to the open port, %d passed", sent.Load(), passed.Load())
			}
			return nil
		})
		if n := leaks.Load(); n != 0 || tried.Load() == 0 {
			t.Errorf("%d of %d packets to the blocked port passed", n, tried.Load())
		}

		l.in(l.a.Close)
		l.open()
		if drift := l.sync(); len(drift) > 0 || l.a.Writes() != 0 {
			t.Errorf("the next start finds %v and writes %d times", drift, l.a.Writes())
		}
		if now := l.a.objs.BhRulesV1.MaxEntries(); now != growth*growth*room {
			t.Errorf("after a start there is room for %d", now)
		}
		if err := exchange(conn, 10_000); err != nil {
			t.Errorf("after a start: %v", err)
		}
	})
}

// TestCutWhileTablesGrow: a daemon that is killed when the larger table is there, and the ports have the old programs still. The next one
// moves them over before it writes anything, and the larger table has what the old one had.
func TestCutWhileTablesGrow(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		l := w.lab
		w.rulesA(list(plan.Allow, to(plan.Allow, unix.IPPROTO_UDP, 1000), to(plan.Block, unix.IPPROTO_UDP, 2000)), nil)
		l.in(func() error {
			l.a.policies.t.rules.full = true
			if grown, err := l.a.grow(); err != nil || !grown {
				return fmt.Errorf("grown: %t, %w", grown, err)
			}
			return l.a.Close()
		})
		l.open()
		l.in(func() error {
			cut, cancel := context.WithCancel(context.Background())
			cancel()
			if _, err := l.a.Sync(cut, l.plan); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("a sync that is cut: %w", err)
			}
			l.a.collecting.Wait() // what the cut sync took for garbage
			want, errs := l.a.wantAll(l.plan)
			if len(errs) > 0 {
				return errors.Join(errs...)
			}
			for id, s := range want.states {
				if ok, err := l.a.att.attached(l.a.spotsOf(s)); err != nil || !ok {
					t.Errorf("port %s runs this daemon's programs: %t, %v", id, ok, err)
				}
			}
			return nil
		})
		leaks, passed := w.count(t, 2000), w.count(t, 1000)
		for _, port := range []uint16{2000, 1000} {
			conn, err := w.hostA.DialContext(t.Context(), "udp", netip.AddrPortFrom(w.b.Addrs[0], port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for range 10 {
				if _, err := conn.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
		}
		th.Eventually(t, 10*time.Second, func() error {
			if n := passed.Load(); n != 10 {
				return fmt.Errorf("%d of 10 packets to the open port passed", n)
			}
			return nil
		})
		if n := leaks.Load(); n != 0 {
			t.Errorf("%d of 10 packets to the blocked port passed", n)
		}
	})
}

// count counts the datagrams that reach a port of b.
func (w *wire) count(t *testing.T, port uint16) *atomic.Int64 {
	t.Helper()
	n := new(atomic.Int64)
	conn, err := w.hostB.ListenPacket("udp", netip.AddrPortFrom(w.b.Addrs[0], port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		for {
			if _, _, err := conn.ReadFrom(make([]byte, 100)); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return n
}

// TestRoomForRemotes: the tables of other hosts grow when everything is compared, too, and those of load balancers.
func TestRoomForRemotes(t *testing.T) {
	l := newLab(t, AttachAuto)
	l.in(func() error {
		if err := l.a.Close(); err != nil {
			return err
		}
		return os.RemoveAll(DefaultBPFDir)
	})
	l.room = 4
	l.open()
	r := l.overlay()
	for i := range 40 {
		next := *r
		next.Endpoint = hcn.GUID(fmt.Sprintf("S%d", i))
		next.Addrs, next.VNIs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 9, byte(i)})}, r.VNIs[:1]
		l.plan.Remotes[next.Endpoint] = &next
	}
	l.sync()
	if n := l.a.objs.BhRemotesV1.MaxEntries(); n != 4*growth*growth {
		t.Errorf("for 40 endpoints there is room for %d", n)
	}
	for i := range 40 {
		var r bpfRemote
		k := addrKey(1, netip.AddrFrom4([4]byte{10, 1, 9, byte(i)}))
		l.in(func() error { return l.a.objs.BhRemotesV1.Lookup(&k, &r) })
	}
	if drift := l.sync(); len(drift) > 0 {
		t.Errorf("drift %v", drift)
	}
	l.backendsGrow(4)
}
