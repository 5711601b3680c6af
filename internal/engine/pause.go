package engine

import (
	"context"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// PauseContainer freezes a container's processes. Its addresses, ports and
// connections stay; nothing answers until it is let go on.
func (e *Engine) PauseContainer(ctx context.Context, ref string) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	name := c.Doc.Name
	switch {
	case c.Doc.State.Paused:
		return api.Errorf(api.KindConflict, "container %s is paused already", name).Hint("bulkhead unpause %s", name)
	case c.Doc.State.Status != api.StatusRunning:
		return api.Errorf(api.KindConflict, "container %s is %s: only one that runs can be paused", name, c.Doc.State.Status).Hint("bulkhead start %s", name)
	}
	if err := e.opt.Sandbox.Pause(ctx, c.Doc.ID); err != nil {
		return named("pause", name, err, "bulkhead inspect "+name)
	}
	return e.notePaused(c, true)
}

// UnpauseContainer lets a paused container go on.
func (e *Engine) UnpauseContainer(ctx context.Context, ref string) error {
	c, unlock, err := e.hold(ref)
	if err != nil {
		return err
	}
	defer unlock()
	if !c.Doc.State.Paused {
		return api.Errorf(api.KindConflict, "container %s is not paused", c.Doc.Name).Hint("bulkhead ps -a")
	}
	return e.resume(ctx, c)
}

// resume lets a paused container go on. The caller holds the container's lock.
func (e *Engine) resume(ctx context.Context, c *containerRow) error {
	if err := e.opt.Sandbox.Resume(ctx, c.Doc.ID); err != nil {
		return named("unpause", c.Doc.Name, err, "bulkhead kill "+c.Doc.Name)
	}
	return e.notePaused(c, false)
}

// notePaused writes it down after it is so: what a crash in between leaves,
// adoptRunning finds.
func (e *Engine) notePaused(c *containerRow, paused bool) error {
	_, _, err := e.ctrs.change(c.Doc.ID, func(_ *txn, c *containerRow) error {
		c.Doc.State.Paused = paused
		return nil
	})
	if err != nil {
		return err
	}
	action := "unpause"
	if paused {
		action = "pause"
	}
	e.event("container", action, c.Doc.ID, c.Doc.Name, nil)
	return nil
}

// endsPause tells whether a signal is one that a paused container has to be let go
// on for: one that ends it. Others wait until it is unpaused.
func (e *Engine) endsPause(c *containerRow, signal string) bool {
	own, _ := e.stopWith(c, api.StopRequest{})
	plain := func(s string) string { return strings.TrimPrefix(strings.ToUpper(s), "SIG") }
	switch plain(signal) {
	case "KILL", "9", plain(own):
		return true
	}
	return false
}

func paused(c *containerRow, doing string) error {
	return api.Errorf(api.KindConflict, "%s container %s: it is paused", doing, c.Doc.Name).Hint("bulkhead unpause %s", c.Doc.Name)
}
