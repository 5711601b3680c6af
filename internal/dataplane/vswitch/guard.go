package vswitch

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// To attach a program waits for an RCU grace period, 0.3 ms where those are expedited and up to 30 where not. So a device that is to be
// a port one day may have it beforehand: Guard attaches it without a pin, and attach pins what it finds. No entry knows the
// device until then, so the program drops what comes.

// guard is an attachment that nothing but this process holds.
type guard struct {
	link link.Link
	prog ebpf.ProgramID
}

// Guard puts the program of ports on a device of ours. release detaches it, unless the device has become a port. Where
// programs are no links, it does nothing.
func (a *Applier) Guard(index int) (release func(), err error) {
	if a.att.mode() != AttachTCX {
		return func() {}, nil
	}
	prog, id, err := a.portProgram()
	if prog == nil || err != nil {
		return func() {}, err
	}
	defer prog.Close()
	// Not under the lock: whoever attaches a port must not wait for the grace period of this one.
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		return nil, fmt.Errorf("attach to device %d: %w", index, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.guards[uint32(index)] = guard{link: l, prog: id}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if g := a.guards[uint32(index)]; g.link == l {
			a.unguard(uint32(index))
		}
	}, nil
}

// portProgram is a copy of the program that ports have now, nil before the first port.
func (a *Applier) portProgram() (*ebpf.Program, ebpf.ProgramID, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.objs.BhFromPort == nil {
		return nil, 0, nil
	}
	prog, err := a.objs.BhFromPort.Clone()
	return prog, a.ids[bpfProgBhFromPort], err
}

// unguard lets go of an attachment.
func (a *Applier) unguard(index uint32) {
	if err := a.guards[index].link.Close(); err != nil {
		a.log.Warn("let go of a program", "device", index, "err", err)
	}
	delete(a.guards, index)
}

// adopt pins the attachment of a device that was guarded, and tells whether the port has its program by that.
func (a *Applier) adopt(h spot) bool {
	g, ok := a.guards[h.index]
	if !ok || a.shadow != nil {
		return false
	}
	defer a.unguard(h.index)
	if g.prog != h.id { // tables have grown since
		return false
	}
	if err := g.link.Pin(a.pins.link(h.pin)); err != nil {
		a.log.Warn("pin a program that was attached beforehand", "device", h.dev, "err", err)
		return false
	}
	return true
}

// dropGuards lets go of all.
func (a *Applier) dropGuards() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, g := range a.guards {
		errs = append(errs, g.link.Close())
	}
	clear(a.guards)
	return errors.Join(errs...)
}
