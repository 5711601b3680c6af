package vswitch

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// balancer has a service for each number of back ends, at the ports from 100 on.
func balancer(id hcn.GUID, counts ...int) *plan.Balancer {
	out := &plan.Balancer{ID: id, Network: network(1), Switch: 1}
	for i, n := range counts {
		s := plan.Service{Protocol: unix.IPPROTO_TCP, VIP: vips[0], Port: uint16(100 + i), Self: vips[0]}
		for j := range n {
			s.Backends = append(s.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(j >> 8), byte(j)}), 9000))
		}
		out.Services = append(out.Services, s)
	}
	return out
}

func (l *lab) vip(port uint16) (v bpfVip, err error) {
	k := bpfVipKey{Sw: 1, Ip: vips[0].As16(), Port: port, Proto: unix.IPPROTO_TCP}
	err = l.a.objs.BhVipsV2.Lookup(&k, &v)
	return v, err
}

// balancers changes load balancers in one step; nil takes one away.
func (l *lab) balancers(all map[hcn.GUID]*plan.Balancer) (err error) {
	l.t.Helper()
	d := &plan.Delta{Balancers: map[hcn.GUID]plan.Change[plan.Balancer]{}}
	if l.plan.Balancers == nil {
		l.plan.Balancers = map[hcn.GUID]*plan.Balancer{}
	}
	for id, next := range all {
		d.Balancers[id] = plan.Change[plan.Balancer]{Old: l.plan.Balancers[id], New: next}
		if l.plan.Balancers[id] = next; next == nil {
			delete(l.plan.Balancers, id)
		}
	}
	l.in(func() error { err = l.a.Update(context.Background(), l.plan, d); return nil })
	l.a.collecting.Wait()
	return err
}

// moves has a service go from one load balancer to another, again and again: it is there all the time.
func (b *balanced) moves() {
	b.t.Helper()
	const one, other = hcn.GUID("moves-1"), hcn.GUID("moves-2")
	set := func(of, to *plan.Balancer) {
		b.t.Helper()
		if err := b.balancers(map[hcn.GUID]*plan.Balancer{one: of, other: to}); err != nil {
			b.t.Fatal(err)
		}
	}
	set(balancer(one, 3), nil)
	var missed, looked atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := b.vip(100); err != nil {
				missed.Add(1)
			}
			looked.Add(1)
		}
	})
	for range 30 {
		set(nil, balancer(other, 3))
		set(balancer(one, 4, 2), &plan.Balancer{ID: other, Network: network(1), Switch: 1})
	}
	close(stop)
	wg.Wait()
	if missed.Load() > 0 || looked.Load() == 0 {
		b.t.Errorf("of %d looks at the service %d found none", looked.Load(), missed.Load())
	}
	before := b.a.Writes()
	if drift := b.sync(); len(drift) > 0 || b.a.Writes() != before {
		b.t.Errorf("afterwards there is drift, %v, or something to write", drift)
	}
	set(nil, nil)
	if _, err := b.vip(100); err == nil {
		b.t.Error("the service of a load balancer that is gone is there")
	}
}

// failedWrites: of a service whose change cannot be written the last entry stays, with its table, until it can.
func (b *balanced) failedWrites() {
	b.t.Helper()
	const id = hcn.GUID("failed")
	for name, slot := range map[string]**ebpf.Map{"places": &b.a.balance.t.places.m, "services": &b.a.balance.t.vips.m} {
		if err := b.balancers(map[hcn.GUID]*plan.Balancer{id: balancer(id, 3)}); err != nil {
			b.t.Fatal(err)
		}
		was, err := b.vip(100)
		if err != nil {
			b.t.Fatal(err)
		}
		whole := *slot
		frozen, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: whole.KeySize(), ValueSize: whole.ValueSize(), MaxEntries: 1})
		if err != nil {
			b.t.Fatal(err)
		}
		defer frozen.Close()
		if err := frozen.Freeze(); err != nil {
			b.t.Fatal(err)
		}
		*slot = frozen
		if err := b.balancers(map[hcn.GUID]*plan.Balancer{id: balancer(id, 5)}); err == nil {
			b.t.Errorf("%s: a write into a map that takes none has not failed", name)
		}
		*slot = whole
		now, err := b.vip(100)
		if err != nil || now != was {
			b.t.Errorf("%s: the service is %v, %v; it was %v", name, now, err, was)
		}
		k := bpfBackendKey{Table: was.Table}
		if err := b.a.objs.BhBackendsV1.Lookup(&k, new(bpfBackend)); err != nil {
			b.t.Errorf("%s: its back ends are gone: %v", name, err)
		}
		b.sync()
		b.a.collecting.Wait()
		if now, err = b.vip(100); err != nil || now.Table == was.Table {
			b.t.Errorf("%s: when it can be written the service is %v, %v", name, now, err)
		}
		if err := b.a.objs.BhBackendsV1.Lookup(&k, new(bpfBackend)); err == nil {
			b.t.Errorf("%s: the back ends that it had are left", name)
		}
	}
}

// backendsGrow: the tables of load balancers grow, and a daemon that starts again finds them.
func (l *lab) backendsGrow(room uint32) {
	l.t.Helper()
	const id = hcn.GUID("lb-1")
	if err := l.balancers(map[hcn.GUID]*plan.Balancer{id: balancer(id, 3, 40, 100)}); err != nil {
		l.t.Fatal(err)
	}
	check := func(what string) {
		l.t.Helper()
		t, places := l.a.balance.t, l.a.objs.BhPlacesV1.MaxEntries()
		if got := fmt.Sprint(len(t.backends.have), len(t.standing.have), len(t.places.have)); got != "143 143 21" || places != room*growth {
			l.t.Errorf("%s: back ends, standing and pieces %s, room for %d pieces", what, got, places)
		}
		for port := range uint16(3) {
			if v, err := l.vip(100 + port); err != nil || v.Table == 0 {
				l.t.Errorf("%s: service %d is %v, %v", what, port, v, err)
			}
		}
	}
	check("grown")
	l.in(l.a.Close)
	l.open()
	if drift := l.sync(); len(drift) > 0 || l.a.Writes() != 0 {
		l.t.Errorf("the next start finds %v and writes %d times", drift, l.a.Writes())
	}
	check("after a start")
}
