package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runc "github.com/containerd/go-runc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Probe is what doctor shows.
type Probe struct {
	Runtime        string            `json:"runtime,omitempty"` // path of the OCI runtime
	RuntimeVersion string            `json:"runtimeVersion,omitempty"`
	Conmon         string            `json:"conmon,omitempty"`
	ConmonVersion  string            `json:"conmonVersion,omitempty"`
	Cgroups        string            `json:"cgroups"` // v1, v2 or hybrid
	Missing        []string          `json:"missingControllers,omitempty"`
	SwapLimit      bool              `json:"swapLimit"`
	Seccomp        bool              `json:"seccomp"`
	Overlay        string            `json:"overlay,omitempty"`  // why the state directory cannot hold writable layers
	Rejected       map[string]string `json:"rejected,omitempty"` // OCI runtimes that do not work, and why
}

// Probe tries out what containers need.
func (r *Runtime) Probe(ctx context.Context) Probe {
	p := Probe{
		Runtime: r.runtimeBinary, RuntimeVersion: firstLine(ctx, r.runtimeBinary),
		Conmon: r.conmon, ConmonVersion: firstLine(ctx, r.conmon),
		Cgroups: r.cgroups.mode, Missing: r.cgroups.missing(), SwapLimit: r.cgroups.swapLimit(),
		Seccomp: hasSeccomp(), Rejected: map[string]string{},
	}
	for _, name := range candidates() {
		bin, err := exec.LookPath(name)
		if err == nil && bin != r.runtimeBinary {
			if err = r.tryRuntime(ctx, bin); err != nil {
				p.Rejected[name] = err.Error()
			}
		}
	}
	if err := r.tryOverlay(); err != nil {
		p.Overlay = err.Error()
	}
	return p
}

func firstLine(ctx context.Context, bin string) string {
	out, err := exec.CommandContext(ctx, bin, "--version").Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func hasSeccomp() bool {
	// The filter pointer is bad on purpose: a kernel with filters looks at it.
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0)
	return errno == unix.EFAULT
}

// tryOverlay mounts one, as only that tells.
func (r *Runtime) tryOverlay() error {
	dir, err := os.MkdirTemp(r.stateDir, ".probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower", "upper", "work", "at"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	at := filepath.Join(dir, "at")
	if err := mountOverlay(at, []string{filepath.Join(dir, "lower")}, filepath.Join(dir, "upper"), filepath.Join(dir, "work")); err != nil {
		if onOverlay(r.stateDir) {
			return fmt.Errorf("%s is itself on overlayfs: put it on ext4, xfs, btrfs or tmpfs (%w)", r.stateDir, err)
		}
		return fmt.Errorf("mount overlayfs in %s: %w", r.stateDir, err)
	}
	return unmount(at)
}

// candidates are the OCI runtimes we know. crun starts in a fraction of the time,
// runc works on every kind of cgroup hierarchy.
func candidates() []string { return []string{"crun", "runc"} }

// choice is a runtime that was tried. It is kept in the run directory, so that a
// restart of the daemon tries nothing: that would make a container.
type choice struct {
	Configured        string    `json:"configured"`
	Binary            string    `json:"binary"`
	Size              int64     `json:"size"`
	Modified          time.Time `json:"modified"`
	Cgroups           string    `json:"cgroups"`
	RecursiveReadOnly bool      `json:"recursiveReadOnly"`
}

// chooseRuntime takes the configured runtime, or the first that can make a
// container on this host. crun before 1.9, say, cannot with hybrid cgroups.
func (r *Runtime) chooseRuntime(ctx context.Context, configured string) (choice, error) {
	path := filepath.Join(r.runDir, ".chosen")
	if data, err := os.ReadFile(path); err == nil {
		var c choice
		if json.Unmarshal(data, &c) == nil && c.Configured == configured && c.Cgroups == r.cgroups.mode && c.current() {
			return c, nil
		}
	}
	names := candidates()
	if configured != "" {
		names = []string{configured}
	}
	var errs []error
	for _, name := range names {
		bin, err := findBinary("", name, filepath.Base(name))
		if err == nil {
			err = r.tryRuntime(ctx, bin)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c := choice{Configured: configured, Binary: bin, Cgroups: r.cgroups.mode}
		c.RecursiveReadOnly = hasMountOption(ctx, r.client(bin), "rro")
		if st, err := os.Stat(bin); err == nil {
			c.Size, c.Modified = st.Size(), st.ModTime()
		}
		data, err := json.Marshal(c)
		if err == nil {
			err = writeFile(path, data)
		}
		return c, err
	}
	return choice{}, errors.Join(errs...)
}

// current tells whether the program is still the one that was tried.
func (c choice) current() bool {
	st, err := os.Stat(c.Binary)
	return err == nil && st.Size() == c.Size && st.ModTime().Equal(c.Modified)
}

// tryRuntime makes a container, which is never started, and deletes it.
func (r *Runtime) tryRuntime(ctx context.Context, bin string) error {
	dir, err := os.MkdirTemp(r.runDir, ".probe-")
	if err != nil {
		return fmt.Errorf("try %s: %w", bin, err)
	}
	defer os.RemoveAll(dir)
	name := "bulkhead" + strings.ReplaceAll(filepath.Base(dir), ".", "-")
	group := filepath.Join(r.cgroupParent, name)
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{Args: []string{"/none"}, Cwd: "/", Env: []string{defaultPath}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{
			CgroupsPath: group,
			Resources:   &specs.LinuxResources{Devices: deviceRules(false)}, // eBPF, with version 2
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}},
		},
	}
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, "rootfs", "proc"), 0o755)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "rootfs", "dev"), 0o755)
	}
	if err == nil {
		// The runtime looks whether the program is there; it never runs.
		err = os.WriteFile(filepath.Join(dir, "rootfs", "none"), nil, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, configFile), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("try %s: %w", bin, err)
	}
	client := r.client(bin)
	null, err := runc.NewNullIO()
	if err != nil {
		return fmt.Errorf("try %s: %w", bin, err)
	}
	defer null.Close()
	client.Log = filepath.Join(dir, "log")
	err = client.Create(ctx, name, dir, &runc.CreateOpts{IO: null})
	if err != nil {
		text, _ := os.ReadFile(client.Log)
		err = fmt.Errorf("try %s: %w: %s", bin, err, tidy(string(text)))
	}
	_ = client.Delete(ctx, name, &runc.DeleteOpts{Force: true})
	r.cgroups.kill(group)
	if rerr := r.cgroups.remove(group); err == nil {
		err = rerr
	}
	r.tidyParent()
	return err
}

func hasMountOption(ctx context.Context, client *runc.Runc, option string) bool {
	f, err := client.Features(ctx)
	return err == nil && slices.Contains(f.MountOptions, option)
}
