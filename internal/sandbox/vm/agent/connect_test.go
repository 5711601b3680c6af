package agent

import (
	"encoding/json"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestConnect makes sockets in a compartment, which has the addresses, for the agent has none.
func TestConnect(t *testing.T) {
	h := testhost.New(t)
	h.Up("lo")
	var ns int
	h.Do(func() {
		var err error
		if ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	})
	defer unix.Close(ns)
	l, err := h.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := &agent{nics: &nics{boxF: ns}, procs: newProcesses("")}
	ask := func(d proto.Dial) (proto.Dialled, func(net.Conn), error) {
		body, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		result, carry, err := a.Handle(t.Context(), proto.OpDial, body)
		answer, _ := result.(proto.Dialled)
		return answer, carry, err
	}
	second := int64(time.Second)
	got, carry, err := ask(proto.Dial{Network: "tcp", Address: l.Addr().String(), From: 61000, Wait: second})
	if err != nil || got.Local != "127.0.0.1:61000" || got.Errno != 0 {
		t.Errorf("TCP: %+v, %v", got, err)
	}
	if carry != nil {
		ours, theirs := net.Pipe()
		_ = ours.Close()
		carry(theirs) // and the socket is closed
	}
	if got, _, err = ask(proto.Dial{Network: "tcp", Address: "127.0.0.1:1", Wait: second}); err != nil || got.Errno != int(syscall.ECONNREFUSED) {
		t.Errorf("TCP where nobody listens: %+v, %v", got, err)
	}
	if got, _, err = ask(proto.Dial{Network: "tcp", Address: "192.0.2.1:80", Wait: second}); err != nil || got.Errno != int(syscall.ENETUNREACH) {
		t.Errorf("TCP to where no route leads: %+v, %v", got, err)
	}
	got, carry, err = ask(proto.Dial{Network: "udp", Address: "127.0.0.1:1", Wait: second})
	if err != nil || got.Errno != 0 {
		t.Fatalf("UDP: %+v, %v", got, err)
	}
	ours, theirs := net.Pipe()
	go carry(theirs)
	p := proto.NewPackets(ours, got.Local)
	_ = p.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := p.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := p.Read(make([]byte, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP where nobody listens: %v, want refused", err)
	}
	_ = p.Close()
	for _, d := range []proto.Dial{
		{Network: "unix", Address: "/run/s"}, {Network: "tcp", Address: "web:80"}, {Network: "tcp", Address: "192.0.2.1"}, {Network: "ip4:icmp", Address: "web"},
	} {
		if _, _, err := ask(d); err == nil {
			t.Errorf("%+v is done", d)
		}
	}
}
