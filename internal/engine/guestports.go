package engine

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A VM has one compartment, which is a namespace of type Guest: one that a client made before, or one that comes and goes with the
// container whose VM it is. An endpoint comes into it by the namespace, as into any, or by the VM (a request for Port), which may be
// stopped: the row then says that it is to be in there whenever that runs. The guest follows what is in the namespace by itself, and
// sync waits until it has.

// machineOf is the ID of the VM that a container has, or is in; "": it is in none.
func (s *state) machineOf(c *containerRow) hcn.GUID {
	switch {
	case c.Doc.Spec.Isolation != isolationVM:
		return ""
	case c.Shares != "":
		return api.VirtualMachineID(c.Shares)
	}
	return api.VirtualMachineID(c.Doc.ID)
}

// machineIn is the container whose VM a namespace is the compartment of, if that is there.
func (s *state) machineIn(ns *plan.NamespaceRow) *containerRow {
	for _, id := range ns.Containers {
		if c := s.containers[id]; c != nil && c.Shares == "" && c.Doc.Spec.Isolation == isolationVM {
			return c
		}
	}
	return nil
}

// guestNamespace finds the namespace that a container's VM is to be in.
func (s *state) guestNamespace(ref string) (*plan.NamespaceRow, error) {
	var found *plan.NamespaceRow
	if id, err := hcn.ParseGUID(ref); err == nil {
		found = s.namespaces[id]
	} else {
		for _, ns := range s.namespaces {
			if ns.Doc.Name != ref || ref == "" {
				continue
			}
			if found != nil {
				return nil, api.Errorf(api.KindConflict, "networkMode: several namespaces are called %.80q", ref).Hint("give the ID: bulkhead namespace ls")
			}
			found = ns
		}
	}
	switch {
	case found == nil:
		return nil, api.Errorf(api.KindNotFound, "networkMode: namespace %.80q does not exist", ref).Hint("bulkhead namespace ls, or bulkhead namespace create --type guest")
	case !found.Doc.Type.InGuest():
		return nil, api.Errorf(api.KindConflict, "networkMode: namespace %s is of type %s: a container of ours can be in one of type Guest or GuestDefault, which is the compartment of its VM", found.Doc.ID, found.Doc.Type).
			Hint("bulkhead namespace create --type guest; other runtimes find one of type Host at %s", plan.NamespacePath(found.Doc.ID))
	case !found.Kept:
		return nil, api.Errorf(api.KindConflict, "networkMode: namespace %s comes and goes with a container", found.Doc.ID).
			Hint("bulkhead run --network container:NAME shares it")
	}
	return found, nil
}

// occupied refuses a namespace that another VM is in, or is to be in.
func (t *txn) occupied(ns hcn.GUID, by string) error {
	for id, c := range t.st.containers {
		if c.In == ns && id != by {
			return api.Errorf(api.KindConflict, "networkMode: namespace %s is the compartment of container %s, and a compartment is in one VM", ns, c.Doc.Name).
				Hint("bulkhead run --network container:%s shares its VM; or bulkhead rm %s", c.Doc.Name, c.Doc.Name)
		}
	}
	return nil
}

// inCompartment lists the endpoints that a container is on networks by: its own, and those that clients of HCN put into its compartment.
func (s *state) inCompartment(c *containerRow) []hcn.GUID {
	ids := slices.Clone(c.Endpoints)
	if c.Shares != "" {
		return ids
	}
	ns := c.Doc.Namespace
	if ns == "" {
		ns = c.In
	}
	for _, ep := range s.attachedTo(ns) {
		if !slices.Contains(ids, ep.Doc.ID) {
			ids = append(ids, ep.Doc.ID)
		}
	}
	return ids
}

// setPort keeps the indexes of ports of VMs.
func (s *state) setPort(id hcn.GUID, old, row *plan.Endpoint) {
	if old != nil && old.Port != nil {
		delete(s.vmPorts, old.Port.ID)
		drop(s.byMachine, old.Port.Machine, id)
	}
	if row != nil && row.Port != nil {
		s.vmPorts[row.Port.ID] = id
		insert(s.byMachine, row.Port.Machine, id, struct{}{})
	}
}

