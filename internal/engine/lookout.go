package engine

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// An endpoint of a Transparent network brings a second MAC to the wire, and some switches shut a port for that, at once or a moment
// later. So with every attachment there, whoever asks for it, those by the NIC are asked before, after its addresses were announced,
// and for some seconds on, beside whatever goes on. When all who answered are silent, the endpoint is detached again, and only a user
// attaches it anew. Who answered is in the endpoint's row until that time is over: a daemon that dies meanwhile goes on where it was.

const (
	// lookRouters and lookOthers bound the look before: those who are there answer within a millisecond or two.
	lookRouters, lookOthers = 200 * time.Millisecond, 100 * time.Millisecond
	// lookOnceMore bounds another look where nobody at all has answered, as on a host that is busy.
	lookOnceMore = 500 * time.Millisecond
	// lookedLately is how long a look holds for further attachments, and lookHolds for the one that it was for.
	lookedLately, lookHolds = 2 * time.Second, 30 * time.Second
	// firstRound bounds the first question after, and cutOffAfter how long all have to be silent.
	firstRound, cutOffAfter = 150 * time.Millisecond, 2 * time.Second
	// watchFor is how long an attachment is watched, with a question every watchEvery. One whose runtime has yet to move its vNIC is
	// watched for longer.
	watchFor, watchParked, watchEvery = 10 * time.Second, time.Minute, time.Second
	// beforeHolds is how long those who answered before an attachment that ended meanwhile are expected to answer again.
	beforeHolds = time.Hour
)

// lookout keeps who answered by NICs, and what is watched there.
type lookout struct {
	mu    sync.Mutex
	seen  map[string]*plan.Watch // by NIC
	watch map[string]*vigil
}

// vigil is the watch of a NIC, for all that was attached there lately.
type vigil struct {
	who       []netip.Addr
	endpoints map[hcn.GUID]time.Time // until when
}

func newLookout() *lookout {
	return &lookout{seen: map[string]*plan.Watch{}, watch: map[string]*vigil{}}
}

// errCutOff is what an attachment fails with that has cut the host off.
var errCutOff = errors.New("the host could not be reached")

// cutOff is that error: what happened, and what to do.
func cutOff(id hcn.GUID, why string) error {
	return hcn.Errorf(hcn.ErrDegradedOperation, "endpoint %s is detached again: %w", id, &cutOffError{why})
}

type cutOffError struct{ why string }

func (c *cutOffError) Error() string {
	return c.why + ". The switch outside may have shut its port, which some do when a second MAC appears (port security): allow several MACs there, " +
		"or use a network of type L2Bridge, whose containers have the NIC's MAC on the wire"
}

func (c *cutOffError) Is(target error) bool { return target == errCutOff }

// whyCut is the kind of an error of an attachment.
func whyCut(err error) string {
	if errors.Is(err, errCutOff) {
		return kindOf(err)
	}
	return api.KindInternal
}

// bringsMAC tells whether a network's endpoints have MACs of their own on the wire.
func bringsMAC(n *plan.Network) bool {
	return n != nil && n.Uplink != "" && plan.OnLAN(n.Doc.Type) && !plan.OneMAC(n.Doc.Type)
}

// lookFirst begins to look who is there by the NICs that endpoints are about to be attached to, and returns the wait for it.
func (e *Engine) lookFirst(ctx context.Context, eps []*plan.Endpoint) (wait func()) {
	var wg sync.WaitGroup
	if e.opt.Reach == nil {
		return wg.Wait
	}
	nics := map[string]struct{}{}
	e.mu.RLock()
	for _, ep := range eps {
		if now := e.st.endpoints[ep.Doc.ID]; now != nil && now.Attach != nil {
			continue
		}
		if n := e.st.networks[ep.Doc.HostComputeNetwork]; bringsMAC(n) && ep.Doc.Flags&hcn.RemoteEndpoint == 0 {
			nics[n.Uplink] = struct{}{}
		}
	}
	e.mu.RUnlock()
	for nic := range nics {
		if e.lookout.known(nic) {
			continue
		}
		wg.Go(func() {
			who := e.lookQuickly(ctx, nic)
			e.lookout.mu.Lock()
			defer e.lookout.mu.Unlock()
			e.lookout.seen[nic] = &plan.Watch{Who: who, At: time.Now().UTC().Round(0)}
		})
	}
	return wg.Wait
}

// known tells whether a NIC need not be looked at again.
func (l *lookout) known(nic string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.seen[nic]
	return l.watch[nic] != nil || s != nil && time.Since(s.At) < lookedLately
}

