package vswitch

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type offload_stat -type offload_role -type offload_ask -type offload uplink ../../../bpf/uplink.bpf.c -- -O2 -Wall -Werror -mcpu=v3 -nostdinc -I../../../bpf/include

// offloadLease is how long the programs go on when the daemon says nothing: nobody
// watches then. offloadBeat is how often it says that it is there.
const (
	offloadLease = time.Second
	offloadBeat  = 200 * time.Millisecond
)

// offloadObjects are the programs of bpf/uplink.bpf.c and their own maps; they share the
// switch's. Nothing of it is pinned, so it ends with the process.
type offloadObjects struct {
	CarryOut *ebpf.Program `ebpf:"bh_carry_out"`
	CarryIn  *ebpf.Program `ebpf:"bh_carry_in"`
	LearnOut *ebpf.Program `ebpf:"bh_learn_out"`
	LearnIn  *ebpf.Program `ebpf:"bh_learn_in"`
	Flows    *ebpf.Map     `ebpf:"bh_offload_v1"`
	Links    *ebpf.Map     `ebpf:"bh_offload_links_v1"`
	Config   *ebpf.Map     `ebpf:"bh_offload_config_v1"`
	Stats    *ebpf.Map     `ebpf:"bh_offload_stats_v1"`
	Asks     *ebpf.Map     `ebpf:"bh_offload_asks_v1"`
}

// offload carries flows across the host past its stack. See docs/adr/0013.
type offload struct {
	log  *slog.Logger
	objs offloadObjects
	// calls has the slot through which the port program hands flows over.
	calls *ebpf.Map
	dev   devices
	att   offloadAttacher
	watch *offloadWatch
	track *tracker

	mu sync.Mutex
	// hosts are the host's vNICs on NAT networks, by device name.
	hosts map[string]uplinkOffloadLink
	// links are the devices that are served, by index.
	links      map[uint32]uplinkOffloadLink
	generation uint32
	closed     bool
}

