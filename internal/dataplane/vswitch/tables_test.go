package vswitch

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// Many entries are written and deleted with one system call; when it stops half-way the mirror holds what the map does.
func TestTableInBatches(t *testing.T) {
	th.RequireRoot(t)
	const room = 2*batch + 100
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: room})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	writes := 0
	tab := newTable[uint32, uint32]("test", m, &writes)
	exact := func(when string, entries, written int) {
		t.Helper()
		kernel := map[uint32]uint32{}
		other := newTable[uint32, uint32]("test", m, new(int))
		if err := other.each(func(k, v uint32) { kernel[k] = v }); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(kernel, tab.have) || len(kernel) != entries || writes != written {
			t.Errorf("%s: %d entries in the map, %d in the mirror, %d writes; want %d, the same, %d", when, len(kernel), len(tab.have), writes, entries, written)
		}
	}
	keys, values := make([]uint32, room-10), make([]uint32, room-10)
	for i := range keys {
		keys[i], values[i] = uint32(i), uint32(i)
	}
	if err := tab.setAll(keys, values); err != nil || tab.full {
		t.Fatalf("%v, full: %v", err, tab.full)
	}
	exact("written", room-10, room-10)
	values[5]++
	if err := tab.setAll(keys, values); err != nil {
		t.Fatal(err)
	}
	exact("one changed", room-10, room-10+1)

	more := make([]uint32, 20)
	for i := range more {
		more[i] = uint32(2*room + i)
	}
	if err := tab.setAll(more, more); !errors.Is(err, unix.E2BIG) || !tab.full {
		t.Errorf("more than there is room for: %v, full: %v", err, tab.full)
	}
	if _, ok := tab.have[more[9]]; !ok || tab.has(more[10]) {
		t.Error("not the first ten were written")
	}
	exact("full", room, room+1)

	lost := uint32(7) // somebody deletes it
	if err := m.Delete(&lost); err != nil {
		t.Fatal(err)
	}
	gone := slices.Concat(keys[:batch+50], []uint32{3 * room})
	if err := tab.dropAll(gone); err != nil {
		t.Fatal(err)
	}
	exact("deleted", room-batch-50, room+1+batch+50)
	if err := tab.prune(nil); err != nil {
		t.Fatal(err)
	}
	exact("pruned", 0, 2*room+1)
}
