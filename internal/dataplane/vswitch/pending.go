package vswitch

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// overdue is how long after its time a network that nobody confirmed is left to the daemon. If
// that is not there, the programs act by themselves (bpf/lib/pending.h).
const overdue = 2 * time.Second

// waiting is what the programs know: a switch, or one port of it (0: all), and up to when it may be confirmed.
type waiting struct {
	sw, port uint32
	by       time.Time
}

// unconfirmed is the port that waits, if one does. Of a change, a delta, all ports are looked at only when one is in it or waited before.
func unconfirmed(p *plan.Plan, d *plan.Delta, before *waiting) *plan.Port {
	waits := func(port *plan.Port) bool { return port != nil && !port.ConfirmBy.IsZero() }
	search := d == nil || before == nil || before.port != 0
	if !search {
		for _, c := range d.Ports {
			search = search || waits(c.New)
		}
	}
	if !search {
		return nil
	}
	for _, port := range p.Ports {
		if waits(port) {
			return port
		}
	}
	return nil
}

// servePending tells the programs what waits to be confirmed. d is nil where everything is compared.
func (a *Applier) servePending(p *plan.Plan, d *plan.Delta) error {
	var want waiting
	for _, sw := range p.Switches {
		if !sw.ConfirmBy.IsZero() {
			want = waiting{sw: sw.Number, by: sw.ConfirmBy}
		}
	}
	if port := unconfirmed(p, d, a.pending); port != nil {
		index, err := a.dev.index(port.Device)
		if err != nil {
			return portError(port.ID, "%w", err)
		}
		want = waiting{port.Switch, index, port.ConfirmBy}
	}
	if a.pending == nil {
		var have bpfPending
		if err := a.objs.BhPendingV1.Lookup(new(uint32), &have); err != nil {
			return fmt.Errorf("read which network waits to be confirmed: %w", err)
		}
		a.pending = &waiting{sw: have.Sw, port: have.Port} // of a daemon that died: its time is not compared
		if have.Until == 0 {
			a.pending.sw = 0
		}
	}
	if *a.pending == want {
		return nil
	}
	if a.shadow != nil {
		sign, text := plan.Changes, "no network waits to be confirmed"
		if want.sw != 0 {
			text = fmt.Sprintf("switch %d waits to be confirmed by %s", want.sw, want.by.Format(time.TimeOnly))
		}
		if want.port != 0 {
			text = fmt.Sprintf("%s waits to be confirmed by %s", a.shadow.device(want.port), want.by.Format(time.TimeOnly))
		}
		a.shadow.note(sign, "map "+bpfMapBhPendingV1, "%s", text)
		return nil
	}
	v, err := pendingEntry(want)
	if err != nil {
		return err
	}
	if err := a.objs.BhPendingV1.Update(new(uint32), &v, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write which network waits to be confirmed: %w", err)
	}
	a.writes++
	*a.pending = want
	return nil
}

// pendingEntry counts from the start of the host, as the programs do.
func pendingEntry(w waiting) (bpfPending, error) {
	if w.sw == 0 {
		return bpfPending{}, nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return bpfPending{}, fmt.Errorf("read the time since the host started: %w", err)
	}
	until := now.Nano() + (time.Until(w.by) + overdue).Nanoseconds()
	return bpfPending{Until: uint64(max(until, 1)), Sw: w.sw, Port: w.port}, nil
}
