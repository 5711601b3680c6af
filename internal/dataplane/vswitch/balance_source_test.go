package vswitch

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// sourced is what the host sends to, and comes from: the switch's own addresses, a machine outside, and the source that it sees.
var (
	insides = [2]netip.Addr{plan.Inside(1, false), plan.Inside(1, true)}
	farEnds = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	sources = [2]netip.Addr{netip.MustParseAddr("10.1.0.99"), netip.MustParseAddr("fd00:1::99")}
)

var sourceMAC = plan.MAC{2, 0, 1, 9, 9, 9}

// far makes the services of a switch for the host, with the machine outside as a back end beside others that are here.
func (b *balanced) far(port uint16, spread plan.Spread, here ...*plan.Port) {
	b.t.Helper()
	const id = hcn.GUID("far")
	next := &plan.Balancer{ID: id, Network: network(1), Switch: 1}
	for family := range insides {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			s := plan.Service{
				Protocol: proto, VIP: insides[family], Port: 80, Self: insides[family], Host: true, Spread: spread,
				Backends: []netip.AddrPort{netip.AddrPortFrom(farEnds[family], port)}, Source: &plan.Source{Addr: sources[family], MAC: sourceMAC},
			}
			for _, e := range here {
				s.Backends = append(s.Backends, netip.AddrPortFrom(e.Addrs[family], port))
			}
			next.Services = append(next.Services, s)
		}
	}
	if b.plan.Balancers == nil {
		b.plan.Balancers = map[hcn.GUID]*plan.Balancer{}
	}
	old := b.plan.Balancers[id]
	b.plan.Balancers[id] = next
	b.update(&plan.Delta{Balancers: map[hcn.GUID]plan.Change[plan.Balancer]{id: {Old: old, New: next}}})
}

// acquaint gives the host its ways to those addresses, and lets the machine outside be one of its own.
func (b *balanced) acquaint() {
	b.t.Helper()
	dev := b.plan.Switches[network(1)].HostDevice
	link, err := b.host.Netlink().LinkByName(dev)
	if err != nil {
		b.t.Fatal(err)
	}
	for family := range insides {
		to := &net.IPNet{IP: insides[family].AsSlice(), Mask: net.CIDRMask(insides[family].BitLen(), insides[family].BitLen())}
		if err := b.host.Netlink().RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to}); err != nil {
			b.t.Fatal(err)
		}
		b.host.Addr("lo", netip.PrefixFrom(farEnds[family], farEnds[family].BitLen()).String())
		for a, mac := range map[netip.Addr]plan.MAC{insides[family]: {2, 0x62, 0x75, 0x6c, 0x6b, 0x68}, sources[family]: sourceMAC} {
			if err := b.host.Netlink().NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac[:]}); err != nil {
				b.t.Fatal(err)
			}
		}
		b.says(b.host, netip.AddrPortFrom(farEnds[family], 8080), "far")
	}
}

// TestBalanceSource: back ends that are on no port here see a source of ours, answers come back to who has asked, and those that are
// here see who that is.
func TestBalanceSource(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		b := newBalanced(t, mode)
		b.acquaint()
		b.far(8080, plan.SpreadFlow, b.ends[0])
		for _, protocol := range []string{"tcp", "udp"} {
			for family := range insides {
				b.isSourced(protocol, family)
			}
		}
		for family := range insides {
			b.far(8080, plan.SpreadSource)
			b.large(b.host, netip.AddrPortFrom(insides[family], 80))
			b.far(7, plan.SpreadSource) // where nobody listens
			b.refused(b.host, "udp", netip.AddrPortFrom(insides[family], 80))
			b.refused(b.host, "tcp", netip.AddrPortFrom(insides[family], 80))
		}
	})
}

// isSourced asks until both back ends have answered, over connections that are judged anew in their middle.
func (b *balanced) isSourced(protocol string, family int) {
	b.t.Helper()
	seen := map[string]int{}
	for range 24 {
		c, err := b.dial(b.host, protocol, netip.AddrPortFrom(insides[family], 80))
		if err != nil {
			drops, _ := b.a.Drops()
			b.t.Fatalf("%s over IPv%d: %v; drops: %v", protocol, 4+2*family, err, drops)
		}
		defer c.Close()
		for range 2 {
			end, sees, err := whoIs(c)
			if err != nil {
				drops, _ := b.a.Drops()
				b.t.Fatalf("%s over IPv%d: %v; drops: %v", protocol, 4+2*family, err, drops)
			}
			seen[end]++
			want := sources[family]
			if end != "far" {
				want = [2]netip.Addr{gateway4(1), gateway6(1)}[family]
			}
			if from := netip.MustParseAddrPort(sees); from.Addr() != want {
				b.t.Errorf("%s over IPv%d: back end %s sees %s, want %s", protocol, 4+2*family, end, from, want)
			}
			b.in(b.a.raiseGeneration)
		}
	}
	if len(seen) != 2 {
		b.t.Errorf("%s over IPv%d: %v have answered, want two", protocol, 4+2*family, seen)
	}
}

