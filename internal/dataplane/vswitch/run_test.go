package vswitch

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// frameCase is one frame into one port, and what has to become of it.
type frameCase struct {
	name  string
	from  plan.PortID
	frame []byte
	want  Result // Frame is compared only by the tests about answers
}

// runLab is the switch that the frame tables speak of: a and b on switch 1 with host and
// resolver, c alone on switch 2.
type runLab struct {
	*lab
	a, b, c        *plan.Port
	host, resolver plan.PortID
	ma, mb, mg     th.MAC
	a4, a6, b4, b6 netip.Addr
	all            th.MAC
}

func newRunLab(t *testing.T) *runLab {
	t.Helper()
	l := newLab(t, AttachAuto)
	l.nat(1)
	l.nat(2)
	r := &runLab{lab: l, a: l.container(1, 10), b: l.container(1, 11), c: l.container(2, 10)}
	for _, p := range l.plan.Ports {
		l.devices(p)
	}
	l.sync()
	r.host, r.resolver = plan.HostPortID(network(1)), plan.ResolverPortID(network(1))
	r.ma, r.mb, r.mg = hw(r.a.MAC), hw(r.b.MAC), hw(l.plan.Ports[r.host].MAC)
	r.a4, r.a6, r.b4, r.b6 = r.a.Addrs[0], r.a.Addrs[1], r.b.Addrs[0], r.b.Addrs[1]
	r.all = th.Broadcast()
	return r
}

func (r *runLab) check(t *testing.T, cases []frameCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := r.run(c.from, c.frame)
			frame := got.Frame
			got.Frame = nil
			if got.Outcome != c.want.Outcome || got.Reason != c.want.Reason || got.To != c.want.To || got.Copies != c.want.Copies {
				t.Errorf("%s\n got %+v (%s)\nwant %+v (%s)\nframe after: %s", th.Describe(c.frame), got, got.Reason,
					c.want, c.want.Reason, th.Describe(frame))
			}
		})
	}
}

func dropped(r Reason) Result                    { return Result{Outcome: Dropped, Reason: r} }
func delivered(to plan.PortID) Result            { return Result{Outcome: Delivered, To: to, Copies: 1} }
func replicated(n int) Result                    { return Result{Outcome: Replicated, Copies: n} }
func addr(s string) netip.Addr                   { return netip.MustParseAddr(s) }
func cut(frame []byte, n int) []byte             { return frame[:len(frame)-n] }
func udp(src, dst uint16) th.Layer               { return th.UDP{SrcPort: src, DstPort: dst} }
func eth(src, dst th.MAC) th.Layer               { return th.Ethernet{Src: src, Dst: dst} }
func v4(src, dst netip.Addr) th.Layer            { return th.IPv4{Src: src, Dst: dst} }
func v6(src, dst netip.Addr) th.Layer            { return th.IPv6{Src: src, Dst: dst} }
func set(frame []byte, at int, b ...byte) []byte { copy(frame[at:], b); return frame }

// extend puts extension headers between the IPv6 header and what follows. Each is given
// by its number and its bytes, of which the first is filled in.
func extend(frame []byte, headers ...[]byte) []byte {
	next, out := frame[20], append([]byte(nil), frame[:54]...)
	var chain []byte
	for i, h := range headers {
		body := append([]byte(nil), h[1:]...)
		body[0] = next
		if i+1 < len(headers) {
			body[0] = headers[i+1][0]
		}
		chain = append(chain, body...)
	}
	out[20] = headers[0][0]
	out = append(append(out, chain...), frame[54:]...)
	binary.BigEndian.PutUint16(out[18:], uint16(len(out)-54))
	return out
}

// Extension headers: number, next header, then the rest.
func hopByHop() []byte    { return []byte{0, 0, 0, 1, 4, 0, 0, 0, 0} }
func destOptions() []byte { return []byte{60, 0, 0, 1, 4, 0, 0, 0, 0} }
func fragment(offset int, more bool) []byte {
	off := uint16(offset)
	if more {
		off |= 1
	}
	return []byte{44, 0, 0, byte(off >> 8), byte(off), 0, 0, 0, 7}
}

