package agent

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// sh starts a shell, as the agent starts the OCI runtime.
func sh(t *testing.T, script string) func() (int, error) {
	t.Helper()
	return func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	}
}

func TestReaper(t *testing.T) {
	r := newReaper()
	end := func(ch <-chan unix.WaitStatus) unix.WaitStatus {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); pause() {
			r.collect()
			select {
			case st := <-ch:
				return st
			default:
			}
		}
		t.Fatal("the end of a process was not told")
		return 0
	}
	ch, err := r.start(sh(t, "exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if st := end(ch); st.ExitStatus() != 3 {
		t.Errorf("it ended with %v", st)
	}
	// One that has ended before anybody asked.
	over := r.launch()
	pid, err := sh(t, "kill -KILL $$")()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); len(r.orphans) == 0 && time.Now().Before(deadline); pause() {
		r.collect()
	}
	if st := end(r.adopt(pid)); st.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %v", st)
	}
	if len(r.orphans) != 0 || len(r.waiting) != 0 {
		t.Errorf("something is kept: %v %v", r.orphans, r.waiting)
	}
	for i := range 3 * maxOrphans {
		r.ended(100_000+i, 0)
	}
	if len(r.orphans) != maxOrphans || len(r.order) != maxOrphans {
		t.Errorf("%d orphans are kept", len(r.orphans))
	}
	// After it, none: a process that has the number of one would be taken for it.
	other := r.launch()
	over()
	if len(r.orphans) != maxOrphans {
		t.Error("those of a launch were forgotten during it")
	}
	other()
	r.ended(99, 0)
	if len(r.orphans) != 0 || len(r.order) != 0 {
		t.Errorf("%d orphans are kept for nobody", len(r.orphans))
	}
}

func TestRuntimeMessage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ log, want string }{
		"runc":    {`{"level":"warning","msg":"w","time":"t"}` + "\n" + `{"level":"error","msg":"exec: \"x\": executable file not found in $PATH","time":"t"}` + "\n", `exec: "x": executable file not found in $PATH`},
		"crun":    {`{"msg": "executable file ` + "`x`" + ` not found in $PATH: No such file or directory", "level": "error", "time": "t"}`, "executable file `x` not found in $PATH: No such file or directory"},
		"nothing": {"", "the OCI runtime gave no reason (status 256)"},
		"garbage": {"hello\n{}\n", "the OCI runtime gave no reason (status 256)"},
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(tc.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := runtimeMessage(path, 256); got != tc.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestOutput holds that all that a process wrote arrives, and that what it left in the background keeps nobody waiting.
func TestOutput(t *testing.T) {
	t.Parallel()
	for _, held := range []bool{false, true} {
		p := &process{ended: make(chan struct{})}
		rd, wr, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer wr.Close() // held: somebody has the pipe open still
		p.out[1] = rd
		ps := &processes{by: map[string]*process{"p": p}}
		carry, err := ps.stdio(proto.Stdio{Process: "p", FD: 1})
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("x", 1<<20)
		go func() {
			_, _ = io.WriteString(wr, text)
			close(p.ended)
			if !held {
				_ = wr.Close()
			}
		}()
		host, guest := net.Pipe()
		go carry(guest)
		got, err := io.ReadAll(host)
		if err != nil || string(got) != text {
			t.Errorf("held %v: %d bytes of %d: %v", held, len(got), len(text), err)
		}
		if _, err := ps.wait(t.Context(), "p"); err != nil {
			t.Error(err)
		}
		if _, err := ps.stdio(proto.Stdio{Process: "p", FD: 1}); err == nil {
			t.Error("a process that was waited for is still there")
		}
	}
}

// TestOutputEnds holds that what a process left in the background cannot keep its streams open by writing for ever.
func TestOutputEnds(t *testing.T) {
	t.Parallel()
	p := &process{ended: make(chan struct{})}
	rd, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer wr.Close()
	close(p.ended)
	go func() {
		for _, err := wr.WriteString("y\n"); err == nil; _, err = wr.WriteString("y\n") {
		}
	}()
	host, guest := net.Pipe()
	go p.output(guest, rd)
	_ = host.SetDeadline(time.Now().Add(60 * time.Second))
	if n, err := io.Copy(io.Discard, host); err != nil || n > 2*pipeMost {
		t.Errorf("%d bytes were carried: %v", n, err)
	}
	_ = rd.Close()
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	ps := newProcesses("")
	ps.by["p"] = &process{ended: make(chan struct{})}
	for _, fd := range []int{-1, 0, 1, 3, 1 << 30} {
		if _, err := ps.stdio(proto.Stdio{Process: "p", FD: fd}); err == nil {
			t.Errorf("stream %d of a process without streams was given", fd)
		}
	}
	for _, n := range []int{-1, 0, 65} {
		if err := ps.signal(proto.Signal{Process: "p", Signal: n}); err == nil {
			t.Errorf("signal %d was sent", n)
		}
	}
	for _, name := range []string{"", "a/b", "--root=/", "p"} {
		if err := ps.launch(name, false, false, proto.Size{}, nil, nil); err == nil {
			t.Errorf("a process %q was started", name)
		}
	}
	if _, _, err := ps.handle(t.Context(), "fly", nil); err == nil {
		t.Error("a request that there is not was done")
	}
}

func TestDescendants(t *testing.T) {
	t.Parallel()
	if got := descendants(os.Getppid()); !slices.Contains(got, os.Getpid()) {
		t.Errorf("we are not among the descendants of our parent: %v", got)
	}
}

func TestLoadModules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := loadModules(dir); err == nil || !strings.Contains(err.Error(), "load drivers") {
		t.Errorf("without a list: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "order"), []byte("x.ko\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := loadModules(dir); err == nil || !strings.Contains(err.Error(), "x.ko") {
		t.Errorf("without one of them: %v", err)
	}
}
