package vswitch

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// overlay adds a switch over several hosts, with two containers and a remote endpoint. No frame is sent: any device will do
// for the tunnel and the NIC.
func (l *lab) overlay() *plan.Remote {
	l.t.Helper()
	tunnel := &plan.Port{ID: plan.TunnelPortID(4789), Kind: plan.PortTunnel, Network: network(1), Switch: 1, UDPPort: 4789, Device: "bhv1", Underlays: []string{"nic1"}}
	l.plan.Switches[network(1)] = &plan.Switch{
		Number: 1, Network: network(1), Mode: plan.ModeOverlay, MTU: 1450, Uplink: "nic1",
		Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/16"), VNI: 5001}},
		Overlay: &plan.Overlay{
			Port: 4789, Provider: netip.MustParseAddr("192.0.2.1"), Router: plan.MAC{2, 0, 0, 0, 1, 1}, MTU: 1500, Tunnel: tunnel.ID,
			Routes: []plan.RemoteRoute{{Prefix: netip.MustParsePrefix("10.7.0.0/16"), VNI: 5001, Provider: netip.MustParseAddr("192.0.2.3"), Router: plan.MAC{2, 0, 0, 0, 0xdd, 3}}},
		},
	}
	l.plan.Ports[tunnel.ID] = tunnel
	l.container(1, 10)
	r := &plan.Remote{
		Endpoint: "R", Network: network(1), MAC: plan.MAC{2, 0, 0, 0, 0xcc, 1}, Provider: netip.MustParseAddr("192.0.2.2"),
		Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.50"), netip.MustParseAddr("fd00:1::50")}, VNIs: []uint32{5001, 5001},
	}
	l.plan.Remotes = map[hcn.GUID]*plan.Remote{"R": r}
	made := map[string]bool{}
	l.plan.Ports["nic"] = &plan.Port{Device: "nic1", Kind: plan.PortHost, VNIC: plan.VNIC{Device: "nic1far"}}
	l.pairs(made)
	delete(l.plan.Ports, "nic")
	return r
}

// hosts are those that may send to switch 1.
func (l *lab) hosts() map[string]bool {
	out := map[string]bool{}
	for k := range l.a.remotes.t.vteps.have {
		out[netip.AddrFrom16(k.Ip).Unmap().String()] = true
	}
	return out
}

func TestOverlayTables(t *testing.T) {
	for _, mode := range []AttachMode{AttachTCX, AttachClsact} {
		t.Run(string(mode), func(t *testing.T) {
			l := newLab(t, mode)
			r := l.overlay()
			l.sync()
			if got := l.hosts(); len(got) != 2 || !got["192.0.2.2"] || !got["192.0.2.3"] {
				t.Errorf("these hosts may send: %v", got)
			}
			before := l.a.Writes()
			if drift := l.sync(); len(drift) > 0 || l.a.Writes() != before {
				t.Errorf("a second Sync wrote %d times and found %v", l.a.Writes()-before, drift)
			}
			l.open() // as after a restart
			if l.sync(); l.a.Writes() != 0 {
				t.Errorf("a restarted daemon wrote %d times", l.a.Writes())
			}
			l.mended(t)
			l.moves(t, r)
			l.plan = &plan.Plan{Switches: map[hcn.GUID]*plan.Switch{}, Ports: map[plan.PortID]*plan.Port{}}
			l.sync()
			if n := len(l.a.remotes.t.endpoints.have) + len(l.a.remotes.t.routes.have) + len(l.hosts()) + len(l.a.tables.overlays.have) + len(l.a.tables.vnis.have); n != 0 {
				t.Errorf("%d entries are left", n)
			}
			for _, pin := range []string{"bhv1", underlayPin("nic1")} {
				if exists(l.a.pins.link(pin)) {
					t.Errorf("the program %s is still there", pin)
				}
			}
		})
	}
}

// mended: what somebody deletes or changes comes back, what somebody adds goes, and both are told of, in each of the maps.
func (l *lab) mended(t *testing.T) {
	t.Helper()
	r := l.a.remotes.t
	mendedMap(t, l, r.endpoints, addrKey(1, netip.MustParseAddr("10.1.0.51")), bpfRemote{Vni: 7})
	mendedMap(t, l, r.routes, bpfRouteKey{Bits: 160, Sw: 1}, bpfRemote{Vni: 7})
	mendedMap(t, l, r.vteps, addrKey(1, netip.MustParseAddr("192.0.2.9")), 1)
	mendedMap(t, l, l.a.tables.overlays, 7, bpfOverlay{Mtu: 7})
	mendedMap(t, l, l.a.tables.vnis, bpfVniKey{Vni: 7}, 7)
}

