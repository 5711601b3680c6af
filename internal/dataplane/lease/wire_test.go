package lease

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/bpf"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func message4(t testing.TB, mods ...dhcpv4.Modifier) []byte {
	t.Helper()
	d, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithHwAddr(ourMAC[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithYourIP(leasedAddr.AsSlice()),
		dhcpv4.WithNetmask([]byte{255, 255, 255, 0}), dhcpv4.WithLeaseTime(3600), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(serverAddr.AsSlice())),
		func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootReply },
	}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return d.ToBytes()
}

// TestFilter runs the socket's filter over frames: what it lets through is what parseFrame reads.
func TestFilter(t *testing.T) {
	offer := message4(t)
	frames := map[string]struct {
		frame           []byte
		quiet, watching bool
	}{
		"offer":           {answer4(serverMAC, serverAddr, offer), true, true},
		"other's offer":   {answer4(serverMAC, serverAddr, message4(t, dhcpv4.WithHwAddr(otherMAC[:]))), false, false},
		"discover":        {udp4(otherMAC, broadcastMAC, netip.IPv4Unspecified(), broadcast4, offer), false, false},
		"fragment":        {fragment(answer4(serverMAC, serverAddr, offer)), false, false},
		"short":           {answer4(serverMAC, serverAddr, offer)[:40], false, false},
		"DHCPv6":          {to(answer6([]byte{7, 1, 2, 3})), true, true},
		"other's DHCPv6":  {answer6([]byte{7, 1, 2, 3}), false, false},
		"advertisement":   {icmp6(serverMAC, routerAddr, allRouters, append([]byte{routerAdvert}, make([]byte, 15)...)), true, true},
		"ARP probe":       {arpProbe(otherMAC, leasedAddr), false, true},
		"ARP claim":       {arpClaimed(otherMAC, leasedAddr), false, true},
		"other ARP":       {arpClaimed(otherMAC, serverAddr), false, false},
		"neighbour probe": {neighbourProbe(otherMAC, leasedAddr6), false, true},
		"neighbour claim": {neighbourClaimed(otherMAC, leasedAddr6), false, true},
		"other neighbour": {neighbourClaimed(otherMAC, netip.MustParseAddr("fd01::a")), false, false},
		"TCP":             {append(eth(otherMAC, ourMAC, etherIPv4), make([]byte, 40)...), false, false},
	}
	for i, claims := range [][]netip.Addr{nil, {netip.MustParseAddr("10.1.0.10"), leasedAddr, leasedAddr6}} {
		vm, err := bpf.NewVM(filter(ourMAC, claims))
		if err != nil {
			t.Fatal(err)
		}
		for name, tc := range frames {
			n, err := vm.Run(tc.frame)
			if want := [2]bool{tc.quiet, tc.watching}[i]; err != nil || n > 0 != want {
				t.Errorf("%s, claims %v: %d, %v", name, claims, n, err)
			}
			if _, ok := parseFrame(tc.frame, true); n > 0 && !ok {
				t.Errorf("%s passes the filter and is not read", name)
			}
		}
	}
}

func fragment(frame []byte) []byte {
	frame[ethLen+6] |= 0x20
	return frame
}

// to addresses a frame to the client itself.
func to(frame []byte) []byte {
	copy(frame, ourMAC[:])
	return frame
}

