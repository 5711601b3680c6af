package lease

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

const ourAddr6 = "fd01::ff:fe00:1"

// autoconf is a router whose prefix is for addresses, and that knows of no DHCPv6.
func (s *stage) autoconf() *fakeRouter {
	f := s.router()
	f.flags, f.life = 0, 1800
	f.advert = prefixOption("fd01::/64", 0xc0, 7200*2, 3600)
	return f
}

// TestAutoconfiguration: a prefix makes an address, which is probed; the router's silence ends it in time.
func TestAutoconfiguration(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.autoconf()
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(2 * time.Second)
		l := s.hold(Router, Bound, ourAddr6)
		if l.Addrs[0].Prefix.Bits() != 64 || fmt.Sprint(l.Gateways()) != "[fe80::1]" || l.Server != routerAddr {
			t.Errorf("lease %+v", l)
		}
		if st := s.state(DHCPv6); st.Phase != Waiting || st.Problem != "" {
			t.Errorf("DHCPv6 %+v", st)
		}
		s.told("solicit routers\nprobe " + ourAddr6)
		s.set(func() { f.mute = true })
		s.after(31 * time.Minute)
		if l := s.hold(Router, Bound, ourAddr6); len(l.Gateways()) != 0 {
			t.Errorf("the router outlives its lifetime: %+v", l)
		}
		s.after(4 * time.Hour)
		if st := s.state(Router); st.Lease != nil {
			t.Errorf("the address outlives its lifetime: %+v", st.Lease)
		}
	})
}

// TestNoRouter: people are told, and the questions get rare.
func TestNoRouter(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.autoconf()
		f.mute = true
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(15 * time.Second)
		s.problem(Router, "no router has advertised itself on lan since 00:00:00 (")
		s.after(24 * time.Hour)
		if n := len(s.times("solicit")); n > 50 {
			t.Errorf("%d questions within a day", n)
		}
		s.set(f.advertise)
		s.after(2 * time.Second)
		s.hold(Router, Bound, ourAddr6)
	})
}

// TestForged: an advertisement with a short life does not take an address away at once (RFC 4862, section 5.5.3), one of
// life zero does take the route away.
func TestForged(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.autoconf()
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(2 * time.Second)
		s.set(func() {
			f.mute, f.life, f.advert = true, 0, prefixOption("fd01::/64", 0xc0, 0, 0)
			f.advertise()
		})
		s.after(2 * time.Second)
		l := s.hold(Router, Bound, ourAddr6)
		if left := time.Until(l.Addrs[0].Valid); left < 119*time.Minute || left > 2*time.Hour || time.Until(l.Addrs[0].Preferred) > 0 {
			t.Errorf("left %s of %+v", left, l)
		}
		if len(l.Gateways()) != 0 {
			t.Errorf("gateways %v", l.Gateways())
		}
	})
}

// TestRepeated advertisements that say the same do not wake the caller, and floods of different ones seldom.
func TestRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.autoconf()
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(2 * time.Second)
		before := s.wakes
		for range 100 {
			s.set(f.advertise)
			s.after(time.Second)
		}
		if s.wakes != before {
			t.Errorf("%d wakes by repetitions", s.wakes-before)
		}
		for i := range 5000 {
			s.set(func() {
				f.advert = prefixOption(fmt.Sprintf("fd02:%x::/64", i), 0xc0, 3600, 3600)
				f.advertiseFrom(netip.AddrFrom16([16]byte{0xfe, 0x80, 14: byte(i >> 8), 15: byte(i)}))
			})
		}
		s.after(time.Minute)
		l := s.state(Router).Lease
		if len(l.Addrs) > maxPrefixes || len(l.Gateways()) > maxRouters || l.Addrs[0].Prefix.Addr().String() != ourAddr6 {
			t.Errorf("lease %+v", l)
		}
		if n := s.wakes - before; n > 60 {
			t.Errorf("%d wakes by a flood", n)
		}
	})
}