// newOffload loads the programs and opens what the watch needs. A kernel that cannot
// have them is an error that says why.
func newOffload(a *Applier) (*offload, error) {
	o := &offload{log: a.log, calls: a.objs.BhOffloadCallsV1, dev: a.dev, links: map[uint32]uplinkOffloadLink{}, generation: 1}
	if err := o.load(&a.objs); err != nil {
		return nil, errors.Join(err, o.close())
	}
	var err error
	if o.att, err = newOffloadAttacher(a.att.mode(), &o.objs); err == nil {
		if o.watch, err = newOffloadWatch(); err == nil {
			o.track, err = newTracker()
		}
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *offload) load(shared *bpfObjects) error {
	spec, err := loadUplink()
	if err != nil {
		return fmt.Errorf("read the offload's BPF object: %w", err)
	}
	replace := map[string]*ebpf.Map{}
	for name, m := range mapsOf(shared) {
		if spec.Maps[name] != nil {
			replace[name], spec.Maps[name].MaxEntries = m, m.MaxEntries()
		}
	}
	if err := spec.LoadAndAssign(&o.objs, &ebpf.CollectionOptions{MapReplacements: replace}); err != nil {
		return fmt.Errorf("load the offload's programs (they need conntrack and type information in the kernel, as Linux 6.2 and later can have): %w", err)
	}
	return nil
}

// close detaches everything. Flows go on through the stack.
func (o *offload) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	var errs []error
	if o.calls != nil {
		errs = append(errs, emptySlot(o.calls))
	}
	if o.att != nil {
		for index, l := range o.links {
			errs = append(errs, o.att.detach(index, l.Role))
		}
		errs = append(errs, o.att.close())
	}
	if o.watch != nil {
		errs = append(errs, o.watch.close())
	}
	if o.track != nil {
		errs = append(errs, o.track.close())
	}
	for _, p := range []*ebpf.Program{o.objs.CarryOut, o.objs.CarryIn, o.objs.LearnOut, o.objs.LearnIn} {
		errs = append(errs, p.Close())
	}
	for _, m := range []*ebpf.Map{o.objs.Flows, o.objs.Links, o.objs.Config, o.objs.Stats, o.objs.Asks} {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// emptySlot makes the port program hand nothing over.
func emptySlot(calls *ebpf.Map) error {
	if err := calls.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty the offload's slot: %w", err)
	}
	return nil
}

// serve makes the offload serve the networks of a plan, and has every flow seen by
// netfilter again: when this is called, what the plan changed there has been done.
func (o *offload) serve(p *plan.Plan) error {
	hosts := map[string]uplinkOffloadLink{}
	for _, sw := range p.Switches {
		if sw.Mode == plan.ModeNAT && sw.HostDevice != "" {
			hosts[sw.HostDevice] = uplinkOffloadLink{Role: uplinkOffloadRoleOFFLOAD_HOST, Sw: sw.Number, Mtu: uint32(sw.MTU)}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	changed := !maps.Equal(o.hosts, hosts)
	o.hosts = hosts
	var err error
	if changed {
		err = o.reconcile()
	}
	return errors.Join(o.bump(), err)
}

func (a *Applier) serveOffload(p *plan.Plan) error {
	if a.offload == nil {
		return nil
	}
	return a.offload.serve(p)
}

// reconcile attaches to the uplinks and to the host's vNICs, and leaves what is neither.
func (o *offload) reconcile() error {
	want := map[uint32]uplinkOffloadLink{}
	var errs []error
	for name, l := range o.hosts {
		// A device that is not there announces itself to the watch when it comes.
		if index, err := o.dev.index(name); err == nil {
			want[index] = l
		}
	}
	if len(want) > 0 {
		uplinks, err := o.watch.uplinks()
		errs = append(errs, err)
		for index, mtu := range uplinks {
			if _, ours := want[index]; !ours {
				want[index] = uplinkOffloadLink{Role: uplinkOffloadRoleOFFLOAD_UPLINK, Mtu: mtu}
			}
		}
	}
	for index, l := range o.links {
		if want[index].Role != l.Role {
			errs = append(errs, o.att.detach(index, l.Role), ignoreMissing(o.objs.Links.Delete(index)))
			delete(o.links, index)
		}
	}
	for index, l := range want {
		had, ok := o.links[index]
		if !ok {
			if err := o.att.attach(index, l.Role); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if had != l {
			if err := o.objs.Links.Put(index, l); err != nil {
				errs = append(errs, fmt.Errorf("serve device %d: %w", index, err))
				continue
			}
		}
		o.links[index] = l
	}
	errs = append(errs, o.fillSlot())
	return errors.Join(errs...)
}

// fillSlot has the port program hand flows over while there is somewhere to carry them.
func (o *offload) fillSlot() error {
	if len(o.links) == 0 {
		return emptySlot(o.calls)
	}
	if err := o.calls.Put(uint32(0), o.objs.CarryOut); err != nil {
		return fmt.Errorf("fill the offload's slot: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// bump makes every flow take the way through the stack until it is learnt again.
func (o *offload) bump() error {
	if o.generation++; o.generation == 0 {
		o.generation = 1
	}
	return o.beat()
}

// passStack is bump for who has not got the lock.
func (o *offload) passStack() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bump()
}

// beat tells the programs that somebody watches.
func (o *offload) beat() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	c := uplinkOffloadConfig{Until: uint64(now.Nano()) + uint64(offloadLease), Generation: o.generation}
	if !o.watch.running {
		c.Until = 0
	}
	if err := o.objs.Config.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("renew the offload's lease: %w", err)
	}
	return nil
}

// OffloadStats count what is carried past the host's stack, in packets as the programs
// see them: a frame of several segments is one.
type OffloadStats struct {
	// Out went from containers to an uplink, In the other way.
	Out, In uint64
	// Renewed packets went through the stack and were learnt from.
	Renewed uint64
	// Ended flows were given back to the stack by a FIN, RST or SYN.
	Ended uint64
	// Asked counts the connections that conntrack had to be prepared for.
	Asked uint64
}

// OffloadState tells whether flows across the host are carried past its stack.
type OffloadState struct {
	On bool
	// Reason says why not.
	Reason string
	// Devices are how many uplinks and host vNICs are served.
	Devices int
	Stats   OffloadStats
	// Entries is how many directions of flows are in the table.
	Entries int
}

// Offload tells about the offload.
func (a *Applier) Offload() (OffloadState, error) {
	o := a.offload
	if o == nil {
		return OffloadState{Reason: a.offloadReason}, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s := OffloadState{On: true, Devices: len(o.links)}
	for which, to := range map[uplinkOffloadStat]*uint64{
		uplinkOffloadStatOFFLOAD_OUT: &s.Stats.Out, uplinkOffloadStatOFFLOAD_IN: &s.Stats.In,
		uplinkOffloadStatOFFLOAD_RENEWED: &s.Stats.Renewed, uplinkOffloadStatOFFLOAD_ENDED: &s.Stats.Ended,
		uplinkOffloadStatOFFLOAD_ASKED: &s.Stats.Asked,
	} {
		var perCPU []uint64
		if err := o.objs.Stats.Lookup(uint32(which), &perCPU); err != nil {
			return s, fmt.Errorf("read the offload's counters: %w", err)
		}
		for _, n := range perCPU {
			*to += n
		}
	}
	err := eachEntry("bh_offload_v1", o.objs.Flows, batch, func(*uplinkOffloadKey, *uplinkOffload) bool {
		s.Entries++
		return true
	})
	return s, err
}
