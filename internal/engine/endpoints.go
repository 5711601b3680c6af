package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Endpoints lists the endpoints that match, oldest first.
func (e *Engine) Endpoints(f hcn.Filter) []hcn.GUID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return listed(e.st.endpoints, func(ep *plan.Endpoint) (bool, uint64) { return f.MatchEndpoint(e.st.endpointDoc(ep)), ep.Seq })
}

// Endpoint is the document of an endpoint.
func (e *Engine) Endpoint(id hcn.GUID) (hcn.HostComputeEndpoint, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep := e.st.endpoints[id]
	if ep == nil {
		return hcn.HostComputeEndpoint{}, noEndpoint(id)
	}
	return *e.st.endpointDoc(ep), nil
}

func (s *state) endpointDoc(ep *plan.Endpoint) *hcn.HostComputeEndpoint {
	doc := ep.Doc.Clone()
	s.showLeases(doc, ep)
	if n := s.networks[ep.Doc.HostComputeNetwork]; ep.Port != nil && n != nil {
		showPort(doc, ep.Port, n.Doc.SwitchGUID())
	}
	if ep.Attach != nil {
		if ns := s.namespaces[ep.Attach.Namespace]; ns != nil && len(ns.Containers) > 1 {
			doc.State = hcn.EndpointAttachedSharing
		}
	}
	return doc
}

func noEndpoint(id hcn.GUID) error {
	return hcn.Errorf(hcn.ErrEndpointNotFound, "no endpoint has the ID %s: see `bulkhead endpoint ls`", id)
}

// CreateEndpoint makes an endpoint: its address, MAC and ports are its own from
// here until it is deleted, attached or not. A document that names a namespace
// is attached to it.
func (e *Engine) CreateEndpoint(ctx context.Context, id, network hcn.GUID, doc hcn.HostComputeEndpoint) (hcn.HostComputeEndpoint, error) {
	var row *plan.Endpoint
	create := func(t *txn) error {
		var err error
		row, err = t.newEndpoint(id, network, doc, "")
		if err == nil && !doc.HostComputeNamespace.IsZero() {
			row, err = t.attach(row.Doc.ID, doc.HostComputeNamespace)
		}
		return err
	}
	if err := e.vacant(ctx, func(t *txn) ([]*plan.Endpoint, error) { err := create(t); return []*plan.Endpoint{row}, err }); err != nil {
		return hcn.HostComputeEndpoint{}, err
	}
	rev, err := e.commitOr(ctx, create)
	if err != nil {
		return hcn.HostComputeEndpoint{}, err
	}
	id = row.Doc.ID
	if row.Attach != nil {
		if err := e.applied(ctx, rev, portObject(id)); err != nil {
			e.undo(ctx, "endpoint", string(id), func(t *txn) { t.dropEndpoint(id) })
			return hcn.HostComputeEndpoint{}, hcn.Errorf(hcn.ErrNamespaceAttachFailed, "endpoint %s: %w", id, err)
		}
		if err := e.announce(ctx, id); err != nil {
			e.undo(ctx, "endpoint", string(id), func(t *txn) { t.dropEndpoint(id) })
			return hcn.HostComputeEndpoint{}, err
		}
	}
	e.warnTurned("endpoint", id, row.Doc.Name, hcn.TurnedDefaults(nil, row.Doc.Policies))
	return *row.Doc.Clone(), nil
}

