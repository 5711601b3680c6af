package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// The files that the shim and the daemon share, in a directory that the shim has at ShimDir. All are small, and of the shim alone;
// they are read as what a guest may have written that has broken out of its VM.
const (
	configFile  = "config.json" // Start, by the daemon
	statusFile  = "status"      // Status, by the shim, when the container runs or cannot be started
	reasonFile  = "reason"      // why the VM ended before its container
	oomFile     = "oom"         // the container's memory was not enough
	controlFile = "control"     // the shim's socket
	execDir     = "exec"        // the documents of further processes, by the daemon
)

// ShimDir is where the shim finds them.
const ShimDir = "/vm"

// Start is what the shim starts.
type Start struct {
	Machine Config    `json:"machine"`
	Run     proto.Run `json:"run"`
	// Root is the file of the disk with the container's files; "": they are in the share. That of a member is where its place is.
	Root string `json:"root,omitempty"`
	// Handed are the names of the daemon's files in HandedDir.
	Handed []string `json:"handed,omitempty"`
}

// Status is how the start went.
type Status struct {
	Error string `json:"error,omitempty"`
	// Template could not be restored from, which Spoiled says why.
	Template string `json:"template,omitempty"`
	Spoiled  string `json:"spoiled,omitempty"`
}

// mainProcess is the name of the container's first process.
const mainProcess = "main"

// lostCode is the exit code of a container whose VM ended before it, as of one that was killed.
const lostCode = 128 + int(unix.SIGKILL)

// Shim is the container's process on the host. It returns the exit code to end with.
func Shim(ctx context.Context, dir string) int {
	s := &shim{dir: dir, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	code, err := s.run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bulkhead:", err)
		return 125
	}
	return code
}

type shim struct {
	dir            string
	stdin          *os.File
	stdout, stderr *os.File
	machine        *Machine
	disks          *disks
}

func (s *shim) run(ctx context.Context) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	cfg, err := s.read()
	if err != nil {
		return 0, s.failed(err)
	}
	booted := make(chan error, 1)
	go func() {
		var err error
		s.machine, err = Boot(ctx, cfg.Machine)
		booted <- err
	}()
	if ended, code := untilBooted(signals, booted, &err); ended {
		cancel()
		if err := <-booted; err == nil {
			s.machine.Close()
		}
		return code, nil
	}
	if err != nil {
		return 0, s.failed(err)
	}
	defer s.machine.Close()
	s.disks = newDisks(s.machine.QMP)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.guard(ctx) })
	wg.Go(func() { goOn(ctx, s.machine.QMP, s.stderr) })
	if cfg.Run.Files, err = readHanded(HandedDir, cfg.Handed); err != nil {
		return 0, s.failed(err)
	}
	box, err := s.launch(ctx, cfg)
	if err != nil {
		return 0, s.failed(s.lost(err))
	}
	defer box.close()
	control, err := net.Listen("unix", filepath.Join(s.dir, controlFile)) //nolint:noctx // nothing to wait for
	if err != nil {
		return 0, s.failed(err)
	}
	defer control.Close()
	var served sync.WaitGroup
	defer served.Wait()
	defer cancel()
	defer control.Close()
	served.Go(func() { s.mirror(ctx, box) })
	served.Go(func() { serveClients(ctx, control, s.machine.Guest, s.disks, box.look) })
	served.Go(func() { handOver(ctx, s.machine.Guest, HandedDir, cfg.Handed, cfg.Run.Files, s.stderr) })
	served.Go(func() { s.forward(ctx, signals, cfg.Run.TTY) })
	var st Status
	if s.machine.Spoiled != nil {
		st.Template, st.Spoiled = filepath.Base(cfg.Machine.Template), s.machine.Spoiled.Error()
	}
	if err := s.report(st); err != nil {
		return 0, err
	}
	return s.attend(ctx, cfg)
}

// read reads what is to be started.
func (s *shim) read() (cfg Start, err error) {
	data, err := os.ReadFile(filepath.Join(s.dir, configFile))
	if err == nil {
		err = json.Unmarshal(data, &cfg)
	}
	if err != nil {
		return cfg, fmt.Errorf("read what to start: %w", err)
	}
	return cfg, nil
}

