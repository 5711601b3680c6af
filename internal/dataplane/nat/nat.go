package nat

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"sigs.k8s.io/knftables"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Config is what an Applier needs from its surroundings.
type Config struct {
	// Netns is the path of the host's network namespace; "" is the one the process runs in.
	Netns string
	// Log may be nil.
	Log *slog.Logger
}

// Applier makes the host's netfilter match a plan. Its methods may be called from several goroutines; Sync and Update
// take turns.
type Applier struct {
	log   *slog.Logger
	netns *os.File // nil: the process's own namespace
	k     kernel
	// ports are the reservations of published ports.
	ports *Reservations
	// commits remembers the generations that we made, for the watch.
	commits commits
	// tracing holds the one trace that may go on.
	tracing chan struct{}

	mu sync.Mutex
	// applied is what the sets hold if nobody else touched them, nil before the first Sync.
	applied elements
	// pending is drift that an Update met; the next Sync reports it.
	pending []plan.Drift
	// wide are the networks whose addresses may be somebody's beyond the switch: on a LAN, or on other hosts.
	wide map[hcn.GUID]bool
}

// New makes an Applier. It touches nothing yet.
func New(c Config) (*Applier, error) {
	a := &Applier{log: c.Log, wide: map[hcn.GUID]bool{}, tracing: make(chan struct{}, 1)}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if c.Netns != "" {
		f, err := os.Open(c.Netns)
		if err != nil {
			return nil, fmt.Errorf("open the host's network namespace: %w", err)
		}
		a.netns, a.k.netns = f, int(f.Fd())
	}
	a.k.in = a.inNetns
	a.ports = newReservations(a.inNetns)
	return a, nil
}

// Close releases the port reservations and what New opened. The table stays: traffic does not depend on the daemon.
func (a *Applier) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.commits.mu.Lock()
	defer a.commits.mu.Unlock()
	errs := []error{a.ports.close(), a.k.close(), a.commits.close()}
	if a.netns != nil {
		errs = append(errs, a.netns.Close())
	}
	return errors.Join(errs...)
}

// Reservations are the host ports held by sockets of ours.
func (a *Applier) Reservations() *Reservations { return a.ports }

// Sync lists our table, compares and writes the difference in one transaction: with a table that is missing or was
// changed, all of it. It reports what others had changed since the last call.
func (a *Applier) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.wide)
	for id, sw := range p.Switches {
		a.noteWide(id, sw)
	}
	want, errs := planElements(p)
	have, err := a.reconcile(ctx, want)
	drift := a.pending
	if err != nil {
		return drift, errors.Join(append(errs, err)...)
	}
	a.pending = nil
	// What the kernel held beyond the plan may have been used by connections, whoever put it there.
	gone, come := have.elements.without(want), want.without(have.elements)
	all := func(string) bool { return true }
	errs = append(errs, a.flush(append(flushesOf(gone, come), flushesOfOutbound(gone, come, all)...))...)
	drift = append(drift, a.ports.follow(p)...)
	return drift, errors.Join(append(errs, a.tidyTrace())...)
}

// reconcile makes the table hold what is wanted, and returns what it held before. What others had changed is added to
// the pending drift.
func (a *Applier) reconcile(ctx context.Context, want elements) (have *listing, err error) {
	// Somebody may change the table between the listing and the write, which then fails as a whole.
	for range 3 {
		if have, err = a.k.list(); err != nil {
			return nil, err
		}
		drift, who := a.drift(have), a.commits.blame()
		for i := range drift {
			drift[i].By = who
		}
		if have.exists && have.seal == seal(have.static) {
			err = a.k.write(have.elements.without(want), want.without(have.elements))
		} else {
			err = a.install(ctx, want, have.exists)
		}
		if err == nil {
			a.applied = want
			a.pending = append(a.pending, drift...)
			return have, nil
		}
	}
	return nil, err
}

// seal is the comment that vouches for a table: the rules this program would write, and how the kernel lists them.
func seal(static string) string {
	text := sha256.Sum256([]byte(rulesetText()))
	return hex.EncodeToString(text[:12]) + "-" + static
}

