package vswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Drop is a sampled drop: at most a hundred a second for one port and reason, and a
// thousand a second for one CPU. The counters have them all.
type Drop struct {
	Time   time.Time
	Port   plan.PortID // "" for a device that is no port
	Switch uint32
	Reason Reason
	// Rule that decided; 0: none.
	Rule         uint32
	Len          uint32
	EtherType    uint16
	SrcMAC       plan.MAC
	DstMAC       plan.MAC
	Src, Dst     netip.Addr // invalid when the frame carries none; ARP: sender and target
	Protocol     uint8
	ICMPType     uint8
	SPort, DPort uint16
}

// ErrEventsTaken says that the ring of drop events already has its reader.
var ErrEventsTaken = errors.New("drop events are being read already")

// Events gives sampled drops until ctx ends, then closes the channel. There is one ring,
// so one reader at a time; whoever serves several hands them on. A slow reader loses
// events, never memory.
func (a *Applier) Events(ctx context.Context) (<-chan Drop, error) {
	select {
	case a.eventsOpen <- struct{}{}:
	default:
		return nil, ErrEventsTaken
	}
	r, err := ringbuf.NewReader(a.objs.BhEventsV1)
	if err != nil {
		<-a.eventsOpen
		return nil, fmt.Errorf("read drop events: %w", err)
	}
	out := make(chan Drop, 64)
	stop := context.AfterFunc(ctx, func() { r.Close() })
	go func() {
		defer func() {
			stop()
			r.Close()
			<-a.eventsOpen
			close(out)
		}()
		a.pump(ctx, r, out)
	}()
	return out, nil
}

func (a *Applier) pump(ctx context.Context, r *ringbuf.Reader, out chan<- Drop) {
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if !errors.Is(err, ringbuf.ErrClosed) && !errors.Is(err, os.ErrClosed) {
				a.log.Error("drop events end", "error", err)
			}
			return
		}
		var e bpfDropEvent
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &e); err != nil {
			a.log.Error("drop event not understood", "error", err)
			continue
		}
		select {
		case out <- a.dropOf(&e):
		case <-ctx.Done():
			return
		}
	}
}

func (a *Applier) dropOf(e *bpfDropEvent) Drop {
	a.mu.Lock()
	id := a.byIndex[e.Port]
	a.mu.Unlock()
	return Drop{
		Time: eventTime(e.Time), Port: id, Switch: switchOf(e.Sw), Reason: Reason(e.Reason), Rule: e.Rule, Len: e.Len,
		EtherType: e.Ethertype, SrcMAC: e.Smac, DstMAC: e.Dmac, Src: eventAddr(e.Src), Dst: eventAddr(e.Dst),
		Protocol: e.Proto, ICMPType: e.IcmpType, SPort: e.Sport, DPort: e.Dport,
	}
}

// eventTime is when the kernel's clock showed ns: an event may wait for its reader,
// for as long as the daemon is away.
func eventTime(ns uint64) time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(ns) - time.Duration(now.Nano()))
}

func eventAddr(b [16]byte) netip.Addr {
	if b == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(b).Unmap()
}
