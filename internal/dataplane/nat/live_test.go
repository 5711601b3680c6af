package nat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// answered and silent say what a TCP request must come to.
func answered(t *testing.T, from *testhost.Host, to netip.Addr, port uint16, want string) {
	t.Helper()
	if got, err := from.HTTPGet(url(to, port)); err != nil || !strings.Contains(got, want) {
		t.Errorf("%s to %s port %d: %q, %v; want %q", from.Name(), to, port, got, err, want)
	}
}

func askUDP(t *testing.T, from *testhost.Host, to netip.Addr, port uint16, want string) {
	t.Helper()
	if got, err := from.UDPAsk(netip.AddrPortFrom(to, port), "hi"); err != nil || !strings.Contains(got, want) {
		t.Errorf("%s to %s UDP port %d: %q, %v; want %q", from.Name(), to, port, got, err, want)
	}
}

func silent(t *testing.T, from *testhost.Host, to netip.Addr, port uint16) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	if c, err := from.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String()); err == nil {
		c.Close()
		t.Errorf("%s reached %s port %d", from.Name(), to, port)
	}
}

// counts checks that a drop counter grows while fn runs.
func (tp *topology) counts(t *testing.T, reason string, fn func()) {
	t.Helper()
	before := tp.dropped(reason)
	fn()
	if tp.dropped(reason) == before {
		t.Errorf("nothing was counted as %s", reason)
	}
}

func TestTraffic(t *testing.T) {
	tp := newTopology(t)
	for _, f := range families {
		tp.serve(tp.web, f.web)
		tp.serve(tp.far, f.far)
		tp.serve(tp.shut, f.shut)
		tp.serve(tp.inet, f.inet)
		tp.host.ListenHTTP(netip.AddrPortFrom(f.gateway, 90), nil)
		for _, proto := range []uint8{6, 17} {
			tp.plan.Ports["web"].Forwards = append(tp.plan.Ports["web"].Forwards,
				forward(proto, f.lo.String(), 8080, f.web, 80), forward(proto, "lan", 8081, f.web, 80),
				forward(proto, "all", 8082, f.web, 80), forward(proto, f.host.String(), 8083, f.web, 80))
			tp.plan.Ports["shut"].Forwards = append(tp.plan.Ports["shut"].Forwards, forward(proto, "all", 8089, f.shut, 80))
		}
	}
	tp.sync()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Run("loopback", func(t *testing.T) {
				for _, port := range []uint16{8080, 8082} {
					answered(t, tp.host, f.lo, port, "web sees "+hostPort(f.gateway))
					askUDP(t, tp.host, f.lo, port, hostPort(f.gateway))
				}
				silent(t, tp.host, f.lo, 8081)
				silent(t, tp.host, f.lo, 8083)
				silent(t, tp.lan, f.host, 8080)
				silent(t, tp.web2, f.gateway, 8080)
			})
			t.Run("LAN keeps the client's address", func(t *testing.T) {
				for _, port := range []uint16{8081, 8082, 8083} {
					answered(t, tp.lan, f.host, port, "web sees "+hostPort(f.lan))
					askUDP(t, tp.lan, f.host, port, hostPort(f.lan))
				}
			})
			t.Run("host to its own address", func(t *testing.T) {
				for _, port := range []uint16{8081, 8082, 8083} {
					answered(t, tp.host, f.host, port, "web sees ")
					askUDP(t, tp.host, f.host, port, "hi")
				}
				answered(t, tp.host, f.web, 80, "web sees "+hostPort(f.gateway))
			})
			t.Run("hairpin", func(t *testing.T) {
				for _, from := range []*testhost.Host{tp.web, tp.web2} {
					answered(t, from, f.host, 8081, "web sees "+hostPort(f.gateway))
					askUDP(t, from, f.host, 8081, hostPort(f.gateway))
					answered(t, from, f.gateway, 8082, "web sees "+hostPort(f.gateway))
				}
				answered(t, tp.far, f.host, 8081, "web sees "+hostPort(f.far))
				askUDP(t, tp.far, f.host, 8081, hostPort(f.far))
			})
			t.Run("out", func(t *testing.T) {
				answered(t, tp.web, f.inet, 80, "inet sees "+hostPort(f.host))
				askUDP(t, tp.web, f.inet, 80, hostPort(f.host))
				if err := tp.web.Ping(f.inet); err != nil {
					t.Errorf("ping through NAT: %v", err)
				}
			})
			t.Run("gateway's services", func(t *testing.T) {
				answered(t, tp.web, f.gateway, 90, "host sees "+hostPort(f.web))
			})
			t.Run("isolation", func(t *testing.T) {
				tp.counts(t, DropIsolation, func() { silent(t, tp.web, f.far, 80) })
				tp.counts(t, DropDirect, func() { silent(t, tp.lan, f.web, 80) })
				tp.counts(t, DropDirect, func() { silent(t, tp.lan, f.gateway, 90) })
				tp.counts(t, DropDirect, func() { silent(t, tp.lan, f.shut, 80) })
				tp.counts(t, DropInternal, func() { silent(t, tp.shut, f.inet, 80) })
				tp.counts(t, DropInternal, func() { silent(t, tp.shut, f.web, 80) })
				tp.counts(t, DropInternal, func() { silent(t, tp.web, f.shut, 80) })
				tp.counts(t, DropInternal, func() { silent(t, tp.shut, f.host, 8081) })
				tp.counts(t, DropInternal, func() { silent(t, tp.lan, f.host, 8089) })
			})
		})
	}
	t.Run("a foreign drop is obeyed", func(t *testing.T) {
		tp.nft("add", "table", "inet", "fw")
		tp.nft("add", "chain", "inet", "fw", "refuse", "{ type filter hook forward priority 10 ; policy drop ; }")
		for _, f := range families {
			silent(t, tp.lan, f.host, 8081)
			silent(t, tp.web, f.inet, 80)
		}
		tp.nft("delete", "table", "inet", "fw")
	})
}