// TestFrames: what is built has right lengths and sums, by another reader's word.
func TestFrames(t *testing.T) {
	for _, tc := range []struct {
		frame []byte
		want  string
	}{
		{udp4(ourMAC, broadcastMAC, netip.IPv4Unspecified(), broadcast4, []byte{1, 2, 3}), "02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff ip 0.0.0.0 > 255.255.255.255 ttl 64 udp 68 > 67 len 3"},
		{udp6(ourMAC, linkLocal, []byte{1, 2, 3}), "02:00:00:00:00:01 > 33:33:00:01:00:02 ip6 fe80::ff:fe00:1 > ff02::1:2 hlim 1 udp 546 > 547 len 3"},
		{arpProbe(ourMAC, leasedAddr), "02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who-has 10.1.0.9 tell 0.0.0.0"},
		{neighbourProbe(ourMAC, leasedAddr6), "02:00:00:00:00:01 > 33:33:ff:00:00:09 ip6 :: > ff02::1:ff00:9 hlim 255 icmp6 ns fd01::9"},
		{arpClaimed(ourMAC, leasedAddr), "02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who-has 10.1.0.9 tell 10.1.0.9"},
		{neighbourClaimed(ourMAC, leasedAddr6), "02:00:00:00:00:01 > 33:33:00:00:00:01 ip6 fd01::9 > ff02::1 hlim 255 icmp6 na fd01::9 is-at 02:00:00:00:00:01"},
		{routerQuestion(ourMAC, linkLocal), "02:00:00:00:00:01 > 33:33:00:00:00:02 ip6 fe80::ff:fe00:1 > ff02::2 hlim 255 icmp6 type 133 code 0"},
	} {
		if got := testhost.Describe(tc.frame); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

// TestSums: a wrong checksum is refused where the kernel says that it is computed, and not looked at where it is not.
func TestSums(t *testing.T) {
	for name, frame := range map[string][]byte{
		"DHCPv4": answer4(serverMAC, serverAddr, message4(t)), "DHCPv6": answer6([]byte{7, 1, 2, 3}),
		"advertisement": icmp6(serverMAC, routerAddr, allRouters, append([]byte{routerAdvert}, make([]byte, 15)...)),
	} {
		if _, ok := parseFrame(frame, true); !ok {
			t.Errorf("%s is refused", name)
		}
		frame[len(frame)-1] ^= 1
		if _, ok := parseFrame(frame, true); ok {
			t.Errorf("%s with a wrong sum is taken", name)
		}
		if _, ok := parseFrame(frame, false); !ok {
			t.Errorf("%s without a sum is refused", name)
		}
	}
	far := icmp6(serverMAC, routerAddr, allRouters, append([]byte{routerAdvert}, make([]byte, 15)...))
	far[ethLen+7] = 64
	if _, ok := parseFrame(far, true); ok {
		t.Error("an advertisement from beyond the link is taken")
	}
}

// FuzzFrame: whatever comes over the wire, what is made of it is sound.
func FuzzFrame(f *testing.F) {
	f.Add(answer4(serverMAC, serverAddr, message4(f)))
	f.Add(answer6([]byte{7, 1, 2, 3}))
	f.Add(arpProbe(otherMAC, leasedAddr))
	f.Add(neighbourProbe(otherMAC, leasedAddr6))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, summed := range []bool{false, true} {
			p, ok := parseFrame(frame, summed)
			if ok && (p.kind == 0 || len(p.payload) > len(frame) || p.kind == kindClaim && !p.claim.IsValid()) {
				t.Errorf("%+v", p)
			}
		}
	})
}

// FuzzDHCPv4: a message that is answered to the right question makes a sound lease or none.
func FuzzDHCPv4(f *testing.F) {
	f.Add(message4(f))
	f.Add(message4(f, dhcpv4.WithRouter([]byte{10, 1, 0, 1}), dhcpv4.WithGeneric(dhcpv4.OptionClasslessStaticRoute, []byte{0, 10, 1, 0, 1, 8, 10, 0, 0, 0, 0}),
		dhcpv4.WithDomainSearchList("a.example", "b.a.example"), dhcpv4.WithDNS([]byte{8, 8, 8, 8}), dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 0}),
		dhcpv4.WithGeneric(dhcpv4.OptionRenewTimeValue, []byte{0, 0, 0, 9}), dhcpv4.WithOption(dhcpv4.OptMessage("no"))))
	m := &v4{machine: machine{s: &session{want: want4()}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 8 {
			copy(b[4:], []byte{0, 0, 0, 0}) // the transaction
		}
		d := m.answer(packet{payload: b}, dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak)
		if d == nil {
			return
		}
		if len(reason(d)) > 130 {
			t.Errorf("reason %q", reason(d))
		}
		if l, err := lease4(d, time.Now()); err == nil {
			wellFormed(t, l)
		}
	})
}

