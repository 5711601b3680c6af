package vswitch

import (
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestProgramsWhenUsed: a program is loaded and pinned when the first port needs it, and a restart finds what was in use.
func TestProgramsWhenUsed(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		inUse := []string{bpfProgBhFromHost, bpfProgBhFromPort, bpfProgBhFromWire}
		check := func(when string) {
			t.Helper()
			var loaded []string
			for name, slot := range programsOf(&n.lab.a.objs) {
				if *slot != nil {
					loaded = append(loaded, name)
				}
			}
			slices.Sort(loaded)
			var pinned []string
			n.in(func() (err error) { pinned, err = names(n.lab.a.pins.progs()); return err })
			if !slices.Equal(loaded, inUse) || !slices.Equal(pinned, inUse) {
				t.Errorf("%s: loaded %v, pinned %v, want %v", when, loaded, pinned, inUse)
			}
		}
		check("with a NIC")
		before := maps.Clone(n.lab.a.ids)
		if err := n.lab.a.Close(); err != nil {
			t.Fatal(err)
		}
		n.open()
		check("after a restart")
		if drift := n.sync(); len(drift) > 0 || n.lab.a.Writes() > 0 {
			t.Errorf("a restart found %v and wrote %d times", drift, n.lab.a.Writes())
		}
		if !maps.Equal(before, n.lab.a.ids) {
			t.Errorf("programs %v before a restart, %v after", before, n.lab.a.ids)
		}
		for _, a := range n.b.Addrs {
			n.ping(n.hostA, a)
		}
	})
}

// TestProgramsOfPorts: a host without a network on a NIC has the ports' program alone.
func TestProgramsOfPorts(t *testing.T) {
	p := newPair(t, AttachAuto)
	var pinned []string
	p.in(func() (err error) { pinned, err = names(p.lab.a.pins.progs()); return err })
	if !slices.Equal(pinned, []string{bpfProgBhFromPort}) || p.lab.a.objs.BhFromWire != nil {
		t.Errorf("pinned %v", pinned)
	}
}

// TestRunWithoutANIC: what becomes of a tunnel's frame can be asked while its NIC is away.
func TestRunWithoutANIC(t *testing.T) {
	l := newLab(t, AttachAuto)
	l.overlay()
	l.plan.Ports[plan.TunnelPortID(4789)].Underlays = []string{"away"}
	l.sync()
	if r := l.run(plan.TunnelPortID(4789), make([]byte, 60)); r.Outcome != Passed {
		t.Errorf("a frame of nobody's is %s (%s)", r.Outcome, r.Reason)
	}
}

// TestProgramsThatAreKnown: a pinned program is known by its code and its maps, so that a restart need not load one to compare.
func TestProgramsThatAreKnown(t *testing.T) {
	n := newLAN(t, AttachAuto)
	a := n.lab.a
	is := func(name string, p *ebpf.Program, change func(*ebpf.ProgramSpec)) bool {
		t.Helper()
		spec, err := loadBpf()
		if err != nil {
			t.Fatal(err)
		}
		change(spec.Programs[name])
		same, err := a.isOf(p, spec.Programs[name])
		if err != nil {
			t.Fatal(err)
		}
		return same
	}
	for name, slot := range programsOf(&a.objs) {
		if *slot == nil {
			continue
		}
		if !is(name, *slot, func(*ebpf.ProgramSpec) {}) {
			t.Errorf("%s is not known again", name)
		}
		if is(name, *slot, func(s *ebpf.ProgramSpec) { s.Instructions[len(s.Instructions)-2].Constant++ }) {
			t.Errorf("%s is taken for one with another instruction", name)
		}
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	ports := a.objs.BhPortsV3
	a.objs.BhPortsV3 = other
	if is(bpfProgBhFromPort, a.objs.BhFromPort, func(*ebpf.ProgramSpec) {}) {
		t.Error("a program over a map that is no longer ours is taken for ours")
	}
	a.objs.BhPortsV3 = ports
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
}
