package vm

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

func told(mac, name string) *plugged { return &plugged{told: proto.NIC{MAC: mac, Name: name}} }

// TestToldNICs: only what the guest has taken over counts, each change has a number, and who waits for one is woken.
func TestToldNICs(t *testing.T) {
	n := new(toldNICs)
	first, _ := n.get()
	n.set(map[int]*plugged{1: told("02:00:00:00:00:01", "")}, nil) // plugged in, and not answered
	if now, _ := n.get(); now.Seq != first.Seq {
		t.Errorf("nothing has changed, and it is %+v", now)
	}
	waiting := make(chan proto.NICs)
	go func() { waiting <- n.await(t.Context(), first.Seq, time.Minute) }()
	n.set(map[int]*plugged{1: told("02:00:00:00:00:02", "eth1"), 2: told("02:00:00:00:00:01", "eth0")}, nil)
	want := proto.NICs{Seq: first.Seq + 1, NICs: []proto.Interface{{Name: "eth0", MAC: "02:00:00:00:00:01"}, {Name: "eth1", MAC: "02:00:00:00:00:02"}}}
	select {
	case got := <-waiting:
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("who waits is not woken")
	}
	n.set(nil, errors.New("no slot"))
	if now, _ := n.get(); now.Error != "no slot" || now.Seq != want.Seq+1 || len(now.NICs) != 0 {
		t.Errorf("%+v", now)
	}
	if got := n.await(t.Context(), want.Seq+1, time.Millisecond); got.Seq != want.Seq+1 {
		t.Errorf("%+v", got)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	n.await(gone, want.Seq+1, time.Hour)
}

// TestLook is the daemon's way to ask a shim, which it does not believe everything.
func TestLook(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, controlFile))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan proto.Look, 1)
	answer := proto.NICs{Seq: 7, NICs: []proto.Interface{{Name: "eth0\x1b[2J-and-much-more", MAC: "02:00:00:00:00:01"}}, Error: strings.Repeat("x", 5000)}
	go serveClients(t.Context(), l, nil, nil, func(_ context.Context, l proto.Look) (proto.NICs, error) {
		asked <- l
		return answer, nil
	})
	got, err := Look(t.Context(), dir, proto.Look{Sync: true, After: 3})
	if err != nil {
		t.Fatal(err)
	}
	if l := <-asked; !l.Sync || l.After != 3 {
		t.Errorf("asked %+v", l)
	}
	if got.Seq != 7 || len(got.NICs) != 1 || got.NICs[0].MAC != "02:00:00:00:00:01" || got.NICs[0].Name != "eth0 [2J-and-much" || len(got.Error) != mostSaid {
		t.Errorf("%+v", got)
	}
	answer.NICs = make([]proto.Interface, maxTold+1)
	if _, err := Look(t.Context(), dir, proto.Look{}); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("%v", err)
	}
	if _, err := Look(t.Context(), t.TempDir(), proto.Look{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a shim: %v", err)
	}
}

// TestLookAtMember: the shim of a member has no VM to tell of, and one that has reads no nonsense.
func TestLookAtMember(t *testing.T) {
	r := &relay{prefix: "1-"}
	if _, _, err := r.Handle(t.Context(), proto.OpNICs, json.RawMessage(`{"process":"main"}`)); err == nil {
		t.Error("a member tells of NICs")
	}
	r.look = func(context.Context, proto.Look) (proto.NICs, error) { return proto.NICs{}, nil }
	if _, _, err := r.Handle(t.Context(), proto.OpNICs, json.RawMessage(`no`)); err == nil {
		t.Error("nonsense is taken for a request")
	}
}
