package nat

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// carLab is a compartment with a side-car, and a peer on its link:
//
//	app 10.77.1.2, fd77:1::2 ── eth0 ── peer 10.77.1.1, fd77:1::1
type carLab struct {
	t         *testing.T
	app, peer *testhost.Host
	path      string
	cars      *SideCars
	plan      *plan.Plan
}

const carUser = 1337

var carFamilies = []struct {
	name            string
	lo, app, peer   netip.Addr
	excepted, other netip.Addr
}{
	{"IPv4", addr("127.0.0.1"), addr("10.77.1.2"), addr("10.77.1.1"), addr("10.77.1.9"), addr("10.77.1.10")},
	{"IPv6", addr("::1"), addr("fd77:1::2"), addr("fd77:1::1"), addr("fd77:1::9"), addr("fd77:1::10")},
}

func newCarLab(t *testing.T) *carLab {
	t.Helper()
	testhost.RequireRoot(t)
	l := &carLab{t: t, app: testhost.New(t, testhost.WithName("app")), peer: testhost.New(t, testhost.WithName("peer"))}
	l.app.Up("lo")
	l.peer.Up("lo")
	l.peer.Connect(l.app, testhost.Cable{
		Dev: "bhp1", Addrs: []string{"10.77.1.1/24", "10.77.1.9/24", "10.77.1.10/24", "fd77:1::1/64", "fd77:1::9/64", "fd77:1::10/64"},
		PeerDev: "eth0", PeerAddrs: []string{"10.77.1.2/24", "fd77:1::2/64"},
	})
	l.path = l.app.NetnsPath()
	l.cars = l.applier()
	l.plan = &plan.Plan{Ports: map[plan.PortID]*plan.Port{}}
	return l
}

func (l *carLab) applier() *SideCars {
	return NewSideCars(func(path string) (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) }, nil)
}

// set changes the redirects by Update, as the engine does.
func (l *carLab) set(rs ...plan.Redirect) {
	l.t.Helper()
	old := l.plan.Ports["app"]
	is := &plan.Port{ID: "app", Kind: plan.PortContainer, VNIC: plan.VNIC{Namespace: l.path, Device: "eth0"}, Redirects: rs}
	l.plan.Ports["app"] = is
	if err := l.cars.Update(l.t.Context(), l.plan, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"app": {Old: old, New: is}}}); err != nil {
		l.t.Fatalf("update: %v", err)
	}
}

func (l *carLab) sync() []plan.Drift {
	l.t.Helper()
	drift, err := l.cars.Sync(l.t.Context(), l.plan)
	if err != nil {
		l.t.Fatalf("sync: %v", err)
	}
	return drift
}

// original asks the kernel where a redirected connection was to go.
func original(c net.Conn) (netip.AddrPort, error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var to netip.AddrPort
	var opt error
	local := netip.MustParseAddrPort(c.LocalAddr().String())
	err = raw.Control(func(fd uintptr) {
		const soOriginalDst = 80 // SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
		if local.Addr().Unmap().Is4() {
			var m *unix.IPv6Mreq // of the size of a sockaddr_in and more
			if m, opt = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); opt == nil {
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:]))
			}
			return
		}
		var m *unix.IPv6MTUInfo
		if m, opt = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst); opt == nil {
			to = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, m.Addr.Port)))
		}
	})
	if err == nil {
		err = opt
	}
	return to, err
}

// sideCar is a small proxy: it says where a connection was to go, connects to there as a user of its own, and copies.
func (l *carLab) sideCar(listen netip.AddrPort, forward bool) {
	l.t.Helper()
	ln, err := l.app.Listen("tcp", listen.String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go l.carry(c, forward)
		}
	}()
}

func (l *carLab) carry(c net.Conn, forward bool) {
	defer c.Close()
	to, err := original(c)
	fmt.Fprintf(c, "side-car for %s\n", to)
	if err != nil || !forward {
		return
	}
	up, err := l.dialAs(carUser, 0, to)
	if err != nil {
		fmt.Fprintf(c, "%v\n", err)
		return
	}
	defer up.Close()
	go func() { _, _ = io.Copy(up, c) }()
	_, _ = io.Copy(c, up)
}

// dialAs connects from the compartment as a user and group: the socket has those of the thread that makes it.
func (l *carLab) dialAs(uid, gid int, to netip.AddrPort) (c net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	l.app.Do(func() {
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
		c, err = new(net.Dialer).DialContext(ctx, "tcp", to.String())
	})
	return c, err
}

// first is the first line that a connection gives; a service behind says its name.
func first(c net.Conn, err error) string {
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// greet is a service that says who it is and to whom it speaks.
func greet(t *testing.T, h *testhost.Host, at netip.AddrPort) {
	t.Helper()
	l, err := h.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from := netip.MustParseAddrPort(c.RemoteAddr().String()).Addr()
			fmt.Fprintf(c, "%s:%d speaks to %s\n", h.Name(), at.Port(), from)
			c.Close()
		}
	}()
}

