package vswitch

import (
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
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

// mended: what somebody deletes comes back, and what somebody adds goes.
func (l *lab) mended(t *testing.T) {
	t.Helper()
	key := addrKey(1, netip.MustParseAddr("10.1.0.50"))
	stranger := addrKey(1, netip.MustParseAddr("10.1.0.51"))
	l.in(func() error {
		if err := l.a.objs.BhRemotesV1.Delete(&key); err != nil {
			return err
		}
		return l.a.objs.BhRemotesV1.Put(&stranger, &bpfRemote{Vni: 7})
	})
	if drift := l.sync(); len(drift) == 0 {
		t.Error("a change of the remotes is no drift")
	}
	var got bpfRemote
	l.in(func() error { return l.a.objs.BhRemotesV1.Lookup(&key, &got) })
	if err := l.a.objs.BhRemotesV1.Lookup(&stranger, &got); err == nil {
		t.Error("somebody's remote stays")
	}
	if drift := l.sync(); len(drift) > 0 {
		t.Errorf("it is mended and still drift: %v", drift)
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
	change(&next, nil)
	if _, there := l.a.remotes.t.endpoints.have[key]; there || len(l.hosts()) != 1 {
		t.Errorf("it is gone, and these may send: %v", l.hosts())
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
