package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

func TestPause(t *testing.T) {
	at := func(e *env, name string) (string, func(paused bool)) {
		id := e.started(name, []string{"run"})
		return id, func(paused bool) {
			e.t.Helper()
			if got := e.state(id).Paused; got != paused || e.w.ctrs[id] != nil && e.w.ctrs[id].frozen != paused {
				e.t.Errorf("%s: paused %v, want %v", name, got, paused)
			}
		}
	}
	refused := func(e *env, err error, hint string) {
		e.t.Helper()
		e.wantKind(err, api.KindConflict)
		if a, ok := errors.AsType[*api.Error](asAPI(err)); !ok || !strings.Contains(a.Next, hint) {
			e.t.Errorf("%v: the next step is not %q", err, hint)
		}
	}
	t.Run("and go on", func(t *testing.T) {
		run(t, func(e *env) {
			id, is := at(e, "c")
			refused(e, e.e.UnpauseContainer(bg, id), "ps")
			e.ok(e.e.PauseContainer(bg, "c"))
			is(true)
			refused(e, e.e.PauseContainer(bg, id), "unpause c")
			refused(e, e.e.StartContainer(bg, id), "unpause c")
			_, err := e.e.ExecContainer(bg, id, api.ExecSpec{Args: []string{"x"}}, api.Streams{})
			refused(e, err, "unpause c")
			refused(e, e.e.AttachContainer(bg, id, api.Streams{}), "unpause c")
			refused(e, e.e.RemoveContainer(bg, id, false), "")
			e.ok(e.e.KillContainer(bg, id, "SIGHUP")) // waits
			is(true)
			e.restart()
			is(true)
			e.ok(e.e.UnpauseContainer(bg, id))
			is(false)
			e.wantStatus(id, api.StatusRunning, 0)
			e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
			refused(e, e.e.PauseContainer(bg, id), "start c")
		})
	})
	for name, tc := range map[string]struct {
		end  func(e *env, id string) error
		code int
	}{
		"stop":            {func(e *env, id string) error { return e.e.StopContainer(bg, id, api.StopRequest{}) }, 143},
		"kill":            {func(e *env, id string) error { return e.e.KillContainer(bg, id, "") }, 137},
		"its stop signal": {func(e *env, id string) error { return e.e.KillContainer(bg, id, "SIGTERM") }, 143},
		"stop within no time": {func(e *env, id string) error {
			none := 0
			return e.e.StopContainer(bg, id, api.StopRequest{Timeout: &none})
		}, 143},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				id, is := at(e, "c")
				e.ok(e.e.PauseContainer(bg, id))
				begin := time.Now()
				e.ok(tc.end(e, id))
				if _, err := e.e.WaitContainer(bg, id, ""); err != nil || time.Since(begin) > time.Second {
					e.t.Errorf("it ended after %v, %v", time.Since(begin), err)
				}
				is(false)
				e.wantStatus(id, api.StatusExited, tc.code)
			})
		})
	}
	t.Run("removed", func(t *testing.T) {
		run(t, func(e *env) {
			id, _ := at(e, "c")
			e.ok(e.e.PauseContainer(bg, id))
			e.ok(e.e.RemoveContainer(bg, id, true))
		})
	})
	t.Run("by a daemon that could not note it", func(t *testing.T) {
		run(t, func(e *env) {
			id, is := at(e, "c")
			e.ok(e.sb.Pause(context.Background(), id))
			e.restart()
			e.settle()
			is(true)
			e.ok(e.e.UnpauseContainer(bg, id))
		})
	})
}
