package nat

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestBatch: a transaction is all or nothing, says why it was refused, and may be one of thousands of elements.
func TestBatch(t *testing.T) {
	tp := newTopology(t)
	tp.sync()
	element := func(port int) elements {
		es := elements{}
		to := netip.MustParseAddr("10.77.1.2")
		if err := es.addPort(&plan.Port{ID: plan.PortID(fmt.Sprint(port)), Forwards: []plan.Forward{forward(6, "127.0.0.1", uint16(port), to, 80)}}); err != nil {
			t.Fatal(err)
		}
		return es
	}
	held := func() int {
		l, err := tp.a.k.list()
		if err != nil {
			t.Fatal(err)
		}
		return len(l.elements)
	}
	before := held()
	k := &tp.a.k
	if err := k.write(nil, element(1001)); err != nil {
		t.Fatal(err)
	}
	each := held() - before
	if each == 0 {
		t.Fatal("nothing was written")
	}
	// The first of it can be done, the second cannot.
	if err := k.write(element(1002), element(1003)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("delete what is not there: %v", err)
	}
	if got := held() - before; got != each {
		t.Errorf("%d elements after a refused transaction, want %d", got, each)
	}
	// What is left of an answer that nobody read is not taken for one of the next transaction. Numbers wrap.
	b := &k.batch
	for _, seq := range []uint32{b.seq, ^uint32(0) - 1} {
		b.seq = seq
		if err := k.write(nil, element(1004)); err != nil {
			t.Fatal(err)
		}
		ms, err := messages(nil, unix.NFT_MSG_DELSETELEM, 0, element(1005))
		if err != nil {
			t.Fatal(err)
		}
		out, err := b.encode(ms)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.send(out); err != nil {
			t.Fatal(err)
		}
		if err := k.write(element(1004), nil); err != nil {
			t.Errorf("after an answer that nobody read: %v", err)
		}
	}
	many := elements{}
	for i := range 3000 {
		maps.Copy(many, element(2000+i))
	}
	if err := k.write(element(1001), many); err != nil {
		t.Fatalf("write thousands: %v", err)
	}
	if got, want := held()-before, len(many); got != want {
		t.Errorf("%d elements, want %d", got, want)
	}
	if err := k.write(many, nil); err != nil {
		t.Fatalf("delete thousands: %v", err)
	}
	if got := held(); got != before {
		t.Errorf("%d elements are left, there were %d", got, before)
	}
}
