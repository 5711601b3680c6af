package agent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// TestKeepDaemon holds that a daemon that ends is started again, and that containers are asked to end before it is.
func TestKeepDaemon(t *testing.T) {
	dir := t.TempDir()
	said := func() string {
		text, _ := os.ReadFile(filepath.Join(dir, "said"))
		return strings.Join(strings.Fields(string(text)), " ")
	}
	script := `echo "$1" >>said; case $1 in
		halt) ;;
		*) [ -e again ] || { : >again; exit 3; }
		   trap 'echo ended >>said; exit' TERM; while :; do sleep 0.05; done ;;
		esac`
	sh := func(word string) []string { return []string{"/bin/sh", "-c", "cd " + dir + "; " + script, "sh", word} }
	var log bytes.Buffer
	h := &ContainerHost{Daemon: sh("daemon"), Halt: sh("halt"), Env: os.Environ(), Log: slog.New(slog.NewTextHandler(&log, nil)), reaper: newReaper()}
	stop := make(chan struct{})
	go func() { // Run reaps whatever ends, which a test must not
		for {
			select {
			case <-stop:
				return
			default:
				h.reaper.collect()
				pause()
			}
		}
	}()
	defer close(stop)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- h.keep(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); said() != "daemon daemon"; pause() {
		if time.Now().After(deadline) {
			t.Fatalf("it was not started again: %q", said())
		}
	}
	<-time.After(100 * time.Millisecond) // its trap is set right after it has spoken
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := said(); got != "daemon daemon halt ended" {
		t.Errorf("what happened: %q", got)
	}
	if !strings.Contains(log.String(), "status=3") {
		t.Errorf("the log says %q", log.String())
	}
}

func TestHostRefuses(t *testing.T) {
	t.Parallel()
	if err := (&ContainerHost{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "bulkhead host create") {
		t.Errorf("by hand: %v", err)
	}
}

func TestDelegate(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte("cpu memory\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cgroup.subtree_control"} {
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "init"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "init/cgroup.procs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := delegate(root); err != nil {
		t.Fatal(err)
	}
	procs, _ := os.ReadFile(filepath.Join(root, "init/cgroup.procs"))
	last, _ := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	if string(procs) != "1" || string(last) != "+memory" { // each write is one of its own
		t.Errorf("%q is in the group, and %q handed down", procs, last)
	}
	if err := delegate(filepath.Join(root, "none", "such")); err == nil {
		t.Error("without control groups it goes on")
	}
}

func TestFindDisk(t *testing.T) {
	t.Parallel()
	class := t.TempDir()
	for name, serial := range map[string]string{"vda": "other\n", "vdb": "bulkhead\n", "loop0": ""} {
		dir := filepath.Join(class, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if serial != "" {
			if err := os.WriteFile(filepath.Join(dir, "serial"), []byte(serial), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := findDisk(class, "/dev", "bulkhead"); err != nil || got != "/dev/vdb" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestDial connects with a socket in the file system of a process, which is our own.
func TestDial(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "dial") //nolint:usetesting // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			text, _ := io.ReadAll(c) // its end is told
			_, _ = c.Write(bytes.ToUpper(text))
			_ = c.Close()
		}
	}()
	ps := newProcesses("")
	ps.by["main"] = &process{pid: os.Getpid()}
	carry, err := ps.dial(t.Context(), proto.Dial{Process: "main", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	// A stream whose Close closes one direction, as yamux's does.
	toHost, fromGuest := io.Pipe()
	toGuest, fromHost := io.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); carry(oneWay{toGuest, fromGuest}) }()
	go func() { _, _ = io.WriteString(fromHost, "hello"); _ = fromHost.Close() }()
	got, err := io.ReadAll(toHost)
	if err != nil || string(got) != "HELLO" {
		t.Errorf("got %q, %v", got, err)
	}
	<-done
	for _, d := range []proto.Dial{{Process: "none", Path: path}, {Process: "main", Path: "s"}, {Process: "main", Path: path + "x"}} {
		if _, err := ps.dial(t.Context(), d); err == nil {
			t.Errorf("%+v is connected", d)
		} else if strings.Contains(err.Error(), "/proc/") {
			t.Errorf("the agent's own path is told: %v", err)
		}
	}
}

type oneWay struct {
	*io.PipeReader
	w *io.PipeWriter
}

func (o oneWay) Write(p []byte) (int, error)      { return o.w.Write(p) }
func (o oneWay) Close() error                     { return o.w.Close() }
func (o oneWay) LocalAddr() net.Addr              { return nil }
func (o oneWay) RemoteAddr() net.Addr             { return nil }
func (o oneWay) SetDeadline(time.Time) error      { return nil }
func (o oneWay) SetReadDeadline(time.Time) error  { return nil }
func (o oneWay) SetWriteDeadline(time.Time) error { return nil }