// hostPort is an address as a server prints it before the port.
// TestLinkLocalIsRefused: a published port does not hang at the host's link-local addresses, from another host, from a
// container, from the host itself.
func TestLinkLocalIsRefused(t *testing.T) {
	tp := newTopology(t)
	f := families[1]
	tp.serve(tp.web, f.web)
	for _, proto := range []uint8{6, 17} {
		tp.plan.Ports["web"].Forwards = append(tp.plan.Ports["web"].Forwards,
			forward(proto, "lan", 8081, f.web, 80), forward(proto, "all", 8082, f.web, 80))
	}
	tp.sync()
	script := `ip -6 -o addr show scope link | awk '{ sub("/.*", "", $4); sub(":", "", $1); print $2, $1, $4 }'`
	// The zone is an index: its name is looked up where the test lives.
	local := func(h *testhost.Host) (zone, address string) {
		t.Helper()
		for line := range strings.Lines(h.Run(t, "sh", "-c", script)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "eth0" {
				return f[1], f[2]
			}
		}
		t.Fatalf("%s has no link-local address on eth0", h.Name())
		return "", ""
	}
	own, ownAddress := local(tp.host)
	lanDevice, _ := local(tp.lan)
	for from, to := range map[*testhost.Host]string{tp.lan: ownAddress + "%" + lanDevice, tp.host: ownAddress + "%" + own} {
		for _, port := range []string{"8081", "8082"} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			c, err := from.DialContext(ctx, "tcp", net.JoinHostPort(to, port))
			if c != nil {
				c.Close()
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s to %s port %s: %v, want a refusal", from.Name(), to, port, err)
			}
			cancel()
		}
	}
	answered(t, tp.lan, f.host, 8081, "web sees "+hostPort(f.lan)) // its other addresses serve
}

