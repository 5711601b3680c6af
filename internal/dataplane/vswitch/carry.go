package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Connections outlive an upgrade that changes the layout of the flow table. Most would
// come back by themselves, as a packet is judged as the first of a new flow. But answers
// that no rule allows pass by their flow alone, and a segment from the middle of a TCP
// connection opens none that lets answers pass. So a new version reads the flows of the
// tables that other versions have pinned, field by field as the kernel's type information
// (BTF) names them, and writes them into its own: a field that is new is zero, one that has
// grown keeps its value. They are judged anew with their next packet.
//
// It reads twice: before the first port gets the new program, and after the last one has
// it, for the flows that the old program took up in between. Of a flow that closes in
// between, the new table may not hear; it then goes by its timeout. What a port's share has
// of them is counted by the program that sweeps the table (bh_sweep).

// flowPins is what the pins of all versions' flow tables begin with.
const flowPins = "bh_flows_v"

// flowCarried is FLOW_CARRIED in bpf/lib/structs.h.
const flowCarried = 256

// carryFlows takes over the flows of other versions' tables. That it cannot is no reason
// to stop: those connections begin anew.
func (a *Applier) carryFlows() {
	pinned, err := names(a.pins.maps())
	if err != nil {
		a.log.Warn("connections of the last version may be cut", "err", err)
		return
	}
	ours := mapsOf(&a.objs)
	for _, name := range pinned {
		if _, ok := ours[name]; ok || !strings.HasPrefix(name, flowPins) {
			continue
		}
		n, err := a.carryFrom(name)
		if err != nil {
			a.log.Warn("connections of the last version may be cut", "map", name, "err", err)
		} else if n > 0 {
			a.log.Info("took over the connections of the last version", "map", name, "flows", n)
		}
	}
}

// carryFrom copies the flows that were opened since the last time.
func (a *Applier) carryFrom(name string) (int, error) {
	old, err := ebpf.LoadPinnedMap(a.pins.mapFile(name), nil)
	if err != nil {
		return 0, fmt.Errorf("open the flow table %s: %w", name, err)
	}
	defer old.Close()
	c, err := newFlowCopier(old)
	if err != nil {
		return 0, fmt.Errorf("read the flow table %s: %w", name, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	n, err := c.copy(old, a.objs.BhFlowsV4, a.carried[name])
	a.carried[name] = uint64(now.Nano())
	a.writes += n
	if n > 0 {
		err = errors.Join(err, a.sweep())
	}
	return n, err
}

// flowCopier turns an entry of another version's table into one of ours.
type flowCopier struct {
	key, value layout
	from       struct{ key, value layout }
}

// field is a place in a struct.
type field struct{ at, size int }

// layout of a struct: its size, and its fields by name, with those of structs and arrays
// within.
type layout struct {
	size   int
	fields map[string]field
}

// carriedFields have to be in a table that flows are taken from.
var carriedFields = []string{
	"opened", "seen", "opener", "state", "charged", "end[0].port", "end[0].device", "end[0].mac", "end[0].kind",
	"end[1].port", "end[1].device", "end[1].mac", "end[1].kind",
}

func newFlowCopier(old *ebpf.Map) (*flowCopier, error) {
	handle, err := old.Handle()
	if err != nil {
		return nil, fmt.Errorf("ask for its types: %w", err)
	}
	defer handle.Close()
	theirs, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("ask for its types: %w", err)
	}
	ours, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read the BPF object: %w", err)
	}
	c := &flowCopier{}
	for _, l := range []struct {
		in   *btf.Spec
		name string
		to   *layout
	}{{ours.Types, "flow_key", &c.key}, {ours.Types, "flow", &c.value}, {theirs, "flow_key", &c.from.key}, {theirs, "flow", &c.from.value}} {
		var t *btf.Struct
		if err := l.in.TypeByName(l.name, &t); err != nil {
			return nil, fmt.Errorf("find struct %s: %w", l.name, err)
		}
		if *l.to, err = layoutOf(t); err != nil {
			return nil, err
		}
	}
	if c.from.key.size != int(old.KeySize()) || c.from.value.size != int(old.ValueSize()) {
		return nil, errors.New("its types are not those of its entries")
	}
	return c, c.check()
}

