package nat

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// topology is a host with containers, a LAN and an internet:
//
//	web  10.77.1.2, fd77:1::2 ─┐
//	web2 10.77.1.3, fd77:1::3 ─┤ bridge "sw" standing in for the switch
//	                           └─ bhha (.1) NAT ┐
//	far  10.77.2.2, fd77:2::2 ─── bhhb (.1) NAT ┤ host ── eth0 192.0.2.1, 2001:db8::1 ──┬─ lan  192.0.2.2, 2001:db8::2
//	shut 10.77.3.2, fd77:3::2 ─── bhhc Internal ┘                                       └─ inet 203.0.113.9, 2001:db8:9::9
//
// The LAN host has routes for the containers' prefixes to the host: the worst neighbour.
type topology struct {
	t                    *testing.T
	host, lan, inet      *testhost.Host
	web, web2, far, shut *testhost.Host
	a                    *Applier
	plan                 *plan.Plan
}

var families = []struct {
	name           string
	lo, host, lan  netip.Addr
	inet           netip.Addr
	web, web2, far netip.Addr
	shut, gateway  netip.Addr
}{
	{"IPv4", addr("127.0.0.1"), addr("192.0.2.1"), addr("192.0.2.2"), addr("203.0.113.9"), addr("10.77.1.2"), addr("10.77.1.3"), addr("10.77.2.2"), addr("10.77.3.2"), addr("10.77.1.1")},
	{"IPv6", addr("::1"), addr("2001:db8::1"), addr("2001:db8::2"), addr("2001:db8:9::9"), addr("fd77:1::2"), addr("fd77:1::3"), addr("fd77:2::2"), addr("fd77:3::2"), addr("fd77:1::1")},
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func newTopology(t *testing.T) *topology {
	t.Helper()
	testhost.RequireRoot(t)
	tp := &topology{t: t}
	tp.host = testhost.New(t, testhost.WithName("host"))
	tp.lan = testhost.New(t, testhost.WithName("lan"))
	tp.inet = testhost.New(t, testhost.WithName("inet"))
	sw := testhost.Switch(t)
	sw.Plug(tp.host, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	sw.Plug(tp.lan, "eth0", "192.0.2.2/24", "2001:db8::2/64")
	sw.Plug(tp.inet, "eth0", "192.0.2.9/24", "2001:db8::9/64")
	for _, h := range []*testhost.Host{tp.host, tp.lan, tp.inet} {
		h.Up("lo")
	}
	tp.inet.Addr("lo", "203.0.113.9/32", "2001:db8:9::9/128")
	tp.host.Route("default", "192.0.2.9")
	tp.host.Route("default", "2001:db8::9")
	for _, p := range []string{"10.77.0.0/16", "fd77::/16"} {
		via := "192.0.2.1"
		if strings.Contains(p, ":") {
			via = "2001:db8::1"
		}
		tp.lan.Route(p, via)
	}
	tp.host.Forwarding(true)

	net1 := testhost.Switch(t)
	net1.Plug(tp.host, "bhha", "10.77.1.1/24", "fd77:1::1/64")
	tp.web = tp.container("web")
	tp.web2 = tp.container("web2")
	net1.Plug(tp.web, "eth0", "10.77.1.2/24", "fd77:1::2/64")
	net1.Plug(tp.web2, "eth0", "10.77.1.3/24", "fd77:1::3/64")
	tp.far = tp.container("far")
	tp.host.Connect(tp.far, testhost.Cable{Dev: "bhhb", Addrs: []string{"10.77.2.1/24", "fd77:2::1/64"}, PeerAddrs: []string{"10.77.2.2/24", "fd77:2::2/64"}})
	tp.shut = tp.container("shut")
	tp.host.Connect(tp.shut, testhost.Cable{Dev: "bhhc", Addrs: []string{"10.77.3.1/24", "fd77:3::1/64"}, PeerAddrs: []string{"10.77.3.2/24", "fd77:3::2/64"}})
	for h, n := range map[*testhost.Host]int{tp.web: 1, tp.web2: 1, tp.far: 2, tp.shut: 3} {
		h.Route("default", fmt.Sprintf("10.77.%d.1", n))
		h.Route("default", fmt.Sprintf("fd77:%d::1", n))
	}
	for _, dev := range []string{"bhha", "bhhb", "bhhc"} {
		tp.acceptLoopback(dev)
	}
	tp.plan = testPlan()
	tp.a = tp.applier()
	return tp
}

func (tp *topology) container(name string) *testhost.Host {
	h := testhost.New(tp.t, testhost.WithName(name))
	h.Up("lo")
	return h
}

// acceptLoopback does what the netdev applier does on a host vNIC.
func (tp *topology) acceptLoopback(dev string) {
	tp.t.Helper()
	tp.host.Sysctl("net.ipv4.conf."+dev+".route_localnet", "1")
	dst, err := netlink.ParseIPNet("::1/128")
	if err != nil {
		tp.t.Fatal(err)
	}
	index := tp.host.Link(dev).Attrs().Index
	route := &netlink.Route{LinkIndex: index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Priority: 2048 + index}
	if err := tp.host.Netlink().RouteAdd(route); err != nil {
		tp.t.Fatalf("route ::1 on %s: %v", dev, err)
	}
}

// applier makes another Applier for the host, as a restarted daemon does.
func (tp *topology) applier() *Applier {
	tp.t.Helper()
	a, err := New(Config{Netns: tp.host.NetnsPath(), Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		tp.t.Fatal(err)
	}
	tp.t.Cleanup(func() { a.Close() })
	return a
}

func (tp *topology) sync() []plan.Drift {
	tp.t.Helper()
	drift, err := tp.a.Sync(tp.t.Context(), tp.plan)
	if err != nil {
		tp.t.Fatalf("sync: %v", err)
	}
	return drift
}

// publish changes the forwards of a port by Update, as the engine does.
func (tp *topology) publish(id plan.PortID, fs ...plan.Forward) {
	tp.t.Helper()
	if err := tp.tryPublish(id, fs...); err != nil {
		tp.t.Fatalf("publish: %v", err)
	}
}

func (tp *topology) tryPublish(id plan.PortID, fs ...plan.Forward) error {
	old := tp.plan.Ports[id]
	is := *old
	is.Forwards = fs
	tp.plan.Ports[id] = &is
	return tp.a.Update(tp.t.Context(), tp.plan, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{id: {Old: old, New: &is}}})
}

func (tp *topology) nft(args ...string) string { return tp.host.Run(tp.t, "nft", args...) }

// dropped is the value of a drop counter.
func (tp *topology) dropped(name string) uint64 {
	tp.t.Helper()
	c, err := tp.a.Counters()
	if err != nil {
		tp.t.Fatal(err)
	}
	return c[name].Packets
}

func testPlan() *plan.Plan {
	p := &plan.Plan{Switches: map[hcn.GUID]*plan.Switch{}, Ports: map[plan.PortID]*plan.Port{}}
	for i, s := range []struct {
		id, dev string
		mode    plan.Mode
	}{{"NET1", "bhha", plan.ModeNAT}, {"NET2", "bhhb", plan.ModeNAT}, {"NET3", "bhhc", plan.ModeInternal}} {
		n := i + 1
		p.Switches[hcn.GUID(s.id)] = &plan.Switch{Number: uint32(n), Network: hcn.GUID(s.id), Mode: s.mode, HostDevice: s.dev, Subnets: []plan.Subnet{
			{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.77.%d.0/24", n)), Gateway: addr(fmt.Sprintf("10.77.%d.1", n))},
			{Prefix: netip.MustParsePrefix(fmt.Sprintf("fd77:%d::/64", n)), Gateway: addr(fmt.Sprintf("fd77:%d::1", n))},
		}}
	}
	for _, c := range []struct{ name, net, v4, v6 string }{
		{"web", "NET1", "10.77.1.2", "fd77:1::2"},
		{"web2", "NET1", "10.77.1.3", "fd77:1::3"},
		{"far", "NET2", "10.77.2.2", "fd77:2::2"},
		{"shut", "NET3", "10.77.3.2", "fd77:3::2"},
	} {
		p.Ports[plan.PortID(c.name)] = &plan.Port{
			ID: plan.PortID(c.name), Kind: plan.PortContainer, Network: hcn.GUID(c.net),
			Endpoint: hcn.GUID(c.name), Name: c.name, Addrs: []netip.Addr{addr(c.v4), addr(c.v6)},
		}
	}
	return p
}

// forward publishes a port of the host; bind is an address, "all" or "lan".
func forward(proto uint8, bind string, port uint16, to netip.Addr, toPort uint16) plan.Forward {
	f := plan.Forward{Protocol: proto, Port: port, To: netip.AddrPortFrom(to, toPort)}
	switch bind {
	case "all":
		f.Scope = plan.ScopeAll
	case "lan":
		f.Scope = plan.ScopeLAN
	default:
		f.Scope, f.Bind = plan.ScopeAddress, addr(bind)
	}
	return f
}

// serve answers TCP and UDP on port 80 of the given addresses.
func (tp *topology) serve(h *testhost.Host, addrs ...netip.Addr) {
	for _, a := range addrs {
		h.ListenHTTP(netip.AddrPortFrom(a, 80), nil)
		h.UDPEcho(netip.AddrPortFrom(a, 80))
	}
}

func url(a netip.Addr, port uint16) string { return "http://" + netip.AddrPortFrom(a, port).String() }