// ended notes what is not in the exit code.
func (s *shim) ended(exit proto.Exit) error {
	if !exit.OOM {
		return nil
	}
	return replaceFile(filepath.Join(s.dir, oomFile), nil)
}

// guard ends a VM that has lost its files: whatever is asked of them would wait for ever.
func (s *shim) guard(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-s.machine.ShareEnded():
		s.machine.qemu.kill()
	}
}

// untilBooted waits for the VM, or for a signal that ends a process which does not know of it.
func untilBooted(signals <-chan os.Signal, booted chan error, err *error) (ended bool, code int) {
	for {
		select {
		case *err = <-booted:
			return false, 0
		case sig := <-signals:
			switch sig {
			case unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP:
				n, _ := sig.(syscall.Signal)
				return true, 128 + int(n)
			}
		}
	}
}

// How long a guest may take to answer: to set up NICs or send a signal, and to start a container. A busy machine has been seen to be
// forty times as slow as one at rest, where these take tenths of a second.
const (
	answerWait = 30 * time.Second
	startWait  = 2 * time.Minute
)

// errNoAnswer ends a call that the guest does not answer.
var errNoAnswer = errors.New("the guest does not answer")

// within is the context of such a call.
func within(ctx context.Context, wait time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, wait, fmt.Errorf("%w within %v", errNoAnswer, wait))
}

// launch gives the guest its NICs and starts the container.
func (s *shim) launch(ctx context.Context, cfg Start) (*compartment, error) {
	ctx, cancel := within(ctx, startWait)
	defer cancel()
	box, err := openCompartment(s.machine)
	if err != nil {
		return nil, err
	}
	if err = box.syncWhole(ctx); err != nil {
		box.close()
		return nil, fmt.Errorf("give the VM its NICs: %w", err)
	}
	run := cfg.Run
	run.Process = mainProcess
	if run.TTY {
		run.Size = sizeOf(s.stdin)
	}
	if cfg.Root != "" {
		run.Root, err = s.disks.plug(ctx, cfg.Root)
	}
	if err == nil {
		err = s.machine.Guest.Call(ctx, proto.OpRun, run, nil)
	}
	if err != nil {
		box.close()
		return nil, err
	}
	return box, nil
}

// lost says more of an error that comes of the VM's end.
func (s *shim) lost(err error) error {
	if said, ok := errors.AsType[*proto.Error](err); ok {
		return said
	}
	select {
	case <-s.machine.Ended():
		return fmt.Errorf("%s (%w)", s.machine.Why(), err)
	case <-time.After(lostWait): // the guest hung up, and QEMU goes on
		return err
	}
}

// lostWait is how long QEMU may take to end after its connections have.
const lostWait = 2 * time.Second

// failed tells the daemon why the container could not be started.
func (s *shim) failed(err error) error {
	return errors.Join(err, s.report(Status{Error: err.Error()}))
}

func (s *shim) report(st Status) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(s.dir, statusFile), data)
}

// replaceFile writes a file that is whole from the start.
func replaceFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// attend carries the container's streams, and waits for its end or the VM's.
func (s *shim) attend(ctx context.Context, cfg Start) (int, error) {
	exit, err := carryProcess(ctx, s.machine.Guest, mainProcess, cfg.Run.TTY, cfg.Run.Stdin, s.stdin, s.stdout, s.stderr)
	if err != nil {
		reason := s.lost(err).Error()
		return lostCode, replaceFile(filepath.Join(s.dir, reasonFile), []byte("the VM ended before the container: "+reason))
	}
	if err := s.ended(exit); err != nil {
		return 0, err
	}
	s.halt(ctx)
	return exit.Code, nil
}

// haltWait is how long a guest may take to write its disks.
const haltWait = 10 * time.Second

func (s *shim) halt(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, haltWait)
	defer cancel()
	_ = s.machine.Guest.Call(ctx, proto.OpHalt, nil, nil) // it ends anyhow
}

