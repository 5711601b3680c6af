package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// TestShare holds how the paths of a container's document become those of the guest.
func TestShare(t *testing.T) {
	t.Parallel()
	c := Container{Rootfs: "/run/c/rootfs", Spec: &specs.Spec{
		Root: &specs.Root{Path: "/run/c/rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/etc/hosts", Type: "bind", Source: "/run/c/etc/hosts", Options: []string{"bind", "rprivate"}},
			{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "rprivate", "ro", "rro", "nodev"}},
			{Destination: "/etcetera", Type: "bind", Source: "/run/c/etcetera", Options: []string{"rbind", "rprivate"}},
		},
	}}
	want := []string{
		"/run/c/rootfs at /share/rootfs rbind,rprivate", "/run/c/etc/hosts at /share/mounts/1 rbind,rprivate",
		"/srv/data at /share/mounts/2 rbind,rprivate,ro,rro", "/run/c/etcetera at /share/mounts/3 rbind,rprivate",
		"guest: proc at /proc", "guest: /run/share/mounts/1 at /etc/hosts bind,rprivate",
		"guest: /run/share/mounts/2 at /data rbind,rprivate,ro,nodev", "guest: /run/share/mounts/3 at /etcetera rbind,rprivate",
		"guest: root /run/share/rootfs",
	}
	var got []string
	text := func(m specs.Mount) string {
		return strings.TrimSpace(fmt.Sprintf("%s at %s %s", m.Source, m.Destination, strings.Join(m.Options, ",")))
	}
	for _, m := range c.shareAt("") {
		got = append(got, text(m))
	}
	for _, m := range c.Spec.Mounts {
		got = append(got, "guest: "+text(m))
	}
	if diff := cmp.Diff(want, append(got, "guest: root "+c.Spec.Root.Path)); diff != "" {
		t.Error(diff)
	}
}

// TestShimSpec holds what QEMU's container can do and see of the host.
func TestShimSpec(t *testing.T) {
	t.Parallel()
	h := NewHost(Options{Self: "/usr/bin/bulkhead", ShimVerb: "shim"})
	root := t.TempDir()
	s, err := h.shimSpec(Container{
		Dir: "/run/c/vm", Root: root, Netns: "/run/netns/hns-x", Memory: 64 << 20, Cgroup: "/bulkhead/c", Capabilities: shimCapabilities([]string{"CAP_NET_ADMIN", "CAP_SETUID", "CAP_SYS_ADMIN"}, true),
	}, "/var/lib/bulkhead/vm/key", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Root.Readonly || !s.Process.NoNewPrivileges || s.Linux.Seccomp == nil {
		t.Error("it is not confined")
	}
	if got := s.Process.Capabilities.Bounding; !slices.Equal(got, []string{"CAP_NET_ADMIN", "CAP_SETUID"}) {
		t.Errorf("it has capabilities that the daemon lacks, or more than it needs: %v", got)
	}
	if want := int64(64+96+384) << 20; *s.Linux.Resources.Memory.Limit != want {
		t.Errorf("the VM may use %d bytes, not %d", *s.Linux.Resources.Memory.Limit, want)
	}
	all := append(shimCapabilities(capNames(), true), "CAP_DAC_READ_SEARCH")
	if got := shimCapabilities(all, false); !slices.Equal(got, []string{"CAP_NET_ADMIN", "CAP_BPF", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"}) {
		t.Errorf("without a share it has rights over files: %v", got)
	}
	if slices.Contains(shimCapabilities(all, true), "CAP_DAC_READ_SEARCH") {
		t.Error("files of the host can be opened by handles")
	}
	if p := s.Linux.Resources.Pids; p == nil || *p.Limit <= 0 || *p.Limit > 4096 {
		t.Errorf("the VM may make any number of threads: %v", p)
	}
	if d := s.Linux.Resources.Devices[0]; d.Allow || d.Access != "rwm" {
		t.Errorf("devices are not refused first: %+v", d)
	}
	for _, m := range s.Mounts {
		host := m.Type == "bind" && m.Source != "/run/c/vm"
		if host && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s of the host can be written to", m.Source)
		}
		if host && !strings.HasPrefix(m.Source, "/usr") && !slices.Contains([]string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/alternatives", "/var/lib/bulkhead/vm/key"}, m.Source) {
			t.Errorf("%s of the host can be seen", m.Source)
		}
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace && n.Path != "/run/netns/hns-x" {
			t.Errorf("it is in the network %q", n.Path)
		}
	}
	if len(s.Linux.Namespaces) != 5 {
		t.Errorf("it shares a namespace with the host: %v", s.Linux.Namespaces)
	}
}

func capNames() []string {
	return []string{"CAP_NET_ADMIN", "CAP_BPF", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_SYS_ADMIN"}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for limit, want := range map[int64]int64{0: 512 << 20, 6 << 20: 102 << 20, 64<<20 + 1: 161 << 20, 1 << 30: 1120 << 20} {
		if got := memoryOf(limit); got != want {
			t.Errorf("for %d the VM has %d, not %d", limit, got, want)
		}
	}
	if n := processors(Accel{Name: AccelTCG}, 4); n != 1 {
		t.Errorf("an emulated VM has %d processors", n)
	}
	if n := processors(Accel{Name: AccelKVM}, 0.5); n != 1 {
		t.Errorf("half a processor makes %d", n)
	}
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for want, find := range map[string]func() error{
		"qemu-system-x86": func() error { _, err := FindQEMU(); return err },
		"crun":            func() error { _, err := FindRuntime(); return err },
		"make install": func() error {
			_, err := FindAgent(filepath.Join(t.TempDir(), "bin", "bulkhead"))
			return err
		},
		"--vm-agent /none/agent": func() error { _, err := Options{Agent: "/none/agent"}.agent(); return err },
		"it is no file":          func() error { _, err := Options{Agent: "/"}.agent(); return err },
	} {
		if err := find(); err == nil {
			t.Logf("%s is installed where it is looked for outside the path", want) // the agent may be
		} else if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("want one that names %s: %v", want, err)
		}
	}
}

