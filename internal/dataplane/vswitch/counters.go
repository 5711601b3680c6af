package vswitch

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Counters of a port, seen from the vNIC behind it: Rx is what it received. A frame
// that carries several segments counts as one.
type Counters struct {
	RxPackets, RxBytes, RxDropped uint64
	TxPackets, TxBytes, TxDropped uint64
}

// DropCount is how often a port's frames were dropped for one reason.
type DropCount struct {
	// Port is "" for devices that are no port.
	Port    plan.PortID
	Reason  Reason
	Packets uint64
	Bytes   uint64
}

// Counters reads a port's counters. A port that is not there has none: zeros, as HCN
// wants for an endpoint that is not attached.
func (a *Applier) Counters(port plan.PortID) (Counters, error) {
	a.mu.Lock()
	s := a.applied[port]
	a.mu.Unlock()
	if s == nil {
		return Counters{}, nil
	}
	var perCPU []bpfStats
	index := s.counted()
	if err := a.objs.BhStatsV1.Lookup(&index, &perCPU); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return Counters{}, nil
		}
		return Counters{}, fmt.Errorf("read counters of port %s: %w", port, err)
	}
	var c Counters
	for _, v := range perCPU {
		c.RxPackets += v.RxPackets
		c.RxBytes += v.RxBytes
		c.RxDropped += v.RxDropped
		c.TxPackets += v.TxPackets
		c.TxBytes += v.TxBytes
		c.TxDropped += v.TxDropped
	}
	if err := trafficOf(a.objs.BhTrafficV1, index, &c); err != nil {
		return Counters{}, fmt.Errorf("read counters of port %s: %w", port, err)
	}
	return c, nil
}

// Drops reads the drop counters of all ports, in order of port and reason.
func (a *Applier) Drops() ([]DropCount, error) {
	t := newTable[bpfDropKey, bpfDropCount](bpfMapBhDropsV1, a.objs.BhDropsV1, new(int))
	if _, err := t.list(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]DropCount, 0, len(t.have))
	for k, v := range t.have {
		id, ok := a.byIndex[k.Port]
		if !ok && k.Port != 0 {
			continue // of a port that is being removed
		}
		out = append(out, DropCount{Port: id, Reason: Reason(k.Reason), Packets: v.Packets, Bytes: v.Bytes})
	}
	slices.SortFunc(out, func(x, y DropCount) int {
		return cmp.Or(cmp.Compare(x.Port, y.Port), cmp.Compare(x.Reason, y.Reason))
	})
	return out, nil
}
