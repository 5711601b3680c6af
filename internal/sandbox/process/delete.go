package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

const (
	killWait    = 10 * time.Second
	monitorWait = 3 * time.Second // a monitor drains the output first
)

// Delete ends a container and takes away all of it but its storage: writable
// layer, logs and anonymous volumes. It may be in any state, or not there.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	defer r.lock(id)()
	if err := r.clear(ctx, id); err != nil {
		return fmt.Errorf("delete container %.12s: %w", id, err)
	}
	r.tidyParent()
	return nil
}

// Remove deletes a container and its storage.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if err := r.Delete(ctx, id); err != nil {
		return err
	}
	defer r.lock(id)()
	if err := os.RemoveAll(r.storage(id)); err != nil {
		return fmt.Errorf("remove storage of container %.12s: %w", id, err)
	}
	return nil
}

// clear goes on to the end and gives back all that went wrong. Each step does
// nothing where there is nothing, so it may be cut anywhere and called again.
func (r *Runtime) clear(ctx context.Context, id string) error {
	if err := r.endProcesses(ctx, id); err != nil {
		return err // the rest would pull the floor from under them
	}
	var errs []error
	r.cgroups.kill(r.group(id))
	if err := r.cgroups.remove(r.group(id)); err != nil {
		errs = append(errs, err)
	}
	if err := r.forget(ctx, id); err != nil {
		errs = append(errs, err)
	}
	if err := r.leaveVM(id); err != nil {
		errs = append(errs, err)
	} else if err := r.removeBundle(id); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, r.removeExit(id), vm.DropDisk(r.rootDisk(id)))
	return errors.Join(errs...)
}

