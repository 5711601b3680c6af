package vswitch

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// Sides of a rate (RATE_* in bpf/lib/structs.h).
const (
	rateOut = 0
	rateIn  = 1
)

const (
	// ticksPerSecond is the clock of bpf/lib/rate.h: 256 to the nanosecond.
	ticksPerSecond = 256 * uint64(time.Second)
	// leastBurst lets two of the largest frames pass that segmentation offload makes.
	leastBurst = 2 * 64 << 10
	// burstTime is how much of its rate a port may save up. TCP that loses the end of a burst is silent for 200 ms, its
	// shortest time-out; a bucket that overflows meanwhile would make the rate a bound that nobody reaches.
	burstTime = 250 * time.Millisecond
)

// rate is a bound of bytes per second as the program wants it.
func rate(bytes uint64) bpfRate {
	return bpfRate{Bytes: bytes, Burst: max(256*uint64(burstTime), leastBurst*ticksPerSecond/bytes)}
}

// setRate writes a rate. A bucket says in time what was taken out of it, at the rate that held then: under another one it would have a port
// wait for as long as the old one asks for. So it begins anew, with a full one.
func (a *Applier) setRate(k bpfRateKey, v bpfRate) error {
	if had, ok := a.tables.rates.have[k]; ok && had == v {
		return nil
	}
	if err := a.tables.rates.set(k, v); err != nil {
		return err
	}
	if a.shadow != nil { // a preview
		return nil
	}
	if err := a.objs.BhBucketsV1.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("write map %s: %w", bpfMapBhBucketsV1, err)
	}
	return nil
}
