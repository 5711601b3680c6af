package engine

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// farewell is an endpoint that is gone and whose leases are to be given back. It is written with the change that deletes the
// endpoint, so that no crash loses it.
type farewell struct {
	Want LeaseWant // its Device is the NIC
}

var farewellTable = store.NewTable[farewell]("farewells")

const (
	// farewellAgain is the wait before a NIC that was not there is tried again.
	farewellAgain = 30 * time.Second
	farewellStep  = "farewell"
)

// bidFarewell notes the leases of an endpoint that is deleted, if a server is to know.
func (t *txn) bidFarewell(ep *plan.Endpoint) {
	n := t.st.networks[ep.Doc.HostComputeNetwork]
	if n == nil || !ep.Leased {
		return
	}
	w := leaseWant(ep, n)
	for _, st := range t.e.leases.of(ep.Doc.ID) {
		if _, has := w.Stored[st.Source]; !has && st.Pending != nil {
			if w.Stored == nil {
				w.Stored = map[plan.LeaseSource]plan.Lease{}
			}
			w.Stored[st.Source] = *st.Pending
		}
	}
	maps.DeleteFunc(w.Stored, func(src plan.LeaseSource, l plan.Lease) bool {
		return src == plan.LeaseRouter || len(l.Addrs) == 0 || l.Over(time.Now())
	})
	if len(w.Stored) == 0 {
		return
	}
	w.Device = n.Uplink
	t.putFarewell(ep.Doc.ID, &farewell{Want: w})
	t.after = append(t.after, t.e.leases.kickFarewell)
}

func (l *leaser) kickFarewell() {
	select {
	case l.farewell <- struct{}{}:
	default:
	}
}

func (t *txn) putFarewell(id hcn.GUID, row *farewell) {
	old := t.st.farewells[id]
	if old == nil && row == nil {
		return
	}
	set := func(row *farewell) {
		if row == nil {
			delete(t.st.farewells, id)
		} else {
			t.st.farewells[id] = row
		}
	}
	set(row)
	t.undo = append(t.undo, func() { set(old) })
	t.save = append(t.save, saveRow(farewellTable, false, string(id), row, old))
}

// sayFarewells gives leases back until ctx ends.
func (e *Engine) sayFarewells(ctx context.Context) {
	if e.opt.Leases == nil {
		return
	}
	again := time.NewTicker(farewellAgain)
	defer again.Stop()
	e.leases.kickFarewell() // those of the last run
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.leases.farewell:
		case <-again.C:
		}
		e.mu.RLock()
		rows, rev := maps.Clone(e.st.farewells), e.st.rev
		e.mu.RUnlock()
		if len(rows) == 0 {
			continue
		}
		// While their vNICs are there, somebody may still use the addresses.
		if err := e.applied(ctx, rev); err != nil {
			e.log.Warn("give leases back before the vNICs are known to be gone", "error", err)
		}
		for _, id := range slices.Sorted(maps.Keys(rows)) {
			if ctx.Err() == nil {
				e.sayFarewell(ctx, id, rows[id])
			}
		}
	}
}

func (e *Engine) sayFarewell(ctx context.Context, id hcn.GUID, row *farewell) {
	e.opt.Step(farewellStep)
	over := true
	for _, l := range row.Want.Stored {
		over = over && l.Over(time.Now())
	}
	if !over {
		if err := e.opt.Leases.GiveBack(ctx, row.Want); err != nil {
			e.log.Warn("give a lease back: it is tried again until the lease ends by itself", "endpoint", id, "network", row.Want.Network, "error", err)
			return
		}
	}
	e.opt.Step(farewellStep + "-said")
	_, err := e.commit(func(t *txn) error {
		if t.st.farewells[id] == row {
			t.putFarewell(id, nil)
		}
		return nil
	})
	if err != nil {
		e.log.Warn("note that a lease was given back", "endpoint", id, "error", err)
		return
	}
	for src, l := range row.Want.Stored {
		if !over {
			e.event("endpoint", "lease-released", string(id), row.Want.Name, map[string]string{"source": string(src), "addresses": addressText(&l), "server": l.Server.String()})
		}
	}
}
