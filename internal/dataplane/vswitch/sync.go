package vswitch

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Sync lists what is in the kernel, compares it with the plan and writes the
// differences. It reports as drift what this process had applied and finds changed. Ports
// whose device is missing come back as errors; the others are served.
func (a *Applier) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	drift, err := a.sync(ctx, p)
	return drift, a.makeRoom(ctx, p, err)
}

// makeRoom goes on after an application that may have failed because a table was full.
func (a *Applier) makeRoom(ctx context.Context, p *plan.Plan, err error) error {
	for err != nil && len(a.full()) > 0 {
		if room, gerr := a.grow(); gerr != nil || !room {
			return errors.Join(err, gerr)
		}
		_, err = a.sync(ctx, p)
	}
	return err
}

func (a *Applier) sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	var errs []error
	missing, err := a.ensurePins()
	if err != nil {
		return nil, err
	}
	if err := a.begin(); err != nil {
		return nil, err
	}
	if err := a.list(); err != nil {
		return nil, err
	}
	w, werrs := a.wantAll(p)
	errs = append(errs, werrs...)
	a.moveOver(w)
	drift := a.compare(w, missing)
	errs = append(errs, a.servePending(p, nil))
	for network, sw := range p.Switches {
		if err := a.policies.setSwitch(sw, true); err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(network), Err: err})
		}
	}

	// What is not wanted goes first: a removed port is cut off before anything else.
	errs = append(errs, a.tables.near.keep(w.ports), a.tables.ports.prune(w.ports), a.tables.macs.prune(w.macs), a.tables.addrs.prune(w.addrs), a.tables.rates.prune(w.rates),
		a.tables.steers.prune(w.steers),
		a.tables.lans.prune(w.lans))
	a.carryFlows()
	errs = append(errs, a.sweep())
	attached, werrs := a.writeAll(ctx, p, w)
	errs = append(errs, werrs...)
	drift = append(drift, attached...)
	errs = append(errs, a.pruneRest(p, w, len(werrs) == 0)...)
	if a.listed { // else it was left by a run before
		drift = append(drift, changedMaps(a.remotes.differing(a.tables))...)
		drift = append(drift, changedMaps(a.balance.differ)...)
	}
	errs = append(errs, a.syncOverlays(p), a.syncBalancers(p))
	a.listed = true
	release := a.holdRules(w)
	errs = append(errs, a.settle(), a.serveOffload(p))
	release()
	err = errors.Join(errs...)
	a.dirty, a.whole = err != nil, a.whole || err == nil
	return drift, err
}

// holdRules keeps the lists of ports that were not come to, because the sync was cut or something failed: those ports may have them in
// the kernel, from a run before.
func (a *Applier) holdRules(w *wanted) (release func()) {
	var held []listKey
	for id, s := range w.states {
		if a.applied[id] != s {
			held = append(held, s.out, s.in)
		}
	}
	a.policies.use(held...)
	return func() { a.policies.drop(held...) }
}

func (a *Applier) list() error {
	if _, err := a.tables.list(); err != nil {
		return err
	}
	if err := a.tables.near.list(a.tables.ports.have); err != nil {
		return err
	}
	a.groups = readGroups(a.tables)
	if _, err := listAll[mirror](a.tables.drops, a.tables.groups); err != nil {
		return err
	}
	if err := a.remotes.list(); err != nil {
		return err
	}
	if err := a.balance.list(); err != nil {
		return err
	}
	changed, err := a.policies.t.list()
	if err != nil {
		return err
	}
	a.policies.changed = a.policies.changed || a.listed && changed
	return a.policies.rewrite()
}

// writeAll writes every port's entries, then attaches, then lets it be reached by
// broadcast.
func (a *Applier) writeAll(ctx context.Context, p *plan.Plan, w *wanted) (drift []plan.Drift, errs []error) {
	for id, s := range w.states {
		if err := ctx.Err(); err != nil {
			return drift, append(errs, err)
		}
		old := a.applied[id]
		if err := a.write(s); err != nil {
			errs = append(errs, portError(id, "%w", err))
			continue
		}
		found, err := a.attach(s)
		if err != nil {
			errs = append(errs, portError(id, "%w", err))
			continue
		}
		if found != "" && old != nil && old.index == s.index {
			drift = append(drift, plan.Drift{Object: "port " + s.device, ID: string(id), Found: found})
		}
		a.remember(s)
	}
	for sw, members := range w.groups {
		if err := a.groups.reconcile(sw, members); err != nil {
			errs = append(errs, fmt.Errorf("broadcast list of switch %d: %w", sw, err))
		}
	}
	for network, sw := range p.Switches {
		if err := a.groups.setOwn(sw.Number, w.index(sw.ResolverPort), w.index(sw.UplinkPort)); err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(network), Err: err})
		}
		if _, ok := w.groups[sw.Number]; !ok {
			w.groups[sw.Number] = nil // a switch without ports is still one
		}
	}
	return drift, errs
}