func hostPort(a netip.Addr) string {
	s := netip.AddrPortFrom(a, 1).String()
	return strings.TrimSuffix(s, "1")
}

// TestFrames sends from a neighbour what no neighbour should: frames to the host's MAC for loopback, container and
// gateway addresses, and from them.
func TestFrames(t *testing.T) {
	tp := newTopology(t)
	for _, f := range families {
		tp.plan.Ports["web"].Forwards = append(tp.plan.Ports["web"].Forwards,
			forward(17, f.lo.String(), 8080, f.web, 80), forward(17, "all", 8082, f.web, 80))
	}
	tp.sync()
	// An administrator or another tool may have turned this on everywhere; it must not open ours.
	tp.host.Sysctl("net.ipv4.conf.all.route_localnet", "1")
	tp.host.Sysctl("net.ipv4.conf.all.rp_filter", "0")
	tp.host.Sysctl("net.ipv4.conf.eth0.rp_filter", "0")
	for _, f := range families {
		got := make(chan string, 100)
		sink := func(h *testhost.Host, at netip.Addr, port uint16) {
			c, err := h.ListenPacket("udp", netip.AddrPortFrom(at, port).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 2000)
				for {
					n, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					got <- fmt.Sprintf("%s %s from %s: %s", h.Name(), c.LocalAddr(), from, buf[:n])
				}
			}()
		}
		sink(tp.web, f.web, 80)
		sink(tp.host, f.gateway, 90)
		for _, fr := range []struct {
			name     string
			src, dst netip.Addr
			port     uint16
			arrives  bool
		}{
			{"control: published", f.lan, f.host, 8082, true},
			{"to loopback publish", f.lan, f.lo, 8080, false},
			{"to loopback, published to all", f.lan, f.lo, 8082, false},
			{"to the container", f.lan, f.web, 80, false},
			{"to the gateway's service", f.lan, f.gateway, 90, false},
			{"to the gateway, published to all", f.lan, f.gateway, 8082, false},
			{"from loopback", f.lo, f.host, 8082, false},
			{"from loopback to loopback", f.lo, f.lo, 8080, false},
			{"from a container", f.web2, f.host, 8082, false},
			{"from the gateway", f.gateway, f.host, 8082, false},
		} {
			t.Run(f.name+"/"+fr.name, func(t *testing.T) {
				sendFrame(t, tp.lan, "eth0", tp.host.MAC("eth0"), udpFrame(tp.lan.MAC("eth0"), tp.host.MAC("eth0"),
					netip.AddrPortFrom(fr.src, 4444), netip.AddrPortFrom(fr.dst, fr.port), fr.name))
				expectDelivery(t, got, fr.name, fr.arrives)
			})
		}
		// A container is no better a neighbour.
		for _, dst := range []netip.Addr{f.lo, f.far} {
			t.Run(f.name+"/from web to "+dst.String(), func(t *testing.T) {
				for _, src := range []netip.Addr{f.web, f.lo} {
					sendFrame(t, tp.web, "eth0", tp.host.MAC("bhha"), udpFrame(tp.web.MAC("eth0"), tp.host.MAC("bhha"),
						netip.AddrPortFrom(src, 4444), netip.AddrPortFrom(dst, 8080), "evil"))
				}
				expectDelivery(t, got, "evil", false)
			})
		}
	}
}

func expectDelivery(t *testing.T, got <-chan string, what string, want bool) {
	t.Helper()
	wait := 150 * time.Millisecond
	if want {
		wait = 3 * time.Second
	}
	select {
	case g := <-got:
		if !want {
			t.Errorf("%s: delivered to %s", what, g)
		}
	case <-time.After(wait):
		if want {
			t.Errorf("%s: not delivered", what)
		}
	}
}

