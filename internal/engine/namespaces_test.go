package engine

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func TestNamespaceLife(t *testing.T) {
	run(t, func(e *env) {
		ns := must(e.namespace(`{"Name":"pod",` + v2 + `}`))(e)
		if ns.NamespaceId < 2 || ns.NamespaceGuid.IsZero() || len(ns.Resources) != 0 {
			e.t.Errorf("document lacks what a query must show: %s", toJSON(ns))
		}
		hinted := must(e.namespace(`{"NamespaceId":77,` + v2 + `}`))(e)
		again := must(e.namespace(`{"NamespaceId":77,` + v2 + `}`))(e)
		if hinted.NamespaceId != 77 || again.NamespaceId == 77 {
			e.t.Errorf("compartments %d and %d: want the hint once", hinted.NamespaceId, again.NamespaceId)
		}
		_, err := e.namespace(`{"ID":"` + string(ns.ID) + `",` + v2 + `}`)
		e.wantCode(err, hcn.ErrObjectAlreadyExists)
		if got := e.e.Namespaces(filter(e, `{"Name":"pod"}`)); !cmp.Equal(got, []hcn.GUID{ns.ID}) {
			e.t.Errorf("by name: %v", got)
		}
		const unknown = "DDDDDDDD-0000-4000-8000-000000000001"
		_, err = e.e.Namespace(unknown)
		e.wantCode(err, hcn.ErrElementNotFound)
		e.wantCode(e.e.DeleteNamespace(context.Background(), unknown), hcn.ErrElementNotFound)
		e.wantCode(e.attach(unknown, unknown), hcn.ErrElementNotFound)
		e.ok(e.e.DeleteNamespace(context.Background(), ns.ID))
	})
}

func TestHostDefaultRepeated(t *testing.T) {
	run(t, func(e *env) {
		first := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		second := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		if first.ID != second.ID || first.NamespaceId != hcn.HostDefaultCompartment {
			e.t.Errorf("%s (compartment %d), then %s: want the same one, in compartment 1", first.ID, first.NamespaceId, second.ID)
		}
	})
}

func TestAttachAndDetach(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		m := must(e.network(netDoc("b", "Internal", 8)))(e)
		one, two := must(e.namespace(`{`+v2+`}`))(e), must(e.namespace(`{`+v2+`}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		named := must(e.endpoint(epDoc(m.ID, `"Policies":[{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"lan0"}}]`)))(e)
		clash := must(e.endpoint(epDoc(m.ID, `"Policies":[{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"eth0"}}]`)))(e)

		e.ok(e.attach(one.ID, ep.ID))
		got := must(e.e.Endpoint(ep.ID))(e)
		if got.State != hcn.EndpointAttached || got.HostComputeNamespace != one.ID {
			e.t.Errorf("attached endpoint: %s", toJSON(got))
		}
		e.ok(e.attach(one.ID, ep.ID)) // idempotent
		e.wantCode(e.attach(two.ID, ep.ID), hcn.ErrEndpointNamespaceAlreadyExists)
		e.wantCode(e.attach(one.ID, "DDDDDDDD-0000-4000-8000-000000000001"), hcn.ErrEndpointNotFound)
		e.ok(e.attach(one.ID, named.ID))
		e.wantCode(e.attach(one.ID, clash.ID), hcn.ErrNamespaceAttachFailed)
		if eps := must(e.e.Namespace(one.ID))(e); !cmp.Equal(eps.Endpoints(), []hcn.GUID{ep.ID, named.ID}) {
			e.t.Errorf("resources %s, want both in the order of attachment", toJSON(eps.Resources))
		}
		if i := e.e.st.endpoints[named.ID].Attach.Interface; i != "lan0" {
			e.t.Errorf("interface %s, want lan0", i)
		}

		e.ok(e.modifyNamespace(one.ID, "Remove", "Endpoint", string(ep.ID)))
		got = must(e.e.Endpoint(ep.ID))(e)
		if got.State != hcn.EndpointDetached || got.HostComputeNamespace != "" || addrs(got) != addrs(ep) {
			e.t.Errorf("detached endpoint: %s", toJSON(got))
		}
		e.wantCode(e.modifyNamespace(one.ID, "Remove", "Endpoint", string(ep.ID)), hcn.ErrEndpointNotAttached)
		e.ok(e.attach(two.ID, ep.ID))
		e.ok(e.attach(one.ID, clash.ID)) // eth0 is free now

		e.ok(e.modifyNamespace(one.ID, "Reset", "Endpoint", ""))
		if eps := must(e.e.Namespace(one.ID))(e); len(eps.Resources) != 0 {
			e.t.Errorf("resources after a reset: %s", toJSON(eps.Resources))
		}
		e.ok(e.e.DeleteNamespace(context.Background(), two.ID)) // detaches
		if got = must(e.e.Endpoint(ep.ID))(e); got.State != hcn.EndpointDetached {
			e.t.Errorf("endpoint of a deleted namespace: %s", toJSON(got))
		}
		e.ok(e.attach(one.ID, ep.ID))
		e.ok(e.e.DeleteEndpoint(context.Background(), ep.ID)) // detaches as well
	})
}

// TestCreateEndpointInNamespace: a document that names one is attached.
func TestCreateEndpointInNamespace(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"HostComputeNamespace":"`+string(ns.ID)+`"`)))(e)
		if ep.State != hcn.EndpointAttached || ep.HostComputeNamespace != ns.ID {
			e.t.Errorf("endpoint: %s", toJSON(ep))
		}
	})
}

