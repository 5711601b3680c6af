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

func (r *rig) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func readUntil(t *testing.T, conn io.Reader, text string) string {
	t.Helper()
	var got bytes.Buffer
	b := make([]byte, 1024)
	for !strings.Contains(got.String(), text) {
		n, err := conn.Read(b)
		got.Write(b[:n])
		if err != nil {
			t.Fatalf("wait for %q: %v after %q", text, err, got.String())
		}
	}
	return got.String()
}

func (r *rig) web(t *testing.T) {
	t.Helper()
	if _, err := r.CreateContainer(t.Context(), api.ContainerSpec{Name: "web", Image: "i"}); err != nil {
		t.Fatal(err)
	}
}

func TestExec(t *testing.T) {
	r := newRig(t)
	r.web(t)
	ctx := t.Context()
	var out, errs bytes.Buffer
	text := strings.Repeat("0123456789", 50_000) // many frames
	resize := make(chan api.WindowSize, 1)
	resize <- api.WindowSize{Rows: 24, Cols: 80}
	code, err := r.ExecContainer(ctx, "web", api.ExecSpec{Args: []string{"cat"}, OpenStdin: true, TTY: true},
		api.Streams{Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs, Resize: resize})
	if err != nil || code != 5 || out.String() != text || errs.String() != "24x80" {
		t.Errorf("exec: %d, %v, %d bytes, %q", code, err, out.Len(), errs.String())
	}
	if code, err := r.ExecContainer(ctx, "web", api.ExecSpec{Args: []string{"true"}}, api.Streams{}); err != nil || code != 7 {
		t.Errorf("without streams: %d, %v", code, err)
	}
	if code, err := r.ExecContainer(ctx, "web", api.ExecSpec{Args: []string{"true"}, Detach: true}, api.Streams{}); err != nil || code != 7 {
		t.Errorf("detached: %d, %v", code, err)
	}
	for _, tc := range []struct {
		ref, command, kind, next string
	}{
		{"web", "missing", api.KindInvalid, "look into the image"},
		{"web", "late", api.KindConflict, "start it again"},
		{"web", "panic", api.KindInternal, "see the daemon's log, and report it"},
		{"none", "true", api.KindNotFound, "see `bulkhead ps -a`"},
	} {
		code, err := r.ExecContainer(ctx, tc.ref, api.ExecSpec{Args: []string{tc.command}}, api.Streams{})
		var e *api.Error
		if !errors.As(err, &e) || e.Kind != tc.kind || e.Next != tc.next || code != -1 {
			t.Errorf("%s: %d, %#v", tc.command, code, err)
		}
	}
	if _, err := r.ExecContainer(ctx, "web", api.ExecSpec{}, api.Streams{}); !api.IsKind(err, api.KindInvalid) {
		t.Errorf("without a command: %v", err)
	}
}

// TestAttachBeforeStart holds the promise that a container can be started as soon as the client knows of its attach.
func TestAttachBeforeStart(t *testing.T) {
	r := newRig(t)
	r.web(t)
	inPlace := make(chan struct{})
	attached := make(chan api.Streams, 1)
	release := make(chan struct{})
	r.fake.attach = func(ctx context.Context, s api.Streams) error {
		<-inPlace
		s.Attached()
		attached <- s
		select {
		case <-release:
			fmt.Fprint(s.Stdout, "bye")
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ready := make(chan struct{})
	done := make(chan error, 1)
	var out bytes.Buffer
	go func() {
		streams := api.Streams{Stdout: &out, DetachKeys: []byte{0x10, 0x11}}
		done <- r.AttachContainer(t.Context(), "web", streams, func() { close(ready) })
	}()
	select {
	case <-ready:
		t.Fatal("the client believes that it is attached before it is")
	case <-time.After(50 * time.Millisecond):
	}
	close(inPlace)
	<-ready
	s := <-attached
	if s.Stdin != nil || s.Stderr != nil || !bytes.Equal(s.DetachKeys, []byte{0x10, 0x11}) {
		t.Errorf("the streams are %+v", s)
	}
	close(release)
	if err := <-done; err != nil || out.String() != "bye" {
		t.Errorf("attach: %v, %q", err, out.String())
	}
}

func TestAttachErrorBefore(t *testing.T) {
	r := newRig(t)
	r.web(t)
	r.fake.attach = func(context.Context, api.Streams) error {
		return api.Errorf(api.KindConflict, "container web does not run")
	}
	if err := r.AttachContainer(t.Context(), "web", api.Streams{}, nil); !api.IsKind(err, api.KindConflict) {
		t.Errorf("got %v", err)
	}
	if got := r.raw(t, "POST", "/v1/containers/web/attach", ""); !strings.HasPrefix(got, "426 ") {
		t.Errorf("without upgrade: %s", got)
	}
}

// TestAttachClientLeaves checks that both sides notice when the other goes.
func TestAttachClientLeaves(t *testing.T) {
	r := newRig(t)
	r.web(t)
	left := make(chan struct{})
	r.fake.attach = func(ctx context.Context, s api.Streams) error {
		s.Attached()
		<-ctx.Done()
		close(left)
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := r.AttachContainer(ctx, "web", api.Streams{}, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	<-left
}

func TestAttachDaemonStops(t *testing.T) {
	r := newRig(t)
	r.web(t)
	r.fake.attach = func(ctx context.Context, s api.Streams) error {
		s.Attached()
		_, err := io.Copy(io.Discard, s.Stdin) // blocked until the tunnel closes it
		return errors.Join(err, ctx.Err())
	}
	stdin, typed := io.Pipe()
	defer typed.Close()
	ready, stopped := make(chan struct{}), make(chan error, 1)
	go func() { <-ready; stopped <- r.stop() }()
	err := r.AttachContainer(t.Context(), "web", api.Streams{Stdin: stdin}, func() { close(ready) })
	if !api.IsKind(err, api.KindUnavailable) {
		t.Errorf("got %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestStreamHostile sends frames that nobody should.
func TestStreamHostile(t *testing.T) {
	for name, frames := range map[string]string{
		"huge":            "\x00\xff\xff\xff\xff",
		"unknown channel": "\x09\x00\x00\x00\x01x",
		"bad size":        "\x03\x00\x00\x00\x01x",
		"cut":             "\x00\x00\x00\x00\x09x",
		"after close":     "\x04\x00\x00\x00\x00\x00\x00\x00\x00\x01x",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.web(t)
			body := `{"args":["cat"],"openStdin":true}`
			conn := r.dial(t)
			fmt.Fprintf(conn, "POST /v1/containers/web/exec HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: %s\r\n"+
				"Content-Length: %d\r\n\r\n%s%s", api.UpgradeProtocol, len(body), body, frames)
			if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 101 ")) || !bytes.Contains(got, []byte(`"exitCode":`)) {
				t.Errorf("got %q, %v", got, err)
			}
			if _, err := r.Info(t.Context()); err != nil {
				t.Errorf("the daemon: %v", err)
			}
		})
	}
}
