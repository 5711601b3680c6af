package vswitch

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// FlowState is how far a flow has come.
type FlowState string

// The states of flows. Only TCP closes.
const (
	FlowOpening     FlowState = "opening"     // packets went one way only
	FlowEstablished FlowState = "established" // both ways
	FlowClosing     FlowState = "closing"     // one end has sent a FIN
	FlowClosed      FlowState = "closed"      // both have
	FlowReset       FlowState = "reset"
	FlowCut         FlowState = "cut" // the rules stop it; it goes on if they let it again
)

// Bits of a flow's state (FLOW_* in bpf/lib/structs.h).
const (
	flowFinA    = 1
	flowFinB    = 2
	flowReset   = 4
	flowReplied = 8
	flowCut     = 128
)

// FlowEnd is one side of a flow.
type FlowEnd struct {
	// Port is "" when it is not on a switch any more.
	Port plan.PortID
	Addr netip.Addr
	// L4 is the port of TCP, UDP and SCTP, or the identifier of an echo, which both
	// ends share.
	L4 uint16
}

// Flow is a connection that the switch remembers, or one that has ended.
type Flow struct {
	Switch   uint32
	Protocol uint8
	// Opener sent the first packet.
	Opener, Peer FlowEnd
	State        FlowState
	Opened, Seen time.Time
	// Packets and Bytes by the opener, and back. A frame that carries several segments
	// counts as one. They count since the rules below decided.
	Packets, Bytes [2]uint64
	// RuleOut let it leave the opener's port, RuleIn enter the peer's; 0: none.
	RuleOut, RuleIn uint32
}

// EachFlow hands the flows of the table to a function, until it wants no more. They are
// those of one port, or all with "". The table changes meanwhile: a flow that comes or
// goes may be missed, and one may come twice.
func (a *Applier) EachFlow(port plan.PortID, each func(Flow) bool) error {
	var index uint32
	if port != "" {
		a.mu.Lock()
		s := a.applied[port]
		a.mu.Unlock()
		if s == nil {
			return nil
		}
		index = s.index
	}
	clock, err := readClock()
	if err != nil {
		return err
	}
	return eachEntry(bpfMapBhFlowsV4, a.objs.BhFlowsV4, batch, func(k *bpfFlowKey, f *bpfFlow) bool {
		if index != 0 && f.End[0].Port != index && f.End[1].Port != index {
			return true
		}
		return each(a.flowOf(clock, k, &bpfFlowRecord{
			RuleOut: f.RuleOut, RuleIn: f.RuleIn, Opened: f.Opened, Seen: f.Seen, Packets: f.Packets, Bytes: f.Bytes,
			Port: [2]uint32{f.End[0].Port, f.End[1].Port}, Opener: f.Opener, State: uint8(f.State),
		}))
	})
}

// eachEntry reads a map in batches of n.
func eachEntry[K, V any](name string, m *ebpf.Map, n int, each func(*K, *V) bool) error {
	keys, values := make([]K, n), make([]V, n)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if !each(&keys[i], &values[i]) {
				return nil
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list map %s: %w", name, err)
		}
	}
}

func (a *Applier) flowOf(c clock, k *bpfFlowKey, r *bpfFlowRecord) Flow {
	a.mu.Lock()
	ends := [2]FlowEnd{
		{a.byIndex[r.Port[0]], netip.AddrFrom16(k.A).Unmap(), k.Aport},
		{a.byIndex[r.Port[1]], netip.AddrFrom16(k.B).Unmap(), k.Bport},
	}
	a.mu.Unlock()
	return Flow{
		Switch: switchOf(k.Sw), Protocol: k.Proto, Opener: ends[r.Opener&1], Peer: ends[1-r.Opener&1],
		State: flowState(r.State), Opened: c.at(r.Opened), Seen: c.at(r.Seen),
		Packets: r.Packets, Bytes: r.Bytes, RuleOut: r.RuleOut, RuleIn: r.RuleIn,
	}
}

func flowState(s uint8) FlowState {
	switch fins := s & (flowFinA | flowFinB); {
	case s&flowReset != 0:
		return FlowReset
	case fins == flowFinA|flowFinB:
		return FlowClosed
	case s&flowCut != 0:
		return FlowCut
	case fins != 0:
		return FlowClosing
	case s&flowReplied != 0:
		return FlowEstablished
	}
	return FlowOpening
}

// clock turns the kernel's times into those of the day.
type clock struct {
	now  time.Time
	mono uint64
}

func readClock() (clock, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return clock{}, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return clock{time.Now(), uint64(t.Nano())}, nil
}

func (c clock) at(ns uint64) time.Time { return c.now.Add(time.Duration(int64(ns - c.mono))) }