// mendedMap breaks a map by deleting and changing an entry, and by adding one.
func mendedMap[K, V comparable](t *testing.T, l *lab, m *table[K, V], stranger K, value V) {
	t.Helper()
	before := maps.Clone(m.have)
	if len(before) == 0 {
		t.Errorf("%s is empty", m.name)
	}
	for what, do := range map[string]func(k K) error{
		"deleted": func(k K) error { return m.m.Delete(&k) },
		"changed": func(k K) error { return m.m.Put(&k, &value) },
		"added":   func(K) error { return m.m.Put(&stranger, &value) },
	} {
		for k, v := range before {
			if what == "changed" && v == value {
				continue // the value of a host means nothing
			}
			l.in(func() error { return do(k) })
			if drift := l.sync(); len(drift) != 1 || drift[0].Object != "map "+m.name {
				t.Errorf("an entry of %s was %s, and the drift is %v", m.name, what, drift)
			}
			break
		}
		if _, err := m.list(); err != nil || !maps.Equal(m.have, before) {
			t.Errorf("an entry of %s was %s, and then there is %v, %v; before %v", m.name, what, m.have, err, before)
		}
		if drift := l.sync(); len(drift) > 0 {
			t.Errorf("%s is mended and still drift: %v", m.name, drift)
		}
	}
}

// moves: an endpoint goes to another host, and by another name, and away.
func (l *lab) moves(t *testing.T, r *plan.Remote) {
	t.Helper()
	change := func(old, next *plan.Remote) {
		id := hcn.GUID("")
		if old != nil {
			id = old.Endpoint
			delete(l.plan.Remotes, id)
		}
		if next != nil {
			id = next.Endpoint
			l.plan.Remotes[id] = next
		}
		l.update(&plan.Delta{Remotes: map[hcn.GUID]plan.Change[plan.Remote]{id: {Old: old, New: next}}})
	}
	key := addrKey(1, r.Addrs[0])
	at := func() string { return netip.AddrFrom16(l.a.remotes.t.endpoints.have[key].Host).Unmap().String() }
	moved := *r
	moved.Provider = netip.MustParseAddr("192.0.2.4")
	change(r, &moved)
	if got := l.hosts(); at() != "192.0.2.4" || got["192.0.2.2"] || !got["192.0.2.4"] {
		t.Errorf("after a move it is at %s, and these may send: %v", at(), got)
	}
	// Its successor is told of before it is gone.
	next := moved
	next.Endpoint, next.Provider = "S", netip.MustParseAddr("192.0.2.5")
	change(nil, &next)
	change(&moved, nil)
	if got := l.hosts(); at() != "192.0.2.5" || got["192.0.2.4"] || !got["192.0.2.5"] {
		t.Errorf("the successor is at %s, and these may send: %v", at(), got)
	}
	before := l.a.Writes()
	if drift := l.sync(); len(drift) > 0 || l.a.Writes() != before {
		t.Errorf("Sync found other entries than the Updates made: %v, %d writes", drift, l.a.Writes()-before)
	}
	// One of a lower id takes over.
	change(nil, &moved)
	if at() != "192.0.2.5" {
		t.Errorf("both have it, and it is at %s", at())
	}
	before = l.a.Writes()
	if drift := l.sync(); len(drift) > 0 || l.a.Writes() != before {
		t.Errorf("both have it, and Sync found %v and wrote %d times", drift, l.a.Writes()-before)
	}
	pkt := l.plan.Complete(plan.Packet{From: "1-10", Src: l.plan.Ports["1-10"].Addrs[0], Dst: r.Addrs[0], Protocol: 17})
	if tr := l.plan.Trace(pkt); !strings.Contains(tr.Steps[len(tr.Steps)-1].Text, "192.0.2.5") {
		t.Errorf("the plan has it elsewhere: %+v", tr)
	}
	change(&next, nil)
	if got := l.hosts(); at() != "192.0.2.4" || got["192.0.2.5"] {
		t.Errorf("what took over is at %s, and these may send: %v", at(), got)
	}
	change(&moved, nil)
	if _, there := l.a.remotes.t.endpoints.have[key]; there || len(l.hosts()) != 1 {
		t.Errorf("it is gone, and these may send: %v", l.hosts())
	}
}

