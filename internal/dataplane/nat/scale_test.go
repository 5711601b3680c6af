package nat

import (
	"cmp"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestScale publishes a port of each of 1,000 endpoints, one Update each, and takes them away again. The last must not
// cost more than the first. What that is judged by is the number of allocations: times are only logged, for they are the machine's.
func TestScale(t *testing.T) {
	const n = 1000
	tp := newTopology(t)
	tp.sync()
	ports := make([]*plan.Port, n)
	for i := range ports {
		to4, to6 := netip.AddrFrom4([4]byte{10, 77, 1, 2}), addr("fd77:1::2")
		id := plan.PortID(fmt.Sprintf("scale-%d", i))
		ports[i] = &plan.Port{
			ID: id, Kind: plan.PortContainer, Network: "NET1", Endpoint: hcn.GUID(id), Name: string(id),
			Forwards: []plan.Forward{forward(6, "127.0.0.1", uint16(10000+i), to4, 80), forward(6, "::1", uint16(10000+i), to6, 80)},
		}
	}
	step := func(change func(*plan.Port) plan.Change[plan.Port]) ([]time.Duration, []uint64) {
		took, allocated := make([]time.Duration, n), make([]uint64, n)
		var before, after runtime.MemStats
		for i, p := range ports {
			c := change(p)
			if c.New != nil {
				tp.plan.Ports[p.ID] = c.New
			} else {
				delete(tp.plan.Ports, p.ID)
			}
			runtime.ReadMemStats(&before)
			start := time.Now()
			if err := tp.a.Update(t.Context(), tp.plan, &plan.Delta{Ports: map[plan.PortID]plan.Change[plan.Port]{p.ID: c}}); err != nil {
				t.Fatal(err)
			}
			took[i] = time.Since(start)
			runtime.ReadMemStats(&after)
			allocated[i] = after.Mallocs - before.Mallocs
		}
		return took, allocated
	}
	report := func(what string, change func(*plan.Port) plan.Change[plan.Port]) {
		took, allocated := step(change)
		first, last := median(allocated[:100]), median(allocated[n-100:])
		t.Logf("%s: median of the first 100 %v, of the last 100 %v; allocations %d and %d", what, median(took[:100]), median(took[n-100:]), first, last)
		if last > 2*first {
			t.Errorf("%s does not stay flat: %d allocations to %d", what, first, last)
		}
	}
	report("add", func(p *plan.Port) plan.Change[plan.Port] { return plan.Change[plan.Port]{New: p} })
	l, err := tp.a.k.list()
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for k := range l.elements {
		count[k.set]++
	}
	if count[mapAddress4] != n || count[mapAddress6] != n {
		t.Errorf("elements: %v", count)
	}
	start := time.Now()
	if drift := tp.sync(); len(drift) != 0 {
		t.Errorf("drift %v", drift[0])
	}
	t.Logf("Sync of an unchanged plan: %v", time.Since(start))
	tp.nft("flush", "ruleset")
	start = time.Now()
	if drift := tp.sync(); len(drift) != 1 {
		t.Errorf("drift %v", drift)
	}
	t.Logf("Sync after a flush: %v", time.Since(start))
	report("remove", func(p *plan.Port) plan.Change[plan.Port] { return plan.Change[plan.Port]{Old: p} })

	start = time.Now()
	es := elements{}
	if err := es.addPort(ports[0]); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := tp.a.k.write(nil, es); err != nil {
			t.Fatal(err)
		}
		if err := tp.a.k.write(es, nil); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("one netlink transaction of two elements: %v", time.Since(start)/(2*n))
}

func median[T cmp.Ordered](d []T) T {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
