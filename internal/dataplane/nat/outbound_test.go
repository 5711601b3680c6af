package nat

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// setOutbound changes the translations of a port by Update.
func (tp *topology) setOutbound(id plan.PortID, out ...plan.Outbound) {
	tp.t.Helper()
	old := tp.plan.Ports[id]
	is := *old
	is.Outbound = out
	tp.plan.Ports[id] = &is
	if err := tp.a.Update(tp.t.Context(), tp.plan, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{id: {Old: old, New: &is}}}); err != nil {
		tp.t.Fatalf("set translations: %v", err)
	}
}

func prefixes(list ...netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range list {
		p, err := a.Prefix(a.BitLen() - 4)
		if err != nil {
			panic(err)
		}
		out = append(out, p)
	}
	return out
}

// TestOutbound lets a container talk to a LAN and an internet that have a way back to it, and asks them which
// address they saw.
func TestOutbound(t *testing.T) {
	tp := newTopology(t)
	second := map[bool]netip.Addr{true: addr("192.0.2.77"), false: addr("2001:db8:77::77")}
	tp.host.Addr("eth0", "192.0.2.77/24", "2001:db8:77::77/64")
	tp.inet.Route("10.77.0.0/16", "192.0.2.1")
	tp.inet.Route("2001:db8:77::/64", "2001:db8::1")
	tp.lan.Route("2001:db8:77::/64", "2001:db8::1")
	tp.inet.Route("fd77::/16", "2001:db8::1")
	for _, f := range families {
		tp.serve(tp.lan, f.lan)
		tp.serve(tp.inet, f.inet)
		tp.serve(tp.web, f.web)
		tp.plan.Ports["web"].Forwards = append(tp.plan.Ports["web"].Forwards, forward(6, "all", 8080, f.web, 80))
	}
	tp.sync()
	sees := func(t *testing.T, server string, at, want netip.Addr) {
		t.Helper()
		answered(t, tp.web, at, 80, server+" sees "+hostPort(want))
		askUDP(t, tp.web, at, 80, hostPort(want))
	}
	for _, f := range families {
		vip := second[f.lan.Is4()]
		lan, inet := prefixes(f.lan), prefixes(f.inet)
		for _, tc := range []struct {
			name          string
			out           []plan.Outbound
			atLAN, atInet netip.Addr
		}{
			{"no policy", nil, f.host, f.host},
			{"exceptions", []plan.Outbound{{Source: f.web, Kept: lan}}, f.web, f.host},
			{"exceptions and VirtualIP", []plan.Outbound{{Source: f.web, Kept: lan, As: vip}}, f.web, vip},
			{"VirtualIP", []plan.Outbound{{Source: f.web, As: vip}}, vip, vip},
			{"destinations", []plan.Outbound{{Source: f.web, Chosen: []plan.Hidden{{Destinations: lan}}, OthersKept: true}}, f.host, f.web},
			{"destinations with VirtualIP", []plan.Outbound{{Source: f.web, Chosen: []plan.Hidden{{Destinations: lan, As: vip}}, OthersKept: true}}, vip, f.web},
			{"both forms", []plan.Outbound{{Source: f.web, Kept: append(inet, lan...), Chosen: []plan.Hidden{{Destinations: lan, As: vip}}}}, vip, f.web},
		} {
			t.Run(f.name+"/"+tc.name, func(t *testing.T) {
				tp.setOutbound("web", tc.out...)
				sees(t, "lan", f.lan, tc.atLAN)
				sees(t, "inet", f.inet, tc.atInet)
				for _, dst := range []netip.Addr{f.lan, f.inet} {
					if err := tp.web.Ping(dst); err != nil {
						t.Errorf("ping %s: %v", dst, err)
					}
				}
				// Who sees the address may answer, and no more.
				tp.counts(t, DropDirect, func() { silent(t, tp.lan, f.web, 80) })
				silent(t, tp.inet, f.web, 80)
				answered(t, tp.lan, f.host, 8080, "web sees "+hostPort(f.lan))
				answered(t, tp.web, f.host, 8080, "web sees "+hostPort(f.gateway))
			})
		}
	}
	t.Run("frames of a neighbour", func(t *testing.T) {
		for _, f := range families {
			tp.setOutbound("web", plan.Outbound{Source: f.web, OthersKept: true})
			// Even one who is answered may not speak for a container.
			tp.counts(t, DropSpoofed, func() {
				sendFrame(t, tp.lan, "eth0", tp.host.MAC("eth0"), udpFrame(tp.lan.MAC("eth0"), tp.host.MAC("eth0"),
					netip.AddrPortFrom(f.web2, 4444), netip.AddrPortFrom(f.web, 80), "evil"))
				silent(t, tp.lan, f.web, 80)
			})
		}
	})
	t.Run("a running sender follows a change", func(t *testing.T) {
		for _, f := range families {
			tp.setOutbound("web")
			c, err := tp.web.DialContext(t.Context(), "udp", netip.AddrPortFrom(f.lan, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			says := func(want netip.Addr) {
				t.Helper()
				buf := make([]byte, 100)
				_ = c.SetDeadline(time.Now().Add(2 * time.Second))
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				n, err := c.Read(buf)
				if err != nil || !strings.HasPrefix(string(buf[:n]), hostPort(want)) {
					t.Errorf("the LAN sees %s, %v; want %s", buf[:n], err, want)
				}
			}
			says(f.host)
			tp.setOutbound("web", plan.Outbound{Source: f.web, Kept: prefixes(f.lan)})
			says(f.web)
			tp.setOutbound("web")
			says(f.host)
		}
	})
	t.Run("listing", func(t *testing.T) {
		p := *tp.plan.Ports["web"]
		p.Outbound = nil
		for _, f := range families {
			vip := second[f.lan.Is4()]
			p.Outbound = append(p.Outbound, plan.Outbound{
				Source: f.web, Kept: prefixes(f.inet), As: vip, OnLAN: true,
				Chosen: []plan.Hidden{{Destinations: prefixes(f.lan), As: vip}, {Destinations: prefixes(f.far)}},
			})
		}
		tp.plan.Ports["web"] = &p
		tp.sync()
		gen := tp.generation()
		for _, a := range []*Applier{tp.a, tp.applier()} {
			if drift, err := a.Sync(t.Context(), tp.plan); err != nil || a == tp.a && len(drift) != 0 {
				t.Errorf("sync again: drift %v, %v", drift, err)
			}
		}
		if now := tp.generation(); now != gen {
			t.Errorf("an unchanged plan was written: generation %d to %d", gen, now)
		}
		tp.nft("flush", "set", "inet", TableName, setKept4)
		if drift := tp.sync(); len(drift) != 1 || drift[0].Found != "missing" || drift[0].ID != "web" {
			t.Errorf("drift after a flush of the set: %v", drift)
		}
		tp.nft("delete", "table", "inet", TableName)
		tp.sync() // nft writes what netlink wrote before
		gen = tp.generation()
		if drift := tp.sync(); len(drift) != 0 || tp.generation() != gen {
			t.Errorf("after nft wrote the elements: drift %v, generation %d to %d", drift, gen, tp.generation())
		}
	})
	old := tp.plan.Ports["web"]
	inside, gen := *old, tp.generation()
	inside.VNIC.Namespace = "/run/netns/hns-web"
	if err := tp.a.Cut(t.Context(), &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"web": {Old: &inside}}}); err != nil {
		t.Fatal(err)
	}
	if now := tp.generation(); now != gen {
		t.Error("what the switch cuts off is cut off here too, for which its caller has to wait")
	}
	delete(tp.plan.Ports, "web")
	d := &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"web": {Old: old}}}
	if err := tp.a.Cut(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := tp.a.Update(t.Context(), tp.plan, d); err != nil {
		t.Fatal(err)
	}
	if l, err := tp.a.k.list(); err != nil {
		t.Fatal(err)
	} else {
		for k, e := range l.elements {
			if _, ok := k.sourceOf(); ok {
				t.Errorf("left behind: %s", describeElement(k, e))
			}
		}
	}

	// On a LAN the address may be somebody's whom the switch does not know.
	tp.plan.Ports["web"] = &inside
	tp.plan.Switches[inside.Network] = &plan.Switch{Network: inside.Network, Mode: plan.ModeL2Bridge}
	if _, err := tp.a.Sync(t.Context(), tp.plan); err != nil {
		t.Fatal(err)
	}
	gen = tp.generation()
	if err := tp.a.Cut(t.Context(), &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{"web": {Old: &inside}}}); err != nil {
		t.Fatal(err)
	}
	if tp.generation() == gen {
		t.Error("what is published of a port on a LAN outlives the cut")
	}
}
