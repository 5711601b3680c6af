package engine

import (
	"context"
	"errors"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// StopContainer asks a container to end, and kills it when it does not within the
// timeout; a negative one waits for ever. A client that leaves does not shorten
// the wait.
func (e *Engine) StopContainer(ctx context.Context, ref string, r api.StopRequest) error {
	return e.stop(ctx, ref, r, false)
}

// stop is StopContainer; with again the container is started again at its end.
func (e *Engine) stop(ctx context.Context, ref string, r api.StopRequest, again bool) error {
	row, err := e.beginStop(ctx, ref, r, again)
	if err != nil || row == nil {
		return err
	}
	return e.seeEnd(ctx, row, r)
}

// seeEnd waits for the end of a container that was asked to, and kills it when that takes too long.
func (e *Engine) seeEnd(ctx context.Context, row *containerRow, r api.StopRequest) error {
	id, name := row.Doc.ID, row.Doc.Name
	_, timeout := e.stopWith(row, r)
	if timeout < 0 {
		return e.ended(ctx, id)
	}
	if e.endedWithin(ctx, id, timeout) {
		return nil
	}
	if err := e.opt.Sandbox.Kill(ctx, id, "SIGKILL"); err != nil && !e.gone(ctx, id) {
		return api.Errorf(api.KindInternal, "kill container %s: %w", name, err)
	}
	if !e.endedWithin(ctx, id, waitApplied) {
		return api.Errorf(api.KindUnavailable, "container %s does not end, not even by SIGKILL", name).Hint("bulkhead inspect %s", name)
	}
	return nil
}

// stopping is a stop that is under way.
type stopping struct {
	Signal string
	// Until is when the process is killed; nil: never.
	Until *time.Time
	// Halt is set when the host goes down, and not a user has had enough of it.
	Halt bool
	// Again has it started again at its end, whatever its restart policy: its isolation changes.
	Again bool
}

func newStopping(signal string, timeout time.Duration, halt, again bool) *stopping {
	s := &stopping{Signal: signal, Halt: halt, Again: again}
	if timeout >= 0 {
		until := time.Now().UTC().Add(timeout)
		s.Until = &until
	}
	return s
}

func (s *stopping) halts() bool { return s != nil && s.Halt }

func (s *stopping) again() bool { return s != nil && s.Again }

// rest is the request that goes on with it.
func (s *stopping) rest(now time.Time) api.StopRequest {
	if s == nil {
		return api.StopRequest{} // of a version that did not keep it
	}
	seconds := -1
	if s.Until != nil {
		seconds = int(max(0, (s.Until.Sub(now)+time.Second-1)/time.Second))
	}
	return api.StopRequest{Signal: s.Signal, Timeout: &seconds, Halt: s.Halt}
}

// beginStop sends the stop signal. It returns nil when there is nothing to wait
// for.
func (e *Engine) beginStop(ctx context.Context, ref string, r api.StopRequest, again bool) (*containerRow, error) {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if rehearsing(ctx) != nil {
		_, _, err := e.ctrs.changeOr(ctx, c.Doc.ID, func(t *txn, c *containerRow) error { t.leaveCompartment(c); return nil })
		return nil, asAPI(err)
	}
	return e.askToEnd(ctx, c, r, again, func(*txn, *containerRow) error { return nil })
}

// askToEnd is beginStop for who holds the container's lock; also is part of the change.
func (e *Engine) askToEnd(ctx context.Context, before *containerRow, r api.StopRequest, again bool, also func(*txn, *containerRow) error) (*containerRow, error) {
	row, _, err := e.ctrs.change(before.Doc.ID, func(t *txn, c *containerRow) error {
		if err := also(t, c); err != nil {
			return err
		}
		if !r.Halt && !again {
			c.Want, c.Stopped = false, true
		}
		switch c.Doc.State.Status {
		case api.StatusRestarting:
			t.leaveCompartment(c)
			c.Doc.State.Status = api.StatusExited
		case api.StatusRunning, api.StatusStopping:
			c.Doc.State.Status = api.StatusStopping
			signal, timeout := e.stopWith(c, r)
			c.Stopping = newStopping(signal, timeout, r.Halt, again)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if row.Doc.State.Status != api.StatusStopping {
		if before.Doc.State.Status == api.StatusRestarting && row.Doc.Spec.AutoRemove && !r.Halt {
			return nil, e.ctrs.remove(ctx, row)
		}
		return nil, nil
	}
	signal, _ := e.stopWith(row, r)
	err = e.opt.Sandbox.Kill(ctx, row.Doc.ID, signal)
	if err != nil && r.Signal == "" && signal != defaultStopSignal {
		// What an image names is not ours to refuse, and must not keep a container from being stopped.
		err = e.opt.Sandbox.Kill(ctx, row.Doc.ID, defaultStopSignal)
	}
	if err != nil && !e.gone(ctx, row.Doc.ID) {
		_, _, cerr := e.ctrs.change(row.Doc.ID, func(_ *txn, c *containerRow) error {
			c.Want, c.Stopped, c.Stopping, c.Doc.State.Status = before.Want, before.Stopped, nil, api.StatusRunning
			c.Doc.Spec, c.Doc.GuestKernelID = before.Doc.Spec, before.Doc.GuestKernelID
			return nil
		})
		return nil, api.Errorf(api.KindInvalid, "send %.40s to container %s: %w", signal, row.Doc.Name, errors.Join(err, cerr))
	}
	if row.Doc.State.Paused { // the signal waits for it
		if err := e.resume(ctx, row); err != nil && !e.gone(ctx, row.Doc.ID) {
			return nil, err
		}
	}
	return row, nil
}

// gone tells whether a container's process has ended, and has that settled.
func (e *Engine) gone(ctx context.Context, id string) bool {
	st, err := e.opt.Sandbox.State(ctx, id)
	if err != nil || st.Status == api.StatusRunning {
		return false
	}
	e.ctrs.spawn(func() { e.ctrs.exited(e.ctrs.runCtx(), id) })
	return true
}

// defaultStopSignal is what asks a container to end when nobody names another signal.
const defaultStopSignal = "SIGTERM"

func (e *Engine) stopWith(c *containerRow, r api.StopRequest) (signal string, timeout time.Duration) {
	signal = r.Signal
	if signal == "" {
		signal = c.Doc.Spec.StopSignal
	}
	if signal == "" {
		if img, err := e.opt.Images.Inspect(c.Doc.ImageID); err == nil {
			signal = img.Config.StopSignal
		}
	}
	if signal == "" {
		signal = defaultStopSignal
	}
	seconds := 10
	if c.Doc.Spec.StopTimeout != nil {
		seconds = *c.Doc.Spec.StopTimeout
	}
	if r.Timeout != nil {
		seconds = *r.Timeout
	}
	return signal, time.Duration(seconds) * time.Second
}

// ended waits until a container that is being stopped is not running any more, or again.
func (e *Engine) ended(ctx context.Context, id string) error {
	_, err := e.await(ctx, id, func(c *containerRow) bool { return c == nil || !active(c) || c.Stopping == nil })
	return err
}

func (e *Engine) endedWithin(ctx context.Context, id string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return e.ended(ctx, id) == nil
}

func active(c *containerRow) bool {
	switch c.Doc.State.Status {
	case api.StatusRunning, api.StatusStopping, api.StatusStarting, api.StatusRestarting:
		return true
	}
	return false
}