func TestDelivery(t *testing.T) {
	r := newRunLab(t)
	ghost := th.ParseMAC("02:00:00:00:00:99")
	outside4, outside6 := addr("192.0.2.7"), addr("2001:db8::7")
	gw4, gw6 := gateway4(1), gateway6(1)
	r.check(t, []frameCase{
		{"a to b, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mb), v4(r.a4, r.b4), th.Echo{}), delivered(r.b.ID)},
		{"a to b, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), th.Echo{}), delivered(r.b.ID)},
		{"a to b, link-local", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a.LinkLocal, r.b.LinkLocal), th.Echo{}), delivered(r.b.ID)},
		{"a to the outside, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.a4, outside4), udp(1000, 53)), delivered(r.host)},
		{"a to the outside, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.a6, outside6), th.TCP{DstPort: 53, Flags: "S"}), delivered(r.host)},
		{"a to the gateway's web server", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.a4, gw4), th.TCP{DstPort: 80, Flags: "S"}), delivered(r.host)},
		{"a name query, UDP over IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.a4, gw4), udp(1000, 53)), delivered(r.resolver)},
		{"a name query, TCP over IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.a4, gw4), th.TCP{SrcPort: 9, DstPort: 53, Flags: "S"}), delivered(r.resolver)},
		{"a name query, UDP over IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.a6, gw6), udp(1000, 53)), delivered(r.resolver)},
		{"a name query, TCP over IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.a6, gw6), th.TCP{SrcPort: 9, DstPort: 53, Flags: "S"}), delivered(r.resolver)},
		{"a name query behind an option", r.a.ID, th.Frame(eth(r.ma, r.mg), th.IPv4{Src: r.a4, Dst: gw4, Options: []byte{1, 1, 1, 1}}, udp(1000, 53)), delivered(r.resolver)},
		{"a name query behind extension headers", r.a.ID, extend(th.Frame(eth(r.ma, r.mg), v6(r.a6, gw6), udp(1000, 53)), hopByHop(), destOptions()), delivered(r.resolver)},
		{"a name query to b is b's", r.a.ID, th.Frame(eth(r.ma, r.mb), v4(r.a4, r.b4), udp(1000, 53)), delivered(r.b.ID)},
		{"first fragment of a name query", r.a.ID, th.Frame(eth(r.ma, r.mg), th.IPv4{Src: r.a4, Dst: gw4, MoreFragments: true}, udp(1000, 53)), dropped(ReasonFragment)},
		{"later fragment to the gateway", r.a.ID, th.Frame(eth(r.ma, r.mg), th.IPv4{Src: r.a4, Dst: gw4, FragmentOffset: 1480, Protocol: 17}, th.Text("rest")), delivered(r.host)},
		{"resolver answers, IPv4", r.resolver, th.Frame(eth(r.mg, r.ma), v4(gw4, r.a4), udp(53, 1000)), delivered(r.a.ID)},
		{"resolver answers, IPv6", r.resolver, th.Frame(eth(r.mg, r.ma), v6(gw6, r.a6), th.TCP{SrcPort: 53, DstPort: 9, Flags: "SA"}), delivered(r.a.ID)},
		{"resolver, later fragment of an answer", r.resolver, th.Frame(eth(r.mg, r.ma), th.IPv4{Src: gw4, Dst: r.a4, FragmentOffset: 1480, Protocol: 17}, th.Text("rest")), delivered(r.a.ID)},
		{"resolver from another port", r.resolver, th.Frame(eth(r.mg, r.ma), v4(gw4, r.a4), udp(54, 1000)), dropped(ReasonResolver)},
		{"resolver pings", r.resolver, th.Frame(eth(r.mg, r.ma), v4(gw4, r.a4), th.Echo{}), dropped(ReasonResolver)},
		{"resolver broadcasts", r.resolver, th.Frame(eth(r.mg, r.all), v4(gw4, addr("255.255.255.255")), udp(53, 1000)), dropped(ReasonResolver)},
		{"resolver, MLD report", r.resolver, extend(th.Frame(eth(r.mg, th.MulticastMAC(addr("ff02::16"))), v6(addr("::"), addr("ff02::16")), th.ICMP{Type: 143, Body: make([]byte, 4)}), hopByHop()), dropped(ReasonMembership)},
		{"resolver as DHCP client", r.resolver, th.Frame(eth(r.mg, r.all), v4(addr("0.0.0.0"), addr("255.255.255.255")), udp(68, 67)), dropped(ReasonMartian)},
		{"resolver as a container", r.resolver, th.Frame(eth(r.mg, r.ma), v4(r.b4, r.a4), udp(53, 1000)), dropped(ReasonSourceAddress)},
		{"resolver broadcasts ARP replies", r.resolver, th.Frame(eth(r.mg, r.all), th.ARP{Reply: true, SenderMAC: r.mg, SenderIP: gw4, TargetIP: gw4}), dropped(ReasonARPSpoof)},
		{"host to a, routed", r.host, th.Frame(eth(r.mg, r.ma), v4(outside4, r.a4), th.TCP{Flags: "S"}), delivered(r.a.ID)},
		{"host to a, IPv6", r.host, th.Frame(eth(r.mg, r.ma), v6(gw6, r.a6), th.TCP{Flags: "S"}), delivered(r.a.ID)},
		{"later fragment to b", r.a.ID, th.Frame(eth(r.ma, r.mb), th.IPv4{Src: r.a4, Dst: r.b4, FragmentOffset: 1480, Protocol: 17}, th.Text("rest")), delivered(r.b.ID)},
		{"IPv6 fragments to b", r.a.ID, extend(th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), udp(1, 2)), fragment(1448, false)), delivered(r.b.ID)},
		{"atomic fragment to b", r.a.ID, extend(th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), udp(1, 2)), fragment(0, false)), delivered(r.b.ID)},
		{"padded frame", r.a.ID, append(th.Frame(eth(r.ma, r.mb), v4(r.a4, r.b4), udp(1, 2)), make([]byte, 18)...), delivered(r.b.ID)},
		{"unknown MAC, unknown address", r.a.ID, th.Frame(eth(r.ma, ghost), v4(r.a4, outside4), th.Echo{}), dropped(ReasonUnknownMAC)},
		{"the MAC that b's address had before", r.a.ID, th.Frame(eth(r.ma, ghost), v4(r.a4, r.b4), th.Echo{}), delivered(r.b.ID)},
		{"the MAC that the gateway had before", r.a.ID, th.Frame(eth(r.ma, ghost), v6(r.a6, gw6), udp(1000, 53)), delivered(r.resolver)},
		{"MAC of another switch", r.a.ID, th.Frame(eth(r.ma, hw(r.c.MAC)), v4(r.a4, r.c.Addrs[0]), th.Echo{}), dropped(ReasonUnknownMAC)},
		{"gateway MAC of another switch", r.a.ID, th.Frame(eth(r.ma, hw(plan.MAC{2, 0, 0, 0, 2, 1})), v4(r.a4, r.c.Addrs[0]), th.Echo{}), dropped(ReasonUnknownMAC)},
		{"to itself", r.a.ID, th.Frame(eth(r.ma, r.ma), v4(r.a4, r.a4), th.Echo{}), dropped(ReasonToSelf)},
		{"broadcast", r.a.ID, th.Frame(eth(r.ma, r.all), v4(r.a4, addr("255.255.255.255")), udp(1, 2)), replicated(2)},
		{"subnet broadcast", r.a.ID, th.Frame(eth(r.ma, r.all), v4(r.a4, addr("10.1.255.255")), udp(1, 2)), replicated(2)},
		{"multicast, IPv4", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(addr("224.0.0.251"))), v4(r.a4, addr("224.0.0.251")), udp(5353, 5353)), replicated(2)},
		{"multicast, IPv6", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(addr("ff02::fb"))), v6(r.a.LinkLocal, addr("ff02::fb")), udp(5353, 5353)), replicated(2)},
		{"broadcast from the host", r.host, th.Frame(eth(r.mg, r.all), v4(gw4, addr("255.255.255.255")), udp(1, 2)), replicated(2)},
		{"DHCP client", r.a.ID, th.Frame(eth(r.ma, r.all), v4(addr("0.0.0.0"), addr("255.255.255.255")), udp(68, 67)), replicated(2)},
		{"MLD report", r.a.ID, extend(th.Frame(eth(r.ma, th.MulticastMAC(addr("ff02::16"))), v6(addr("::"), addr("ff02::16")), th.ICMP{Type: 143, Body: make([]byte, 4)}), hopByHop()), dropped(ReasonMembership)},
		{"IGMP report", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(addr("224.0.0.22"))), th.IPv4{Src: r.a4, Dst: addr("224.0.0.22"), TTL: 1, Protocol: 2}, th.Raw(make([]byte, 8))), dropped(ReasonMembership)},
		{"router solicitation", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(addr("ff02::2"))), th.IPv6{Src: r.a.LinkLocal, Dst: addr("ff02::2"), HopLimit: 255}, th.ICMP{Type: 133, Body: make([]byte, 4)}), dropped(ReasonRouterSolicit)},
	})
}

