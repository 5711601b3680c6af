package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// TestOnHost holds that the client of a host's daemon does all that the client of any does, by way of another daemon.
func TestOnHost(t *testing.T) {
	outer, inner := newRig(t), newRig(t)
	outer.fake.dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", inner.socket)
	}
	inner.web(t)
	ctx := t.Context()
	c := outer.OnHost("edge")
	t.Cleanup(c.Close)
	list, err := c.Containers(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "web" {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := outer.Containers(ctx); err != nil || len(list) != 0 {
		t.Errorf("of the outer daemon: %+v, %v", list, err)
	}
	// A stream of frames, a body of any length, and the end of what is sent.
	var out bytes.Buffer
	text := strings.Repeat("0123456789", 50_000)
	code, err := c.ExecContainer(ctx, "web", api.ExecSpec{Args: []string{"cat"}, OpenStdin: true}, api.Streams{Stdin: strings.NewReader(text), Stdout: &out})
	if err != nil || code != 5 || out.String() != text {
		t.Errorf("exec: %d, %v, %d bytes", code, err, out.Len())
	}
	if _, err := c.Container(ctx, "none"); !api.IsKind(err, api.KindNotFound) {
		t.Errorf("its daemon's error came as %v", err)
	}
	hosts, err := outer.Hosts(ctx)
	if err != nil || len(hosts) != 1 || hosts[0].Name != "edge" {
		t.Errorf("%+v, %v", hosts, err)
	}
	for name, ask := range map[string]func() error{
		"of none":          func() error { _, err := outer.OnHost("none").Info(ctx); return err },
		"streams of none":  func() error { return outer.OnHost("none").AttachContainer(ctx, "web", api.Streams{}, nil) },
		"document of none": func() error { _, err := outer.Host(ctx, "none"); return err },
	} {
		var e *api.Error
		if err := ask(); !errors.As(err, &e) || e.Kind != api.KindNotFound || e.Next != "bulkhead host ls" {
			t.Errorf("%s: %v", name, err)
		}
	}
	outer.fake.dial = func(context.Context) (net.Conn, error) { return nil, api.Errorf(api.KindUnavailable, "it is starting") }
	if _, err := outer.OnHost("edge").Info(ctx); !api.IsKind(err, api.KindUnavailable) || !strings.Contains(err.Error(), "it is starting") {
		t.Errorf("of one that does not answer: %v", err)
	}
	conn := outer.dial(t)
	fmt.Fprint(conn, "POST /v1/hosts/edge/api HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := readUntil(t, conn, "\r\n"); !strings.Contains(got, "426") {
		t.Errorf("without an upgrade: %s", got)
	}
}

// TestHostConnection holds that bytes pass as they are, that the end of what one side sends is told, and that no connection holds the
// daemon up when it stops.
func TestHostConnection(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("unix", r.socket+".inner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	r.fake.dial = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", ln.Addr().String())
	}
	open := func() (client, inner *net.UnixConn) {
		t.Helper()
		conn := r.dial(t)
		// What comes in the same piece as the request is the other daemon's.
		fmt.Fprintf(conn, "POST /v1/hosts/edge/api HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nahead ", api.HostProtocol)
		if got := readUntil(t, conn, "\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 101 ") {
			t.Fatalf("answered %s", got)
		}
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return conn.(*net.UnixConn), c.(*net.UnixConn)
	}
	client, inner := open()
	fmt.Fprint(client, "question")
	_ = client.CloseWrite()
	if got, err := io.ReadAll(inner); err != nil || string(got) != "ahead question" {
		t.Errorf("the inner daemon got %q, %v", got, err)
	}
	fmt.Fprint(inner, "answer")
	inner.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Errorf("the client got %q, %v", got, err)
	}
	client, inner = open()
	client.Close()
	if _, err := io.ReadAll(inner); err != nil {
		t.Errorf("a client that goes: %v", err)
	}
	inner.Close()
	client, inner = open()
	began := time.Now()
	if err := r.stop(); err != nil || time.Since(began) > 8*time.Second {
		t.Errorf("the daemon stopped after %v: %v", time.Since(began), err)
	}
	for _, c := range []net.Conn{client, inner} {
		if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("of a daemon that stopped: %v", err)
		}
	}
}
