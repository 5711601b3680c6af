package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

var balancerTable = store.NewTable[plan.LoadBalancer]("loadbalancers")

func frontends(row *plan.LoadBalancer) []plan.Frontend {
	addrs := row.Doc.VIPs()
	if len(row.Doc.FrontendVIPs) == 0 {
		addrs = atHost(row)
	}
	var out []plan.Frontend
	for _, a := range addrs {
		for _, m := range row.Doc.PortMappings {
			out = append(out, plan.Frontend{Protocol: uint8(m.Protocol), Addr: a, Port: m.External()})
		}
	}
	return out
}

// What the tables of the switch hold (bpf/lib/balance.h), over all load balancers of the host.
const (
	mostServices = 1 << 16
	mostServed   = 1 << 20 // back ends of all services together
)

// servicesOf are how many services a load balancer has on its switch: those for endpoints, and in both families those for the host.
func servicesOf(row *plan.LoadBalancer) int {
	return len(row.Doc.FrontendVIPs)*len(row.Doc.PortMappings) + 2*row.OpenPorts()
}

// served are the back ends of a load balancer's services together.
func served(row *plan.LoadBalancer) int { return servicesOf(row) * len(row.Doc.HostComputeEndpoints) }

func balancerObject(id hcn.GUID) object { return object{"loadbalancer", string(id)} }

// LoadBalancers lists the load balancers that match, oldest first.
func (e *Engine) LoadBalancers(f hcn.Filter) []hcn.GUID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return listed(e.st.balancers, func(b *plan.LoadBalancer) (bool, uint64) { return f.MatchLoadBalancer(&b.Doc), b.Seq })
}

// LoadBalancer is the document of a load balancer.
func (e *Engine) LoadBalancer(id hcn.GUID) (hcn.HostComputeLoadBalancer, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	b := e.st.balancers[id]
	if b == nil {
		return hcn.HostComputeLoadBalancer{}, e.st.noBalancer(id)
	}
	return *b.Doc.Clone(), nil
}

func (s *state) noBalancer(id hcn.GUID) error {
	if b := s.shared[id]; b != nil {
		return hcn.Errorf(hcn.ErrElementNotFound, "load balancer %s is host %q's: see, change or delete it there", id, b.Host)
	}
	return hcn.Errorf(hcn.ErrElementNotFound, "no load balancer has the ID %s: see `bulkhead loadbalancer ls`", id)
}

// CreateLoadBalancer makes a load balancer and waits until the switch balances.
func (e *Engine) CreateLoadBalancer(ctx context.Context, id hcn.GUID, doc hcn.HostComputeLoadBalancer) (hcn.HostComputeLoadBalancer, error) {
	var row *plan.LoadBalancer
	id = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
	change := func(t *txn) (err error) {
		row, err = t.newBalancer(id, doc)
		return err
	}
	release, err := e.claimBalancer(ctx, change, &row)
	if err != nil {
		return hcn.HostComputeLoadBalancer{}, err
	}
	defer release()
	rev, err := e.commitOr(ctx, change)
	if err != nil {
		return hcn.HostComputeLoadBalancer{}, err
	}
	if err := e.applied(ctx, rev, balancerObject(id)); err != nil {
		e.undo(ctx, "loadbalancer", string(id), func(t *txn) { t.dropBalancer(id) })
		return hcn.HostComputeLoadBalancer{}, hcn.Errorf(hcn.ErrUnspecified, "make load balancer %s: %w", id, err)
	}
	return *row.Doc.Clone(), nil
}

