package process

import (
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
)

func TestRunToTheEnd(t *testing.T) {
	b := newBed(t)
	out, code := b.sh("echo out; echo err >&2; exit 7")
	if code != 7 || !strings.Contains(out, "out\n") || !strings.Contains(out, "err\n") {
		t.Fatalf("exit code %d, output %q", code, out)
	}
}

func TestKill(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct {
		signal string
		code   int
	}{{"KILL", 137}, {"SIGUSR1", 3}, {"15", 4}} {
		id := b.start(b.config("/bin/sh", "-c", "trap 'exit 3' USR1; trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done"))
		eventually(t, "traps set", func() bool { return b.logs(id) != "" })
		must(t, b.r.Kill(b.ctx(), id, c.signal))
		if st := b.wait(id); st.ExitCode != c.code {
			t.Errorf("%s: exit code %d, want %d", c.signal, st.ExitCode, c.code)
		}
		if err := b.r.Kill(b.ctx(), id, c.signal); err == nil {
			t.Errorf("%s: a container that has ended takes a signal", c.signal)
		}
	}
}

func TestStates(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sleep", "1000")
	status := func() string {
		st, err := b.r.State(b.ctx(), cfg.ID)
		must(t, err)
		return st.Status
	}
	if s := status(); s != "" {
		t.Fatalf("before: %q", s)
	}
	b.create(cfg)
	if s := status(); s != api.StatusCreated {
		t.Fatalf("created: %q", s)
	}
	must(t, b.r.Start(b.ctx(), cfg.ID))
	must(t, b.r.Start(b.ctx(), cfg.ID))
	if s := status(); s != api.StatusRunning {
		t.Fatalf("started: %q", s)
	}
	must(t, b.r.Delete(b.ctx(), cfg.ID))
	must(t, b.r.Delete(b.ctx(), cfg.ID))
	if s := status(); s != "" {
		t.Fatalf("deleted: %q", s)
	}
}
