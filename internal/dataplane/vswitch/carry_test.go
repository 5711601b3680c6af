package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestUpgradeCarriesConnections has the ports run a program whose flow table bears
// another name, as an older version leaves them. Answers that only a flow lets pass go on
// passing, also of connections that were opened while the new version was about to start.
func TestUpgradeCarriesConnections(t *testing.T) {
	w := newWire(t, AttachTCX)
	w.rulesA(nil, list(plan.Block))
	for family := range 2 {
		w.play(t, family, handshake(1000, 80))
		w.play(t, family, []step{{"question", false, datagram(1000, 53), delivery}})
	}
	w.downgrade()
	if n := len(w.flowTable()); n != 0 {
		t.Fatalf("the table of this version has %d flows before the upgrade", n)
	}
	late := []step{
		{"SYN, late", false, tcp(1001, 80, "S"), delivery},
		{"SYN-ACK, late", true, tcp(80, 1001, "SA"), delivery},
	}
	w.lab.a.carryFlows() // the first reading; the ports have the old program still
	w.play(t, 0, late)
	w.play(t, 1, late)
	w.sync()
	if exists(w.lab.a.pins.mapFile("bh_flows_v0")) {
		t.Error("the old version's flow table is still pinned")
	}
	families(t, func(t *testing.T, family int) {
		w.play(t, family, []step{
			{"data of b", true, tcp(80, 1000, "PA"), delivery},
			{"data of a", false, tcp(1000, 80, "PA"), delivery},
			{"answer", true, datagram(53, 1000), delivery},
			{"data of b, late", true, tcp(80, 1001, "PA"), delivery},
			{"data of b without a connection", true, tcp(80, 1002, "PA"), policyIn},
		})
	})
	charged := int64(0)
	for _, f := range w.flowTable() {
		if f.State&flowCarried != 0 {
			t.Errorf("no share has the flow: %+v", f)
		}
		if f.Charged == w.lab.a.applied[w.a.ID].index {
			charged++
		}
	}
	if n := w.share(w.a); n != charged || charged < 6 {
		t.Errorf("a's share holds %d flows, the table %d", n, charged)
	}
	// They end.
	for family := range 2 {
		w.play(t, family, []step{
			{"RST", true, tcp(80, 1000, "R"), delivery},
			{"RST, late", true, tcp(80, 1001, "R"), delivery},
		})
	}
	th.Eventually(t, 8*time.Second, func() error {
		if n := w.share(w.a); n != charged-4 {
			return fmt.Errorf("a's share holds %d flows, want %d", n, charged-4)
		}
		return nil
	})
}

// downgrade moves the flows into a table of another name and the ports to a program that
// uses it, and starts the applier anew.
func (w *wire) downgrade() {
	w.t.Helper()
	w.in(func() error {
		a := w.lab.a
		spec, err := a.sized()
		if err != nil {
			return err
		}
		own := map[string]*ebpf.Map{}
		for _, name := range []string{bpfMapBhFlowsV4, bpfMapBhSharesV4} {
			table := spec.Maps[name].Copy()
			table.Pinning = ebpf.PinNone
			if own[name], err = ebpf.NewMap(table); err != nil {
				return err
			}
			defer own[name].Close()
		}
		old := own[bpfMapBhFlowsV4]
		for k, f := range w.flowTable() {
			if err := old.Put(&k, &f); err != nil {
				return err
			}
			if err := a.objs.BhFlowsV4.Delete(&k); err != nil {
				return err
			}
		}
		for index := range a.tables.shares.have {
			none := bpfShare{}
			if err := errors.Join(a.objs.BhSharesV4.Put(&index, &none), own[bpfMapBhSharesV4].Put(&index, &none)); err != nil {
				return err
			}
		}
		var objs struct {
			Program *ebpf.Program `ebpf:"bh_from_port"`
		}
		err = spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{
			Maps:            ebpf.MapOptions{PinPath: a.pins.maps()},
			MapReplacements: own,
		})
		if err != nil {
			return err
		}
		defer objs.Program.Close()
		for _, s := range a.applied {
			l, err := link.LoadPinnedLink(a.pins.link(s.device), nil)
			if err != nil {
				return err
			}
			if err := l.Update(objs.Program); err != nil {
				return err
			}
			l.Close()
		}
		if err := old.Pin(a.pins.mapFile("bh_flows_v0")); err != nil {
			return err
		}
		return a.Close()
	})
	w.open()
}

// TestCarryLayouts reads an entry whose fields lie elsewhere and are of other sizes.
func TestCarryLayouts(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	var now *btf.Struct
	if err := spec.Types.TypeByName("flow", &now); err != nil {
		t.Fatal(err)
	}
	ours, err := layoutOf(now)
	if err != nil {
		t.Fatal(err)
	}
	u8 := &btf.Int{Name: "u8", Size: 1}
	u64 := &btf.Int{Name: "u64", Size: 8}
	end := &btf.Struct{Name: "flow_end", Size: 8, Members: []btf.Member{
		{Name: "port", Type: u8},
		{Name: "device", Type: u8, Offset: 8},
		{Name: "mac", Type: &btf.Array{Type: u8, Nelems: 6}, Offset: 16},
	}}
	then := &btf.Struct{Name: "flow", Size: 50, Members: []btf.Member{
		{Name: "timer", Type: &btf.Struct{Name: "bpf_timer", Size: 16}},
		{Name: "state", Type: u8, Offset: 128},
		{Name: "opener", Type: u8, Offset: 136},
		{Name: "end", Type: &btf.Array{Type: end, Nelems: 2}, Offset: 144},
		{Name: "forgotten", Type: u64, Offset: 272},
		{Name: "seen", Type: u64, Offset: 336},
	}}
	theirs, err := layoutOf(then)
	if err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 50)
	copy(in[16:], []byte{200, 1, 11, 12, 1, 2, 3, 4, 5, 6, 21, 22, 6, 5, 4, 3, 2, 1})
	binary.LittleEndian.PutUint64(in[42:], 1<<40)
	out := ours.convert(theirs, in)
	var got bpfFlow
	if len(out) != binary.Size(&got) {
		t.Fatalf("%d bytes, want %d", len(out), binary.Size(&got))
	}
	if _, err := binary.Decode(out, binary.LittleEndian, &got); err != nil {
		t.Fatal(err)
	}
	want := bpfFlow{State: 200, Opener: 1, Seen: 1 << 40}
	want.End[0].Port, want.End[0].Device, want.End[0].Mac = 11, 12, [6]byte{1, 2, 3, 4, 5, 6}
	want.End[1].Port, want.End[1].Device, want.End[1].Mac = 21, 22, [6]byte{6, 5, 4, 3, 2, 1}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	c := flowCopier{value: ours}
	c.from.value = theirs
	if err := c.check(); err == nil {
		t.Error("a table whose flows do not say who they are charged to is taken")
	}
}