func TestNamespaceContainers(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.modifyNamespace(ns.ID, "Add", "Container", "pod"))
		e.ok(e.modifyNamespace(ns.ID, "Add", "Container", "pod"))
		e.ok(e.modifyNamespace(ns.ID, "Add", "Container", "sidecar"))
		if got := must(e.e.Endpoint(ep.ID))(e); got.State != hcn.EndpointAttachedSharing {
			e.t.Errorf("state of a shared endpoint: %d", got.State)
		}
		if got := e.e.Endpoints(filter(e, `{"State":3}`)); len(got) != 1 {
			e.t.Errorf("by its state: %v", got)
		}
		if got := must(e.e.Namespace(ns.ID))(e); !cmp.Equal(got.Containers(), []string{"pod", "sidecar"}) {
			e.t.Errorf("resources %s", toJSON(got.Resources))
		}
		e.wantCode(e.e.DeleteNamespace(context.Background(), ns.ID), hcn.ErrRequestUnsupported)
		e.wantCode(e.modifyNamespace(ns.ID, "Remove", "Container", "nobody"), hcn.ErrElementNotFound)
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Container", "sidecar"))
		e.ok(e.modifyNamespace(ns.ID, "Reset", "Container", ""))
		e.ok(e.e.DeleteNamespace(context.Background(), ns.ID))
	})
}

func TestDisableSharing(t *testing.T) {
	run(t, func(e *env) {
		doc := decode[hcn.HostComputeNetwork](e, netDoc("a", "NAT", 7))
		doc.Flags = hcn.DisableSharing
		n := must(e.e.CreateNetwork(context.Background(), "", doc))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.modifyNamespace(ns.ID, "Add", "Container", "a"))
		e.ok(e.modifyNamespace(ns.ID, "Add", "Container", "b"))
		e.wantCode(e.attach(ns.ID, ep.ID), hcn.ErrEndpointSharingDisabled)
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Container", "b"))
		e.ok(e.attach(ns.ID, ep.ID))
		e.wantCode(e.modifyNamespace(ns.ID, "Add", "Container", "b"), hcn.ErrEndpointSharingDisabled)
	})
}