func (l *carLab) dial(to netip.AddrPort) string { return first(l.dialAs(0, 0, to)) }

func (l *carLab) dialIn(to netip.AddrPort) string {
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Second)
	defer cancel()
	return first(l.peer.DialContext(ctx, "tcp", to.String()))
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func outgoing(rs ...func(*plan.Redirect)) plan.Redirect {
	r := plan.Redirect{Outgoing: true, To: 15001, Protocols: []uint8{6}, User: &plan.User{ID: carUser}}
	for _, f := range rs {
		f(&r)
	}
	return r
}

func TestSideCar(t *testing.T) {
	l := newCarLab(t)
	for _, f := range carFamilies {
		l.sideCar(at(f.lo, 15001), true)
		l.sideCar(at(f.lo, 15002), false)
		l.sideCar(at(f.app, 15006), false)
		for _, a := range []netip.Addr{f.peer, f.excepted, f.other} {
			greet(t, l.peer, at(a, 80))
			greet(t, l.peer, at(a, 22))
		}
		greet(t, l.app, at(f.app, 8080))
		greet(t, l.app, at(f.app, 8081))
		greet(t, l.app, at(f.lo, 8080))
		l.peer.UDPEcho(at(f.peer, 53))
	}
	except := func(r *plan.Redirect) {
		r.ExceptPorts = []plan.PortRange{{First: 20, Last: 22}}
		for _, f := range carFamilies {
			r.ExceptRemote = append(r.ExceptRemote, netip.PrefixFrom(f.excepted, f.excepted.BitLen()))
		}
	}
	chosen := plan.Redirect{Outgoing: true, To: 15002, Protocols: []uint8{6}, RemotePorts: []plan.PortRange{{First: 80, Last: 80}}}
	for _, f := range carFamilies {
		chosen.Remote = append(chosen.Remote, netip.PrefixFrom(f.other, f.other.BitLen()))
	}
	incoming := plan.Redirect{To: 15006, Protocols: []uint8{6}, ExceptPorts: []plan.PortRange{{First: 8081, Last: 8081}}}
	l.set(chosen, outgoing(except), incoming)

	for _, f := range carFamilies {
		t.Run(f.name, func(t *testing.T) {
			for _, tc := range []struct{ what, got, want string }{
				{"an outgoing connection", l.dial(at(f.peer, 80)), "side-car for " + at(f.peer, 80).String()},
				{"the first redirect that selects it", l.dial(at(f.other, 80)), "side-car for " + at(f.other, 80).String()},
				{"an address that is excepted", l.dial(at(f.excepted, 80)), "peer:80 speaks to " + f.app.String()},
				{"a port that is excepted", l.dial(at(f.peer, 22)), "peer:22 speaks to " + f.app.String()},
				{"the side-car's own", first(l.dialAs(carUser, 0, at(f.peer, 80))), "peer:80 speaks to " + f.app.String()},
				{"the compartment's own address", l.dial(at(f.app, 8080)), "app:8080 speaks to " + f.app.String()},
				{"loopback", l.dial(at(f.lo, 8080)), "app:8080 speaks to " + f.lo.String()},
				{"an incoming connection", l.dialIn(at(f.app, 8080)), "side-car for " + at(f.app, 8080).String()},
				{"an incoming port that is excepted", l.dialIn(at(f.app, 8081)), "app:8081 speaks to "},
			} {
				if !strings.HasPrefix(tc.got, tc.want) {
					t.Errorf("%s: %q, want %q", tc.what, tc.got, tc.want)
				}
			}
			if got := l.carried(at(f.peer, 80)); got != "peer:80 speaks to "+f.app.String() {
				t.Errorf("through the side-car: %q", got)
			}
			if got, err := l.app.UDPAsk(at(f.peer, 53), "x"); err != nil || !strings.HasSuffix(got, " x") {
				t.Errorf("a datagram: %q, %v", got, err)
			}
		})
	}
	t.Run("a group", func(t *testing.T) {
		l.set(outgoing(func(r *plan.Redirect) { r.User = &plan.User{ID: 99, Group: true} }))
		to := at(carFamilies[0].peer, 80)
		for gid, want := range map[int]string{99: "peer:80", carUser: "side-car"} {
			if got := first(l.dialAs(carUser, gid, to)); !strings.HasPrefix(got, want) {
				t.Errorf("group %d: %q, want %s", gid, got, want)
			}
		}
	})
	t.Run("gone", func(t *testing.T) {
		l.set()
		for _, f := range carFamilies {
			if got := l.dial(at(f.peer, 80)); got != "peer:80 speaks to "+f.app.String() {
				t.Errorf("without redirects: %q", got)
			}
		}
		if left := l.app.Run(t, "nft", "list", "ruleset"); left != "" {
			t.Errorf("left in the compartment:\n%s", left)
		}
	})
}