// TestOverlayShifts: flows are judged again whenever their way may be another one, to this host or to another, and only then.
func TestOverlayShifts(t *testing.T) {
	here := netip.MustParseAddr("10.1.0.50")
	for _, host := range []bool{false, true} {
		t.Run(fmt.Sprintf("host route %v", host), func(t *testing.T) {
			l := newLab(t, AttachAuto)
			r := l.overlay()
			l.plan.Switches[network(1)].Overlay.Host = host
			l.sync()
			raised := func(what string, want bool, do func()) {
				t.Helper()
				before := l.generation()
				do()
				if got := l.generation() != before; got != want {
					t.Errorf("%s: judged again: %v, want %v", what, got, want)
				}
			}
			apply := func(update bool, d *plan.Delta) {
				if update {
					l.update(d)
				} else {
					l.sync()
				}
			}
			raised("nothing", false, func() { l.sync() })
			i := 20
			for _, update := range []bool{true, false} {
				how := map[bool]string{true: " by Update", false: " by Sync"}[update]
				comes := func(what string, want bool, a netip.Addr) {
					t.Helper()
					i++
					p := l.container(1, i)
					p.Addrs = []netip.Addr{a}
					l.pairsOf(p)
					raised(what+how, want, func() { apply(update, change(nil, p)) })
					delete(l.plan.Ports, p.ID)
					l.update(change(p, nil))
				}
				comes("an address that nobody has", false, netip.MustParseAddr("10.1.9.9"))
				comes("an address that is elsewhere", true, here)
				comes("an address behind a router elsewhere", true, netip.MustParseAddr("10.7.0.9"))
				next := *r
				next.Endpoint, next.Addrs, next.VNIs = "T", []netip.Addr{netip.MustParseAddr("10.1.0.77")}, []uint32{5001}
				l.plan.Remotes["T"] = &next
				raised("an address comes to be elsewhere"+how, host, func() {
					apply(update, &plan.Delta{Remotes: map[hcn.GUID]plan.Change[plan.Remote]{"T": {New: &next}}})
				})
				moved := next
				moved.Provider = netip.MustParseAddr("192.0.2.8")
				l.plan.Remotes["T"] = &moved
				raised("it moves"+how, false, func() {
					apply(update, &plan.Delta{Remotes: map[hcn.GUID]plan.Change[plan.Remote]{"T": {Old: &next, New: &moved}}})
				})
				delete(l.plan.Remotes, "T")
				raised("it is nowhere"+how, host, func() {
					apply(update, &plan.Delta{Remotes: map[hcn.GUID]plan.Change[plan.Remote]{"T": {Old: &moved}}})
				})
				old := l.plan.Switches[network(1)]
				sw, overlay := *old, *old.Overlay
				overlay.Routes = append(slices.Clone(overlay.Routes), plan.RemoteRoute{Prefix: netip.MustParsePrefix("10.8.0.0/16"), VNI: 5001, Provider: netip.MustParseAddr("192.0.2.3")})
				sw.Overlay = &overlay
				l.plan.Switches[network(1)] = &sw
				raised("a route comes"+how, host, func() {
					apply(update, &plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(1): {Old: old, New: &sw}}})
				})
				l.plan.Switches[network(1)] = old
				raised("a route goes"+how, host, func() {
					apply(update, &plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(1): {Old: &sw, New: old}}})
				})
			}
			// A daemon that was away while the address came here.
			p := l.container(1, 60)
			p.Addrs = []netip.Addr{here}
			l.pairsOf(p)
			l.open()
			raised("after a restart", true, func() { l.sync() })
			l.open()
			raised("after another restart", false, func() { l.sync() })
		})
	}
}

// TestOverlayIsolated: what exchanges nothing with others does not with those on other hosts, either.
func TestOverlayIsolated(t *testing.T) {
	l := newLab(t, AttachAuto)
	r := l.overlay()
	c := l.plan.Ports["1-10"]
	c.Policy.Isolated = true
	l.sync()
	tunnel := plan.TunnelPortID(4789)
	for i, a := range r.Addrs {
		for _, pkt := range []plan.Packet{
			{From: c.ID, Src: c.Addrs[i], Dst: a, Protocol: 17, SrcPort: 1000, DstPort: 80},
			{From: tunnel, VNI: 5001, Src: a, Dst: c.Addrs[i], Protocol: 17, SrcPort: 1000, DstPort: 80},
		} {
			pkt = l.plan.Complete(pkt)
			if got := l.plan.Trace(pkt); got.Reason != ReasonIsolated.String() {
				t.Errorf("trace of %+v: %+v", pkt, got)
			}
			got := l.run(pkt.From, pkt.Frame())
			if got.Outcome == Passed && pkt.From == tunnel {
				continue // before 6.3
			}
			if got.Outcome != Dropped || got.Reason != ReasonIsolated {
				t.Errorf("%s to %s: %s %s", pkt.Src, pkt.Dst, got.Outcome, got.Reason)
			}
		}
	}
}

