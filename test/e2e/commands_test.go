package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// limit bounds every command, and patience every wait for a condition.
var limit, patience = waits() //nolint:gochecknoglobals // set once

func waits() (limit, patience time.Duration) {
	if os.Getenv(isolationEnv) != "" { // an emulated kernel boots first, and several at a time
		return 3 * time.Minute, 3 * time.Minute
	}
	return 40 * time.Second, 40 * time.Second
}

// isolationEnv has daemons told what keeps containers apart, for stories that hold with either: make e2e with it set to vm.
const isolationEnv = "BULKHEAD_E2E_ISOLATION"

type command = func(ts *testscript.TestScript, neg bool, args []string)

// commands are the words that stories use besides those of testscript.
func commands() map[string]command {
	return map[string]command{
		// bulkhead ARGS…, host CMD…, lan CMD… run something; "!" wants an error, stdout and stderr look at the output.
		"bulkhead": run("bulkhead"), "host": run("host"), "lan": run("lan"),
		"daemon": cmdDaemon,
		// exit N bulkhead ARGS… wants exactly that exit code.
		"exit": cmdExit,
		// eventually bulkhead ARGS… repeats until it succeeds (with "!": until it fails).
		"eventually": cmdEventually,
		// eventually-out REGEXP bulkhead ARGS… repeats until the output matches (with "!": until it does not).
		"eventually-out": cmdEventuallyOut,
		// var NAME bulkhead ARGS… keeps the output in a variable.
		"var": cmdVar,
		// bg NAME bulkhead ARGS… starts it; bg-out NAME REGEXP waits for output; bg-kill NAME SIGNAL; fg NAME [LIMIT] waits for its end.
		"bg": cmdBg, "bg-out": cmdBgOut, "bg-kill": cmdBgKill, "fg": cmdFg,
		// snapshot NAME [PARTS…] keeps what the host has; same NAME [PARTS…] waits until it has that again.
		"snapshot": cmdSnapshot, "same": cmdSame,
		// machine NAME ADDRESSES… makes a further host, routed by the LAN; on NAME CMD… is a command there, bulkhead among them;
		// on NAME daemon start|kill|stop is as above.
		"machine": cmdMachine, "on": cmdOn,
	}
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// prepare makes the process that "bulkhead …", "host …" or "lan …" stands for.
func (w *world) prepare(ctx context.Context, ts *testscript.TestScript, words []string) *testhost.Cmd {
	if len(words) == 0 || len(words) == 1 && words[0] != "bulkhead" {
		ts.Fatalf("a command is missing after %q", words)
	}
	var c *testhost.Cmd
	switch words[0] {
	case "bulkhead":
		c = w.host.Command(ctx, made.binary, words[1:]...)
	case "host":
		c = w.host.Command(ctx, words[1], words[2:]...)
	case "lan":
		program := words[1]
		if program == "bulkhead" {
			program = made.binary
		}
		c = w.lan.Command(ctx, program, words[2:]...)
	case "on":
		m := w.machine(ts, words[1])
		if len(words) < 3 {
			ts.Fatalf("a command is missing after %q", words)
		}
		program := words[2]
		if program == "bulkhead" {
			program = made.binary
		}
		c = m.host.Command(ctx, program, words[3:]...)
	default:
		ts.Fatalf("%q is neither bulkhead nor host nor lan, nor on", words[0])
	}
	c.Dir = ts.Getenv("WORK")
	c.Env = append(os.Environ(), "PATH="+made.dir+":"+os.Getenv("PATH"), "LC_ALL=C.UTF-8", "NO_COLOR=1", "TERM=dumb", "WORK="+c.Dir,
		"IMAGE="+made.image, "MANIFEST="+made.manifest)
	c.WaitDelay = time.Second
	return c
}

// once runs a command to its end.
func (w *world) once(ts *testscript.TestScript, words []string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), limit)
	defer cancel()
	c := w.prepare(ctx, ts, words)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	err = c.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no end after %s: %w", limit, err)
	}
	return out.String(), errOut.String(), err
}

