package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// watch returns what tells the events since.
func (e *env) watch() func() []string {
	e.t.Helper()
	return e.watchAfter(e.e.LastEvent())
}

// told is what the events of this run of the daemon have told.
func (e *env) told() []string {
	e.t.Helper()
	return e.watchAfter(0)()
}

func (e *env) watchAfter(event uint64) func() []string {
	e.t.Helper()
	ctx, cancel := context.WithCancel(bg)
	ch := must(e.e.Subscribe(ctx, event))(e)
	return func() []string {
		synctest.Wait()
		cancel()
		var out []string
		for ev := range ch {
			out = append(out, strings.TrimSpace(strings.Join([]string{ev.Kind, ev.Action, ev.Name, ev.Attributes["found"]}, " ")))
		}
		return out
	}
}

func TestEventsInCommitOrder(t *testing.T) {
	run(t, func(e *env) {
		got := e.watch()
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		ns := must(e.namespace(`{"Name":"pod",` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"Name":"web"`)))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.policies(ep.ID, "Add", `[`+mapping(`"Protocol":6,"InternalPort":80`)+`]`))
		e.failing(1, false)
		_, _ = e.network(netDoc("bad", "NAT", 8)) // neither made nor deleted
		bad := must(e.endpoint(epDoc(n.ID, `"Name":"bad"`)))(e)
		_ = e.attach(ns.ID, bad.ID)
		e.failing(-1, false)
		e.ok(e.e.DeleteNamespace(bg, ns.ID))
		e.ok(e.e.DeleteNetwork(bg, n.ID))
		want := []string{
			"network create net", "namespace create pod", "endpoint create web", "endpoint attach web", "endpoint modify web",
			"endpoint create bad", "endpoint detach web", "namespace delete pod", "network predelete net",
			"endpoint delete", "endpoint delete", "network delete net",
		}
		// What is announced before the change is outside the order of commits.
		have := slices.DeleteFunc(got(), func(s string) bool { return strings.HasPrefix(s, "network precreate") })
		for i, ev := range have { // both endpoints go in one commit
			if strings.HasPrefix(ev, "endpoint delete") {
				have[i] = "endpoint delete"
			}
		}
		if d := cmp.Diff(want, have); d != "" {
			e.t.Error(d)
		}
	})
}

func TestHCNNotifications(t *testing.T) {
	run(t, func(e *env) {
		from := e.e.LastEvent()
		n := must(e.network(netDoc("net", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(ep.ID)))
		e.ok(e.e.DeleteNamespace(bg, ns.ID))
		e.ok(e.e.DeleteNetwork(bg, n.ID))
		ctx, cancel := context.WithCancel(bg)
		ch := must(e.e.Subscribe(ctx, from))(e)
		synctest.Wait()
		cancel()
		var got []string
		for ev := range ch {
			if ev.HCN != nil && ev.HCN.Type != hcn.NotificationNetworkPreCreate {
				got = append(got, fmt.Sprint(ev.HCN.Type, " ", ev.HCN.ID == n.ID, ev.HCN.ID == ns.ID, ev.HCN.ID == ep.ID))
			}
		}
		want := []string{
			"NetworkCreate true false false", "NamespaceCreate false true false", "NetworkEndpointAttached false false true",
			"NetworkEndpointDetached false false true", "NamespaceDelete false true false", "NetworkPreDelete true false false", "NetworkDelete true false false",
		}
		if d := cmp.Diff(want, got); d != "" {
			e.t.Error(d)
		}
	})
}

func TestContainerEvents(t *testing.T) {
	run(t, func(e *env) {
		got := e.watch()
		e.started("c", []string{"exit", "3"}, autoRemove)
		e.settle()
		have := slices.DeleteFunc(got(), func(s string) bool { return !strings.HasPrefix(s, "container") })
		want := []string{"container create c", "container start c", "container die c", "container remove c"}
		if d := cmp.Diff(want, have); d != "" {
			e.t.Error(d)
		}
	})
}

func TestEventsResume(t *testing.T) {
	run(t, func(e *env) {
		must(e.namespace(`{"Name":"one",` + v2 + `}`))(e)
		token := e.e.LastEvent()
		must(e.namespace(`{"Name":"two",` + v2 + `}`))(e)
		read := func(after uint64) (names []string) {
			ctx, cancel := context.WithCancel(bg)
			ch := must(e.e.Subscribe(ctx, after))(e)
			must(e.namespace(`{"Name":"three",` + v2 + `}`))(e)
			synctest.Wait()
			cancel()
			last := uint64(0)
			for ev := range ch {
				if ev.Seq < last {
					e.t.Errorf("event %d after %d", ev.Seq, last)
				}
				last = ev.Seq
				names = append(names, ev.Action+" "+ev.Name)
			}
			return names
		}
		if d := cmp.Diff([]string{"create two", "create three"}, read(token)); d != "" {
			e.t.Error(d)
		}
		e.restart()
		if got := read(token); len(got) == 0 || got[0] != "gap " {
			e.t.Errorf("with the number of an earlier run: %v, want a gap first", got)
		}
		if got := read(e.e.LastEvent()); !cmp.Equal(got, []string{"create three"}) {
			e.t.Errorf("from the newest on: %v", got)
		}
	})
}

// TestSlowReaderIsCutOff, and the others are not.
func TestSlowReaderIsCutOff(t *testing.T) {
	run(t, func(e *env) {
		from := e.e.LastEvent()
		slow := must(e.e.Subscribe(bg, from))(e)
		for range 2*ringSize + 10 {
			e.e.event("test", "tick", "", "", nil)
		}
		n := 0
		for range slow {
			n++
		}
		if n < readerQueue || n > 2*readerQueue {
			e.t.Errorf("a slow reader got %d events", n)
		}
		ctx, cancel := context.WithCancel(bg)
		ch := must(e.e.Subscribe(ctx, from))(e)
		cancel()
		first := <-ch
		if first.Action != "gap" || first.HCN == nil || first.HCN.Type != hcn.NotificationServiceDisconnect {
			e.t.Errorf("first event for one that missed some: %+v", first)
		}
		kept := []api.Event{}
		for ev := range ch {
			kept = append(kept, ev)
		}
		if len(kept) < ringSize {
			e.t.Errorf("%d events are kept, want at least %d", len(kept), ringSize)
		}
	})
}