// modifyPort makes the port of a VM for an endpoint, or takes it away.
func (e *Engine) modifyPort(ctx context.Context, id hcn.GUID, r *hcn.ModifyEndpointSettingRequest) error {
	s, err := r.Port()
	if err != nil {
		return err
	}
	switch r.RequestType {
	case hcn.RequestTypeRemove, hcn.RequestTypeReset:
		return e.unplug(ctx, id, s)
	case hcn.RequestTypeRefresh:
		return e.replug(ctx, id)
	case hcn.RequestTypeAdd, hcn.RequestTypeUpdate:
	}
	return e.plugIn(ctx, id, s)
}

func (e *Engine) plugIn(ctx context.Context, id hcn.GUID, s hcn.PortEndpointRequest) error {
	if err := e.stillVacant(ctx, id); err != nil {
		return err
	}
	var old, row *plan.Endpoint
	rev, err := e.commitOr(ctx, func(t *txn) error {
		var err error
		if old = t.st.endpoints[id]; old == nil {
			return noEndpoint(id)
		}
		row, err = t.plugIn(old, s)
		return err
	})
	if err != nil {
		return err
	}
	attached := old.Attach == nil && row.Attach != nil
	var wait []object
	if attached {
		wait = append(wait, portObject(id))
	}
	if err = e.applied(ctx, rev, wait...); err == nil && attached {
		err = e.announce(ctx, id)
	}
	if err != nil {
		err = hcn.Errorf(hcn.ErrNamespaceAttachFailed, "endpoint %s: %w", id, err)
	} else if row.Attach != nil {
		err = e.syncGuest(ctx, row.Attach.Namespace)
	}
	if err != nil {
		e.undo(ctx, "endpoint", string(id), func(t *txn) { t.takePortBack(old, row, attached) })
	}
	return err
}

// checkSlot refuses an endpoint for which a VM has no slot.
func (t *txn) checkSlot(ep *plan.Endpoint, ns *plan.NamespaceRow) error {
	if len(t.st.byNamespace[ns.Doc.ID]) < api.MostGuestNICs || !ns.Doc.Type.InGuest() {
		return nil
	}
	return hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %s: namespace %s is the compartment of a VM, which has at most %d NICs: detach another first", ep.Doc.ID, ns.Doc.ID, api.MostGuestNICs)
}

// checkSlots refuses a container whose VM would have more NICs than it can.
func (t *txn) checkSlots(c *containerRow) error {
	if n := len(t.st.attachable(c, byUser)); c.Doc.Spec.Isolation == isolationVM && n > api.MostGuestNICs {
		return api.Errorf(api.KindConflict, "container %s: a VM has at most %d NICs, and this one would have %d", c.Doc.Name, api.MostGuestNICs, n).
			Hint("leave a network out, or take it off one: bulkhead network disconnect NETWORK %s", c.Doc.Name)
	}
	return nil
}

// plugIn notes a port, and attaches the endpoint where its VM has a compartment.
func (t *txn) plugIn(old *plan.Endpoint, s hcn.PortEndpointRequest) (*plan.Endpoint, error) {
	id := old.Doc.ID
	if old.Doc.Flags&hcn.RemoteEndpoint != 0 {
		return nil, hcn.Errorf(hcn.ErrInvalidRemoteEndpointOperation, "endpoint %s is on another host: it has no port here", id)
	}
	if old.Foreign != nil {
		return nil, hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %s belongs to container %.40q of %s: create one for the VM", id, old.Foreign.Container, old.Foreign.Owner)
	}
	if len(plan.Redirects(old)) > 0 {
		return nil, guestSideCarError(old)
	}
	in, err := t.compartmentOf(old, &s)
	if err != nil {
		return nil, err
	}
	port, err := t.portFor(old, s)
	if err != nil {
		return nil, err
	}
	row := *old
	row.Port = port
	t.putEndpoint(id, &row)
	t.tell(queued{ev: api.Event{Kind: "endpoint", Action: "modify", ID: string(id), Name: old.Doc.Name}})
	if in == "" {
		if err := t.checkSlots(t.st.containers[t.st.machines[port.Machine]]); err != nil {
			return nil, hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %s: %w", id, err)
		}
		return &row, nil
	}
	return t.attach(id, in)
}

