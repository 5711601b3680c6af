package vswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// newOneMAC is a LAN whose outer switch lets in from p0 what bears the MAC of the host's NIC, and nothing else, and sends
// there only what is for it. With hairpin it sends back by p0 what came from there.
func newOneMAC(t *testing.T, attach AttachMode, mode plan.Mode, hairpin bool) *lan {
	t.Helper()
	n := newLANOf(t, attach, mode)
	nic := n.nic.MAC.String()
	n.wire.Run(t, "nft", "add table bridge guard; add chain bridge guard in { type filter hook prerouting priority 0; }; "+
		"add rule bridge guard in iifname p0 ether saddr != "+strings.ToLower(strings.ReplaceAll(nic, "-", ":"))+" counter drop")
	reflect := "off"
	if hairpin {
		reflect = "on"
	}
	n.wire.Run(t, "bridge", "link", "set", "dev", "p0", "flood", "off", "hairpin", reflect)
	return n
}

// foreign is how many frames the outer switch has dropped for their MAC.
func (n *lan) foreign() string {
	n.t.Helper()
	_, rest, _ := strings.Cut(n.wire.Run(n.t, "nft", "list", "chain", "bridge", "guard", "in"), "counter packets ")
	count, _, _ := strings.Cut(rest, " ")
	return count
}

// oneMAC fails for each frame that says a container's MAC anywhere, in ARP and neighbour discovery as well.
func (n *lan) oneMAC(wire *th.Capture) {
	n.t.Helper()
	if got := n.foreign(); got != "0" {
		n.t.Errorf("the outer switch has dropped %s frames with a MAC that is not the NIC's", got)
	}
	for _, f := range wire.Stop() {
		for _, p := range []*plan.Port{n.a, n.b} {
			if bytes.Contains(f.Data, p.MAC[:]) {
				n.t.Errorf("a container's MAC is on the wire: %s", th.Describe(f.Data))
			}
		}
	}
}

// TestOneMACReachability: container, host and LAN reach each other in all pairs and both families, and the LAN never
// learns a MAC but the NIC's. In a tunnel the outer switch sends back what is for the other container.
func TestOneMACReachability(t *testing.T) {
	for _, mode := range []plan.Mode{plan.ModeL2Bridge, plan.ModeL2Tunnel} {
		t.Run(mode.String(), func(t *testing.T) {
			bothWays(t, func(t *testing.T, attach AttachMode) {
				n := newOneMAC(t, attach, mode, mode == plan.ModeL2Tunnel)
				wire := n.wire.Capture("p0", "")
				n.allPairs(t)
				n.ping(n.peer, n.a.LinkLocal.WithZone("eth0"))
				n.ping(n.hostA, n.b.LinkLocal.WithZone("eth0"))
				between := 0
				for _, f := range wire.Frames() {
					if strings.Contains(th.Describe(f.Data), "10.9.0.10 > 10.9.0.11") {
						between++
					}
				}
				if (between > 0) != (mode == plan.ModeL2Tunnel) {
					t.Errorf("%d frames between containers were on the wire", between)
				}
				n.oneMAC(wire)
				c, err := n.lab.a.Counters(n.a.ID)
				if err != nil || c.RxPackets == 0 || c.TxPackets == 0 {
					t.Errorf("counters of a: %+v, %v; want both counted", c, err)
				}
			})
		})
	}
}

