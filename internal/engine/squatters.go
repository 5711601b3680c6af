package engine

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// An address on a LAN may be somebody's of whom we know nothing. Those that no server leased are asked for before an endpoint gets
// them and before it is attached, by the NIC and with its MAC: nothing has to be undone when somebody answers.

const (
	// DefaultProbe is how long an answer is waited for.
	DefaultProbe = 300 * time.Millisecond
	// probedLately is for how long nobody's address is not asked for again: an endpoint is attached soon after it is made.
	probedLately = 10 * time.Second
	// avoidFor is for how long an address that somebody else had is not chosen.
	avoidFor = 10 * time.Minute
	// mostSquatters bounds the choosing of addresses one after the other that somebody has.
	mostSquatters = 16
	// announceAgain is the time between the two announcements of an address (RFC 5227).
	announceAgain = 2 * time.Second
)

// lanAddr is an address on the LAN of a network.
type lanAddr struct {
	network hcn.GUID
	addr    netip.Addr
}

// squatter is somebody on a LAN who has an address that an endpoint is to have.
type squatter struct {
	lanAddr
	endpoint, name, nic string
	mac                 plan.MAC
}

func (s *squatter) err() error {
	return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "address %s of %s is used by %s on the LAN of %s (network %q): find out who that is and end it there, or choose another address",
		s.addr, s.endpoint, s.mac, s.nic, s.name)
}

// question is what is asked on one LAN.
type question struct {
	want  LeaseWant
	addrs []netip.Addr
	about map[netip.Addr]squatter // those that must be free; the others are gateways
}

// vacant finds out for a change that gives endpoints addresses, before it is made, whether somebody on the LAN has them. Those that
// the daemon chose are not chosen again; what the user chose is refused.
func (e *Engine) vacant(ctx context.Context, change func(*txn) ([]*plan.Endpoint, error)) error {
	if !e.probing(ctx) {
		return nil
	}
	tried := map[lanAddr]bool{}
	for {
		var eps []*plan.Endpoint
		if err := e.leasing(ctx, func(full map[subnetKey]bool) (err error) { eps, err = e.tryOut(full, change); return err }); err != nil {
			return err
		}
		found := e.squatters(ctx, eps)
		if len(found) == 0 {
			return nil
		}
		for i := range found {
			if tried[found[i].lanAddr] || len(tried) == mostSquatters {
				return found[i].err()
			}
			tried[found[i].lanAddr] = true
			e.avoid(found[i].lanAddr)
		}
	}
}

// stillVacant finds out the same of endpoints that are about to be attached.
func (e *Engine) stillVacant(ctx context.Context, ids ...hcn.GUID) error {
	if !e.probing(ctx) {
		return nil
	}
	e.mu.RLock()
	var eps []*plan.Endpoint
	for _, id := range ids {
		if ep := e.st.endpoints[id]; ep != nil {
			eps = append(eps, ep)
		}
	}
	e.mu.RUnlock()
	if found := e.squatters(ctx, eps); len(found) > 0 {
		return found[0].err()
	}
	return nil
}