// fakeGuest notes what it is asked.
type fakeGuest struct {
	mu    sync.Mutex
	asked []string
	hold  chan struct{} // a wait takes until then
	// silent: its streams say nothing, and end only when they are given up, as those of a process that goes on do.
	silent bool
}

func (g *fakeGuest) note(op string, in any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	raw, _ := json.Marshal(in)
	g.asked = append(g.asked, op+" "+string(raw))
}

func (g *fakeGuest) Call(ctx context.Context, op string, in, out any) error {
	g.note(op, in)
	if op != proto.OpWait || out == nil {
		return nil
	}
	select {
	case <-g.hold:
	case <-ctx.Done():
		return ctx.Err()
	}
	return json.Unmarshal([]byte(`{"code":3}`), out)
}

func (g *fakeGuest) Stream(_ context.Context, op string, in, _ any) (net.Conn, error) {
	g.note(op, in)
	a, b := net.Pipe()
	if g.silent {
		return halfClosing{a}, nil
	}
	go func() { _, _ = io.WriteString(b, "said"); _ = b.Close() }()
	return a, nil
}

// halfClosing is as a stream of yamux, whose Close ends but what we say.
type halfClosing struct{ net.Conn }

func (halfClosing) Close() error { return nil }

// relayed is a client of a shim whose guest is a fake one.
func relayed(t *testing.T, g *fakeGuest) (client *proto.Client, ended chan struct{}) {
	t.Helper()
	host, shim := net.Pipe()
	c, err := proto.NewClient(host)
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		r := &relay{guest: g, prefix: "1-"}
		_ = proto.Serve(context.Background(), shim, r)
		r.end()
	}()
	t.Cleanup(func() { _ = c.Close() })
	return c, ended
}

func TestRelay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	g := &fakeGuest{hold: make(chan struct{})}
	c, ended := relayed(t, g)
	if err := c.Call(ctx, proto.OpExec, proto.Exec{Process: "exec", Container: "main", Spec: json.RawMessage("{}")}, nil); err != nil {
		t.Fatal(err)
	}
	s, err := c.Stream(ctx, proto.OpStdio, proto.Stdio{Process: "exec", FD: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(s); err != nil || string(text) != "said" {
		t.Errorf("its output: %q, %v", text, err)
	}
	_ = s.Close()
	close(g.hold)
	var exit proto.Exit
	if err := c.Call(ctx, proto.OpWait, proto.Process{Process: "exec"}, &exit); err != nil || exit.Code != 3 {
		t.Errorf("its end: %+v, %v", exit, err)
	}
	for _, op := range []string{proto.OpHello, proto.OpNIC, proto.OpRest, proto.OpHalt} {
		if err := c.Call(ctx, op, proto.Process{Process: "main"}, nil); err == nil {
			t.Errorf("a client had the guest do %s", op)
		}
	}
	_ = c.Close()
	<-ended
	want := []string{
		`exec {"container":"main","process":"1-exec","spec":{}}`, `stdio {"fd":1,"process":"1-exec"}`, `wait {"process":"1-exec"}`,
	}
	if diff := cmp.Diff(want, g.asked); diff != "" {
		t.Error(diff)
	}
}

// TestRelayEnds holds that a client that goes away takes its process with it, even one that has nothing to say.
func TestRelayEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	g := &fakeGuest{hold: make(chan struct{})}
	c, ended := relayed(t, g)
	if err := c.Call(ctx, proto.OpExec, proto.Exec{Process: "exec", Spec: json.RawMessage("{}")}, nil); err != nil {
		t.Fatal(err)
	}
	g.silent = true
	if _, err := c.Stream(ctx, proto.OpStdio, proto.Stdio{Process: "exec", FD: 1}, nil); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Fatal("it goes on for a client that is gone")
	}
	if len(g.asked) < 3 || g.asked[2] != `signal {"process":"1-exec","signal":9,"tree":true}` {
		t.Errorf("the guest was asked %q", g.asked)
	}
}

func TestCodeOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"executable file `x` not found in $PATH: No such file or directory": 127,
		`exec: "x": executable file not found in $PATH`:                     127,
		"open executable: Permission denied":                                126,
	} {
		if got := codeOf(errors.New(text)); got != want {
			t.Errorf("%s: %d", text, got)
		}
	}
}

func TestWriteExec(t *testing.T) {
	t.Parallel()
	h := NewHost(Options{ExecVerb: "in"})
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, execDir), 0o700); err != nil {
		t.Fatal(err)
	}
	args, err := h.WriteExec(dir, "abc", &specs.Process{Args: []string{"x"}, Cwd: "/"}, true, false)
	if err != nil || !slices.Equal(args, []string{"/bulkhead", "in", ShimDir, "abc"}) {
		t.Errorf("%q, %v", args, err)
	}
	// Whoever has taken the shim's container may have put a link in the directory's place.
	taken, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(taken, execDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteExec(taken, "abc", &specs.Process{}, false, false); err == nil {
		t.Error("a file was written through a link")
	}
	if files, _ := os.ReadDir(elsewhere); len(files) != 0 {
		t.Errorf("%v is elsewhere", files)
	}
	data, err := os.ReadFile(filepath.Join(dir, execDir, "abc"))
	var e proto.Exec
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	if err != nil || !e.TTY || !e.Stdin || !strings.Contains(string(e.Spec), `"args":["x"]`) {
		t.Errorf("%+v, %v", e, err)
	}
}