// FuzzDHCPv6 is the same for DHCPv6.
func FuzzDHCPv6(f *testing.F) {
	m := &v6{machine: machine{s: &session{want: want6(), id: identityOf(guid)}}}
	d := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
	d.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: m.s.id.uuid}))
	d.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDUUID{}))
	ia := &dhcpv6.OptIANA{IaId: m.s.id.iaid}
	ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: leasedAddr6.AsSlice(), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
	d.AddOption(ia)
	d.AddOption(dhcpv6.OptDNS(leasedAddr6.AsSlice()))
	f.Add(d.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 {
			copy(b[1:], []byte{0, 0, 0})
		}
		d := m.answer(packet{payload: b}, dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply)
		if d == nil {
			return
		}
		if l, err := lease6(d, m.s.id.iaid, time.Now()); err == nil {
			wellFormed(t, l)
			if len(l.Addrs) != 1 || l.ServerID == "" {
				t.Errorf("lease %+v", l)
			}
		}
	})
}

// FuzzAdvert: what a router says makes sound state, however it is put.
func FuzzAdvert(f *testing.F) {
	f.Add(append([]byte{routerAdvert, 0, 0, 0, 64, 0xc0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0}, prefixOption("fd01::/64", 0xc0, 100, 50)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parseAdvert(b)
		if !ok {
			return
		}
		for _, p := range a.prefixes {
			if p.preferred > p.valid || !usable6(p.prefix.Addr()) || p.address && p.prefix.Bits() != 64 {
				t.Errorf("prefix %+v", p)
			}
		}
		for _, r := range a.routes {
			if !r.dst.IsValid() || r.dst != r.dst.Masked() {
				t.Errorf("route %+v", r)
			}
		}
		if len(a.prefixes) > maxPrefixes || len(a.dns) > maxDNS || len(a.search) > maxSearch || len(a.routes) > maxRoutes {
			t.Errorf("%+v", a)
		}
	})
}

// TestLabels: names are read with their compression, and hostile ones quickly.
func TestLabels(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "[]",
		"\x01a\x02bc\x00":              "[a.bc]",
		"\x01a\x02bc\x00\x01d\xc0\x02": "[a.bc d.bc]",
		"\x01a\x00\x00\x00":            "[a]",
		"\x01a\x00\xc0\x00\x01b\x00":   "[a a b]",
		"\x01a\x00\xc0\x07\x01b\x00":   "[a]", // forward
		"\x01a\xc0\x00":                "[]",  // a loop
		"\x01a\x00\x3fabc":             "[a]",
		"\x01a\x00\x80":                "[a]",
		"\xc0":                         "[]",
	} {
		if got := fmt.Sprint(labels([]byte(in))); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	var hostile []byte
	for range 4000 {
		hostile = append(hostile, 1, 'a')
	}
	hostile = append(hostile, 0)
	for len(hostile) < 8<<10 {
		hostile = append(hostile, 0xc0, 0)
	}
	d := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
	d.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionDomainSearchList, OptionData: hostile})
	d.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionFQDN, OptionData: hostile})
	ia := &dhcpv6.OptIANA{}
	ia.Options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionDomainSearchList, OptionData: hostile})
	d.AddOption(ia)
	raw := d.ToBytes()
	began := time.Now()
	m, err := parse6(raw)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lease{}
	l.extras6(m)
	if took := time.Since(began); took > 100*time.Millisecond || len(l.Search) != 0 {
		t.Errorf("%s for a hostile message, names %q", took, l.Search)
	}
}
