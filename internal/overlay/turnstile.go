package overlay

import (
	"net"
	"net/netip"
	"sync"
)

// Whoever reaches the port of the hosts that join can open connections to it and be slow. A turnstile closes those beyond a
// number, of one address and in all, so that one cannot keep the others out.
const (
	maxGuests  = 256
	maxPerAddr = 8
)

type turnstile struct {
	net.Listener

	mu  sync.Mutex
	in  map[netip.Addr]int
	all int
}

func newTurnstile(ln net.Listener) *turnstile {
	return &turnstile{Listener: ln, in: map[netip.Addr]int{}}
}

// Accept gives the next connection that there is room for.
func (t *turnstile) Accept() (net.Conn, error) {
	for {
		c, err := t.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := source(c)
		if t.admit(from) {
			return &guest{Conn: c, left: sync.OnceFunc(func() { t.leave(from) })}, nil
		}
		c.Close()
	}
}

func source(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

func (t *turnstile) admit(from netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all >= maxGuests || t.in[from] >= maxPerAddr {
		return false
	}
	t.all++
	t.in[from]++
	return true
}

func (t *turnstile) leave(from netip.Addr) {
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
