package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// toldNICs is what the guest has taken over, for those who ask the shim.
type toldNICs struct {
	mu      sync.Mutex
	now     proto.NICs
	changed chan struct{} // closed with the next change; nil: nobody waits for it
}

// set notes how a comparison ended.
func (t *toldNICs) set(have map[int]*plugged, err error) {
	var nics []proto.Interface
	for _, p := range have {
		if p.told.Name != "" { // which the guest has answered
			nics = append(nics, proto.Interface{Name: p.told.Name, MAC: p.told.MAC})
		}
	}
	slices.SortFunc(nics, func(a, b proto.Interface) int { return strings.Compare(a.MAC, b.MAC) })
	said := ""
	if err != nil {
		said = err.Error()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.Equal(nics, t.now.NICs) && said == t.now.Error {
		return
	}
	t.now = proto.NICs{Seq: t.now.Seq + 1, NICs: nics, Error: said}
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// get gives what is there, and a channel that is closed when that changes.
func (t *toldNICs) get() (proto.NICs, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.now, t.changed
}

// syncWhole is sync, again where the compartment is changing just now, which cuts a list short.
func (c *compartment) syncWhole(ctx context.Context) (err error) {
	for err = c.sync(ctx); errors.Is(err, netlink.ErrDumpInterrupted) && ctx.Err() == nil; {
		err = c.sync(ctx)
	}
	return err
}

// look tells what the guest has.
func (c *compartment) look(ctx context.Context, l proto.Look) (proto.NICs, error) {
	if l.Sync {
		limited, cancel := within(ctx, answerWait)
		err := c.syncWhole(limited)
		cancel()
		now, _ := c.told.get()
		if err != nil {
			now.Error = err.Error()
		}
		return now, nil
	}
	if l.Wait {
		return c.told.await(ctx, l.After, proto.LookWait), nil
	}
	now, _ := c.told.get()
	return now, nil
}

// await waits for a change after the one with a number.
func (t *toldNICs) await(ctx context.Context, after uint64, most time.Duration) proto.NICs {
	end := time.NewTimer(most)
	defer end.Stop()
	for {
		now, changed := t.get()
		if now.Seq != after {
			return now
		}
		select {
		case <-changed:
		case <-end.C:
			return now
		case <-ctx.Done():
			return now
		}
	}
}

// maxTold is more NICs than a VM can have.
const maxTold = 4 * slots

// Look asks the shim of a VM what NICs its guest has taken over. dir is what the shim and the daemon share.
func Look(ctx context.Context, dir string, l proto.Look) (proto.NICs, error) {
	var out proto.NICs
	conn, err := dialShim(ctx, dir)
	if err != nil {
		return out, fmt.Errorf("reach the VM: %w", err)
	}
	client, err := proto.NewClient(conn)
	if err != nil {
		return out, err
	}
	defer client.Close()
	if err := client.Call(ctx, proto.OpNICs, l, &out); err != nil {
		return out, err
	}
	// It is believed as little as its guest, which may have taken it.
	if len(out.NICs) > maxTold {
		return proto.NICs{}, fmt.Errorf("the VM says that it has %d NICs, and it has at most %d", len(out.NICs), slots)
	}
	for i := range out.NICs {
		n := &out.NICs[i]
		n.Name, n.MAC = text(n.Name, maxName), text(n.MAC, maxName)
	}
	out.Error = text(out.Error, mostSaid)
	return out, nil
}

const (
	maxName  = 17   // bytes of a MAC as text, and more than of an interface's name
	mostSaid = 2000 // of an error
)

// text is what of a shim's text may reach a log.
func text(s string, most int) string {
	return proto.Printable(s[:min(len(s), most)])
}
