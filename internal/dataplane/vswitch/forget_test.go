package vswitch

import (
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The counters of a port go with it, and so does what it lost by reason, whether that was loud or quiet.
func TestForgetCounters(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		index := p.lab.a.applied[p.a.ID].index
		if p.lab.a.hasDropped(index) {
			t.Error("it has lost frames before it sent any")
		}
		p.hostA.Run(t, "ip", "addr", "add", "10.99.9.9/32", "dev", "eth0")
		_ = p.hostA.Command(t.Context(), "ping", "-c", "1", "-W", "0.2", "-I", "10.99.9.9", p.b.Addrs[0].String()).Run() // not its address
		quiet := bpfDropKey{Port: index, Reason: ReasonNoMember.enum()}
		if err := p.lab.a.objs.BhDropsV1.Put(&quiet, &bpfDropCount{Packets: 1}); err != nil {
			t.Fatal(err)
		}
		of := func() (n int) {
			all, err := p.lab.a.Drops()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range all {
				if d.Port == p.a.ID {
					n++
				}
			}
			return n
		}
		if of() < 2 || !p.lab.a.hasDropped(index) {
			t.Errorf("%d drop counters, want the one of the source guard and the quiet one", of())
		}
		delete(p.plan.Ports, p.a.ID)
		p.update(&plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{p.a.ID: {Old: p.a}}})
		left := newTable[bpfDropKey, bpfDropCount](bpfMapBhDropsV1, p.lab.a.objs.BhDropsV1, new(int))
		if _, err := left.list(); err != nil {
			t.Fatal(err)
		}
		for k := range left.have {
			if k.Port == index {
				t.Errorf("reason %d of the port that went is still counted", k.Reason)
			}
		}
		if _, err := p.lab.a.objs.BhStatsV1.LookupBytes(&index); err != nil || p.lab.a.tables.stats.have[index] {
			t.Errorf("its counters are still there: %v", err)
		}
	})
}