func TestSourceGuard(t *testing.T) {
	r := newRunLab(t)
	gw4, gw6 := gateway4(1), gateway6(1)
	group6 := addr("ff02::1")
	unspecified := addr("::")
	ra := th.RA{Lifetime: 1800, SourceMAC: r.ma, Prefix: netip.MustParsePrefix("2001:db8::/64")}
	raFrame := th.Frame(eth(r.ma, th.MulticastMAC(group6)), v6(r.a.LinkLocal, group6), ra)
	r.check(t, []frameCase{
		{"MAC of b", r.a.ID, th.Frame(eth(r.mb, r.mg), v4(r.a4, gw4), th.Echo{}), dropped(ReasonSourceMAC)},
		{"MAC of the gateway", r.a.ID, th.Frame(eth(r.mg, r.mb), v4(gw4, r.b4), th.Echo{}), dropped(ReasonSourceMAC)},
		{"group MAC as source", r.a.ID, th.Frame(eth(r.all, r.mb), v4(r.a4, r.b4), th.Echo{}), dropped(ReasonMartian)},
		{"IPv4 of b", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.b4, gw4), th.Echo{}), dropped(ReasonSourceAddress)},
		{"IPv6 of b", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.b6, gw6), th.Echo{}), dropped(ReasonSourceAddress)},
		{"link-local of b", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.b.LinkLocal, gw6), th.Echo{}), dropped(ReasonSourceAddress)},
		{"IPv4 of the gateway", r.a.ID, th.Frame(eth(r.ma, r.mb), v4(gw4, r.b4), th.Echo{}), dropped(ReasonSourceAddress)},
		{"IPv4 of nobody", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(addr("10.1.0.77"), gw4), th.Echo{}), dropped(ReasonSourceAddress)},
		{"IPv4 of the outside", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(addr("192.0.2.1"), gw4), th.Echo{}), dropped(ReasonSourceAddress)},
		{"IPv6 of the outside", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(addr("2001:db8::1"), gw6), th.Echo{}), dropped(ReasonSourceAddress)},
		{"its address on the other switch", r.c.ID, th.Frame(eth(hw(r.c.MAC), r.ma), v4(r.a4, r.b4), th.Echo{}), dropped(ReasonSourceAddress)},
		{"mapped IPv6 of its own IPv4", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(addr("::ffff:10.1.0.10"), r.b6), th.Echo{}), dropped(ReasonMartian)},
		{"to mapped IPv6", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a6, addr("::ffff:10.1.0.11")), th.Echo{}), dropped(ReasonMartian)},
		{"loopback source, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(addr("127.0.0.1"), gw4), th.Echo{}), dropped(ReasonMartian)},
		{"loopback source, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(addr("::1"), gw6), th.Echo{}), dropped(ReasonMartian)},
		{"to loopback, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.a4, addr("127.0.0.1")), th.TCP{DstPort: 80, Flags: "S"}), dropped(ReasonMartian)},
		{"to loopback, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.a6, addr("::1")), th.TCP{DstPort: 80, Flags: "S"}), dropped(ReasonMartian)},
		{"to 0.0.0.0", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(r.a4, addr("0.0.0.0")), th.TCP{DstPort: 80, Flags: "S"}), dropped(ReasonMartian)},
		{"to ::", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(r.a6, unspecified), th.TCP{DstPort: 80, Flags: "S"}), dropped(ReasonMartian)},
		{"broadcast source", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(addr("255.255.255.255"), gw4), th.Echo{}), dropped(ReasonMartian)},
		{"multicast source, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(addr("224.0.0.1"), gw4), th.Echo{}), dropped(ReasonMartian)},
		{"multicast source, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(group6, gw6), th.Echo{}), dropped(ReasonMartian)},
		{"unspecified source, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mg), v4(addr("0.0.0.0"), gw4), udp(68, 67)), dropped(ReasonMartian)},
		{"unspecified source, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mg), v6(unspecified, gw6), udp(1, 2)), dropped(ReasonSourceAddress)},
		{"host from loopback", r.host, th.Frame(eth(r.mg, r.ma), v4(addr("127.0.0.1"), r.a4), th.Echo{}), dropped(ReasonMartian)},
		{"ICMP redirect, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mb), v4(r.a4, r.b4), th.ICMP{Type: 5, Code: 1, Body: make([]byte, 28)}), dropped(ReasonRedirect)},
		{"ICMP redirect, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mb), th.IPv6{Src: r.a.LinkLocal, Dst: r.b6, HopLimit: 255}, th.ICMP{Type: 137, Body: make([]byte, 36)}), dropped(ReasonRedirect)},
		{"router discovery, IPv4", r.a.ID, th.Frame(eth(r.ma, r.all), v4(r.a4, addr("255.255.255.255")), th.ICMP{Type: 9, Body: make([]byte, 12)}), dropped(ReasonRouterAdvert)},
		{"router advertisement", r.a.ID, raFrame, dropped(ReasonRouterAdvert)},
		{"router advertisement behind options", r.a.ID, extend(raFrame, hopByHop(), destOptions(), destOptions()), dropped(ReasonRouterAdvert)},
		{"router advertisement in a fragment", r.a.ID, extend(raFrame, fragment(0, true)), dropped(ReasonRouterAdvert)},
		{"router advertisement behind too much", r.a.ID, extend(raFrame, destOptions(), destOptions(), destOptions(), destOptions(), destOptions(), destOptions(), destOptions(), destOptions()), dropped(ReasonExtensionHeaders)},
		{"DHCP server, IPv4", r.a.ID, th.Frame(eth(r.ma, r.all), v4(r.a4, addr("255.255.255.255")), udp(67, 68)), dropped(ReasonDHCPServer)},
		{"DHCP server from another port, IPv4", r.a.ID, th.Frame(eth(r.ma, r.mb), v4(r.a4, r.b4), udp(1067, 68)), dropped(ReasonDHCPServer)},
		{"DHCP server from another port, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a.LinkLocal, r.b.LinkLocal), udp(1547, 546)), dropped(ReasonDHCPServer)},
		{"DHCP server, IPv6", r.a.ID, th.Frame(eth(r.ma, r.mb), v6(r.a.LinkLocal, r.b.LinkLocal), udp(547, 546)), dropped(ReasonDHCPServer)},
		{"unicast in a broadcast frame", r.a.ID, th.Frame(eth(r.ma, r.all), v4(r.a4, r.b4), udp(1, 2)), dropped(ReasonGroupUnicast)},
		{"unicast in a multicast frame", r.a.ID, th.Frame(eth(r.ma, th.MulticastMAC(group6)), v6(r.a6, r.b6), udp(1, 2)), dropped(ReasonGroupUnicast)},
	})
}

func TestMalformed(t *testing.T) {
	r := newRunLab(t)
	plain4 := func() []byte { return th.Frame(eth(r.ma, r.mb), v4(r.a4, r.b4), th.TCP{Flags: "S"}) }
	plain6 := func() []byte { return th.Frame(eth(r.ma, r.mb), v6(r.a6, r.b6), th.TCP{Flags: "S"}) }
	arp := th.Frame(eth(r.ma, r.all), th.ARP{SenderMAC: r.ma, SenderIP: r.a4, TargetIP: r.b4})
	r.check(t, []frameCase{
		{"tagged", r.a.ID, th.Frame(eth(r.ma, r.mb), th.VLAN{ID: 5}, v4(r.a4, r.b4), th.Echo{}), dropped(ReasonVLAN)},
		{"tagged twice", r.a.ID, th.Frame(th.Ethernet{Src: r.ma, Dst: r.mb, Type: 0x88a8}, th.VLAN{ID: 5}, th.VLAN{ID: 6}, v4(r.a4, r.b4), th.Echo{}), dropped(ReasonVLAN)},
		{"priority tagged", r.a.ID, th.Frame(eth(r.ma, r.mb), th.VLAN{Priority: 3}, v4(r.a4, r.b4), th.Echo{}), dropped(ReasonVLAN)},
		{"unknown EtherType", r.a.ID, th.Frame(th.Ethernet{Src: r.ma, Dst: r.mb, Type: 0x88b5}, th.Text("hello, anybody there on this wire?")), dropped(ReasonEtherType)},
		{"spanning tree (802.3 length)", r.a.ID, th.Frame(th.Ethernet{Src: r.ma, Dst: th.ParseMAC("01:80:c2:00:00:00"), Type: 38}, th.Raw(make([]byte, 46))), dropped(ReasonEtherType)},
		{"IPv4 version 5", r.a.ID, set(plain4(), 14, 0x55), dropped(ReasonMalformed)},
		{"IPv4 header too short", r.a.ID, set(plain4(), 14, 0x44), dropped(ReasonMalformed)},
		{"IPv4 header longer than packet", r.a.ID, set(plain4(), 14, 0x4f), dropped(ReasonMalformed)},
		{"IPv4 length too long", r.a.ID, set(plain4(), 16, 0x10, 0), dropped(ReasonMalformed)},
		{"IPv4 length zero without segmentation", r.a.ID, set(plain4(), 16, 0, 0), dropped(ReasonMalformed)},
		{"IPv4 cut", r.a.ID, cut(plain4(), 10), dropped(ReasonMalformed)},
		{"TCP header cut", r.a.ID, set(cut(plain4(), 4), 16, 0, 36), dropped(ReasonMalformed)},
		{"TCP header in the padding", r.a.ID, set(plain4(), 16, 0, 24), dropped(ReasonMalformed)},
		{"IPv6 version 4", r.a.ID, set(plain6(), 14, 0x40), dropped(ReasonMalformed)},
		{"IPv6 length too long", r.a.ID, set(plain6(), 18, 1, 0), dropped(ReasonMalformed)},
		{"IPv6 cut", r.a.ID, cut(plain6(), 10), dropped(ReasonMalformed)},
		{"extension header longer than packet", r.a.ID, extend(plain6(), append([]byte{60, 0, 200}, make([]byte, 6)...)), dropped(ReasonMalformed)},
		{"first fragment without ports", r.a.ID, th.Frame(eth(r.ma, r.mb), th.IPv4{Src: r.a4, Dst: r.b4, MoreFragments: true, Protocol: 6}, th.Text("tiny")), dropped(ReasonFragment)},
		{"fragment over the TCP flags", r.a.ID, th.Frame(eth(r.ma, r.mb), th.IPv4{Src: r.a4, Dst: r.b4, FragmentOffset: 8, Protocol: 6}, th.Text("over the flags")), dropped(ReasonFragment)},
		{"first IPv6 fragment without ports", r.a.ID, extend(th.Frame(eth(r.ma, r.mb), th.IPv6{Src: r.a6, Dst: r.b6, NextHeader: 6}, th.Text("tiny")), fragment(0, true)), dropped(ReasonFragment)},
		{"ARP cut", r.a.ID, cut(arp, 8), dropped(ReasonMalformed)},
		{"ARP for another protocol", r.a.ID, set(append([]byte(nil), arp...), 16, 0x86, 0xdd), dropped(ReasonMalformed)},
		{"reverse ARP", r.a.ID, set(append([]byte(nil), arp...), 20, 0, 3), dropped(ReasonMalformed)},
	})
}