func (t *txn) newBalancer(id hcn.GUID, in hcn.HostComputeLoadBalancer) (*plan.LoadBalancer, error) {
	doc := in.Clone()
	doc.ID = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
	if t.st.balancers[doc.ID] != nil {
		return nil, hcn.Errorf(hcn.ErrObjectAlreadyExists, "a load balancer with the ID %s exists: delete it first, or leave the ID out", doc.ID)
	}
	if b := t.st.shared[doc.ID]; b != nil {
		return nil, hcn.Errorf(hcn.ErrObjectAlreadyExists, "a load balancer with the ID %s exists on host %q: leave the ID out", doc.ID, b.Host)
	}
	doc.Version = 0
	row := &plan.LoadBalancer{Doc: *doc, Seq: t.nextSeq()}
	if err := t.checkBalancer(row, nil); err != nil {
		return nil, err
	}
	t.putBalancer(doc.ID, row)
	k := balancerObject(doc.ID)
	t.tell(queued{ev: api.Event{Kind: "loadbalancer", Action: "create", ID: string(doc.ID), Name: doc.Name}, on: []object{k}, comes: &k})
	return row, nil
}

// checkBalancer completes a row, in the place of an old one if there is one, and refuses what cannot be enforced here.
func (t *txn) checkBalancer(row, old *plan.LoadBalancer) error {
	doc := &row.Doc
	doc.Health, doc.State = nil, 0
	if err := doc.Validate(); err != nil {
		return err
	}
	doc.Defaults()
	n, err := t.balancerNetwork(doc, old)
	if err != nil {
		return err
	}
	row.Network = n.Doc.ID
	if n.Doc.Macvlan() {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "HostComputeNetwork: the devices of network %q are macvlan, which have no switch that balances: "+
			"use a network without Bulkhead.Macvlan, or balance outside", n.Doc.Name)
	}
	if !plan.Balances(&n.Doc) {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "HostComputeNetwork: on network %q of type %s every frame goes out of the NIC as it is: "+
			"use one of another type, or balance outside", n.Doc.Name, n.Doc.Type)
	}
	for _, a := range doc.VIPs() {
		if s := n.Doc.SubnetOf(a); s != nil {
			return hcn.Errorf(hcn.ErrInvalidIP, "FrontendVIPs: %s lies in the subnet %s of network %q, where its endpoints look for it on the link: "+
				"choose an address outside of it", a, s.IpAddressPrefix, n.Doc.Name)
		}
	}
	if err := errors.Join(t.openBalancer(row, old, n), t.sharedFree(row, n)); err != nil {
		return err
	}
	services, all := t.st.services+t.st.sharedServices+servicesOf(row), t.st.served+t.st.sharedServed+served(row)
	if old != nil {
		services, all = services-servicesOf(old), all-served(old)
	}
	if services > mostServices {
		return hcn.Errorf(hcn.ErrInvalidParameter, "PortMappings: with it the load balancers of this host would have %d services (ports at virtual addresses), %d is the limit: "+
			"delete those that nobody uses", services, mostServices)
	}
	if all > mostServed {
		return hcn.Errorf(hcn.ErrInvalidParameter, "HostComputeEndpoints: with it the services of this host would have %d back ends together, %d is the limit: "+
			"delete load balancers that nobody uses, or name fewer back ends", all, mostServed)
	}
	return t.claimBalancerPorts(row, old, n)
}

// frontendsFree refuses services that are another's.
func (t *txn) frontendsFree(row *plan.LoadBalancer) error {
	for _, f := range frontends(row) {
		if other, ok := t.st.frontends[f]; ok && other != row.Doc.ID {
			return hcn.Errorf(hcn.ErrPortAlreadyExists, "%s %s is a service of load balancer %s: delete that one, or choose another port",
				plan.ProtocolName(f.Protocol), netip.AddrPortFrom(f.Addr, f.Port), other)
		}
	}
	return nil
}