// lookQuickly gives those who answer, routers and others.
func (e *Engine) lookQuickly(ctx context.Context, nic string) (there []netip.Addr) {
	routers, others, err := e.opt.Reach.Neighbours(ctx, nic)
	if err == nil && len(routers) > 0 {
		there, err = e.opt.Reach.Ask(ctx, nic, routers, lookRouters)
	}
	if err == nil && len(others) > 0 {
		var more []netip.Addr
		more, err = e.opt.Reach.Ask(ctx, nic, others, lookOthers)
		there = slices.Concat(there, more)
	}
	if all := slices.Concat(routers, others); err == nil && len(there) == 0 && len(all) > 0 {
		there, err = e.opt.Reach.Ask(ctx, nic, all, lookOnceMore)
	}
	if err != nil {
		e.log.Warn("find out who is there", "nic", nic, "error", err)
	}
	return there
}

// watch is what an attachment is held against; nil: nothing.
func (t *txn) watch(ep *plan.Endpoint, n *plan.Network) *plan.Watch {
	if t.e.opt.Reach == nil || !bringsMAC(n) {
		return nil
	}
	l := t.e.lookout
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.watch[n.Uplink]; v != nil { // whoever it is that cuts the host off, it is seen
		return &plan.Watch{Who: v.who, At: time.Now().UTC().Round(0)}
	}
	if s := l.seen[n.Uplink]; s != nil && len(s.Who) > 0 && time.Since(s.At) < lookHolds {
		return s
	}
	if b := ep.Before; b != nil && time.Since(b.At) < beforeHolds {
		return b // the last attachment may be why nobody answers
	}
	return nil
}

