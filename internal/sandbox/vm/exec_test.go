package vm

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// muteGuest answers but for some requests, and those never.
type muteGuest struct{ never []string }

func (g muteGuest) Call(ctx context.Context, op string, _, _ any) error {
	if !slices.Contains(g.never, op) {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (g muteGuest) Stream(ctx context.Context, op string, _, _ any) (net.Conn, error) {
	if err := g.Call(ctx, op, nil, nil); err != nil {
		return nil, err
	}
	a, b := net.Pipe()
	_ = b.Close()
	return a, nil
}

// TestExecOfMuteGuest: who has a command run in a VM that does not answer gets to know it.
func TestExecOfMuteGuest(t *testing.T) {
	for op, code := range map[string]int{proto.OpExec: codeCannotRun, proto.OpStdio: lostCode} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*startWait)
			defer cancel()
			got, err := execBy(ctx, muteGuest{[]string{op}}, proto.Exec{}, make(chan os.Signal))
			cancel() // its signals go with it
			if got != code || !errors.Is(err, errNoAnswer) {
				t.Errorf("without an answer to %s: %d, %v", op, got, err)
			}
		})
	}
}

// TestWhy names what has failed, and not what ended with it.
func TestWhy(t *testing.T) {
	ended := make(chan struct{})
	close(ended)
	child := func(err error, said string) *child {
		c := &child{stderr: &tail{}, ended: ended, err: err}
		_, _ = c.stderr.Write([]byte(said))
		return c
	}
	m := &Machine{console: &tail{}, qemu: child(nil, ""), share: child(nil, "virtio_loop: Exit")}
	if got := m.Why(); got != "QEMU ended: normally" {
		t.Errorf("it is %q", got)
	}
	m.share = child(errors.New("signal: killed"), "")
	if got := m.Why(); !strings.Contains(got, "virtiofsd ended: signal: killed") {
		t.Errorf("it is %q", got)
	}
}

// TestWatchdog: a guest that computes nothing is given up long before one that does.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		command  string
		patience Patience
	}{
		"stands still": {"exec sleep 1000", Patience{CPU: time.Hour, Time: time.Hour, Idle: 300 * time.Millisecond}},
		"spins":        {"while :; do :; done", Patience{CPU: 500 * time.Millisecond, Time: time.Hour, Idle: time.Hour}},
		"sleeps":       {"exec sleep 1000", Patience{CPU: time.Hour, Time: 300 * time.Millisecond}},
	} {
		qemu, err := start(exec.CommandContext(t.Context(), "sh", "-c", c.command))
		if err != nil {
			t.Fatal(err)
		}
		m := &Machine{console: &tail{}, qemu: qemu}
		ctx, cancel := context.WithCancelCause(t.Context())
		limited, stop := context.WithTimeout(ctx, 30*time.Second)
		m.watchdog(limited, cancel, c.patience)
		if !errors.Is(context.Cause(ctx), errSilent) {
			t.Errorf("a guest that %s is waited for", name)
		}
		stop()
		qemu.kill()
	}
}