// sameText tells whether a seal was made for the rules that this program would write.
func sameText(s string) bool {
	want := seal("")
	return len(s) > len(want) && s[:len(want)] == want
}

// drift lists what others changed. Before the first Sync there is nothing to compare elements with, and a table that
// is missing or from another version is nobody's fault.
func (a *Applier) drift(have *listing) []plan.Drift {
	object := "table inet " + TableName
	switch {
	case !have.exists && a.applied != nil:
		return []plan.Drift{{Object: object, Found: "missing"}}
	case have.exists && have.seal != seal(have.static) && (a.applied != nil || sameText(have.seal)):
		return []plan.Drift{{Object: object, Found: "changed"}}
	case !have.exists || a.applied == nil:
		return nil
	}
	var out []plan.Drift
	for k, e := range a.applied.without(have.elements) {
		found := "missing"
		if _, ok := have.elements[k]; ok {
			found = "changed"
		}
		out = append(out, plan.Drift{Object: describeElement(k, e), ID: e.owner, Found: found})
	}
	for k, e := range have.elements.without(a.applied) {
		if _, ok := a.applied[k]; !ok {
			out = append(out, plan.Drift{Object: describeElement(k, e), Found: "not ours"})
		}
	}
	return out
}

// install writes the whole table by nft, then seals it.
func (a *Applier) install(ctx context.Context, want elements, existed bool) error {
	kept, err := a.k.readCounters()
	if err != nil {
		return err
	}
	err = a.inNetns(func() error {
		nft, err := knftables.New(knftables.InetFamily, TableName, knftables.NoObjectCommentEmulation)
		if err != nil {
			return err
		}
		tx := nft.NewTransaction()
		buildTable(tx, want, kept, existed)
		return a.commit(func() error { return nft.Run(ctx, tx) })
	})
	if err != nil {
		return fmt.Errorf("write table inet %s: %w", TableName, err)
	}
	return a.sealTable()
}

// sealTable vouches for the table as it is now. Somebody who changes it between nft's commit and the listing is not
// noticed by this; the window is the time of one listing.
func (a *Applier) sealTable() error {
	now, err := a.k.list()
	if err != nil {
		return err
	}
	return a.commit(func() error { return a.k.writeSeal(seal(now.static)) })
}