// TestUsedPrefix: an address that somebody has is not made, and people are told.
func TestUsedPrefix(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.autoconf().used = netip.MustParseAddr(ourAddr6)
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(2 * time.Second)
		l := s.hold(Router, Bound, "")
		s.problem(Router, "address "+ourAddr6+", made of a router's prefix, is used by 02:00:00:00:00:bb")
		if len(l.Routes) != 2 || l.Routes[0].Dst.String() != "fd01::/64" {
			t.Errorf("lease %+v", l)
		}
	})
}

// TestRecall: after a restart the addresses are there at once, and are not probed again.
func TestRecall(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.autoconf()
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(2 * time.Second)
		w := want6()
		w.Stored = stored(s.c)
		s.c.Close()
		s.c = New(s.c.cfg)
		defer s.c.Close()
		s.set(func() { f.mute = true })
		s.c.Sync(t.Context(), []Want{w})
		s.after(30 * time.Second)
		if l := s.hold(Router, Rebooting, ourAddr6); len(l.Gateways()) != 1 {
			t.Errorf("lease %+v", l)
		}
		s.set(f.advertise)
		s.after(2 * time.Second)
		s.hold(Router, Bound, ourAddr6)
		if n := len(s.times("probe")); n != 1 {
			t.Errorf("%d probes", n)
		}
	})
}

// TestAdvert reads an advertisement with everything in it, and leaves out what makes no sense.
func TestAdvert(t *testing.T) {
	option := func(kind byte, body ...byte) []byte {
		o := append([]byte{kind, 0}, body...)
		for len(o)%8 != 0 {
			o = append(o, 0)
		}
		o[1] = byte(len(o) / 8)
		return o
	}
	ip := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	life := []byte{0, 0, 0, 0, 0, 60}
	b := []byte{routerAdvert, 0, 0, 0, 64, 0xc8, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, o := range [][]byte{
		prefixOption("fd01::/64", 0xc0, 100, 50), prefixOption("fd02::/56", 0xc0, 100, 50), prefixOption("fe80::/64", 0xc0, 100, 50),
		prefixOption("fd03::/64", 0xc0, 50, 100), prefixOption("ff00::/64", 0xc0, 100, 50),
		option(optMTU, 0, 0, 0, 0, 5, 0x78), option(optMTU, 0, 0, 0, 0, 0, 1),
		option(optRoute, append([]byte{48, 0x18, 0, 0, 0, 60}, ip("fd0a::")...)...), option(optRoute, append([]byte{129, 0, 0, 0, 0, 60}, ip("fd0b::")...)...),
		option(optRDNSS, append(life, append(ip("fd01::53"), ip("::1")...)...)...),
		option(optDNSSL, append(life, "\x04corp\x07example\x00"...)...), option(99, 1, 2, 3),
	} {
		b = append(b, o...)
	}
	a, ok := parseAdvert(b)
	want := advert{
		managed: true, other: true, lifetime: 30, preference: 1, mtu: 1400,
		prefixes: []advertPrefix{
			{prefix: netip.MustParsePrefix("fd01::/64"), onLink: true, address: true, valid: 100, preferred: 50},
			{prefix: netip.MustParsePrefix("fd02::/56"), onLink: true, valid: 100, preferred: 50},
		},
		routes: []advertRoute{{netip.MustParsePrefix("fd0a::/48"), 60, -1}},
		dns:    []advertDNS{{netip.MustParseAddr("fd01::53"), 60}},
		search: []advertSearch{{"corp.example", 60}},
	}
	if !ok || !reflect.DeepEqual(a, want) {
		t.Errorf("got  %+v\nwant %+v", a, want)
	}
	for _, bad := range [][]byte{b[:15], b[:len(b)-1], append(b, 3, 0, 0, 0, 0, 0, 0, 0), append(b[:16:16], []byte(strings.Repeat("\x63\x01\x00\x00\x00\x00\x00\x00", maxOptions+1))...)} {
		if a, ok := parseAdvert(bad); ok {
			t.Errorf("%x is read as %+v", bad, a)
		}
	}
}
