package vswitch

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// lan is a host whose NIC is the uplink of a switch, and its LAN:
//
//	a (10.9.0.10) ─ bhp…[program] ┐
//	b (10.9.0.11) ─ bhp…[program] ┼ nic0 (10.9.0.1) ──┬─ bridge ── eth0 (10.9.0.2) peer
//	                 this host ───┘  [two programs]   └─ eth1 of the bridge (10.9.0.3) wire
type lan struct {
	*lab
	a, b, nic    *plan.Port
	hostA, hostB *th.Host
	wire, peer   *th.Host
}

const lanNumber = 9

func newLAN(t *testing.T, mode AttachMode) *lan {
	t.Helper()
	return newLANOf(t, mode, plan.ModeTransparent)
}

func newLANOf(t *testing.T, mode AttachMode, kind plan.Mode) *lan {
	t.Helper()
	l := newLab(t, mode)
	n := &lan{lab: l, wire: th.New(t), peer: th.New(t)}
	n.wire.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	n.wire.Addr("br0", "10.9.0.3/16", "fd00:9::3/64")
	n.wire.Up("br0")
	l.host.Connect(n.wire, th.Cable{Dev: "nic0", PeerDev: "p0", Addrs: []string{"10.9.0.1/16", "fd00:9::1/64"}})
	n.peer.Connect(n.wire, th.Cable{PeerDev: "p1", Addrs: []string{"10.9.0.2/16", "fd00:9::2/64"}})
	for _, p := range []string{"p0", "p1"} {
		n.wire.Run(t, "ip", "link", "set", p, "master", "br0")
	}
	l.host.Sysctl("net.ipv4.conf.all.rp_filter", "1")
	l.host.Sysctl("net.ipv4.conf.nic0.rp_filter", "1")
	n.plan.Switches[network(lanNumber)] = &plan.Switch{
		Number: lanNumber, Network: network(lanNumber), Mode: kind, MTU: 1500,
		Uplink: "nic0", UplinkPort: plan.UplinkPortID(network(lanNumber)),
	}
	n.nic = &plan.Port{
		ID: plan.UplinkPortID(network(lanNumber)), Kind: plan.PortUplink, Network: network(lanNumber), Switch: lanNumber, Device: "nic0",
		MAC: plan.MAC(l.host.MAC("nic0")), VNIC: plan.VNIC{Device: "nic0", MAC: plan.MAC(l.host.MAC("nic0"))},
	}
	n.plan.Ports[n.nic.ID] = n.nic
	n.a, n.b = l.container(lanNumber, 10), l.container(lanNumber, 11)
	l.live()
	n.hostA, n.hostB = l.ns[n.a.ID], l.ns[n.b.ID]
	return n
}

func (n *lan) ping(from *th.Host, to netip.Addr) {
	n.t.Helper()
	if err := from.Ping(to); err != nil {
		drops, _ := n.lab.a.Drops()
		n.t.Errorf("%s: %v; drops: %v", from.Name(), err, drops)
	}
}

// everybody on the LAN, with an address of each family.
func (n *lan) everybody() map[*th.Host][2]netip.Addr {
	return map[*th.Host][2]netip.Addr{
		n.hostA: {n.a.Addrs[0], n.a.Addrs[1]}, n.hostB: {n.b.Addrs[0], n.b.Addrs[1]},
		n.host: {addr("10.9.0.1"), addr("fd00:9::1")}, n.peer: {addr("10.9.0.2"), addr("fd00:9::2")},
		n.wire: {addr("10.9.0.3"), addr("fd00:9::3")},
	}
}