// removeExit takes the exit file away, and one that a monitor was killed over: it writes under a longer name, and renames.
func (r *Runtime) removeExit(id string) error {
	entries, err := os.ReadDir(r.exitDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != id && !strings.HasPrefix(e.Name(), id+".") {
			continue
		}
		if err := os.Remove(filepath.Join(r.exitDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forget takes away the OCI runtime's record. With processes and cgroups gone that
// record, in a directory that is ours alone, is all that its own delete would
// remove, and starting it costs a tenth of a short container's whole life.
func (r *Runtime) forget(ctx context.Context, id string) error {
	record := filepath.Join(r.runtimeRoot(), id)
	if !exists(record) {
		return nil
	}
	if err := os.RemoveAll(record); err == nil {
		return nil
	}
	if err := r.oci.Delete(ctx, id, &runc.DeleteOpts{Force: true}); err != nil {
		return &RuntimeError{Message: tidy(err.Error())}
	}
	return nil
}

// endProcesses ends the container's processes, then its monitors. A monitor whose
// container is made ends by itself; one that is still making it is killed.
func (r *Runtime) endProcesses(ctx context.Context, id string) error {
	wait := time.Duration(0)
	if p, ok := r.initOf(id); ok {
		r.cgroups.thaw(r.group(id))
		err := p.signal(unix.SIGKILL)
		gone := err == nil && p.wait(ctx, killWait)
		p.close()
		if err != nil {
			return err
		}
		if !gone {
			return fmt.Errorf("process %d does not end", p.pid)
		}
		wait = monitorWait
	}
	for _, m := range r.monitorsOf(id) {
		err := m.signal(0)
		if !m.wait(ctx, wait) {
			err = m.signal(unix.SIGKILL)
			m.wait(ctx, killWait)
		}
		m.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// monitorsOf holds the container's monitors, those of exec processes included.
func (r *Runtime) monitorsOf(id string) []*proc {
	bundle := r.bundle(id)
	// Without its bundle a monitor may still live as long as the OCI runtime knows
	// the container; left alone it writes its exit file into the next one's life.
	if !exists(bundle) && !exists(filepath.Join(r.runtimeRoot(), id)) {
		return nil
	}
	var out []*proc
	complete := true
	dirs := append([]string{bundle}, r.execDirs(id)...)
	for _, dir := range dirs {
		if !exists(filepath.Join(dir, monPidFile)) {
			complete = false
		} else if m, ok := openProc(filepath.Join(dir, monPidFile), isMonitor(dir)); ok {
			out = append(out, m)
		}
	}
	if complete {
		return out
	}
	for pid, dir := range r.findMonitors() {
		if dir != bundle && !strings.HasPrefix(dir, bundle+"/") {
			continue
		}
		if m, ok := openPid(pid, isMonitor(dir)); ok {
			out = append(out, m)
		}
	}
	return out
}

// removeBundle never walks into a mounted root file system: what it deleted there
// would be gone from the writable layer.
func (r *Runtime) removeBundle(id string) error {
	bundle := r.bundle(id)
	mounts, err := mountsBelow(bundle)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unmount(m); err != nil {
			return err
		}
	}
	if err := os.Remove(r.rootfs(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mount point: %w", err)
	}
	return os.RemoveAll(bundle)
}

// mountsBelow lists the mount points under a directory, in the order of mounting.
func mountsBelow(dir string) ([]string, error) { return mountsOf(os.Getpid(), dir) }

// mountsOf lists those of a process, as it sees them.
func mountsOf(pid int, dir string) ([]string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		if at := unescapeMount(fields[4]); strings.HasPrefix(at, dir+"/") {
			out = append(out, at)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return out, nil
}

// unescapeMount undoes what mountinfo does to white space.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func firstElement(rel string) string {
	first, _, _ := strings.Cut(rel, "/")
	return first
}

// tidyParent takes our cgroups away when no container is in them. Nothing may be
// made in them at that moment.
func (r *Runtime) tidyParent() {
	if !r.creating.TryLock() {
		return
	}
	defer r.creating.Unlock()
	r.cgroups.removeIfEmpty(r.monitorGroup())
	r.cgroups.removeIfEmpty(r.cgroupParent)
}

// Reset removes every container, volume and directory of ours.
func (r *Runtime) Reset(ctx context.Context) error {
	ids, err := r.List(ctx)
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, r.Remove(ctx, id))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	r.tidyParent()
	for _, dir := range []string{r.runDir, r.stateDir, r.volumeDir} {
		errs = append(errs, os.RemoveAll(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return nil
}

// Leftovers describes everything of ours on this host, what belongs to known
// containers included: "kind path". After Reset there is nothing.
func (r *Runtime) Leftovers(context.Context) []string { return r.leftovers() }

// Leftovers is that of a runtime which New would give, where none may be made.
func Leftovers(opts Options) ([]string, error) {
	setDefaults(&opts)
	r := &Runtime{stateDir: opts.StateDir, runDir: opts.RunDir, volumeDir: opts.VolumeDir, cgroupParent: opts.CgroupParent}
	var err error
	if r.cgroups, err = readCgroups(); err != nil {
		return nil, fmt.Errorf("look for containers: %w", err)
	}
	return r.leftovers(), nil
}

func (r *Runtime) leftovers() []string {
	var out []string
	for _, dir := range []string{r.runDir, r.stateDir, r.runtimeRoot()} {
		ids, _ := listIDs(dir)
		for _, id := range ids {
			out = append(out, "directory "+filepath.Join(dir, id))
		}
	}
	exits, _ := os.ReadDir(r.exitDir())
	for _, e := range exits {
		out = append(out, "file "+filepath.Join(r.exitDir(), e.Name()))
	}
	mounts, _ := mountsBelow(r.runDir)
	for _, m := range mounts {
		out = append(out, "mount "+m)
	}
	for _, d := range r.cgroups.dirs(r.cgroupParent) {
		if exists(d) {
			out = append(out, "cgroup "+d)
		}
	}
	for _, name := range r.cgroups.children(r.cgroupParent) {
		out = append(out, "cgroup "+filepath.Join(r.cgroupParent, name))
	}
	for pid, dir := range r.findMonitors() {
		out = append(out, fmt.Sprintf("process %d conmon %s", pid, dir))
	}
	slices.Sort(out)
	return out
}
