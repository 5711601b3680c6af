package vswitch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
)

// flowLogTick is how often the log of ended flows is read. The program writes it without
// waking anybody, so that a flood of short flows costs the data path no interrupts.
const flowLogTick = 500 * time.Millisecond

// ErrFlowLogTaken says that the log of ended flows already has its reader.
var ErrFlowLogTaken = errors.New("the log of ended flows is being read already")

// EndedFlows hands flows that have ended to a function, in its own time, until ctx ends;
// Seen is when the last packet passed. The kernel's buffer holds some seven thousand
// between two readings; what does not fit is counted by LostFlows. There is one buffer, so
// one reader at a time.
func (a *Applier) EndedFlows(ctx context.Context, each func(Flow)) error {
	select {
	case a.flowLogOpen <- struct{}{}:
		defer func() { <-a.flowLogOpen }()
	default:
		return ErrFlowLogTaken
	}
	r, err := ringbuf.NewReader(a.objs.BhFlowlogV1)
	if err != nil {
		return fmt.Errorf("read the log of ended flows: %w", err)
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	for ctx.Err() == nil {
		err := a.readFlowLog(r, each)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("read the log of ended flows: %w", err)
		}
	}
	return nil
}

// LostFlows counts the flows that ended when the kernel's buffer was full, for as long as the
// switch is there.
func (a *Applier) LostFlows() (uint64, error) {
	var perCPU []uint64
	if err := a.objs.BhLostV1.Lookup(new(uint32), &perCPU); err != nil {
		return 0, fmt.Errorf("read how many ended flows were lost: %w", err)
	}
	var n uint64
	for _, v := range perCPU {
		n += v
	}
	return n, nil
}

// readFlowLog waits for a tick and reads what is there.
func (a *Applier) readFlowLog(r *ringbuf.Reader, each func(Flow)) error {
	r.SetDeadline(time.Now().Add(flowLogTick))
	var rec ringbuf.Record
	var c clock
	for {
		err := r.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		if c == (clock{}) {
			if c, err = readClock(); err != nil {
				return err
			}
		}
		// As it lies in memory: by reflection, ten thousand a second would keep a CPU busy.
		var e bpfFlowRecord
		if len(rec.RawSample) < int(unsafe.Sizeof(e)) {
			return fmt.Errorf("understand a record: it has %d bytes, want %d", len(rec.RawSample), unsafe.Sizeof(e))
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), rec.RawSample)
		each(a.flowOf(c, &e.Key, &e))
	}
}