// newEndpoint makes an endpoint that ends with the run boot of the host, or with
// none.
func (t *txn) newEndpoint(id, network hcn.GUID, in hcn.HostComputeEndpoint, boot string) (*plan.Endpoint, error) {
	doc := in.Clone()
	doc.ID = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
	if !network.IsZero() {
		doc.HostComputeNetwork = network
	}
	doc.HostComputeNamespace, doc.Version, doc.Health = "", 0, nil
	if t.st.endpoints[doc.ID] != nil {
		return nil, hcn.Errorf(hcn.ErrObjectAlreadyExists, "an endpoint with the ID %s exists: delete it first, or leave the ID out", doc.ID)
	}
	n := t.st.networks[doc.HostComputeNetwork]
	if n == nil {
		return nil, noNetwork(doc.HostComputeNetwork)
	}
	if err := doc.ValidateFor(&n.Doc); err != nil {
		return nil, err
	}
	t.replaceRemote(doc, n)
	leased := doc.Leased(&n.Doc)
	if !leased {
		if err := t.pickAddresses(doc, n); err != nil {
			return nil, err
		}
	}
	mac, err := t.pickMAC(doc, n)
	if err != nil {
		return nil, err
	}
	doc.Defaults(&n.Doc)
	doc.State = hcn.EndpointCreated
	if err := doc.ValidateFor(&n.Doc); err != nil {
		return nil, err
	}
	addrs, err := doc.Addrs()
	if err != nil {
		return nil, err
	}
	row := &plan.Endpoint{Doc: *doc, Seq: t.nextSeq(), MAC: mac, Addrs: addrs, Leased: leased, OneMAC: plan.OneMAC(n.Doc.Type), Boot: boot, NameServers: nameServers(in.Dns.ServerList)}
	if err := t.checkMTU(row, nil); err != nil {
		return nil, err
	}
	if err := t.checkVirtualIPs(row, nil); err != nil {
		return nil, err
	}
	if err := t.claimPorts(row, nil); err != nil {
		return nil, err
	}
	t.putFarewell(doc.ID, nil) // to its server it is the one that it was
	t.putEndpoint(doc.ID, row)
	k := object{"endpoint", string(doc.ID)}
	t.tell(queued{ev: api.Event{Kind: "endpoint", Action: "create", ID: string(doc.ID), Name: doc.Name}, comes: &k})
	return row, nil
}