// balancerNetwork is the network that a document names, and that all its back ends are on. What was a back end may be on a host that is
// away just now: it stays.
func (t *txn) balancerNetwork(doc *hcn.HostComputeLoadBalancer, old *plan.LoadBalancer) (*plan.Network, error) {
	on := doc.HostComputeNetwork
	var list []hcn.GUID
	for i, id := range doc.HostComputeEndpoints {
		network := hcn.GUID("")
		if ep := t.st.endpoints[id]; ep != nil {
			network = ep.Doc.HostComputeNetwork
		} else if r := t.st.remotes[id]; r != nil {
			network = r.Network
		} else if old != nil && slices.Contains(old.Doc.HostComputeEndpoints, id) {
			network = old.Network
		} else {
			return nil, hcn.Errorf(hcn.ErrEndpointNotFound, "HostComputeEndpoints[%d]: no endpoint has the ID %s: see `bulkhead endpoint ls`", i, id)
		}
		if on.IsZero() {
			on = network
		}
		if network != on {
			return nil, hcn.Errorf(hcn.ErrInvalidEndpoint, "HostComputeEndpoints[%d]: endpoint %s is on network %s, and the load balancer on %s: "+
				"make one for each network", i, id, network, on)
		}
		if !slices.Contains(list, id) {
			list = append(list, id)
		}
	}
	doc.HostComputeEndpoints = list
	if on.IsZero() {
		return nil, hcn.Errorf(hcn.ErrInvalidParameter, "HostComputeNetwork: it is missing, and there is no endpoint that tells it: "+
			"name the network whose endpoints are to reach the load balancer")
	}
	n := t.st.networks[on]
	if n == nil {
		return nil, noNetwork(on)
	}
	return n, nil
}

// ModifyLoadBalancer gives a load balancer another document. Connections to back ends that stay go on.
func (e *Engine) ModifyLoadBalancer(ctx context.Context, id hcn.GUID, doc hcn.HostComputeLoadBalancer) error {
	var old, row *plan.LoadBalancer
	change := func(t *txn) error {
		old = t.st.balancers[id]
		if old == nil {
			return t.st.noBalancer(id)
		}
		row = &plan.LoadBalancer{Doc: *doc.Clone(), Seq: old.Seq}
		if !doc.ID.IsZero() && doc.ID != id {
			return hcn.Errorf(hcn.ErrInvalidParameter, "ID: the document says %s, the call %s: a load balancer keeps its ID", doc.ID, id)
		}
		row.Doc.ID, row.Doc.Version = id, old.Doc.Version+1
		if row.Doc.HostComputeNetwork.IsZero() && len(row.Doc.HostComputeEndpoints) == 0 {
			row.Doc.HostComputeNetwork = old.Network
		}
		if err := t.checkBalancer(row, old); err != nil {
			return err
		}
		row.Doc.HostComputeNetwork = doc.HostComputeNetwork
		t.changeBalancer(row)
		return nil
	}
	release, err := e.claimBalancer(ctx, change, &row)
	if err != nil {
		return err
	}
	defer release()
	rev, err := e.commitOr(ctx, change)
	if err != nil {
		return err
	}
	if err := e.applied(ctx, rev, balancerObject(id)); err != nil {
		e.undo(ctx, "loadbalancer", string(id), func(t *txn) {
			if t.st.balancers[id] != row {
				return // somebody has changed or deleted it since
			}
			if err := t.frontendsFree(old); err != nil { // another has taken what it gave up
				e.log.Warn("a load balancer keeps the document that could not be made", "loadbalancer", id, "reason", err)
				return
			}
			t.putBalancer(id, old)
		})
		return hcn.Errorf(hcn.ErrUnspecified, "change load balancer %s: %w", id, err)
	}
	return nil
}

func (t *txn) changeBalancer(row *plan.LoadBalancer) {
	t.putBalancer(row.Doc.ID, row)
	t.tell(queued{
		ev: api.Event{Kind: "loadbalancer", Action: "modify", ID: string(row.Doc.ID), Name: row.Doc.Name},
		on: []object{balancerObject(row.Doc.ID)},
	})
}

