package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Leases asks LANs for the addresses of endpoints (ADR 17).
type Leases interface {
	// Sync makes the wanted leases the ones that are asked for and renewed. It does not wait for them.
	Sync(ctx context.Context, wants []LeaseWant)
	States() []LeaseState
	// GiveBack tells servers that the want's Stored leases are free; Device is the NIC.
	GiveBack(ctx context.Context, w LeaseWant) error
	// Probe asks who on the LAN of a NIC has one of some addresses, and takes wait for it. Device, MAC and VLAN of the want
	// are those of the NIC and its frames.
	Probe(ctx context.Context, w LeaseWant, addrs []netip.Addr, wait time.Duration) (used map[netip.Addr]plan.MAC, err error)
	// Announce tells all on the link of a vNIC that it has addresses.
	Announce(ctx context.Context, w LeaseWant, addrs []netip.Addr) error
	// Close ends all of it and gives nothing back.
	Close()
}

// LeaseWant is an endpoint that has its addresses from its LAN.
type LeaseWant struct {
	Endpoint          hcn.GUID
	Network, Name     string // for people
	Namespace, Device string
	VLAN              uint16
	MAC               plan.MAC
	LinkLocal         netip.Addr
	Hostname          string
	IPv4, IPv6        bool
	// Parked says that its vNIC is away for now: nothing is asked, and nothing given back.
	Parked bool
	// Within are the subnets that an address must be in one of; none: any.
	Within []netip.Prefix
	// Stored are the leases of its row.
	Stored map[plan.LeaseSource]plan.Lease
}

// LeaseState is how it is with the leases of one source.
type LeaseState struct {
	Endpoint hcn.GUID
	Source   plan.LeaseSource
	Phase    string
	Lease    *plan.Lease // nil: none; not to be changed
	Pending  *plan.Lease // what a server was asked for, and may hold for the endpoint already
	Problem  string      // for people; "" for none
	Others   []netip.Addr
}

// The phases that mean something here.
const (
	phaseProbing   = "probing"
	phaseRebooting = "rebooting" // a stored lease is asked about
)

const (
	// DefaultLeaseWait bounds how long a container's start waits for addresses.
	DefaultLeaseWait = 30 * time.Second
	// otherFamily is how long a container that has an address of one family waits for the other, which may not be there; and
	// for word on a lease from before.
	otherFamily = 3 * time.Second
)

type leaseKey struct {
	endpoint hcn.GUID
	source   plan.LeaseSource
}

// leaser is what the engine knows of leases beside the rows.
type leaser struct {
	mu      sync.Mutex
	states  map[leaseKey]LeaseState // as the loop saw them last
	changed chan struct{}           // closed and replaced after each pass that may have changed them
	closed  error
	// farewell wakes who gives back the leases of endpoints that are gone.
	farewell chan struct{}
	free     map[lanAddr]time.Time // addresses that nobody had when they were asked for

	wants []LeaseWant // the loop's alone: what Sync got last
	again time.Time   // the loop's alone: a write was refused, and is not tried before
}

func newLeaser() *leaser {
	return &leaser{changed: make(chan struct{}), farewell: make(chan struct{}, 1), free: map[lanAddr]time.Time{}}
}

func (l *leaser) broadcast() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leaser) close(err error) {
	l.mu.Lock()
	l.closed = err
	l.mu.Unlock()
	l.broadcast()
}

func (l *leaser) watch() (<-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed, l.closed
}

// of lists an endpoint's states in the order of their sources.
func (l *leaser) of(id hcn.GUID) (out []LeaseState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, src := range plan.LeaseSources() {
		if st, ok := l.states[leaseKey{id, src}]; ok {
			out = append(out, st)
		}
	}
	return out
}

// LeasesChanged has the loop look at the leases. It does not block.
func (e *Engine) LeasesChanged() { e.kick() }

// AdmitLease says why an endpoint cannot have an address that somebody on its LAN offers.
func (e *Engine) AdmitLease(id hcn.GUID, a netip.Addr) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ep := e.st.endpoints[id]
	if ep == nil {
		return noEndpoint(id)
	}
	return e.st.admit(ep, a, e.facts.HostAddrs)
}

