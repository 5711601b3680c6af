package vswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A hash map's buckets are all there from the start, 16 bytes for each entry that it could ever have: tables for two million rules
// would cost every host a hundred megabytes, and the time to clear them, for a handful of rules. So these tables begin with room for
// some, and when one is full it is made anew with eight times the room, up to what its object says: the others stay, the programs are
// loaded again over the larger one, it gets what the old one had, and the new programs take the place of the old ones before anything is
// written: the tables that stay refer to entries of those that grow, and an old program would look for them in the old one. No packet
// meets half of anything, and flows go on.

// firstRoom is how many entries a table that grows can have in the beginning.
const firstRoom = 1 << 16

const growth = 8

// growing are the tables that begin small: hash maps, for a trie has no buckets. What the programs fill themselves cannot be among them.
func growing(o *bpfObjects) map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		bpfMapBhClassesV1: &o.BhClassesV1, bpfMapBhVectorsV1: &o.BhVectorsV1, bpfMapBhRulesV1: &o.BhRulesV1,
		bpfMapBhRemotesV1: &o.BhRemotesV1, bpfMapBhVtepsV1: &o.BhVtepsV1,
		bpfMapBhPlacesV1: &o.BhPlacesV1, bpfMapBhBackendsV1: &o.BhBackendsV1, bpfMapBhStandingV1: &o.BhStandingV1,
	}
}

// sized reads the BPF object and gives the tables that grow the room that they have: what is pinned has grown before.
func (a *Applier) sized() (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read the BPF object: %w", err)
	}
	for _, m := range spec.Maps {
		if a.most > 0 && m.Type != ebpf.RingBuf {
			m.MaxEntries = min(m.MaxEntries, a.most)
		}
	}
	for name := range growing(&a.objs) {
		m := spec.Maps[name]
		m.MaxEntries = min(m.MaxEntries, a.firstRoom)
		pinned, err := ebpf.LoadPinnedMap(a.pins.mapFile(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		m.MaxEntries = pinned.MaxEntries()
		if err := pinned.Close(); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

// full lists the tables that refused an entry for want of room.
func (a *Applier) full() (out []string) {
	for _, t := range a.roomy() {
		if t.isFull() {
			out = append(out, t.called())
		}
	}
	return out
}

func (a *Applier) roomy() []roomy {
	return slices.Concat(a.policies.t.all(), a.remotes.t.all(), a.balance.t.all())
}

// grow makes room in the tables that are full, and tells whether there is any now. What follows has to be a sync.
func (a *Applier) grow() (bool, error) {
	spec, err := loadBpf()
	if err != nil {
		return false, fmt.Errorf("read the BPF object: %w", err)
	}
	full, grows := a.full(), map[string]bool{}
	for name, slot := range growing(&a.objs) {
		m, had := spec.Maps[name], (*slot).MaxEntries()
		if had >= m.MaxEntries || !slices.Contains(full, name) {
			continue
		}
		grows[name] = true
		m.MaxEntries = min(growth*had, m.MaxEntries)
		a.log.Info("a table of the switch is made larger", "map", name, "entries", m.MaxEntries)
	}
	if len(grows) == 0 {
		return false, nil
	}
	stay := map[string]*ebpf.Map{}
	for name, m := range mapsOf(&a.objs) {
		if grows[name] {
			spec.Maps[name].Pinning = ebpf.PinNone // the old one has the pin until this one is there
		} else {
			stay[name], spec.Maps[name].MaxEntries = m, m.MaxEntries()
		}
	}
	var next bpfObjects
	if next.bpfMaps, next.BhSweep, err = loadMaps(spec, &ebpf.CollectionOptions{MapReplacements: stay}); err != nil {
		return false, explainLoad(err, a.pins.maps())
	}
	var inUse []string
	for name, slot := range programsOf(&a.objs) {
		if *slot != nil {
			inUse = append(inUse, name)
		}
	}
	if err := loadPrograms(spec, &next, inUse); err != nil {
		return false, errors.Join(explainLoad(err, a.pins.maps()), closeObjects(&next))
	}
	for _, t := range a.roomy() {
		if !grows[t.called()] {
			continue
		}
		if err := t.copyTo(*growing(&next)[t.called()]); err != nil {
			return false, errors.Join(err, closeObjects(&next))
		}
	}
	return true, a.take(&next, grows)
}

// take puts the programs and the larger tables of next in the place of those in use. The ports keep the old programs, and those the old
// tables, until the sync that follows has moved them over.
func (a *Applier) take(next *bpfObjects, grows map[string]bool) error {
	var errs []error
	for name, slot := range growing(&a.objs) {
		if !grows[name] {
			continue
		}
		fresh := growing(next)[name]
		*slot, *fresh = *fresh, *slot
		errs = append(errs, (*fresh).Unpin(), (*slot).Pin(a.pins.mapFile(name)))
		a.writes++
	}
	for name, slot := range programsOf(&a.objs) {
		fresh := programsOf(next)[name]
		if *fresh == nil {
			continue
		}
		*slot, *fresh = *fresh, *slot
		info, err := (*slot).Info()
		if err != nil {
			errs = append(errs, fmt.Errorf("ask about program %s: %w", name, err))
			continue
		}
		a.ids[name], _ = info.ID()
	}
	a.objs.BhSweep, next.BhSweep = next.BhSweep, a.objs.BhSweep
	errs = append(errs, closeObjects(next)) // copies of the maps that stay, the old programs, the old tables

	// As after a start: what is in the kernel is read, and compared with the plan. Some of what was to change may be there already.
	a.whole = true
	epoch := a.policies.setEpoch
	a.mirror()
	a.policies.changed, a.policies.setEpoch = true, epoch+1
	a.listed, a.applied, a.byIndex = false, map[plan.PortID]*portState{}, map[uint32]plan.PortID{}
	if a.offload != nil {
		errs = append(errs, a.offload.close())
		a.offload = nil
		errs = append(errs, a.openOffload(true))
	}
	return errors.Join(errs...)
}

// moveOver has the ports run this process's programs before anything changes, if the tables have all that the old ones look for. So it
// is after tables have grown, also when the daemon was killed in the middle of that and this one goes on.
func (a *Applier) moveOver(w *wanted) {
	if a.listed || !a.whole || a.shadow != nil {
		return
	}
	for _, s := range w.states {
		if !a.tables.ports.has(s.index) {
			continue // no port yet
		}
		if _, err := a.attach(s); err != nil {
			a.log.Debug("move a port to the new program: it is tried again", "device", s.device, "err", err)
		}
	}
}
