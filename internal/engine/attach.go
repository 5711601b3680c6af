package engine

import (
	"context"
	"io"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
)

// attacher is a client that attached to a container before it runs. launch
// connects it between the making of the sandbox and its start, so that it misses
// nothing, however short the process lives.
type attacher struct {
	conn chan connected // holds one
}

type connected struct {
	at  Attachment
	err error
}

// AttachContainer connects streams with a container's process. One that does not
// run yet, but was just created or is being started, is waited for.
func (e *Engine) AttachContainer(ctx context.Context, ref string, s api.Streams) error {
	run, err := e.prepareAttach(ctx, ref, s.Wait)
	if err != nil {
		return err
	}
	if s.Attached != nil {
		s.Attached()
	}
	return run(ctx, s)
}

// PrepareAttach is AttachContainer in two steps, for a server that has to answer
// in between: when it returns, the client may start the container, and nothing
// that it writes is missed. Ending ctx before run is called gives the place up.
func (e *Engine) PrepareAttach(ctx context.Context, ref string) (run func(context.Context, api.Streams) error, err error) {
	return e.prepareAttach(ctx, ref, false)
}

func (e *Engine) prepareAttach(ctx context.Context, ref string, wait bool) (run func(context.Context, api.Streams) error, err error) {
	e.mu.RLock()
	c, err := e.st.find(ref)
	e.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	id := c.Doc.ID
	a := e.ctrs.enlist(id)
	// The row is read after the place is taken, so a start between the two has
	// either connected us or shows here.
	c = e.ctrs.row(id)
	switch {
	case c == nil:
		e.ctrs.delist(id, a)
		return nil, api.Errorf(api.KindNotFound, "container %q does not exist", ref).Hint("bulkhead ps -a")
	case c.Doc.State.Paused:
		e.ctrs.delist(id, a)
		return nil, paused(c, "attach to")
	case !runs(c) && !toCome(c) && !wait:
		e.ctrs.delist(id, a)
		return nil, api.Errorf(api.KindConflict, "container %s is %s", c.Doc.Name, c.Doc.State.Status).Hint("bulkhead start %s, or bulkhead logs %s", c.Doc.Name, c.Doc.Name)
	}
	giveUp := context.AfterFunc(ctx, func() { e.ctrs.delist(id, a) })
	return func(ctx context.Context, s api.Streams) error {
		giveUp()
		defer e.ctrs.delist(id, a)
		return e.attachWaiting(ctx, id, a, s)
	}, nil
}

func runs(c *containerRow) bool {
	return c.Doc.State.Status == api.StatusRunning || c.Doc.State.Status == api.StatusStopping
}

// toCome tells whether a container may be about to run.
func toCome(c *containerRow) bool {
	switch c.Doc.State.Status {
	case api.StatusCreated, api.StatusStarting, api.StatusRestarting:
		return true
	}
	return false
}

func (e *Engine) attachWaiting(ctx context.Context, id string, a *attacher, s api.Streams) error {
	for {
		changed := e.ctrs.watch()
		select {
		case got := <-a.conn:
			return e.runAttachment(ctx, id, got, s)
		default:
		}
		c := e.ctrs.row(id)
		switch {
		case c == nil:
			return api.Errorf(api.KindNotFound, "container %.12s is removed", id).Hint("bulkhead ps -a shows those that are there")
		case c.Doc.State.Status == api.StatusRemoving: // and soon gone
		case s.Wait && !runs(c) && !toCome(c): // whoever starts it learns of a failure
		case c.Doc.State.Status == api.StatusFailed:
			return api.Errorf(api.KindConflict, "container %s could not be started: %s", c.Doc.Name, c.Doc.State.Error).
				Hint("bulkhead logs %s; bulkhead inspect %s", c.Doc.Name, c.Doc.Name)
		case runs(c):
			// Connected between the two looks, or started before we had our place.
			select {
			case got := <-a.conn:
				return e.runAttachment(ctx, id, got, s)
			default:
				e.ctrs.delist(id, a)
				return e.opt.Sandbox.Attach(ctx, id, s)
			}
		case !toCome(c):
			return api.Errorf(api.KindConflict, "container %s is %s", c.Doc.Name, c.Doc.State.Status).Hint("bulkhead logs %s", c.Doc.Name)
		}
		select {
		case got := <-a.conn:
			return e.runAttachment(ctx, id, got, s)
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-e.done:
			return errStopping
		}
	}
}

func (e *Engine) runAttachment(ctx context.Context, id string, got connected, s api.Streams) error {
	if got.err != nil {
		return api.Errorf(api.KindInternal, "attach to container %.12s: %w", id, got.err)
	}
	if s.Stdin == nil {
		// A connection without input is not one that has ended.
		r, w := io.Pipe()
		defer w.Close()
		s.Stdin = r
	}
	return got.at.Run(ctx, s)
}

func (s *supervisor) enlist(id string) *attacher {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &attacher{conn: make(chan connected, 1)}
	s.waiting[id] = append(s.waiting[id], a)
	return a
}

// delist gives a place up; a connection that was made for it is closed.
func (s *supervisor) delist(id string, a *attacher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[id] = slices.DeleteFunc(s.waiting[id], func(o *attacher) bool { return o == a })
	if len(s.waiting[id]) == 0 {
		delete(s.waiting, id)
	}
	select {
	case got := <-a.conn:
		if got.at != nil {
			_ = got.at.Close() // nobody listens
		}
	default:
	}
}

// connectWaiting connects all that attached before the start.
func (s *supervisor) connectWaiting(ctx context.Context, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.waiting[id] {
		at, err := s.e.opt.Sandbox.Connect(ctx, id)
		a.conn <- connected{at, err}
	}
	delete(s.waiting, id)
}
