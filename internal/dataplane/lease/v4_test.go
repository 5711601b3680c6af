package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// bubble runs a test in the time of synctest, and ends its client.
func bubble(t *testing.T, f func(t *testing.T, s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer s.c.Close() // also when the test gives up: a bubble waits for all that runs in it
		f(t, s)
	})
}

func (s *stage) hold(src Source, phase Phase, addr string) *Lease {
	s.t.Helper()
	st := s.state(src)
	have := ""
	if st.Lease != nil && len(st.Lease.Addrs) > 0 {
		have = st.Lease.Addrs[0].Prefix.Addr().String()
	}
	if st.Phase != phase || have != addr {
		s.t.Fatalf("after %s: %s with %q (%s), want %s with %q\n%s", time.Since(s.began), st.Phase, have, st.Problem, phase, addr, s.story())
	}
	return st.Lease
}

func (s *stage) problem(src Source, want string) {
	s.t.Helper()
	if st := s.state(src); !strings.HasPrefix(st.Problem, want) || want == "" && st.Problem != "" {
		s.t.Errorf("after %s: problem %q, want %q", time.Since(s.began), st.Problem, want)
	}
}

func (s *stage) told(want string) {
	s.t.Helper()
	if got := s.story(); got != want {
		s.t.Errorf("sent:\n%s\nwant:\n%s", got, want)
	}
}

// TestLife of a lease: got, renewed by its server, then nobody answers: asked for by unicast, by broadcast, lost at its
// very end, and asked for anew.
func TestLife(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.server4()
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(5 * time.Second)
		first := s.hold(DHCPv4, Bound, "10.1.0.9")
		s.after(31 * time.Minute)
		second := s.hold(DHCPv4, Bound, "10.1.0.9")
		if d := second.Got.Sub(first.T1); d < 0 || d > time.Second {
			t.Errorf("renewed %s after T1", d)
		}
		s.set(func() { f.silent = true })
		s.after(time.Until(second.T1) + time.Minute)
		s.hold(DHCPv4, Renewing, "10.1.0.9")
		s.after(time.Until(second.T2) + time.Minute)
		s.hold(DHCPv4, Rebinding, "10.1.0.9")
		s.problem(DHCPv4, "server 10.1.0.1 has not renewed 10.1.0.9")
		s.after(time.Until(second.Expires) - time.Second)
		s.hold(DHCPv4, Rebinding, "10.1.0.9")
		s.after(time.Second + 100*time.Millisecond)
		s.hold(DHCPv4, Waiting, "")
		s.problem(DHCPv4, "the lease of 10.1.0.9 ended at ")
		s.after(15 * time.Second)
		s.hold(DHCPv4, Asking, "")
		s.set(func() { f.silent = false })
		s.after(time.Minute)
		s.hold(DHCPv4, Bound, "10.1.0.9")
		s.gone(want4())
		get := "DISCOVER 0.0.0.0 > 255.255.255.255\nREQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9 of 10.1.0.1\nprobe 10.1.0.9\nannounce 10.1.0.9\n"
		s.told(get + "REQUEST 10.1.0.9 > 10.1.0.1 have 10.1.0.9\nREQUEST 10.1.0.9 > 255.255.255.255 have 10.1.0.9\n" +
			get + "RELEASE 10.1.0.9 > 10.1.0.1 have 10.1.0.9 of 10.1.0.1")
		if n := len(s.times("REQUEST 10.1.0.9")); n > 20 {
			t.Errorf("%d questions about one lease of an hour", n)
		}
		if len(s.c.States()) != 0 {
			t.Errorf("states %+v", s.c.States())
		}
	})
}

// TestSilence: pauses grow, people are told, and every other pair of tries asks for broadcast answers.
func TestSilence(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		var flags []bool
		f := s.server4()
		f.spoil = func(q, _ *dhcpv4.DHCPv4) bool {
			flags = append(flags, q.IsBroadcast())
			return false
		}
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(17 * time.Second)
		s.problem(DHCPv4, "no answer from any DHCP server on lan since 00:00:00")
		if p := s.state(DHCPv4).Problem; !strings.Contains(p, fmt.Sprintf("(%d tries)", len(s.times("DISCOVER")))) {
			t.Errorf("problem %q", p)
		}
		s.after(time.Hour)
		if n := len(s.times("DISCOVER")); n < 50 || n > 75 {
			t.Errorf("%d tries within an hour", n)
		}
		if got := fmt.Sprint(flags[:6]); got != "[false false true true false false]" {
			t.Errorf("broadcast flags %s", got)
		}
	})
}

