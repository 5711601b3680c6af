package engine

import (
	"context"
	"errors"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// makeCompartment makes one with an endpoint for each of the documents.
func (e *env) makeCompartment(docs ...string) (api.Compartment, error) {
	e.t.Helper()
	c := api.Compartment{Namespace: decode[hcn.HostComputeNamespace](e, `{`+v2+`}`)}
	for _, d := range docs {
		c.Endpoints = append(c.Endpoints, decode[hcn.HostComputeEndpoint](e, d))
	}
	return e.e.CreateCompartment(context.Background(), c)
}

func TestCompartmentComesAndGoesWhole(t *testing.T) {
	run(t, func(e *env) {
		a := must(e.network(netDoc("a", "NAT", 7)))(e)
		b := must(e.network(netDoc("b", "Internal", 8)))(e)
		c := must(e.makeCompartment(epDoc(a.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`))), epDoc(b.ID, "")))(e)
		if len(c.Endpoints) != 2 || len(c.Namespace.Resources) != 2 {
			e.t.Fatalf("made %s", toJSON(c))
		}
		for _, ep := range c.Endpoints {
			if ep.HostComputeNamespace != c.Namespace.ID || ep.State != hcn.EndpointAttached {
				e.t.Errorf("endpoint %s is not attached to %s", toJSON(ep), c.Namespace.ID)
			}
		}
		e.ok(e.e.DeleteCompartment(context.Background(), c.Namespace.ID))
		if left := e.e.Endpoints(hcn.Filter{}); len(left) != 0 {
			e.t.Errorf("endpoints %v are left", left)
		}
		_, err := e.e.Namespace(c.Namespace.ID)
		e.wantCode(err, hcn.ErrElementNotFound)
		e.wantCode(e.e.DeleteCompartment(context.Background(), c.Namespace.ID), hcn.ErrElementNotFound)
		// Address and port are free again.
		must(e.makeCompartment(epDoc(a.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)))))(e)
	})
}

func TestCompartmentIsMadeWholeOrNotAtAll(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		before := len(e.e.Namespaces(hcn.Filter{}))
		_, err := e.makeCompartment(epDoc(n.ID, ""), epDoc("DDDDDDDD-0000-4000-8000-000000000001", ""))
		e.wantCode(err, hcn.ErrNetworkNotFound)
		e.failing(0, true)
		_, err = e.makeCompartment(epDoc(n.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`))))
		e.failing(-1, false)
		e.wantCode(err, hcn.ErrNamespaceAttachFailed)
		if eps, ns := e.e.Endpoints(hcn.Filter{}), e.e.Namespaces(hcn.Filter{}); len(eps) != 0 || len(ns) != before {
			e.t.Errorf("left: endpoints %v, namespaces %v", eps, ns)
		}
		_, err = e.e.CreateCompartment(context.Background(), api.Compartment{
			Namespace: hcn.HostComputeNamespace{Type: hcn.NamespaceTypeHostDefault, SchemaVersion: hcn.V2()},
		})
		if !api.IsKind(err, api.KindInvalid) {
			e.t.Errorf("the host's own compartment: %v", err)
		}
	})
}

func TestCompartmentWithContainersStays(t *testing.T) {
	run(t, func(e *env) {
		c := must(e.makeCompartment())(e)
		e.ok(e.modifyNamespace(c.Namespace.ID, "Add", "Container", "c1"))
		e.wantCode(e.e.DeleteCompartment(context.Background(), c.Namespace.ID), hcn.ErrRequestUnsupported)
		host := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		if err := e.e.DeleteCompartment(context.Background(), host.ID); !api.IsKind(err, api.KindInvalid) {
			e.t.Errorf("the host's own compartment: %v", err)
		}
	})
}

// TestCutOffIsToldBeforeTheRest: whoever deletes an endpoint is answered when it reaches nobody any more.
func TestCutOffIsToldBeforeTheRest(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		c := must(e.makeCompartment(epDoc(n.ID, "")))(e)
		hold, reached := make(chan struct{}), make(chan struct{})
		e.w.mu.Lock()
		e.onStep = map[string]func(){"apply-devices": func() { close(reached); <-hold }}
		e.w.mu.Unlock()
		e.ok(e.e.DeleteCompartment(context.Background(), c.Namespace.ID))
		<-reached // the loop is still at it
		close(hold)
	})
}

