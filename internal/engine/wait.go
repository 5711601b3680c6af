package engine

import (
	"context"
	"slices"
	"sync"

	"github.com/bulkhead-net/bulkhead/api"
)

// endsKept is how many ended containers are remembered.
const endsKept = 1024

// ends remembers how containers ended, removed ones too: who waits for one with
// --rm asks when its row is gone.
type ends struct {
	mu    sync.Mutex
	order []string // IDs, oldest first
	by    map[string]end
}

type end struct {
	name   string
	count  uint64 // of the ends of this container
	result api.WaitResult
}

func newEnds() *ends { return &ends{by: map[string]end{}} }

func (e *ends) put(c *containerRow) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := c.Doc.ID
	last, again := e.by[id]
	if again {
		e.order = slices.DeleteFunc(e.order, func(o string) bool { return o == id })
	}
	if len(e.order) == endsKept {
		delete(e.by, e.order[0])
		e.order = slices.Delete(e.order, 0, 1)
	}
	e.order = append(e.order, id)
	e.by[id] = end{
		name: c.Doc.Name, count: last.count + 1,
		result: api.WaitResult{ExitCode: c.Doc.State.ExitCode, Error: c.Doc.State.Error},
	}
}

func (e *ends) get(id string) (end, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x, ok := e.by[id]
	return x, ok
}

// find looks for the newest end by ID or name.
func (e *ends) find(ref string) (end, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x, ok := e.by[ref]; ok {
		return x, true
	}
	for _, id := range slices.Backward(e.order) {
		if e.by[id].name == ref {
			return e.by[id], true
		}
	}
	return end{}, false
}

// await waits for a container to be as wanted; nil means that it is gone. It
// returns the last row that there was.
func (e *Engine) await(ctx context.Context, id string, cond func(*containerRow) bool) (*containerRow, error) {
	var last *containerRow
	for {
		changed := e.ctrs.watch()
		c := e.ctrs.row(id)
		if c != nil {
			last = c
		}
		if cond(c) {
			return last, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return last, ctx.Err()
		case <-e.done:
			return last, errStopping
		}
	}
}

// WaitContainer waits until a container has ended ("" or "not-running"), ends the
// next time ("next-exit"), or is removed ("removed"), and says how it ended. One
// that a restart policy starts again has not ended. One that was removed lately
// is known still.
func (e *Engine) WaitContainer(ctx context.Context, ref, condition string) (api.WaitResult, error) {
	switch condition {
	case "", "not-running", "next-exit", "removed":
	default:
		return api.WaitResult{}, api.Errorf(api.KindInvalid, "condition %.40q is not known", condition).Hint("use not-running, next-exit or removed")
	}
	e.mu.RLock()
	c, err := e.st.find(ref)
	e.mu.RUnlock()
	if err != nil {
		if x, ok := e.ctrs.ends.find(ref); ok && api.IsKind(err, api.KindNotFound) && condition != "next-exit" {
			return x.result, nil
		}
		return api.WaitResult{}, err
	}
	id := c.Doc.ID
	before, _ := e.ctrs.ends.get(id)
	ended := func() bool { x, _ := e.ctrs.ends.get(id); return x.count > before.count }
	last, err := e.await(ctx, id, func(c *containerRow) bool {
		switch {
		case c == nil:
			return true
		case condition == "removed":
			return false
		case ended():
			return true
		case condition == "next-exit":
			return false
		case c.Removing:
			return c.Doc.State.Finished != nil // else it is being killed, and the code is not known yet
		}
		return !active(c)
	})
	if err != nil {
		return api.WaitResult{}, err
	}
	if x, ok := e.ctrs.ends.get(id); ok && (last == nil || ended()) {
		return x.result, nil
	}
	if last == nil {
		last = c
	}
	return api.WaitResult{ExitCode: last.Doc.State.ExitCode, Error: last.Doc.State.Error}, nil
}