// TestFailedAttachLeavesNothing: each applier fails in its turn, and only the
// caller it concerns is told.
func TestFailedAttachLeavesNothing(t *testing.T) {
	for i := range 5 {
		t.Run(stepName(i), func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				ns := must(e.namespace(`{` + v2 + `}`))(e)
				bad := must(e.endpoint(epDoc(n.ID, `"Name":"bad",`+publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)))))(e)
				good := must(e.endpoint(epDoc(n.ID, `"Name":"good"`)))(e)
				before := e.w.text()
				e.failingFor(i, bad.ID)
				e.w.mu.Lock()
				e.w.writes = nil
				e.w.mu.Unlock()
				errs := make(chan error)
				go func() { errs <- e.attach(ns.ID, good.ID) }()
				e.wantCode(e.attach(ns.ID, bad.ID), hcn.ErrNamespaceAttachFailed)
				e.ok(<-errs)
				e.w.mu.Lock()
				for later := i + 1; later < 5; later++ {
					for _, line := range e.w.writes {
						if strings.HasPrefix(line, stepName(later)+" port "+string(bad.ID)) {
							e.t.Errorf("a port that failed went on: %s", line)
						}
					}
				}
				e.w.mu.Unlock()
				if got := must(e.e.Endpoint(bad.ID))(e); got.State == hcn.EndpointAttached {
					e.t.Errorf("an endpoint whose attach failed: %s", toJSON(got))
				}
				e.failing(-1, false)
				e.ok(e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(good.ID)))
				e.settle()
				if got := e.w.text(); got != before {
					e.t.Fatalf("kernel before:\n%s\nafter:\n%s", before, got)
				}
			})
		})
	}
}

// TestUndoLeavesLaterChanges: what another caller did while an operation failed
// is not undone with it.
func TestUndoLeavesLaterChanges(t *testing.T) {
	meanwhile := func(e *env, fn func(t *txn)) {
		e.w.mu.Lock()
		defer e.w.mu.Unlock()
		e.onStep = map[string]func(){"apply-switch": func() {
			_, err := e.e.commit(func(t *txn) error { fn(t); return nil })
			e.ok(err)
		}}
	}
	t.Run("network deleted while a change of it fails", func(t *testing.T) {
		run(t, func(e *env) {
			n := must(e.network(netDoc("a", "NAT", 7)))(e)
			more := `{"Subnets":[{"IpAddressPrefix":"10.70.0.0/24","Routes":[{"NextHop":"10.70.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}`
			meanwhile(e, func(t *txn) { t.dropNetwork(n.ID) })
			e.failing(1, false)
			err := e.modifyNetwork(n.ID, `{"ResourceType":"Subnet","RequestType":"Add","Settings":`+more+`}`)
			e.failing(-1, false)
			if err == nil {
				e.t.Fatal("the change succeeded")
			}
			_, err = e.e.Network(n.ID)
			e.wantCode(err, hcn.ErrNetworkNotFound)
		})
	})
	t.Run("endpoint moved while its attach fails", func(t *testing.T) {
		run(t, func(e *env) {
			n := must(e.network(netDoc("a", "NAT", 7)))(e)
			one, two := must(e.namespace(`{`+v2+`}`))(e), must(e.namespace(`{`+v2+`}`))(e)
			ep := must(e.endpoint(epDoc(n.ID, "")))(e)
			meanwhile(e, func(t *txn) {
				t.putEndpoint(ep.ID, detached(t.st.endpoints[ep.ID]))
				if _, err := t.attach(ep.ID, two.ID); err != nil {
					e.t.Error(err)
				}
			})
			e.failingFor(1, ep.ID)
			err := e.attach(one.ID, ep.ID)
			e.failing(-1, false)
			e.wantCode(err, hcn.ErrNamespaceAttachFailed)
			e.settle()
			if got := must(e.e.Endpoint(ep.ID))(e); got.HostComputeNamespace != two.ID {
				e.t.Errorf("endpoint is in %q, want where it was moved", got.HostComputeNamespace)
			}
		})
	})
}

// failingFor makes an applier fail for one endpoint's port.
func (e *env) failingFor(applier int, ep hcn.GUID) {
	e.failing(applier, false)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	all := e.w.fail
	e.w.fail = func(i int, k *object) error {
		if k != nil && k.id == string(ep) {
			return all(i, k)
		}
		return nil
	}
}

