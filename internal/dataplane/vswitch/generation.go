package vswitch

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// configure writes the switch's settings, and keeps the generation that flows were judged
// under: a daemon that starts anew judges none of them again.
func (a *Applier) configure(flowsPerPort int) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	if c.Generation != 0 && c.FlowsPerPort == uint32(flowsPerPort) {
		return nil
	}
	c.Generation, c.FlowsPerPort = max(c.Generation, 1), uint32(flowsPerPort)
	return a.setConfig(c)
}

// config are the settings, which are read once: nobody else writes them.
func (a *Applier) config() (bpfConfig, error) {
	if a.settings != nil {
		return *a.settings, nil
	}
	var c bpfConfig
	if err := a.objs.BhConfigV1.Lookup(new(uint32), &c); err != nil {
		return c, fmt.Errorf("read the switch's settings: %w", err)
	}
	a.settings = &c
	return c, nil
}

func (a *Applier) setConfig(c bpfConfig) error {
	if err := a.objs.BhConfigV1.Update(new(uint32), &c, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write the switch's settings: %w", err)
	}
	a.writes++
	a.settings = &c
	return nil
}

// begin precedes the first write of a change. A daemon that is killed before it has settled that may have written rules under
// which no flow was judged, and the next one finds nothing left to write.
func (a *Applier) begin() error {
	if a.shadow != nil {
		return nil
	}
	return a.mark(1)
}

// mark is no write that anybody asks for: it comes and goes with those of a change.
func (a *Applier) mark(unsettled uint32) error {
	if err := a.objs.BhUnsettledV1.Update(new(uint32), &unsettled, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map %s: %w", bpfMapBhUnsettledV1, err)
	}
	return nil
}

// takeOver has the flows judged again if the last daemon has not come to the end of a change.
func (a *Applier) takeOver() error {
	var unsettled uint32
	if err := a.objs.BhUnsettledV1.Lookup(new(uint32), &unsettled); err != nil {
		return fmt.Errorf("read map %s: %w", bpfMapBhUnsettledV1, err)
	}
	a.policies.changed = unsettled != 0
	return nil
}

// settle ends a change: flows that were judged before it are judged again, and rules that
// no port has any more go when no packet can be at them.
func (a *Applier) settle() error {
	if a.shadow != nil {
		return a.settleShadow()
	}
	a.policies.retire()
	var err error
	if a.policies.changed || a.balance.changed {
		if err = a.raiseGeneration(); err == nil {
			a.policies.changed, a.balance.changed = false, false
		}
	}
	if err == nil {
		err = a.mark(0)
	}
	a.collectLater()
	return err
}

func (a *Applier) raiseGeneration() error {
	c, err := a.config()
	if err != nil {
		return err
	}
	if c.Generation++; c.Generation == 0 {
		c.Generation = 1
	}
	return a.setConfig(c)
}

func (a *Applier) collectLater() {
	garbage, tables := a.policies.garbage, a.balance.garbage
	stale, epoch := a.policies.stale, a.policies.setEpoch
	near := a.tables.near
	ports, counters, wanted := near.resting()
	if len(garbage) == 0 && !stale && len(tables) == 0 && !wanted {
		return
	}
	a.policies.garbage, a.policies.stale, a.balance.garbage = nil, false, nil
	a.collecting.Go(func() {
		quiesce()
		a.mu.Lock()
		defer a.mu.Unlock()
		err := errors.Join(a.policies.collect(garbage), a.balance.collect(tables))
		if wanted && near == a.tables.near {
			err = errors.Join(err, near.rested(ports, counters, a.tables))
		}
		// After a later change of sets, packets may be at what this one has left; its own
		// collection comes.
		if stale && epoch == a.policies.setEpoch {
			err = errors.Join(err, a.policies.forgetCombinations())
		}
		if err != nil {
			a.log.Error("remove rules and back ends that are no more", "err", err)
			a.dirty = true
		}
	})
}

// quiesce returns when every program run that was going on has ended: it waits for an RCU
// grace period.
func quiesce() {
	const membarrierGlobal = 1 << 0
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		// Not offered on kernels with isolated CPUs. A run takes microseconds.
		<-time.After(100 * time.Millisecond)
	}
}

// forget drops what is remembered of a port that is gone.
func (a *Applier) forget(id plan.PortID) {
	s := a.applied[id]
	if s == nil {
		return
	}
	a.policies.drop(s.out, s.in)
	a.policies.changed = true
	delete(a.applied, id)
	for _, index := range []uint32{s.index, s.counted()} {
		if a.byIndex[index] == id {
			delete(a.byIndex, index)
		}
	}
}

// pruneRules deletes rules and sets that nothing explains. The ports that had them have
// been served by now, and the packets that were at them have passed.
func (a *Applier) pruneRules(p *plan.Plan) error {
	numbers := map[uint32]bool{}
	for _, sw := range p.Switches {
		numbers[sw.Number] = true
	}
	var errs []error
	for sw := range a.policies.switches {
		if !numbers[sw] {
			errs = append(errs, a.policies.dropSwitch(sw))
		}
	}
	if !a.policies.superfluous() {
		return errors.Join(errs...)
	}
	quiesce()
	return errors.Join(append(errs, a.policies.prune())...)
}