// nameServers reads a list that was checked.
func nameServers(list []string) (out []netip.Addr) {
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// checkMTU refuses an MTU that the switch does not carry: it would be a black
// hole. One that the endpoint has already is left to the plan.
func (t *txn) checkMTU(row, old *plan.Endpoint) error {
	s, err := hcn.SettingsOf[hcn.InterfaceParametersPolicySetting](row.Doc.Policies)
	if err != nil {
		return err
	}
	if old != nil {
		if had, err := hcn.SettingsOf[hcn.InterfaceParametersPolicySetting](old.Doc.Policies); err == nil && slices.Equal(s, had) {
			return nil
		}
	}
	n := t.st.networks[row.Doc.HostComputeNetwork]
	if n == nil {
		return noNetwork(row.Doc.HostComputeNetwork)
	}
	if most := plan.SwitchMTU(n, &t.e.facts); len(s) > 0 && int(s[0].Mtu) > most {
		return hcn.Errorf(hcn.ErrInvalidPolicy, "InterfaceParameters.Mtu: %d is above the %d of the host's uplink: larger packets would be lost", s[0].Mtu, most)
	}
	return nil
}

// checkVirtualIPs refuses to hide an endpoint behind an address that is not the host's: no
// answer would come back. One that the endpoint has already is left to the plan, because the
// host may lose an address and get it again.
func (t *txn) checkVirtualIPs(row, old *plan.Endpoint) error {
	now, err := hcn.SettingsOf[hcn.OutboundNatPolicySetting](row.Doc.Policies)
	if err != nil {
		return err
	}
	had := map[netip.Addr]bool{}
	if old != nil {
		before, err := hcn.SettingsOf[hcn.OutboundNatPolicySetting](old.Doc.Policies)
		if err != nil {
			return err
		}
		for _, s := range before {
			a, _ := s.Addr()
			had[a] = true
		}
	}
	for _, s := range now {
		if a, ok := s.Addr(); ok && !had[a] && !slices.ContainsFunc(t.e.facts.HostAddrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return hcn.Errorf(hcn.ErrInvalidPolicy, "OutBoundNAT.VirtualIP: %s is no address of this host, so no answer would come back: "+
				"leave it out to use the address of the outgoing interface, or see `ip address`", a)
		}
	}
	return nil
}

// ModifyEndpoint changes an endpoint's policies, or its port of a VM; all of the request holds or none.
func (e *Engine) ModifyEndpoint(ctx context.Context, id hcn.GUID, r *hcn.ModifyEndpointSettingRequest) error {
	if r.ResourceType == hcn.EndpointResourceTypePort {
		return e.modifyPort(ctx, id, r)
	}
	return e.modifyEndpoint(ctx, id, r, func(*txn) {})
}

// modifyEndpoint does so, and what else belongs to the change.
func (e *Engine) modifyEndpoint(ctx context.Context, id hcn.GUID, r *hcn.ModifyEndpointSettingRequest, also func(*txn)) error {
	var old, changed *plan.Endpoint
	rev, err := e.commitOr(ctx, func(t *txn) error {
		old = t.st.endpoints[id]
		if old == nil {
			return noEndpoint(id)
		}
		n := t.st.networks[old.Doc.HostComputeNetwork]
		if n == nil {
			return noNetwork(old.Doc.HostComputeNetwork)
		}
		doc, err := r.Apply(&old.Doc, &n.Doc)
		if err != nil {
			return err
		}
		row := *old
		row.Doc = *doc
		row.Doc.Version++
		row.OneMAC = plan.OneMAC(n.Doc.Type) // a version before wrote none
		if err := t.checkMTU(&row, old); err != nil {
			return err
		}
		if err := t.checkVirtualIPs(&row, old); err != nil {
			return err
		}
		if old.Attach != nil {
			if err := errors.Join(t.checkHostRules(&row, old.Attach.Namespace), t.checkSideCar(&row, old.Attach.Namespace)); err != nil {
				return err
			}
		}
		if err := t.checkPortSideCar(&row); err != nil {
			return err
		}
		if err := checkInterface(&row, old); err != nil {
			return err
		}
		if err := t.claimPorts(&row, old); err != nil {
			return err
		}
		t.releasePorts(old, &row)
		changed = &row
		t.putEndpoint(id, changed)
		also(t)
		t.tell(queued{ev: api.Event{Kind: "endpoint", Action: "modify", ID: string(id), Name: old.Doc.Name}, on: []object{portObject(id)}})
		return nil
	})
	if err != nil {
		return err
	}
	if r.RequestType == hcn.RequestTypeRefresh {
		e.Wake("refresh of endpoint " + string(id))
	}
	if err := e.applied(ctx, rev, portObject(id)); err != nil {
		e.undo(ctx, "endpoint", string(id), func(t *txn) { t.takeBack(id, old) })
		return hcn.Errorf(hcn.ErrUnspecified, "change endpoint %s: %w", id, err)
	}
	e.warnTurned("endpoint", id, changed.Doc.Name, hcn.TurnedDefaults(old.Doc.Policies, changed.Doc.Policies))
	return nil
}

// checkHostRules refuses rules for an endpoint in the host's own compartment. What it sends
// leaves by the host's vNIC, among the host's own packets: its port sees one direction only,
// and could not tell an answer from a beginning.
func (t *txn) checkHostRules(row *plan.Endpoint, namespace hcn.GUID) error {
	ns := t.st.namespaces[namespace]
	if ns == nil || ns.Doc.Type != hcn.NamespaceTypeHostDefault {
		return nil
	}
	rules := row.Doc.Flags&hcn.DisableInterComputeCommunication != 0 || len(t.st.routesOf[row.Doc.ID]) > 0
	for _, p := range row.Doc.Policies {
		rules = rules || p.Type == hcn.ACL || p.Type == hcn.TierAcl || p.Type == hcn.QOS || p.Type == hcn.IncomingQOS ||
			p.Type == hcn.L4Proxy || p.Type == hcn.L4WFPPROXY || p.Type == hcn.SDNRoute
	}
	outbound, err := hcn.SettingsOf[hcn.OutboundNatPolicySetting](row.Doc.Policies)
	if err != nil {
		return err
	}
	rules = rules || slices.ContainsFunc(outbound, func(s hcn.OutboundNatPolicySetting) bool { return !s.Plain() })
	if !rules {
		return nil
	}
	return hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %q (%s): rules are not enforced for an endpoint in the host's own compartment: "+
		"remove its ACL, TierAcl, QOS, L4Proxy, L4WFPPROXY, SDNRoute and OutBoundNAT policies and its routes, or use the host's own means", row.Doc.Name, row.Doc.ID)
}

