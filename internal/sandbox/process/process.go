// Package process is a compartment with a process in it: a container made by an
// OCI runtime and kept by conmon.
//
// The daemon must be able to die and come back without a container noticing. So
// nothing of a container hangs on a process of ours: conmon, one per container,
// is the parent of its first process, holds its terminal or pipes, writes its log
// and, at the end, a file with its exit code. What we know of a container we read
// back from its directory, and we check that a process is the one we mean before
// we signal it.
//
// Two trees hold everything. The state directory survives a reboot: the writable
// layer, logs, volumes. The run directory does not: the mounted root file system,
// the OCI bundle, pid files, sockets, exit files. A container is what has an
// entry named by its 64 hexadecimal digits in either.
//
// With VM isolation the process is a shim that runs the container in a VM (package vm). It is made, kept and ended like any other.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	runc "github.com/containerd/go-runc"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// The errors a caller may want to tell apart.
var (
	ErrNotFound   = errors.New("no such container")
	ErrNotRunning = errors.New("container is not running")
	ErrRunning    = errors.New("container is running")
	ErrInvalid    = errors.New("invalid container configuration")
	// ErrDetached ends an attach whose client pressed the detach keys.
	ErrDetached = errors.New("detached")
)

// MissingBinaryError says that a program we need is not installed.
type MissingBinaryError struct {
	Name    string
	Package string // of Debian
}

func (e *MissingBinaryError) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.Name, e.Package)
}

// Options of a Runtime; empty fields have the defaults said.
type Options struct {
	StateDir      string // /var/lib/bulkhead/containers
	RunDir        string // /run/bulkhead/containers
	VolumeDir     string // "volumes" beside StateDir
	CgroupParent  string // /bulkhead
	RuntimeBinary string // the first of runc and crun that works
	ConmonBinary  string // conmon
	// LogSize bounds a log file; up to three are kept. 16 MiB.
	LogSize int64
	// VM makes the utility VMs of containers with VM isolation; nil: such are refused.
	VM     *vm.Host
	Logger *slog.Logger
}

// Runtime makes containers and looks after them.
type Runtime struct {
	stateDir, runDir, volumeDir string
	cgroupParent                string
	runtimeBinary, conmon       string
	logSize                     int64
	log                         *slog.Logger
	oci                         *runc.Runc
	cgroups                     cgroups
	recursiveReadOnly           bool
	watch                       *watcher
	vm                          *vm.Host

	// creating is held for reading while a cgroup of a container is being made.
	creating sync.RWMutex

	mu    sync.Mutex
	locks map[string]*idLock
}

// New finds the programs it needs, takes over the containers of an earlier run
// and watches them. Close ends the watching and no container.
func New(opts Options) (*Runtime, error) {
	setDefaults(&opts)
	for _, p := range []string{opts.StateDir, opts.RunDir, opts.VolumeDir, opts.CgroupParent} {
		// conmon separates a log path's parts by colons.
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsAny(p, ":\n") {
			return nil, fmt.Errorf("start container runtime: %q is not a clean absolute path without colons", p)
		}
	}
	conmon, err := findBinary(opts.ConmonBinary, "conmon", "conmon")
	if err != nil {
		return nil, fmt.Errorf("start container runtime: %w", err)
	}
	r := &Runtime{
		stateDir: opts.StateDir, runDir: opts.RunDir, volumeDir: opts.VolumeDir,
		cgroupParent: opts.CgroupParent, conmon: conmon, logSize: opts.LogSize,
		log: opts.Logger, vm: opts.VM, locks: map[string]*idLock{},
	}
	for _, dir := range []string{r.stateDir, r.runDir, r.volumeDir, r.exitDir(), r.runtimeRoot()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("start container runtime: %w", err)
		}
	}
	if r.cgroups, err = readCgroups(); err != nil {
		return nil, fmt.Errorf("start container runtime: %w", err)
	}
	chosen, err := r.chooseRuntime(context.Background(), opts.RuntimeBinary)
	if err != nil {
		return nil, fmt.Errorf("start container runtime: %w", err)
	}
	r.runtimeBinary, r.recursiveReadOnly = chosen.Binary, chosen.RecursiveReadOnly
	r.oci = r.client(r.runtimeBinary)
	if r.watch, err = newWatcher(r); err != nil {
		return nil, fmt.Errorf("start container runtime: %w", err)
	}
	if err := r.adopt(); err != nil {
		r.watch.close()
		return nil, fmt.Errorf("start container runtime: %w", err)
	}
	return r, nil
}

// Close stops watching. Containers go on.
func (r *Runtime) Close() error {
	r.watch.close()
	return nil
}

func setDefaults(o *Options) {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.StateDir, "/var/lib/bulkhead/containers")
	def(&o.RunDir, "/run/bulkhead/containers")
	def(&o.VolumeDir, filepath.Join(filepath.Dir(o.StateDir), "volumes"))
	def(&o.CgroupParent, "/bulkhead")
	if o.LogSize <= 0 {
		o.LogSize = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// client talks to an OCI runtime about our containers and nobody else's.
func (r *Runtime) client(binary string) *runc.Runc {
	return &runc.Runc{Command: binary, Root: r.runtimeRoot()}
}

func findBinary(configured, name, pkg string) (string, error) {
	if configured != "" {
		name = configured
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &MissingBinaryError{Name: name, Package: pkg}
	}
	return filepath.Abs(path)
}

// adopt takes over what an earlier run left: containers are watched, attached
// exec processes have lost their client and end.
func (r *Runtime) adopt() error {
	ids, err := listIDs(r.runDir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		r.endExecs(id, false)
		// What is half created has no watch and shows in List.
		if m, ok := r.monitorOf(id); ok {
			r.watch.add(id, m)
			continue
		}
		unlock := r.lock(id)
		r.settle(id)
		unlock()
	}
	return nil
}

// idLock serialises what is done to one container.
type idLock struct {
	mu   sync.Mutex
	uses int
}

func (r *Runtime) lock(id string) (unlock func()) {
	r.mu.Lock()
	l := r.locks[id]
	if l == nil {
		l = &idLock{}
		r.locks[id] = l
	}
	l.uses++
	r.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		r.mu.Lock()
		if l.uses--; l.uses == 0 {
			delete(r.locks, id)
		}
		r.mu.Unlock()
	}
}