// DeleteLoadBalancer deletes a load balancer; its ports are free when it returns.
func (e *Engine) DeleteLoadBalancer(ctx context.Context, id hcn.GUID) error {
	rev, err := e.commitOr(ctx, func(t *txn) error {
		if t.st.balancers[id] == nil {
			return t.st.noBalancer(id)
		}
		t.dropBalancer(id)
		return nil
	})
	if errors.Is(err, hcn.ErrElementNotFound) {
		return e.orForget(ctx, "loadbalancer", string(id), err)
	}
	if err != nil {
		return err
	}
	if err := e.applied(ctx, rev, balancerObject(id)); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete load balancer %s: it is deleted, and the kernel follows: %w", id, err)
	}
	return nil
}

func (t *txn) dropBalancer(id hcn.GUID) {
	if old := t.st.balancers[id]; old != nil {
		t.releaseBalancerPorts(old)
		t.putBalancer(id, nil)
		k := balancerObject(id)
		t.tell(queued{ev: api.Event{Kind: "loadbalancer", Action: "delete", ID: string(id), Name: old.Doc.Name}, goes: &k})
	}
}

// leaveBalancers takes an endpoint that is deleted out of the load balancers that it is a back end of.
func (t *txn) leaveBalancers(endpoint hcn.GUID) {
	for id := range t.st.byBackend[endpoint] {
		row := *t.st.balancers[id]
		row.Doc = *row.Doc.Clone()
		row.Doc.HostComputeEndpoints = slices.DeleteFunc(row.Doc.HostComputeEndpoints, func(ep hcn.GUID) bool { return ep == endpoint })
		row.Doc.Version++
		t.changeBalancer(&row)
	}
}

func (s *state) setBalancer(id hcn.GUID, row *plan.LoadBalancer) {
	if old := s.balancers[id]; old != nil {
		delete(s.balancers, id)
		s.services -= servicesOf(old)
		s.served -= served(old)
		for _, p := range old.Inside {
			if s.inside[old.DoorID()][p] == id {
				delete(s.inside[old.DoorID()], p)
			}
		}
		if len(s.inside[old.DoorID()]) == 0 {
			delete(s.inside, old.DoorID())
		}
		for _, ep := range old.Doc.HostComputeEndpoints {
			drop(s.byBackend, ep, id)
		}
		drop(s.bySource, old.SourceVIP(), id)
		for _, f := range frontends(old) {
			if s.frontends[f] == id {
				delete(s.frontends, f)
			}
		}
	}
	if row == nil {
		return
	}
	s.balancers[id] = row
	s.services += servicesOf(row)
	s.served += served(row)
	for _, p := range row.Inside {
		if p != 0 {
			if s.inside[row.DoorID()] == nil {
				s.inside[row.DoorID()] = map[uint16]hcn.GUID{}
			}
			s.inside[row.DoorID()][p] = id
		}
	}
	for _, ep := range row.Doc.HostComputeEndpoints {
		insert(s.byBackend, ep, id, row)
	}
	if a := row.SourceVIP(); a.IsValid() {
		insert(s.bySource, a, id, row)
	}
	for _, f := range frontends(row) {
		s.frontends[f] = id
	}
	s.seq = max(s.seq, row.Seq)
}

func (t *txn) putBalancer(id hcn.GUID, row *plan.LoadBalancer) {
	old := t.st.balancers[id]
	t.st.setBalancer(id, row)
	t.undo = append(t.undo, func() { t.st.setBalancer(id, old) })
	t.dirty.Balancers[id] = struct{}{}
	for _, b := range []*plan.LoadBalancer{old, row} {
		if b == nil {
			continue
		}
		for _, f := range frontends(b) { // of another host's, this host's own takes services
			if other, ok := t.st.sharedAt[b.Network][f]; ok {
				t.dirty.Balancers[other] = struct{}{}
			}
		}
	}
	t.save = append(t.save, saveRow(balancerTable, false, string(id), row, old))
}
