package engine

import (
	"fmt"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// checkSetsStay refuses to take an address set away from under the rules of the
// network's endpoints. Its own policies were checked with the document.
func (t *txn) checkSetsStay(old *plan.Network, doc *hcn.HostComputeNetwork) error {
	gone, err := hcn.RemovedSets(&old.Doc, doc)
	if err != nil || len(gone) == 0 {
		return err
	}
	for id, ep := range t.st.byNetwork[doc.ID] {
		if set := ep.Doc.UsesSet(gone); set != "" {
			return hcn.Errorf(hcn.ErrEntityHasReferences, "address set %q is used by a rule of endpoint %q (%s): change that first", set, ep.Doc.Name, id)
		}
	}
	return nil
}

// checkSideCar refuses redirects inside a compartment whose container runs in a VM: its traffic is not the compartment's own.
func (t *txn) checkSideCar(e *plan.Endpoint, namespace hcn.GUID) error {
	ns := t.st.namespaces[namespace]
	if ns == nil || len(plan.Redirects(e)) == 0 {
		return nil
	}
	if ns.Doc.Type.InGuest() && t.st.machineIn(ns) == nil {
		return guestSideCarError(e)
	}
	for _, id := range ns.Containers {
		if c := t.st.containers[id]; c != nil && c.Doc.Spec.Isolation == isolationVM {
			return sideCarError(e, c)
		}
	}
	return nil
}

// checkPortSideCar refuses them where the endpoint has a port of a VM.
func (t *txn) checkPortSideCar(e *plan.Endpoint) error {
	if e.Port == nil || len(plan.Redirects(e)) == 0 {
		return nil
	}
	return guestSideCarError(e)
}

func guestSideCarError(e *plan.Endpoint) error {
	return hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %q: policy L4WFPPROXY: a side-car in its compartment does not see a VM's traffic: use a namespace of type Host, or policy L4Proxy", e.Doc.Name)
}

func sideCarError(e *plan.Endpoint, c *containerRow) error {
	return hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %q: policy L4WFPPROXY: container %s runs in a VM, whose traffic a side-car in its compartment does not see: use process isolation, or policy L4Proxy", e.Doc.Name, c.Doc.Name)
}

// warnTurned tells that rules turned a default: what no rule allows is blocked from
// here on, which users take for a fault when nobody says so.
func (e *Engine) warnTurned(kind string, id hcn.GUID, name string, turned []hcn.DirectionType) {
	if len(turned) == 0 {
		return
	}
	e.log.Info("what no rule allows is blocked from now on", kind, id, "name", name, "direction", directions(turned))
}

func directions(list []hcn.DirectionType) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ","), "[]")
}