// TestHello: who the client says it is, and what it asks for.
func TestHello(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		var first *dhcpv4.DHCPv4
		s.server4().spoil = func(q, _ *dhcpv4.DHCPv4) bool {
			if first == nil {
				first = q
			}
			return false
		}
		w := want4()
		w.Hostname = "Web_1!"
		s.c.Sync(t.Context(), []Want{w})
		s.after(time.Second)
		if id := fmt.Sprintf("%x", first.GetOneOption(dhcpv4.OptionClientIdentifier)); id != "ff112233440004112233445566778899aabbccddeeff00" {
			t.Errorf("client identifier %s", id)
		}
		if first.HostName() != "web-1" || first.GetOneOption(dhcpv4.OptionFQDN) != nil || !first.IsOptionRequested(dhcpv4.OptionClasslessStaticRoute) {
			t.Errorf("discover %s", first.Summary())
		}
		s.set(func() { first = nil })
		w.Hostname = "web.example.org"
		s.c.Sync(t.Context(), []Want{w})
		s.after(time.Second)
		if fqdn := string(first.GetOneOption(dhcpv4.OptionFQDN)); fqdn != "\x05\x00\x00\x03web\x07example\x03org\x00" || first.HostName() != "" {
			t.Errorf("full name %q", fqdn)
		}
	})
}

// TestReboot: a stored lease is there at once, and its server is asked whether it holds.
func TestReboot(t *testing.T) {
	stored := func(life time.Duration) Want {
		w := want4()
		l := Lease{Addrs: []Address{{Prefix: netip.PrefixFrom(leasedAddr, 24)}}, Server: serverAddr, ServerMAC: serverMAC, Got: time.Now()}
		l.schedule(life, 0, 0, 0.875)
		w.Stored = map[Source]Lease{DHCPv4: l}
		return w
	}
	ask := "REQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9"
	t.Run("holds", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *stage) {
			s.server4()
			s.c.Sync(t.Context(), []Want{stored(time.Hour)})
			if s.state(DHCPv4).Lease == nil {
				t.Error("the address is cut")
			}
			s.after(time.Second)
			s.hold(DHCPv4, Bound, "10.1.0.9")
			s.told(ask)
		})
	})
	t.Run("silent", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *stage) {
			s.server4().silent = true
			s.c.Sync(t.Context(), []Want{stored(time.Hour)})
			s.after(time.Minute)
			s.hold(DHCPv4, Bound, "10.1.0.9")
			s.after(58*time.Minute + 30*time.Second)
			s.hold(DHCPv4, Rebinding, "10.1.0.9")
			s.after(time.Minute)
			if s.state(DHCPv4).Lease != nil {
				t.Error("the lease outlives its end")
			}
		})
	})
	t.Run("refused", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *stage) {
			f := s.server4()
			f.spoil = func(q, a *dhcpv4.DHCPv4) bool {
				if q.MessageType() == dhcpv4.MessageTypeRequest && q.ServerIdentifier() == nil {
					a.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
					a.UpdateOption(dhcpv4.OptMessage("wrong network\x07"))
					a.YourIPAddr = nil
				}
				return true
			}
			s.c.Sync(t.Context(), []Want{stored(time.Hour)})
			s.after(500 * time.Millisecond)
			s.hold(DHCPv4, Waiting, "")
			s.problem(DHCPv4, "server 10.1.0.1 refused 10.1.0.9 (NAK): wrong network")
			s.after(5 * time.Second)
			s.hold(DHCPv4, Bound, "10.1.0.9")
		})
	})
	t.Run("ended", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *stage) {
			w := stored(time.Minute)
			s.after(time.Hour)
			s.server4().silent = true
			s.c.Sync(t.Context(), []Want{w})
			s.after(time.Second)
			s.hold(DHCPv4, Asking, "")
		})
	})
	t.Run("no vNIC", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *stage) {
			f := s.server4()
			f.silent = true
			noVNIC := true
			s.open = func() (Link, error) {
				s.wire.mu.Lock()
				missing := noVNIC
				s.wire.mu.Unlock()
				if missing {
					return nil, errors.New("no such device")
				}
				return s.wire.plug()
			}
			s.c.Sync(t.Context(), []Want{stored(time.Hour)})
			s.after(59 * time.Minute)
			if st := s.state(DHCPv4); st.Lease == nil || !strings.Contains(st.Problem, "open eth0 in the compartment of web: no such device") {
				t.Errorf("state %+v", st)
			}
			s.after(2 * time.Minute)
			if s.state(DHCPv4).Lease != nil {
				t.Error("without a vNIC the lease outlives its end")
			}
			s.set(func() { f.silent, noVNIC = false, false })
			s.after(35 * time.Second)
			s.hold(DHCPv4, Bound, "10.1.0.9")
		})
	})
}

