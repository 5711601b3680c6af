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