// compartmentOf is the namespace that an endpoint is to be in by its port: that of the VM, "" while that has none. A VM that is not
// named is the one whose namespace the endpoint is in.
func (t *txn) compartmentOf(ep *plan.Endpoint, s *hcn.PortEndpointRequest) (hcn.GUID, error) {
	var now hcn.GUID
	if ep.Attach != nil {
		now = ep.Attach.Namespace
	}
	if s.VirtualMachineId.IsZero() && ep.Port != nil {
		s.VirtualMachineId = ep.Port.Machine
	}
	if s.VirtualMachineId.IsZero() {
		ns := t.st.namespaces[now]
		if ns == nil || !ns.Doc.Type.InGuest() {
			return "", hcn.Errorf(hcn.ErrInvalidParameter, "Settings.VirtualMachineId: it is missing, and endpoint %s is in no namespace of a VM: "+
				"give the ID of a VM (bulkhead inspect of a container with VM isolation shows it), or attach the endpoint first", ep.Doc.ID)
		}
		if s.VirtualMachineId = ""; t.st.machineIn(ns) != nil {
			s.VirtualMachineId = t.st.machineOf(t.st.machineIn(ns))
		}
		return now, nil
	}
	c := t.st.containers[t.st.machines[s.VirtualMachineId]]
	if c == nil {
		return "", hcn.Errorf(hcn.ErrSystemNotFound, "Settings.VirtualMachineId: no container has the VM %s: bulkhead inspect of a container with VM isolation shows the ID of its VM", s.VirtualMachineId)
	}
	of := c.In
	if of == "" {
		of = c.Doc.Namespace
	}
	if t.st.namespaces[of] == nil {
		of = ""
	}
	if now != "" && now != of {
		where := "which is stopped, and has a compartment of its own when it runs"
		if of != "" {
			where = "whose compartment is namespace " + string(of)
		}
		return "", hcn.Errorf(hcn.ErrEndpointNamespaceAlreadyExists, "endpoint %s is in namespace %s, and the VM of container %s, %s: "+
			"detach it, or run the container with --network namespace:%s", ep.Doc.ID, now, c.Doc.Name, where, now)
	}
	return of, nil
}

// portFor is the port as it is to be noted.
func (t *txn) portFor(old *plan.Endpoint, s hcn.PortEndpointRequest) (*plan.VMPort, error) {
	port := &plan.VMPort{ID: s.PortId, Machine: s.VirtualMachineId, NIC: s.VirtualNicName}
	if had := old.Port; had != nil {
		if port.ID.IsZero() {
			port.ID = had.ID
		}
		if port.ID != had.ID || had.Machine != "" && port.Machine != had.Machine {
			return nil, hcn.Errorf(hcn.ErrPortAlreadyExists, "endpoint %s has the port %s of VM %s: remove that first", old.Doc.ID, had.ID, had.Machine)
		}
	}
	if port.ID.IsZero() {
		port.ID = hcn.NewGUID()
	}
	if other, ok := t.st.vmPorts[port.ID]; ok && other != old.Doc.ID {
		return nil, hcn.Errorf(hcn.ErrPortAlreadyExists, "Settings.PortId: endpoint %s has the port %s: choose another ID, or leave it out", other, port.ID)
	}
	return port, nil
}

// takePortBack undoes plugIn, if nothing else happened to the endpoint.
func (t *txn) takePortBack(old, made *plan.Endpoint, attached bool) {
	now := t.st.endpoints[old.Doc.ID]
	if now == nil || now.Port != made.Port {
		return
	}
	row := *now
	if attached && now.Attach == made.Attach {
		row = *detached(now)
		row.Doc.State = old.Doc.State
	}
	row.Port = old.Port
	t.putEndpoint(old.Doc.ID, &row)
}