// TestUsed: an address that somebody has is declined, and for ten seconds nothing is asked.
func TestUsed(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.server4()
		f.used = leasedAddr
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(time.Second)
		s.hold(DHCPv4, Waiting, "")
		s.problem(DHCPv4, "address 10.1.0.9, which server 10.1.0.1 gives, is used by 02:00:00:00:00:bb")
		s.after(time.Hour)
		s.hold(DHCPv4, Waiting, "")
		discovers := s.times("DISCOVER")
		if pause := discovers[1] - discovers[0]; pause < 9*time.Second || len(discovers) > 30 {
			t.Errorf("%d discovers, the second %s after the first", len(discovers), pause)
		}
		s.told(strings.TrimSuffix(strings.Repeat("DISCOVER 0.0.0.0 > 255.255.255.255\nREQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9 of 10.1.0.1\n"+
			"probe 10.1.0.9\nDECLINE 0.0.0.0 > 255.255.255.255 ask 10.1.0.9 of 10.1.0.1\n", len(discovers)), "\n"))
		s.set(func() { f.used = netip.Addr{} })
		s.after(2 * worstPause)
		s.hold(DHCPv4, Bound, "10.1.0.9")
		if fmt.Sprint(s.wire.claims) != "[10.1.0.9]" {
			t.Errorf("the link listens to claims of %v", s.wire.claims)
		}
	})
}

// TestShared: somebody takes a leased address. People are told, it is claimed back now and then, and kept.
func TestShared(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.server4()
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(10 * time.Second)
		s.set(func() { s.wire.in <- arpProbe(otherMAC, leasedAddr) })
		s.after(time.Second)
		s.problem(DHCPv4, "") // it only asks
		for range 100 {
			s.set(func() { s.wire.in <- arpClaimed(otherMAC, leasedAddr) })
			s.after(100 * time.Millisecond)
		}
		s.hold(DHCPv4, Bound, "10.1.0.9")
		s.problem(DHCPv4, "address 10.1.0.9 is used by 02:00:00:00:00:bb as well")
		if n := len(s.times("announce")); n != 3 && n != 4 {
			t.Errorf("%d announcements", n)
		}
		s.after(31 * time.Minute)
		s.problem(DHCPv4, "")
	})
}

// TestRefusals: a storm of NAKs is met with growing pauses.
func TestRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.server4().spoil = func(q, a *dhcpv4.DHCPv4) bool {
			if q.MessageType() == dhcpv4.MessageTypeRequest {
				a.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
			}
			return true
		}
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(time.Hour)
		if n := len(s.times("DISCOVER")); n < 20 || n > 60 { // each time another server's offer is waited for first
			t.Errorf("%d discovers within an hour", n)
		}
		s.problem(DHCPv4, "server 10.1.0.1 refused 10.1.0.9 (NAK)")
	})
}