// allPairs sees that everybody reaches everybody, in both families.
func (n *lan) allPairs(t *testing.T) {
	t.Helper()
	all := n.everybody()
	for to, addrs := range all {
		for _, a := range addrs {
			to.TCPEcho(netip.AddrPortFrom(a, 7))
			to.UDPEcho(netip.AddrPortFrom(a, 7))
			for from := range all {
				if from == to {
					continue
				}
				n.ping(from, a)
				if err := echo(from, netip.AddrPortFrom(a, 7), 100_000); err != nil {
					t.Errorf("%s to %s by TCP: %v", from.Name(), a, err)
				}
				if _, err := from.UDPAsk(netip.AddrPortFrom(a, 7), "who"); err != nil {
					t.Errorf("%s to %s by UDP: %v", from.Name(), a, err)
				}
			}
		}
	}
}

// TestLANReachability: container, host and LAN reach each other in all pairs and in both
// families, with strict reverse path filters, by UDP and by TCP.
func TestLANReachability(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		n.allPairs(t)
		c, err := n.lab.a.Counters(n.a.ID)
		if err != nil || c.RxPackets == 0 || c.TxPackets == 0 {
			t.Errorf("counters of a: %+v, %v; want both counted", c, err)
		}
	})
}

// TestLANBroadcast: a broadcast of each reaches all others once, and never its sender.
func TestLANBroadcast(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		devs := map[*th.Host]string{n.hostA: "eth0", n.hostB: "eth0", n.host: "nic0", n.peer: "eth0"}
		macs := map[*th.Host]th.MAC{n.hostA: hw(n.a.MAC), n.hostB: hw(n.b.MAC), n.host: n.host.MAC("nic0"), n.peer: n.peer.MAC("eth0")}
		addrs := n.everybody()
		for from, dev := range devs {
			seen := map[*th.Host]*th.Capture{}
			for h, dev := range devs {
				seen[h] = h.Capture(dev, "udp")
			}
			from.SendFrame(dev, th.Frame(eth(macs[from], th.Broadcast()), v4(addrs[from][0], addr("255.255.255.255")), udp(1111, 2222)))
			for h := range devs {
				if h != from {
					seen[h].Wait("2222")
				}
			}
			for h, c := range seen {
				count := 0
				for _, f := range c.Stop() {
					if !f.Outgoing && strings.Contains(th.Describe(f.Data), "2222") {
						count++
					}
				}
				if want := map[bool]int{true: 0, false: 1}[h == from]; count != want {
					t.Errorf("%s got %d copies of the broadcast of %s, want %d:\n%s", h.Name(), count, from.Name(), want, strings.Join(c.Lines(), "\n"))
				}
			}
		}
	})
}

// TestLANDuplicate: who asks whether anybody has its address is heard on the wire, and is
// told by whoever has it there.
func TestLANDuplicate(t *testing.T) {
	n := newLAN(t, AttachAuto)
	seen := n.peer.Capture("eth0", "")
	n.hostA.Run(t, "ip", "addr", "add", "fd00:9::1:a/128", "dev", "lo") // keeps the address in use while eth0's is renewed
	n.hostA.Run(t, "ip", "-6", "addr", "del", "fd00:9::1:a/64", "dev", "eth0")
	n.hostA.Run(t, "ip", "-6", "addr", "add", "fd00:9::1:a/64", "dev", "eth0")
	seen.Wait("icmp6 ns fd00:9::1:a")
	probe := th.Frame(eth(hw(n.a.MAC), th.Broadcast()), th.ARP{SenderMAC: hw(n.a.MAC), SenderIP: addr("0.0.0.0"), TargetIP: n.a.Addrs[0]})
	n.hostA.SendFrame("eth0", probe)
	seen.Wait("who-has 10.9.0.10")
}

