package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// liveNet is a resolver in a compartment of its own and a client beside it, with
// the upstream where the daemon is.
//
//	compartment "resolver"                 compartment "client"
//	bhr0 10.9.0.1 fd00:9::1 ──── cable ──── eth0 10.9.0.5 fd00:9::5
type liveNet struct {
	resolver, client *testhost.Host
	r                *Resolver
	p                *plan.Plan
}

func (n *liveNet) cable() {
	n.resolver.Connect(n.client, testhost.Cable{
		Dev: "bhr0", Addrs: []string{"10.9.0.1/24", "fd00:9::1/64"}, PeerAddrs: []string{"10.9.0.5/24", "fd00:9::5/64"},
	})
}

// bound makes a socket hear one device only, as the daemon's do.
func bound(device string) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }); e != nil {
			return e
		}
		return err
	}}
}

func newLiveNet(t *testing.T) *liveNet {
	t.Helper()
	h := testhost.New(t)
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("needs dig, of the package bind9-dnsutils")
	}
	n := &liveNet{resolver: h.NewNamespace("resolver"), client: h.NewNamespace("client")}
	n.cable()
	u := newUpstream(t, answering(1))
	n.r = New(Config{
		ListenUDP: func(ctx context.Context, _, device string, a netip.AddrPort) (pc net.PacketConn, err error) {
			lc := bound(device)
			n.resolver.Do(func() { pc, err = lc.ListenPacket(ctx, "udp", a.String()) })
			return pc, err
		},
		ListenTCP: func(ctx context.Context, _, device string, a netip.AddrPort) (ln net.Listener, err error) {
			lc := bound(device)
			n.resolver.Do(func() { ln, err = lc.Listen(ctx, "tcp", a.String()) })
			return ln, err
		},
		DeviceIndex: func(_ context.Context, _, device string) (int, error) {
			link, err := n.resolver.Netlink().LinkByName(device)
			if err != nil {
				return 0, err
			}
			return link.Attrs().Index, nil
		},
		HostResolvers: func() []netip.AddrPort { return []netip.AddrPort{u.addr} },
	})
	t.Cleanup(n.r.Close)
	gateways := []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1")}
	sw := testSwitch(t, parseArgs([]string{"id=blue", "num=1", "mode=nat", "domain=blue.internal", "host=10.9.0.1", "subnet=10.9.0.0/24,10.9.0.1", "subnet=fd00:9::/64,fd00:9::1"}))
	sw.DNS.Listen, sw.DNS.Device = gateways, "bhr0"
	n.p = &plan.Plan{
		Switches: map[hcn.GUID]*plan.Switch{"blue": sw},
		Ports:    map[plan.PortID]*plan.Port{},
	}
	web := testPort(parseArgs([]string{"id=p1", "net=blue", "addr=10.9.0.6", "addr=fd00:9::6", "name=web"}))
	n.p.Ports[web.ID] = web
	for i := range 100 {
		p := testPort(parseArgs([]string{fmt.Sprintf("id=m%d", i), "net=blue", fmt.Sprintf("addr=10.9.0.%d", 100+i), "name=many"}))
		n.p.Ports[p.ID] = p
	}
	n.sync(t)
	return n
}

func (n *liveNet) sync(t *testing.T) []plan.Drift {
	t.Helper()
	drift, err := n.r.Sync(t.Context(), n.p)
	if err != nil {
		t.Fatal(err)
	}
	return drift
}

// TestDig asks the way users look for faults.
func TestDig(t *testing.T) {
	n := newLiveNet(t)
	for _, server := range []string{"@10.9.0.1", "@fd00:9::1"} {
		for _, tc := range []struct{ args, want string }{
			{"+short web A", `^10\.9\.0\.6$`},
			{"+short web AAAA", `^fd00:9::6$`},
			{"+short +tcp WEB.blue.internal A", `^10\.9\.0\.6$`},
			{"+short -x 10.9.0.6", `^web\.blue\.internal\.$`},
			{"+short -x fd00:9::6", `^web\.blue\.internal\.$`},
			{"+short host.internal", `^10\.9\.0\.1$`},
			{"+short www.example.com", `^198\.51\.100\.1$`},
			{"+noedns www.example.com", `(?s)status: NOERROR.*flags: qr rd ra;.*198\.51\.100\.1`},
			{"web MX", `(?s)status: NOERROR.*flags: qr aa rd ra;.*ANSWER: 0, AUTHORITY: 1`},
			{"nobody", `(?s)status: NXDOMAIN.*SOA\s+gateway\.internal\.`},
			{"CH TXT version.bind", `(?s)status: REFUSED.*EDE: 18 \(Prohibited\)`},
			{"+ignore +bufsize=600 many", `flags: qr aa tc rd ra;`},
			{"+bufsize=600 many", `(?s)flags: qr aa rd ra;.*ANSWER: 100,.*\(TCP\)`},
		} {
			args := append([]string{server, "+tries=1", "+time=3"}, strings.Fields(tc.args)...)
			out := n.client.Run(t, "dig", args...)
			if !regexp.MustCompile(tc.want).MatchString(out) {
				t.Errorf("dig %s: want %s, got\n%s", strings.Join(args, " "), tc.want, out)
			}
			if strings.Contains(out, "WARNING") || strings.Contains(out, "malformed") {
				t.Errorf("dig %s complains:\n%s", strings.Join(args, " "), out)
			}
		}
	}
	// From a link-local address, whose zone means nothing in the daemon.
	n.client.Run(t, "ip", "-6", "address", "flush", "dev", "eth0", "scope", "global")
	n.client.Run(t, "ip", "-6", "route", "add", "fd00:9::1", "dev", "eth0")
	// The kernel uses a link-local address once it knows it for unique.
	testhost.Eventually(t, 10*time.Second, func() error {
		if src := n.client.Run(t, "ip", "-6", "route", "get", "fd00:9::1"); !strings.Contains(src, "src fe80:") {
			return fmt.Errorf("the client still has another address: %s", src)
		}
		return nil
	})
	for _, how := range []string{"+notcp", "+tcp"} {
		if out := n.client.Run(t, "dig", "@fd00:9::1", how, "+tries=1", "+time=3", "+short", "web", "A"); out != "10.9.0.6" {
			t.Errorf("from a link-local address, %s: %q", how, out)
		}
	}
}

// The resolver's vNIC is deleted and made anew: its sockets get no error, only
// never a packet again.
func TestDeviceMadeAnew(t *testing.T) {
	n := newLiveNet(t)
	if err := n.resolver.Netlink().LinkDel(n.resolver.Link("bhr0")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.r.Sync(t.Context(), n.p); err == nil || !strings.Contains(err.Error(), "network blue: find device bhr0") {
		t.Errorf("without its device: %v", err)
	}
	n.cable()
	if out := n.client.MustFail(t, "dig", "@10.9.0.1", "+tries=1", "+time=1", "+short", "web"); !strings.Contains(out, "timed out") && !strings.Contains(out, "refused") {
		t.Errorf("the old sockets answer: %s", out)
	}
	if drift := n.sync(t); len(drift) != 4 {
		t.Errorf("drift %v", drift)
	}
	if out := n.client.Run(t, "dig", "@10.9.0.1", "+tries=1", "+time=3", "+short", "web"); out != "10.9.0.6" {
		t.Errorf("after the repair: %q", out)
	}
	if drift := n.sync(t); len(drift) != 0 {
		t.Errorf("drift %v although nothing happened", drift)
	}
}