// TestStrangers: answers with a wrong transaction, of another client, or by a server that was not asked change nothing.
func TestStrangers(t *testing.T) {
	for name, spoil := range map[string]func(a *dhcpv4.DHCPv4){
		"transaction": func(a *dhcpv4.DHCPv4) { a.TransactionID[0] ^= 1 },
		"hardware":    func(a *dhcpv4.DHCPv4) { a.ClientHWAddr = otherMAC[:] },
		"request":     func(a *dhcpv4.DHCPv4) { a.OpCode = dhcpv4.OpcodeBootRequest },
		"client": func(a *dhcpv4.DHCPv4) {
			a.UpdateOption(dhcpv4.OptClientIdentifier([]byte{1, 2, 3}))
		},
		"type": func(a *dhcpv4.DHCPv4) { a.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeInform)) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				s.server4().spoil = func(_, a *dhcpv4.DHCPv4) bool { spoil(a); return true }
				s.c.Sync(t.Context(), []Want{want4()})
				s.after(time.Minute)
				s.hold(DHCPv4, Asking, "")
				s.problem(DHCPv4, "no answer from any DHCP server")
			})
		})
	}
	t.Run("rogue", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *stage) {
			f := s.server4()
			rogue := &fakeServer{s: s, addr: rogueAddr, mac: otherMAC}
			s.wire.hears = func(frame []byte) {
				d, err := dhcpv4.FromBytes(frame[ethLen+ip4Len+udpLen:])
				if err == nil && d.MessageType() == dhcpv4.MessageTypeRequest {
					nak, _ := dhcpv4.NewReplyFromRequest(d, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak),
						dhcpv4.WithOption(dhcpv4.OptServerIdentifier(rogueAddr.AsSlice())))
					rogue.send(nak)
				}
				f.hear(frame)
				if err == nil && d.MessageType() == dhcpv4.MessageTypeDiscover {
					rogue.answer(d)
				}
			}
			s.c.Sync(t.Context(), []Want{want4()})
			s.after(time.Second)
			l := s.hold(DHCPv4, Bound, "10.1.0.9")
			if st := s.state(DHCPv4); l.Server != serverAddr || fmt.Sprint(st.Others) != "[10.1.0.66]" {
				t.Errorf("server %s, others %v", l.Server, st.Others)
			}
		})
	})
}

// TestOfferedNotGiven: a server offers, and then is silent or acknowledges something else. What is said is true at any time, and the
// wait for it leaves time for another server.
func TestOfferedNotGiven(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(a *dhcpv4.DHCPv4) bool
		want  string
	}{
		"silent": {func(*dhcpv4.DHCPv4) bool { return false }, "server 10.1.0.1 offered 10.1.0.9 and "},
		"another address": {
			func(a *dhcpv4.DHCPv4) bool { a.YourIPAddr = []byte{10, 1, 0, 77}; return true },
			"server 10.1.0.1 was asked for 10.1.0.9 and acknowledges 10.1.0.77 instead",
		},
		"no time": {
			func(a *dhcpv4.DHCPv4) bool { a.Options.Del(dhcpv4.OptionIPAddressLeaseTime); return true },
			"server 10.1.0.1 acknowledges 10.1.0.9 in a way that cannot be used: it has no lease time",
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				f := s.server4()
				f.spoil = func(q, a *dhcpv4.DHCPv4) bool {
					return q.MessageType() != dhcpv4.MessageTypeRequest || tc.spoil(a)
				}
				s.c.Sync(t.Context(), []Want{want4()})
				s.after(2500 * time.Millisecond)
				for range 60 {
					st := s.state(DHCPv4)
					if st.Lease != nil || !strings.HasPrefix(st.Problem, tc.want) && (st.Problem != "" || st.Pending == nil) {
						t.Errorf("after %s: %+v, want %q", time.Since(s.began), st, tc.want)
					}
					s.after(time.Second)
				}
				if n := len(s.times("DISCOVER")); n < 5 {
					t.Errorf("others were asked %d times within a minute", n)
				}
				// Another server comes, slower than this one.
				other := &fakeServer{s: s, addr: rogueAddr, mac: otherMAC, life: time.Hour}
				s.set(func() {
					s.wire.hears = func(frame []byte) {
						f.hear(frame)
						if d, err := dhcpv4.FromBytes(frame[min(len(frame), ethLen+ip4Len+udpLen):]); err == nil && frame[12] == 8 && frame[13] == 0 {
							other.answer(d)
						}
					}
				})
				s.after(70 * time.Second)
				if l := s.hold(DHCPv4, Bound, "10.1.0.9"); l.Server != rogueAddr {
					t.Errorf("the lease is from %s", l.Server)
				}
			})
		})
	}
}

