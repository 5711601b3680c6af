package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// maxQuery is more than any question with EDNS needs.
	maxQuery = 4096
	// A socket that fails this often in a row is broken: its device or its
	// compartment is gone.
	maxErrors  = 10
	errorPause = 10 * time.Millisecond
	writeTime  = 5 * time.Second
)

// sockKey says which socket is wanted; a change of any part needs another one.
type sockKey struct {
	namespace, device string
	network           string // "udp" or "tcp"
	addr              netip.Addr
}

func (k sockKey) String() string {
	return netip.AddrPortFrom(k.addr, port).String() + "/" + k.network
}

func sockKeys(d plan.DNS) []sockKey {
	var keys []sockKey
	for _, a := range d.Listen {
		for _, network := range [...]string{"udp", "tcp"} {
			keys = append(keys, sockKey{d.Namespace, d.Device, network, a})
		}
	}
	return keys
}

// sock is an open socket and the goroutine that serves it.
type sock struct {
	close  func()
	index  int // of the device at that time, or -1
	broken atomic.Bool
}

// fault says what is wrong with a socket, "" for nothing. A socket whose device
// was deleted gets no error, it just hears nothing for ever after; the device's
// index, if known, tells.
func (so *sock) fault(index int) string {
	switch {
	case so.broken.Load():
		return "closed"
	case index >= 0 && so.index >= 0 && so.index != index:
		return "bound to a device that is gone"
	}
	return ""
}

// open opens a socket and serves it.
func (s *server) open(ctx context.Context, k sockKey) (*sock, error) {
	so := &sock{index: -1}
	at := netip.AddrPortFrom(k.addr, port)
	if s.r.cfg.DeviceIndex != nil {
		var err error
		if so.index, err = s.r.cfg.DeviceIndex(ctx, k.namespace, k.device); err != nil {
			return nil, fmt.Errorf("find device %s: %w", k.device, err)
		}
	}
	if k.network == "udp" {
		pc, err := s.r.cfg.ListenUDP(ctx, k.namespace, k.device, at)
		if err != nil {
			return nil, err
		}
		so.close = sync.OnceFunc(func() { so.broken.Store(true); pc.Close() })
		s.wg.Go(func() { s.serveUDP(so, pc) })
		return so, nil
	}
	ln, err := s.r.cfg.ListenTCP(ctx, k.namespace, k.device, at)
	if err != nil {
		return nil, err
	}
	so.close = sync.OnceFunc(func() { so.broken.Store(true); ln.Close() })
	s.wg.Go(func() { s.serveTCP(so, ln) })
	return so, nil
}

// survive decides whether to go on after an error of a socket: it waits a
// moment, or declares the socket broken and wakes whoever repairs.
func (s *server) survive(so *sock, err error, errs *int) bool {
	if so.broken.Load() || s.ctx.Err() != nil {
		return false
	}
	if *errs++; *errs < maxErrors {
		t := time.NewTimer(errorPause)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-s.ctx.Done():
			return false
		}
	}
	so.close()
	s.log.Warn("resolver socket is broken", "error", err)
	if s.r.cfg.Wake != nil {
		s.r.cfg.Wake()
	}
	return false
}

// serveUDP answers at once what can be, in the goroutine that reads, and starts
// one for each question that has to wait.
func (s *server) serveUDP(so *sock, pc net.PacketConn) {
	in := make([]byte, maxQuery)
	out := make([]byte, 0, maxUDP)
	read, write := packetIO(pc)
	errs := 0
	for {
		n, from, err := read(in)
		if err != nil {
			if s.survive(so, err, &errs) {
				continue
			}
			return
		}
		errs = 0
		client := from.Addr().WithZone("")
		reply, t := s.quick(out[:0], in[:n], client, false)
		if t == nil {
			if reply != nil {
				_ = write(reply, from) // the client asks again
			}
			continue
		}
		if !s.limiter.beginQuery(client) {
			s.overLimit(t)
			continue
		}
		s.wg.Go(func() {
			defer s.limiter.endQuery(client)
			if reply := s.wait(nil, t); reply != nil {
				_ = write(reply, from)
			}
		})
	}
}

func (s *server) overLimit(t *task) {
	s.count.limited.Add(1)
	s.failed(&t.q, t.client, "too many questions wait for upstreams")
	s.trace(&t.q, t.client, "dropped", "too many questions wait for upstreams", t.began)
}

// packetIO reads and writes with addresses as values where the socket can.
// Replies go without zone: the socket is bound to its device, and the names of
// zones are those of another namespace.
func packetIO(pc net.PacketConn) (func([]byte) (int, netip.AddrPort, error), func([]byte, netip.AddrPort) error) {
	if u, ok := pc.(*net.UDPConn); ok {
		read := func(b []byte) (int, netip.AddrPort, error) {
			n, from, err := u.ReadFromUDPAddrPort(b)
			return n, plain(from), err
		}
		write := func(b []byte, to netip.AddrPort) error {
			_, err := u.WriteToUDPAddrPort(b, to)
			return err
		}
		return read, write
	}
	read := func(b []byte) (int, netip.AddrPort, error) {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		ap, err := netip.ParseAddrPort(from.String())
		return n, plain(ap), err
	}
	write := func(b []byte, to netip.AddrPort) error {
		_, err := pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
		return err
	}
	return read, write
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// serveTCP accepts connections, each served one question after the other: a
// client that sends more than it reads slows down itself only.
func (s *server) serveTCP(so *sock, ln net.Listener) {
	errs := 0
	for {
		conn, err := ln.Accept()
		if err != nil {
			if s.survive(so, err, &errs) {
				continue
			}
			return
		}
		errs = 0
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		client := plain(from).Addr()
		if err != nil || !s.limiter.beginConn(client) {
			s.count.limited.Add(1)
			conn.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.limiter.endConn(client)
			s.serveConn(conn, client)
		})
	}
}

func (s *server) serveConn(conn net.Conn, client netip.Addr) {
	defer conn.Close()
	defer context.AfterFunc(s.ctx, func() { conn.Close() })()
	end := time.Now().Add(s.r.limits.ConnLife)
	var out []byte
	for {
		deadline := time.Now().Add(s.r.limits.ConnIdle)
		if deadline.After(end) {
			deadline = end
		}
		if conn.SetReadDeadline(deadline) != nil {
			return
		}
		msg, err := readTCP(conn, maxQuery)
		if err != nil {
			return
		}
		reply, t := s.quick(out[:0], msg, client, true)
		if t != nil {
			reply = s.waitConn(t)
		}
		if reply == nil {
			return
		}
		if conn.SetWriteDeadline(time.Now().Add(writeTime)) != nil || writeTCP(conn, reply) != nil {
			return
		}
	}
}

func (s *server) waitConn(t *task) []byte {
	if !s.limiter.beginQuery(t.client) {
		s.overLimit(t)
		return nil
	}
	defer s.limiter.endQuery(t.client)
	return s.wait(nil, t)
}

// typeName is a type as dig writes it.
func typeName(t dnsmessage.Type) string {
	switch t {
	case dnsmessage.TypeALL:
		return "ANY"
	case typeDS:
		return "DS"
	case typeDNSKEY:
		return "DNSKEY"
	default:
	}
	if name, ok := strings.CutPrefix(t.String(), "Type"); ok {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t))
}
