package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A network on a NIC must not cut the host off. Who is on the NIC's link is asked before it is
// made and after, and if those who answered before do not any more, it is undone at once. With
// a time to confirm it, that goes on until somebody says that all is well, and without that
// word it is undone too. The word that is missing is in the store, with the network: a daemon
// that dies meanwhile undoes it when it starts, and until then the programs at the NIC know the time.

// Reach is whom the host reaches by a NIC.
type Reach interface {
	// Neighbours lists who on its link is worth asking: routers, and others that were heard of.
	Neighbours(ctx context.Context, nic string) (routers, others []netip.Addr, err error)
	// Ask gives those who answer within a time. It returns as soon as all have.
	Ask(ctx context.Context, nic string, who []netip.Addr, within time.Duration) ([]netip.Addr, error)
}

const (
	// askBefore bounds the look at who is there; askAfter how long those may take to come back:
	// a switch outside may look at the link for a moment.
	askBefore, askAfter = 400 * time.Millisecond, 3 * time.Second
	// askEvery is the time between two looks while a network waits to be confirmed.
	askEvery = 2 * time.Second
	// leastConfirm and mostConfirm bound the time to confirm.
	leastConfirm, mostConfirm = time.Second, 24 * time.Hour
)

// CreateNetworkFor makes a network on a NIC that is undone again unless somebody confirms it within a time.
func (e *Engine) CreateNetworkFor(ctx context.Context, doc hcn.HostComputeNetwork, within time.Duration) (api.Tentative, error) {
	if within < leastConfirm || within > mostConfirm {
		return api.Tentative{}, api.Errorf(api.KindInvalid, "confirmWithin: %s is not between %s and %s", within, leastConfirm, mostConfirm)
	}
	if !plan.OnLAN(doc.Type) {
		return api.Tentative{}, api.Errorf(api.KindInvalid, "confirmWithin: a network of type %s changes no NIC, so there is nothing to confirm", doc.Type).
			Hint("leave it out")
	}
	if doc.Macvlan() {
		return api.Tentative{}, api.Errorf(api.KindInvalid, "confirmWithin: a network of macvlan devices changes nothing at its NIC, so there is nothing to confirm").
			Hint("leave it out")
	}
	made, err := e.createNetwork(ctx, "", doc, within)
	if err != nil {
		return api.Tentative{}, err
	}
	out := api.Tentative{Network: made}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if n := e.st.networks[made.ID]; n != nil && n.Confirm != nil {
		out.ConfirmBy = n.Confirm.By
	}
	return out, nil
}

// confirmation is what a new network waits for. There is one at a time: the programs know one.
func (t *txn) confirmation(within time.Duration) (*plan.Confirmation, error) {
	if within == 0 {
		return nil, nil
	}
	if err := t.waiting(""); err != nil {
		return nil, err
	}
	return &plan.Confirmation{By: time.Now().Add(within).UTC().Round(0)}, nil
}

// Unconfirmed lists what waits to be confirmed.
func (e *Engine) Unconfirmed() []api.Unconfirmed {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var out []api.Unconfirmed
	for id, n := range e.st.networks {
		if n.Confirm != nil {
			out = append(out, api.Unconfirmed{Network: id, Name: n.Doc.Name, NIC: n.Uplink, By: n.Confirm.By})
		}
	}
	for id, ep := range e.st.endpoints {
		if n, c := e.st.networks[ep.Doc.HostComputeNetwork], waitsFor(ep); c != nil && n != nil {
			out = append(out, api.Unconfirmed{Network: n.Doc.ID, Endpoint: id, Name: cmp.Or(ep.Doc.Name, string(id)), NIC: n.Uplink, By: c.By})
		}
	}
	return out
}

// Confirm keeps what waits for it: a network, or an endpoint that was attached, which a container's name or ID stands for, too.
func (e *Engine) Confirm(ctx context.Context, ref string) error {
	var n *plan.Network
	var attached hcn.GUID
	rev, err := e.commitOr(ctx, func(t *txn) error {
		var err error
		if id, ok := t.confirmAttached(ref); ok {
			attached = id
			return nil
		}
		if n, err = t.st.findNetwork(ref); err != nil {
			return err
		}
		if n.Confirm == nil {
			return api.Errorf(api.KindConflict, "network %s does not wait to be confirmed", n.Doc.Name).Hint("bulkhead network ls")
		}
		row := *n
		row.Confirm = nil
		t.putNetwork(row.Doc.ID, &row)
		return nil
	})
	if err != nil {
		return err
	}
	if attached != "" {
		e.event("endpoint", "confirm", string(attached), ref, nil)
		if err := e.applied(ctx, rev, portObject(attached)); err != nil {
			return api.Errorf(api.KindInternal, "confirm endpoint %s: it is confirmed, and the switch follows: %w", attached, err)
		}
		return nil
	}
	e.event("network", "confirm", string(n.Doc.ID), n.Doc.Name, nil)
	if err := e.applied(ctx, rev, networkObjects(n.Doc.ID)...); err != nil {
		return api.Errorf(api.KindInternal, "confirm network %s: it is confirmed, and the switch follows: %w", n.Doc.Name, err)
	}
	return nil
}

