package overlay

import (
	"net"
	"net/netip"
	"sync"
)

// Whoever reaches the port of the hosts that join can open connections to it and be slow. A turnstile closes those beyond a
// number, of one source and in all, so that one cannot keep the others out. Of IPv6 a source is a /64: who has one address of it has all.
const (
	maxGuests  = 256
	maxPerAddr = 8
)

type turnstile struct {
	net.Listener

	mu  sync.Mutex
	in  map[netip.Prefix]int
	all int
}

func newTurnstile(ln net.Listener) *turnstile {
	return &turnstile{Listener: ln, in: map[netip.Prefix]int{}}
}

// Accept gives the next connection that there is room for.
func (t *turnstile) Accept() (net.Conn, error) {
	for {
		c, err := t.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := source(c.RemoteAddr())
		if t.admit(from) {
			return &guest{Conn: c, left: sync.OnceFunc(func() { t.leave(from) })}, nil
		}
		c.Close()
	}
}

func source(from net.Addr) netip.Prefix {
	t, ok := from.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	a := t.AddrPort().Addr().Unmap().WithZone("")
	p, _ := a.Prefix(min(a.BitLen(), 64)) // never fails
	return p
}

func (t *turnstile) admit(from netip.Prefix) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all >= maxGuests || t.in[from] >= maxPerAddr {
		return false
	}
	t.all++
	t.in[from]++
	return true
}

func (t *turnstile) leave(from netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all--
	if t.in[from]--; t.in[from] == 0 {
		delete(t.in, from)
	}
}

// guest is a connection that counts until it is closed.
type guest struct {
	net.Conn
	left func()
}

// Close ends it, and makes room.
func (g *guest) Close() error {
	g.left()
	return g.Conn.Close()
}
