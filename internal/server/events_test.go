package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func network(name string) api.Event {
	return api.Event{Kind: "network", Action: "create", Name: name, HCN: &hcn.Event{
		Type: hcn.NotificationNetworkCreate, NotificationData: hcn.NotificationData{ID: "11111111-2222-4333-8444-AAAAAAAAAAAA"},
	}}
}

func TestEvents(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.fake.emit(api.Event{Kind: "image", Action: "pull"})
	s, err := r.WatchEvents(ctx, client.EventOptions{Kinds: []string{"network", "container"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Last() != 1 {
		t.Errorf("a stream that begins now begins after %d, want 1", s.Last())
	}
	r.fake.emit(api.Event{Kind: "image", Action: "pull"})
	r.fake.emit(network("a"))
	if ev, err := s.Next(); err != nil || ev.Seq != 3 || ev.Name != "a" {
		t.Errorf("got %v, %v", ev, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	r.fake.emit(network("b"))
	h, err := r.WatchHCN(ctx, client.EventOptions{Resume: true, After: s.Last()})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ev, err := h.Next()
	if err != nil || ev.Type != hcn.NotificationNetworkCreate || ev.ID != "11111111-2222-4333-8444-AAAAAAAAAAAA" || h.Last() != 4 {
		t.Errorf("resumed: %v, %v, after %d", ev, err, h.Last())
	}
}

func TestEventsWire(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r.fake.emit(network("a"))
	r.fake.emit(api.Event{Kind: "container", Action: "start"})
	r.fake.emit(network("b"))
	got := make(chan string)
	go func() { got <- r.raw(t, "GET", "/hcn/v2/events?after=0", "") }()
	for r.readers() == 0 && ctx.Err() == nil {
		<-time.After(time.Millisecond)
	}
	// A daemon that stops ends the streams and says so.
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	const data = `{"ID":"11111111-2222-4333-8444-AAAAAAAAAAAA","Flags":0}`
	want := "200 OK\nid: 0\n\n" +
		"id: 1\nevent: NetworkCreate\ndata: " + data + "\n\n" +
		"id: 3\nevent: NetworkCreate\ndata: " + data + "\n\n" +
		"event: ServiceDisconnect\ndata: {}\n\n"
	if d := cmp.Diff(want, <-got); d != "" {
		t.Error(d)
	}
}

func (r *rig) readers() int {
	r.fake.mu.Lock()
	defer r.fake.mu.Unlock()
	return len(r.fake.readers)
}

func TestEventsHeartbeat(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Heartbeat = time.Millisecond })
	conn := r.dial(t)
	fmt.Fprintf(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 7\r\n\r\n")
	if got := readUntil(t, conn, ": alive"); !strings.Contains(got, "id: 7\n\n") {
		t.Errorf("got %q", got)
	}
}

// TestEventsSlowReader has a reader that takes nothing: it is cut off, and neither the daemon nor other readers notice.
func TestEventsSlowReader(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	slow, err := r.WatchEvents(ctx, client.EventOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	for i := 0; r.readers() > 0; i++ {
		r.fake.emit(network(strings.Repeat("x", 4000)))
		if i > 10000 {
			t.Fatal("the slow reader is never cut off")
		}
	}
	n := 0
	for {
		if _, err := slow.Next(); err != nil {
			if !errors.Is(err, client.ErrStreamEnded) {
				t.Errorf("the stream ended with %v", err)
			}
			break
		}
		n++
	}
	if n == 0 || uint64(n) != slow.Last() {
		t.Errorf("read %d events, the last is %d: some are missing in between", n, slow.Last())
	}
	again, err := r.WatchEvents(ctx, client.EventOptions{Resume: true, After: slow.Last()})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if slow.Last() < r.fake.LastEvent() {
		if ev, err := again.Next(); err != nil || ev.Seq != slow.Last()+1 {
			t.Errorf("resumed with %d after %d, %v", ev.Seq, slow.Last(), err)
		}
	}
}

// TestEventsOfNoKind: a stream that could never tell anything is refused.
func TestEventsOfNoKind(t *testing.T) {
	r := newRig(t)
	if got := r.raw(t, "GET", "/v1/events?kind=container,bogus", ""); !strings.HasPrefix(got, "400") || !strings.Contains(got, `\"bogus\"`) || !strings.Contains(got, "drift") {
		t.Errorf("got %.300s", got)
	}
}