// takeBack gives an endpoint the policies back that it had; where it is attached
// may have changed since.
func (t *txn) takeBack(id hcn.GUID, old *plan.Endpoint) {
	now := t.st.endpoints[id]
	if now == nil {
		return
	}
	row := *now
	row.Doc.Policies = old.Doc.Policies
	if err := t.claimPorts(&row, now); err != nil {
		// Somebody took a port in between. The endpoint has it on paper, and says
		// so when it is attached.
		t.e.log.Warn("take back the ports of an endpoint", "endpoint", id, "error", err)
	}
	t.releasePorts(now, &row)
	t.putEndpoint(id, &row)
}

// checkInterface refuses to rename an interface that is in use.
func checkInterface(row, old *plan.Endpoint) error {
	want, err := hcn.SettingsOf[hcn.InterfaceNameSetting](row.Doc.Policies)
	if err != nil {
		return err
	}
	if row.Attach == nil || len(want) == 0 || want[0].Name == row.Attach.Interface {
		return nil
	}
	return hcn.Errorf(hcn.ErrRequestUnsupported, "the endpoint's interface is %s while it is attached: detach it to give it the name %s", old.Attach.Interface, want[0].Name)
}

// DeleteEndpoint deletes an endpoint, attached or not.
func (e *Engine) DeleteEndpoint(ctx context.Context, id hcn.GUID) error {
	rev, err := e.commitOr(ctx, func(t *txn) error {
		if t.st.endpoints[id] == nil {
			return noEndpoint(id)
		}
		t.dropEndpoint(id)
		return nil
	})
	if errors.Is(err, hcn.ErrEndpointNotFound) {
		return e.orForget(ctx, "endpoint", string(id), err)
	}
	if err != nil {
		return err
	}
	if err := e.cutOff(ctx, rev); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete endpoint %s: it is deleted, and the kernel follows: %w", id, err)
	}
	return nil
}

func (t *txn) dropEndpoint(id hcn.GUID) {
	if old := t.st.endpoints[id]; old != nil {
		t.releasePorts(old, nil)
		t.bidFarewell(old)
		t.leaveRoutes(id)
		t.putEndpoint(id, nil)
		t.leaveBalancers(id)
		k := object{"endpoint", string(id)}
		t.tell(queued{ev: api.Event{Kind: "endpoint", Action: "delete", ID: string(id), Name: old.Doc.Name}, goes: &k})
	}
}

// attach puts an endpoint into a namespace.
func (t *txn) attach(id, namespace hcn.GUID) (*plan.Endpoint, error) {
	old := t.st.endpoints[id]
	if old == nil {
		return nil, noEndpoint(id)
	}
	ns := t.st.namespaces[namespace]
	if ns == nil {
		return nil, noNamespace(namespace)
	}
	if old.Doc.Flags&hcn.RemoteEndpoint != 0 {
		return nil, hcn.Errorf(hcn.ErrInvalidRemoteEndpointOperation, "endpoint %s is on another host: it has no interface here", id)
	}
	if n := t.st.networks[old.Doc.HostComputeNetwork]; n != nil && plan.OnLAN(n.Doc.Type) && !plan.OneMAC(n.Doc.Type) && ns.Doc.Type == hcn.NamespaceTypeHostDefault {
		return nil, hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %s: the host is on the LAN of network %q by its own NIC, %s, and gets no vNIC there: give that NIC the address", id, n.Doc.Name, n.Uplink)
	}
	if n := t.st.networks[old.Doc.HostComputeNetwork]; n != nil && n.Doc.Type == hcn.Overlay && ns.Doc.Type == hcn.NamespaceTypeHostDefault {
		return nil, hcn.Errorf(hcn.ErrRequestUnsupported, "endpoint %s: the host gets no vNIC on the overlay network %q: the policy HostRoute lets it reach the endpoints there", id, n.Doc.Name)
	}
	if ns.Vanished {
		return nil, hcn.Errorf(hcn.ErrNamespaceAttachFailed, "namespace %s has no compartment of its own to attach to", namespace)
	}
	if old.Attach != nil {
		if old.Attach.Namespace == namespace {
			return old, nil
		}
		return nil, hcn.Errorf(hcn.ErrEndpointNamespaceAlreadyExists, "endpoint %s is in namespace %s: detach it there first", id, old.Attach.Namespace)
	}
	if n := t.st.networks[old.Doc.HostComputeNetwork]; n != nil && n.Doc.Flags&hcn.DisableSharing != 0 && len(ns.Containers) > 1 {
		return nil, hcn.Errorf(hcn.ErrEndpointSharingDisabled, "network %q forbids that containers share an endpoint, and namespace %s has %d", n.Doc.Name, namespace, len(ns.Containers))
	}
	if err := errors.Join(t.checkHostRules(old, namespace), t.checkSideCar(old, namespace), t.checkSlot(old, ns)); err != nil {
		return nil, err
	}
	at, err := t.place(old, namespace)
	if err != nil {
		return nil, err
	}
	if err := t.tryOut(old, at); err != nil {
		return nil, err
	}
	row := *old
	row.Attach, row.Detached, row.Trial, row.Before = at, false, nil, nil
	row.Doc = *old.Doc.Clone()
	row.Doc.HostComputeNamespace, row.Doc.State = namespace, hcn.EndpointAttached
	t.putEndpoint(id, &row)
	return &row, nil
}