// TestBalanceSourcePorts: clients that send from the same port are told apart, and what is noted of them goes with their connections.
func TestBalanceSourcePorts(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.acquaint()
	b.far(8080, plan.SpreadFlow)
	to := netip.AddrPortFrom(insides[0], 80)
	known := map[string]string{}
	for _, a := range []string{"10.1.0.1", "198.51.100.7", "198.51.100.8"} {
		if a != "10.1.0.1" {
			b.host.Addr("lo", a+"/32")
		}
		c, err := b.host.ListenPacket("udp", a+":5000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo([]byte("who"), net.UDPAddrFromAddrPort(to)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		n, from, err := c.ReadFrom(buf)
		if err != nil || from.String() != to.String() {
			drops, _ := b.a.Drops()
			t.Fatalf("from %s: an answer of %v, %v; drops: %v", a, from, err, drops)
		}
		sees := string(buf[:n])
		if other, ok := known[sees]; ok {
			t.Errorf("%s and %s are both %q", a, other, sees)
		}
		known[sees] = a
	}
	if n := b.clients(unix.IPPROTO_UDP); n != 3 {
		t.Errorf("%d clients over UDP are noted, want 3", n)
	}
	for range 3 {
		if _, _, err := b.once(b.host, "tcp", to); err != nil {
			t.Fatal(err)
		}
	}
	th.Eventually(t, 10*time.Second, func() error {
		if n := b.clients(unix.IPPROTO_TCP); n > 0 {
			return fmt.Errorf("%d clients are noted of connections that have ended", n)
		}
		for k, c := range b.choices() {
			if k.Proto == unix.IPPROTO_TCP {
				return fmt.Errorf("the choice %+v is noted of a connection that has ended", c)
			}
		}
		return nil
	})
}

// clients counts the notes of who is behind a source.
func (b *balanced) clients(proto uint8) (n int) {
	b.t.Helper()
	it := b.a.objs.BhClientsV1.Iterate()
	var k bpfFlowKey
	var v bpfClient
	for it.Next(&k, &v) {
		if k.Proto == proto {
			n++
		}
	}
	return n
}

// TestOverlaySource sends to another host what the host has sent to a service, under the source.
func TestOverlaySource(t *testing.T) {
	l := newLab(t, AttachAuto)
	r := l.overlay()
	sw := l.plan.Switches[network(1)]
	sw.Overlay.Host, sw.HostPort = true, plan.HostPortID(network(1))
	sw.HostDevice = plan.DeviceName(plan.HostVNICPrefix, sw.HostPort)
	l.port(1, sw.HostPort, plan.PortHost, sw.Overlay.Router, sw.HostDevice, gateway4(1), gateway6(1))
	l.pairs(map[string]bool{"bhv1": true, l.plan.Ports["1-10"].Device: true})
	far := &plan.Balancer{ID: "far", Network: network(1), Switch: 1}
	for family := range insides {
		far.Services = append(far.Services, plan.Service{
			Protocol: unix.IPPROTO_TCP, VIP: insides[family], Port: 80, Self: insides[family], Host: true,
			Backends: []netip.AddrPort{netip.AddrPortFrom(r.Addrs[family], 8080)}, Source: &plan.Source{Addr: sources[family], MAC: sourceMAC},
		})
	}
	l.plan.Balancers = map[hcn.GUID]*plan.Balancer{"far": far}
	l.sync()
	for family, client := range []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:5::7")} {
		k := plan.Packet{From: sw.HostPort, Src: client, Dst: insides[family], DstMAC: plan.MAC{2, 9}, Protocol: unix.IPPROTO_TCP, SrcPort: 40000, DstPort: 80}
		got := l.run(k.From, l.plan.Complete(k).Frame())
		if got.Outcome != Delivered || got.To != sw.Overlay.Tunnel {
			t.Errorf("IPv%d: %s %s to %q, want the tunnel", 4+2*family, got.Outcome, got.Reason, got.To)
			continue
		}
		at := [2][3]int{{26, 30, 34}, {22, 38, 54}}[family]
		src, _ := netip.AddrFromSlice(got.Frame[at[0]:at[1]])
		dst, _ := netip.AddrFromSlice(got.Frame[at[1]:at[2]])
		if src != sources[family] || dst != r.Addrs[family] || plan.MAC(got.Frame[6:12]) != sourceMAC {
			t.Errorf("IPv%d: from %s (%x) to %s, want from %s (%x) to %s", 4+2*family, src, got.Frame[6:12], dst, sources[family], sourceMAC, r.Addrs[family])
		}
	}
}
