package lease

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// TestLife6: invited by a router, a lease is got, renewed, asked for by its server and then by any, and lost at its end.
func TestLife6(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.router()
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(3 * time.Second)
		first := s.hold(DHCPv6, Bound, "fd01::9")
		if first.Addrs[0].Prefix.Bits() != 128 || first.Server != routerAddr || first.ServerMAC != serverMAC {
			t.Errorf("lease %+v", first)
		}
		s.after(time.Until(first.T1) + time.Second)
		second := s.hold(DHCPv6, Bound, "fd01::9")
		s.set(func() { f.silent = true })
		s.after(time.Until(second.T2) - time.Second)
		s.hold(DHCPv6, Renewing, "fd01::9")
		s.problem(DHCPv6, "no answer from any DHCPv6 server on lan")
		s.after(time.Until(second.Expires) - time.Second)
		s.hold(DHCPv6, Rebinding, "fd01::9")
		s.after(time.Second + 100*time.Millisecond)
		s.hold(DHCPv6, Waiting, "")
		s.problem(DHCPv6, "the lease of fd01::9 ended at ")
		s.after(time.Minute)
		s.set(func() { f.silent = false })
		s.after(5 * time.Minute)
		s.hold(DHCPv6, Bound, "fd01::9")
		s.gone(want6())
		s.told("solicit routers\nSOLICIT\nREQUEST fd01::9\nprobe fd01::9\nannounce fd01::9\nRENEW fd01::9\nREBIND fd01::9\nSOLICIT\nREQUEST fd01::9\nprobe fd01::9\nannounce fd01::9\nRELEASE fd01::9")
	})
}

// TestRapid: a server may commit at once.
func TestRapid(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.router().rapid = true
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(1500 * time.Millisecond)
		s.hold(DHCPv6, Bound, "fd01::9")
		s.told("solicit routers\nSOLICIT\nprobe fd01::9")
	})
}

// status makes an answer of a kind refuse.
func status(kind dhcpv6.MessageType, code uint16, text string) func(q, a *dhcpv6.Message) bool {
	return func(q, a *dhcpv6.Message) bool {
		if q.MessageType != kind {
			return true
		}
		st := &dhcpv6.OptStatusCode{StatusMessage: text}
		if err := st.FromBytes(append([]byte{byte(code >> 8), byte(code)}, text...)); err != nil {
			return false
		}
		if ia := a.Options.OneIANA(); ia != nil && kind != dhcpv6.MessageTypeConfirm {
			ia.Options.Options = dhcpv6.Options{st}
		} else {
			a.Options.Del(dhcpv6.OptionStatusCode)
			a.AddOption(st)
		}
		return true
	}
}

// TestForgetful: a server that does not know the lease is asked to give it again.
func TestForgetful(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.router().spoil = status(dhcpv6.MessageTypeRenew, 3, "who are you")
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(3 * time.Second)
		l := s.hold(DHCPv6, Bound, "fd01::9")
		s.after(time.Until(l.T1) + time.Second)
		s.hold(DHCPv6, Bound, "fd01::9")
		s.told("solicit routers\nSOLICIT\nREQUEST fd01::9\nprobe fd01::9\nannounce fd01::9\nRENEW fd01::9\nREQUEST fd01::9")
	})
}

// TestRefused6: a server that has no address, and one that changes its mind.
func TestRefused6(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.router().spoil = status(dhcpv6.MessageTypeSolicit, 2, "full")
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(500 * time.Millisecond)
		s.hold(DHCPv6, Asking, "")
		s.problem(DHCPv6, "DHCPv6 server fe80::1 offers what cannot be used: NoAddrsAvail: full")
	})
	bubble(t, func(t *testing.T, s *stage) {
		s.router().spoil = status(dhcpv6.MessageTypeRequest, 2, "")
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(1300 * time.Millisecond)
		s.problem(DHCPv6, "DHCPv6 server fe80::1 refused fd01::9: NoAddrsAvail")
		s.after(time.Hour)
		if n := len(s.times("REQUEST")); n < 10 || n > 30 {
			t.Errorf("%d requests within an hour", n)
		}
	})
}

// TestUsed6: an address that somebody else is about to use is declined.
func TestUsed6(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.router().used = leasedAddr6
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(3 * time.Second)
		s.hold(DHCPv6, Waiting, "")
		s.problem(DHCPv6, "address fd01::9, which DHCPv6 server fe80::1 gives, is used by 02:00:00:00:00:bb")
		s.told("solicit routers\nSOLICIT\nREQUEST fd01::9\nprobe fd01::9\nDECLINE fd01::9")
	})
}

// TestConfirm: a stored lease is there at once; its network is asked whether it is the same.
func TestConfirm(t *testing.T) {
	stored := func() Want {
		w := want6()
		l := Lease{Addrs: []Address{{Prefix: netip.PrefixFrom(leasedAddr6, 128)}}, Server: routerAddr, ServerID: "0004aa000000000000000000000000000000", Got: time.Now()}
		l.schedule(time.Hour, 0, 0, 0.8)
		l.Addrs[0].Preferred, l.Addrs[0].Valid = l.Expires, l.Expires
		w.Stored = map[Source]Lease{DHCPv6: l}
		return w
	}
	bubble(t, func(t *testing.T, s *stage) {
		s.router()
		s.c.Sync(t.Context(), []Want{stored()})
		if s.state(DHCPv6).Lease == nil {
			t.Error("the address is cut")
		}
		s.after(time.Second)
		s.hold(DHCPv6, Bound, "fd01::9")
		s.after(31 * time.Minute)
		s.hold(DHCPv6, Bound, "fd01::9")
		if n := len(s.times("CONFIRM fd01::9")) + len(s.times("RENEW fd01::9")); n != 2 {
			t.Errorf("sent:\n%s", s.story())
		}
	})
	bubble(t, func(t *testing.T, s *stage) {
		s.router().silent = true
		s.c.Sync(t.Context(), []Want{stored()})
		s.after(time.Minute)
		s.hold(DHCPv6, Bound, "fd01::9")
	})
	bubble(t, func(t *testing.T, s *stage) {
		s.router().spoil = status(dhcpv6.MessageTypeConfirm, 4, "moved")
		s.c.Sync(t.Context(), []Want{stored()})
		s.after(500 * time.Millisecond)
		s.hold(DHCPv6, Waiting, "")
		s.problem(DHCPv6, "DHCPv6 server fe80::1 says that fd01::9 is not of this network (NotOnLink: moved)")
	})
}