// place chooses the interface name and the order among the namespace's
// attachments.
func (t *txn) place(ep *plan.Endpoint, namespace hcn.GUID) (*plan.Attachment, error) {
	taken, index := map[string]hcn.GUID{}, 0
	for id, o := range t.st.byNamespace[namespace] {
		taken[o.Attach.Interface] = id
		index = max(index, o.Attach.Index+1)
	}
	at := &plan.Attachment{Namespace: namespace, Index: index}
	host := t.st.namespaces[namespace].Doc.Type == hcn.NamespaceTypeHostDefault
	want, err := hcn.SettingsOf[hcn.InterfaceNameSetting](ep.Doc.Policies)
	if err != nil {
		return nil, err
	}
	if len(want) > 0 {
		if holder, ok := taken[want[0].Name]; ok {
			return nil, hcn.Errorf(hcn.ErrNamespaceAttachFailed, "interface %q of namespace %s belongs to endpoint %s: choose another name", want[0].Name, namespace, holder)
		}
		at.Interface = want[0].Name
		return at, nil
	}
	if host { // among the host's own interfaces, eth0 is not ours to take
		prefix := plan.HostVNICPrefix
		if n := t.st.networks[ep.Doc.HostComputeNetwork]; n != nil && plan.OnLAN(n.Doc.Type) {
			prefix = plan.LANVNICPrefix
		}
		at.Interface = plan.DeviceName(prefix, plan.EndpointPortID(ep.Doc.ID))
		return at, nil
	}
	for i := 0; ; i++ {
		if name := "eth" + itoa(i); taken[name] == "" {
			at.Interface = name
			return at, nil
		}
	}
}

// detached is the row of an endpoint that leaves its namespace.
func detached(old *plan.Endpoint) *plan.Endpoint {
	row := *old
	if old.Attach != nil {
		row.Trial = old.Attach.Confirm
		row.Before = old.Attach.Watch
	}
	row.Attach = nil
	row.Doc = *old.Doc.Clone()
	row.Doc.HostComputeNamespace, row.Doc.State = "", hcn.EndpointDetached
	return &row
}

// EndpointStats are the counters of an endpoint's port; zeros while it has none.
func (e *Engine) EndpointStats(id hcn.GUID) (api.NetworkStats, error) {
	e.mu.RLock()
	ep := e.st.endpoints[id]
	e.mu.RUnlock()
	if ep == nil {
		return api.NetworkStats{}, noEndpoint(id)
	}
	port := e.view.port(plan.EndpointPortID(id))
	if ep.Attach == nil || e.opt.Counters == nil || port == nil {
		return api.NetworkStats{Endpoint: id}, nil
	}
	s, err := e.opt.Counters(port)
	if err != nil {
		return api.NetworkStats{}, fmt.Errorf("read the counters of endpoint %s: %w", id, err)
	}
	s.Endpoint, s.Interface = id, ep.Attach.Interface
	return s, nil
}

// HCNVersion is the HCN version that clients derive features from.
func (e *Engine) HCNVersion() hcn.Version { return hcn.ClaimedVersion() }