// index of a port's device, 0 for one that is not there.
func (w *wanted) index(id plan.PortID) uint32 {
	if s := w.states[id]; s != nil {
		return s.index
	}
	return 0
}

// pruneRest removes what no port has any more: member slots, counters, attachments,
// memory of ports, and (only when all went well) pins of other versions.
func (a *Applier) pruneRest(p *plan.Plan, w *wanted, whole bool) []error {
	errs := []error{a.groups.prune(w.groups)}
	a.groups = readGroups(a.tables)
	errs = append(errs, a.tables.near.keepCounters(w.counts))
	for index := range a.tables.stats.have {
		if !w.counts[index] {
			errs = append(errs, a.tables.stats.delete(index))
		}
	}
	for k := range a.tables.drops.have {
		if !w.counts[k.Port] && k.Port != 0 {
			errs = append(errs, a.tables.drops.delete(k))
		}
	}
	for k := range a.tables.groups.have {
		if _, ok := w.ports[k.Sw]; !ok {
			errs = append(errs, a.tables.groups.delete(k))
		}
	}
	gone, err := a.att.prune(w.hooks)
	a.writes += len(gone)
	errs = append(errs, err)
	for id := range a.applied {
		if _, ok := p.Ports[id]; !ok || w.states[id] == nil {
			a.forget(id)
		}
	}
	for index := range a.tables.shares.have {
		if _, ok := w.ports[index]; !ok {
			errs = append(errs, a.tables.shares.delete(index))
		}
	}
	if whole && err == nil {
		errs = append(errs, a.pruneRules(p))
		a.carryFlows() // what was opened while ports were moved to this version's program
		errs = append(errs, a.pruneOldPins())
	}
	return errs
}

// write puts a port's entries in place. Counters first: the program counts only where
// there is an entry.
func (a *Applier) write(s *portState) error {
	if err := a.ensureStats(s.counted()); err != nil {
		return err
	}
	if err := a.ensureShare(s.index); err != nil {
		return err
	}
	for _, list := range []listKey{s.out, s.in} {
		if err := a.policies.write(list); err != nil {
			return err
		}
	}
	for k, v := range s.rates {
		if err := a.setRate(k, v); err != nil {
			return err
		}
	}
	for k, v := range s.steers {
		if had, ok := a.tables.steers.have[k]; ok && had != v {
			a.policies.changed = true
		}
		if err := a.tables.steers.set(k, v); err != nil {
			return err
		}
	}
	for k, v := range s.lans {
		if err := a.tables.lans.set(k, v); err != nil {
			return err
		}
	}
	had, ok := a.tables.ports.have[s.index]
	if ok && had != s.entry {
		a.policies.changed = true
	}
	if !ok || had != s.entry {
		if err := a.tables.near.forget(s.index); err != nil {
			return err
		}
	}
	if err := a.tables.ports.set(s.index, s.entry); err != nil {
		return err
	}
	if err := a.tables.near.copy(s.index, s.entry); err != nil {
		return err
	}
	for k, v := range s.addrs {
		if _, ok := a.tables.addrs.have[k]; !ok && a.remotes.reach(k) { // its flows go to another host
			a.policies.changed = true
		}
		if err := a.tables.addrs.set(k, v); err != nil {
			return err
		}
	}
	for k, v := range s.macs {
		if err := a.tables.macs.set(k, v); err != nil {
			return err
		}
	}
	return nil
}

