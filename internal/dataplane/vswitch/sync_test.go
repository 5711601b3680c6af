package vswitch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// whole fails unless the maps hold exactly what the plan says, by two ways: a fresh
// listing against a fresh computation, and Check.
func (l *lab) whole() {
	l.t.Helper()
	l.in(func() error {
		ok, err := l.a.Check(context.Background(), l.plan)
		if err != nil || !ok {
			return fmt.Errorf("check: %v, %w", ok, err)
		}
		w, errs := l.a.wantAll(l.plan)
		if len(errs) > 0 {
			return errors.Join(errs...)
		}
		t := newTables(&l.a.objs, new(int))
		if _, err := t.list(); err != nil {
			return err
		}
		if !maps.Equal(t.ports.have, w.ports) || !maps.Equal(t.macs.have, w.macs) || !maps.Equal(t.addrs.have, w.addrs) {
			return fmt.Errorf("maps\n%v\n%v\n%v\nwant\n%v\n%v\n%v", t.ports.have, t.macs.have, t.addrs.have, w.ports, w.macs, w.addrs)
		}
		for sw, want := range w.groups {
			var got []bpfDest
			n := t.switches.have[sw].Members
			for slot := range n {
				got = append(got, t.members.have[bpfMemberKey{Sw: sw, Slot: slot}])
			}
			slices.SortFunc(got, func(a, b bpfDest) int { return int(a.Port) - int(b.Port) })
			slices.SortFunc(want, func(a, b bpfDest) int { return int(a.Port) - int(b.Port) })
			if !slices.Equal(got, want) {
				return fmt.Errorf("members of switch %d: %v, want %v", sw, got, want)
			}
		}
		return nil
	})
	before := l.a.Writes()
	if drift := l.sync(); len(drift) != 0 {
		l.t.Errorf("drift in a whole switch: %v", drift)
	}
	if n := l.a.Writes() - before; n != 0 {
		l.t.Errorf("a second sync wrote %d times, want 0", n)
	}
}

func TestSyncTwice(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		l := newLab(t, mode)
		l.sync()
		l.whole() // empty
		l.nat(1)
		for i := range 5 {
			l.container(1, 10+i)
		}
		for _, p := range l.plan.Ports {
			l.devices(p)
		}
		if drift := l.sync(); len(drift) != 0 {
			t.Errorf("drift at the first sync: %v", drift)
		}
		if l.a.Writes() == 0 {
			t.Error("the first sync wrote nothing")
		}
		l.whole()
	})
}

// TestRepair breaks one thing at a time.
func TestRepair(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		ctx := context.Background()
		state := p.lab.a.applied[p.a.ID]
		objs := &p.lab.a.objs
		breakages := map[string]func() error{
			"port entry deleted": func() error { return objs.BhPortsV3.Delete(&state.index) },
			"MAC entry deleted": func() error {
				return objs.BhMacsV1.Delete(&bpfMacKey{Sw: 1, Mac: p.a.MAC})
			},
			"address handed to b": func() error {
				k := addrKey(1, p.a.Addrs[0])
				o := bpfOwner{Port: p.lab.a.applied[p.b.ID].index, Mac: p.b.MAC}
				return objs.BhAddrsV1.Put(&k, &o)
			},
			"counters deleted":     func() error { return objs.BhStatsV1.Delete(&state.index) },
			"foreign port":         func() error { return objs.BhPortsV3.Put(uint32(9999), &bpfPort{Sw: 1, Kind: 2}) },
			"foreign address":      func() error { k := addrKey(1, addr("10.1.0.66")); return objs.BhAddrsV1.Put(&k, &bpfOwner{Port: 3}) },
			"program detached":     func() error { return p.lab.a.att.detach(p.lab.a.hooksOf(p.a.Kind, p.a.Device)[0]) },
			"map pin removed":      func() error { return os.Remove(p.lab.a.pins.mapFile(bpfMapBhAddrsV1)) },
			"program pin removed":  func() error { return os.Remove(p.lab.a.pins.program(bpfProgBhFromPort)) },
			"all pins removed":     func() error { return os.RemoveAll(p.lab.a.pins.dir) },
			"broadcast list empty": func() error { return objs.BhSwitchesV2.Put(uint32(1), &bpfVswitch{}) },
			"clsact removed": func() error {
				return netlinkDo(func(h *netlink.Handle) error {
					q := netlink.QdiscAttrs{LinkIndex: int(state.index), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
					err := h.QdiscDel(&netlink.Clsact{QdiscAttrs: q})
					if mode == AttachTCX {
						return os.Remove(p.lab.a.pins.link(p.a.Device)) // there is none to remove
					}
					return err
				})
			},
		}
		for _, name := range slices.Sorted(maps.Keys(breakages)) {
			p.whole()
			p.in(breakages[name])
			th.Eventually(t, time.Second, func() error {
				var ok bool
				p.in(func() (err error) {
					ok, err = p.lab.a.Check(ctx, p.plan)
					return err
				})
				if ok {
					return errors.New(name + ": check notices nothing")
				}
				return nil
			})
			if drift := p.sync(); len(drift) == 0 {
				t.Errorf("%s: no drift reported", name)
			}
		}
		p.whole()
		for i := range 2 {
			p.ping(p.hostA, p.b.Addrs[i])
			p.ping(p.hostA, p.plan.Ports[plan.HostPortID(network(1))].Addrs[i])
		}
	})
}

