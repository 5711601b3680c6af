package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func reservations(t *testing.T) (*testhost.Host, *Reservations) {
	t.Helper()
	testhost.RequireRoot(t)
	h := testhost.New(t)
	h.Up("lo")
	a, err := New(Config{Netns: h.NetnsPath()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return h, a.Reservations()
}

// bind tries to take a port as a server does: with SO_REUSEADDR, which Go sets on TCP listeners.
func bind(t *testing.T, h *testhost.Host, proto uint8, at string) error {
	t.Helper()
	family := "4"
	if strings.HasPrefix(at, "[") {
		family = "6"
	}
	if proto == unix.IPPROTO_TCP {
		l, err := h.Listen("tcp"+family, at)
		if err == nil {
			l.Close()
		}
		return err
	}
	c, err := h.ListenPacket("udp"+family, at)
	if err == nil {
		c.Close()
	}
	return err
}

func TestReserve(t *testing.T) {
	h, r := reservations(t)
	to4, to6 := addr("10.77.1.2"), addr("fd77:1::2")
	for _, proto := range []uint8{6, 17} {
		for _, c := range []struct {
			name  string
			f     plan.Forward
			taken []string
			free  []string
		}{
			{"IPv4 loopback", forward(proto, "127.0.0.1", 8080, to4, 80), []string{"127.0.0.1:8080", "0.0.0.0:8080"}, []string{"127.0.0.2:8080", "[::1]:8080", "127.0.0.1:8081"}},
			{"IPv6 loopback", forward(proto, "::1", 8080, to6, 80), []string{"[::1]:8080"}, []string{"127.0.0.1:8080"}},
			{"IPv4 all", forward(proto, "all", 8080, to4, 80), []string{"127.0.0.1:8080", "0.0.0.0:8080"}, []string{"[::1]:8080"}},
			{"IPv6 all", forward(proto, "all", 8080, to6, 80), []string{"[::1]:8080"}, []string{"0.0.0.0:8080"}},
		} {
			t.Run(protoName(proto)+" "+c.name, func(t *testing.T) {
				for range 2 { // again for the same owner is success
					if err := r.Reserve(c.f, "web"); err != nil {
						t.Fatal(err)
					}
				}
				for _, at := range c.taken {
					if err := bind(t, h, proto, at); !errors.Is(err, syscall.EADDRINUSE) {
						t.Errorf("a process binds %s: %v", at, err)
					}
				}
				for _, at := range c.free {
					if err := bind(t, h, proto, at); err != nil {
						t.Errorf("a process cannot bind %s: %v", at, err)
					}
				}
				conflict, ok := errors.AsType[*PortConflict](r.Reserve(c.f, "db"))
				if !ok || conflict.Owner != "web" {
					t.Errorf("second owner: %v", conflict)
				}
				if owner, ok := r.Holder(c.f); !ok || owner != "web" {
					t.Errorf("holder %q, %v", owner, ok)
				}
				r.Release(c.f, "db") // is not the holder
				if err := bind(t, h, proto, c.taken[0]); err == nil {
					t.Error("released by somebody who does not hold it")
				}
				r.Release(c.f, "web")
				if err := bind(t, h, proto, c.taken[0]); err != nil {
					t.Errorf("after release: %v", err)
				}
			})
		}
	}
}

func TestReserveConflicts(t *testing.T) {
	h, r := reservations(t)
	to := addr("10.77.1.2")
	t.Run("process", func(t *testing.T) {
		for _, proto := range []uint8{6, 17} {
			at := "127.0.0.1:8080"
			if proto == 6 {
				l, err := h.Listen("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			} else {
				c, err := h.ListenPacket("udp", at)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			for _, bind := range []string{"127.0.0.1", "all"} {
				c, ok := errors.AsType[*PortConflict](r.Reserve(forward(proto, bind, 8080, to, 80), "web"))
				if want := fmt.Sprintf("(pid %d)", os.Getpid()); !ok || !strings.Contains(c.Process, want) {
					t.Errorf("%s %s: %v, want process %s", protoName(proto), bind, c, want)
				}
			}
		}
	})
	t.Run("dual-stack process", func(t *testing.T) {
		l, err := h.Listen("tcp", "[::]:8085")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, ok := errors.AsType[*PortConflict](r.Reserve(forward(6, "127.0.0.1", 8085, to, 80), "web"))
		if !ok || !strings.Contains(c.Process, fmt.Sprint(os.Getpid())) {
			t.Errorf("got %v", c)
		}
	})
	t.Run("overlap of our own", func(t *testing.T) {
		if err := r.Reserve(forward(6, "127.0.0.1", 8090, to, 80), "web"); err != nil {
			t.Fatal(err)
		}
		c, ok := errors.AsType[*PortConflict](r.Reserve(forward(6, "all", 8090, to, 80), "db"))
		if !ok || c.Owner != "web" {
			t.Errorf("got %v", c)
		}
	})
	t.Run("wider and narrower for one owner", func(t *testing.T) {
		narrow, wide := forward(6, "127.0.0.1", 8091, to, 80), forward(6, "lan", 8091, to, 80)
		for _, order := range [][]plan.Forward{{narrow, wide}, {wide, narrow}} {
			for _, f := range order {
				if err := r.Reserve(f, "web"); err != nil {
					t.Fatal(err)
				}
			}
			r.Release(wide, "web")
			if err := bind(t, h, 6, "127.0.0.1:8091"); err == nil {
				t.Error("the narrower one is free after the wider was released")
			}
			if err := bind(t, h, 6, "127.0.0.2:8091"); err != nil {
				t.Errorf("the wider one is taken after its release: %v", err)
			}
			r.Release(narrow, "web")
			if err := bind(t, h, 6, "0.0.0.0:8091"); err != nil {
				t.Errorf("after both were released: %v", err)
			}
		}
	})
	t.Run("no such address", func(t *testing.T) {
		err := r.Reserve(forward(6, "198.51.100.7", 8080, to, 80), "web")
		if !errors.Is(err, plan.ErrNoHostAddress) || !strings.Contains(err.Error(), "does not have 198.51.100.7") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("link-local", func(t *testing.T) {
		if err := r.Reserve(forward(6, "fe80::1", 8080, addr("fd77:1::2"), 80), "web"); !errors.Is(err, plan.ErrNoHostAddress) {
			t.Errorf("got %v", err)
		}
	})
}

// TestReserveTimeWait takes a port whose last server has just gone.
// TestReserveForARuntime: a port that its owner's runtime is to hold is seen to be free, and is the owner's without a socket.
func TestReserveForARuntime(t *testing.T) {
	h, r := reservations(t)
	to := addr("10.77.1.2")
	for _, proto := range []uint8{6, 17} {
		f := forward(proto, "127.0.0.1", 8090, to, 80)
		f.Held = true
		if err := r.Reserve(f, "web"); err != nil {
			t.Fatal(err)
		}
		if err := bind(t, h, proto, "127.0.0.1:8090"); err != nil {
			t.Errorf("%s: its runtime is kept from it: %v", protoName(proto), err)
		}
		for _, other := range []string{"127.0.0.1", "all"} {
			err := r.Reserve(forward(proto, other, 8090, to, 80), "rival")
			if c, ok := errors.AsType[*PortConflict](err); other == "127.0.0.1" && (!ok || c.Owner != "web") {
				t.Errorf("%s: a rival on %s: %v", protoName(proto), other, err)
			}
			r.Release(forward(proto, other, 8090, to, 80), "rival")
		}
		r.Release(f, "web")
	}
	l, err := h.Listen("tcp", "127.0.0.1:8091")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := forward(6, "127.0.0.1", 8091, to, 80)
	f.Held = true
	if c, ok := errors.AsType[*PortConflict](r.Reserve(f, "web")); !ok || c.Process == "" {
		t.Errorf("a port that a process has was reserved: %v", c)
	}
	if err := r.Retake(f, "web"); err != nil { // after a restart the process is the runtime
		t.Error(err)
	}
	if who, _ := r.Holder(f); who != "web" {
		t.Errorf("held by %q", who)
	}
}

func TestReserveTimeWait(t *testing.T) {
	h, r := reservations(t)
	l, err := h.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.DialContext(t.Context(), "tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served.Close() // first to close: the server's side waits
	c.Close()
	l.Close()
	if !strings.Contains(h.Run(t, "cat", "/proc/net/tcp"), " 06 ") {
		t.Skip("no connection in TIME_WAIT")
	}
	if err := r.Reserve(forward(6, "127.0.0.1", 8080, addr("10.77.1.2"), 80), "web"); err != nil {
		t.Errorf("reserve: %v", err)
	}
}

// TestReservedIsSilent checks that the socket which holds a port takes nothing.
func TestReservedIsSilent(t *testing.T) {
	h, r := reservations(t)
	if err := r.Reserve(forward(6, "127.0.0.1", 8080, addr("10.77.1.2"), 80), "web"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300_000_000)
	defer cancel()
	var timeout net.Error
	if c, err := h.DialContext(ctx, "tcp", "127.0.0.1:8080"); err == nil {
		c.Close()
		t.Error("connected to a reservation")
	} else if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
}

func TestHostPick(t *testing.T) {
	h, r := reservations(t)
	fs := []plan.Forward{forward(6, "all", 0, addr("10.77.1.2"), 80), forward(17, "127.0.0.1", 0, addr("10.77.1.2"), 80), forward(6, "all", 0, addr("fd77:1::2"), 80)}
	h.Sysctl("net.ipv4.ip_local_port_range", "32768 60999")
	l, err := h.Listen("tcp", "[::1]:61000") // the third forward does not get the first candidate
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := map[uint16]bool{}
	for range 5 {
		p, err := r.HostPick("web", fs...)
		if err != nil {
			t.Fatal(err)
		}
		if p <= 61000 || seen[p] {
			t.Errorf("picked %d", p)
		}
		seen[p] = true
		for _, f := range fs {
			f.Port = p
			if owner, ok := r.Holder(f); !ok || owner != "web" {
				t.Errorf("%s is not held", Describe(f))
			}
		}
	}
	if err := bind(t, h, 17, "127.0.0.1:61000"); err != nil {
		t.Errorf("a candidate that failed is kept: %v", err)
	}
	h.Sysctl("net.ipv4.ip_local_port_range", "1024 65535")
	if p, err := r.HostPick("web", fs...); err != nil || p < 49153 {
		t.Errorf("picked %d, %v", p, err)
	}
}

// TestReservationsFollowPlan: made at create, kept while no plan has them, gone with the plan.
func TestReservationsFollowPlan(t *testing.T) {
	tp := newTopology(t)
	f := forward(6, "all", 8080, addr("10.77.1.2"), 80)
	early := forward(6, "all", 8099, addr("10.77.1.3"), 80)
	if err := tp.a.Reservations().Reserve(early, "web2"); err != nil {
		t.Fatal(err)
	}
	tp.sync()
	tp.publish("web", f)
	tp.sync()
	for _, f := range []plan.Forward{f, early} {
		if _, ok := tp.a.Reservations().Holder(f); !ok {
			t.Errorf("%s is not held", Describe(f))
		}
	}
	tp.publish("web", forward(6, "127.0.0.1", 8080, addr("10.77.1.2"), 80))
	if err := bind(t, tp.host, 6, "192.0.2.1:8080"); err != nil {
		t.Errorf("after the port was narrowed: %v", err)
	}
	l, err := tp.host.Listen("tcp", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = tp.tryPublish("web2", forward(6, "all", 8080, addr("10.77.1.3"), 80))
	if o, ok := errors.AsType[*plan.ObjectError](err); !ok || o.ID != "web2" || o.Kind != "port" {
		t.Errorf("taken port: %v", err)
	}
	if strings.Contains(tp.nft("list", "table", "inet", TableName), "10.77.1.3 . 80") {
		t.Error("a port that could not be reserved is published all the same")
	}
	tp.plan.Ports["web2"].Forwards = nil

	// A daemon that finds its port taken when it comes back reports that and goes on.
	tp.a.Close()
	other, err := tp.host.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tp.a = tp.applier()
	drift := tp.sync()
	if len(drift) != 1 || !strings.Contains(drift[0].Object, "127.0.0.1:8080") || !strings.Contains(drift[0].Found, "in use by process") {
		t.Errorf("drift %+v", drift)
	}
	if !strings.Contains(tp.nft("list", "table", "inet", TableName), "127.0.0.1 . tcp . 8080 : 10.77.1.2 . 80") {
		t.Error("the forward is gone")
	}
}

// TestReleaseOvertakesPlan gives a port back while a pass is under way with a plan in which its owner still has it: the
// next one may have it at once, and keeps it.
func TestReleaseOvertakesPlan(t *testing.T) {
	h, r := reservations(t)
	f := forward(6, "all", 8080, addr("10.77.1.2"), 80)
	old := &plan.Port{ID: "old", Name: "old", Forwards: []plan.Forward{f}}
	next := &plan.Port{ID: "next", Name: "next", Forwards: []plan.Forward{f}}
	before := &plan.Plan{Ports: map[plan.PortID]*plan.Port{"old": old}}
	follow := func(p *plan.Plan) {
		t.Helper()
		if drift := r.follow(p); len(drift) > 0 {
			t.Errorf("drift: %v", drift)
		}
	}
	follow(before)
	r.Release(f, Owner(old))
	follow(before)
	if owner, ok := r.Holder(f); ok {
		t.Errorf("the port was given back, and %s has it again", owner)
	}
	if err := r.Reserve(f, Owner(next)); err != nil {
		t.Fatalf("take a port that was given back: %v", err)
	}
	follow(before)
	r.releaseGone(&plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"old": {Old: old}}})
	if owner, _ := r.Holder(f); owner != Owner(next) {
		t.Errorf("%q has the port, not the one who took it", owner)
	}
	if bind(t, h, 6, "0.0.0.0:8080") == nil {
		t.Error("a process can bind the port")
	}
	// The old one may take it again when it is free.
	r.Release(f, Owner(next))
	if err := r.Reserve(f, Owner(old)); err != nil {
		t.Fatal(err)
	}
	follow(before)
	if owner, _ := r.Holder(f); owner != Owner(old) {
		t.Errorf("%q has the port", owner)
	}
}