// TestFailedNamespaceDoesNotStay: neither one object's failure nor a whole one's.
func TestFailedNamespaceDoesNotStay(t *testing.T) {
	run(t, func(e *env) {
		for _, whole := range []bool{false, true} {
			e.failing(0, whole)
			_, err := e.namespace(`{` + v2 + `}`)
			e.wantCode(err, hcn.ErrUnspecified)
			e.settle()
			if got := e.e.Namespaces(hcn.Filter{}); len(got) != 0 {
				e.t.Fatalf("namespaces %v", got)
			}
		}
		e.failing(-1, false)
	})
}

// TestRemovalGoesOn: what one applier fails to make does not keep the others from
// taking away.
func TestRemovalGoesOn(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.failing(0, true)
		e.ok(e.e.DeleteEndpoint(context.Background(), ep.ID))
		e.settle()
		e.w.mu.Lock()
		left := e.w.kernel[3][portObject(ep.ID)] + e.w.kernel[1][portObject(ep.ID)]
		e.w.mu.Unlock()
		if left != "" {
			e.t.Errorf("a deleted port is still there: %s", left)
		}
		e.failing(-1, false)
	})
}

func TestVanishedCompartment(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns, other := must(e.namespace(`{`+v2+`}`))(e), must(e.namespace(`{`+v2+`}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.modifyNamespace(ns.ID, "Add", "Container", "pod"))
		e.w.mu.Lock()
		delete(e.w.kernel[0], namespaceObject(ns.ID))
		delete(e.w.kernel[0], portObject(ep.ID))
		e.w.mu.Unlock()
		e.e.Wake("test")
		e.settle()
		got := must(e.e.Endpoint(ep.ID))(e)
		if got.State != hcn.EndpointDetached || got.HostComputeNamespace != "" || addrs(got) != addrs(ep) {
			e.t.Errorf("endpoint of a vanished compartment: %s", toJSON(got))
		}
		e.wantCode(e.attach(ns.ID, ep.ID), hcn.ErrNamespaceAttachFailed)
		e.ok(e.attach(other.ID, ep.ID))
		e.restart()
		if got := e.e.Namespaces(hcn.Filter{}); len(got) != 2 {
			e.t.Errorf("namespaces after a restart: %v", got)
		}
		e.ok(e.e.DeleteNamespace(context.Background(), ns.ID)) // although a container is listed
	})
}

// TestVanishedCompartmentOfContainer: the doctor says who suffers, and what it says to do helps.
func TestVanishedCompartmentOfContainer(t *testing.T) {
	run(t, func(e *env) {
		id := e.started("c", []string{"run"})
		ns := must(e.e.Container(id))(e).Namespace
		e.w.mu.Lock()
		delete(e.w.kernel[0], namespaceObject(ns))
		e.w.mu.Unlock()
		e.e.Wake("test")
		e.settle()
		said, _ := e.doctorSays("namespace " + string(ns))
		if said.Next != "bulkhead restart c" || !strings.Contains(said.Detail, "container c is without a network") {
			e.t.Errorf("the doctor says %+v", said)
		}
		e.ok(e.e.RestartContainer(context.Background(), id, api.StopRequest{}))
		if said, is := e.doctorSays("namespace " + string(ns)); is {
			e.t.Errorf("after a restart the doctor says %+v", said)
		}
	})
}

// TestNamespaceNeverMade: a daemon that is killed between store and kernel makes
// the compartment in its next life, and does not take it for one that vanished.
func TestNamespaceNeverMade(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.settle()
		e.w.mu.Lock()
		e.onStep = map[string]func(){"apply": e.stored} // the disk is quicker this time
		e.w.mu.Unlock()
		e.cutAt("apply-devices", 1)
		_, err := e.e.CreateNamespace(context.Background(), "CCCCCCCC-0000-4000-8000-000000000001", hcn.HostComputeNamespace{SchemaVersion: hcn.V2()})
		if err == nil {
			e.t.Fatal("the daemon was killed and answered")
		}
		e.cutAt("", 0)
		e.failing(0, false) // and again it is not made
		e.restart()
		e.settle()
		e.failing(-1, false)
		e.settle()
		e.ok(e.attach("CCCCCCCC-0000-4000-8000-000000000001", ep.ID))
	})
}
