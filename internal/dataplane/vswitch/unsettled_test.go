package vswitch

import (
	"context"
	"errors"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestKilledBeforeItSettles: a daemon is killed when it has written rules, and has not told the programs yet. The next one
// finds them as they are wanted, and has the flows judged under them; whoever comes after that writes nothing.
func TestKilledBeforeItSettles(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.play(t, 0, handshake(1000, 80))
	w.play(t, 1, []step{{"question", false, datagram(1000, 53), delivery}, {"answer", true, datagram(53, 1000), delivery}})
	blocked := *w.a
	blocked.Policy.Out = list(plan.Block)
	w.plan.Ports[blocked.ID] = &blocked
	w.in(func() error {
		if err := w.lab.a.objs.BhConfigV1.Close(); err != nil {
			return err
		}
		if err := w.lab.a.Update(context.Background(), w.plan, change(w.a, &blocked)); err == nil {
			return errors.New("an update that cannot raise the generation says that all is well")
		}
		return w.lab.a.Close()
	})
	w.a = &blocked
	w.open()
	if drift := w.sync(); len(drift) != 0 {
		t.Errorf("drift after a kill: %v", drift)
	}
	w.play(t, 0, []step{{"data", false, tcp(1000, 80, "PA"), policyOut}})
	w.play(t, 1, []step{{"question", false, datagram(1000, 53), policyOut}})
	w.in(w.lab.a.Close)
	w.open()
	w.sync()
	if n := w.lab.a.Writes(); n != 0 {
		t.Errorf("the start after that wrote %d times to the kernel, want 0", n)
	}
}