// TestStrangers6: answers of a wrong transaction, to another client, without a server, or by one that was not asked.
func TestStrangers6(t *testing.T) {
	for name, spoil := range map[string]func(a *dhcpv6.Message){
		"transaction": func(a *dhcpv6.Message) { a.TransactionID[0] ^= 1 },
		"client":      func(a *dhcpv6.Message) { a.UpdateOption(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: [16]byte{1}})) },
		"no client":   func(a *dhcpv6.Message) { a.Options.Del(dhcpv6.OptionClientID) },
		"no server":   func(a *dhcpv6.Message) { a.Options.Del(dhcpv6.OptionServerID) },
		"long server": func(a *dhcpv6.Message) {
			a.UpdateOption(dhcpv6.OptServerID(&dhcpv6.DUIDOpaque{Type: 9, Data: make([]byte, 200)}))
		},
		"type": func(a *dhcpv6.Message) { a.MessageType = dhcpv6.MessageTypeReconfigure },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				s.router().spoil = func(_, a *dhcpv6.Message) bool { spoil(a); return true }
				s.c.Sync(t.Context(), []Want{want6()})
				s.after(time.Minute)
				s.hold(DHCPv6, Asking, "")
				s.problem(DHCPv6, "no answer from any DHCPv6 server")
			})
		})
	}
	bubble(t, func(t *testing.T, s *stage) {
		s.router().spoil = func(q, a *dhcpv6.Message) bool {
			if q.MessageType == dhcpv6.MessageTypeRequest {
				a.UpdateOption(dhcpv6.OptServerID(&dhcpv6.DUIDUUID{UUID: [16]byte{0xbb}}))
			}
			return true
		}
		s.c.Sync(t.Context(), []Want{want6()})
		s.after(2 * time.Second)
		if st := s.state(DHCPv6); st.Lease != nil || fmt.Sprint(st.Others) != "[fe80::1]" {
			t.Errorf("state %+v", st)
		}
	})
}

// TestCheck6: what makes an advertisement unusable.
func TestCheck6(t *testing.T) {
	iaid := [4]byte{1}
	answer := func(a string, preferred, valid time.Duration) *dhcpv6.Message {
		d := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
		d.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDUUID{}))
		ia := &dhcpv6.OptIANA{IaId: iaid}
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a), PreferredLifetime: preferred, ValidLifetime: valid}) //nolint:forbidigo // the library's edge
		d.AddOption(ia)
		return d
	}
	none := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
	foreign := answer("fd01::9", time.Hour, time.Hour)
	foreign.Options.OneIANA().IaId[0]++
	for _, tc := range []struct {
		d    *dhcpv6.Message
		want string
	}{
		{answer("fd01::9", time.Hour, time.Hour), ""},
		{answer("fd01::9", 0, time.Hour), ""},
		{answer("fd01::9", forever*time.Second, forever*time.Second), ""},
		{answer("::", time.Hour, time.Hour), "address :: is none for a host"},
		{answer("::1", time.Hour, time.Hour), "address ::1 is none for a host"},
		{answer("ff02::1", time.Hour, time.Hour), "address ff02::1 is none for a host"},
		{answer("fe80::9", time.Hour, time.Hour), "address fe80::9 is none for a host"},
		{answer("::ffff:10.1.0.9", time.Hour, time.Hour), "address ::ffff:10.1.0.9 is none for a host"},
		{answer("fd01::9", time.Hour, time.Minute), "address fd01::9 is preferred for longer than it is valid"},
		{answer("fd01::9", 0, 0), "address fd01::9 is valid for 0s, less than 10s"},
		{answer("fd01::9", time.Second, time.Second), "address fd01::9 is valid for 1s, less than 10s"},
		{none, "it has no addresses for this client"},
		{foreign, "it has no addresses for this client"},
	} {
		l, err := lease6(tc.d, iaid, time.Now())
		if err == nil {
			err = errors.New("")
			wellFormed(t, l)
		}
		if err.Error() != tc.want {
			t.Errorf("%q, want %q", err, tc.want)
		}
	}
	absurd := answer("fd01::9", time.Hour, time.Hour)
	absurd.Options.OneIANA().T1, absurd.Options.OneIANA().T2 = time.Hour, time.Second
	l, err := lease6(absurd, iaid, time.Now())
	if err != nil || l.T1.After(l.T2) || l.T2.After(l.Expires) {
		t.Errorf("T1 beyond T2: %+v, %v", l, err)
	}
	if got := strings.Count(fmt.Sprint(l.Addrs), "fd01::9"); got != 1 {
		t.Errorf("lease %+v", l)
	}
}