// TestOneMACBroadcast: a broadcast of each reaches all others once, and never its sender, also where it comes back.
func TestOneMACBroadcast(t *testing.T) {
	for _, mode := range []plan.Mode{plan.ModeL2Bridge, plan.ModeL2Tunnel} {
		t.Run(mode.String(), func(t *testing.T) {
			n := newOneMAC(t, AttachAuto, mode, true)
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
				n.ping(n.peer, addr("10.9.0.1")) // what comes back has come by then
				for h, c := range seen {
					count := 0
					for _, f := range c.Stop() {
						// The NIC itself hears what the outer switch sends back, before the program does.
						if !f.Outgoing && strings.Contains(th.Describe(f.Data), "2222") && (h != n.host || !bytes.Equal(f.Data[6:12], macs[n.host])) {
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
}

// TestTunnelWithoutReflection: where the outer switch sends nothing back, containers of one host do not reach each other,
// and everybody else does.
func TestTunnelWithoutReflection(t *testing.T) {
	n := newOneMAC(t, AttachAuto, plan.ModeL2Tunnel, false)
	for i := range 2 {
		if err := n.hostA.Silent(n.b.Addrs[i]); err != nil {
			t.Error(err)
		}
		n.ping(n.peer, n.a.Addrs[i])
		n.ping(n.host, n.a.Addrs[i])
		n.ping(n.hostA, n.everybody()[n.host][i])
	}
}

// TestTunnelRules: a connection between two containers is one to each of their ports, so the rules of both hold, and
// answers pass as answers at either.
func TestTunnelRules(t *testing.T) {
	n := newOneMAC(t, AttachAuto, plan.ModeL2Tunnel, true)
	for _, h := range []*th.Host{n.hostA, n.hostB} {
		for _, a := range n.everybody()[h] {
			h.TCPEcho(netip.AddrPortFrom(a, 7))
			h.TCPEcho(netip.AddrPortFrom(a, 8))
		}
	}
	rules := func(port **plan.Port, out, in *plan.RuleList) {
		next := **port
		next.Policy.Out, next.Policy.In = out, in
		n.plan.Ports[next.ID] = &next
		n.update(change(*port, &next))
		*port = &next
	}
	// a lets nothing in and only TCP out; b lets port 7 in and nothing out.
	rules(&n.a, list(plan.Block, own(plan.Allow, unix.IPPROTO_TCP)), list(plan.Block))
	rules(&n.b, list(plan.Block), list(plan.Block, own(plan.Allow, unix.IPPROTO_TCP, 7)))
	for i := range 2 {
		if err := echo(n.hostA, netip.AddrPortFrom(n.b.Addrs[i], 7), 300_000); err != nil {
			t.Errorf("a to b, port 7: %v", err)
		}
		for what, attempt := range map[string]error{
			"a to b, port 8": tryTCP(n.hostA, netip.AddrPortFrom(n.b.Addrs[i], 8)),
			"b to a":         tryTCP(n.hostB, netip.AddrPortFrom(n.a.Addrs[i], 7)),
		} {
			if attempt == nil {
				t.Errorf("%s passes", what)
			}
		}
	}
	if drops(n.lab, n.b.ID, ReasonPolicyIn) == 0 || drops(n.lab, n.b.ID, ReasonPolicyOut) == 0 {
		t.Error("b's port has not dropped both ways")
	}
	// Isolation holds at the sender, for the receiver's port sees the wire.
	rules(&n.a, nil, nil)
	rules(&n.b, nil, nil)
	for i := range 2 {
		n.ping(n.hostA, n.b.Addrs[i])
	}
	next := *n.b
	next.Policy.Isolated = true
	n.plan.Ports[next.ID] = &next
	n.update(change(n.b, &next))
	for i := range 2 {
		if err := n.hostA.Silent(n.b.Addrs[i]); err != nil {
			t.Error(err)
		}
		n.ping(n.peer, n.b.Addrs[i])
	}
}

// TestOneMACQuestions: the switch answers for its ports, in the NIC's name, whoever asks and however.
func TestOneMACQuestions(t *testing.T) {
	n := newOneMAC(t, AttachAuto, plan.ModeL2Bridge, false)
	nic, peer := hw(n.nic.MAC), n.peer.MAC("eth0")
	at := Place{Port: n.nic.ID}
	a4, a6 := n.a.Addrs[0], n.a.Addrs[1]
	solicit := func(src, target netip.Addr, dst th.MAC) []byte {
		body := append(make([]byte, 4), target.AsSlice()...)
		if !src.IsUnspecified() {
			body = append(append(body, 1, 1), peer...)
		}
		to := th.SolicitedNode(target)
		if dst == nil {
			dst = th.MulticastMAC(to)
		} else {
			to = target
		}
		return th.Frame(eth(peer, dst), th.IPv6{Src: src, Dst: to, HopLimit: 255}, th.ICMP{Type: 135, Body: body})
	}
	isAt := fmt.Sprintf("%s > %s arp reply 10.9.0.10 is-at %s", nic, peer, nic)
	for name, c := range map[string]struct {
		frame []byte
		want  Outcome
		text  string
	}{
		"ARP":                       {th.Frame(eth(peer, th.Broadcast()), th.ARP{SenderMAC: peer, SenderIP: addr("10.9.0.2"), TargetIP: a4}), Answered, isAt},
		"ARP, to the NIC":           {th.Frame(eth(peer, nic), th.ARP{SenderMAC: peer, SenderIP: addr("10.9.0.2"), TargetIP: a4}), Answered, isAt},
		"ARP probe":                 {th.Frame(eth(peer, th.Broadcast()), th.ARP{SenderMAC: peer, SenderIP: addr("0.0.0.0"), TargetIP: a4}), Answered, isAt},
		"ARP for the host":          {th.Frame(eth(peer, nic), th.ARP{SenderMAC: peer, SenderIP: addr("10.9.0.2"), TargetIP: addr("10.9.0.1")}), Passed, ""},
		"ARP for the host, to all":  {th.Frame(eth(peer, th.Broadcast()), th.ARP{SenderMAC: peer, SenderIP: addr("10.9.0.2"), TargetIP: addr("10.9.0.1")}), Replicated, ""},
		"ND":                        {solicit(addr("fd00:9::2"), a6, nil), Answered, fmt.Sprintf("%s > %s ip6 %s > fd00:9::2 hlim 255 icmp6 na %s is-at %s", nic, peer, a6, a6, nic)},
		"ND, to the NIC":            {solicit(addr("fd00:9::2"), a6, nic), Answered, "na " + a6.String()},
		"ND, link-local":            {solicit(addr("fd00:9::2"), n.a.LinkLocal, nil), Answered, "na " + n.a.LinkLocal.String()},
		"DAD":                       {solicit(addr("::"), a6, nil), Answered, fmt.Sprintf("%s > 33:33:00:00:00:01 ip6 %s > ff02::1", nic, a6)},
		"ND for the host":           {solicit(addr("fd00:9::2"), addr("fd00:9::1"), nic), Passed, ""},
		"an answer to a's question": {th.Frame(eth(peer, nic), th.ARP{Reply: true, SenderMAC: peer, SenderIP: addr("10.9.0.2"), TargetMAC: nic, TargetIP: a4}), Delivered, fmt.Sprintf("%s > %s arp reply 10.9.0.2 is-at %s", peer, hw(n.a.MAC), peer)},
		"an answer to a's probe":    {th.Frame(eth(peer, nic), th.ARP{Reply: true, SenderMAC: peer, SenderIP: a4, TargetMAC: nic, TargetIP: addr("0.0.0.0")}), Delivered, fmt.Sprintf("%s > %s arp reply 10.9.0.10 is-at %s", peer, hw(n.a.MAC), peer)},
		"a packet for a":            {th.Frame(eth(peer, nic), v4(addr("10.9.0.2"), a4), udp(1, 2)), Delivered, fmt.Sprintf("%s > %s ip", peer, hw(n.a.MAC))},
		"a packet for the host":     {th.Frame(eth(peer, nic), v4(addr("10.9.0.2"), addr("10.9.0.1")), udp(1, 2)), Passed, ""},
		"with the NIC's MAC":        {th.Frame(eth(nic, nic), v4(addr("10.9.0.2"), a4), udp(1, 2)), Dropped, ""},
		"with b's MAC":              {th.Frame(eth(hw(n.b.MAC), nic), v4(addr("10.9.0.2"), a4), udp(1, 2)), Dropped, ""},
	} {
		got := n.runAt(at, c.frame)
		if got.Outcome != c.want || !strings.Contains(th.Describe(got.Frame), c.text) {
			t.Errorf("%s: %s %s, want %s\n%s\nshould have %s", name, got.Outcome, got.Reason, c.want, th.Describe(got.Frame), c.text)
		}
		if got.Outcome == Answered && bytes.Contains(got.Frame, n.a.MAC[:]) {
			t.Errorf("%s: the answer has a's MAC: %x", name, got.Frame)
		}
		if got.Outcome == Answered && got.Frame[13] == 0xdd && !sumsUp(got.Frame) {
			t.Errorf("%s: the checksum is wrong: %x", name, got.Frame)
		}
	}
}

// TestOneMACSays: what a container sends is in the NIC's name on the wire, and its checksum is right.
func TestOneMACSays(t *testing.T) {
	n := newOneMAC(t, AttachAuto, plan.ModeL2Bridge, false)
	nic, peer, ma := hw(n.nic.MAC), n.peer.MAC("eth0"), hw(n.a.MAC)
	a6, router := n.a.Addrs[1], addr("fd00:9::2")
	option := func(kind byte) []byte { return append([]byte{kind, 1}, ma...) }
	advert := append(append([]byte{0x60, 0, 0, 0}, a6.AsSlice()...), option(2)...)
	solicit := append(append([]byte{0, 0, 0, 0}, router.AsSlice()...), option(1)...)
	nonce := append([]byte{14, 1, 1, 2, 3, 4, 5, 6}, option(1)...)
	for name, frame := range map[string][]byte{
		"IPv4":                th.Frame(eth(ma, peer), v4(n.a.Addrs[0], addr("10.9.0.2")), udp(1, 2)),
		"IPv6":                th.Frame(eth(ma, peer), v6(a6, router), th.Echo{}),
		"ARP reply":           th.Frame(eth(ma, peer), th.ARP{Reply: true, SenderMAC: ma, SenderIP: n.a.Addrs[0], TargetMAC: peer, TargetIP: addr("10.9.0.2")}),
		"advertisement":       th.Frame(eth(ma, peer), th.IPv6{Src: a6, Dst: router, HopLimit: 255}, th.ICMP{Type: 136, Body: advert}),
		"solicitation":        th.Frame(eth(ma, peer), th.IPv6{Src: a6, Dst: router, HopLimit: 255}, th.ICMP{Type: 135, Body: solicit}),
		"router solicitation": th.Frame(eth(ma, peer), th.IPv6{Src: n.a.LinkLocal, Dst: addr("fe80::2"), HopLimit: 255}, th.ICMP{Type: 133, Body: append(make([]byte, 4), nonce...)}),
	} {
		if frame[13] == 0xdd && !sumsUp(frame) {
			t.Fatalf("%s: the test's own checksum is wrong", name)
		}
		got := n.run(n.a.ID, frame)
		if got.Outcome != ToWire || !bytes.Equal(got.Frame[6:12], nic) || bytes.Contains(got.Frame, ma) {
			t.Errorf("%s: %s %s, on the wire %s\n%x\nwant it in the NIC's name, %s", name, got.Outcome, got.Reason, th.Describe(got.Frame), got.Frame, nic)
		}
		if frame[13] == 0xdd && !sumsUp(got.Frame) {
			t.Errorf("%s: the checksum is wrong: %x", name, got.Frame)
		}
	}
	// To all, as stacks do.
	seen := n.peer.Capture("eth0", "")
	n.hostA.SendFrame("eth0", th.Frame(eth(ma, th.MulticastMAC(addr("ff02::2"))), th.IPv6{Src: n.a.LinkLocal, Dst: addr("ff02::2"), HopLimit: 255},
		th.ICMP{Type: 133, Body: append(make([]byte, 4), nonce...)}))
	if f := seen.Wait("ff02::2").Data; bytes.Contains(f, ma) || !sumsUp(f) {
		t.Errorf("a router solicitation to all: %x", f)
	}
	n.hostA.SendFrame("eth0", th.Frame(eth(ma, th.Broadcast()), th.ARP{SenderMAC: ma, SenderIP: n.a.Addrs[0], TargetIP: n.a.Addrs[0]}))
	if f := seen.Wait("who-has 10.9.0.10").Data; bytes.Contains(f, ma) || !bytes.Equal(f[22:28], nic) {
		t.Errorf("an announcement: %x", f)
	}
}

// sumsUp checks the checksum of an IPv6 packet without extension headers.
func sumsUp(frame []byte) bool {
	n := int(binary.BigEndian.Uint16(frame[18:]))
	sum := uint32(frame[20]) + uint32(n)
	for b := frame[22 : 54+n]; len(b) > 0; b = b[min(2, len(b)):] {
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
			break
		}
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
}

// TestOneMACVLAN: both ways and questions in a VLAN, with its tag.
func TestOneMACVLAN(t *testing.T) {
	n := newOneMAC(t, AttachAuto, plan.ModeL2Bridge, false)
	tagged := *n.b
	tagged.VLAN = 100
	n.plan.Ports[n.b.ID] = &tagged
	n.update(change(n.b, &tagged))
	nic, peer := hw(n.nic.MAC), n.peer.MAC("eth0")
	wire, in := n.wire.Capture("p0", ""), n.hostB.Capture("eth0", "")
	withTag := func(f []byte) []byte {
		return append(append(append([]byte(nil), f[:12]...), 0x81, 0, 0, 100), f[12:]...)
	}
	n.hostB.SendFrame("eth0", th.Frame(eth(hw(n.b.MAC), peer), v4(n.b.Addrs[0], addr("10.9.0.2")), udp(5, 5555)))
	if f := wire.Wait("5555").Data; fmt.Sprintf("%x", f[6:16]) != fmt.Sprintf("%x81000064", []byte(nic)) {
		t.Errorf("on the wire: %x", f)
	}
	n.wire.SendFrame("p0", withTag(th.Frame(eth(peer, th.Broadcast()), th.ARP{SenderMAC: peer, SenderIP: addr("10.9.0.2"), TargetIP: n.b.Addrs[0]})))
	if f := wire.Wait("is-at").Data; fmt.Sprintf("%x", f[6:16]) != fmt.Sprintf("%x81000064", []byte(nic)) {
		t.Errorf("the answer: %x", f)
	}
	n.wire.SendFrame("p0", th.Frame(eth(peer, nic), v4(addr("10.9.0.2"), n.b.Addrs[0]), udp(5, 6666)))
	n.wire.SendFrame("p0", withTag(th.Frame(eth(peer, nic), v4(addr("10.9.0.2"), n.b.Addrs[0]), udp(5, 7777))))
	if f := in.Wait("7777").Data; !bytes.Equal(f[:6], n.b.MAC[:]) || f[12] == 0x81 {
		t.Errorf("b gets %s", th.Describe(f))
	}
	for _, line := range in.Lines() {
		if strings.Contains(line, "6666") {
			t.Errorf("b gets what has no tag: %s", line)
		}
	}
}

// tryTCP connects, within half a second.
func tryTCP(from *th.Host, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", to.String())
	if err == nil {
		conn.Close()
	}
	return err
}

// TestOneMACGateway: a vNIC of the host's own is the gateway of containers. What the host sends on for them is answered
// from the wire, past the host, and is one connection all the same; as such it passes where nothing else may come in.
func TestOneMACGateway(t *testing.T) {
	for _, mode := range []plan.Mode{plan.ModeL2Bridge, plan.ModeL2Tunnel} {
		t.Run(mode.String(), func(t *testing.T) {
			bothWays(t, func(t *testing.T, attach AttachMode) { oneMACGateway(t, attach, mode) })
		})
	}
}

func oneMACGateway(t *testing.T, attach AttachMode, mode plan.Mode) {
	n := newOneMAC(t, attach, mode, false)
	c := n.container(lanNumber, 20)
	c.Addrs = []netip.Addr{addr("10.90.0.20"), addr("fd00:90::20")}
	gw := n.container(lanNumber, 2)
	gw.Addrs = []netip.Addr{addr("10.90.0.2"), addr("fd00:90::2")}
	gw.VNIC.Namespace, gw.VNIC.Device = "", "bhl2"
	for _, p := range []*plan.Port{c, gw} {
		n.devices(p)
		n.update(change(nil, p))
	}
	inside, vnic := n.ns[c.ID], "bhl2"
	for _, s := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf." + vnic + ".rp_filter"} {
		n.host.Sysctl(s, "1")
	}
	for h, dev := range map[*th.Host]string{n.host: vnic, inside: "eth0"} {
		h.Up(dev)
	}
	n.host.Addr(vnic, "10.90.0.2/24", "fd00:90::2/64")
	n.host.Up(gw.Device)
	n.host.Up(c.Device)
	inside.Addr("eth0", "10.90.0.20/24", "fd00:90::20/64")
	inside.Route("default", "10.90.0.2")
	inside.Route("default", "fd00:90::2")
	n.peer.Route("10.90.0.0/24", "10.9.0.1")
	n.peer.Route("fd00:90::/64", "fd00:9::1")
	wire := n.wire.Capture("p0", "")
	next := *c
	next.Policy.In = list(plan.Block)
	for i := range 2 {
		outer, own := n.everybody()[n.peer][i], n.everybody()[n.host][i]
		n.ping(inside, gw.Addrs[i])
		n.ping(inside, own)
		n.ping(inside, outer)
		n.ping(n.host, c.Addrs[i])
		n.ping(n.peer, c.Addrs[i])
		n.ping(n.peer, gw.Addrs[i])
	}
	n.plan.Ports[c.ID] = &next
	n.update(change(c, &next))
	for i := range 2 {
		outer := n.everybody()[n.peer][i]
		n.peer.TCPEcho(netip.AddrPortFrom(outer, 7))
		if err := echo(inside, netip.AddrPortFrom(outer, 7), 200_000); err != nil {
			t.Errorf("from behind the gateway: %v", err)
		}
		n.host.TCPEcho(netip.AddrPortFrom(gw.Addrs[i], 7))
		if err := echo(inside, netip.AddrPortFrom(gw.Addrs[i], 7), 200_000); err != nil {
			t.Errorf("to the gateway: %v", err)
		}
		for _, from := range []*th.Host{n.host, n.peer} {
			if err := from.Silent(c.Addrs[i]); err != nil {
				t.Errorf("what the rules forbid: %v", err)
			}
		}
	}
	for _, f := range wire.Stop() {
		if bytes.Contains(f.Data, c.MAC[:]) || bytes.Contains(f.Data, gw.MAC[:]) {
			t.Errorf("a MAC of the inside is on the wire: %s", th.Describe(f.Data))
		}
	}
	if drift := n.sync(); len(drift) > 0 {
		t.Errorf("a sync finds %v", drift)
	}
	before := n.lab.a.Writes()
	if n.sync(); n.lab.a.Writes() != before {
		t.Error("another sync writes")
	}
}

// TestOneMACTurns: what a port's policies have the host translate or route goes to it and comes back by it, and is one
// connection; the rest goes to the LAN, and so do answers.
func TestOneMACTurns(t *testing.T) {
	for _, mode := range []plan.Mode{plan.ModeL2Bridge, plan.ModeL2Tunnel} {
		t.Run(mode.String(), func(t *testing.T) {
			n := newOneMAC(t, AttachAuto, mode, false)
			for _, s := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
				n.host.Sysctl(s, "1")
			}
			n.host.Run(t, "nft", "add table inet hide; add chain inet hide post { type nat hook postrouting priority 100; }; "+
				"add rule inet hide post ip saddr 10.9.0.10 masquerade; add rule inet hide post ip6 saddr fd00:9::1:a masquerade")
			peer, wire := n.everybody()[n.peer], n.everybody()[n.wire]
			next := *n.a
			for i := range 2 {
				n.peer.UDPEcho(netip.AddrPortFrom(peer[i], 7))
				n.wire.UDPEcho(netip.AddrPortFrom(wire[i], 7))
				n.hostA.UDPEcho(netip.AddrPortFrom(n.a.Addrs[i], 7))
				n.peer.TCPEcho(netip.AddrPortFrom(peer[i], 7))
				root := netip.PrefixFrom(peer[i], 0).Masked()
				next.Turns = append(next.Turns, plan.Turn{Prefix: root, ByHost: true}, plan.Turn{Prefix: netip.PrefixFrom(wire[i], wire[i].BitLen())})
			}
			next.Policy.In = list(plan.Block, own(plan.Allow, unix.IPPROTO_UDP, 7))
			n.plan.Ports[n.a.ID] = &next
			n.update(change(n.a, &next))
			sees := func(at *th.Host, addrs [2]netip.Addr, i int, want netip.Addr) {
				t.Helper()
				seen := at.Capture(map[*th.Host]string{n.peer: "eth0", n.wire: "br0"}[at], "udp")
				defer seen.Stop()
				if _, err := n.hostA.UDPAsk(netip.AddrPortFrom(addrs[i], 7), "who"); err != nil {
					t.Errorf("a to %s: %v", addrs[i], err)
					return
				}
				for _, line := range seen.Lines() {
					if !strings.Contains(line, want.String()) {
						t.Errorf("%s sees %s, want it from %s", at.Name(), line, want)
					}
				}
			}
			for i := range 2 {
				sees(n.peer, peer, i, n.everybody()[n.host][i])
				sees(n.wire, wire, i, n.a.Addrs[i])
				if err := echo(n.hostA, netip.AddrPortFrom(peer[i], 7), 200_000); err != nil {
					t.Errorf("a to %s by TCP: %v", peer[i], err)
				}
				// Answers to others bear its own address.
				if _, err := n.peer.UDPAsk(netip.AddrPortFrom(n.a.Addrs[i], 7), "who"); err != nil {
					t.Errorf("the peer to a: %v", err)
				}
				n.ping(n.host, peer[i])
			}
			r := n.run(n.a.ID, th.Frame(eth(hw(n.a.MAC), n.peer.MAC("eth0")), v4(n.a.Addrs[0], peer[0]), th.Echo{}))
			if r.Outcome != Delivered || r.To != n.nic.ID {
				t.Errorf("a's echo request to the peer: %s to %q, want it at the host", r.Outcome, r.To)
			}
			if drift := n.sync(); len(drift) > 0 {
				t.Errorf("a sync finds %v", drift)
			}
		})
	}
}

// TestSharedNIC: networks of several types on one NIC, each with its ports; they come and go without the others noticing.
func TestSharedNIC(t *testing.T) {
	bothWays(t, func(t *testing.T, attach AttachMode) {
		n := newLANOf(t, attach, plan.ModeTransparent)
		second := &plan.Switch{Number: 12, Network: network(12), Mode: plan.ModeL2Bridge, MTU: 1500, Uplink: "nic0", UplinkPort: n.nic.ID}
		n.plan.Switches[network(12)] = second
		c := n.container(12, 10)
		n.devices(c)
		n.update(&plan.Delta{
			Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(12): {New: second}},
			Ports:    map[plan.PortID]plan.Change[plan.Port]{c.ID: {New: c}},
		})
		n.up(c)
		inside := n.ns[c.ID]
		n.peer.Addr("eth0", "10.12.0.2/16", "fd00:12::2/64")
		n.host.Addr("nic0", "10.12.0.1/16", "fd00:12::1/64")
		reach := func() {
			t.Helper()
			for i := range 2 {
				n.ping(n.peer, c.Addrs[i])
				n.ping(n.host, c.Addrs[i])
				n.ping(inside, []netip.Addr{addr("10.12.0.2"), addr("fd00:12::2")}[i])
				n.ping(n.peer, n.a.Addrs[i])
				n.ping(n.hostA, n.everybody()[n.peer][i])
			}
		}
		wire := n.wire.Capture("p0", "")
		reach()
		for _, f := range wire.Stop() {
			if bytes.Contains(f.Data, c.MAC[:]) {
				t.Errorf("the MAC of the L2Bridge's container is on the wire: %s", th.Describe(f.Data))
			}
		}
		if drift := n.sync(); len(drift) > 0 {
			t.Errorf("a sync finds %v", drift)
		}
		before := n.lab.a.Writes()
		if n.sync(); n.lab.a.Writes() != before {
			t.Error("another sync writes")
		}
		// The network that has the NIC's port goes, and the other one gets it.
		gone, nic := n.plan.Switches[network(lanNumber)], n.nic
		next := *second
		next.UplinkPort = plan.UplinkPortID(network(12))
		moved := *nic
		moved.ID, moved.Network, moved.Switch = next.UplinkPort, network(12), 12
		d := &plan.Delta{
			Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(lanNumber): {Old: gone}, network(12): {Old: second, New: &next}},
			Ports: map[plan.PortID]plan.Change[plan.Port]{
				nic.ID: {Old: nic}, moved.ID: {New: &moved}, n.a.ID: {Old: n.a}, n.b.ID: {Old: n.b},
			},
		}
		delete(n.plan.Switches, network(lanNumber))
		n.plan.Switches[network(12)] = &next
		for id, ch := range d.Ports {
			if delete(n.plan.Ports, id); ch.New != nil {
				n.plan.Ports[id] = ch.New
			}
		}
		n.update(d)
		for i := range 2 {
			n.ping(n.peer, c.Addrs[i])
			n.ping(inside, []netip.Addr{addr("10.12.0.2"), addr("fd00:12::2")}[i])
			if err := n.peer.Silent(n.a.Addrs[i]); err != nil {
				t.Error(err)
			}
		}
		if drift := n.sync(); len(drift) > 0 {
			t.Errorf("a sync finds %v", drift)
		}
	})
}