func (a *Applier) ensureStats(index uint32) error {
	if err := a.tables.near.count(index); err != nil {
		return fmt.Errorf("give counters their place: %w", err)
	}
	if a.tables.stats.have[index] {
		return nil
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	if err := a.tables.stats.add(index, make([]bpfStats, cpus)); err != nil {
		return fmt.Errorf("make counters: %w", err)
	}
	return nil
}

func (a *Applier) ensureShare(index uint32) error {
	if err := a.tables.shares.add(index, &bpfShare{}); err != nil {
		return fmt.Errorf("make the share of the flow table: %w", err)
	}
	return nil
}

func (a *Applier) attach(s *portState) (found string, err error) {
	if err := a.loadFor(a.spotsOf(s)); err != nil {
		return "", err
	}
	for _, h := range a.spotsOf(s) {
		if a.adopt(h) {
			a.writes++
			found = "program not pinned"
			continue
		}
		instead, err := a.att.ensure(h)
		if instead != "" {
			a.writes++
			found = instead
		}
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

func (a *Applier) remember(s *portState) {
	if old := a.applied[s.id]; old != nil {
		a.policies.drop(old.out, old.in)
		a.policies.changed = a.policies.changed || !old.equal(s)
	}
	a.policies.use(s.out, s.in)
	a.applied[s.id] = s
	a.byIndex[s.index], a.byIndex[s.counted()] = s.id, s.id
}

// compare finds what this process had put in place and somebody changed since. What it
// never applied is not drift but work.
func (a *Applier) compare(w *wanted, missingPins []string) []plan.Drift {
	var out []plan.Drift
	if a.listed {
		for _, name := range missingPins {
			out = append(out, plan.Drift{Object: "pin " + name, Found: "missing"})
		}
	}
	for id, s := range w.states {
		old := a.applied[id]
		if old == nil || !old.equal(s) {
			continue
		}
		for _, name := range a.differs(s) {
			out = append(out, plan.Drift{Object: "map " + name, ID: string(id), Found: "entry missing or changed"})
		}
	}
	return append(out, a.foreign(w)...)
}

// differs names the maps that do not hold what the port has in them.
func (a *Applier) differs(s *portState) []string {
	var out []string
	if e, ok := a.tables.ports.have[s.index]; !ok || e != s.entry {
		out = append(out, bpfMapBhPortsV3)
	}
	if !holds(a.tables.macs.have, s.macs) {
		out = append(out, bpfMapBhMacsV1)
	}
	if !holds(a.tables.addrs.have, s.addrs) {
		out = append(out, bpfMapBhAddrsV1)
	}
	if !holds(a.tables.rates.have, s.rates) {
		out = append(out, bpfMapBhRatesV1)
	}
	if !holds(a.tables.steers.have, s.steers) {
		out = append(out, bpfMapBhSteerV2)
	}
	if !holds(a.tables.lans.have, s.lans) {
		out = append(out, bpfMapBhLansV1)
	}
	if !a.tables.stats.have[s.counted()] {
		out = append(out, bpfMapBhStatsV1)
	}
	if s.member && !a.groups.has(s.entry.Sw, s.dest) {
		out = append(out, bpfMapBhMembersV1)
	}
	own := a.tables.switches.have[s.entry.Sw]
	if s.kind == plan.PortResolver && own.Resolver != s.index || s.kind == plan.PortUplink && own.Uplink != s.index {
		out = append(out, bpfMapBhSwitchesV2)
	}
	return out
}

// changedMaps tells of maps that somebody has changed.
func changedMaps(names []string) (out []plan.Drift) {
	for _, name := range names {
		out = append(out, plan.Drift{Object: "map " + name, Found: "entries missing or changed"})
	}
	return out
}

func holds[K, V comparable](have, want map[K]V) bool {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			return false
		}
	}
	return true
}

// foreign finds entries that neither the plan nor anything we applied explains.
func (a *Applier) foreign(w *wanted) []plan.Drift {
	if !a.listed {
		return nil // left by a run that was killed
	}
	known := make(map[bpfMacKey]bool)
	knownAddr := make(map[bpfAddrKey]bool)
	for _, s := range a.applied {
		for k := range s.macs {
			known[k] = true
		}
		for k := range s.addrs {
			knownAddr[k] = true
		}
	}
	var out []plan.Drift
	note := func(name string, n int) {
		if n > 0 {
			out = append(out, plan.Drift{Object: "map " + name, Found: fmt.Sprintf("%d foreign entries", n)})
		}
	}
	note(bpfMapBhPortsV3, strangers(a.tables.ports.have, w.ports, func(k uint32) bool { _, ok := a.byIndex[k]; return ok }))
	note(bpfMapBhMacsV1, strangers(a.tables.macs.have, w.macs, func(k bpfMacKey) bool { return known[k] }))
	note(bpfMapBhAddrsV1, strangers(a.tables.addrs.have, w.addrs, func(k bpfAddrKey) bool { return knownAddr[k] }))
	return out
}

func strangers[K, V comparable](have, want map[K]V, known func(K) bool) int {
	n := 0
	for k := range have {
		if _, ok := want[k]; !ok && !known(k) {
			n++
		}
	}
	return n
}

// Check tells cheaply whether the kernel still holds what was last applied for this
// plan: false asks for a Sync. It reads each map in a few batches and asks each device
// once, so it can be called a few times a second.
func (a *Applier) Check(ctx context.Context, p *plan.Plan) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.listed || a.dirty || len(a.applied) != portsOf(p) || !a.pinsExist() {
		return false, ctx.Err()
	}
	changed, err := a.tables.list()
	if err != nil {
		return false, err
	}
	if changed {
		a.dirty = true // the mirror has learnt the change: only Sync may forget it
		return false, nil
	}
	hooks := make([]spot, 0, len(a.applied))
	for id, s := range a.applied {
		if p.Ports[id] == nil {
			return false, nil
		}
		hooks = append(hooks, a.spotsOf(s)...)
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	return a.att.attached(hooks)
}