// TestLANReflection: what has the MAC of one of our ports and comes in from the wire is
// dropped; a machine of the LAN does not become a container by that.
func TestLANReflection(t *testing.T) {
	n := newLAN(t, AttachAuto)
	seen := n.hostB.Capture("eth0", "udp")
	for _, dst := range []th.MAC{hw(n.b.MAC), th.Broadcast()} {
		n.peer.SendFrame("eth0", th.Frame(eth(hw(n.a.MAC), dst), v4(n.a.Addrs[0], n.b.Addrs[0]), udp(1, 4444)))
	}
	th.Eventually(t, 2*time.Second, func() error {
		if got := drops(n.lab, n.nic.ID, ReasonReflected); got != 2 {
			return fmt.Errorf("%d frames dropped as reflected, want 2", got)
		}
		return nil
	})
	for _, line := range seen.Lines() {
		if strings.Contains(line, "4444") {
			t.Errorf("b got a reflected frame: %s", line)
		}
	}
}

func drops(l *lab, id plan.PortID, r Reason) uint64 {
	l.t.Helper()
	all, err := l.a.Drops()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, d := range all {
		if d.Port == id && d.Reason == r {
			return d.Packets
		}
	}
	return 0
}

// TestLANHostUntouched: a connection of the host over the NIC goes on while the switch
// comes, is carried on by another process, and goes.
func TestLANHostUntouched(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		before := n.host.Run(t, "ip", "addr", "show", "dev", "nic0") + n.host.Run(t, "ip", "route")
		session := n.session()
		for range 3 {
			session("with a switch")
			n.in(n.lab.a.Close)
			session("without a daemon")
			n.open()
			writes := n.lab.a.Writes()
			n.sync()
			if got := n.lab.a.Writes(); got != writes {
				t.Errorf("a restart wrote %d times, want none", got-writes)
			}
			session("after a restart")
			all := n.plan.Ports
			n.plan.Ports = map[plan.PortID]*plan.Port{}
			n.sync()
			if err := n.peer.Silent(n.a.Addrs[0]); err != nil {
				t.Error(err)
			}
			session("without a switch")
			n.plan.Ports = all
			n.sync()
			n.ping(n.peer, n.a.Addrs[0])
		}
		if after := n.host.Run(t, "ip", "addr", "show", "dev", "nic0") + n.host.Run(t, "ip", "route"); after != before {
			t.Errorf("the NIC was\n%s\nand is\n%s", before, after)
		}
	})
}

// session opens a connection from the LAN to the host and returns what uses it once more.
func (n *lan) session() func(when string) {
	n.t.Helper()
	at := n.host.TCPEcho(netip.MustParseAddrPort("10.9.0.1:22"))
	c, err := n.peer.DialContext(n.t.Context(), "tcp", at.String())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return func(when string) {
		n.t.Helper()
		if err := ask(c); err != nil {
			n.t.Fatalf("%s: %v", when, err)
		}
	}
}

func ask(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("still there?")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 12))
	return err
}

// TestLANVLAN: ports of a VLAN are tagged on the wire, hear what is tagged so, and meet
// nobody else.
func TestLANVLAN(t *testing.T) {
	n := newLAN(t, AttachAuto)
	tagged := *n.b
	tagged.VLAN = 100
	n.plan.Ports[n.b.ID] = &tagged
	n.update(change(n.b, &tagged))
	for _, a := range n.b.Addrs {
		for _, from := range []*th.Host{n.hostA, n.host, n.peer} {
			if err := from.Silent(a); err != nil {
				t.Errorf("%s reaches VLAN 100: %v", from.Name(), err)
			}
		}
	}
	seen := n.wire.Capture("p0", "")
	n.hostB.SendFrame("eth0", th.Frame(eth(hw(n.b.MAC), n.peer.MAC("eth0")), v4(n.b.Addrs[0], addr("10.9.0.2")), udp(5, 5555)))
	out := seen.Wait("5555").Data
	if got := fmt.Sprintf("%x", out[12:16]); got != "81000064" {
		t.Errorf("on the wire %x follows the MACs, want the tag 81000064", out[12:16])
	}
	in := n.hostB.Capture("eth0", "udp")
	for _, dst := range []th.MAC{hw(n.b.MAC), th.Broadcast()} {
		plain := th.Frame(eth(n.peer.MAC("eth0"), dst), v4(addr("10.9.0.2"), addr("255.255.255.255")), udp(5, 6666))
		if dst[0]&1 == 0 {
			plain = th.Frame(eth(n.peer.MAC("eth0"), dst), v4(addr("10.9.0.2"), n.b.Addrs[0]), udp(5, 7777))
		}
		frame := append(append(append([]byte(nil), plain[:12]...), 0x81, 0, 0, 100), plain[12:]...)
		n.wire.SendFrame("p0", frame)
		n.wire.SendFrame("p0", plain)
	}
	in.Wait("6666")
	in.Wait("7777")
	for _, f := range in.Stop() {
		if !f.Outgoing && f.Data[12] == 0x81 {
			t.Errorf("b got a tagged frame: %s", th.Describe(f.Data))
		}
	}
	if got := len(in.Frames()); got != 2 {
		t.Errorf("b got %d frames, want the two tagged ones:\n%s", got, strings.Join(in.Lines(), "\n"))
	}
}

