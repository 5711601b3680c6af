package proto

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPackets: packets keep their bounds, errors their numbers, and a peer that breaks the rules is not believed.
func TestPackets(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	ours, theirs := NewPackets(a, "192.0.2.1:7"), NewPackets(b, "")
	if got := ours.LocalAddr().String(); got != "192.0.2.1:7" {
		t.Errorf("the socket's address is %s", got)
	}
	go func() {
		_, _ = theirs.Write([]byte("one"))
		_, _ = theirs.Write([]byte("second"))
		_ = theirs.Fail(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNREFUSED)})
		_ = theirs.Fail(errors.New("anything"))
		_, _ = b.Write(binary.BigEndian.AppendUint16(nil, MaxPacket+1))
	}()
	buf := make([]byte, 4)
	for _, want := range []string{"one", "seco"} { // a datagram's rest is lost, as with a socket
		if n, err := ours.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("read %q, %v, want %q", buf[:n], err, want)
		}
	}
	for _, want := range []error{syscall.ECONNREFUSED, syscall.EIO, ErrTooLarge} {
		if _, err := ours.Read(buf); !errors.Is(err, want) {
			t.Errorf("read: %v, want %v", err, want)
		}
	}
	if _, err := ours.Write(make([]byte, MaxPacket+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("write too much: %v", err)
	}
	_ = ours.SetDeadline(time.Now().Add(-time.Second))
	if _, err := ours.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || Errno(err) != syscall.ETIMEDOUT {
		t.Errorf("read after the deadline: %v", err)
	}
}

// TestPacketsJoin carries a socket's packets and its end.
func TestPacketsJoin(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	socket, far := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); NewPackets(b, "").Join(socket) }()
	ours := NewPackets(a, "")
	go func() {
		buf := make([]byte, 64)
		n, _ := far.Read(buf)
		_, _ = far.Write([]byte(strings.ToUpper(string(buf[:n]))))
		_ = far.Close()
	}()
	buf := make([]byte, 64)
	if _, err := ours.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := ours.Read(buf); err != nil || string(buf[:n]) != "HELLO" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if _, err := ours.Read(buf); err == nil {
		t.Error("the socket's end is not told")
	}
	_ = ours.Close()
	<-done
}
