package vswitch

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// entries are the content of all maps that come from the plan, as text.
func (a *Applier) entries() map[string]string {
	r := &recorder{names: map[uint32]string{}}
	for _, s := range a.applied {
		r.names[s.index] = s.device
		if s.vnic != "" {
			r.names[s.counted()] = s.vnic
		}
	}
	out := map[string]string{}
	t, p := a.tables, a.policies.t
	entriesOf(out, r, t.ports)
	entriesOf(out, r, t.macs)
	entriesOf(out, r, t.addrs)
	entriesOf(out, r, t.switches)
	entriesOf(out, r, t.members)
	entriesOf(out, r, t.rates)
	entriesOf(out, r, t.steers)
	entriesOf(out, r, t.lans)
	entriesOf(out, r, t.overlays)
	entriesOf(out, r, t.vnis)
	entriesOf(out, r, a.remotes.t.endpoints)
	entriesOf(out, r, a.remotes.t.routes)
	entriesOf(out, r, a.remotes.t.vteps)
	entriesOf(out, r, a.remotes.t.floods)
	entriesOf(out, r, a.balance.t.vips)
	entriesOf(out, r, a.balance.t.places)
	entriesOf(out, r, a.balance.t.backends)
	entriesOf(out, r, a.balance.t.standing)
	entriesOf(out, r, p.heads)
	entriesOf(out, r, p.rules)
	entriesOf(out, r, p.prefixes)
	entriesOf(out, r, p.services)
	entriesOf(out, r, p.sets)
	entriesOf(out, r, p.classes)
	entriesOf(out, r, p.vectors)
	for k := range t.stats.have {
		out["map "+t.stats.name+" "+r.keyIn(t.stats.name, k)] = ""
	}
	for k := range t.shares.have {
		out["map "+t.shares.name+" "+r.keyIn(t.shares.name, k)] = ""
	}
	return out
}

// entriesOf gives a table's entries, and one of nothing but zeros: each must be text.
func entriesOf[K, V comparable](into map[string]string, r *recorder, t *table[K, V]) {
	var k K
	var v V
	into["map "+t.name+" "+r.keyIn(t.name, k)+" of zeros"] = r.value(v)
	for k, v := range t.have {
		into["map "+t.name+" "+r.keyIn(t.name, k)] = r.value(v)
	}
}

// told applies a delta after it has asked what that would do, and compares.
func (l *lab) told(what string, d *plan.Delta) (steps []plan.Write) {
	l.t.Helper()
	l.a.collecting.Wait()
	before, wrote := l.a.entries(), l.a.Writes()
	l.in(func() (err error) {
		steps, err = l.a.Preview(context.Background(), l.plan, d)
		return err
	})
	if l.a.Writes() != wrote || !maps.Equal(before, l.a.entries()) {
		l.t.Errorf("%s: telling changed something", what)
	}
	l.in(func() error { // and nothing in the kernel either
		ok, err := newTables(&l.a.objs, new(int)), error(nil)
		if _, err = ok.list(); err == nil && (!maps.Equal(ok.ports.have, l.a.tables.ports.have) || !maps.Equal(ok.switches.have, l.a.tables.switches.have)) {
			l.t.Errorf("%s: telling wrote to the maps", what)
		}
		return err
	})
	for k, v := range before {
		if strings.ContainsAny(k+v, "{}") {
			l.t.Errorf("an entry is told as Go has it: %s%s", k, v)
		}
	}
	l.update(d)
	l.a.collecting.Wait()
	after := l.a.entries()
	want := map[string]bool{}
	for k, v := range after {
		if old, ok := before[k]; !ok {
			want["+ "+k+v] = true
		} else if old != v {
			want["~ "+k+v] = true
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			want["- "+k] = true
		}
	}
	got := map[string]bool{}
	for _, s := range steps {
		if strings.HasPrefix(s.Object, "map ") && s.Object != "map "+bpfMapBhConfigV1 && s.Object != "map "+bpfMapBhDropsV1 {
			got[string(s.Sign)+" "+s.Object+" "+s.Text] = true
		}
	}
	for _, line := range slices.Sorted(maps.Keys(want)) {
		if !got[line] {
			l.t.Errorf("%s: not told: %s", what, line)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(got)) {
		if !want[line] {
			l.t.Errorf("%s: told and not done: %s", what, line)
		}
	}
	return steps
}

func programs(steps []plan.Write) (out []string) {
	for _, s := range steps {
		if strings.HasPrefix(s.Text, "program ") {
			out = append(out, string(s.Sign)+s.Object+" "+s.Text)
		}
	}
	slices.Sort(out)
	return out
}

// TestPreview: what is told of a change is what it does to the maps, entry by entry, whatever
// comes, changes or goes.
func TestPreview(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		l := newLab(t, mode)
		l.nat(1)
		l.container(1, 10)
		l.live()
		list := rulesOf(1)
		add := l.container(1, 11)
		add.Policy.In, add.Policy.RateOut = list, 1<<20
		// Before its device is there, as in a rehearsal.
		var early []plan.Write
		l.in(func() (err error) {
			early, err = l.a.Preview(context.Background(), l.plan, change(nil, add))
			return err
		})
		if want := []string{"+link " + add.Device + " program " + bpfProgBhFromPort + " at tc ingress"}; !slices.Equal(programs(early), want) {
			t.Errorf("programs of a new port: %q, want %q", programs(early), want)
		}
		if !slices.ContainsFunc(early, func(w plan.Write) bool {
			return w.Object == "map "+bpfMapBhPortsV3 && strings.HasPrefix(w.Text, add.Device+": switch 1 ") && w.Owner == string(add.ID)
		}) {
			t.Errorf("the new port's entry is not told, or not of which device: %v", early)
		}
		l.devices(add)
		l.told("a port comes", change(nil, add))
		changed := *add
		changed.Policy.In, changed.Policy.Isolated = rulesOf(2), true
		changed.Addrs = changed.Addrs[:1]
		l.plan.Ports[add.ID] = &changed
		l.told("it changes", change(add, &changed))
		same := changed
		l.plan.Ports[add.ID] = &same
		l.told("nothing changes", change(&changed, &same))
		delete(l.plan.Ports, add.ID)
		l.told("it goes", change(&same, nil))
		host := l.plan.Ports[plan.HostPortID(network(1))]
		last := l.plan.Ports["1-10"]
		resolver := l.plan.Ports[plan.ResolverPortID(network(1))]
		all := &plan.Delta{
			Ports: map[plan.PortID]plan.Change[plan.Port]{
				host.ID: {Old: host}, last.ID: {Old: last}, resolver.ID: {Old: resolver},
			},
			Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(1): {Old: l.plan.Switches[network(1)]}},
		}
		clear(l.plan.Ports)
		clear(l.plan.Switches)
		l.told("the network goes", all)
	})
}