// TestSealed: an encrypted network sends by its own device or not at all, and takes nothing that comes to the NIC in clear text.
func TestSealed(t *testing.T) {
	l := newLab(t, AttachAuto)
	r := l.overlay()
	inner, there := netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::2")
	o := l.plan.Switches[network(1)].Overlay
	o.Encrypted, o.Provider, o.Routes, o.MTU = true, inner, nil, 1440
	o.Clear = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	r.Provider = there
	c, tunnel := l.plan.Ports["1-10"], l.plan.Ports[plan.TunnelPortID(4789)]
	out := func(what string, want Reason) {
		t.Helper()
		l.sync()
		for i, a := range r.Addrs {
			pkt := l.plan.Complete(plan.Packet{From: c.ID, Src: c.Addrs[i], Dst: a, Protocol: 17, SrcPort: 1000, DstPort: 80})
			got := l.run(c.ID, pkt.Frame())
			if want == 0 && (got.Outcome != Delivered || got.To != tunnel.ID) || want != 0 && (got.Outcome != Dropped || got.Reason != want) {
				t.Errorf("%s: %s is %s %s to %q", what, a, got.Outcome, got.Reason, got.To)
			}
			if tr := l.plan.Trace(pkt); want == 0 && tr.Verdict != plan.ToRemote || want != 0 && tr.Reason != want.String() {
				t.Errorf("%s: trace of %s: %+v", what, a, tr)
			}
		}
	}
	out("with keys", 0)
	o.Unready = true
	out("while nothing can be encrypted", ReasonNoKey)
	o.Unready, r.Provider, r.Keyless = false, netip.MustParseAddr("192.0.2.2"), true
	out("to a host in the clear", ReasonNoKey)
	r.Provider, r.Keyless = netip.IPv6Unspecified(), true
	out("to a host without an address", ReasonNoKey)
	r.Provider, r.Keyless = there, false
	l.sync()

	from := th.ParseMAC("02:00:00:00:00:99")
	inside := th.Raw(th.Frame(th.Ethernet{Src: th.MAC(r.MAC[:]), Dst: th.MAC(c.MAC[:])}, th.IPv4{Src: r.Addrs[0], Dst: c.Addrs[0]}, th.UDP{SrcPort: 1, DstPort: 2}, th.Text("forged")))
	v4 := func(dst string, sum bool) []th.Layer {
		return []th.Layer{th.IPv4{Src: netip.MustParseAddr("192.0.2.2"), Dst: netip.MustParseAddr(dst)}, th.UDP{SrcPort: 50000, DstPort: 4789, NoChecksum: !sum}}
	}
	v6 := func(src, dst string) []th.Layer {
		return []th.Layer{th.IPv6{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst)}, th.UDP{SrcPort: 50000, DstPort: 4789}}
	}
	for what, tc := range map[string]struct {
		outer []th.Layer
		vni   uint32
		want  Outcome
	}{
		"IPv4":                           {v4("192.0.2.1", false), 5001, Dropped},
		"IPv4 with a checksum":           {v4("192.0.2.1", true), 5001, Dropped},
		"IPv6":                           {v6("2001:db8::2", "2001:db8::1"), 5001, Dropped},
		"as if it came inside WireGuard": {v6("fd99::2", "2001:db8::1"), 5001, Dropped},
		"to the address inside":          {v6("fd99::2", "fd99::1"), 5001, Dropped},
		"another network":                {v4("192.0.2.1", false), 5002, Passed},
		"another network by IPv6":        {v6("2001:db8::2", "2001:db8::1"), 5002, Passed},
	} {
		vxlan := th.Raw{8, 0, 0, 0, byte(tc.vni >> 16), byte(tc.vni >> 8), byte(tc.vni), 0}
		layers := append([]th.Layer{th.Ethernet{Src: from, Dst: from}}, append(tc.outer, vxlan, inside)...)
		if got := l.run(tunnel.ID, th.Frame(layers...)); got.Outcome != tc.want || tc.want == Dropped && got.Reason != ReasonClear {
			t.Errorf("%s: %s %s", what, got.Outcome, got.Reason)
		}
	}
}