// TestLANRenamed: a NIC under another name keeps its programs, under its new name alone, also where a run before had it under the old one.
func TestLANRenamed(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		rename := func(now string) *plan.Delta {
			n.host.Run(t, "bash", "-c", "ip link set "+n.nic.Device+" down && ip link set "+n.nic.Device+" name "+now+" && ip link set "+now+" up")
			id := network(lanNumber)
			sw, nic := *n.plan.Switches[id], *n.nic
			sw.Uplink, nic.Device, nic.VNIC.Device = now, now, now
			d := &plan.Delta{
				Switches: map[hcn.GUID]plan.Change[plan.Switch]{id: {Old: n.plan.Switches[id], New: &sw}},
				Ports:    map[plan.PortID]plan.Change[plan.Port]{nic.ID: {Old: n.nic, New: &nic}},
			}
			n.plan.Switches[id], n.plan.Ports[nic.ID], n.nic = &sw, &nic, &nic
			return d
		}
		works := func() {
			t.Helper()
			n.ping(n.peer, n.a.Addrs[0])
			n.ping(n.host, n.a.Addrs[0])
			n.in(func() error {
				if ok, err := n.lab.a.att.attached(n.lab.a.spotsOf(n.lab.a.applied[n.nic.ID])); !ok || err != nil {
					t.Errorf("the programs are at %s: %v (%v)", n.nic.Device, ok, err)
				}
				pinned, err := names(n.lab.a.pins.links())
				for _, pin := range pinned {
					if strings.HasPrefix(pin, "nic-") && !strings.HasPrefix(pin, nicPin(n.nic.Device)+"-") {
						t.Errorf("%s is left", pin)
					}
				}
				return err
			})
		}
		works()
		n.update(rename("lan0"))
		works()
		rename("lan1")
		n.open()
		n.sync()
		works()
		n.whole()
	})
}

// TestLANNoUplink: with the NIC gone, what is for the LAN is dropped and says why, and
// containers still reach each other.
func TestLANNoUplink(t *testing.T) {
	n := newLAN(t, AttachAuto)
	sw := *n.plan.Switches[network(lanNumber)]
	sw.UplinkPort = ""
	n.plan.Switches[network(lanNumber)] = &sw
	delete(n.plan.Ports, n.nic.ID)
	n.sync()
	n.ping(n.hostA, n.b.Addrs[0])
	r := n.run(n.a.ID, th.Frame(eth(hw(n.a.MAC), n.peer.MAC("eth0")), v4(n.a.Addrs[0], addr("10.9.0.2")), udp(1, 2)))
	if r.Outcome != Dropped || r.Reason != ReasonNoUplink {
		t.Errorf("for the LAN: %s %s, want dropped for no-uplink", r.Outcome, r.Reason)
	}
	if err := n.peer.Silent(n.a.Addrs[0]); err != nil {
		t.Error(err)
	}
}
