package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Reservations hold the host ports that are published, so that a host process that binds one fails, and the reverse.
// Netfilter alone would let both succeed, and the process would never see a packet.
//
// A reservation is a socket. TCP sockets listen, because that is the only state which keeps out a process that sets
// SO_REUSEADDR (nearly all servers) and can yet be entered while old connections are in TIME_WAIT. Nothing is ever
// accepted: a filter that takes no packet sits on the socket before it listens. It also means that a client which comes
// while the ruleset is being repaired is not refused but tries again.
type Reservations struct {
	inNetns func(func() error) error

	mu   sync.Mutex
	held map[reservation]*holder
	// left are those given back while a plan still names their owner: a Sync that began with that plan must not take
	// them again, for somebody else may.
	left   map[reservation]string
	next   uint16 // where HostPick goes on looking
	filter dropFilter
}

// reservation is what two forwards must not share.
type reservation struct {
	proto uint8
	bind  netip.Addr // unspecified: all addresses of the family
	port  uint16
}

type holder struct {
	owner string
	// fd is the socket, or -1 while one of the same owner on all addresses covers this one: a port can so be published
	// wider or narrower without being free in between.
	fd int
	// elsewhere says that the owner's runtime has the socket.
	elsewhere bool
	// planned says that a plan has had the forward, so that it goes when the plan drops it. A reservation made for an
	// endpoint that is just being created is in no plan yet.
	planned bool
}

// PortConflict says who has a host port. Owner is the holder among our own, otherwise Process ("nginx (pid 812)") is
// the program that has it, where it can be found.
type PortConflict struct {
	Proto   uint8
	Addr    netip.Addr
	Port    uint16
	Owner   string
	Process string
}

func (e *PortConflict) Error() string {
	where := protoName(e.Proto) + " " + netip.AddrPortFrom(e.Addr, e.Port).String()
	switch {
	case e.Owner != "":
		return where + " is published by " + e.Owner
	case e.Process != "":
		return where + " is in use by process " + e.Process
	}
	return where + " is in use by a process of the host that cannot be told"
}

func newReservations(inNetns func(func() error) error) *Reservations {
	return &Reservations{inNetns: inNetns, held: map[reservation]*holder{}, left: map[reservation]string{}}
}

func keyOf(f plan.Forward) reservation {
	return reservation{proto: f.Protocol, bind: bindAddr(f), port: f.Port}
}

// Owner is how a port of the plan is named as holder of host ports.
func Owner(p *plan.Port) string { return plan.Owner(p.Name, p.Endpoint) }

// Reserve takes the host port of a forward for owner. Taking it twice for the same owner is success; a port that
// somebody has is a *PortConflict.
func (r *Reservations) Reserve(f plan.Forward, owner string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reserve(f, owner, false)
}

// Retake takes the host port of a forward that owner had before: it may be held by the owner's runtime by now.
func (r *Reservations) Retake(f plan.Forward, owner string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reserve(f, owner, true)
}

func (r *Reservations) reserve(f plan.Forward, owner string, again bool) error {
	k := keyOf(f)
	if h, ok := r.held[k]; ok {
		if h.owner == owner {
			if f.Held {
				h.handOver()
			}
			return nil
		}
		return &PortConflict{Proto: k.proto, Addr: k.bind, Port: k.port, Owner: h.owner}
	}
	if k.bind.IsLinkLocalUnicast() && k.bind.Is6() {
		return fmt.Errorf("reserve %s: %w: a link-local one cannot be published, since its clients' addresses cannot be forwarded", Describe(f), plan.ErrNoHostAddress)
	}
	fd, err := -1, error(nil)
	if !f.Held || !again {
		fd, err = r.openOver(k, owner)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return r.conflict(k)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("reserve %s: %w: the host does not have %s", Describe(f), plan.ErrNoHostAddress, k.bind)
	case err != nil:
		return fmt.Errorf("reserve %s: %w", Describe(f), err)
	}
	r.held[k] = &holder{owner: owner, fd: fd}
	if f.Held {
		r.held[k].handOver()
	}
	if r.left[k] == owner {
		delete(r.left, k)
	}
	return nil
}

// handOver leaves the port to the runtime of its owner, which binds it next.
func (h *holder) handOver() {
	if h.elsewhere = true; h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
}

