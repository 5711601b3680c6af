package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

func newAttachCmd(a *app) *cobra.Command {
	var noStdin, proxy bool
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "attach [flags] NAME",
		Short: "Connect with a container that runs",
		Long: `Connects this terminal with a container's first process, until either ends. The detach
keys leave without ending it.`,
		Example:           "  bulkhead attach shell",
		Args:              needArgs(1, 1, "container"),
		ValidArgsFunction: a.completeFirst(a.completeContainers(running)),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := parseDetachKeys(detachKeys)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			found, err := c.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !running(found) {
				return api.Errorf(api.KindConflict, "container %s is %s", found.Name, found.State.Status).
					Hint("bulkhead start -a -i %s", found.Name)
			}
			s := session{
				app: a, client: c, id: found.ID, tty: found.Spec.TTY, stdin: found.Spec.OpenStdin && !noStdin,
				keys: keys, proxySignals: proxy, started: true, autoRemove: found.Spec.AutoRemove,
			}
			return s.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not connect the input")
	cmd.Flags().BoolVar(&proxy, "sig-proxy", true, "pass signals on to the container")
	addDetachKeys(cmd, &detachKeys)
	return cmd
}

// session is a terminal's connection with a container's first process.
type session struct {
	app        *app
	client     *client.Client
	id         string
	tty, stdin bool
	keys       []byte

	proxySignals bool
	started      bool // it runs already
	autoRemove   bool // the daemon removes it when it ends
	cleanUp      bool // remove it if it cannot be started
}

// run attaches, starts the container unless it runs, and returns how it ended. It
// attaches first, so that nothing is lost of what the container writes.
func (s session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 16)
	if s.proxySignals {
		signal.Notify(signals, proxied()...)
		defer signal.Stop(signals)
	}
	streams, detached, restore, err := s.app.streams(s.tty, s.stdin, s.keys)
	if err != nil {
		return err
	}
	defer restore()
	streams.Wait = !s.started

	ended := make(chan error, 1)
	ready := make(chan struct{})
	attachCtx, leave := context.WithCancel(ctx)
	defer leave()
	go func() {
		ended <- s.client.AttachContainer(attachCtx, s.id, streams, func() { close(ready) })
	}()
	select {
	case err := <-ended:
		return s.failed(ctx, err)
	case <-signals:
		return s.failed(ctx, errInterrupted)
	case <-ready:
	}
	exit := s.watchExit(ctx)
	if !s.started {
		if err := s.client.StartContainer(ctx, s.id); err != nil {
			restore()
			return s.failed(ctx, startFailed(err))
		}
	}
	for {
		select {
		case sig := <-signals:
			// It may have ended just now: then there is nobody to signal.
			_ = s.client.KillContainer(ctx, s.id, unix.SignalName(sig.(syscall.Signal)))
		case <-detached:
			return nil
		case err := <-ended:
			restore()
			if err != nil && ctx.Err() == nil && !isNotFound(err) {
				return err
			}
			return s.result(ctx, exit)
		}
	}
}

var errInterrupted = errors.New("interrupted before the container started")

// failed cleans up after a container that was not started.
func (s session) failed(ctx context.Context, err error) error {
	if s.cleanUp {
		// It may be gone already: the daemon removes what it could not start.
		_ = s.client.RemoveContainer(context.WithoutCancel(ctx), s.id, true)
	}
	return err
}

// exitWait is what a wait for a container's end gives.
type exitWait struct {
	result api.WaitResult
	err    error
}

// watchExit waits for a container that is removed as it ends: afterwards there
// is nobody left to ask.
func (s session) watchExit(ctx context.Context) <-chan exitWait {
	if !s.autoRemove {
		return nil
	}
	c := make(chan exitWait, 1)
	go func() {
		r, err := s.client.WaitContainer(ctx, s.id, "removed")
		c <- exitWait{r, err}
	}()
	return c
}

func (s session) result(ctx context.Context, exit <-chan exitWait) error {
	var w exitWait
	if exit != nil {
		w = <-exit
	} else {
		w.result, w.err = s.client.WaitContainer(ctx, s.id, "")
	}
	if w.err != nil {
		return w.err
	}
	if w.result.Error != "" {
		return &exitError{w.result.ExitCode, errors.New(w.result.Error)}
	}
	return exitWith(w.result.ExitCode)
}

// proxied are the signals that are passed on: all that a program may be sent on
// purpose, without those that the terminal and the runtime send for themselves.
func proxied() []os.Signal {
	return []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT,
	}
}

// streams connect our terminal with a process. The channel is closed when
// somebody presses the detach keys; restore gives the terminal back and may be
// called again.
func (a *app) streams(tty, stdin bool, keys []byte) (s api.Streams, detached <-chan struct{}, restore func(), err error) {
	restore = func() {}
	s.Stdout, s.Stderr = a.Stdout, a.Stderr
	file, isTerminal := terminal(a.Stdin)
	if tty && stdin && !isTerminal {
		return s, nil, restore, api.Errorf(api.KindInvalid, "a terminal is asked for, but standard input is none").Hint("drop -t, or drop -i")
	}
	if stdin {
		s.Stdin = a.Stdin
	}
	if !tty {
		return s, nil, restore, nil
	}
	if stdin {
		state, err := term.MakeRaw(int(file.Fd()))
		if err != nil {
			return s, nil, restore, fmt.Errorf("set the terminal to raw: %w", err)
		}
		d := newDetachReader(a.Stdin, keys)
		s.Stdin, detached = d, d.detached
		restore = sync.OnceFunc(func() { _ = term.Restore(int(file.Fd()), state) })
	}
	if out, ok := terminal(a.Stdout); ok {
		sizes, stop := watchSize(out)
		s.Resize = sizes
		give := restore
		restore = sync.OnceFunc(func() { stop(); give() })
	}
	return s, detached, restore, nil
}

// watchSize reports a terminal's size now and whenever it changes.
func watchSize(f *os.File) (sizes <-chan api.WindowSize, stop func()) {
	out := make(chan api.WindowSize, 1)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		defer signal.Stop(changed)
		for {
			// Some terminals know no size; a size of nothing would confuse programs.
			if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
				select {
				case out <- api.WindowSize{Rows: uint16(h), Cols: uint16(w)}:
				case <-done:
					return
				}
			}
			select {
			case <-changed:
			case <-done:
				return
			}
		}
	}()
	return out, func() { close(done) }
}