func (s *state) admit(ep *plan.Endpoint, a netip.Addr, host []netip.Prefix) error {
	id, network := ep.Doc.ID, ep.Doc.HostComputeNetwork
	if holder, ok := s.addrs[network][a]; ok && holder != id {
		return fmt.Errorf("address %s belongs to endpoint %q (%s): take it out of the range of the LAN's server, or delete that endpoint", a, s.endpoints[holder].Doc.Name, holder)
	}
	if slices.ContainsFunc(host, func(p netip.Prefix) bool { return p.Addr() == a }) {
		return fmt.Errorf("address %s is one of this host", a)
	}
	n := s.networks[network]
	if n == nil {
		return noNetwork(network)
	}
	for _, sub := range n.Doc.AllSubnets() {
		if gw, ok := sub.Gateway(); ok && gw == a {
			return fmt.Errorf("address %s is the gateway of network %q", a, n.Doc.Name)
		}
	}
	for _, o := range s.byNetwork[network] {
		if slices.Contains(plan.Gateways(o, n), a) {
			return fmt.Errorf("address %s is the gateway of endpoint %q", a, o.Doc.Name)
		}
	}
	return nil
}

// takeLeases brings the rows up to what was leased, renewed or lost. Times alone are worth a write when they have moved by a
// quarter of the lease, or when the daemon ends.
func (e *Engine) takeLeases(ending bool) {
	if e.opt.Leases == nil {
		return
	}
	e.mu.RLock()
	none := len(e.st.leased) == 0
	e.mu.RUnlock()
	if none {
		e.leases.note(nil)
		return
	}
	states := map[leaseKey]LeaseState{}
	for _, st := range e.opt.Leases.States() {
		states[leaseKey{st.Endpoint, st.Source}] = st
	}
	e.leases.note(states)
	now := time.Now()
	var ids []hcn.GUID
	e.mu.RLock()
	for id := range e.st.leased {
		if ep := e.st.endpoints[id]; worthStoring(ep.Leases, e.st.leasesNow(ep, states, now, e.facts.HostAddrs), ending) {
			ids = append(ids, id)
		}
	}
	e.mu.RUnlock()
	if len(ids) == 0 || now.Before(e.leases.again) {
		return
	}
	slices.Sort(ids)
	e.opt.Step("lease")
	_, err := e.commit(func(t *txn) error {
		for _, id := range ids {
			if ep := t.st.endpoints[id]; ep != nil && ep.Leased {
				t.putLeases(ep, t.st.leasesNow(ep, states, now, t.facts.HostAddrs), states)
			}
		}
		return nil
	})
	if err != nil {
		e.log.Warn("note leases", "error", err)
		e.leases.again = now.Add(undoAgain) // a refused write wakes the loop
		return
	}
	if !ending {
		e.refreshEtc(ids)
	}
}

// note keeps the states for readers.
func (l *leaser) note(states map[leaseKey]LeaseState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states = states
}

// leasesNow are the leases that an endpoint has: those that are kept up, and while nobody does that those of its row until they
// end. One with an address that somebody else has got meanwhile is none.
func (s *state) leasesNow(ep *plan.Endpoint, states map[leaseKey]LeaseState, now time.Time, host []netip.Prefix) map[plan.LeaseSource]plan.Lease {
	out := map[plan.LeaseSource]plan.Lease{}
	n := s.networks[ep.Doc.HostComputeNetwork]
	if n == nil {
		return out
	}
	v4, v6, _ := plan.LeaseFamilies(n)
	for _, src := range plan.LeaseSources() {
		if src == plan.LeaseDHCPv4 && !v4 || src != plan.LeaseDHCPv4 && !v6 {
			continue
		}
		l, ok := ep.Leases[src]
		if st, live := states[leaseKey{ep.Doc.ID, src}]; live {
			if ok = st.Lease != nil; ok {
				l = *st.Lease
			}
		}
		if !ok || l.Over(now) || slices.ContainsFunc(l.Addrs, func(a plan.LeasedAddress) bool {
			return !slices.Contains(ep.Addrs, a.Prefix) && s.admit(ep, a.Prefix.Addr(), host) != nil
		}) {
			continue
		}
		out[src] = l
	}
	return out
}

// worthStoring compares the leases of a row with those of now.
func worthStoring(old, now map[plan.LeaseSource]plan.Lease, anything bool) bool {
	if len(old) != len(now) {
		return true
	}
	for src, l := range now {
		was, ok := old[src]
		moved := l.Expires.Sub(was.Expires).Abs()
		if !ok || !was.Alike(&l) || was.Server != l.Server || was.ServerID != l.ServerID || was.ServerMAC != l.ServerMAC ||
			l.Expires.IsZero() != was.Expires.IsZero() || moved > 0 && (anything || moved >= l.Expires.Sub(l.Got)/4) {
			return true
		}
	}
	return false
}

