package lease

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	maxRouters  = 4
	maxPrefixes = 8
	// twoHours is how long an advertisement that anybody can forge leaves an address at least (RFC 4862, section 5.5.3).
	twoHours = 2 * time.Hour
	// breath is how long further advertisements wait after one: none is urgent, and a flood is not worth more.
	breath = 200 * time.Millisecond
	// solicitPause is between questions to routers, at first (RFC 4861); it grows as RFC 7559 has it.
	solicitPause = 4 * time.Second
	mostSolicits = time.Hour
	// avoid is how long an address that somebody else uses is not made again.
	avoid = 10 * time.Minute
)

// routers is the machine of router advertisements.
type routers struct {
	machine
	known    map[netip.Addr]router
	prefixes map[netip.Prefix]prefix
	routes   map[routeKey]routeValue
	dns      map[netip.Addr]time.Time
	search   map[string]time.Time
	mtu      int
	used     map[netip.Prefix]time.Time // where somebody has our address, until when it is avoided
	usedBy   string
}

type router struct {
	mac        plan.MAC
	preference int
	until      time.Time
}

type prefix struct {
	onLink           time.Time // until; zero: it is not, unless always
	always           bool      // on the link for ever
	address          bool
	preferred, valid time.Time
}

type routeKey struct {
	dst netip.Prefix
	via netip.Addr
}

type routeValue struct {
	preference int
	until      time.Time
}

func (m *routers) release(context.Context, *Lease) error { return nil }