// openOver makes the socket for k, and settles with those of the same owner that overlap: an existing wider one covers
// it, existing narrower ones give way.
func (r *Reservations) openOver(k reservation, owner string) (int, error) {
	wide := k
	wide.bind = netip.IPv4Unspecified()
	if k.bind.Is6() {
		wide.bind = netip.IPv6Unspecified()
	}
	if h, ok := r.held[wide]; ok && h.owner == owner && k != wide {
		return -1, nil
	}
	for _, h := range r.covered(k, owner) {
		if h.fd >= 0 {
			unix.Close(h.fd)
			h.fd = -1
		}
	}
	fd, err := r.open(k)
	if err != nil {
		err = errors.Join(err, r.reopen(k, owner))
	}
	return fd, err
}

// covered lists the narrower reservations of an owner that k, if it is one for all addresses, covers.
func (r *Reservations) covered(k reservation, owner string) map[reservation]*holder {
	out := map[reservation]*holder{}
	for o, h := range r.held {
		if k.bind.IsUnspecified() && o != k && o.proto == k.proto && o.port == k.port && o.bind.Is4() == k.bind.Is4() && h.owner == owner {
			out[o] = h
		}
	}
	return out
}

// reopen gives the reservations that k covered their own sockets back.
func (r *Reservations) reopen(k reservation, owner string) error {
	var errs []error
	for o, h := range r.covered(k, owner) {
		if h.fd < 0 && !h.elsewhere {
			fd, err := r.open(o)
			if err != nil {
				delete(r.held, o)
				errs = append(errs, err)
				continue
			}
			h.fd = fd
		}
	}
	return errors.Join(errs...)
}

func (r *Reservations) open(k reservation) (fd int, err error) {
	err = r.inNetns(func() error {
		fd, err = k.open(&r.filter)
		return err
	})
	return fd, err
}

// conflict finds out who is in the way: one of ours on another address that overlaps, or a process.
func (r *Reservations) conflict(k reservation) error {
	c := &PortConflict{Proto: k.proto, Addr: k.bind, Port: k.port}
	for o, h := range r.held {
		same := o.proto == k.proto && o.port == k.port && o.bind.Is4() == k.bind.Is4()
		if same && (o.bind.IsUnspecified() || k.bind.IsUnspecified()) {
			c.Owner = h.owner
			return c
		}
	}
	// Not knowing the process is part of the answer, not a second error.
	_ = r.inNetns(func() error {
		c.Process = findProcess(k)
		return nil
	})
	return c
}