// putLeases stores the leases of an endpoint, with the addresses that follow from them, and tells of what has changed.
func (t *txn) putLeases(old *plan.Endpoint, leases map[plan.LeaseSource]plan.Lease, states map[leaseKey]LeaseState) {
	row := *old
	row.Leases = leases
	if len(leases) == 0 {
		row.Leases = nil
	}
	row.Addrs = row.LeasedAddrs()
	id := old.Doc.ID
	t.putEndpoint(id, &row)
	for _, src := range plan.LeaseSources() {
		was, had := old.Leases[src]
		now, has := leases[src]
		attributes := map[string]string{"source": string(src)}
		action := "lease"
		switch {
		case has && (!had || !was.Alike(&now)):
			attributes["addresses"], attributes["server"] = addressText(&now), now.Server.String()
		case had && !has:
			action = "lease-lost"
			attributes["addresses"], attributes["problem"] = addressText(&was), states[leaseKey{id, src}].Problem
		default:
			continue
		}
		t.tell(queued{
			ev: api.Event{Kind: "endpoint", Action: action, ID: string(id), Name: old.Doc.Name, Attributes: attributes},
			on: []object{portObject(id)},
		})
	}
}

func addressText(l *plan.Lease) string {
	var out []string
	for _, a := range l.Addrs {
		out = append(out, a.Prefix.String())
	}
	return strings.Join(out, ",")
}

// syncLeases has asked for what the endpoints of the plan want, after their vNICs were made.
func (e *Engine) syncLeases(ctx context.Context) {
	if e.opt.Leases == nil {
		return
	}
	wants := e.leaseWants()
	same := slices.EqualFunc(wants, e.leases.wants, func(a, b LeaseWant) bool {
		a.Stored, b.Stored = nil, nil // they are looked at once
		return reflect.DeepEqual(a, b)
	})
	if same {
		return
	}
	e.leases.wants = wants
	e.opt.Leases.Sync(ctx, wants)
}

func (e *Engine) leaseWants() (out []LeaseWant) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if len(e.st.leased) == 0 {
		return nil
	}
	names := map[hcn.GUID]string{}
	for _, c := range e.st.containers {
		for _, id := range c.Endpoints {
			names[id] = cmp.Or(c.Doc.Spec.Hostname, c.Doc.Name)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(e.st.leased)) {
		ep := e.st.endpoints[id]
		n := e.st.networks[ep.Doc.HostComputeNetwork]
		if n == nil {
			continue
		}
		w := leaseWant(ep, n)
		w.Hostname = cmp.Or(names[id], w.Hostname)
		if port := e.plan.Ports[plan.EndpointPortID(id)]; port != nil {
			w.Namespace, w.Device = port.VNIC.Namespace, port.VNIC.Device
		} else {
			w.Parked = true
		}
		out = append(out, w)
	}
	return out
}

// leaseWant is what an endpoint wants, wherever it is.
func leaseWant(ep *plan.Endpoint, n *plan.Network) LeaseWant {
	w := LeaseWant{
		Endpoint: ep.Doc.ID, Network: n.Doc.Name, Name: cmp.Or(ep.Doc.Name, string(ep.Doc.ID)), MAC: ep.MAC, LinkLocal: ep.MAC.LinkLocal(),
		VLAN: plan.VLANOf(ep, n), Hostname: ep.Doc.Name, Stored: maps.Clone(ep.Leases),
	}
	w.IPv4, w.IPv6, w.Within = plan.LeaseFamilies(n)
	return w
}