// unconfirmed undoes at a start what nobody confirmed while the daemon was there to ask.
func (e *Engine) unconfirmed() error {
	_, err := e.commit(func(t *txn) error {
		for id, n := range maps.Clone(t.st.networks) {
			if n.Confirm != nil {
				e.log.Warn("a network is undone: the daemon ended before it was confirmed", "network", n.Doc.Name, "nic", n.Uplink)
				t.dropNetwork(id)
			}
		}
		t.dropUnconfirmed()
		return nil
	})
	return err
}

// reach is who answered by a NIC before it was changed.
type reach struct {
	e               *Engine
	nic             string
	routers, others []netip.Addr
}

// lookAround finds out who is there. Nobody, or nobody to ask, is an answer too.
func (e *Engine) lookAround(ctx context.Context, nic string) *reach {
	r := &reach{e: e, nic: nic}
	if e.opt.Reach == nil || nic == "" {
		return r
	}
	routers, others, err := e.opt.Reach.Neighbours(ctx, nic)
	var there []netip.Addr
	if err == nil && len(routers)+len(others) > 0 {
		there, err = e.opt.Reach.Ask(ctx, nic, slices.Concat(routers, others), askBefore)
	}
	if err != nil {
		e.log.Warn("find out who is there", "nic", nic, "error", err)
	}
	r.routers, r.others = both(routers, there), both(others, there)
	return r
}

// both are those that are in two lists.
func both(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(x netip.Addr) bool { return !slices.Contains(b, x) })
}

// lost says who does not answer any more, "" while the host can be reached. Routers all have
// to; of others, who may have gone to sleep meanwhile, one is enough.
func (r *reach) lost(ctx context.Context, within time.Duration) string {
	who := r.routers
	if len(who) == 0 {
		who = r.others
	}
	if len(who) == 0 {
		return ""
	}
	now, err := r.e.opt.Reach.Ask(ctx, r.nic, who, within)
	if err != nil {
		r.e.log.Warn("ask who is still there", "nic", r.nic, "error", err)
		return ""
	}
	if len(now) > 0 && (len(r.routers) == 0 || len(now) == len(who)) {
		return ""
	}
	var gone []string
	for _, w := range who {
		if !slices.Contains(now, w) {
			gone = append(gone, w.String())
		}
	}
	return strings.Join(gone, ", ")
}

// undoNetwork undoes a network that has cut the host off or that nobody confirmed.
func (e *Engine) undoNetwork(ctx context.Context, id hcn.GUID, name, why string, still func(*plan.Network) bool) {
	undone := false
	e.undo(ctx, "network", string(id), func(t *txn) {
		if n := t.st.networks[id]; n != nil && still(n) {
			t.dropNetwork(id)
			undone = true
		}
	})
	if undone {
		e.log.Warn("a network is undone", "network", name, "reason", why)
		e.event("network", "undo", string(id), name, map[string]string{"reason": why})
	}
}

// keepWatch undoes a network unless it is confirmed in time and the host can be reached up to then.
func (e *Engine) keepWatch(id hcn.GUID, name string, by time.Time, r *reach) {
	waits := func(s *state) bool { n := s.networks[id]; return n != nil && n.Confirm != nil }
	e.watchUnconfirmed(waits, by, r, func(ctx context.Context, why string) {
		e.undoNetwork(ctx, id, name, why, func(n *plan.Network) bool { return n.Confirm != nil })
	})
}

// watchUnconfirmed undoes what waits, unless it is confirmed in time and the host can be reached up to then.
func (e *Engine) watchUnconfirmed(waits func(*state) bool, by time.Time, r *reach, undo func(ctx context.Context, why string)) {
	e.ctrs.spawn(func() {
		ctx := e.ctrs.runCtx()
		misses := 0
		for {
			t := time.NewTimer(min(askEvery, time.Until(by)))
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			e.mu.RLock()
			settled := !waits(e.st)
			e.mu.RUnlock()
			if settled {
				return
			}
			if !time.Now().Before(by) {
				undo(ctx, "nobody confirmed it in time")
				return
			}
			gone := r.lost(ctx, min(askAfter, max(time.Until(by), 0)))
			if misses++; gone == "" {
				misses = 0
			}
			if misses >= 2 && ctx.Err() == nil {
				undo(ctx, unreachable(r.nic, gone))
				return
			}
		}
	})
}

func unreachable(nic, gone string) string {
	return fmt.Sprintf("%s, who answered by %s before, does not any more", gone, nic)
}

type wayKey struct{}

// ByWay notes that an operation was asked for by a connection to an address of this host.
func ByWay(ctx context.Context, addr netip.Addr) context.Context {
	return context.WithValue(ctx, wayKey{}, addr.Unmap())
}

// checkWay refuses a network on the NIC that carries the connection by which it is asked for: who would be cut off could not undo it.
// Only a new one gets there: no change moves a network to another NIC, or makes a switch of macvlan devices (checkUplinkStays).
func checkWay(ctx context.Context, n *plan.Network, f *plan.Facts) error {
	way, ok := ctx.Value(wayKey{}).(netip.Addr)
	nic := f.NIC(n.Uplink)
	if !ok || nic == nil || !plan.OnLAN(n.Doc.Type) || n.Doc.Macvlan() ||
		!slices.ContainsFunc(nic.Addrs, func(p netip.Prefix) bool { return p.Addr() == way }) {
		return nil
	}
	return hcn.Errorf(hcn.ErrRequestUnsupported, "network %q: %s, with the address %s, carries the connection to this API: let it be undone unless it is confirmed "+
		"(--confirm-within, POST /v1/networks), or create it on the host itself", n.Doc.Name, nic.Name, way)
}
