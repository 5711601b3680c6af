package lease

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Link is a vNIC seen from inside its compartment: frames as they are on the wire.
type Link interface {
	Send(frame []byte) error
	// Receive waits for a frame. summed says that its checksums are computed: between namespaces of one host the
	// kernel leaves that out.
	Receive(buf []byte) (n int, summed bool, err error)
	// Listen says of which addresses to hear who claims them, by ARP and neighbour discovery: on a large LAN there is
	// plenty of both.
	Listen(claims []netip.Addr) error
	Close() error
}

// Config is what a client needs.
type Config struct {
	Log *slog.Logger
	// Open opens a link; Sockets makes one for real vNICs.
	Open func(context.Context, *Want) (Link, error)
	// Wake is called when States has something new. It must not block.
	Wake func()
	// Admit says why an endpoint cannot have an address that somebody offers; nil: it can.
	Admit func(endpoint hcn.GUID, a netip.Addr) error
}

// Client holds the leases of all endpoints of a host.
type Client struct {
	cfg Config

	mu       sync.Mutex
	sessions map[hcn.GUID]*session
	states   map[Key]*State
}

// New makes a client without leases.
func New(cfg Config) *Client {
	return &Client{cfg: cfg, sessions: map[hcn.GUID]*session{}, states: map[Key]*State{}}
}

// Sync makes the wanted leases the ones that are kept: it begins and ends. It does not wait for leases. Those of a family that
// an endpoint does not want any more are given back before it returns; those of an endpoint that is gone are for GiveBack. One
// caller at a time.
func (c *Client) Sync(ctx context.Context, wants []Want) {
	wanted := map[hcn.GUID]*Want{}
	for i := range wants {
		wanted[wants[i].Endpoint] = &wants[i]
	}
	c.mu.Lock()
	sessions := maps.Clone(c.sessions)
	c.mu.Unlock()
	var wg sync.WaitGroup
	for g, s := range sessions {
		w := wanted[g]
		if w != nil && w.same(&s.want) {
			continue
		}
		wg.Go(func() {
			if w == nil || w.Parked {
				s.stop()
			} else {
				s.end(ctx, w)
			}
			c.forget(g, s, w)
		})
	}
	wg.Wait()
	for g, w := range wanted {
		c.begin(g, w)
	}
}

// begin starts a session unless there is one.
func (c *Client) begin(g hcn.GUID, w *Want) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[g] != nil || w.Parked || !w.IPv4 && !w.IPv6 {
		return
	}
	s := newSession(c, *w)
	c.sessions[g] = s
	for _, m := range s.machines() {
		key := Key{g, m.source()}
		st := c.states[key] // of a session before this one
		if st == nil {
			st = &State{Key: key}
			if l, ok := w.Stored[key.Source]; ok && !l.over(time.Now()) {
				st.Lease = &l
			}
			c.states[key] = st
		}
		st.Phase, st.Since, st.Problem = Waiting, time.Now(), ""
	}
	s.start()
}

// forget drops a session, and the leases that its successor, if there is one, does not want.
func (c *Client) forget(g hcn.GUID, s *session, w *Want) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[g] != s {
		return
	}
	delete(c.sessions, g)
	for k := range c.states {
		if k.Endpoint == g && !kept(w, k.Source) {
			delete(c.states, k)
		}
	}
}

// kept says whether a want takes over the lease of an earlier one.
func kept(w *Want, src Source) bool {
	return w != nil && !w.Parked && (src == DHCPv4 && w.IPv4 || src != DHCPv4 && w.IPv6)
}

// States of all machines, in a fixed order.
func (c *Client) States() []State {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]State, 0, len(c.states))
	for _, k := range sortedKeys(c.states) {
		out = append(out, c.states[k].clone())
	}
	return out
}

// GiveBack tells the servers of a want's Stored leases that they are free: its endpoint is gone, and what is sent leaves by the
// NIC under its MAC. nil: they were told, as far as that can be known.
func (c *Client) GiveBack(ctx context.Context, w Want) error {
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	w.NIC = true
	return c.briefly(ctx, w, func(ctx context.Context, s *session) error {
		var errs []error
		for _, m := range s.machines() {
			if l, ok := w.Stored[m.source()]; ok && !l.over(time.Now()) {
				errs = append(errs, m.release(ctx, &l))
			}
		}
		return errors.Join(errs...)
	})
}

// Close ends all sessions and gives nothing back: the leases outlive the daemon. States stays as it was.
func (c *Client) Close() {
	c.mu.Lock()
	sessions := maps.Clone(c.sessions)
	clear(c.sessions)
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range sessions {
		wg.Go(s.stop)
	}
	wg.Wait()
}

// update changes a state under the lock, and wakes if the change matters to the caller.
func (c *Client) update(key Key, change func(*State)) {
	c.mu.Lock()
	st := c.states[key]
	if st == nil {
		c.mu.Unlock()
		return
	}
	before := *st
	change(st)
	if st.Phase != before.Phase {
		st.Since = time.Now()
	}
	changed := st.Lease != before.Lease || st.Pending != before.Pending || st.Phase != before.Phase || st.Problem != before.Problem || len(st.Others) != len(before.Others)
	c.mu.Unlock()
	if changed && c.cfg.Wake != nil {
		c.cfg.Wake()
	}
}

// lease that a machine holds.
func (c *Client) lease(key Key) *Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.states[key]; st != nil {
		return st.Lease
	}
	return nil
}