// run listens, and asks while there is no router.
func (m *routers) run(ctx context.Context) {
	m.known, m.prefixes, m.routes = map[netip.Addr]router{}, map[netip.Prefix]prefix{}, map[routeKey]routeValue{}
	m.dns, m.search, m.used = map[netip.Addr]time.Time{}, map[string]time.Time{}, map[netip.Prefix]time.Time{}
	heard := false
	if l := m.held(); l != nil {
		m.recall(l)
		m.enter(Rebooting, "")
	} else {
		m.enter(Asking, "")
	}
	q := solicitor{m: m, pause: solicitPause, since: time.Now(), due: time.Now()}
	for ctx.Err() == nil {
		up := q.ask(heard)
		t := time.NewTimer(min(time.Until(m.next(time.Now())), time.Until(q.next())))
		select {
		case p := <-m.s.adverts:
			if a, ok := parseAdvert(p.payload); ok {
				heard = true
				m.learn(p, &a, time.Now())
			}
		case <-up:
			q.due = time.Now()
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
		m.tell(ctx, heard)
		sleep(ctx, breath)
	}
}

// solicitor asks routers to advertise themselves while there is none.
type solicitor struct {
	m     *routers
	tries int
	pause time.Duration
	since time.Time
	due   time.Time
}

// next is when to ask again, a far time if there is a router.
func (q *solicitor) next() time.Time {
	if len(q.m.known) > 0 {
		return time.Now().Add(mostSolicits)
	}
	return q.due
}

// ask if it is time. What it returns is closed when a link is there that was not.
func (q *solicitor) ask(heard bool) (up <-chan struct{}) {
	now := time.Now()
	if len(q.m.known) > 0 {
		q.tries, q.pause, q.since, q.due = 0, solicitPause, now, now
		return nil
	}
	if now.Before(q.due) {
		return nil
	}
	up = q.m.s.linkUp()
	w := &q.m.s.want
	if err := q.m.s.send(routerQuestion(w.MAC, w.LinkLocal)); err != nil {
		q.m.problem(err.Error())
		q.since, q.due = now, now.Add(q.pause)
		select {
		case <-up: // there is one, and it does not send
			return nil
		default:
			return up
		}
	}
	if q.tries > 0 && !heard {
		q.m.problem(fmt.Sprintf("no router has advertised itself on %s since %s (%d tries); IPv6 needs one that does",
			w.Network, q.since.Format(time.TimeOnly), q.tries+1))
	} else if !heard {
		q.m.problem("")
	}
	if q.tries++; q.tries > 3 {
		q.pause = min(2*q.pause, mostSolicits)
	}
	q.due = now.Add(jitter(q.pause))
	return nil
}

// problem is told without taking the lease away.
func (m *routers) problem(text string) {
	m.s.c.update(m.key(), func(st *State) { st.Problem = text })
}

// recall takes up the addresses of a stored lease: they are valid as long as it was said.
func (m *routers) recall(l *Lease) {
	for _, a := range l.Addrs {
		p := netip.PrefixFrom(a.Prefix.Addr(), 64).Masked()
		v := prefix{address: true, preferred: a.Preferred, valid: a.Valid}
		if a.Prefix.Bits() == 64 {
			v.onLink, v.always = a.Valid, a.Valid.IsZero()
		}
		m.prefixes[p] = v
	}
}

// learn takes an advertisement in.
func (m *routers) learn(p packet, a *advert, now time.Time) {
	if _, ok := m.known[p.src]; a.lifetime > 0 && (ok || len(m.known) < maxRouters) {
		m.known[p.src] = router{p.mac, a.preference, now.Add(time.Duration(a.lifetime) * time.Second)}
	} else if a.lifetime == 0 {
		delete(m.known, p.src)
	}
	if a.mtu != 0 {
		m.mtu = a.mtu
	}
	for _, o := range a.prefixes {
		m.learnPrefix(o, now)
	}
	for _, r := range a.routes {
		keep(m.routes, routeKey{r.dst, p.src}, routeValue{r.preference, in(now, r.lifetime)}, r.lifetime, maxRoutes)
	}
	for _, d := range a.dns {
		keep(m.dns, d.addr, in(now, d.lifetime), d.lifetime, maxDNS)
	}
	for _, d := range a.search {
		keep(m.search, d.domain, in(now, d.lifetime), d.lifetime, maxSearch)
	}
	if a.managed {
		m.s.sayM.Do(func() { close(m.s.managed) })
	}
	if a.other || a.managed {
		m.s.sayO.Do(func() { close(m.s.other) })
	}
}

// keep puts something into a map that has room for it, or takes away what has no life.
func keep[K comparable, V any](m map[K]V, k K, v V, lifetime uint32, most int) {
	if lifetime == 0 {
		delete(m, k)
	} else if _, ok := m[k]; ok || len(m) < most {
		m[k] = v
	}
}

func (m *routers) learnPrefix(o advertPrefix, now time.Time) {
	have, ok := m.prefixes[o.prefix]
	if !ok && (o.valid == 0 || len(m.prefixes) == maxPrefixes) {
		return
	}
	if o.onLink {
		have.onLink, have.always = in(now, o.valid), o.valid == forever
	}
	if o.address {
		valid := in(now, o.valid)
		if have.address && o.valid != forever {
			left := have.valid.Sub(now)
			switch {
			case valid.Sub(now) > twoHours, !have.valid.IsZero() && valid.Sub(now) > left:
			case !have.valid.IsZero() && left <= twoHours:
				valid = have.valid
			default:
				valid = now.Add(twoHours)
			}
		}
		have.address, have.valid, have.preferred = have.address || o.valid > 0, valid, in(now, o.preferred)
	}
	m.prefixes[o.prefix] = have
}

// gone says whether a time has come; zero never does.
func gone(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// next is when something ends, an hour at most.
func (m *routers) next(now time.Time) time.Time {
	at := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(at) && t.After(now) {
			at = t
		}
	}
	for _, r := range m.known {
		sooner(r.until)
	}
	for _, p := range m.prefixes {
		sooner(p.onLink)
		sooner(p.valid)
	}
	for _, r := range m.routes {
		sooner(r.until)
	}
	for _, t := range m.dns {
		sooner(t)
	}
	for _, t := range m.search {
		sooner(t)
	}
	if l := m.held(); l != nil {
		sooner(l.Expires)
	}
	return at
}

// age forgets what has ended.
func (m *routers) age(now time.Time) {
	maps.DeleteFunc(m.known, func(_ netip.Addr, r router) bool { return gone(r.until, now) })
	for k, p := range m.prefixes {
		p.address = p.address && !gone(p.valid, now)
		m.prefixes[k] = p
		if !p.address && !p.linked(now) {
			delete(m.prefixes, k)
		}
	}
	maps.DeleteFunc(m.routes, func(_ routeKey, r routeValue) bool { return gone(r.until, now) })
	maps.DeleteFunc(m.dns, func(_ netip.Addr, t time.Time) bool { return gone(t, now) })
	maps.DeleteFunc(m.search, func(_ string, t time.Time) bool { return gone(t, now) })
	maps.DeleteFunc(m.used, func(_ netip.Prefix, t time.Time) bool { return gone(t, now) })
}

func (p prefix) linked(now time.Time) bool { return p.always || now.Before(p.onLink) }

// tell publishes what is known if that is another thing, or good for much longer, than what was told last. Until a
// router is heard that is the stored lease, while it lasts.
func (m *routers) tell(ctx context.Context, heard bool) {
	now := time.Now()
	m.age(now)
	old := m.held()
	if !heard {
		if old != nil && old.over(now) {
			m.lose("no router has advertised the prefixes of its addresses again")
		}
		return
	}
	l := m.compose(ctx, old)
	if l == nil {
		if old != nil {
			m.lose(fmt.Sprintf("no router on %s advertises anything any more", m.s.want.Network))
		}
		return
	}
	if old.alike(l) && !longer(old, l, now) {
		m.enter(Bound, m.usedBy)
		return
	}
	m.take(l)
	m.problem(m.usedBy)
}

// longer says whether some time of a lease is worth telling: each advertisement moves them all a little.
func longer(old, l *Lease, now time.Time) bool {
	for i, a := range l.Addrs {
		was := old.Addrs[i]
		if a.Valid.IsZero() != was.Valid.IsZero() || a.Preferred.IsZero() != was.Preferred.IsZero() ||
			a.Valid.Sub(was.Valid).Abs() > a.Valid.Sub(now)/4 || a.Preferred.Sub(was.Preferred).Abs() > max(a.Preferred.Sub(now)/4, 0) {
			return true
		}
	}
	return false
}

// compose makes a lease of what is known; nil if there is nothing.
func (m *routers) compose(ctx context.Context, old *Lease) *Lease {
	now := time.Now()
	l := &Lease{Got: now, MTU: m.mtu}
	m.usedBy = ""
	for _, p := range slices.SortedFunc(maps.Keys(m.prefixes), netip.Prefix.Compare) {
		m.composePrefix(ctx, l, old, p, now)
	}
	byRank := func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(m.known[b].preference, m.known[a].preference), a.Compare(b))
	}
	for _, via := range slices.SortedFunc(maps.Keys(m.known), byRank) {
		if !l.Server.IsValid() {
			l.Server, l.ServerMAC = via, m.known[via].mac
		}
		l.addRoute(plan.Route{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: via})
	}
	for _, k := range slices.SortedFunc(maps.Keys(m.routes), func(a, b routeKey) int {
		return cmp.Or(a.dst.Compare(b.dst), cmp.Compare(m.routes[b].preference, m.routes[a].preference), a.via.Compare(b.via))
	}) {
		l.addRoute(plan.Route{Dst: k.dst, Via: k.via})
	}
	l.DNS = slices.SortedFunc(maps.Keys(m.dns), netip.Addr.Compare)
	l.Search = slices.Sorted(maps.Keys(m.search))
	if len(l.Addrs)+len(l.Routes)+len(l.DNS) == 0 {
		return nil
	}
	for _, a := range l.Addrs {
		if a.Valid.IsZero() {
			l.Expires = time.Time{}
			break
		}
		l.Expires = later(l.Expires, a.Valid)
	}
	return l
}

