package vswitch

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestPlaceRests: a place that was somebody's is nobody's until every program has ended that may still be there, and the end of
// one rest is not taken for that of the next.
func TestPlaceRests(t *testing.T) {
	s := newPlaces(make([]uint32, 8))
	give := func(index uint32) {
		t.Helper()
		if !s.take(index) {
			t.Fatalf("port %d has no place", index)
		}
		s.owners[s.at(index)] = index
	}
	leave := func(index uint32) {
		s.leave(index)
		s.owners[s.at(index)] = 0
	}
	resting := func() map[uint32]uint64 { return maps.Clone(s.resting) }
	give(3)
	if s.take(11) || s.wanted() {
		t.Error("the place of port 3 is given to port 11, or its end is waited for")
	}
	leave(3)
	first := resting()
	if s.take(11) || !s.wanted() {
		t.Error("a place is given that rests, or nobody wants it")
	}
	s.rested(first)
	give(11)
	if s.waiting[11] {
		t.Error("port 11 waits, and has its place")
	}
	leave(11)
	s.rested(first)
	if s.take(3) {
		t.Error("the second rest ended with the first")
	}
	s.rested(resting())
	give(3)
}

// copyOf is the entry of a port in its place, or why it has none there.
func (l *lab) copyOf(p *plan.Port) error {
	s := l.a.applied[p.ID]
	at := s.index % l.a.objs.BhNearV1.MaxEntries()
	var v bpfNear
	if err := l.a.objs.BhNearV1.Lookup(&at, &v); err != nil {
		return err
	}
	if v.Index != s.index || v.Port != s.entry {
		return fmt.Errorf("port %s, index %d: in its place is %+v, want %+v", p.ID, s.index, v, s.entry)
	}
	return nil
}

// placed waits until a port has its copy.
func (l *lab) placed(p *plan.Port) {
	l.t.Helper()
	th.Eventually(l.t, 5*time.Second, func() error {
		l.a.mu.Lock()
		defer l.a.mu.Unlock()
		return l.copyOf(p)
	})
}

func (l *lab) countersOf(p *plan.Port) (all, elsewhere Counters) {
	l.t.Helper()
	all, err := l.a.Counters(p.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	elsewhere = all
	var place Counters
	if err := trafficOf(l.a.objs.BhTrafficV1, l.a.applied[p.ID].index, &place); err != nil {
		l.t.Fatal(err)
	}
	elsewhere.RxPackets -= place.RxPackets
	elsewhere.TxPackets -= place.TxPackets
	return all, elsewhere
}

// TestPlaces: ports are found and counted in their places, one that shares its place's number is without, and both work; a
// place is handed on when its port goes, follows its port's changes, and outlives the daemon.
func TestPlaces(t *testing.T) {
	p := newPair(t, AttachAuto)
	for _, port := range []*plan.Port{p.a, p.b} {
		p.placed(port)
	}
	p.ping(p.hostA, p.b.Addrs[0])
	all, elsewhere := p.countersOf(p.a)
	if all.RxPackets == 0 || all.TxPackets == 0 || elsewhere.RxPackets != 0 || elsewhere.TxPackets != 0 {
		t.Errorf("counted %+v, without its place %+v", all, elsewhere)
	}

	index := p.lab.a.applied[p.a.ID].index
	d := p.container(1, 12)
	p.devicesAt(d, index+p.lab.a.objs.BhNearV1.MaxEntries())
	p.update(change(nil, d))
	p.up(d)
	for _, a := range d.Addrs {
		p.ping(p.hostA, a)
		p.ping(p.ns[d.ID], p.b.Addrs[0])
	}
	before, elsewhere := p.countersOf(d)
	if before.RxPackets == 0 || before.TxPackets == 0 || elsewhere != before {
		t.Errorf("the port without a place counted %+v, of that in the hash %+v", before, elsewhere)
	}
	if p.copyOf(p.a) != nil || p.copyOf(d) == nil {
		t.Error("the place is not the first port's")
	}

	delete(p.plan.Ports, p.a.ID)
	p.update(change(p.a, nil))
	p.placed(d)
	p.ping(p.ns[d.ID], p.b.Addrs[0])
	after, elsewhere := p.countersOf(d)
	if after.RxPackets <= before.RxPackets || after == elsewhere {
		t.Errorf("counted %+v before it had a place, %+v afterwards, of that %+v elsewhere", before, after, elsewhere)
	}

	d = p.replace(d, func(d *plan.Port) { d.Policy.In = list(plan.Allow) })
	p.placed(d)
	p.ping(p.ns[d.ID], p.b.Addrs[0])

	if err := p.lab.a.Close(); err != nil {
		t.Fatal(err)
	}
	p.open()
	if drift := p.sync(); len(drift) > 0 || p.lab.a.Writes() > 0 {
		t.Errorf("a restart found %v and wrote %d times", drift, p.lab.a.Writes())
	}
	if err := p.copyOf(d); err != nil {
		t.Error(err)
	}
	if again, _ := p.countersOf(d); again.RxPackets < after.RxPackets {
		t.Errorf("counted %+v before a restart, %+v after", after, again)
	}
}

// TestStaleCopy: a copy that differs from the port's entry, which a version without copies has changed, is not used.
func TestStaleCopy(t *testing.T) {
	p := newPair(t, AttachAuto)
	p.placed(p.a)
	s := p.lab.a.applied[p.a.ID]
	at := s.index % p.lab.a.objs.BhNearV1.MaxEntries()
	stale := bpfNear{Port: s.entry, Index: s.index}
	stale.Port.Sw++
	if err := p.lab.a.objs.BhNearV1.Put(&at, &stale); err != nil {
		t.Fatal(err)
	}
	if err := p.lab.a.Close(); err != nil {
		t.Fatal(err)
	}
	p.open()
	p.sync()
	p.ping(p.hostA, p.b.Addrs[0])
	p.placed(p.a)
	p.ping(p.hostA, p.b.Addrs[0])
}