func netlinkDo(fn func(h *netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// passProgram lets everything go on, as a monitor does.
func passProgram() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
}

// TestOthersSurvive has programs of others on our ports and pins of others beside ours.
func TestOthersSurvive(t *testing.T) {
	p := newPair(t, AttachTCX)
	index := int(p.lab.a.applied[p.a.ID].index)
	other := filepath.Join(bpffs, "somebody")
	var foreign link.Link
	p.in(func() error {
		prog, err := passProgram()
		if err != nil {
			return err
		}
		defer prog.Close()
		if err := prog.Pin(other); err != nil {
			return err
		}
		foreign, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		return netlinkDo(func(h *netlink.Handle) error {
			attrs := netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
			if err := h.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs}); err != nil {
				return err
			}
			return h.FilterAdd(&netlink.BpfFilter{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 5, Protocol: unix.ETH_P_ALL},
				Fd:          prog.FD(), Name: "theirs", DirectAction: true,
			})
		})
	})
	defer foreign.Close()
	p.whole()
	p.in(func() error {
		if err := p.lab.a.Reset(context.Background()); err != nil {
			return err
		}
		left, err := Leftovers("", &plan.Plan{})
		if err != nil || len(left) != 0 {
			return fmt.Errorf("left after reset: %v, %w", left, err)
		}
		if !exists(other) {
			return errors.New("the other's pin is gone")
		}
		res, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
		if err != nil || len(res.Programs) == 0 {
			return fmt.Errorf("the other's attachment is gone: %v, %w", res, err)
		}
		return netlinkDo(func(h *netlink.Handle) error {
			fs, err := h.FilterList(device(uint32(index)), netlink.HANDLE_MIN_INGRESS)
			if err == nil && len(fs) != 1 {
				err = fmt.Errorf("%d filters, want the other's one", len(fs))
			}
			return err
		})
	})
}

func TestResetClsact(t *testing.T) {
	p := newPair(t, AttachClsact)
	index := p.lab.a.applied[p.a.ID].index
	p.in(func() error {
		if err := Reset(context.Background(), ""); err != nil {
			return err
		}
		return netlinkDo(func(h *netlink.Handle) error {
			fs, err := h.FilterList(device(index), netlink.HANDLE_MIN_INGRESS)
			if err == nil && len(fs) != 0 {
				err = fmt.Errorf("%d filters left", len(fs))
			}
			return err
		})
	})
}