// open makes the socket that holds the port.
func (k reservation) open(filter *dropFilter) (int, error) {
	family, kind := unix.AF_INET6, unix.SOCK_DGRAM
	if k.bind.Is4() {
		family = unix.AF_INET
	}
	if k.proto == unix.IPPROTO_TCP {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, int(k.proto))
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := k.occupy(fd, filter); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (k reservation) occupy(fd int, filter *dropFilter) error {
	if err := filter.attach(fd); err != nil {
		return err
	}
	if k.proto == unix.IPPROTO_TCP {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(k.port), Addr: as4(k.bind)}
	if k.bind.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		sa = &unix.SockaddrInet6{Port: int(k.port), Addr: k.bind.As16()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if k.proto == unix.IPPROTO_TCP {
		// Two sockets with SO_REUSEADDR may be bound to one port; only the first can listen.
		return os.NewSyscallError("listen", unix.Listen(fd, 0))
	}
	return nil
}

func as4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// Release gives a forward's host port back, if owner has it.
func (r *Reservations) Release(f plan.Forward, owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := r.held[keyOf(f)]; ok && h.owner == owner {
		if h.planned {
			r.left[keyOf(f)] = owner
		}
		r.drop(keyOf(f))
	}
}

func (r *Reservations) drop(k reservation) {
	h := r.held[k]
	delete(r.held, k)
	if h.fd >= 0 {
		unix.Close(h.fd)
		// What this one covered and cannot be taken again is in no list any more: the next Sync tries, and tells.
		_ = r.reopen(k, h.owner)
	}
}

func (r *Reservations) close() error {
	r.releaseAll()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.filter.close()
}

func (r *Reservations) releaseAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, h := range r.held {
		if h.fd >= 0 {
			unix.Close(h.fd)
		}
		delete(r.held, k)
	}
}

// Holder tells who has a forward's host port among our own.
func (r *Reservations) Holder(f plan.Forward) (owner string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.held[keyOf(f)]
	if !ok {
		return "", false
	}
	return h.owner, true
}

// claim is what somebody of a plan wants of the host: forwards, whose ports are to be held.
type claim struct {
	who      elem
	owner    string // as holder of ports
	forwards []plan.Forward
}

func claimOf(p *plan.Port) claim {
	if p == nil {
		return claim{}
	}
	return claim{elem{kind: kindPort, owner: string(p.ID)}, Owner(p), p.Forwards}
}

func claimOfBalancer(b *plan.Balancer) claim {
	if b == nil {
		return claim{}
	}
	return claim{elem{kind: kindBalancer, owner: string(b.ID)}, plan.BalancerOwner(b.Name, b.ID), b.Forwards}
}

// claims are those of a plan.
func claims(p *plan.Plan) []claim {
	var out []claim
	for _, port := range p.Ports {
		if len(port.Forwards) > 0 {
			out = append(out, claimOf(port))
		}
	}
	for _, b := range p.Balancers {
		if len(b.Forwards) > 0 {
			out = append(out, claimOfBalancer(b))
		}
	}
	return out
}

// claimsOf are those of a delta, before and after.
func claimsOf(d *plan.Delta) (was, is []claim) {
	for _, c := range d.Ports {
		was, is = append(was, claimOf(c.Old)), append(is, claimOf(c.New))
	}
	for _, c := range d.Balancers {
		was, is = append(was, claimOfBalancer(c.Old)), append(is, claimOfBalancer(c.New))
	}
	return was, is
}

// follow makes the reservations match a plan: after a restart it takes the ports again. One that it cannot take is
// reported, not fatal: the data path works without.
func (r *Reservations) follow(p *plan.Plan) []plan.Drift {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := claims(p)
	wanted := wantedBy(all)
	for k, h := range r.held {
		if h.planned && !wanted[k] {
			r.drop(k)
		}
	}
	for k := range r.left {
		if !wanted[k] {
			delete(r.left, k)
		}
	}
	var drift []plan.Drift
	for _, c := range all {
		for _, f := range c.forwards {
			if err := r.plan(f, c.owner); err != nil && !c.vacant(err) {
				drift = append(drift, plan.Drift{Object: "host port " + Describe(f), ID: c.who.owner, Found: err.Error()})
			}
		}
	}
	slices.SortFunc(drift, func(a, b plan.Drift) int { return strings.Compare(a.Object, b.Object) })
	return drift
}

func wantedBy(all []claim) map[reservation]bool {
	out := map[reservation]bool{}
	for _, c := range all {
		for _, f := range c.forwards {
			out[keyOf(f)] = true
		}
	}
	return out
}

// vacant tells that a port could not be taken, and need not: a load balancer's virtual address may be none of the host's, and then
// nobody can bind it.
func (c *claim) vacant(err error) bool {
	return c.who.kind == kindBalancer && errors.Is(err, plan.ErrNoHostAddress)
}

// plan takes or takes over the port for the owner that the plan names.
func (r *Reservations) plan(f plan.Forward, owner string) error {
	if left, ok := r.left[keyOf(f)]; ok && left == owner {
		return nil
	}
	if h, ok := r.held[keyOf(f)]; ok {
		h.owner, h.planned = owner, true
		if f.Held {
			h.handOver()
		}
		return nil
	}
	err := r.reserve(f, owner, true)
	if err == nil {
		r.held[keyOf(f)].planned = true
	}
	return err
}

// releaseGone gives back what the ports and load balancers of a delta have no more.
func (r *Reservations) releaseGone(d *plan.Delta) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, is := claimsOf(d)
	wanted := wantedBy(is)
	for _, c := range was {
		for _, f := range c.forwards {
			if !wanted[keyOf(f)] {
				delete(r.left, keyOf(f))
			}
			if h, ok := r.held[keyOf(f)]; ok && h.planned && !wanted[keyOf(f)] {
				r.drop(keyOf(f))
			}
		}
	}
}

// takeNew takes what the ports and load balancers of a delta have anew. A forward whose port somebody else has must not be translated
// either: it would take the traffic away from there. refused holds those.
func (r *Reservations) takeNew(d *plan.Delta) (refused map[elemKey]bool, errs []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	refused = map[elemKey]bool{}
	_, is := claimsOf(d)
	for _, c := range is {
		for _, f := range c.forwards {
			if err := r.plan(f, c.owner); err != nil && !c.vacant(err) {
				k, _ := forwardElement(f)
				refused[k] = true
				errs = append(errs, c.who.error(fmt.Errorf("publish: %w", err)))
			}
		}
	}
	return refused, errs
}