// rulesOf is a list with a rule for port n.
func rulesOf(n uint16) *plan.RuleList {
	return &plan.RuleList{
		Rules: []plan.Rule{{
			Number: uint32(n), Action: plan.Allow, Protocols: []uint8{6}, LocalPorts: []plan.PortRange{{First: n, Last: n}},
			Remote: plan.Addresses{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
		}},
		Default: plan.Block, Hash: [16]byte{byte(n)},
	}
}

// TestPreviewOfAnUplink: the programs of a NIC are told.
func TestPreviewOfAnUplink(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		n := newLAN(t, mode)
		gone := &plan.Delta{
			Ports:    map[plan.PortID]plan.Change[plan.Port]{n.nic.ID: {Old: n.nic}, n.a.ID: {Old: n.a}, n.b.ID: {Old: n.b}},
			Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(lanNumber): {Old: n.plan.Switches[network(lanNumber)]}},
		}
		empty := &plan.Plan{}
		var steps []plan.Write
		n.in(func() (err error) {
			steps, err = n.lab.a.Preview(context.Background(), empty, gone)
			return err
		})
		want := []string{
			"-link " + n.a.Device + " program " + bpfProgBhFromPort + " at tc ingress",
			"-link " + n.b.Device + " program " + bpfProgBhFromPort + " at tc ingress",
			"-link nic0 program " + bpfProgBhFromHost + " at tc egress",
			"-link nic0 program " + bpfProgBhFromWire + " at tc ingress",
		}
		if slices.Sort(want); !slices.Equal(programs(steps), want) {
			t.Errorf("told %q, want %q", programs(steps), want)
		}
		n.whole()
	})
}

// TestPreviewOfASecondNetwork on a NIC: all of it is told, as text, and for the network that comes or goes.
func TestPreviewOfASecondNetwork(t *testing.T) {
	n := newLAN(t, AttachTCX)
	sw := func(number uint32) *plan.Switch {
		return &plan.Switch{Number: number, Network: network(int(number)), Mode: plan.ModeTransparent, MTU: 1500, Uplink: "nic0", UplinkPort: n.nic.ID}
	}
	change := func(what string, number uint32, c plan.Change[plan.Switch], want ...string) {
		t.Helper()
		if c.New != nil {
			n.plan.Switches[network(int(number))] = c.New
		} else {
			delete(n.plan.Switches, network(int(number)))
		}
		var got []string
		for _, w := range n.told(what, &plan.Delta{Switches: map[hcn.GUID]plan.Change[plan.Switch]{network(int(number)): c}}) {
			if w.Owner != string(network(int(number))) && w.Owner != "" {
				t.Errorf("%s: %c %s %s is told of %s, want %s", what, w.Sign, w.Object, w.Text, w.Owner, network(int(number)))
			}
			got = append(got, string(w.Sign)+" "+w.Object+" "+w.Text)
		}
		for _, line := range want {
			if !slices.Contains(got, line) {
				t.Errorf("%s: told %q, want %q in it", what, got, line)
			}
		}
	}
	lans, switches := "map "+bpfMapBhLansV1, "map "+bpfMapBhSwitchesV2
	change("a second comes", 20, plan.Change[plan.Switch]{New: sw(20)},
		"+ "+lans+" nic0 further network 1: switch 20", "+ "+switches+" switch 20: members 0 uplink nic0")
	change("a third comes", 21, plan.Change[plan.Switch]{New: sw(21)}, "+ "+lans+" nic0 further network 2: switch 21")
	change("the second goes", 20, plan.Change[plan.Switch]{Old: sw(20)},
		"~ "+lans+" nic0 further network 1: switch 21", "- "+lans+" nic0 further network 2", "- "+switches+" switch 20")
	n.whole()
}
