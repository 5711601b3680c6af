package testhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"
)

// ListenPacket is net.ListenPacket in the host's network namespace. The address is a literal.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var conn net.PacketConn
	var err error
	h.Do(func() {
		conn, err = new(net.ListenConfig).ListenPacket(context.WithoutCancel(h.t.Context()), network, address)
	})
	return conn, err
}

// Listen is net.Listen in the host's network namespace. The address is a literal.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	var err error
	h.Do(func() { l, err = new(net.ListenConfig).Listen(context.WithoutCancel(h.t.Context()), network, address) })
	return l, err
}

// DialContext connects from the host. The address is a literal: to resolve a name as the host does, run a program there.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("%s: dial %s: want a literal address: %w", h.name, address, err)
	}
	var conn net.Conn
	var err error
	// With one literal address net dials on the calling goroutine.
	h.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
	return conn, err
}

// ListenHTTP serves on addr, port 0 for any, until the test ends, and returns the base URL. A nil handler answers with
// "<host> sees <client address and port>", so that a test can tell whether the client's address was kept.
func (h *Host) ListenHTTP(addr netip.AddrPort, handler http.Handler) string {
	h.t.Helper()
	l, err := h.Listen("tcp", addr.String())
	if err != nil {
		h.t.Fatalf("%s: serve HTTP: %v", h.name, err)
	}
	if handler == nil {
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s sees %s", h.name, r.RemoteAddr)
		})
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	h.t.Cleanup(func() { srv.Close() })
	return "http://" + l.Addr().String()
}

// HTTPGet fetches a URL with a literal address, within five seconds and on a new connection. A status other than 200 is
// an error.
func (h *Host) HTTPGet(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.t.Context()), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", h.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: get %s: %s: %s", h.name, url, resp.Status, body)
	}
	return string(body), err
}

// TCPEcho echoes what each connection sends, until the test ends, and returns where it listens.
func (h *Host) TCPEcho(addr netip.AddrPort) netip.AddrPort {
	h.t.Helper()
	l, err := h.Listen("tcp", addr.String())
	if err != nil {
		h.t.Fatalf("%s: echo TCP: %v", h.name, err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// UDPEcho answers each datagram with "<client address and port> <payload>", until the test ends, and returns where it
// listens. Give it a specific address: from a wildcard the kernel would choose the source of the answer.
func (h *Host) UDPEcho(addr netip.AddrPort) netip.AddrPort {
	h.t.Helper()
	conn, err := h.ListenPacket("udp", addr.String())
	if err != nil {
		h.t.Fatalf("%s: echo UDP: %v", h.name, err)
	}
	h.t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.WriteTo(fmt.Appendf(nil, "%s %s", from, buf[:n]), from)
			}
		}
	}()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// UDPAsk sends a datagram from a new socket, repeated every 200 ms, until an answer comes from that address and port.
// It gives up after two seconds.
func (h *Host) UDPAsk(to netip.AddrPort, payload string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.t.Context()), 2*time.Second)
	defer cancel()
	conn, err := h.DialContext(ctx, "udp", to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	buf := make([]byte, 65536)
	var last error
	for ctx.Err() == nil {
		next := time.Now().Add(200 * time.Millisecond)
		if err := conn.SetDeadline(next); err != nil {
			return "", err
		}
		if _, last = conn.Write([]byte(payload)); last == nil {
			var n int
			if n, last = conn.Read(buf); last == nil {
				return string(buf[:n]), nil
			}
		}
		if !errors.Is(last, os.ErrDeadlineExceeded) {
			waitUntil(ctx, next)
		}
	}
	return "", fmt.Errorf("%s: ask %s over UDP: %w", h.name, to, last)
}
