package vswitch

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// mdns are the groups of multicast DNS.
var mdns = [2]netip.Addr{netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")}

var errWaiting = errors.New("it has not come")

// ofGroup is the MAC of a group.
func ofGroup(a netip.Addr) plan.MAC {
	b := a.AsSlice()
	if a.Is4() {
		return plan.MAC{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	return plan.MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// spread is a host of a network over two, with containers of the given numbers, of which the other has theirs.
func (l *lab) spread(self, other string, own, theirs []int) {
	l.t.Helper()
	l.plan.Switches[network(1)] = &plan.Switch{
		Number: 1, Network: network(1), Mode: plan.ModeOverlay, MTU: 1450, Uplink: "nic1",
		Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/16"), VNI: 5001}, {Prefix: netip.MustParsePrefix("fd00:1::/64"), VNI: 5001}},
		Overlay: &plan.Overlay{
			Port: 4789, Provider: netip.MustParseAddr(self), Router: plan.MAC{2, 0, 0, 0, 1, 1}, MTU: 1500, Multicast: true, Tunnel: plan.TunnelPortID(4789),
		},
	}
	l.plan.Remotes = map[hcn.GUID]*plan.Remote{}
	for _, i := range theirs {
		c := l.container(1, i)
		delete(l.plan.Ports, c.ID)
		l.plan.Remotes[hcn.GUID(c.ID)] = &plan.Remote{
			Endpoint: hcn.GUID(c.ID), Network: network(1), MAC: c.MAC, Provider: netip.MustParseAddr(other), Addrs: c.Addrs, VNIs: []uint32{5001, 5001},
		}
	}
	l.host.Run(l.t, "sh", "-ec", "ip link add bhv1 type vxlan external nolearning dstport 4789; ip link set bhv1 mtu 65000 up")
	var ports []*plan.Port
	for _, i := range own {
		ports = append(ports, l.container(1, i))
		l.devices(ports[len(ports)-1])
	}
	l.plan.Ports[plan.TunnelPortID(4789)] = &plan.Port{
		ID: plan.TunnelPortID(4789), Kind: plan.PortTunnel, Network: network(1), Switch: 1, UDPPort: 4789, Device: "bhv1", Underlays: []string{"nic1"},
	}
	l.sync()
	for _, p := range ports {
		l.up(p)
	}
}

// TestOverlayMulticast: what a container sends to a group reaches those on another host that are in it, once, and goes from there to no
// third one.
func TestOverlayMulticast(t *testing.T) {
	one, two := newLab(t, AttachAuto), newLab(t, AttachAuto)
	one.host.Connect(two.host, th.Cable{Dev: "nic1", PeerDev: "nic1", Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	one.spread("192.0.2.1", "192.0.2.2", []int{10, 11}, []int{20, 21})
	two.spread("192.0.2.2", "192.0.2.1", []int{20, 21}, []int{10, 11})
	from, in, out := one.plan.Ports["1-10"], two.plan.Ports["1-20"], two.plan.Ports["1-21"]
	back := two.host.Capture("nic1", "")
	beside := one.ns["1-11"].Capture("eth0", "")
	member, stranger := two.ns[in.ID].Capture("eth0", ""), two.ns[out.ID].Capture("eth0", "")
	copies := func(c *th.Capture, frame []byte) (n int) {
		for _, f := range c.Frames() {
			if !f.Outgoing && bytes.Equal(f.Data, frame) {
				n++
			}
		}
		return n
	}
	frame := func(to netip.Addr, i int, port uint16) []byte {
		return plan.Packet{SrcMAC: from.MAC, DstMAC: ofGroup(to), EtherType: [2]uint16{0x0800, 0x86dd}[i], Src: from.Addrs[i], Dst: to, Protocol: 17, SrcPort: port, DstPort: 5353}.Frame()
	}
	quiet := func() uint64 {
		all, err := two.a.Drops()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if d.Reason == ReasonNoMember {
				return d.Packets
			}
		}
		return 0
	}
	for i, group := range mdns {
		before, f := quiet(), frame(group, i, 1000)
		one.ns[from.ID].SendFrame("eth0", f)
		th.Eventually(t, 5*time.Second, func() error {
			if quiet() == before || copies(beside, f) != 1 {
				return errWaiting
			}
			return nil
		})
		var conn net.PacketConn
		var err error
		two.ns[in.ID].Do(func() {
			var eth *net.Interface
			if eth, err = net.InterfaceByName("eth0"); err == nil {
				conn, err = net.ListenMulticastUDP([2]string{"udp4", "udp6"}[i], eth, &net.UDPAddr{IP: group.AsSlice(), Port: 5353})
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		last, port := f, uint16(2000)
		th.Eventually(t, 10*time.Second, func() error { // the report is on its way
			if copies(member, last) > 0 {
				return nil
			}
			port++
			last = frame(group, i, port)
			one.ns[from.ID].SendFrame("eth0", last)
			return errWaiting
		})
		if n := copies(member, last); n != 1 {
			t.Errorf("%s: %d copies for one who is in the group", group, n)
		}
		if n := copies(stranger, last); n != 0 {
			t.Errorf("%s: %d copies for one who is not", group, n)
		}
		all := frame([2]netip.Addr{netip.MustParseAddr("10.1.255.255"), netip.MustParseAddr("ff02::1")}[i], i, 3000)
		if i == 0 {
			copy(all, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		}
		one.ns[from.ID].SendFrame("eth0", all)
		th.Eventually(t, 5*time.Second, func() error {
			if copies(stranger, all) != 1 || copies(member, all) != 1 {
				return errWaiting
			}
			return nil
		})
	}
	came := 0
	for _, f := range back.Frames() {
		switch {
		case !bytes.Contains(f.Data, from.MAC[:]):
		case f.Outgoing:
			t.Errorf("it went back: %x", f.Data)
		default:
			came++
		}
	}
	if came == 0 {
		t.Error("the wire has not seen what came")
	}
	if n := len(one.a.remotes.t.floods.have); n != 1 {
		t.Errorf("%d hosts get copies, want 1", n)
	}
	// Without the policy it stays here, where what is for one host alone crosses after it.
	sw := *one.plan.Switches[network(1)]
	overlay := *sw.Overlay
	overlay.Multicast, sw.Overlay = false, &overlay
	old := one.plan.Switches[network(1)]
	one.plan.Switches[network(1)] = &sw
	one.update(&plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(1): {Old: old, New: &sw}}})
	group := frame(mdns[0], 0, 4000)
	alone := plan.Packet{SrcMAC: from.MAC, DstMAC: in.MAC, EtherType: 0x0800, Src: from.Addrs[0], Dst: in.Addrs[0], Protocol: 17, SrcPort: 4000, DstPort: 9}.Frame()
	one.ns[from.ID].SendFrame("eth0", group)
	one.ns[from.ID].SendFrame("eth0", alone)
	th.Eventually(t, 5*time.Second, func() error {
		if copies(beside, group) != 1 || copies(member, alone) != 1 {
			return errWaiting
		}
		return nil
	})
	if n := copies(member, group); n != 0 {
		t.Errorf("%d copies crossed without the policy", n)
	}
	index := two.a.applied[in.ID].index
	if n := two.groupsAt(index); n < 3 {
		t.Errorf("%d entries are known of one who is in two groups", n)
	}
	delete(two.plan.Ports, in.ID)
	two.update(&plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{in.ID: {Old: in}}})
	if n := two.groupsAt(index); n != 0 {
		t.Errorf("%d groups of a port that is gone are left", n)
	}
}

// groupsAt counts what the switch knows of the groups of a port.
func (l *lab) groupsAt(index uint32) (n int) {
	l.t.Helper()
	it := l.a.objs.BhGroupsV1.Iterate()
	var k bpfAddrKey
	var v uint32
	for it.Next(&k, &v) {
		if k.Sw == index {
			n++
		}
	}
	return n
}
