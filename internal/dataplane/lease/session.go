package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// queue is how many advertisements may wait for their machine; more are lost, as on any wire. Answers to a question are heard by
	// us alone, and as many may wait as are read in a window: a valid one may come behind those of somebody who answers faster.
	queue = 16
	// burst frames may be read in each window, and the rest waits in the socket's small buffer or is lost there: a
	// flood costs its sender more than us.
	burst  = 64
	window = 250 * time.Millisecond
	// farewell bounds how long an endpoint's end waits for its leases to be given back.
	farewell = 2 * time.Second
)

var errNoLink = errors.New("the vNIC is not there yet")

// runner is a machine: it runs until ctx ends, and can then give its lease back.
type runner interface {
	source() Source
	run(ctx context.Context)
	release(ctx context.Context, l *Lease) error
}

// session is an endpoint with its link, and what its machines share.
type session struct {
	c    *Client
	want Want
	id   identity
	log  *slog.Logger

	in4, in6, adverts chan packet
	// xid4 is the transaction of DHCPv4 that is under way: answers to others are not even kept.
	xid4 atomic.Uint32
	// managed and other are closed when a router says so (the M and O flags).
	managed, other chan struct{}
	sayM, sayO     sync.Once

	runners []runner
	cancel  context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex
	parting *parting
	link    Link
	linkErr error
	up      chan struct{} // closed while there is a link
	watched map[netip.Addr]*watcher
}

// watcher hears who else has an address, or with probes who is about to take it.
type watcher struct {
	used   chan plan.MAC
	probes bool
}

func newSession(c *Client, w Want) *session {
	s := &session{
		c: c, want: w, id: identityOf(w.Endpoint), log: c.cfg.Log.With("endpoint", string(w.Endpoint)),
		in4: make(chan packet, burst), in6: make(chan packet, burst), adverts: make(chan packet, queue),
		managed: make(chan struct{}), other: make(chan struct{}), done: make(chan struct{}),
		linkErr: errNoLink, up: make(chan struct{}), watched: map[netip.Addr]*watcher{},
	}
	if w.IPv4 {
		s.runners = append(s.runners, &v4{machine: machine{s, DHCPv4}})
	}
	if w.IPv6 {
		s.runners = append(s.runners, &routers{machine: machine{s, Router}}, &v6{machine: machine{s, DHCPv6}})
	}
	return s
}

func (s *session) machines() []runner { return s.runners }

// start runs the session until end or stop.
func (s *session) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		// The link outlives the machines, so that they can say goodbye.
		linkCtx, closeLink := context.WithCancel(context.Background())
		var links, machines sync.WaitGroup
		tried := make(chan struct{})
		links.Go(func() { s.keepLink(linkCtx, sync.OnceFunc(func() { close(tried) })) })
		<-tried
		for _, m := range s.runners {
			machines.Go(func() { m.run(ctx) })
		}
		machines.Wait()
		<-ctx.Done()
		s.goodbye()
		closeLink()
		links.Wait()
	}()
}

// parting is set before the machines are stopped, if leases are to be given back.
type parting struct {
	ctx  context.Context
	next *Want // what is kept for it is not given back
}

// goodbye gives leases back, if that is wanted.
func (s *session) goodbye() {
	s.mu.Lock()
	p := s.parting
	s.mu.Unlock()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, farewell)
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range s.runners {
		l := s.c.lease(Key{s.want.Endpoint, m.source()})
		if l != nil && !l.over(time.Now()) && !kept(p.next, m.source()) {
			wg.Go(func() {
				if err := m.release(ctx, l); err != nil {
					s.log.Warn("lease not given back: it ends by itself", "addresses", fmt.Sprint(prefixes(l)), "error", err)
				}
			})
		}
	}
	wg.Wait()
}

// end stops the session and gives back what the next want of the endpoint, if there is one, does not keep.
func (s *session) end(ctx context.Context, next *Want) {
	s.mu.Lock()
	s.parting = &parting{ctx, next}
	s.mu.Unlock()
	s.stop()
}

func (s *session) stop() {
	s.cancel()
	<-s.done
}

// keepLink opens the link, reads it, and opens it again when it breaks: the device may be made anew. It
// calls tried after each try to open.
func (s *session) keepLink(ctx context.Context, tried func()) {
	for try := 0; ctx.Err() == nil; try++ {
		began := time.Now()
		l, err := s.c.cfg.Open(ctx, &s.want)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { l.Close() })
			s.setLink(l, nil)
			tried()
			err = s.read(ctx, l)
			stop()
			s.setLink(nil, err)
			l.Close()
		} else {
			s.setLink(nil, err)
			tried()
		}
		if time.Since(began) > time.Minute {
			try = 0
		}
		if !sleep(ctx, jitter(min(250*time.Millisecond<<min(try, 10), 30*time.Second))) {
			return
		}
	}
}

