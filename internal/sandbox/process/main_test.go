package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// insideEnv marks the copy of the test binary that runs in namespaces of its own:
// mounts, processes and networks vanish with it, whatever a test does.
const insideEnv = "BULKHEAD_TEST_INSIDE"

// unifiedEnv shows the tests a host of cgroup version 2, even where the controllers
// are bound to version 1. runtimeEnv names the OCI runtime.
const (
	unifiedEnv = "BULKHEAD_TEST_CGROUP2"
	runtimeEnv = "BULKHEAD_TEST_RUNTIME"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	// A shell as process 1, as it reaps the orphans that conmon leaves to it.
	script := `"$0" "$@"; exit $?`
	if os.Getenv(unifiedEnv) != "" {
		script = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup || exit 1; " + script
	}
	args := append([]string{"--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script}, os.Args...)
	cmd := exec.CommandContext(context.Background(), "unshare", args...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "run tests in namespaces:", err)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// needRoot skips, or fails where nothing may be skipped unseen.
func needRoot(t testing.TB, programs ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = p
		}
	}
	switch {
	case missing != "" && os.Getenv("REQUIRE_ROOT") == "1":
		t.Fatalf("needs %s, and REQUIRE_ROOT is set", missing)
	case missing != "":
		t.Skipf("needs %s", missing)
	}
}

// bed is a place for containers, empty again at the end of the test.
type bed struct {
	t     testing.TB
	r     *Runtime
	opts  Options
	layer string
}

func newBed(t testing.TB) *bed {
	t.Helper()
	needRoot(t, "runc", "conmon", "busybox", "unshare")
	dir := t.TempDir()
	b := &bed{t: t, layer: filepath.Join(dir, "layer"), opts: Options{
		StateDir: filepath.Join(dir, "lib", "containers"), RunDir: filepath.Join(dir, "run"),
		CgroupParent: "/bulkhead-test-" + randomHex(4), LogSize: 1 << 20,
		RuntimeBinary: os.Getenv(runtimeEnv),
		Logger:        slog.New(slog.NewTextHandler(&testWriter{t: t}, nil)),
	}}
	b.makeLayer()
	b.restart()
	t.Cleanup(func() {
		if err := b.r.Reset(context.Background()); err != nil {
			t.Errorf("reset: %v", err)
		}
		if left := b.r.Leftovers(context.Background()); len(left) > 0 {
			t.Errorf("left over:\n%s", strings.Join(left, "\n"))
		}
		_ = b.r.Close()
	})
	return b
}

// testWriter logs while the test runs.
type testWriter struct{ t testing.TB }

func (w *testWriter) Write(p []byte) (int, error) {
	fmt.Fprintf(os.Stderr, "%s: %s", w.t.Name(), p)
	return len(p), nil
}

// restart is what a daemon does: all knowledge is lost.
func (b *bed) restart() {
	b.t.Helper()
	if b.r != nil {
		_ = b.r.Close()
	}
	r, err := New(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	b.r = r
}

// makeLayer builds a root file system of one static program.
func (b *bed) makeLayer() {
	b.t.Helper()
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root", "home/app"} {
		must(b.t, os.MkdirAll(filepath.Join(b.layer, d), 0o755))
	}
	src, err := exec.LookPath("busybox")
	must(b.t, err)
	data, err := os.ReadFile(src)
	must(b.t, err)
	must(b.t, os.WriteFile(filepath.Join(b.layer, "bin/busybox"), data, 0o755))
	for n := range strings.FieldsSeq("sh true false cat echo sleep id env pwd ls stat head tail grep mount touch dd seq stty kill printf hostname ping sysctl ulimit yes tr od wc mkdir") {
		must(b.t, os.Symlink("busybox", filepath.Join(b.layer, "bin", n)))
	}
	b.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n")
	b.file("etc/group", "root:x:0:\napp:x:1001:\nextra:x:1002:app\n")
}

func (b *bed) file(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.layer, name)
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.WriteFile(path, []byte(text), 0o644))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func randomHex(n int) string {
	buf := make([]byte, n)
	_, _ = rand.Read(buf)
	return hex.EncodeToString(buf)
}

// config is a container that runs a command.
func (b *bed) config(args ...string) api.SandboxConfig {
	return api.SandboxConfig{
		ID: randomHex(32), Name: "test", Layers: []string{b.layer}, Hostname: "box",
		Hosts: "127.0.0.1 localhost\n", ResolvConf: "nameserver 192.0.2.1\n",
		Spec: api.ContainerSpec{Args: args},
	}
}

func (b *bed) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *bed) create(cfg api.SandboxConfig) string {
	b.t.Helper()
	must(b.t, b.r.Create(b.ctx(), cfg))
	return cfg.ID
}

func (b *bed) start(cfg api.SandboxConfig) string {
	b.t.Helper()
	id := b.create(cfg)
	must(b.t, b.r.Start(b.ctx(), id))
	return id
}

// wait waits for a container's end, as the engine does.
func (b *bed) wait(id string) api.SandboxState {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	exits := b.r.Exits(ctx)
	for {
		st, err := b.r.State(ctx, id)
		must(b.t, err)
		if st.Status == api.StatusExited {
			return st
		}
		if _, ok := <-exits; !ok {
			b.t.Fatalf("container %s did not end: %+v", id, st)
		}
	}
}

// run runs a container to its end, and gives its output and code.
func (b *bed) run(cfg api.SandboxConfig) (string, int) {
	b.t.Helper()
	id := b.start(cfg)
	st := b.wait(id)
	return b.logs(id), st.ExitCode
}

func (b *bed) sh(script string) (string, int) {
	b.t.Helper()
	return b.run(b.config("/bin/sh", "-c", script))
}

func (b *bed) logs(id string) string {
	b.t.Helper()
	var s strings.Builder
	must(b.t, b.r.Logs(b.ctx(), id, api.LogOptions{Tail: -1}, func(l api.LogLine) error {
		s.WriteString(l.Line)
		if !l.Partial {
			s.WriteString("\n")
		}
		return nil
	}))
	return s.String()
}

// eventually waits for a condition of the kernel's or conmon's.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); waitShortly() {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}
