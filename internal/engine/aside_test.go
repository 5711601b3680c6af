package engine

import (
	"context"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// spoil overwrites a stored row, as a bug or another version does.
func spoil(e *env, table, key string) {
	e.t.Helper()
	rows := store.NewTable[[]int](table)
	_, err := e.db.Update(func(tx *store.Tx) error { return rows.Put(tx, key, []int{1}) })
	e.ok(err)
}

// doctorSays finds the line about a stored row.
func (e *env) doctorSays(name string) (api.Check, bool) {
	for _, c := range e.e.Doctor(context.Background()) {
		if c.Name == name {
			return c, true
		}
	}
	return api.Check{}, false
}

// TestUnreadableRows: one row that cannot be read keeps nothing else from being
// served, and is kept until somebody says that it may go.
func TestUnreadableRows(t *testing.T) {
	run(t, func(e *env) {
		good := must(e.network(netDoc("good", "NAT", 7)))(e)
		bad := must(e.network(netDoc("bad", "NAT", 8)))(e)
		on := must(e.endpoint(epDoc(bad.ID, "")))(e)
		alone := must(e.endpoint(epDoc(good.ID, "")))(e)
		rest := must(e.endpoint(epDoc(good.ID, "")))(e)
		c := e.started("c", []string{"run"})
		lost := e.started("lost", []string{"run"})
		e.settle()
		e.stored()
		spoil(e, "networks", string(bad.ID))
		spoil(e, "endpoints", string(alone.ID))
		spoil(e, "containers", lost)
		spoil(e, "settings", "spoilt")
		for range 2 { // the second start finds them aside
			e.restart()
			e.settle()
			if _, err := e.e.Network(good.ID); err != nil {
				t.Error(err)
			}
			if _, err := e.e.Endpoint(rest.ID); err != nil {
				t.Error(err)
			}
			if row := e.e.ctrs.row(c); row == nil || row.Doc.State.Status != api.StatusRunning {
				t.Errorf("the other container: %+v", row)
			}
			if !e.w.disk[lost] || e.w.ctrs[lost] == nil {
				t.Error("the container that cannot be read is lost")
			}
			for name, next := range map[string]string{
				"stored network " + string(bad.ID):    "bulkhead network rm " + string(bad.ID),
				"stored endpoint " + string(on.ID):    "bulkhead endpoint rm " + string(on.ID),
				"stored endpoint " + string(alone.ID): "bulkhead endpoint rm " + string(alone.ID),
				"stored container " + lost:            "bulkhead rm " + lost,
				"stored setting spoilt":               "nothing",
			} {
				if c, ok := e.doctorSays(name); !ok || c.Status != "warn" || !strings.Contains(c.Next, next) {
					t.Errorf("doctor on %s: %+v", name, c)
				}
			}
		}
		// Another of the same ID does not overwrite it.
		doc := decode[hcn.HostComputeNetwork](e, netDoc("anew", "NAT", 9))
		if _, err := e.e.CreateNetwork(context.Background(), bad.ID, doc); err != nil {
			t.Fatal(err)
		}
		e.restart()
		if _, ok := e.doctorSays("stored network " + string(bad.ID)); !ok {
			t.Error("a new network of its ID overwrote it")
		}
		e.ok(e.e.DeleteNetwork(context.Background(), bad.ID)) // the new one
		e.ok(e.e.DeleteNetwork(context.Background(), bad.ID)) // the one aside
		e.wantCode(e.e.DeleteNetwork(context.Background(), bad.ID), hcn.ErrNetworkNotFound)
		e.ok(e.e.DeleteEndpoint(context.Background(), on.ID))
		e.ok(e.e.DeleteEndpoint(context.Background(), alone.ID))
		e.ok(e.e.RemoveContainer(context.Background(), lost, true))
		e.wantKind(e.e.RemoveContainer(context.Background(), lost, true), api.KindNotFound)
		for _, c := range e.e.Doctor(context.Background()) {
			if strings.HasPrefix(c.Name, "stored ") && c.Name != "stored setting spoilt" {
				t.Errorf("still told of: %+v", c)
			}
		}
	})
}