func (s *session) setLink(l Link, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case l != nil && s.link == nil:
		close(s.up)
	case l == nil && s.link != nil:
		s.up = make(chan struct{})
	}
	s.link, s.linkErr = l, err
	s.listen()
}

// linkUp is closed while there is a link.
func (s *session) linkUp() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

func (s *session) send(frame []byte) error {
	s.mu.Lock()
	l, err := s.link, s.linkErr
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("open %s in the compartment of %s: %w", s.want.Device, s.want.Name, err)
	}
	if err := l.Send(frame); err != nil {
		return fmt.Errorf("send on %s of %s: %w", s.want.Device, s.want.Name, err)
	}
	return nil
}

// read hands frames to the machines until the link breaks.
func (s *session) read(ctx context.Context, l Link) error {
	buf := make([]byte, maxFrame)
	left, from := burst, time.Now()
	for {
		n, summed, err := l.Receive(buf)
		if err != nil {
			return err
		}
		if left--; left <= 0 {
			if rest := window - time.Since(from); rest > 0 && !sleep(ctx, rest) {
				return ctx.Err()
			}
			left, from = burst, time.Now()
		} else if time.Since(from) >= window {
			left, from = burst, time.Now()
		}
		s.hand(buf[:n], summed)
	}
}

// hand gives a frame to whom it is for.
func (s *session) hand(frame []byte, summed bool) {
	p, ok := parseFrame(frame, summed)
	if !ok || p.mac == s.want.MAC {
		return
	}
	switch p.kind {
	case kindDHCPv4:
		if answers(p.payload, s.xid4.Load()) {
			offer(s.in4, p)
		}
	case kindDHCPv6:
		if p.dst == s.want.LinkLocal {
			offer(s.in6, p)
		}
	case kindAdvert:
		offer(s.adverts, p)
	case kindClaim:
		s.mu.Lock()
		if w := s.watched[p.claim]; w != nil && (w.probes || !p.probe) {
			select {
			case w.used <- p.mac:
			default:
			}
		}
		s.mu.Unlock()
	}
}

// offer puts a packet into a queue unless it is full.
func offer(ch chan packet, p packet) {
	p.payload = slices.Clone(p.payload)
	select {
	case ch <- p:
	default:
	}
}

// watch hears who uses an address, until stop is called.
func (s *session) watch(a netip.Addr, probes bool) (used <-chan plan.MAC, stop func()) {
	w := &watcher{make(chan plan.MAC, 1), probes}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched[a] = w
	s.listen()
	return w.used, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watched, a)
		s.listen()
	}
}

// listen tells the link which addresses matter. The lock is held.
func (s *session) listen() {
	if s.link == nil {
		return
	}
	if err := s.link.Listen(slices.SortedFunc(maps.Keys(s.watched), netip.Addr.Compare)); err != nil {
		s.log.Warn("cannot listen for duplicate addresses", "error", err)
	}
}

// probe asks whether somebody uses an address that was offered. ARP's three questions come faster than RFC 5227 has them for the
// slow links of its time: a container waits for the answer. Neighbour discovery asks once and waits a second (RFC 4862).
func (s *session) probe(ctx context.Context, a netip.Addr) (user plan.MAC, used bool, err error) {
	if a.Is6() {
		return s.ask(ctx, a, 1, time.Second)
	}
	return s.ask(ctx, a, 3, 150*time.Millisecond)
}

// ask sends a question some times, and ends with the first answer.
func (s *session) ask(ctx context.Context, a netip.Addr, tries int, pause time.Duration) (user plan.MAC, used bool, err error) {
	ch, stop := s.watch(a, true)
	defer stop()
	frame := arpProbe(s.want.MAC, a)
	if a.Is6() {
		frame = neighbourProbe(s.want.MAC, a)
	}
	for range tries {
		if err := s.send(frame); err != nil {
			return user, false, err
		}
		t := time.NewTimer(pause)
		select {
		case user = <-ch:
			t.Stop()
			return user, true, nil
		case <-ctx.Done():
			t.Stop()
			return user, false, ctx.Err()
		case <-t.C:
		}
	}
	return user, false, nil
}

// announcePause is between a lease and its announcements: by then the switch knows whose the address is, or it would take
// them for spoofed.
const announcePause = 2 * time.Second

// announce tells the LAN twice at which MAC an address is now: whoever had it before had another one, and is remembered
// for a while (RFC 5227, section 2.3).
func (s *session) announce(ctx context.Context, a netip.Addr) {
	for range 2 {
		if !sleep(ctx, announcePause) {
			return
		}
		s.claim(a)
	}
}

// claim says to all whose an address is.
func (s *session) claim(a netip.Addr) {
	frame := arpClaimed(s.want.MAC, a)
	if a.Is6() {
		frame = neighbourClaimed(s.want.MAC, a)
	}
	if err := s.send(frame); err != nil {
		s.log.Debug("address not announced", "address", a.String(), "error", err)
	}
}

// sleep waits; false: ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter keeps a hundred containers that start together from asking together for ever.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - d/10 + rand.N(d/5+1)
}
