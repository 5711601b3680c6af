package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestNotifyReady(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv(notifyEnv, path)
	taken, err := takeNotifySocket()
	if err != nil || taken != path {
		t.Fatalf("taken %q, error %v; want %q", taken, err, path)
	}
	if v, set := os.LookupEnv(notifyEnv); set {
		t.Errorf("%s is still %q: children would have it", notifyEnv, v)
	}
	if err := notifyReady(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("systemd is told %q, error %v", buf[:n], err)
	}
}

func TestNotifyNobody(t *testing.T) {
	if err := notifyReady(t.Context(), ""); err != nil {
		t.Errorf("without a socket: %v", err)
	}
	if err := notifyReady(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a socket that is not there is no error")
	}
}