// TestStreams keeps connections over what must not cut them, and cuts what must be cut.
func TestStreams(t *testing.T) {
	tp := newTopology(t)
	var echo []plan.Forward
	for _, f := range families {
		tp.web.TCPEcho(netip.AddrPortFrom(f.web, 7))
		tp.inet.TCPEcho(netip.AddrPortFrom(f.inet, 7))
		echo = append(echo, forward(6, "all", 7000, f.web, 7))
	}
	tp.plan.Ports["web"].Forwards = echo
	tp.sync()
	published, outbound := []*stream{}, []*stream{}
	for _, f := range families {
		published = append(published, newStream(t, tp.lan, f.host, 7000), newStream(t, tp.host, f.lo, 7000), newStream(t, tp.web2, f.host, 7000))
		outbound = append(outbound, newStream(t, tp.web, f.inet, 7))
	}
	all := append(outbound, published...)
	works := func(when string) {
		t.Helper()
		for _, s := range all {
			if err := s.ask(); err != nil {
				t.Errorf("%s: %s: %v", when, s.name, err)
			}
		}
	}
	works("at first")
	tp.a.Close()
	works("without the daemon")
	tp.a = tp.applier()
	tp.sync()
	works("after a restart")

	woken := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tp.a.Watch(ctx, func(cause string) { woken <- cause }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	}()
	testhost.Eventually(t, 5*time.Second, func() error { // until the watch listens
		tp.nft("add", "table", "inet", "probe")
		tp.nft("delete", "table", "inet", "probe")
		select {
		case <-woken:
			return nil
		case <-time.After(100 * time.Millisecond):
			return fmt.Errorf("not woken")
		}
	})
	drain(woken)
	tp.publish("web2", forward(6, "all", 7999, addr("10.77.1.3"), 7))
	tp.publish("web2")
	select {
	case cause := <-woken:
		t.Errorf("woken by our own commit: %s", cause)
	case <-time.After(300 * time.Millisecond):
	}
	start := time.Now()
	tp.nft("flush", "ruleset")
	select {
	case cause := <-woken:
		if !strings.Contains(cause, "changed by nft") {
			t.Errorf("cause %q", cause)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a flush was not noticed")
	}
	drift := tp.sync()
	if len(drift) != 1 || !strings.HasPrefix(drift[0].By, "nft (pid ") {
		t.Errorf("whose doing it was: %+v", drift)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the repair took %v", took)
	} else {
		t.Logf("flush noticed and repaired in %v, with the nft process that flushed", took)
	}
	if len(drift) != 1 || drift[0].Object != "table inet bulkhead" || drift[0].Found != "missing" {
		t.Errorf("drift %+v", drift)
	}
	works("after a flush of the ruleset")

	tp.publish("web")
	for _, s := range published {
		if err := s.ask(); err == nil {
			t.Errorf("%s goes on although its port is not published any more", s.name)
		}
	}
	all = outbound
	works("after the port was unpublished")
}

func drain(c <-chan string) {
	for {
		select {
		case <-c:
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}

// stream is a TCP connection to an echo.
type stream struct {
	name string
	c    net.Conn
	r    *bufio.Reader
}

func newStream(t *testing.T, from *testhost.Host, to netip.Addr, port uint16) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &stream{from.Name() + " to " + c.RemoteAddr().String(), c, bufio.NewReader(c)}
}

func (s *stream) ask() error {
	if err := s.c.SetDeadline(time.Now().Add(1500 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := io.WriteString(s.c, "ping\n"); err != nil {
		return err
	}
	_, err := s.r.ReadString('\n')
	return err
}

// TestSteadyUDP moves a port under a sender that never pauses and never changes its own port: its conntrack entry
// lives for as long as it sends, and would keep the old way.
func TestSteadyUDP(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	for _, f := range families {
		tp.web.UDPEcho(netip.AddrPortFrom(f.web, 80))
		tp.web2.UDPEcho(netip.AddrPortFrom(f.web2, 80))
	}
	for _, f := range families {
		for _, bind := range []string{"all", "lan", f.host.String()} {
			t.Run(f.name+"/"+bind, func(t *testing.T) {
				c, err := tp.lan.DialContext(t.Context(), "udp", netip.AddrPortFrom(f.host, 9000).String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				// Whether web or web2 answers shows in what conntrack says, since both echo the same.
				leads := func(to netip.Addr) {
					t.Helper()
					testhost.Eventually(t, 3*time.Second, func() error {
						if err := c.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
							return err
						}
						_, _ = c.Write([]byte("x")) // refused while nobody answers, which the read tells
						buf := make([]byte, 100)
						_, err := c.Read(buf)
						if to.IsValid() != (err == nil) {
							return fmt.Errorf("answered: %t, want %t", err == nil, to.IsValid())
						}
						if to.IsValid() && !strings.Contains(tp.conntrack(f.host), "src="+to.String()+" ") {
							return fmt.Errorf("not to %s: %s", to, tp.conntrack(f.host))
						}
						return nil
					})
				}
				leads(netip.Addr{})
				tp.publish("web", forward(17, bind, 9000, f.web, 80))
				leads(f.web)
				tp.publish("web")
				leads(netip.Addr{})
				tp.publish("web2", forward(17, bind, 9000, f.web2, 80))
				leads(f.web2)
				tp.publish("web2")
			})
		}
	}
}

func (tp *topology) conntrack(dst netip.Addr) string {
	family := "ipv6"
	if dst.Is4() {
		family = "ipv4"
	}
	return tp.host.Run(tp.t, "conntrack", "-L", "-f", family, "-p", "udp", "-d", dst.String())
}

// TestGoneEndpoint checks that an endpoint's flows end with it, and nobody else's.
func TestGoneEndpoint(t *testing.T) {
	tp := newTopology(t)
	for _, f := range families {
		tp.inet.UDPEcho(netip.AddrPortFrom(f.inet, 80))
	}
	tp.sync()
	for _, f := range families {
		askUDP(t, tp.web, f.inet, 80, "hi")
		askUDP(t, tp.web2, f.inet, 80, "hi")
	}
	old := tp.plan.Ports["web"]
	delete(tp.plan.Ports, "web")
	if err := tp.a.Update(t.Context(), tp.plan, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"web": {Old: old}}}); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		list := tp.conntrack(f.inet)
		if strings.Contains(list, "src="+f.web.String()+" ") || !strings.Contains(list, "src="+f.web2.String()+" ") {
			t.Errorf("%s: conntrack after web is gone:\n%s", f.name, list)
		}
	}
}

// TestSegmentSize makes the path out narrower than the container's link.
func TestSegmentSize(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	if err := tp.host.Netlink().LinkSetMTU(tp.host.Link("eth0"), 1400); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		l, err := tp.inet.Listen("tcp", netip.AddrPortFrom(f.inet, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out := newStream(t, tp.web, f.inet, 7)
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		limit := 1400 - 40
		if f.inet.Is6() {
			limit -= 20
		}
		for side, c := range map[string]net.Conn{"container": out.c, "internet": in} {
			if mss := segmentSize(t, c); mss > limit || mss < limit-40 {
				t.Errorf("%s: %s sends segments of %d bytes, want about %d", f.name, side, mss, limit)
			}
		}
	}
}

func segmentSize(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var mss int
	if cerr := raw.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return mss
}

// TestPortDevice gives a switch port what it never has, an address, and finds it deaf all the same.
func TestPortDevice(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	other := tp.container("other")
	tp.host.Connect(other, testhost.Cable{Dev: "bhpx", Addrs: []string{"198.51.100.1/24", "2001:db8:7::1/64"}, PeerAddrs: []string{"198.51.100.2/24", "2001:db8:7::2/64"}})
	for _, at := range []string{"198.51.100.1", "2001:db8:7::1"} {
		tp.host.ListenHTTP(netip.AddrPortFrom(addr(at), 90), nil)
		tp.counts(t, DropPort, func() { silent(t, other, addr(at), 90) })
	}
}
