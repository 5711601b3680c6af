package vswitch

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// guarded makes the devices of a further port, with the program on them beforehand, and up: nothing may come through.
func guarded(p *pair, i int) (d *plan.Port, release func()) {
	p.t.Helper()
	d = p.container(1, i)
	p.devices(d)
	p.in(func() (err error) {
		release, err = p.lab.a.Guard(p.host.Link(d.Device).Attrs().Index)
		return err
	})
	p.up(d)
	return d, release
}

// attachments are the links of the program on a port's device.
func attachments(p *pair, d *plan.Port) (ids []link.ID) {
	p.t.Helper()
	p.in(func() error {
		res, err := link.QueryPrograms(link.QueryOptions{Target: p.host.Link(d.Device).Attrs().Index, Attach: ebpf.AttachTCXIngress})
		for _, at := range res.Programs {
			id, _ := at.LinkID()
			ids = append(ids, id)
		}
		return err
	})
	return ids
}

func TestGuardedDeviceBecomesAPort(t *testing.T) {
	t.Parallel()
	p := newPair(t, AttachTCX)
	d, release := guarded(p, 12)
	before := attachments(p, d)
	if len(before) != 1 {
		t.Fatalf("%d programs are attached, want 1", len(before))
	}
	for _, to := range []int{0, 1} { // nobody knows the device: what it sends is dropped, to whomever
		if err := p.ns[d.ID].Silent(p.b.Addrs[to]); err != nil {
			t.Error(err)
		}
	}
	p.update(change(nil, d))
	release() // it is the port's now
	p.ping(p.ns[d.ID], p.b.Addrs[0])
	p.ping(p.hostB, d.Addrs[1])
	if now := attachments(p, d); len(now) != 1 || now[0] != before[0] {
		t.Errorf("the program is attached by %v, want %v as before", now, before)
	}
	if drift := p.sync(); len(drift) > 0 {
		t.Errorf("a Sync finds %v", drift)
	}
	// The pin holds it, not the process.
	if err := p.lab.a.Close(); err != nil {
		t.Fatal(err)
	}
	p.ping(p.ns[d.ID], p.b.Addrs[1])
	p.open()
	if drift := p.sync(); len(drift) > 0 {
		t.Errorf("after a restart a Sync finds %v", drift)
	}
	delete(p.plan.Ports, d.ID)
	p.update(change(d, nil))
	if now := attachments(p, d); len(now) != 0 {
		t.Errorf("%v are left attached", now)
	}
}

func TestGuardIsLetGo(t *testing.T) {
	t.Parallel()
	p := newPair(t, AttachTCX)
	d, release := guarded(p, 12)
	release()
	if now := attachments(p, d); len(now) != 0 {
		t.Errorf("%v are left attached", now)
	}
	release()
	p.update(change(nil, d))
	p.ping(p.ns[d.ID], p.b.Addrs[0])

	// Tables have grown: the port gets the program of now, and the other goes.
	e, _ := guarded(p, 13)
	p.lab.a.guards[uint32(p.host.Link(e.Device).Attrs().Index)] = guard{link: p.lab.a.guards[uint32(p.host.Link(e.Device).Attrs().Index)].link, prog: 1}
	p.update(change(nil, e))
	p.ping(p.ns[e.ID], p.b.Addrs[0])
	if now := attachments(p, e); len(now) != 1 {
		t.Errorf("%v are attached, want one", now)
	}

	f, _ := guarded(p, 14)
	delete(p.plan.Ports, f.ID)
	if err := p.lab.a.Close(); err != nil {
		t.Fatal(err)
	}
	if now := attachments(p, f); len(now) != 0 {
		t.Errorf("%v are attached after the end", now)
	}
	var pinned []os.DirEntry
	p.in(func() (err error) { pinned, err = os.ReadDir(p.lab.a.pins.links()); return err })
	for _, x := range pinned {
		if x.Name() == f.Device {
			t.Error("a device that is no port has a pin")
		}
	}
	p.open()
}