// TestCompartmentEndsWithTheHostsRun: whether the store that is to end with it does, or lies on a disk.
func TestCompartmentEndsWithTheHostsRun(t *testing.T) {
	for _, emptied := range []bool{true, false} {
		run(t, func(e *env) {
			n := must(e.network(netDoc("a", "NAT", 7)))(e)
			port := publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`))
			c := must(e.makeCompartment(epDoc(n.ID, port)))(e)
			kept := must(e.endpoint(epDoc(n.ID, "")))(e)
			e.ok(e.attach(c.Namespace.ID, kept.ID))
			e.restart()
			if got := must(e.e.compartment(c.Namespace.ID))(e); len(got.Endpoints) != 2 {
				e.t.Errorf("after a restart of the daemon: %s", toJSON(got))
			}
			if emptied {
				e.reboot()
			} else {
				e.kill()
				e.w.reboot()
				e.start()
			}
			e.settle()
			if got := e.e.Endpoints(hcn.Filter{}); len(got) != 1 || got[0] != kept.ID {
				e.t.Errorf("endpoints %v, want the one that was not made with a compartment", got)
			}
			if got := must(e.e.Endpoint(kept.ID))(e); got.State != hcn.EndpointCreated || got.HostComputeNamespace != "" {
				e.t.Errorf("endpoint %s", toJSON(got))
			}
			must(e.makeCompartment(epDoc(n.ID, port)))(e)
		})
	}
}

// TestNamespacesOfOneStoreMove: what a version with one store left.
func TestNamespacesOfOneStoreMove(t *testing.T) {
	run(t, func(e *env) {
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		e.stop()
		one := must(store.Open(e.path))(e)
		both := must(store.Open(e.path + ".run"))(e)
		e.ok(movePassing(both, one))
		e.ok(errors.Join(one.Close(), both.Close()))
		e.start()
		must(e.e.Namespace(ns.ID))(e)
		e.stored()
		if err := e.db.View(func(tx *store.Tx) error {
			return namespaceTable.Each(tx, func(k string, _ plan.NamespaceRow) error { return errors.New(k + " is still there") })
		}); err != nil {
			e.t.Error(err)
		}
	})
}

// What a compartment is kept ready for has its endpoint's ID chosen beforehand. A question uses none up, a refusal gives it back.
func TestCompartmentTakesAPromisedID(t *testing.T) {
	run(t, func(e *env) {
		const ready hcn.GUID = "5A5A5A5A-0000-4000-8000-000000000001"
		asked, back := 0, 0
		e.e.opt.Promise = func() (hcn.GUID, func()) { asked++; return ready, func() { back++ } }
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		_, err := e.makeCompartment(epDoc("DDDDDDDD-0000-4000-8000-000000000001", ""))
		e.wantCode(err, hcn.ErrNetworkNotFound)
		if asked != 1 || back != 1 {
			e.t.Errorf("asked %d times and gave back %d, want 1", asked, back)
		}
		c := must(e.makeCompartment(epDoc(n.ID, "")))(e)
		if got := c.Endpoints[0].ID; got != ready {
			e.t.Errorf("the endpoint is %s, want %s", got, ready)
		}
		const own hcn.GUID = "5A5A5A5A-0000-4000-8000-000000000002"
		c = must(e.makeCompartment(epDoc(n.ID, `"ID":"`+string(own)+`"`)))(e)
		if got := c.Endpoints[0].ID; got != own || asked != 2 {
			e.t.Errorf("the endpoint is %s, want its own ID %s; asked %d times", got, own, asked)
		}
		if id, _ := e.e.promised(context.WithValue(t.Context(), rehearsalKey{}, &rehearsal{})); id != "" {
			e.t.Errorf("a rehearsal was promised %s", id)
		}
	})
}