// unplug takes a port away, and the endpoint out of the VM with it.
func (e *Engine) unplug(ctx context.Context, id hcn.GUID, s hcn.PortEndpointRequest) error {
	var from hcn.GUID
	rev, err := e.commitOr(ctx, func(t *txn) error {
		old := t.st.endpoints[id]
		switch {
		case old == nil:
			return noEndpoint(id)
		case old.Port == nil:
			return hcn.Errorf(hcn.ErrPortNotFound, "endpoint %s has no port of a VM: what is only attached to a namespace is detached there", id)
		case !s.PortId.IsZero() && s.PortId != old.Port.ID:
			return hcn.Errorf(hcn.ErrPortNotFound, "Settings.PortId: the port of endpoint %s is %s", id, old.Port.ID)
		case !s.VirtualMachineId.IsZero() && s.VirtualMachineId != old.Port.Machine:
			return hcn.Errorf(hcn.ErrPortNotFound, "Settings.VirtualMachineId: the port of endpoint %s is of VM %s", id, old.Port.Machine)
		}
		row := *old
		if from = ""; old.Attach != nil {
			from = old.Attach.Namespace
			row = *withdrawn(old)
		}
		row.Port = nil
		t.putEndpoint(id, &row)
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.cutOff(ctx, rev); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "remove the port of endpoint %s: it is removed, and the kernel follows: %w", id, err)
	}
	if from == "" {
		return nil
	}
	return e.syncGuest(ctx, from)
}

// replug brings a guest up to what an endpoint's port says.
func (e *Engine) replug(ctx context.Context, id hcn.GUID) error {
	e.mu.RLock()
	ep := e.st.endpoints[id]
	e.mu.RUnlock()
	switch {
	case ep == nil:
		return noEndpoint(id)
	case ep.Port == nil:
		return hcn.Errorf(hcn.ErrPortNotFound, "endpoint %s has no port of a VM", id)
	case rehearsing(ctx) != nil || ep.Attach == nil:
		return nil
	}
	e.Wake("refresh of the port of endpoint " + string(id))
	return e.syncGuest(ctx, ep.Attach.Namespace)
}

// dropMachine forgets what is about a VM that goes for good.
func (t *txn) dropMachine(machine hcn.GUID) {
	for id := range maps.Clone(t.st.byMachine[machine]) {
		row := *t.st.endpoints[id]
		row.Port = nil
		t.putEndpoint(id, &row)
	}
	if g := t.st.guestOf[machine]; g != "" {
		t.dropGuest(g)
	}
}

// dropLostMachines does so for VMs that a crash left only in some rows.
func (t *txn) dropLostMachines() {
	known := map[hcn.GUID]bool{"": true}
	for _, a := range t.st.aside {
		known[api.VirtualMachineID(a.id)] = a.kind == "container"
	}
	for machine := range maps.Clone(t.st.byMachine) {
		if !known[machine] && t.st.machines[machine] == "" {
			t.dropMachine(machine)
		}
	}
	for machine := range maps.Clone(t.st.guestOf) {
		if !known[machine] && t.st.machines[machine] == "" {
			t.dropMachine(machine)
		}
	}
}

// showPort adds an endpoint's port to what its document says beside the schema.
func showPort(doc *hcn.HostComputeEndpoint, port *plan.VMPort, sw hcn.GUID) {
	members := map[string]json.RawMessage{}
	if json.Unmarshal(doc.AdditionalParams, &members) != nil || members == nil {
		members = map[string]json.RawMessage{}
	}
	for name, value := range map[string]string{
		"SwitchId": string(sw), "SwitchPortId": string(port.ID), "VirtualMachineId": string(port.Machine), "VirtualNicName": port.NIC,
	} {
		if value != "" {
			members[name], _ = json.Marshal(value) // a string
		}
	}
	doc.AdditionalParams, _ = json.Marshal(members)
}
