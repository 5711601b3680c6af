package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// AgentName is the file name of the agent's program.
const AgentName = "bulkhead-agent"

// FindAgent finds the agent beside this program, or where packages put it.
func FindAgent(self string) (string, error) {
	dir := filepath.Dir(self)
	places := []string{
		filepath.Join(dir, AgentName), filepath.Join(dir, "..", "lib", "bulkhead", AgentName),
		filepath.Join("/usr/lib/bulkhead", AgentName), filepath.Join("/usr/local/lib/bulkhead", AgentName),
	}
	for _, p := range places {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return filepath.Clean(p), nil
		}
	}
	return "", fmt.Errorf("%w: %s is missing: install it as %s (make install does)", ErrUnavailable, AgentName, filepath.Clean(places[1]))
}

// agent finds it, where the options say it is or beside this program.
func (o Options) agent() (string, error) {
	if o.Agent == "" {
		return FindAgent(o.Self)
	}
	st, err := os.Stat(o.Agent)
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		return "", fmt.Errorf("%w: --vm-agent %s: %w: name the file %s", ErrUnavailable, o.Agent, err, AgentName)
	}
	return o.Agent, nil
}

// FindRuntime finds the OCI runtime that makes the container in the guest. crun starts there in a sixth of the time of runc, which
// is what emulation has most of an effect on; either does.
func FindRuntime() (string, error) {
	for _, name := range []string{"crun", "runc"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", &MissingError{What: "an OCI runtime for the guest", Package: "crun"}
}

// Files are what every VM of this host is started from.
type Files struct {
	Kernel  string
	Initrd  string
	Version string // of the kernel
}

// Sources are what they are made of.
type Sources struct {
	Kernel  Kernel // see FindKernel and KernelOfImage
	Agent   string // see FindAgent
	Runtime string // see FindRuntime
	Host    bool   // for hosts of containers, which need more of the kernel
	Disks   bool   // for containers whose files are on disks
	// InUse are directories of files that VMs have been started from and may need once more.
	InUse func() []string
}

// Store keeps Files, made anew when one of their sources has changed.
type Store struct {
	dir string
	mu  sync.Mutex
}

// NewStore keeps them below a directory.
func NewStore(dir string) *Store { return &Store{dir: dir} }

// storeFormat is part of the key, for changes of what is made of the same sources.
const storeFormat = "1"

// Get gives the files, and makes them where they are not there. QEMU reads them as another user.
func (s *Store) Get(ctx context.Context, src Sources) (Files, error) {
	key, err := keyOf(src)
	if err != nil {
		return Files{}, fmt.Errorf("prepare the files of VMs: %w", err)
	}
	dir := filepath.Join(s.dir, key)
	f := Files{Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Version: src.Kernel.Version}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err == nil { // when it was used last
		return f, nil
	}
	if err := s.build(ctx, dir, src); err != nil {
		return Files{}, fmt.Errorf("prepare the files of VMs: %w", err)
	}
	s.prune(dir, src.InUse)
	return f, nil
}

// keyOf names what was made by what it was made of: which file, and its size and time.
func keyOf(src Sources) (string, error) {
	h := sha256.New()
	k := src.Kernel
	modules := filepath.Join(k.Root, k.Modules)
	fmt.Fprintln(h, storeFormat, modules, strings.Join(wantedModules(src.Host, src.Disks), " "))
	for _, file := range []string{filepath.Join(k.Root, k.Image), modules, src.Agent, src.Runtime} {
		st, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, file, st.Size(), st.ModTime().Format(time.RFC3339Nano))
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// build makes them under another name and renames, so that a crash leaves no half of them.
func (s *Store) build(ctx context.Context, dir string, src Sources) (err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	files, done, err := src.Kernel.files()
	if err != nil {
		return err
	}
	defer done()
	image, err := readFile(files, src.Kernel.Image, maxImage)
	if err != nil {
		return err
	}
	dirOfModules, err := fs.Sub(files, src.Kernel.Modules)
	if err != nil {
		return err
	}
	modules, err := LoadOrder(ctx, dirOfModules, wantedModules(src.Host, src.Disks))
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := (initrd{agent: src.Agent, runtime: src.Runtime, modules: modules}).write(&archive); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"kernel": Unpack(image), "initrd": archive.Bytes()} {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever our umask is
			return err
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// unusedFor is how long files are kept that no VM needs: several kernels may be in turns, and a container that is being started is
// not among those that have them in use yet.
const unusedFor = 24 * time.Hour

// prune removes what other sources gave. A VM that runs reads its files once more where its first start comes to nothing.
func (s *Store) prune(keep string, inUse func() []string) {
	all, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	kept := []string{keep}
	if inUse != nil {
		kept = append(kept, inUse()...)
	}
	for _, e := range all {
		dir := filepath.Join(s.dir, e.Name())
		st, err := e.Info()
		if err != nil || slices.Contains(kept, dir) || time.Since(st.ModTime()) < unusedFor {
			continue
		}
		_ = os.RemoveAll(dir)
	}
}