func run(where string) command {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		out, errOut, err := worldOf(ts).once(ts, append([]string{where}, args...))
		emit(ts, out, errOut)
		switch {
		case err == nil && neg:
			ts.Fatalf("succeeded, want an error")
		case err != nil && (!neg || isTimeout(err)):
			ts.Fatalf("%v", err)
		}
	}
}

func isTimeout(err error) bool { return strings.HasPrefix(err.Error(), "no end") }

func emit(ts *testscript.TestScript, out, errOut string) {
	_, _ = ts.Stdout().Write([]byte(out))
	_, _ = ts.Stderr().Write([]byte(errOut))
}

func cmdExit(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	out, errOut, err := worldOf(ts).once(ts, args[1:])
	emit(ts, out, errOut)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && !isTimeout(err):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// until repeats a command until ok likes its result.
func until(ts *testscript.TestScript, words []string, what string, ok func(out string, err error) bool) {
	w := worldOf(ts)
	deadline := time.Now().Add(patience)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 400*time.Millisecond) { // asking costs the CPU that the answer needs
		out, errOut, err := w.once(ts, words)
		if ok(out, err) {
			emit(ts, out, errOut)
			return
		}
		if time.Now().After(deadline) {
			emit(ts, out, errOut)
			ts.Fatalf("not within %s: %s (%v)", patience, what, err)
		}
		<-time.After(pause)
	}
}

func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	until(ts, args, "success", func(_ string, err error) bool { return (err == nil) != neg })
}

func cmdEventuallyOut(ts *testscript.TestScript, neg bool, args []string) {
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	until(ts, args[1:], "output like "+args[0], func(out string, _ error) bool { return re.MatchString(out) != neg })
}

func cmdVar(ts *testscript.TestScript, _ bool, args []string) {
	out, errOut, err := worldOf(ts).once(ts, args[1:])
	emit(ts, out, errOut)
	ts.Check(err)
	ts.Setenv(args[0], strings.TrimSpace(out))
}

// job is a command in the background.
type job struct {
	cmd    *testhost.Cmd
	output syncBuffer
	cancel context.CancelFunc
}

// syncBuffer is read while the process writes.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func cmdBg(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	j := &job{cmd: w.prepare(ctx, ts, args[1:]), cancel: cancel}
	j.cmd.Stdout, j.cmd.Stderr = &j.output, &j.output
	ts.Check(j.cmd.Start())
	w.jobs[args[0]] = j
}

func (w *world) job(ts *testscript.TestScript, name string) *job {
	j := w.jobs[name]
	if j == nil {
		ts.Fatalf("there is no background command %s", name)
	}
	return j
}

func cmdBgOut(ts *testscript.TestScript, neg bool, args []string) {
	j := worldOf(ts).job(ts, args[0])
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	if neg {
		if re.MatchString(j.output.String()) {
			ts.Fatalf("its output has %s:\n%s", args[1], j.output.String())
		}
		return
	}
	testhost.Eventually(worldOf(ts).t, patience, func() error {
		if !re.MatchString(j.output.String()) {
			return fmt.Errorf("no %s in the output of %s: %s", args[1], args[0], j.output.String())
		}
		return nil
	})
}