// Update writes the elements of the objects in d, and nothing else.
func (a *Applier) Update(ctx context.Context, p *plan.Plan, d *plan.Delta) error {
	a.mu.Lock()
	synced := a.applied != nil
	a.mu.Unlock()
	if !synced {
		_, err := a.Sync(ctx, p)
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, c := range d.Switches {
		a.noteWide(id, c.New)
	}
	was, is, errs := deltaElements(d)
	errs = append(errs, a.refuseTaken(was, is)...)
	a.ports.releaseGone(d)
	refused, taken := a.ports.takeNew(d)
	errs = append(errs, taken...)
	for k := range refused {
		if _, had := was[k]; !had { // a port that is published already stays so, as after a restart
			delete(is, k)
		}
	}
	gone := was.without(is)
	del, add := a.changes(was, is)
	if len(del) > 0 || len(add) > 0 {
		if err := a.k.write(del, add); err != nil {
			// Somebody changed the sets meanwhile: what is there has to be listed.
			a.log.Info("the table differs from what was written", "err", err)
			want, _ := planElements(p) // its errors are those of the delta, or were told before
			for k := range refused {
				delete(want, k)
			}
			if _, err := a.reconcile(ctx, want); err != nil {
				a.applied = nil // the next one lists what is there, and lets no port have an address that elements of another lead to
				return errors.Join(append(errs, err)...)
			}
		} else {
			a.remember(del, add)
		}
	}
	stayed := func(owner string) bool {
		c, ok := d.Ports[plan.PortID(owner)]
		return ok && c.Old != nil && c.New != nil
	}
	errs = append(errs, a.flush(slices.Concat(flushesOf(gone, add), flushesOfGone(d), flushesOfOutbound(gone, add, stayed)))...)
	return errors.Join(errs...)
}

// noteWide takes down whether a network is one of them; sw is nil when it is gone.
func (a *Applier) noteWide(id hcn.GUID, sw *plan.Switch) {
	if sw != nil && sw.Mode != plan.ModeNAT && sw.Mode != plan.ModeInternal {
		a.wide[id] = true
	} else {
		delete(a.wide, id)
	}
}

// Cut deletes the elements of the load balancers that d takes away, and of the ports in the host's own stack or on a network that is wider
// than this host. Those of other ports lead to the switch, which lets nothing through any more: they are left to the Update, as entries of
// conntrack are, which comes before any other port can get the address.
func (a *Applier) Cut(_ context.Context, d *plan.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	del := elements{}
	for _, c := range d.Ports {
		if c.New == nil && (c.Old.VNIC.Namespace == "" || a.wide[c.Old.Network]) {
			_ = del.addPort(c.Old) // a conflict in there was told when it was new
		}
	}
	for _, c := range d.Balancers {
		if c.New == nil {
			_ = del.addBalancer(c.Old)
		}
	}
	for k, e := range del {
		if have, ok := a.applied[k]; !ok || have.owner != e.owner {
			delete(del, k)
		}
	}
	if len(del) == 0 {
		return nil
	}
	if err := a.k.write(del, nil); err != nil {
		return fmt.Errorf("cut off %d elements: %w", len(del), err)
	}
	a.remember(del, nil)
	return nil
}

func (a *Applier) remember(del, add elements) {
	for k := range del {
		delete(a.applied, k)
	}
	maps.Copy(a.applied, add)
}

// deltaElements are the elements of the changed objects, before and after.
func deltaElements(d *plan.Delta) (was, is elements, errs []error) {
	was, is = elements{}, elements{}
	for _, c := range d.Switches {
		was.addSwitch(c.Old)
		is.addSwitch(c.New)
	}
	for _, id := range slices.Sorted(maps.Keys(d.Ports)) {
		c := d.Ports[id]
		_ = was.addPort(c.Old) // a conflict in there was told when it was new
		if err := is.addPort(c.New); err != nil {
			errs = append(errs, portError(id, err))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(d.Balancers)) {
		c := d.Balancers[id]
		_ = was.addBalancer(c.Old)
		if err := is.addBalancer(c.New); err != nil {
			errs = append(errs, elem{kind: kindBalancer, owner: string(id)}.error(err))
		}
	}
	return was, is, errs
}

// refuseTaken takes out of is what an unchanged port or load balancer holds, and out of was what another one won.
func (a *Applier) refuseTaken(was, is elements) []error {
	var errs []error
	for k, e := range is {
		have, ok := a.applied[k]
		if _, changing := was[k]; !ok || changing || e.kind != kindPort && e.kind != kindBalancer || have.owner == e.owner {
			continue
		}
		delete(is, k)
		errs = append(errs, e.error(fmt.Errorf("publish %v: published to %s already", e.keyText, have.holder())))
	}
	for k, e := range was {
		if have, ok := a.applied[k]; ok && have.owner != e.owner {
			delete(was, k)
		}
	}
	return errs
}

// Reset removes our table and releases all reservations. Connections that were translated end with it.
func (a *Applier) Reset(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	have, err := a.k.list()
	if err != nil {
		return err
	}
	if err := errors.Join(a.tidyTrace(), a.commit(a.k.deleteTable)); err != nil {
		return err
	}
	errs := a.flush(flushesOf(have.elements, nil))
	a.applied = nil
	a.ports.releaseAll()
	return errors.Join(errs...)
}

// Leftovers lists what Reset would remove from the kernel.
func (a *Applier) Leftovers(context.Context) ([]string, error) {
	c, err := a.k.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var out []string
	for _, name := range []string{TableName, TraceTable} {
		exists, _, err := checksum(c, name)
		if err != nil {
			return nil, err
		}
		if exists {
			out = append(out, "table inet "+name)
		}
	}
	return out, nil
}

// Counters are the drop counters by reason, and nothing while there is no table.
func (a *Applier) Counters() (map[string]Counter, error) { return a.k.readCounters() }