// stillThere finds out whether the host can be reached after endpoints were attached and have said so. If it cannot, they are detached
// again; else they are watched on.
func (e *Engine) stillThere(ctx context.Context, said <-chan struct{}, ids []hcn.GUID) error {
	if w := tentatively(ctx); w != nil && w.around != nil {
		<-said
		for _, id := range ids {
			if _, its := w.attached[id]; !its {
				continue
			}
			e.opt.Step("reach-attached")
			if gone := w.around.lost(context.WithoutCancel(ctx), askAfter); gone != "" {
				why := unreachable(w.around.nic, gone)
				e.undoAttach(ctx, id, w.by, why)
				return cutOff(id, why)
			}
		}
		return nil
	}
	by, who := e.watched(ids)
	if len(by) == 0 {
		return nil
	}
	<-said
	e.opt.Step("reach-attached")
	var errs []error
	for nic, ids := range by {
		gone := e.allGone(context.WithoutCancel(ctx), nic, who[nic])
		if gone == "" {
			e.keepLookout(nic, who[nic], ids...)
			continue
		}
		why := unreachable(nic, gone)
		for _, id := range ids {
			e.undoWatched(ctx, id, why)
			errs = append(errs, cutOff(id, why))
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// watched are those of endpoints that are held against who answered before, by NIC, and who that was.
func (e *Engine) watched(ids []hcn.GUID) (by map[string][]hcn.GUID, who map[string][]netip.Addr) {
	by, who = map[string][]hcn.GUID{}, map[string][]netip.Addr{}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, id := range ids {
		ep := e.st.endpoints[id]
		if ep == nil || ep.Attach == nil || ep.Attach.Watch == nil {
			continue
		}
		if n := e.st.networks[ep.Doc.HostComputeNetwork]; n != nil {
			by[n.Uplink], who[n.Uplink] = append(by[n.Uplink], id), ep.Attach.Watch.Who
		}
	}
	return by, who
}

// allGone says who does not answer any more, if that is everybody.
func (e *Engine) allGone(ctx context.Context, nic string, who []netip.Addr) string {
	round := firstRound
	for until := time.Now().Add(cutOffAfter); ; round = askEvery / 4 {
		if e.anyThere(ctx, nic, who, round) {
			return ""
		}
		if !time.Now().Before(until) {
			break
		}
	}
	return texts(who)
}

func texts(who []netip.Addr) string {
	out := make([]string, len(who))
	for i, a := range who {
		out[i] = a.String()
	}
	return strings.Join(out, ", ")
}

// anyThere asks once. Nobody is missed while the NIC is down or away: that was somebody here.
func (e *Engine) anyThere(ctx context.Context, nic string, who []netip.Addr, within time.Duration) bool {
	now, err := e.opt.Reach.Ask(ctx, nic, who, within)
	if err != nil {
		e.log.Warn("ask who is still there", "nic", nic, "error", err)
		return true
	}
	if len(now) > 0 {
		return true
	}
	f, err := e.opt.Facts(ctx)
	if err != nil {
		return true
	}
	is := f.NIC(nic)
	return is == nil || !is.Up
}

// keepLookout watches endpoints that were attached to a NIC.
func (e *Engine) keepLookout(nic string, who []netip.Addr, ids ...hcn.GUID) {
	l := e.lookout
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.watch[nic]
	if v == nil {
		v = &vigil{endpoints: map[hcn.GUID]time.Time{}}
		l.watch[nic] = v
		e.ctrs.spawn(func() { e.stand(nic, v) })
	}
	v.who = who
	for _, id := range ids {
		v.endpoints[id] = time.Now().Add(watchFor)
	}
}

// watchAgain goes on with what the last run of the daemon watched.
func (e *Engine) watchAgain() {
	if e.opt.Reach == nil {
		return
	}
	e.mu.RLock()
	ids := slices.Collect(maps.Keys(e.st.endpoints))
	e.mu.RUnlock()
	e.resumeLookout(ids)
}

func (e *Engine) resumeLookout(ids []hcn.GUID) {
	by, who := e.watched(ids)
	for nic, ids := range by {
		e.keepLookout(nic, who[nic], ids...)
	}
}

// stand watches a NIC until nothing is to be watched there any more.
func (e *Engine) stand(nic string, v *vigil) {
	ctx := e.ctrs.runCtx()
	misses := 0
	for {
		t := time.NewTimer(watchEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		e.lookout.mu.Lock()
		who := v.who
		e.lookout.mu.Unlock()
		if misses++; e.anyThere(ctx, nic, who, watchEvery) {
			misses = 0
		}
		if ctx.Err() != nil {
			return
		}
		lost := misses >= 2
		over, done := e.lookout.over(nic, v, lost)
		why := unreachable(nic, texts(who))
		for _, id := range over {
			if lost {
				e.undoWatched(ctx, id, why)
			}
		}
		if !lost && len(over) > 0 {
			e.unwatch(nic, over)
		}
		if done {
			return
		}
	}
}

// over takes from a vigil the endpoints whose time is over, or all. The vigil is done when none is left.
func (l *lookout) over(nic string, v *vigil, all bool) (over []hcn.GUID, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for id, until := range v.endpoints {
		if all || !now.Before(until) {
			over = append(over, id)
			delete(v.endpoints, id)
		}
	}
	if done = len(v.endpoints) == 0; done {
		delete(l.watch, nic)
		delete(l.seen, nic)
	}
	return over, done
}

// unwatch notes that attachments have not cut the host off.
func (e *Engine) unwatch(nic string, ids []hcn.GUID) {
	_, err := e.commit(func(t *txn) error {
		for _, id := range ids {
			ep := t.st.endpoints[id]
			if ep == nil || ep.Attach == nil || ep.Attach.Watch == nil {
				continue
			}
			if ep.Attach.Parked && time.Since(ep.Attach.Watch.At) < watchParked {
				continue
			}
			row, at := *ep, *ep.Attach
			at.Watch, row.Attach = nil, &at
			t.putEndpoint(id, &row)
		}
		return nil
	})
	if err != nil {
		e.log.Warn("note that the host can be reached", "nic", nic, "error", err)
	}
	e.resumeLookout(ids) // those that are parked still
}

// undoWatched detaches an endpoint that has cut the host off.
func (e *Engine) undoWatched(ctx context.Context, id hcn.GUID, why string) {
	name := ""
	e.undo(ctx, "endpoint", string(id), func(t *txn) {
		if row := t.st.endpoints[id]; row != nil && row.Attach != nil && row.Attach.Watch != nil {
			name = ownerOf(row)
			t.putEndpoint(id, unattached(row, why))
		}
	})
	if name != "" {
		e.ctrs.notify()
		e.log.Warn("an endpoint is detached again", "endpoint", id, "name", name, "reason", why)
		e.event("endpoint", "undo", string(id), name, map[string]string{"reason": why})
	}
}

// undone tells of endpoints that were detached again while a change waited.
func (e *Engine) undone(ids []hcn.GUID) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, id := range ids {
		if ep := e.st.endpoints[id]; ep != nil && unapproved(ep) && ep.Trial.Why != "" {
			return cutOff(id, ep.Trial.Why)
		}
	}
	return nil
}

// undoneChecks are the doctor's lines about endpoints that were detached again. Locked: e.mu.
func (e *Engine) undoneChecks() (out []api.Check) {
	for id, ep := range e.st.endpoints {
		if unapproved(ep) && ep.Trial.Why != "" {
			out = append(out, api.Check{
				Name: "endpoint " + string(id), Status: "warn", Detail: cmp.Or(ep.Doc.Name, "it") + " is detached again: " + ep.Trial.Why,
				Next: "see what the switch outside does with several MACs on a port, or use a network of type L2Bridge; then attach it anew (bulkhead restart)",
			})
		}
	}
	slices.SortFunc(out, func(a, b api.Check) int { return strings.Compare(a.Name, b.Name) })
	return out
}