func cmdBgKill(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	ts.Check(worldOf(ts).job(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func cmdFg(ts *testscript.TestScript, neg bool, args []string) {
	j := worldOf(ts).job(ts, args[0])
	bound := limit
	if len(args) > 1 {
		var err error
		bound, err = time.ParseDuration(args[1])
		ts.Check(err)
	}
	timer := time.AfterFunc(bound, j.cancel)
	err := j.cmd.Wait()
	timer.Stop()
	emit(ts, j.output.String(), "")
	if (err != nil) != neg {
		ts.Fatalf("%s ended with %v", args[0], err)
	}
}

func cmdSnapshot(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	w.snapshots[args[0]] = w.host.Snapshot(w.t, args[1:]...)
}

func cmdSame(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	w.awaitSame(ts.Fatalf, w.snapshots[args[0]], args[1:]...)
}

// awaitSame waits for the host to look as it did: links are reaped in the background.
func (w *world) awaitSame(fatal func(string, ...any), want string, parts ...string) {
	deadline := time.Now().Add(10 * time.Second)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 800*time.Millisecond) {
		got := w.host.Snapshot(w.t, parts...)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			fatal("the host differs (-before +now):\n%s", cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
			return
		}
		<-time.After(pause)
	}
}

// cmdDaemon is daemon start [NAME=VALUE…] [FLAGS…], daemon kill, daemon stop, and daemon gone, which waits for one that
// kills itself. The first start brings the image box.
func cmdDaemon(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	switch args[0] {
	case "start":
		ts.Check(w.startDaemon(ts, args[1:]))
	case "kill":
		w.daemon.Kill()
	case "stop":
		ts.Check(w.stopDaemon())
	case "gone":
		timer := time.AfterFunc(patience, w.daemon.Kill)
		_ = w.daemon.Wait()
		if !timer.Stop() {
			ts.Fatalf("the daemon is still there after %s", patience)
		}
	default:
		ts.Fatalf("daemon %s: want start, kill, stop or gone", args[0])
	}
}

func (w *world) startDaemon(ts *testscript.TestScript, args []string) error {
	log, err := os.OpenFile(w.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	words := []string{"bulkhead", "daemon", "--cgroup-parent", w.host.CgroupParent()}
	var env []string
	for _, a := range args {
		if !strings.HasPrefix(a, "-") && strings.Contains(a, "=") {
			env = append(env, a)
			continue
		}
		words = append(words, a)
	}
	if isolation := os.Getenv(isolationEnv); isolation != "" && !slices.Contains(words, "--vm-kernel") {
		words = append(words, "--isolation", isolation, "--vm-kernel", ts.Getenv("VMKERNEL"), "--vm-agent", filepath.Join(made.dir, "bulkhead-agent"), "--vm-accel", "tcg")
	}
	c := w.prepare(context.WithoutCancel(w.t.Context()), ts, words)
	c.Env = append(c.Env, env...)
	c.Dir = "/"
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return err
	}
	w.daemon = c
	dead := make(chan struct{})
	go func() {
		_ = c.Wait()
		close(dead)
	}()
	// It may be told to kill itself early on; whoever asks for that waits for it with daemon gone.
	mayDie := strings.Contains(strings.Join(env, " "), "BULKHEAD_CRASH_AT")
	until(ts, []string{"bulkhead", "info"}, "the daemon answers", func(_ string, err error) bool {
		select {
		case <-dead:
			return mayDie
		default:
			return err == nil
		}
	})
	if !w.imported && !mayDie {
		w.imported = true
		_, errOut, err := w.once(ts, []string{"bulkhead", "image", "import", "--cmd", "sh", made.image, "box"})
		if err != nil {
			return fmt.Errorf("import the image: %w: %s", err, errOut)
		}
	}
	return nil
}

func (w *world) stopDaemon() error {
	if w.daemon == nil {
		return nil
	}
	c := w.daemon
	w.daemon = nil
	_ = c.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(patience, func() { _ = c.Process.Kill() })
	err := c.Wait()
	if !timer.Stop() {
		return fmt.Errorf("the daemon does not stop within %s", patience)
	}
	return err
}

// finish ends a story: what runs is ended, reset is called, and the host must be as before.
func (w *world) finish() {
	for _, j := range w.jobs {
		j.cancel()
		_ = j.cmd.Wait()
	}
	if w.daemon != nil {
		w.daemon.Kill()
		w.daemon = nil
	}
	w.finishMachines()
	if _, err := os.Stat(w.log); err != nil {
		return // no daemon in this story
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), limit)
	defer cancel()
	out, err := w.host.Command(ctx, made.binary, "reset", "--yes", "--cgroup-parent", w.host.CgroupParent()).CombinedOutput()
	if err != nil {
		w.t.Errorf("reset: %v\n%s", err, out)
	}
	if !w.t.Failed() {
		w.awaitSame(w.t.Errorf, w.before)
	}
	if w.t.Failed() {
		w.showLog()
	}
}

// showLog puts the daemon's last words into the test's output.
func (w *world) showLog() {
	b, _ := os.ReadFile(w.log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	w.t.Logf("the end of %s:\n%s", filepath.Base(w.log), strings.Join(lines[max(0, len(lines)-40):], "\n"))
}
