package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// TestVMRefuses holds that an option that a VM cannot keep is refused before anything is made, by its name.
func TestVMRefuses(t *testing.T) {
	t.Parallel()
	needRoot(t)
	groups, err := readCgroups()
	must(t, err)
	r := &Runtime{runDir: t.TempDir(), cgroups: groups, vm: vm.NewHost(vm.Options{KernelRoots: []string{t.TempDir()}})}
	check := func(change func(*api.SandboxConfig)) error {
		cfg := api.SandboxConfig{ID: strings.Repeat("a", 64), Spec: api.ContainerSpec{Isolation: isolationVM, Args: []string{"x"}}}
		change(&cfg)
		_, err := r.Check(cfg)
		return err
	}
	for name, tc := range map[string]struct {
		change func(*api.SandboxConfig)
		want   string
	}{
		"swap": {func(c *api.SandboxConfig) { c.Spec.Resources = api.Resources{Memory: 64 << 20, MemorySwap: -1} }, "--memory-swap"},
		"spreading": {func(c *api.SandboxConfig) {
			c.Spec.Mounts = []api.Mount{{Type: "bind", Source: "/tmp", Target: "/a"}, {Type: "bind", Source: "/tmp", Target: "/b", Options: []string{"rshared"}}}
		}, "mounts[1]"},
		"processors": {func(c *api.SandboxConfig) { c.Spec.Resources.CPUs = -1 }, "resources.cpus"},
		"no kernel":  {func(*api.SandboxConfig) {}, "linux-image-cloud-amd64"},
	} {
		if err := check(tc.change); err == nil || !strings.Contains(err.Error(), tc.want) {
			// A mount that cannot spread even here is refused by the same name.
			t.Errorf("%s: %v", name, err)
		}
	}
	r.vm = nil
	if err := check(func(*api.SandboxConfig) {}); err == nil || !strings.Contains(err.Error(), "makes no VMs") {
		t.Errorf("without VMs: %v", err)
	}
}

// TestRefreshEtcRefuses holds that what somebody has put in the place of the daemon's files is not read, nor written to.
func TestRefreshEtcRefuses(t *testing.T) {
	t.Parallel()
	r := &Runtime{runDir: t.TempDir()}
	cfg := api.SandboxConfig{ID: strings.Repeat("d", 64), Hosts: "127.0.0.1 localhost\n", ResolvConf: "nameserver 192.0.2.1\n", Hostname: "h"}
	etc := filepath.Join(r.bundle(cfg.ID), etcDir)
	must(t, os.MkdirAll(etc, 0o700))
	must(t, r.writeEtc(cfg))
	must(t, r.RefreshEtc(cfg.ID, "127.0.0.2 new\n", cfg.ResolvConf))
	hosts := filepath.Join(etc, "hosts")
	elsewhere := filepath.Join(t.TempDir(), "shadow")
	must(t, os.WriteFile(elsewhere, []byte("127.0.0.2 new\n"), 0o600)) // which it would take for its own
	for name, put := range map[string]func() error{
		"a link": func() error { return os.Symlink(elsewhere, hosts) },
		"a pipe": func() error { return unix.Mkfifo(hosts, 0o600) },
	} {
		must(t, os.Remove(hosts))
		must(t, put())
		if err := r.RefreshEtc(cfg.ID, "127.0.0.3 newer\n", cfg.ResolvConf); err == nil {
			t.Errorf("%s was taken for the file", name)
		}
	}
	if text, err := os.ReadFile(elsewhere); err != nil || string(text) != "127.0.0.2 new\n" {
		t.Errorf("a file elsewhere holds %q now (%v)", text, err)
	}
}

// TestVMFiles holds what the daemon takes from files that the shim has written, or a guest that broke out of its VM.
func TestVMFiles(t *testing.T) {
	t.Parallel()
	r := &Runtime{runDir: t.TempDir()}
	id := strings.Repeat("b", 64)
	dir := filepath.Join(r.bundle(id), vmDir)
	must(t, os.MkdirAll(dir, 0o700))
	if err := r.checkSignal(id, unix.SIGSTOP); err != nil || r.awaitVM(t.Context(), id) != nil {
		t.Errorf("a container without a VM is treated as one with: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(r.bundle(id), guestFile), []byte("{}"), 0o600))
	for sig, refused := range map[unix.Signal]bool{unix.SIGTERM: false, unix.SIGKILL: false, unix.SIGUSR1: false, unix.SIGSTOP: true, unix.SIGURG: true} {
		if err := r.checkSignal(id, sig); (err != nil) != refused {
			t.Errorf("%s: %v", unix.SignalName(sig), err)
		}
	}
	status := filepath.Join(dir, "status")
	for text, want := range map[string]string{
		`{}`: "", `{"error":"no such\nfile"}`: "no such file", `{`: "unexpected end", strings.Repeat("x", 100<<10): "not what the shim writes",
	} {
		must(t, os.WriteFile(status, []byte(text), 0o600))
		if err := r.awaitVM(t.Context(), id); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", text, err, want)
		}
	}
	must(t, os.Remove(status))
	must(t, os.Symlink("/etc/passwd", status))
	if err := r.awaitVM(t.Context(), id); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through a link: %v", err)
	}
	must(t, os.Remove(status))
	must(t, unix.Mkfifo(status, 0o600))
	if err := r.awaitVM(t.Context(), id); err == nil {
		t.Error("a pipe was read")
	}
	must(t, os.Remove(status))
	if err := r.awaitVM(context.Background(), id); err == nil || !strings.Contains(err.Error(), "shim ended") {
		t.Errorf("without a shim: %v", err)
	}
	st := api.SandboxState{}
	must(t, os.WriteFile(filepath.Join(dir, "reason"), []byte("the VM ended"), 0o600))
	if r.endOfVM(id, &st); st.Error != "the VM ended" || st.OOMKilled {
		t.Errorf("%+v", st)
	}
	must(t, os.WriteFile(filepath.Join(dir, "oom"), nil, 0o600))
	if r.endOfVM(id, &st); !st.OOMKilled {
		t.Errorf("%+v", st)
	}
}
