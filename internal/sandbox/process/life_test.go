package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// buffer is written by one goroutine and read by another.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const forever = "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done"

func (b *bed) startForever(change ...func(*api.SandboxConfig)) string {
	b.t.Helper()
	cfg := b.config("/bin/sh", "-c", forever)
	for _, c := range change {
		c(&cfg)
	}
	id := b.start(cfg)
	eventually(b.t, "container up", func() bool { return b.logs(id) != "" })
	return id
}

func (b *bed) exec(id string, spec api.ExecSpec, stdin string) (string, int, error) {
	b.t.Helper()
	var out buffer
	code, err := b.r.Exec(b.ctx(), id, spec, api.Streams{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out})
	return out.String(), code, err
}

func TestExec(t *testing.T) {
	b := newBed(t)
	id := b.startForever(func(c *api.SandboxConfig) { c.Spec.Env = []string{"A=container", "B=container"} })
	for name, c := range map[string]struct {
		spec  api.ExecSpec
		stdin string
		want  string
		code  int
		fails string
	}{
		"exit code":    {spec: api.ExecSpec{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 5"}}, want: "out\nerr\n", code: 5},
		"at once":      {spec: api.ExecSpec{Args: []string{"true"}}},
		"input":        {spec: api.ExecSpec{Args: []string{"cat"}, OpenStdin: true}, stdin: "hello\n", want: "hello\n"},
		"no input":     {spec: api.ExecSpec{Args: []string{"cat"}}, stdin: "hello\n"},
		"large":        {spec: api.ExecSpec{Args: []string{"wc", "-c"}, OpenStdin: true}, stdin: strings.Repeat("x", 1<<20), want: "1048576\n"},
		"user":         {spec: api.ExecSpec{Args: []string{"sh", "-c", "id -u; id -g; echo $HOME"}, User: "app"}, want: "1000\n1001\n/home/app\n"},
		"environment":  {spec: api.ExecSpec{Args: []string{"sh", "-c", "echo $A $B"}, Env: []string{"B=exec"}}, want: "container exec\n"},
		"directory":    {spec: api.ExecSpec{Args: []string{"pwd"}, WorkingDir: "/home/app/"}, want: "/home/app\n"},
		"terminal":     {spec: api.ExecSpec{Args: []string{"sh", "-c", "test -t 0 && echo $TERM; exit 3"}, TTY: true}, want: "xterm\r\n", code: 3},
		"privileged":   {spec: api.ExecSpec{Args: []string{"sh", "-c", "grep -c CapEff:.00000000a80425fb /proc/self/status"}, Privileged: true}, want: "0\n", code: 1},
		"not found":    {spec: api.ExecSpec{Args: []string{"/none"}}, code: 127, fails: "no such file"},
		"a directory":  {spec: api.ExecSpec{Args: []string{"/etc"}}, code: 126},
		"nothing":      {code: -1, fails: "no command"},
		"bad user":     {spec: api.ExecSpec{Args: []string{"true"}, User: "none"}, code: -1, fails: "unable to find user"},
		"bad env":      {spec: api.ExecSpec{Args: []string{"true"}, Env: []string{"X"}}, code: -1, fails: "name=value"},
		"huge":         {spec: api.ExecSpec{Args: []string{"true", strings.Repeat("x", 1<<20)}}, code: -1, fails: "longer"},
		"detach input": {spec: api.ExecSpec{Args: []string{"cat"}, Detach: true, OpenStdin: true}, code: -1, fails: "detached"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := b.exec(id, c.spec, c.stdin)
			if out != c.want && name != "exit code" || code != c.code || (err != nil) != (c.fails != "" || c.code == 126) {
				t.Errorf("exit code %d, error %v, output %q\nwant %d, %q", code, err, out, c.code, c.want)
			}
			if err != nil && !strings.Contains(strings.ToLower(err.Error()), c.fails) {
				t.Errorf("error %v, want one that says %q", err, c.fails)
			}
		})
	}
	if dirs := b.r.execDirs(id); len(dirs) > 0 {
		t.Errorf("left over: %v", dirs)
	}
	if _, _, err := b.exec(strings.Repeat("e", 64), api.ExecSpec{Args: []string{"true"}}, ""); !errors.Is(err, ErrNotRunning) {
		t.Errorf("in no container: %v", err)
	}
}

// TestRefreshEtc: a container's files follow, also after a daemon that died in the middle of it, but for one that it has changed itself.
func TestRefreshEtc(t *testing.T) {
	b := newBed(t)
	id := b.startForever()
	inside := func(script, want string) {
		t.Helper()
		out, code, err := b.exec(id, api.ExecSpec{Args: []string{"sh", "-c", script}}, "")
		if err != nil || code != 0 || out != want {
			t.Errorf("%s: %q, %d, %v; want %q", script, out, code, err, want)
		}
	}
	const both = "cat /etc/hosts /etc/resolv.conf"
	must(t, b.r.RefreshEtc(id, "127.0.0.1 localhost\n192.0.2.9 box\n", "nameserver 192.0.2.2\nsearch example\n"))
	inside(both, "127.0.0.1 localhost\n192.0.2.9 box\nnameserver 192.0.2.2\nsearch example\n")
	b.restart()
	must(t, b.r.RefreshEtc(id, "short\n", "nameserver 192.0.2.3\n"))
	inside(both, "short\nnameserver 192.0.2.3\n")
	// A note whose file was not written any more.
	must(t, b.r.noteEtc(id, map[string][]string{"hosts": {digest([]byte("short\n")), digest([]byte("next\n"))}, "resolv.conf": {digest([]byte("nameserver 192.0.2.3\n"))}}))
	inside("echo own >>/etc/resolv.conf", "")
	must(t, b.r.RefreshEtc(id, "127.0.0.1 localhost\n", "nameserver 192.0.2.4\n"))
	inside(both, "127.0.0.1 localhost\nnameserver 192.0.2.3\nown\n")
	must(t, b.r.RefreshEtc(strings.Repeat("0", 64), "", "")) // nobody's
}

// TestExecEndsWithItsClient: also what the command started.
func TestExecEndsWithItsClient(t *testing.T) {
	b := newBed(t)
	id := b.startForever()
	count := func() int {
		pids, err := b.r.PIDs(b.ctx(), id)
		must(t, err)
		n := 0
		for _, p := range pids {
			if strings.Join(cmdline(p), " ") == "sleep 1234" {
				n++
			}
		}
		return n
	}
	spec := api.ExecSpec{Args: []string{"sh", "-c", "sleep 1234 & sleep 1234; :"}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := b.r.Exec(ctx, id, spec, api.Streams{})
		done <- err
	}()
	eventually(t, "command runs", func() bool { return count() == 2 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	eventually(t, "command gone", func() bool { return count() == 0 })

	// A client that cannot be written to any more.
	rd, wr := io.Pipe()
	_ = rd.Close()
	_, err := b.r.Exec(b.ctx(), id, api.ExecSpec{Args: []string{"sh", "-c", "echo x; sleep 1234"}}, api.Streams{Stdout: wr})
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("client gone: %v", err)
	}
	eventually(t, "command gone", func() bool { return count() == 0 })

	// A detached one stays, over a restart of the daemon, which ends the others.
	detached := spec
	detached.Detach = true
	if code, err := b.r.Exec(b.ctx(), id, detached, api.Streams{}); code != 0 || err != nil {
		t.Fatalf("detached: %d, %v", code, err)
	}
	go func() { _, _ = b.r.Exec(context.Background(), id, spec, api.Streams{}) }()
	eventually(t, "both run", func() bool { return count() == 4 })
	must(t, b.r.Close())
	r, err := New(b.opts)
	must(t, err)
	b.r = r
	eventually(t, "one runs", func() bool { return count() == 2 })
}

func TestAttach(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sh", "-c", "echo begin; cat; echo err >&2; exit 4")
	cfg.Spec.OpenStdin = true
	id := b.create(cfg)
	a, err := b.r.Connect(b.ctx(), id)
	must(t, err)
	must(t, b.r.Start(b.ctx(), id))
	var out, errs buffer
	must(t, a.Run(b.ctx(), api.Streams{Stdin: strings.NewReader(strings.Repeat("line\n", 10000)), Stdout: &out, Stderr: &errs}))
	if got := out.String(); got != "begin\n"+strings.Repeat("line\n", 10000) || errs.String() != "err\n" {
		t.Errorf("%d bytes of output, errors %q", len(got), errs.String())
	}
	if st := b.wait(id); st.ExitCode != 4 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	if err := b.r.Attach(b.ctx(), id, api.Streams{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("attach after the end: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sh")
	cfg.Spec.TTY, cfg.Spec.OpenStdin = true, true
	id := b.create(cfg)
	must(t, b.r.Start(b.ctx(), id))

	attach := func(keys []byte) (io.Writer, *buffer, chan api.WindowSize, chan error) {
		in, typed := io.Pipe()
		out, sizes, done := &buffer{}, make(chan api.WindowSize, 1), make(chan error, 1)
		go func() {
			done <- b.r.Attach(b.ctx(), id, api.Streams{Stdin: in, Stdout: out, Resize: sizes, DetachKeys: keys})
		}()
		return typed, out, sizes, done
	}
	typed, out, sizes, done := attach([]byte{16, 17})
	sizes <- api.WindowSize{Rows: 33, Cols: 77}
	eventually(t, "size arrives", func() bool {
		_, _ = io.WriteString(typed, "stty size\n")
		return strings.Contains(out.String(), "33 77\r\n")
	})
	_, _ = typed.Write([]byte{16, 17})
	if err := <-done; !errors.Is(err, ErrDetached) {
		t.Fatalf("detach keys: %v", err)
	}
	// The shell is still there for the next client.
	typed, out, _, done = attach(nil)
	must(t, b.r.Resize(b.ctx(), id, api.WindowSize{Rows: 11, Cols: 22}))
	eventually(t, "second client is served", func() bool {
		_, _ = io.WriteString(typed, "stty size\n")
		return strings.Contains(out.String(), "11 22\r\n")
	})
	_, _ = io.WriteString(typed, "exit 9\n")
	must(t, <-done)
	if st := b.wait(id); st.ExitCode != 9 {
		t.Errorf("exit code %d", st.ExitCode)
	}
}

// TestWatchingKeepsInputOpen: a client without input must not end that of another.
func TestWatchingKeepsInputOpen(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sh", "-c", "while :; do echo up; sleep 0.05; done & cat; kill $!; echo end")
	cfg.Spec.OpenStdin = true
	id := b.start(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var out buffer
	done := make(chan error, 1)
	go func() { done <- b.r.Attach(ctx, id, api.Streams{Stdout: &out}) }()
	eventually(t, "watched", func() bool { return strings.Contains(out.String(), "up") })
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("first client: %v", err)
	}
	var second buffer
	must(t, b.r.Attach(b.ctx(), id, api.Streams{Stdin: strings.NewReader("typed\n"), Stdout: &second}))
	b.wait(id)
	if got := b.logs(id); !strings.HasSuffix(got, "typed\nend\n") {
		t.Errorf("log %q", got)
	}
}

func TestFollowLogs(t *testing.T) {
	b := newBed(t)
	cfg := b.config("/bin/sh", "-c", "echo one; echo; printf 'prompt> '; sleep 0.5; echo answer; sleep 0.1; seq 1 20000")
	id := b.start(cfg)
	var text strings.Builder
	prompt := false
	must(t, b.r.Logs(b.ctx(), id, api.LogOptions{Follow: true, Tail: -1}, func(l api.LogLine) error {
		text.WriteString(l.Line)
		prompt = prompt || l.Partial && l.Line == "prompt> "
		if !l.Partial {
			text.WriteString("\n")
		}
		return nil
	}))
	if !prompt {
		t.Error("the prompt came only with its line")
	}
	want := "one\n\nprompt> answer\n"
	for i := range 20000 {
		want += fmt.Sprintln(i + 1)
	}
	if text.String() != want {
		t.Errorf("%d bytes, want %d", text.Len(), len(want))
	}
}

// TestLogsStayBounded writes far more than is kept.
func TestLogsStayBounded(t *testing.T) {
	b := newBed(t)
	_, code := b.sh("yes 0123456789012345678901234567890 | head -n 200000")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	var size int64
	ids, err := b.r.List(b.ctx())
	must(t, err)
	entries, err := os.ReadDir(b.r.logDir(ids[0]))
	must(t, err)
	var inodes []os.FileInfo
	for _, e := range entries {
		st, err := e.Info()
		must(t, err)
		linked := false
		for _, o := range inodes {
			linked = linked || os.SameFile(o, st)
		}
		if inodes = append(inodes, st); !linked {
			size += st.Size()
		}
	}
	if size > 3<<20+1<<16 || size < 1<<19 {
		t.Errorf("%d bytes of log are kept with a limit of 1 MiB a file", size)
	}
}

func TestDaemonRestart(t *testing.T) {
	b := newBed(t)
	id := b.startForever()
	before, err := b.r.State(b.ctx(), id)
	must(t, err)
	b.restart()
	after, err := b.r.State(b.ctx(), id)
	must(t, err)
	if after != before {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	exits := b.r.Exits(b.ctx())
	must(t, b.r.Kill(b.ctx(), id, "TERM"))
	if e := <-exits; e.ID != id {
		t.Errorf("exit of %q", e.ID)
	}
	if st := b.wait(id); st.ExitCode != 0 || st.Started != before.Started || st.Finished.Before(st.Started) {
		t.Errorf("%+v", st)
	}
	// One that ends while there is no daemon.
	id = b.startForever()
	must(t, b.r.Close())
	must(t, b.r.Kill(b.ctx(), id, "KILL"))
	eventually(t, "exit file", func() bool { return exists(b.r.exitFile(id)) })
	b.restart()
	if st, err := b.r.State(b.ctx(), id); err != nil || st.Status != api.StatusExited || st.ExitCode != 137 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestMonitorKilled(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			b := newBed(t)
			id := b.startForever()
			init, ok := b.r.initOf(id)
			if !ok {
				t.Fatal("no process")
			}
			defer init.close()
			m, ok := b.r.monitorOf(id)
			if !ok {
				t.Fatal("no monitor")
			}
			if !daemon {
				must(t, b.r.Close())
			}
			must(t, m.signal(unix.SIGKILL))
			m.wait(b.ctx(), 5*time.Second)
			m.close()
			if !daemon {
				b.restart()
			}
			st := b.wait(id)
			if st.ExitCode != 137 || !strings.Contains(st.Error, "monitor") {
				t.Errorf("%+v", st)
			}
			if !init.wait(b.ctx(), 5*time.Second) {
				t.Error("the container goes on without its monitor")
			}
			must(t, b.r.Remove(b.ctx(), id))
			if left := b.r.Leftovers(b.ctx()); len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	b := newBed(t)
	if missing := b.r.cgroups.missing(); len(missing) > 0 {
		t.Skipf("this host's cgroups lack %v", missing)
	}
	id := b.startForever(func(c *api.SandboxConfig) {
		c.Spec.Resources = api.Resources{CPUs: 0.5, Memory: 64 << 20, Pids: 33}
	})
	stats, err := b.r.Stats(b.ctx(), id)
	must(t, err)
	if stats.MemoryLimit != 64<<20 || stats.PidsLimit != 33 || stats.Pids == 0 || stats.MemoryUsage == 0 || stats.CPUNanos == 0 {
		t.Errorf("%+v", stats)
	}
	name, want := "cpu.cfs_quota_us", "50000"
	if b.r.cgroups.mode == cgroupV2 {
		name, want = "cpu.max", "50000 100000"
	}
	text, err := os.ReadFile(b.r.cgroups.file("cpu", b.r.group(id), name))
	must(t, err)
	if got := strings.TrimSpace(string(text)); got != want {
		t.Errorf("%s is %s, want %s", name, got, want)
	}
}

func TestOutOfMemory(t *testing.T) {
	b := newBed(t)
	if !b.r.cgroups.has("memory") {
		t.Skip("this host's cgroups lack the memory controller")
	}
	cfg := b.config("/bin/sh", "-c", "exec tail -n 1 /dev/zero")
	cfg.Spec.Resources.Memory = 16 << 20
	id := b.start(cfg)
	st := b.wait(id)
	if st.ExitCode != 137 || !st.OOMKilled {
		t.Errorf("%+v", st)
	}
}

// TestNothingLeaks: not by ordinary use, not by many at once.
func TestNothingLeaks(t *testing.T) {
	b := newBed(t)
	fds := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	b.sh("true")
	before := fds()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				cfg := b.config("/bin/true")
				ctx := context.Background()
				if err := errors.Join(b.r.Create(ctx, cfg), b.r.Start(ctx, cfg.ID), b.r.Remove(ctx, cfg.ID)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	ids, err := b.r.List(b.ctx())
	must(t, err)
	for _, id := range ids {
		must(t, b.r.Remove(b.ctx(), id))
	}
	if left := b.r.Leftovers(b.ctx()); len(left) > 0 {
		t.Errorf("left over:\n%s", strings.Join(left, "\n"))
	}
	eventually(t, "descriptors closed", func() bool { return fds() <= before })
}

// TestCutShort leaves what a daemon leaves that dies at each point of a create.
func TestCutShort(t *testing.T) {
	b := newBed(t)
	steps := map[string]func(cfg api.SandboxConfig){
		"directories": func(cfg api.SandboxConfig) {
			must(t, os.MkdirAll(filepath.Join(b.r.bundle(cfg.ID), etcDir), 0o700))
		},
		"mount": func(cfg api.SandboxConfig) {
			must(t, b.r.mountRootfs(cfg.ID, cfg.Layers))
			must(t, b.r.mountRootfs(cfg.ID, cfg.Layers))
		},
		"created, monitor lost": func(cfg api.SandboxConfig) {
			b.create(cfg)
			m, ok := b.r.monitorOf(cfg.ID)
			if !ok {
				t.Fatal("no monitor")
			}
			must(t, m.signal(unix.SIGKILL))
			m.close()
		},
		"exit file half written": func(cfg api.SandboxConfig) {
			b.create(cfg)
			must(t, os.WriteFile(b.r.exitFile(cfg.ID)+".EYLDZ3", nil, 0o600))
		},
		"pid files lost": func(cfg api.SandboxConfig) {
			b.start(cfg)
			must(t, os.Remove(filepath.Join(b.r.bundle(cfg.ID), monPidFile)))
			must(t, os.Remove(filepath.Join(b.r.bundle(cfg.ID), initPidFile)))
		},
		"pid files of another": func(cfg api.SandboxConfig) {
			b.create(cfg)
			must(t, b.r.clear(b.ctx(), cfg.ID))
			must(t, os.MkdirAll(b.r.bundle(cfg.ID), 0o700))
			for _, f := range []string{monPidFile, initPidFile} {
				must(t, os.WriteFile(filepath.Join(b.r.bundle(cfg.ID), f), fmt.Append(nil, os.Getpid()), 0o600))
			}
		},
		"started, not noted": func(cfg api.SandboxConfig) {
			b.create(cfg)
			must(t, b.r.oci.Start(b.ctx(), cfg.ID))
			b.restart()
			if st, err := b.r.State(b.ctx(), cfg.ID); err != nil || st.Status != api.StatusRunning {
				t.Errorf("%+v, %v", st, err)
			}
			must(t, b.r.Start(b.ctx(), cfg.ID))
			must(t, b.r.Kill(b.ctx(), cfg.ID, "KILL"))
			b.wait(cfg.ID)
		},
		"bundle lost": func(cfg api.SandboxConfig) {
			b.start(cfg)
			must(t, b.r.removeBundle(cfg.ID))
		},
	}
	for name, cut := range steps {
		t.Run(name, func(t *testing.T) {
			cfg := b.config("/bin/sleep", "1000")
			cut(cfg)
			b.restart()
			if ids, err := b.r.List(b.ctx()); err != nil || len(ids) != 1 || ids[0] != cfg.ID {
				t.Errorf("listed: %v, %v", ids, err)
			}
			cfg.Spec.Args = []string{"/bin/true"}
			if out, code := b.run(cfg); code != 0 {
				t.Errorf("made anew: %d, %q", code, out)
			}
			must(t, b.r.Remove(b.ctx(), cfg.ID))
			if left := b.r.Leftovers(b.ctx()); len(left) > 0 {
				t.Errorf("left over:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

func TestProbe(t *testing.T) {
	b := newBed(t)
	p := b.r.Probe(b.ctx())
	if p.Runtime == "" || p.RuntimeVersion == "" || p.ConmonVersion == "" || p.Cgroups == "" || !p.Seccomp || p.Overlay != "" {
		t.Errorf("%+v", p)
	}
	opts := b.opts
	opts.ConmonBinary = "/none/conmon"
	var missing *MissingBinaryError
	if _, err := New(opts); !errors.As(err, &missing) || missing.Package != "conmon" {
		t.Errorf("without conmon: %v", err)
	}
	opts = b.opts
	opts.RuntimeBinary = "false"
	if _, err := New(opts); err == nil {
		t.Error("a runtime that does nothing is taken")
	}
}