// TestUpdate adds, changes and removes ports of a running switch.
func TestUpdate(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		d := p.container(1, 12)
		p.devices(d)
		p.update(change(nil, d))
		p.up(d)
		p.whole()
		for i := range 2 {
			p.ping(p.hostA, d.Addrs[i])
		}

		// d gets another address; the one it had is nobody's.
		moved := *d
		moved.Addrs = []netip.Addr{addr("10.1.0.99"), d.Addrs[1]}
		p.plan.Ports[d.ID] = &moved
		p.update(change(d, &moved))
		p.whole()
		p.ns[d.ID].Addr("eth0", "10.1.0.99/16")
		p.ping(p.hostA, moved.Addrs[0])
		if err := p.hostA.Silent(d.Addrs[0]); err != nil {
			t.Error(err)
		}

		// b is cut off: at once, with its device still up.
		delete(p.plan.Ports, p.b.ID)
		p.update(change(p.b, nil))
		p.whole()
		for i := range 2 {
			if err := p.hostB.Silent(p.a.Addrs[i]); err != nil {
				t.Error(err)
			}
			if err := p.hostA.Silent(p.b.Addrs[i]); err != nil {
				t.Error(err)
			}
		}
		if c, err := p.lab.a.Counters(p.b.ID); err != nil || c != (Counters{}) {
			t.Errorf("counters of a removed port: %+v, %v", c, err)
		}

		// Another port takes over b's address in the step that removes d.
		heir := *p.a
		heir.Addrs = append(slices.Clone(p.a.Addrs), moved.Addrs[0])
		delta := change(&moved, nil)
		delta.Ports[p.a.ID] = plan.Change[plan.Port]{Old: p.a, New: &heir}
		delete(p.plan.Ports, d.ID)
		p.plan.Ports[p.a.ID] = &heir
		p.update(delta)
		p.whole()
	})
}

func TestRemoveSwitch(t *testing.T) {
	p := newPair(t, AttachAuto)
	delta := &plan.Delta{
		Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(2): {Old: p.plan.Switches[network(2)]}},
		Ports:    map[plan.PortID]plan.Change[plan.Port]{},
	}
	for id, port := range p.plan.Ports {
		if port.Switch == 2 {
			delta.Ports[id] = plan.Change[plan.Port]{Old: port}
			delete(p.plan.Ports, id)
		}
	}
	delete(p.plan.Switches, network(2))
	p.update(delta)
	if _, ok := p.lab.a.tables.switches.have[2]; ok {
		t.Error("the switch is still in the map")
	}
	p.whole()
	p.ping(p.hostA, p.b.Addrs[0])
}

// TestErrors names the port that cannot be served, and serves the others.
func TestErrors(t *testing.T) {
	l := newLab(t, AttachAuto)
	l.nat(1)
	good, noDevice, twin := l.container(1, 10), l.container(1, 11), l.container(1, 12)
	twin.Addrs = good.Addrs
	for _, p := range l.plan.Ports {
		if p != noDevice {
			l.devices(p)
		}
	}
	var err error
	l.host.DoMount(func() { _, err = l.a.Sync(context.Background(), l.plan) })
	named := map[string]bool{}
	for _, e := range unjoin(err) {
		var oe *plan.ObjectError
		if !errors.As(e, &oe) || oe.Kind != "port" {
			t.Fatalf("error without its port: %v", e)
		}
		named[oe.ID] = true
	}
	if len(named) != 2 || !named[string(noDevice.ID)] || !named[string(twin.ID)] {
		t.Errorf("errors %v, want those of %s and %s", err, noDevice.ID, twin.ID)
	}
	if r := l.run(good.ID, th.Frame(eth(hw(good.MAC), th.Broadcast()), v4(good.Addrs[0], addr("255.255.255.255")), udp(1, 2))); r.Outcome != Replicated {
		t.Errorf("the good port: %+v", r)
	}
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range j.Unwrap() {
			out = append(out, unjoin(e)...)
		}
		return out
	}
	return []error{err}
}

func TestLeftovers(t *testing.T) {
	p := newPair(t, AttachTCX)
	p.in(func() error {
		left, err := Leftovers("", p.plan)
		if err != nil || len(left) != 0 {
			return fmt.Errorf("%v, %w; want none", left, err)
		}
		rest := *p.plan
		rest.Ports = maps.Clone(p.plan.Ports)
		delete(rest.Ports, p.a.ID)
		left, err = Leftovers("", &rest)
		if err != nil || len(left) != 1 || filepath.Base(left[0]) != p.a.Device {
			return fmt.Errorf("%v, %w; want the link of a", left, err)
		}
		return nil
	})
}
