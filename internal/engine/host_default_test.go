package engine

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestAttachToHost: clients attach endpoints to the host's own compartment,
// and detach them there as anywhere else.
func TestAttachToHost(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		ns := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.attach(ns.ID, ep.ID))

		got := must(e.e.Endpoint(ep.ID))(e)
		if got.HostComputeNamespace != ns.ID || got.State != hcn.EndpointAttached {
			e.t.Errorf("endpoint is in %q with state %s", got.HostComputeNamespace, got.State)
		}
		doc := must(e.e.Namespace(ns.ID))(e)
		if !cmp.Equal(doc.Endpoints(), []hcn.GUID{ep.ID}) {
			e.t.Errorf("the namespace has the endpoints %v", doc.Endpoints())
		}
		e.restart()
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(ep.ID)))
		e.ok(e.e.DeleteNamespace(context.Background(), ns.ID))
		if got := must(e.e.Endpoint(ep.ID))(e); got.State != hcn.EndpointDetached {
			e.t.Errorf("state %s after the detach", got.State)
		}
	})
}

// TestHostNamespaceGoesWithItsLast: clients of version 1 attach to the host without knowing of the namespace, so what
// was made for them goes again; what a client created stays.
func TestHostNamespaceGoesWithItsLast(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		one, two := must(e.endpoint(epDoc(n.ID, "")))(e), must(e.endpoint(epDoc(n.ID, "")))(e)
		left := func(want int) {
			e.t.Helper()
			if got := e.e.Namespaces(hcn.Filter{}); len(got) != want {
				e.t.Fatalf("namespaces %v, want %d", got, want)
			}
		}
		enter := func(eps ...hcn.GUID) hcn.GUID {
			e.t.Helper()
			id := must(e.e.HostNamespace(context.Background()))(e)
			for _, ep := range eps {
				e.ok(e.attach(id, ep))
			}
			return id
		}

		id := enter(one.ID, two.ID)
		e.ok(e.modifyNamespace(id, "Remove", "Endpoint", string(one.ID)))
		left(1)
		e.restart()
		e.ok(e.e.DeleteEndpoint(context.Background(), two.ID))
		left(0)

		id = enter(one.ID)
		e.ok(e.modifyNamespace(id, "Add", "Container", "c1"))
		e.ok(e.modifyNamespace(id, "Remove", "Endpoint", string(one.ID)))
		left(1)
		e.ok(e.modifyNamespace(id, "Remove", "Container", "c1"))
		left(0)

		id = enter(one.ID)
		e.ok(e.e.DeleteNamespace(context.Background(), id))
		left(0)

		id = enter()
		if err := e.attach(id, "00000000-0000-0000-0000-00000000DEAD"); err == nil {
			e.t.Error("an endpoint that does not exist was attached")
		}
		left(0)

		id = enter(one.ID)
		created := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		if created.ID != id {
			e.t.Errorf("two default namespaces of the host: %s and %s", id, created.ID)
		}
		e.ok(e.modifyNamespace(id, "Remove", "Endpoint", string(one.ID)))
		left(1)
	})
}

// TestNoRulesInTheHost: rules that nothing would enforce are refused, whichever comes first.
func TestNoRulesInTheHost(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		for _, policy := range []string{
			`{"Type":"ACL","Settings":{"Action":"Block","Direction":"Out"}}`,
			`{"Type":"OutBoundNAT","Settings":{"Exceptions":["10.0.0.0/8"]}}`,
			`{"Type":"QOS","Settings":{"MaximumOutgoingBandwidthInBytes":1250000}}`,
		} {
			ep := must(e.endpoint(epDoc(n.ID, `"Policies":[`+policy+`]`)))(e)
			e.wantCode(e.attach(ns.ID, ep.ID), hcn.ErrRequestUnsupported)
			e.ok(e.policies(ep.ID, "Remove", "["+policy+"]"))
			e.ok(e.attach(ns.ID, ep.ID))
			e.wantCode(e.policies(ep.ID, "Add", "["+policy+"]"), hcn.ErrRequestUnsupported)
		}
	})
}