// TestGarbageBefore: what looks like offers comes before the offer in number, and keeps from nothing; without one it is said.
func TestGarbageBefore(t *testing.T) {
	garbage := func(f *fakeServer, q *dhcpv4.DHCPv4) {
		if q.MessageType() != dhcpv4.MessageTypeDiscover {
			return
		}
		for i := range 40 {
			bad, _ := dhcpv4.NewReplyFromRequest(q, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer))
			raw := bad.ToBytes()[:240]
			for j := range 200 {
				raw = append(raw, byte(i*j*31+7))
			}
			f.s.wire.in <- answer4(otherMAC, rogueAddr, raw)
		}
	}
	bubble(t, func(t *testing.T, s *stage) {
		f := s.server4()
		f.spoil = func(q, _ *dhcpv4.DHCPv4) bool { garbage(f, q); return true }
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(1900 * time.Millisecond)
		s.hold(DHCPv4, Bound, "10.1.0.9")
	})
	bubble(t, func(t *testing.T, s *stage) {
		f := s.server4()
		f.spoil = func(q, _ *dhcpv4.DHCPv4) bool { garbage(f, q); return false }
		s.c.Sync(t.Context(), []Want{want4()})
		for range 20 {
			s.after(time.Second)
			s.problem(DHCPv4, "10.1.0.66 sends what is no DHCP message")
		}
	})
}

// TestFlood: offers by the thousand are read at a bounded rate, remembered in bounded number, and do not keep from a lease.
func TestFlood(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.server4()
		f.spoil = func(q, a *dhcpv4.DHCPv4) bool {
			for i := range 5000 {
				a.UpdateOption(dhcpv4.OptServerIdentifier([]byte{10, 9, byte(i >> 8), byte(i)}))
				f.send(a)
			}
			a.UpdateOption(dhcpv4.OptServerIdentifier(serverAddr.AsSlice()))
			return true
		}
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(10 * time.Second)
		if s.wire.reads > 10*4*burst+burst {
			t.Errorf("%d frames read in 10 s", s.wire.reads)
		}
		if st := s.state(DHCPv4); len(st.Others) > maxOthers {
			t.Errorf("others %v", st.Others)
		}
		s.mu.Lock()
		if s.wakes > 50 {
			t.Errorf("%d wakes", s.wakes)
		}
		s.mu.Unlock()
	})
}

// TestAdmit: what the caller or the network's subnets rule out is not taken, whoever offers it.
func TestAdmit(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.server4()
		s.admit = func(a netip.Addr) error { return fmt.Errorf("address %s is endpoint db's", a) }
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(time.Second)
		s.hold(DHCPv4, Asking, "")
		s.problem(DHCPv4, "server 10.1.0.1 offers what cannot be used: address 10.1.0.9 is endpoint db's")
	})
	bubble(t, func(t *testing.T, s *stage) {
		s.server4()
		w := want4()
		w.Within = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}
		s.c.Sync(t.Context(), []Want{w})
		s.after(time.Second)
		s.hold(DHCPv4, Asking, "")
		s.problem(DHCPv4, "server 10.1.0.1 offers what cannot be used: address 10.1.0.9 is in none of the subnets of network lan")
	})
}

// TestSync: a changed name is told to the server without the lease being given back, a changed MAC ends it; one link is
// opened again after it broke.
func TestSync(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.server4()
		opened := 0
		s.open = func() (Link, error) {
			opened++
			return s.wire.plug()
		}
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(time.Second)
		s.hold(DHCPv4, Bound, "10.1.0.9")
		s.c.Sync(t.Context(), []Want{want4()})
		if opened != 1 {
			t.Errorf("the same want opens another link")
		}
		w := want4()
		w.Hostname = "other"
		s.c.Sync(t.Context(), []Want{w})
		if s.state(DHCPv4).Lease == nil {
			t.Error("another name cuts the address")
		}
		s.after(time.Second)
		s.hold(DHCPv4, Bound, "10.1.0.9")
		s.wire.Close()
		s.after(time.Minute)
		if opened != 3 {
			t.Errorf("opened %d times", opened)
		}
		w.IPv4 = false
		s.c.Sync(t.Context(), []Want{w})
		if len(s.c.States()) != 0 {
			t.Errorf("states %+v", s.c.States())
		}
		s.told("DISCOVER 0.0.0.0 > 255.255.255.255\nREQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9 of 10.1.0.1\nprobe 10.1.0.9\n" +
			"REQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9\nRELEASE 10.1.0.9 > 10.1.0.1 have 10.1.0.9 of 10.1.0.1")
	})
}

