package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// How long a guest may take to have what is attached, and how often it is looked at.
const (
	syncWait  = 30 * time.Second
	syncAgain = 50 * time.Millisecond
)

// syncGuest waits until the VM in a namespace has what is attached there, and nothing else. Without a VM that runs there is nothing to do.
func (e *Engine) syncGuest(ctx context.Context, namespace hcn.GUID) error {
	if rehearsing(ctx) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, syncWait, errGuestSlow)
	defer cancel()
	for {
		g, c := e.guestAt(namespace)
		if c == nil || c.Doc.State.Status != api.StatusRunning {
			return nil
		}
		if c.Doc.State.Paused {
			return hcn.Errorf(hcn.ErrDegradedOperation, "namespace %s: the VM of container %s is paused: bulkhead unpause %s", namespace, c.Doc.Name, c.Doc.Name)
		}
		has, err := e.opt.Sandbox.GuestNICs(ctx, c.Doc.ID, api.GuestNICsRequest{Sync: true})
		var lacks error
		if err == nil {
			if lacks = g.compare(has); lacks == nil {
				return nil
			}
		}
		select {
		case <-time.After(syncAgain):
			continue
		case <-ctx.Done():
		}
		// It may have ended meanwhile, and then has nothing to be told.
		if _, c := e.guestAt(namespace); c == nil || c.Doc.State.Status != api.StatusRunning {
			return nil
		}
		if err != nil && !errors.Is(err, ctx.Err()) {
			lacks = err
		}
		if lacks == nil {
			lacks = context.Cause(ctx)
		}
		return hcn.Errorf(hcn.ErrNetAdapterTimeout, "namespace %s: the VM of container %s: %w", namespace, c.Doc.Name, lacks)
	}
}

var errGuestSlow = fmt.Errorf("it does not answer within %v", syncWait)

// guestView is what a guest is to have.
type guestView struct {
	macs map[string]*plan.Endpoint
}

// guestAt is that of the VM in a namespace, and the container whose it is.
func (e *Engine) guestAt(namespace hcn.GUID) (guestView, *containerRow) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ns := e.st.namespaces[namespace]
	if ns == nil {
		return guestView{}, nil
	}
	return e.st.guestView(namespace), e.st.machineIn(ns)
}

func (s *state) guestView(namespace hcn.GUID) guestView {
	v := guestView{macs: map[string]*plan.Endpoint{}}
	for _, ep := range s.attachedTo(namespace) {
		v.macs[ep.MAC.String()] = ep
	}
	return v
}

// compare says what a guest lacks, or has too much.
func (v guestView) compare(has api.GuestNICs) error {
	if has.Error != "" {
		return errors.New(has.Error)
	}
	there := map[string]bool{}
	for _, n := range has.NICs {
		if there[n.MAC] = true; v.macs[n.MAC] == nil {
			return fmt.Errorf("it still has the NIC %s with the MAC %s", n.Name, n.MAC)
		}
	}
	for mac, ep := range v.macs {
		if !there[mac] {
			return fmt.Errorf("it has no NIC for endpoint %s yet", ep.Doc.ID)
		}
	}
	return nil
}