// carried is the second line of a connection that the side-car took: what came through it.
func (l *carLab) carried(to netip.AddrPort) string {
	c, err := l.dialAs(0, 0, to)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	all, err := io.ReadAll(c)
	lines := strings.Split(strings.TrimSpace(string(all)), "\n")
	if err != nil || len(lines) != 2 {
		return fmt.Sprintf("%q, %v", all, err)
	}
	return lines[1]
}

// TestSideCarTable is what every applier has to hold: an empty compartment, twice, broken by somebody, others' objects.
func TestSideCarTable(t *testing.T) {
	l := newCarLab(t)
	l.app.Run(t, "nft", "add table inet other; add chain inet other c { type filter hook input priority 0; }; add table inet bulkhead")
	foreign := func() string {
		return l.app.Run(t, "nft", "list", "table", "inet", "other") + l.app.Run(t, "nft", "list", "table", "inet", "bulkhead")
	}
	others := foreign()
	r := outgoing(func(r *plan.Redirect) {
		r.Remote = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/16")}
		r.RemotePorts = []plan.PortRange{{First: 1, Last: 1024}, {First: 65000, Last: 65535}}
	})
	l.plan.Ports["app"] = &plan.Port{ID: "app", VNIC: plan.VNIC{Namespace: l.path, Device: "eth0"}, Redirects: []plan.Redirect{r}}
	if drift := l.sync(); len(drift) != 0 {
		t.Errorf("drift in an empty compartment: %v", drift)
	}
	text := l.app.Run(t, "nft", "list", "table", "inet", SideCarTable)
	for _, want := range []string{`oifname "eth0"`, "skuid 1337 return", "10.77.0.0/16", "fd77::/16", "65000-65535", "redirect to :15001"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, cars := range []*SideCars{l.cars, l.applier()} { // the second is a restarted daemon
		before := cars.writes
		if drift, err := cars.Sync(t.Context(), l.plan); err != nil || len(drift) != 0 || cars.writes != before {
			t.Errorf("a sync of what is there: drift %v, %d writes, error %v", drift, cars.writes-before, err)
		}
	}
	for _, broken := range []struct{ name, nft, found string }{
		{"flushed", "flush ruleset", "missing"},
		{"rules flushed", "flush chain inet bulkhead_sidecar output", "changed"},
		{"rule added", "insert rule inet bulkhead_sidecar output accept", "changed"},
		{"element taken", "delete element inet bulkhead_sidecar s0 { 1-1024 }", "changed"},
		{"element added", "add element inet bulkhead_sidecar s1 { 192.0.2.0/24 }", "changed"},
	} {
		l.app.Run(t, "nft", broken.nft)
		if l.cars.intact() {
			t.Errorf("%s: nothing is noticed", broken.name)
		}
		drift := l.sync()
		if len(drift) != 1 || drift[0].Found != broken.found || drift[0].ID != "app" {
			t.Errorf("%s: drift %v, want one %q", broken.name, drift, broken.found)
		}
		if now := l.app.Run(t, "nft", "list", "table", "inet", SideCarTable); stripSeal(now) != stripSeal(text) {
			t.Errorf("%s: repaired to\n%s\nwant\n%s", broken.name, now, text)
		}
	}
	l.app.Run(t, "nft", "add table inet other; add chain inet other c { type filter hook input priority 0; }; add table inet bulkhead")
	l.plan.Ports["app"].Redirects = nil
	cars := l.applier() // finds what an earlier daemon left
	l.plan.Namespaces = nil
	if _, err := l.cars.Sync(t.Context(), l.plan); err != nil {
		t.Fatal(err)
	}
	if drift, err := cars.Sync(t.Context(), l.plan); err != nil || len(drift) != 0 {
		t.Errorf("drift %v, error %v", drift, err)
	}
	if now := foreign(); now != others {
		t.Errorf("others' objects became\n%s\nwant\n%s", now, others)
	}
	if tables := strings.Fields(l.app.Run(t, "nft", "list", "tables")); slices.Contains(tables, SideCarTable) {
		t.Errorf("left: %v", tables)
	}
}

func stripSeal(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		if !strings.Contains(line, "comment") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func TestSideCarWatch(t *testing.T) {
	l := newCarLab(t)
	l.sync()
	l.set(outgoing())
	woken, ready := make(chan string, 16), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	host, err := unix.Open(l.peer.NetnsPath(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(host)
	go func() { done <- l.cars.Watch(ctx, host, func(s string) { woken <- s }, ready) }()
	<-ready
	for _, nft := range []string{"delete table inet bulkhead_sidecar", "flush chain inet bulkhead_sidecar output"} {
		l.app.Run(t, "nft", nft)
		select {
		case <-woken:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: nobody is woken", nft)
		}
		l.sync()
		for len(woken) > 0 {
			<-woken
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