// guest is who carries out requests: the guest itself, or the shim on behalf of its clients.
type guest interface {
	Call(ctx context.Context, op string, in, out any) error
	Stream(ctx context.Context, op string, in, out any) (net.Conn, error)
}

// carryProcess connects a process with our own streams, and waits for its end.
func carryProcess(ctx context.Context, g guest, name string, tty, stdin bool, in, out, errs *os.File) (proto.Exit, error) {
	var exit proto.Exit
	if tty {
		if old, err := term.MakeRaw(int(in.Fd())); err == nil {
			defer func() { _ = term.Restore(int(in.Fd()), old) }()
		}
	}
	limited, done := within(ctx, startWait)
	defer done()
	var wg sync.WaitGroup
	outputs := map[int]*os.File{1: out}
	if !tty {
		outputs[2] = errs
	}
	for fd, to := range outputs {
		c, err := g.Stream(limited, proto.OpStdio, proto.Stdio{Process: name, FD: fd}, nil)
		if err != nil {
			return exit, err
		}
		wg.Go(func() {
			defer c.Close()
			// Nobody reads on: what comes is not wanted any more, and must not hold the process up.
			if _, err := io.Copy(to, c); err != nil {
				_, _ = io.Copy(io.Discard, c)
			}
		})
	}
	if stdin || tty {
		c, err := g.Stream(limited, proto.OpStdio, proto.Stdio{Process: name, FD: 0}, nil)
		if err != nil {
			return exit, err
		}
		go func() { // it may sit in a read that nothing ends but our own end
			_, _ = io.Copy(c, in)
			_ = c.Close()
		}()
	}
	if err := g.Call(ctx, proto.OpWait, proto.Process{Process: name}, &exit); err != nil {
		return exit, err
	}
	wg.Wait()
	if exit.Code < 0 || exit.Code > 255 {
		exit.Code = 255 // a guest's word
	}
	return exit, nil
}

func sizeOf(tty *os.File) proto.Size {
	w, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return proto.Size{}
	}
	return proto.Size{Rows: w.Row, Cols: w.Col}
}

// forward hands signals on to the container's process. Those that are ours are about our own children and threads.
func (s *shim) forward(ctx context.Context, signals <-chan os.Signal, tty bool) {
	forwardSignals(ctx, s.machine.Guest, mainProcess, signals, tty, s.stdin)
}

func forwardSignals(ctx context.Context, g guest, name string, signals <-chan os.Signal, tty bool, in *os.File) {
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-signals:
			n, ok := sig.(syscall.Signal)
			ctx, cancel := within(ctx, answerWait)
			switch {
			case !ok, n == unix.SIGCHLD, n == unix.SIGURG, n == unix.SIGPIPE:
			case n == unix.SIGWINCH && tty:
				_ = g.Call(ctx, proto.OpResize, proto.Resize{Process: name, Size: sizeOf(in)}, nil)
			default:
				_ = g.Call(ctx, proto.OpSignal, proto.Signal{Process: name, Signal: int(n)}, nil)
			}
			cancel()
		}
	}
}

// mirrorPause is how long changes are collected, mirrorAgain when what failed is tried once more.
const (
	mirrorPause = 20 * time.Millisecond
	mirrorAgain = time.Second
)

// mirror keeps the guest's NICs as the compartment's.
func (s *shim) mirror(ctx context.Context, box *compartment) {
	changed := make(chan struct{}, 1)
	go func() {
		for ctx.Err() == nil {
			err := box.watch(ctx, func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			})
			if err != nil {
				fmt.Fprintln(s.stderr, "bulkhead:", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(mirrorAgain):
			}
		}
	}()
	said := ""
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(mirrorPause):
		}
		limited, cancel := within(ctx, answerWait)
		err := box.sync(limited)
		cancel()
		if again = nil; err == nil {
			said = ""
			continue
		}
		select {
		case <-s.machine.Ended():
			return
		case <-ctx.Done():
			return
		default:
		}
		if err.Error() != said {
			said = err.Error()
			fmt.Fprintln(s.stderr, "bulkhead: the VM's NICs are not what the compartment's are:", said)
		}
		again = time.After(mirrorAgain)
	}
}
