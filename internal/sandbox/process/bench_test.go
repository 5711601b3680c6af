package process

import (
	"testing"
	"time"
)

// BenchmarkRun is what a user waits for, without network and image: create, start,
// the end of a program that does nothing, delete.
func BenchmarkRun(b *testing.B) {
	bed := newBed(b)
	var create, start, wait, del time.Duration
	n := 0
	for b.Loop() {
		cfg := bed.config("/bin/true")
		t0 := time.Now()
		bed.create(cfg)
		t1 := time.Now()
		must(b, bed.r.Start(bed.ctx(), cfg.ID))
		t2 := time.Now()
		bed.wait(cfg.ID)
		t3 := time.Now()
		must(b, bed.r.Remove(bed.ctx(), cfg.ID))
		create, start, wait, del = create+t1.Sub(t0), start+t2.Sub(t1), wait+t3.Sub(t2), del+time.Since(t3)
		n++
	}
	for name, d := range map[string]time.Duration{"create": create, "start": start, "wait": wait, "remove": del} {
		b.ReportMetric(float64(d.Microseconds())/float64(n)/1000, name+"-ms")
	}
}