// probing tells whether there is anybody to ask.
func (e *Engine) probing(ctx context.Context) bool {
	if !e.probes() && e.opt.Reach == nil || rehearsing(ctx) != nil {
		return false
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, n := range e.st.networks {
		if plan.OnLAN(n.Doc.Type) {
			return true
		}
	}
	return false
}

// probes tells whether LANs are asked who has an address.
func (e *Engine) probes() bool { return e.opt.Leases != nil && e.opt.Probe > 0 }

// tryOut runs a change and takes it back.
func (e *Engine) tryOut(full map[subnetKey]bool, change func(*txn) ([]*plan.Endpoint, error)) ([]*plan.Endpoint, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &txn{e: e, st: e.st, dirty: emptyDirty(), facts: &e.facts, dry: true, full: full}
	seq, last := e.st.seq, maps.Clone(e.st.lastAddr)
	defer func() {
		t.rollBack()
		e.st.seq, e.st.lastAddr = seq, last
	}()
	return change(t)
}

// squatters asks who on the LANs of endpoints has their addresses, and looks meanwhile who is there at all.
func (e *Engine) squatters(ctx context.Context, eps []*plan.Endpoint) (found []squatter) {
	defer e.lookFirst(ctx, eps)()
	if !e.probes() {
		return nil
	}
	questions := e.questions(eps)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var answered []*question
	for _, q := range questions {
		wg.Go(func() {
			users, err := e.opt.Leases.Probe(ctx, q.want, q.addrs, e.opt.Probe)
			if err != nil {
				// Who cannot be asked does not keep anybody from his address.
				e.log.Warn("ask a LAN who has an address", "nic", q.want.Device, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answered = append(answered, q)
			found = append(found, q.judge(users)...)
		})
	}
	wg.Wait()
	slices.SortFunc(found, func(a, b squatter) int {
		return cmp.Or(cmp.Compare(a.name, b.name), a.addr.Compare(b.addr))
	})
	e.noteFree(answered, found)
	return found
}

// judge says which of those who answered matter. Some clouds and routers answer for every address: on a network with one MAC on
// the wire, who has the gateway's MAC is one of them.
func (q *question) judge(users map[netip.Addr]plan.MAC) (found []squatter) {
	everybody := map[plan.MAC]bool{}
	for a, mac := range users {
		if _, ours := q.about[a]; !ours {
			everybody[mac] = true
		}
	}
	for a, s := range q.about {
		if mac, has := users[a]; has && !everybody[mac] {
			s.mac = mac
			found = append(found, s)
		}
	}
	return found
}

// questions puts together what is asked, LAN by LAN. A NIC without a carrier has nobody behind it.
func (e *Engine) questions(eps []*plan.Endpoint) (out []*question) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	type lan struct {
		nic  string
		vlan uint16
	}
	at := map[lan]*question{}
	for _, ep := range eps {
		n := e.st.networks[ep.Doc.HostComputeNetwork]
		if n == nil || !plan.OnLAN(n.Doc.Type) || ep.Leased || ep.Doc.Flags&hcn.RemoteEndpoint != 0 {
			continue
		}
		if now := e.st.endpoints[ep.Doc.ID]; now != nil && now.Attach != nil {
			continue // it has them
		}
		nic := e.facts.NIC(n.Uplink)
		if nic == nil || !nic.Up || nic.NoCarrier {
			continue
		}
		k := lan{nic.Name, plan.VLANOf(ep, n)}
		q := at[k]
		if q == nil {
			q = &question{about: map[netip.Addr]squatter{}, want: LeaseWant{Network: n.Doc.Name, Name: nic.Name, Device: nic.Name, VLAN: k.vlan, MAC: nic.MAC}}
		}
		for _, p := range ep.Addrs {
			la := lanAddr{n.Doc.ID, p.Addr()}
			if _, twice := q.about[la.addr]; twice || e.leases.freeLately(la) {
				continue
			}
			q.addrs = append(q.addrs, la.addr)
			q.about[la.addr] = squatter{lanAddr: la, endpoint: ownerOf(ep), name: n.Doc.Name, nic: nic.Name}
		}
		if len(q.about) == 0 {
			continue
		}
		if at[k] == nil {
			at[k] = q
			out = append(out, q)
		}
		if plan.OneMAC(n.Doc.Type) {
			for _, gw := range plan.Gateways(ep, n) {
				if !slices.Contains(q.addrs, gw) {
					q.addrs = append(q.addrs, gw)
				}
			}
		}
	}
	return out
}

// freeLately tells whether nobody had an address a moment ago.
func (l *leaser) freeLately(a lanAddr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.free[a]
	return ok && time.Since(at) < probedLately
}

// forgetFree has addresses asked for again when they are attached the next time.
func (l *leaser) forgetFree(network hcn.GUID, addrs []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addrs {
		delete(l.free, lanAddr{network, a})
	}
}

// noteFree remembers which addresses nobody has.
func (e *Engine) noteFree(asked []*question, found []squatter) {
	l := e.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(l.free, func(_ lanAddr, at time.Time) bool { return now.Sub(at) >= probedLately })
	for _, q := range asked {
		for _, s := range q.about {
			if !slices.ContainsFunc(found, func(f squatter) bool { return f.lanAddr == s.lanAddr }) {
				l.free[s.lanAddr] = now
			}
		}
	}
}

// avoid has an address not chosen for a while.
func (e *Engine) avoid(a lanAddr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(e.st.avoided, func(_ lanAddr, at time.Time) bool { return now.Sub(at) >= avoidFor })
	e.st.avoided[a] = now
}

// isAvoided tells whether somebody on the LAN had an address lately. Locked: the engine's.
func (s *state) isAvoided(a lanAddr) bool {
	at, ok := s.avoided[a]
	return ok && time.Since(at) < avoidFor
}

// announce tells the LANs of endpoints that were attached at which MAC their addresses are now, and finds out whether that has cut
// the host off: then they are detached again.
func (e *Engine) announce(ctx context.Context, ids ...hcn.GUID) error {
	e.mu.RLock()
	// Whose lease an address is announces it.
	static := slices.DeleteFunc(slices.Clone(ids), func(id hcn.GUID) bool { ep := e.st.endpoints[id]; return ep == nil || ep.Leased })
	e.mu.RUnlock()
	said := e.sayWhere(static)
	return e.stillThere(ctx, said, ids)
}

// Moved is told that the neighbours of a NIC are to look for it anew: a bond sends by another member, or the machine runs on
// another host. The kernel announces the NIC's own addresses then, but not those of the containers on it, which the switches
// outside go on looking for where they were. The loop does, when the programs know the NIC's MAC, which may be another one.
func (e *Engine) Moved(nic string) {
	e.pending.move(nic)
	e.kick()
}

func (e *Engine) announceMoved(nics map[string]struct{}) {
	if len(nics) == 0 {
		return
	}
	ids := e.endpointsOn(func(uplink string) bool { _, has := nics[uplink]; return has })
	if len(ids) > 0 {
		e.log.Info("a NIC has moved: the addresses of its containers are announced", "nics", slices.Sorted(maps.Keys(nics)))
	}
	e.sayWhere(ids)
}

// endpointsOn are those on NICs.
func (e *Engine) endpointsOn(nics func(string) bool) (ids []hcn.GUID) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for id, n := range e.st.networks {
		if n.Uplink != "" && nics(n.Uplink) {
			ids = slices.AppendSeq(ids, maps.Keys(e.st.byNetwork[id]))
		}
	}
	return ids
}

// sayWhere announces endpoints' addresses, twice. The first time is over when what it returns is closed.
func (e *Engine) sayWhere(ids []hcn.GUID) (said <-chan struct{}) {
	once := make(chan struct{})
	if e.opt.Leases == nil {
		close(once)
		return once
	}
	type news struct {
		want  LeaseWant
		addrs []netip.Addr
	}
	var all []news
	e.mu.RLock()
	for _, id := range ids {
		ep, port := e.st.endpoints[id], e.view.port(plan.EndpointPortID(id))
		if ep == nil || port == nil {
			continue
		}
		n := e.st.networks[ep.Doc.HostComputeNetwork]
		if n == nil || !plan.OnLAN(n.Doc.Type) {
			continue
		}
		w := leaseWant(ep, n)
		w.Namespace, w.Device = port.VNIC.Namespace, port.VNIC.Device
		all = append(all, news{w, port.Addrs})
		e.leases.forgetFree(n.Doc.ID, port.Addrs)
	}
	e.mu.RUnlock()
	if len(all) == 0 {
		close(once)
		return once
	}
	say := func() {
		for _, w := range all {
			if err := e.opt.Leases.Announce(e.ctrs.runCtx(), w.want, w.addrs); err != nil {
				e.log.Debug("an endpoint's addresses are not announced", "endpoint", w.want.Endpoint, "error", err) // it may be gone by now
			}
		}
	}
	e.ctrs.spawn(func() { defer close(once); say() })
	e.ctrs.after(announceAgain, say)
	return once
}