// check refuses a table whose keys mean something else, or that lacks what a flow is.
func (c *flowCopier) check() error {
	for name := range c.key.fields {
		if c.from.key.fields[name].size != c.key.fields[name].size {
			return fmt.Errorf("its keys have another %s", name)
		}
	}
	if len(c.key.fields) != len(c.from.key.fields) {
		return errors.New("its keys have more fields")
	}
	for _, name := range carriedFields {
		if _, ok := c.from.value.fields[name]; !ok {
			return fmt.Errorf("its flows have no %s", name)
		}
	}
	return nil
}

func layoutOf(t *btf.Struct) (layout, error) {
	l := layout{size: int(t.Size), fields: map[string]field{}}
	return l, l.add(t, "", 0)
}

func (l *layout) add(t btf.Type, name string, at int) error {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		if t.Name == "bpf_timer" {
			return nil // the kernel's own
		}
		for _, m := range t.Members {
			inner := m.Name
			if name != "" {
				inner = name + "." + m.Name
			}
			if err := l.add(m.Type, inner, at+int(m.Offset.Bytes())); err != nil {
				return err
			}
		}
		return nil
	case *btf.Array:
		size, err := btf.Sizeof(t.Type)
		if err != nil {
			return fmt.Errorf("size of %s: %w", name, err)
		}
		if size == 1 { // an address: it is copied whole or not at all
			l.fields[name] = field{at, int(t.Nelems)}
			return nil
		}
		for i := range int(t.Nelems) {
			if err := l.add(t.Type, fmt.Sprintf("%s[%d]", name, i), at+i*size); err != nil {
				return err
			}
		}
		return nil
	default:
		size, err := btf.Sizeof(t)
		if err != nil {
			return fmt.Errorf("size of %s: %w", name, err)
		}
		l.fields[name] = field{at, size}
		return nil
	}
}

// convert copies what both have. Numbers are little-endian: one that grows gets zeros.
func (l layout) convert(from layout, in []byte) []byte {
	out := make([]byte, l.size)
	for name, to := range l.fields {
		if f, ok := from.fields[name]; ok && !strings.HasSuffix(name, "pad") {
			copy(out[to.at:to.at+to.size], in[f.at:f.at+f.size])
		}
	}
	return out
}

// copy writes the flows that were opened after a moment, unless they are there already.
func (c *flowCopier) copy(from, to *ebpf.Map, after uint64) (int, error) {
	slice := func(size int) reflect.Value {
		return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(size, reflect.TypeFor[byte]())), batch, batch)
	}
	keys, values := slice(c.from.key.size), slice(c.from.value.size)
	opened, state := c.value.fields["opened"].at, c.value.fields["state"].at
	copied := 0
	var cursor ebpf.MapBatchCursor
	for {
		n, err := from.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		for i := range n {
			k := c.key.convert(c.from.key, keys.Index(i).Bytes())
			v := c.value.convert(c.from.value, values.Index(i).Bytes())
			if binary.LittleEndian.Uint64(v[opened:]) <= after && after != 0 {
				continue
			}
			copy(v[c.value.fields["generation"].at:], []byte{0, 0, 0, 0})
			v[state+1] |= flowCarried >> 8
			if err := to.Update(k, v, ebpf.UpdateNoExist); err == nil {
				copied++
			} else if !errors.Is(err, ebpf.ErrKeyExist) {
				return copied, fmt.Errorf("write a flow: %w", fullMap(err, to))
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return copied, nil
		}
		if err != nil {
			return copied, fmt.Errorf("list its flows: %w", err)
		}
	}
}