// awaitLeases waits until endpoints have the addresses that their LANs give them.
func (e *Engine) awaitLeases(ctx context.Context, ids ...hcn.GUID) error {
	begin := time.Now()
	limit := time.NewTimer(e.opt.LeaseWait)
	defer limit.Stop()
	for late := false; ; {
		changed, closed := e.leases.watch()
		missing := e.missingLease(ids, time.Since(begin), late)
		switch {
		case missing == nil:
			return e.undone(ids)
		case closed != nil:
			return closed
		case late:
			return missing
		}
		select {
		case <-changed:
		case <-limit.C:
			late = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// missingLease says which of the endpoints has no address yet, and why; nil: none.
func (e *Engine) missingLease(ids []hcn.GUID, waited time.Duration, late bool) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, id := range ids {
		ep := e.st.endpoints[id]
		if ep == nil || !ep.Leased || unapproved(ep) { // announced says what became of that
			continue
		}
		n := e.st.networks[ep.Doc.HostComputeNetwork]
		if n == nil {
			return noNetwork(ep.Doc.HostComputeNetwork)
		}
		states := e.leases.of(id)
		if hasLeases(ep, n, states, waited, late) {
			continue
		}
		var why []string
		for _, st := range states {
			if text := st.lacks(); text != "" && !slices.Contains(why, text) {
				why = append(why, text)
			}
		}
		if len(why) == 0 {
			why = []string{"the LAN of " + n.Uplink + " is silent"}
		}
		return api.Errorf(api.KindUnavailable, "no address from the LAN of network %q within %s: %s", n.Doc.Name, waited.Round(time.Second), strings.Join(why, "; ")).
			Hint("look into the log of the LAN's DHCP server, or see whether frames of MAC %s are dropped: bulkhead drops", ep.MAC)
	}
	return nil
}

// lacks says why there is no address of a source: each has its part in it, also while nothing is wrong with it yet.
func (st *LeaseState) lacks() string {
	switch {
	case st.Problem != "" || st.Lease != nil:
		return st.Problem
	case st.Pending != nil && st.Phase == phaseProbing:
		return fmt.Sprintf("server %s gives %s, and the LAN is still being asked whether somebody has it", st.Pending.Server, addressText(st.Pending))
	case st.Pending != nil:
		return fmt.Sprintf("server %s has offered %s and not yet answered the request for it", st.Pending.Server, addressText(st.Pending))
	case st.Source == plan.LeaseDHCPv4:
		return "no DHCP server has answered yet"
	}
	return ""
}

// hasLeases tells whether an endpoint may be used: it has an address of each family, or of one, and the other family is late.
func hasLeases(ep *plan.Endpoint, n *plan.Network, states []LeaseState, waited time.Duration, late bool) bool {
	v4, v6, _ := plan.LeaseFamilies(n)
	busy := false
	for _, st := range states {
		if waited < otherFamily && st.Phase == phaseRebooting {
			return false // whether the lease of last time still holds
		}
		busy = busy || st.Phase == phaseProbing
	}
	var has4, has6 bool
	for _, a := range ep.Addrs {
		has4, has6 = has4 || a.Addr().Is4(), has6 || a.Addr().Is6()
	}
	if (has4 || !v4) && (has6 || !v6) {
		return true
	}
	return (has4 || has6) && (late || waited >= otherFamily && !busy)
}

// showLeases puts what the LAN gave into an endpoint's document, which says itself only what was asked for.
func (s *state) showLeases(doc *hcn.HostComputeEndpoint, ep *plan.Endpoint) {
	n := s.networks[ep.Doc.HostComputeNetwork]
	if !ep.Leased || n == nil {
		return
	}
	for _, a := range ep.Addrs {
		c := hcn.IpConfig{IpAddress: a.Addr().String(), PrefixLength: uint8(a.Bits())}
		if sub := n.Doc.SubnetOf(a.Addr()); sub != nil {
			c.IpSubnetId = sub.ID
		}
		doc.IpConfigurations = append(doc.IpConfigurations, c)
	}
	if len(doc.Routes) == 0 {
		doc.Routes = plan.RouteDocuments(ep, n)
	}
	servers, search := ep.LeasedDNS()
	if len(doc.Dns.ServerList) == 0 {
		for _, a := range servers {
			doc.Dns.ServerList = append(doc.Dns.ServerList, a.String())
		}
	}
	if len(doc.Dns.Search) == 0 {
		doc.Dns.Search = search
	}
}

// leaseDocs are the leases of an endpoint as people see them.
func (e *Engine) leaseDocs(ep *plan.Endpoint) (out []api.Lease) {
	states := map[plan.LeaseSource]LeaseState{}
	for _, st := range e.leases.of(ep.Doc.ID) {
		states[st.Source] = st
	}
	for _, src := range plan.LeaseSources() {
		st, live := states[src]
		l, has := ep.Leases[src]
		if !live && !has {
			continue
		}
		doc := api.Lease{Source: string(src), State: "kept", Problem: st.Problem}
		if live {
			doc.State = st.Phase
		}
		for _, a := range st.Others {
			doc.OtherServers = append(doc.OtherServers, a.String())
		}
		if has {
			for _, a := range l.Addrs {
				doc.Addresses = append(doc.Addresses, a.Prefix.String())
			}
			if l.Server.IsValid() {
				doc.Server = l.Server.String()
			}
			if live && st.Lease != nil {
				l.T1, l.Expires = st.Lease.T1, st.Lease.Expires // newer than those of the row
			}
			doc.Renews, doc.Expires = timeOrNil(l.T1), timeOrNil(l.Expires)
		}
		out = append(out, doc)
	}
	return out
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Round(time.Second)
	return &t
}

// leaseChecks are the doctor's lines about leases. Locked: e.mu.
func (e *Engine) leaseChecks() (out []api.Check) {
	for id := range e.st.leased {
		ep := e.st.endpoints[id]
		if ep.Attach == nil {
			continue
		}
		for _, st := range e.leases.of(id) {
			if st.Problem == "" || len(ep.Addrs) > 0 && st.Lease == nil && st.Source != plan.LeaseDHCPv4 {
				continue // a LAN need not have both families
			}
			out = append(out, api.Check{
				Name: "lease of " + cmp.Or(ep.Doc.Name, string(id)), Status: "warn", Detail: st.Problem,
				Next: "look into the log of the LAN's DHCP server",
			})
		}
	}
	return out
}
