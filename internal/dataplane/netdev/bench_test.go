package netdev

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkAttachDetach attaches one endpoint with a compartment of its own to a host that has 1, 100 or 1,000 already,
// and detaches it. detach-ms is what the caller waits for; gone-ms includes the reaper.
func BenchmarkAttachDetach(b *testing.B) {
	for _, c := range []struct{ standing, pool int }{{0, 0}, {100, 0}, {1000, 0}, {0, 8}, {1000, 8}} {
		b.Run(fmt.Sprintf("standing=%d/pool=%d", c.standing, c.pool), func(b *testing.B) {
			n, standing := openProcess(b, c.pool), c.standing
			base := onlyNetwork()
			for i := range standing {
				addEndpoint(base, i+1)
			}
			apply(b, n, &plan.Plan{}, base)
			var attach, detach, gone []time.Duration
			for b.Loop() {
				testhost.Eventually(b, 5*time.Second, func() error { return n.pool.filled() })
				p := onlyNetwork()
				p.Namespaces, p.Ports = maps.Clone(base.Namespaces), maps.Clone(base.Ports)
				addEndpoint(p, 5000)
				come, leave := delta(base, p), delta(p, base)
				start := time.Now()
				update(b, n, p, come)
				attach = append(attach, time.Since(start))
				start = time.Now()
				update(b, n, base, leave)
				detach = append(detach, time.Since(start))
				if err := n.reap.wait(b.Context()); err != nil {
					b.Fatal(err)
				}
				gone = append(gone, time.Since(start))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(quantile(attach, 0.5), "attach-ms")
			b.ReportMetric(quantile(attach, 0.95), "attach-p95-ms")
			b.ReportMetric(quantile(detach, 0.5), "detach-ms")
			b.ReportMetric(quantile(gone, 0.5), "gone-ms")
		})
	}
}

// BenchmarkDetachMany attaches 300 endpoints and detaches all at once.
func BenchmarkDetachMany(b *testing.B) {
	n := openProcess(b, 0)
	base, p := onlyNetwork(), onlyNetwork()
	p.Namespaces, p.Ports = maps.Clone(base.Namespaces), maps.Clone(base.Ports)
	for i := range 300 {
		addEndpoint(p, i+1)
	}
	apply(b, n, &plan.Plan{}, base)
	var attach, detach, gone []time.Duration
	for b.Loop() {
		start := time.Now()
		update(b, n, p, delta(base, p))
		attach = append(attach, time.Since(start)/300)
		start = time.Now()
		update(b, n, base, delta(p, base))
		detach = append(detach, time.Since(start))
		if err := n.reap.wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		gone = append(gone, time.Since(start))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(attach, 0.5), "attach-each-ms")
	b.ReportMetric(quantile(detach, 0.5), "detach-all-ms")
	b.ReportMetric(quantile(gone, 0.5), "gone-all-ms")
}

// BenchmarkSync compares a host of 1,000 endpoints with its plan, as every restart of the daemon does.
func BenchmarkSync(b *testing.B) {
	n := openProcess(b, 0)
	p := onlyNetwork()
	for i := range 1000 {
		addEndpoint(p, i+1)
	}
	apply(b, n, &plan.Plan{}, p)
	for b.Loop() {
		quiet(b, n, p)
	}
}

func update(b *testing.B, n *Netdev, p *plan.Plan, d *plan.Delta) {
	b.Helper()
	if err := errors.Join(n.Devices().Update(b.Context(), p, d), n.Finish().Update(b.Context(), p, d)); err != nil {
		b.Fatal(err)
	}
}

func quantile(d []time.Duration, q float64) float64 {
	slices.Sort(d)
	return float64(d[int(q*float64(len(d)-1))].Microseconds()) / 1000
}

// filled says that the pool has all it wants.
func (p *pool) filled() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) < p.size {
		return fmt.Errorf("pool has %d of %d", len(p.ready), p.size)
	}
	if want := (p.size + 1) / 2; p.model != nil && len(p.pairs) < want {
		return fmt.Errorf("pool has %d of %d pairs", len(p.pairs), want)
	}
	return nil
}
