package testhost_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// frames has one frame of each kind and the line it reads as.
func frames() []struct {
	line  string
	frame []byte
} {
	a, b := testhost.ParseMAC("02:00:00:00:00:01"), testhost.ParseMAC("02:00:00:00:00:02")
	a4, b4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	a6, b6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	sol := testhost.SolicitedNode(b6)
	eth := testhost.Ethernet{Src: a, Dst: b}
	v4, v6 := testhost.IPv4{Src: a4, Dst: b4}, testhost.IPv6{Src: a6, Dst: b6}
	return []struct {
		line  string
		frame []byte
	}{
		{
			"02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who-has 192.0.2.2 tell 192.0.2.1",
			testhost.Frame(testhost.Ethernet{Src: a, Dst: testhost.Broadcast()},
				testhost.ARP{SenderMAC: a, SenderIP: a4, TargetIP: b4}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 arp reply 192.0.2.1 is-at 02:00:00:00:00:01",
			testhost.Frame(eth, testhost.ARP{Reply: true, SenderMAC: a, SenderIP: a4, TargetMAC: b, TargetIP: b4}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip 192.0.2.1 > 192.0.2.2 ttl 64 tcp 1000 > 80 [SA] len 5",
			testhost.Frame(eth, v4,
				testhost.TCP{SrcPort: 1000, DstPort: 80, Flags: "SA", MSS: 1460}, testhost.Text("hello")),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip6 2001:db8::1 > 2001:db8::2 hlim 64 tcp 1000 > 80 [S] len 0",
			testhost.Frame(eth, v6, testhost.TCP{SrcPort: 1000, DstPort: 80, Flags: "S"}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip 192.0.2.1 > 192.0.2.2 ttl 1 udp 1000 > 53 len 3",
			testhost.Frame(eth, testhost.IPv4{Src: a4, Dst: b4, TTL: 1, Options: []byte{1, 1}},
				testhost.UDP{SrcPort: 1000, DstPort: 53}, testhost.Text("odd")),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 vlan 5 ip6 2001:db8::1 > 2001:db8::2 hlim 64 udp 1 > 2 len 0",
			testhost.Frame(eth, testhost.VLAN{ID: 5, Priority: 3}, v6, testhost.UDP{SrcPort: 1, DstPort: 2}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip 192.0.2.1 > 192.0.2.2 ttl 64 icmp echo-request id 7 seq 1",
			testhost.Frame(eth, v4, testhost.Echo{ID: 7, Seq: 1}, testhost.Text("ping")),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip6 2001:db8::1 > 2001:db8::2 hlim 64 icmp6 echo-reply id 7 seq 1",
			testhost.Frame(eth, v6, testhost.Echo{Reply: true, ID: 7, Seq: 1}),
		},
		{
			"02:00:00:00:00:01 > 33:33:ff:00:00:02 ip6 2001:db8::1 > ff02::1:ff00:2 hlim 255 icmp6 ns 2001:db8::2",
			testhost.Frame(testhost.Ethernet{Src: a, Dst: testhost.MulticastMAC(sol)},
				testhost.IPv6{Src: a6, Dst: sol}, testhost.NS{Target: b6, SourceMAC: a}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip6 2001:db8::1 > 2001:db8::2 hlim 255 icmp6 na 2001:db8::1 is-at 02:00:00:00:00:01",
			testhost.Frame(eth, v6, testhost.NA{Target: a6, TargetMAC: a, Solicited: true, Override: true}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip6 2001:db8::1 > 2001:db8::2 hlim 255 icmp6 ra",
			testhost.Frame(eth, v6,
				testhost.RA{Lifetime: 1800, SourceMAC: a, Prefix: netip.MustParsePrefix("2001:db8:9::/64")}),
		},
		{
			"02:00:00:00:00:01 > 02:00:00:00:00:02 ip 192.0.2.1 > 192.0.2.2 ttl 64 frag 1480+ proto 17 len 8",
			testhost.Frame(eth, testhost.IPv4{Src: a4, Dst: b4, Protocol: 17, FragmentOffset: 1480, MoreFragments: true},
				testhost.Text("8 bytes.")),
		},
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, tc := range frames() {
		if got := testhost.Describe(tc.frame); got != tc.line {
			t.Errorf("got  %s\nwant %s", got, tc.line)
		}
		for n := range tc.frame {
			testhost.Describe(tc.frame[:n]) // cut anywhere, it must not panic
		}
		// Each bit of the transport is covered by a checksum, except in ARP and fragments.
		if last := len(tc.frame) - 1; last > 60 {
			broken := append([]byte(nil), tc.frame...)
			broken[last] ^= 1
			if got := testhost.Describe(broken); !strings.HasSuffix(got, " bad-checksum") {
				t.Errorf("broken %s: %s", tc.line, got)
			}
		}
	}
}

// TestCapture sends each frame over a cable and expects the same bytes at the other end, VLAN tag included.
func TestCapture(t *testing.T) {
	t.Parallel()
	a, b := testhost.New(t), testhost.New(t)
	a.Connect(b, testhost.Cable{})
	in, out := b.Capture("eth0", "02:00:00:00:00:01 >"), a.Capture("eth0", "arp")
	want := frames()
	for _, f := range want {
		a.SendFrame("eth0", f.frame)
	}
	for _, f := range want {
		if got := in.Wait(f.line); string(got.Data) != string(f.frame) || got.Outgoing {
			t.Errorf("%s: got %x (outgoing %v), want %x", f.line, got.Data, got.Outgoing, f.frame)
		}
	}
	if got := in.Stop(); len(got) != len(want) {
		t.Errorf("captured %d frames, want %d", len(got), len(want))
	}
	if got := out.Wait("arp who-has 192.0.2.2"); !got.Outgoing {
		t.Error("a frame that was sent is not marked as outgoing")
	}
}

// TestKernelAnswersBuiltPackets lets the kernel judge the builder: it answers only what is well formed.
func TestKernelAnswersBuiltPackets(t *testing.T) {
	t.Parallel()
	a, b := testhost.New(t), testhost.New(t)
	a.Connect(b, testhost.Cable{PeerAddrs: []string{"192.0.2.2/24", "2001:db8::2/64"}})
	am, bm := a.MAC("eth0"), b.MAC("eth0")
	a4, b4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	a6, b6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	eth, v4, v6 := testhost.Ethernet{Src: am, Dst: bm}, testhost.IPv4{Src: a4, Dst: b4}, testhost.IPv6{Src: a6, Dst: b6}
	a.Addr("eth0", "192.0.2.1/24", "2001:db8::1/64")
	seen := a.Capture("eth0", bm.String()+" >")
	for want, frame := range map[string][]byte{
		"arp reply 192.0.2.2 is-at " + bm.String(): testhost.Frame(
			testhost.Ethernet{Src: am, Dst: testhost.Broadcast()}, testhost.ARP{SenderMAC: am, SenderIP: a4, TargetIP: b4}),
		"icmp6 na 2001:db8::2 is-at " + bm.String(): testhost.Frame(
			testhost.Ethernet{Src: am, Dst: testhost.MulticastMAC(testhost.SolicitedNode(b6))},
			testhost.IPv6{Src: a6, Dst: testhost.SolicitedNode(b6)}, testhost.NS{Target: b6, SourceMAC: am}),
		"icmp echo-reply id 7 seq 9":  testhost.Frame(eth, v4, testhost.Echo{ID: 7, Seq: 9}),
		"icmp6 echo-reply id 7 seq 9": testhost.Frame(eth, v6, testhost.Echo{ID: 7, Seq: 9}),
		"192.0.2.2 > 192.0.2.1 ttl 64 tcp 81 > 1000 [RA]": testhost.Frame(
			eth, v4, testhost.TCP{SrcPort: 1000, DstPort: 81, Flags: "S"}),
		"2001:db8::2 > 2001:db8::1 hlim 64 tcp 81 > 1000 [RA]": testhost.Frame(
			eth, v6, testhost.TCP{SrcPort: 1000, DstPort: 81, Flags: "S"}),
		"icmp type 3 code 3": testhost.Frame(eth, v4, testhost.UDP{SrcPort: 1000, DstPort: 81}, testhost.Text("x")),
		"icmp6 type 1 code 4": testhost.Frame(
			eth, v6, testhost.UDP{SrcPort: 1000, DstPort: 81}, testhost.Text("x")),
	} {
		a.SendFrame("eth0", frame)
		seen.Wait(want)
	}
}