// composePrefix adds the address that is made of a prefix, or the prefix alone.
func (m *routers) composePrefix(ctx context.Context, l, old *Lease, p netip.Prefix, now time.Time) {
	v := m.prefixes[p]
	if !v.address {
		l.addRoute(plan.Route{Dst: p})
		return
	}
	a := Address{Prefix: netip.PrefixFrom(eui64(p, m.s.want.MAC), 128), Preferred: v.preferred, Valid: v.valid}
	if v.linked(now) {
		a.Prefix = netip.PrefixFrom(a.Prefix.Addr(), 64)
	}
	if why := m.cannotHave(ctx, a.Prefix.Addr(), old); why != "" {
		m.usedBy = why
		if v.linked(now) {
			l.addRoute(plan.Route{Dst: p})
		}
		return
	}
	l.Addrs = append(l.Addrs, a)
}

// cannotHave says why an address is not used: somebody has it, or the caller does not admit it. One that is ours
// already is not probed again.
func (m *routers) cannotHave(ctx context.Context, a netip.Addr, old *Lease) string {
	host := netip.PrefixFrom(a, 128)
	if err := m.admit(a); err != nil {
		return err.Error()
	}
	ours := old != nil && slices.ContainsFunc(old.Addrs, func(o Address) bool { return o.Prefix.Addr() == a })
	why := "address " + a.String() + ", made of a router's prefix, is used by somebody else: give the endpoint another MAC"
	if _, ok := m.used[host]; ok {
		return why
	}
	if ours {
		return ""
	}
	user, used, err := m.s.probe(ctx, a)
	if err != nil {
		return err.Error()
	}
	if used {
		m.used[host] = time.Now().Add(avoid)
		return "address " + a.String() + ", made of a router's prefix, is used by " + macString(user) + ": give the endpoint another MAC"
	}
	return ""
}

// eui64 makes the address of a MAC in a prefix of 64 bits (RFC 4291, appendix A).
func eui64(p netip.Prefix, mac plan.MAC) netip.Addr {
	b := p.Addr().As16()
	copy(b[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(b)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