// pairsOf makes a port's devices. Nothing is sent.
func (l *lab) pairsOf(p *plan.Port) {
	l.t.Helper()
	only := lab{t: l.t, host: l.host, plan: &plan.Plan{Ports: map[plan.PortID]*plan.Port{p.ID: p}}}
	only.pairs(map[string]bool{})
}

func (l *lab) generation() uint32 {
	l.t.Helper()
	c, err := l.a.config()
	if err != nil {
		l.t.Fatal(err)
	}
	return c.Generation
}

// TestTunnelMTU: what does not fit a tunnel is dropped, and so is what will be cut into segments that do not.
func TestTunnelMTU(t *testing.T) {
	l := newLab(t, AttachAuto)
	r := l.overlay()
	l.sync()
	c := l.plan.Ports["1-10"]
	const most = 1500 - 50
	for i, head := range []int{20, 40} {
		for _, proto := range []uint8{6, 17} {
			l4 := map[uint8]int{6: 20, 17: 8}[proto]
			frame := l.plan.Complete(plan.Packet{From: c.ID, Src: c.Addrs[i], Dst: r.Addrs[i], Protocol: proto, SrcPort: 1000, DstPort: 80}).Frame()
			for _, tc := range []struct {
				packet, segment int
				want            Outcome
			}{
				{most, 0, Delivered},
				{most + 1, 0, Dropped},
				{3000, most - head - l4, Delivered},
				{3000, most - head - l4 + 1, Dropped},
			} {
				long := append(slices.Clone(frame), make([]byte, 14+tc.packet-len(frame))...)
				in := bpfSkBuff{Ifindex: l.a.applied[c.ID].index, GsoSize: uint32(tc.segment)}
				if tc.segment > 0 {
					in.GsoSegs = 3
				}
				var got Result
				l.in(func() (err error) {
					got, err = l.a.run(l.a.objs.BhFromPort, in, long)
					return err
				})
				if got.Outcome != tc.want || got.Outcome == Dropped && got.Reason != ReasonMTU {
					t.Errorf("protocol %d over IPv%d, %d bytes in segments of %d: %s %s, want %s", proto, 4+2*i, tc.packet, tc.segment, got.Outcome, got.Reason, tc.want)
				}
			}
		}
	}
}

// TestTunnelCongestion: what the network between the hosts says of congestion reaches the packet inside as RFC 6040 has it.
func TestTunnelCongestion(t *testing.T) {
	l := newLab(t, AttachAuto)
	r := l.overlay()
	l.sync()
	c := l.plan.Ports["1-10"]
	const outer, inner = 14, 14 + 20 + 8 + 8 + 14
	const lost = 4
	// By inner and outer mark: not capable, capable (1), capable (0), congested.
	want := [4][4]byte{{0, 0, 0, lost}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}}
	for i := range r.Addrs {
		frame := l.plan.Complete(plan.Packet{From: plan.TunnelPortID(4789), VNI: 5001, Src: r.Addrs[i], Dst: c.Addrs[i], Protocol: 17, SrcPort: 1000, DstPort: 80}).Frame()
		for in := range want {
			for out, mark := range want[in] {
				f := slices.Clone(frame)
				f[outer+1] |= byte(out)
				if i == 0 {
					f[inner+1] |= byte(in)
					sum := binary.BigEndian.Uint16(f[inner+10:]) - uint16(in)
					binary.BigEndian.PutUint16(f[inner+10:], sum)
				} else {
					f[inner+1] |= byte(in) << 4
				}
				got := l.run(plan.TunnelPortID(4789), f)
				if got.Outcome == Passed {
					t.Skip("before 6.3 the VXLAN device unpacks")
				}
				name := fmt.Sprintf("IPv%d, %d inside %d", 4+2*i, in, out)
				if mark == lost {
					if got.Outcome != Dropped || got.Reason != ReasonCongested {
						t.Errorf("%s: %s %s", name, got.Outcome, got.Reason)
					}
					continue
				}
				if got.Outcome != Delivered {
					t.Errorf("%s: %s %s", name, got.Outcome, got.Reason)
					continue
				}
				ip := got.Frame[14:]
				mine := ip[1] & 3
				if i == 1 {
					mine = ip[1] >> 4 & 3
				} else if !validHeader(ip[:20]) {
					t.Errorf("%s: the checksum of %x is wrong", name, ip[:20])
				}
				if mine != mark {
					t.Errorf("%s: it arrives as %d, want %d", name, mine, mark)
				}
			}
		}
	}
}

// validHeader tells whether an IPv4 header has the right checksum.
func validHeader(h []byte) bool {
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	return sum&0xffff+sum>>16 == 0xffff
}
