package vswitch

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestHops: what SDN routes of an overlay name goes to the next hop, wherever that is, under its MAC; the longest prefix counts,
// and a next hop speaks for the prefix to whom it serves.
func TestHops(t *testing.T) {
	l := newLab(t, AttachAuto)
	r := l.overlay()
	b := l.container(1, 11)
	l.pairsOf(b)
	a := l.plan.Ports["1-10"]
	tunnel := plan.TunnelPortID(4789)
	hop := func(prefix, via string) {
		p := netip.MustParsePrefix(prefix)
		h := plan.Hop{Prefix: p}
		if via != "" {
			h.Via = netip.MustParseAddr(via)
		}
		a.Hops = append(a.Hops, h)
	}
	here, there := [2]string{}, [2]string{}
	for i, p := range [2][4]string{{"100.64.0.0/16", "100.64.1.0/24", "100.64.2.0/24", "100.64.3.0/24"}, {"fd77::/64", "fd77:0:0:0:1::/80", "fd77:0:0:0:2::/80", "fd77:0:0:0:3::/80"}} {
		here[i], there[i] = b.Addrs[i].String(), r.Addrs[i].String()
		hop(p[0], here[i])
		hop(p[1], there[i])
		hop(p[2], []string{"127.10.0.33", "fd00:1::9:9"}[i])
		hop(p[3], a.Addrs[i].String())
		hop([]string{"10.1.0.50/32", "fd00:1::50/128"}[i], here[i]) // to somebody else than the one who has it
	}
	services := &plan.Balancer{ID: "services", Network: network(1), Switch: 1}
	for i, vip := range []string{"100.64.9.8", "fd77::8"} {
		services.Services = append(services.Services, plan.Service{
			Protocol: unix.IPPROTO_UDP, VIP: netip.MustParseAddr(vip), Port: 1000, Self: insides[i], Backends: []netip.AddrPort{netip.AddrPortFrom(r.Addrs[i], 80)},
		})
	}
	l.plan.Balancers = map[hcn.GUID]*plan.Balancer{services.ID: services}
	l.sync()
	if drift := l.sync(); len(drift) > 0 {
		t.Errorf("a second Sync found %v", drift)
	}
	for _, tc := range []struct {
		from, to plan.PortID
		src, dst [2]string
		reason   Reason
		mac      plan.MAC
	}{
		{from: a.ID, to: b.ID, dst: [2]string{"100.64.9.9", "fd77::9"}, mac: b.MAC},
		{from: a.ID, to: tunnel, dst: [2]string{"100.64.1.9", "fd77::1:0:0:9"}},
		{from: a.ID, dst: [2]string{"100.64.2.9", "fd77::2:0:0:9"}, reason: ReasonNoRoute},
		{from: a.ID, dst: [2]string{"100.64.3.9", "fd77::3:0:0:9"}, reason: ReasonToSelf},
		{from: a.ID, to: b.ID, dst: there, mac: b.MAC},
		{from: b.ID, to: tunnel, dst: there},
		{from: b.ID, dst: [2]string{"100.64.9.9", "fd77::9"}, reason: ReasonNoRoute},
		{from: b.ID, to: a.ID, src: [2]string{"100.64.9.9", "fd77::9"}, dst: [2]string{a.Addrs[0].String(), a.Addrs[1].String()}},
		{from: b.ID, src: [2]string{"100.64.9.8", "fd77::8"}, dst: [2]string{a.Addrs[0].String(), a.Addrs[1].String()}, reason: ReasonSourceAddress}, // a service's
		{from: b.ID, src: [2]string{"100.64.1.9", "fd77::1:0:0:9"}, dst: [2]string{a.Addrs[0].String(), a.Addrs[1].String()}, reason: ReasonSourceAddress},
		{from: b.ID, src: there, dst: [2]string{a.Addrs[0].String(), a.Addrs[1].String()}, reason: ReasonSourceAddress},
		{from: tunnel, to: a.ID, src: [2]string{"100.64.1.9", "fd77::1:0:0:9"}, dst: [2]string{a.Addrs[0].String(), a.Addrs[1].String()}},
		{from: tunnel, src: [2]string{"100.64.9.9", "fd77::9"}, dst: [2]string{a.Addrs[0].String(), a.Addrs[1].String()}, reason: ReasonInnerSource},
		{from: tunnel, src: [2]string{"100.64.1.9", "fd77::1:0:0:9"}, dst: here, reason: ReasonInnerSource},
	} {
		for i := range tc.dst {
			k := plan.Packet{From: tc.from, Dst: netip.MustParseAddr(tc.dst[i]), Protocol: unix.IPPROTO_UDP, SrcPort: 1000, DstPort: 80}
			switch {
			case tc.src[i] == "":
				k.Src = l.plan.Ports[tc.from].Addrs[i]
			case tc.from == tunnel:
				k.VNI, k.OuterSrc, k.SrcMAC = 5001, r.Provider, r.MAC
				fallthrough
			default:
				k.Src = netip.MustParseAddr(tc.src[i])
			}
			k = l.plan.Complete(k)
			trace := l.plan.Trace(k)
			got := l.run(k.From, k.Frame())
			if got.Outcome == Passed && tc.from == tunnel {
				continue // before 6.3
			}
			if tc.to == "" {
				if got.Outcome != Dropped || got.Reason != tc.reason || trace.Reason != tc.reason.String() {
					t.Errorf("%s to %s: %s %s, trace %s %s, want %s", k.Src, k.Dst, got.Outcome, got.Reason, trace.Verdict, trace.Reason, tc.reason)
				}
				continue
			}
			if got.Outcome != Delivered || got.To != tc.to || trace.To != tc.to {
				t.Errorf("%s to %s: %s %s to %q, trace to %q, want %q", k.Src, k.Dst, got.Outcome, got.Reason, got.To, trace.To, tc.to)
			}
			if mac := plan.MAC(got.Frame[:6]); tc.mac != (plan.MAC{}) && mac != tc.mac {
				t.Errorf("%s to %s has the MAC %s, want %s", k.Src, k.Dst, mac, tc.mac)
			}
		}
	}
	a.Hops = nil
	l.sync()
	if n := len(l.a.tables.steers.have); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}