// TestParked: a stopped container's lease is kept, and taken up when it starts.
func TestParked(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.server4()
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(time.Second)
		w := want4()
		w.Stored, w.Parked = stored(s.c), true
		s.c.Sync(t.Context(), []Want{w})
		if len(s.c.States()) != 0 {
			t.Errorf("states %+v", s.c.States())
		}
		s.after(10 * time.Minute)
		w.Parked = false
		s.c.Sync(t.Context(), []Want{w})
		s.after(time.Second)
		s.hold(DHCPv4, Bound, "10.1.0.9")
		s.told("DISCOVER 0.0.0.0 > 255.255.255.255\nREQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9 of 10.1.0.1\nprobe 10.1.0.9\nREQUEST 0.0.0.0 > 255.255.255.255 ask 10.1.0.9")
	})
}

// TestForever: a lease without end is not renewed.
func TestForever(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		f := s.server4()
		f.life = forever * time.Second
		s.c.Sync(t.Context(), []Want{want4()})
		s.after(1000 * time.Hour)
		if l := s.hold(DHCPv4, Bound, "10.1.0.9"); !l.Expires.IsZero() || l.over(time.Now()) {
			t.Errorf("lease %+v", l)
		}
	})
}

// TestCheck: what makes an offer unusable, and what is left out of one.
func TestCheck(t *testing.T) {
	offer := func(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		d, err := dhcpv4.New(append([]dhcpv4.Modifier{
			dhcpv4.WithYourIP(leasedAddr.AsSlice()), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(serverAddr.AsSlice())),
			dhcpv4.WithNetmask([]byte{255, 255, 255, 0}), dhcpv4.WithLeaseTime(3600),
		}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	raw := func(code dhcpv4.OptionCode, b ...byte) dhcpv4.Modifier { return dhcpv4.WithGeneric(code, b) }
	ip := func(a string) dhcpv4.Modifier { return dhcpv4.WithYourIP(netip.MustParseAddr(a).AsSlice()) }
	now := time.Now()
	for name, tc := range map[string]struct {
		d    *dhcpv4.DHCPv4
		want string
	}{
		"zero":           {offer(ip("0.0.0.0")), "address 0.0.0.0 is none for a host"},
		"this network":   {offer(ip("0.1.2.3")), "address 0.1.2.3 is none for a host"},
		"loopback":       {offer(ip("127.0.0.1")), "address 127.0.0.1 is none for a host"},
		"multicast":      {offer(ip("224.0.0.1")), "address 224.0.0.1 is none for a host"},
		"reserved":       {offer(ip("250.0.0.1")), "address 250.0.0.1 is none for a host"},
		"link-local":     {offer(ip("169.254.1.1")), "address 169.254.1.1 is none for a host"},
		"broadcast":      {offer(ip("10.1.0.255")), "address 10.1.0.255/24 is the subnet's own or its broadcast address"},
		"subnet":         {offer(ip("10.1.0.0")), "address 10.1.0.0/24 is the subnet's own or its broadcast address"},
		"server's":       {offer(ip("10.1.0.1")), "address 10.1.0.1 is the server's own"},
		"no server":      {offer(dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier)), "its server identifier is missing"},
		"bad server":     {offer(raw(dhcpv4.OptionServerIdentifier, 255, 255, 255, 255)), "its server identifier is 255.255.255.255"},
		"short server":   {offer(raw(dhcpv4.OptionServerIdentifier, 1, 2)), "its server identifier is missing"},
		"holes":          {offer(raw(dhcpv4.OptionSubnetMask, 255, 0, 255, 0)), "its subnet mask is 255.0.255.0"},
		"no mask":        {offer(raw(dhcpv4.OptionSubnetMask, 0, 0, 0, 0)), "its subnet mask is 0.0.0.0"},
		"long mask":      {offer(raw(dhcpv4.OptionSubnetMask, 255, 255, 255, 0, 0)), "its subnet mask has 5 bytes"},
		"no time":        {offer(dhcpv4.WithoutOption(dhcpv4.OptionIPAddressLeaseTime)), "it has no lease time"},
		"zero time":      {offer(dhcpv4.WithLeaseTime(0)), "its lease time is 0s, less than 10s"},
		"a second":       {offer(dhcpv4.WithLeaseTime(1)), "its lease time is 1s, less than 10s"},
		"mask of class":  {offer(dhcpv4.WithoutOption(dhcpv4.OptionSubnetMask)), ""},
		"contradiction":  {offer(raw(dhcpv4.OptionRenewTimeValue, 0, 0, 14, 0), raw(dhcpv4.OptionRebindingTimeValue, 0, 0, 0, 9)), ""},
		"early renewals": {offer(raw(dhcpv4.OptionRenewTimeValue, 0, 0, 0, 1)), ""},
		"long":           {offer(dhcpv4.WithLeaseTime(forever - 1)), ""},
	} {
		l, err := lease4(tc.d, now)
		if err == nil {
			err = errors.New("")
			wellFormed(t, l)
		}
		if err.Error() != tc.want {
			t.Errorf("%s: %q, want %q", name, err, tc.want)
		}
	}
	l, err := lease4(offer(dhcpv4.WithRouter([]byte{10, 2, 0, 1}, []byte{127, 0, 0, 1}, []byte{10, 1, 0, 9}, []byte{10, 1, 0, 2}, []byte{10, 1, 0, 3}),
		dhcpv4.WithDNS([]byte{127, 0, 0, 53}, []byte{8, 8, 8, 8}, []byte{8, 8, 8, 8}, []byte{0, 0, 0, 0}), raw(dhcpv4.OptionInterfaceMTU, 0, 1),
		dhcpv4.WithDomainSearchList("ok.example", "-bad.example", "x y"), dhcpv4.WithOption(dhcpv4.OptDomainName("plain.example"))), now)
	if err != nil {
		t.Fatal(err)
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	want := &Lease{
		Addrs:  []Address{{Prefix: netip.MustParsePrefix("10.1.0.9/24")}},
		Routes: []plan.Route{{Dst: all, Via: netip.MustParseAddr("10.1.0.2")}, {Dst: all, Via: netip.MustParseAddr("10.1.0.3"), Metric: 1}},
		DNS:    []netip.Addr{netip.MustParseAddr("8.8.8.8")}, Search: []string{"ok.example"},
	}
	if !l.alike(want) {
		t.Errorf("lease %+v, want %+v", l, want)
	}
}

// wellFormed holds a lease to what everybody who uses one relies on.
func wellFormed(t *testing.T, l *Lease) {
	t.Helper()
	for _, a := range l.Addrs {
		if ip := a.Prefix.Addr(); !usable4(ip) && !usable6(ip) {
			t.Errorf("address %s", a.Prefix)
		}
		if !a.Valid.IsZero() && (a.Preferred.IsZero() || a.Preferred.After(a.Valid)) {
			t.Errorf("address %+v", a)
		}
	}
	for _, r := range l.Routes {
		if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() || r.Via.IsValid() && (r.Via.Is4() != r.Dst.Addr().Is4() || r.Via.IsMulticast() || r.Via.IsLoopback()) {
			t.Errorf("route %+v", r)
		}
	}
	if !l.Expires.IsZero() && len(l.Addrs) > 0 && !l.T1.IsZero() &&
		(l.T1.Before(l.Got.Add(leastRenewal)) || l.T2.Before(l.T1) || l.Expires.Before(l.T2)) {
		t.Errorf("got %s, T1 %s, T2 %s, expires %s", l.Got, l.T1, l.T2, l.Expires)
	}
	if len(l.Routes) > maxRoutes+maxGateways+maxPrefixes || len(l.DNS) > maxDNS || len(l.Search) > maxSearch || l.MTU != 0 && l.MTU < leastMTU4 {
		t.Errorf("lease %+v", l)
	}
}
