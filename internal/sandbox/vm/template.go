package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// A template is a VM that has booted and was saved before it had anything of a container: no share, no NIC, no time, no entropy that
// counts. A VM that is restored from it is there in a fraction of a boot, takes the host's time and entropy with the first request,
// and gets its share and its NICs plugged in. Whatever the saved VM depends on is part of the template's name.

// templatePrefix begins the names of templates, beside the kernel that they run.
const templatePrefix = "template-"

// unfinished ends the name of one that is being made, or was when the daemon died.
const unfinished = ".new"

// settle is how long after the first VM of a kind its template is made: until then the processors are busy with that VM.
const settle = 3 * time.Second

// savePatience is how long saving may take.
const savePatience = 2 * time.Minute

// What a template is made of, in a directory.
const (
	memoryFile = "memory" // with holes where the guest has nothing
	stateFile  = "state"  // of all else
)

// restore starts a VM from its template.
func restore(ctx context.Context, cfg Config) (_ *Machine, err error) {
	m := &Machine{console: &tail{}}
	defer m.closeOn(&err)
	defer func() {
		if err != nil && m.wasKilled() {
			err = fmt.Errorf("%w: %w", errKilled, err)
		}
	}()
	state, err := os.Open(filepath.Join(cfg.Template, stateFile))
	if err != nil {
		return nil, fmt.Errorf("restore the VM: %w", err)
	}
	defer state.Close()
	shared := cfg.Hardware.Share
	cfg.Hardware.Share, cfg.Hardware.Restore = false, true
	wire, err := m.startQEMU(ctx, cfg, state)
	if err != nil {
		return nil, fmt.Errorf("restore the VM: %w", err)
	}
	// While QEMU makes the VM's devices.
	var share *os.File
	if shared {
		if share, err = m.startShare(ctx, cfg); err != nil {
			return nil, fmt.Errorf("restore the VM: %w", err)
		}
		defer share.Close()
	}
	if err := m.load(ctx, cfg); err != nil {
		return nil, fmt.Errorf("restore the VM: %w", err)
	}
	if err := proto.Again(wire); err != nil {
		return nil, fmt.Errorf("restore the VM: %w", err)
	}
	if m.Guest, err = proto.NewClient(wire); err != nil {
		return nil, fmt.Errorf("restore the VM: %w", err)
	}
	if err := m.greet(ctx, cfg); err != nil {
		return nil, fmt.Errorf("restore the VM: %w", err)
	}
	if share != nil {
		if err := m.plugShare(ctx, share); err != nil {
			return nil, fmt.Errorf("restore the VM: %w", err)
		}
	}
	return m, nil
}

// errKilled says that it was no fault of the template that a VM could not be restored: somebody has killed what was to do it.
var errKilled = errors.New("QEMU or virtiofsd was killed")

// wasKilled tells whether a signal has ended either, of others than us.
func (m *Machine) wasKilled() bool {
	for _, c := range []*child{m.qemu, m.share} {
		if c == nil {
			continue
		}
		select {
		case <-c.ended:
			if exit, ok := errors.AsType[*exec.ExitError](c.err); ok && exit.ExitCode() < 0 { // as of a process that a signal has ended
				return true
			}
		case <-time.After(killedWait):
		}
	}
	return false
}

// killedWait is how long a process may take to be seen to have ended, whose connections have.
const killedWait = 200 * time.Millisecond

// load gives a VM that waits for it what was saved.
func (m *Machine) load(ctx context.Context, cfg Config) error {
	memory, err := os.Open(filepath.Join(cfg.Template, memoryFile))
	if err != nil {
		return err
	}
	defer memory.Close()
	st, err := memory.Stat()
	if err != nil {
		return err
	}
	if st.Size() != cfg.Hardware.Memory {
		return fmt.Errorf("the memory that was saved is of %d bytes, and not of %d", st.Size(), cfg.Hardware.Memory)
	}
	if err := copyData(m.memory, memory); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loadPatience, fmt.Errorf("it takes longer than %v", loadPatience))
	defer cancel()
	if err := m.leaveMemory(ctx); err != nil {
		return err
	}
	return m.QMP.Do(ctx, "migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", fdState)}, nil)
}

// loadPatience is how long QEMU may take to be ready to load what was saved.
const loadPatience = 30 * time.Second

// leaveMemory has QEMU save and load all but the guest's memory, which is ours to copy: QEMU would touch every page of it.
func (m *Machine) leaveMemory(ctx context.Context) error {
	return m.QMP.Do(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}},
	}, nil)
}

// copyData copies what is in a file to the same places of another, which has nothing there yet.
func copyData(to, from *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	in, out := int(from.Fd()), int(to.Fd())
	for at := int64(0); at < st.Size(); {
		at, err = unix.Seek(in, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			return fmt.Errorf("copy the guest's memory: %w", err)
		}
		end, err := unix.Seek(in, at, unix.SEEK_HOLE)
		if err == nil {
			_, err = unix.Seek(out, at, unix.SEEK_SET)
		}
		if err != nil {
			return fmt.Errorf("copy the guest's memory: %w", err)
		}
		for at < end {
			n, err := unix.Sendfile(out, in, &at, int(end-at))
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("copy the guest's memory: %w", err)
			}
		}
	}
	return nil
}

// copyPages copies the pages of a guest's memory that have something in them.
func copyPages(to, from *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	const page = 4096
	var nothing [page]byte
	buf := make([]byte, 256*page)
	for at := int64(0); at < st.Size(); {
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("copy the guest's memory: %w", err)
		}
		at = data &^ (page - 1)
		n, err := from.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("copy the guest's memory: %w", err)
		}
		for i := 0; i < n; i += page {
			p := buf[i:min(i+page, n)]
			if bytes.Equal(p, nothing[:len(p)]) {
				continue
			}
			if _, err := to.WriteAt(p, at+int64(i)); err != nil {
				return fmt.Errorf("copy the guest's memory: %w", err)
			}
		}
		at += int64(n)
	}
	return nil
}

// plugShare gives a VM that runs its share.
func (m *Machine) plugShare(ctx context.Context, conn *os.File) error {
	const id = "share"
	if err := m.QMP.SendFile(ctx, id, int(conn.Fd())); err != nil {
		return err
	}
	chardev := map[string]any{"id": id, "backend": map[string]any{"type": "socket", "data": map[string]any{
		"addr": map[string]any{"type": "fd", "data": map[string]any{"str": id}}, "server": false,
	}}}
	if err := m.QMP.Do(ctx, "chardev-add", chardev, nil); err != nil {
		return err
	}
	return m.QMP.Do(ctx, "device_add", map[string]any{
		"driver": "vhost-user-fs-pci", "id": "device-" + id, "chardev": id, "tag": shareTag, "bus": fmt.Sprintf("slot%d", shareSlot),
	}, nil)
}

// Save boots a VM without a share and writes it to a directory, which is whole or is not there.
func Save(ctx context.Context, cfg Config, dir string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, savePatience, fmt.Errorf("it takes longer than %v", savePatience))
	defer cancel()
	cfg.Hardware.Share, cfg.Template = false, ""
	tmp := dir + unfinished
	defer func() {
		if err == nil {
			err = os.Rename(tmp, dir)
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("save a VM as a template: %w", err), os.RemoveAll(tmp))
		}
	}()
	if err := os.RemoveAll(tmp); err != nil { // one that was cut short
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	// QEMU, which is somebody else, may not be allowed to go where they are.
	kernel, err := os.Open(cfg.Hardware.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := os.Open(cfg.Hardware.Initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	cfg.Hardware.Kernel, cfg.Hardware.Initrd = fmt.Sprintf("/proc/self/fd/%d", fdShare), fmt.Sprintf("/proc/self/fd/%d", fdShare+1)
	m, err := bootTwice(ctx, cfg, kernel, initrd)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Guest.Call(ctx, proto.OpRest, nil, nil); err != nil {
		return err
	}
	if err := writeTo(filepath.Join(tmp, stateFile), func(f *os.File) error { return m.saveState(ctx, f) }); err != nil {
		return err
	}
	return writeTo(filepath.Join(tmp, memoryFile), func(f *os.File) error { return copyPages(f, m.memory) })
}

func writeTo(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// saveState has QEMU write all of the VM but its memory, and stops the VM with that.
func (m *Machine) saveState(ctx context.Context, f *os.File) error {
	const name = "template"
	if err := m.QMP.SendFile(ctx, name, int(f.Fd())); err != nil {
		return err
	}
	if err := m.leaveMemory(ctx); err != nil {
		return err
	}
	if err := m.QMP.Do(ctx, "migrate", map[string]any{"uri": "fd:" + name}, nil); err != nil {
		return err
	}
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		var state struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := m.QMP.Do(ctx, "query-migrate", nil, &state); err != nil {
			return err
		}
		switch state.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("QEMU does not save it: %s: %.500s", state.Status, state.Error)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
		}
	}
}

// templates makes them in the background, one at a time, and keeps the few that were used last.
type templates struct {
	host *Host
	most int
	wait time.Duration

	ctx    context.Context //nolint:containedctx // of the daemon's life: no request waits for a template
	cancel context.CancelFunc
	wg     sync.WaitGroup
	one    sync.Mutex // a boot takes a processor
	mu     sync.Mutex
	begun  map[string]bool
	failed map[string]int // how often one was made or used in vain
}

// enough is how often a template may fail before VMs of its kind are booted for as long as the daemon runs.
const enough = 2

func newTemplates(h *Host, most int) *templates {
	ctx, cancel := context.WithCancel(context.Background())
	return &templates{host: h, most: most, wait: settle, ctx: ctx, cancel: cancel, begun: map[string]bool{}, failed: map[string]int{}}
}

// close ends what is being made.
func (t *templates) close() {
	t.mu.Lock()
	t.cancel()
	t.mu.Unlock()
	t.wg.Wait()
}

// of gives the name of the template of a VM if it is there, and has it made for the next one if it is not.
func (t *templates) of(cfg Config, files Files) string {
	if t.most <= 0 {
		return ""
	}
	cfg.Hardware.Kernel, cfg.Hardware.Initrd = files.Kernel, files.Initrd
	name, err := templateName(cfg)
	if err != nil {
		t.host.log.Warn("no template for VMs", "error", err)
		return ""
	}
	path := filepath.Join(filepath.Dir(files.Kernel), name)
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil { // when it was used last
		return name
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun[path] || t.failed[path] >= enough || t.ctx.Err() != nil {
		return ""
	}
	t.begun[path] = true
	t.wg.Go(func() { t.make(cfg, path) })
	return ""
}

func (t *templates) make(cfg Config, path string) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.begun, path)
	}()
	select {
	case <-t.ctx.Done():
		return
	case <-time.After(t.wait):
	}
	t.one.Lock()
	defer t.one.Unlock()
	if err := Save(t.ctx, cfg, path); err != nil {
		if t.ctx.Err() == nil {
			t.fault(path, err.Error())
		}
		return
	}
	t.prune(path)
}

// fault counts one that was made or used in vain.
func (t *templates) fault(path, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed[path]++
	if t.failed[path] < enough {
		t.host.log.Warn("a template of VMs is of no use, and is made once more", "reason", reason)
	} else {
		t.host.log.Warn("a template of VMs is of no use: such VMs are booted until the daemon starts anew", "reason", reason)
	}
}

// prune removes those that were not used for the longest time. A VM that is being restored from one has it open.
func (t *templates) prune(keep string) {
	all := t.all()
	used := map[string]time.Time{}
	for _, path := range all {
		if st, err := os.Stat(path); err == nil {
			used[path] = st.ModTime()
		}
	}
	all = slices.DeleteFunc(all, func(path string) bool { return path == keep })
	slices.SortFunc(all, func(a, b string) int { return used[b].Compare(used[a]) })
	for _, path := range all[min(len(all), t.most-1):] {
		if err := os.RemoveAll(path); err != nil {
			t.host.log.Warn("remove a template of VMs", "error", err)
		}
	}
}

// ready counts those that VMs can be restored from.
func (t *templates) ready() (n int) {
	for _, path := range t.all() {
		if !strings.HasSuffix(path, unfinished) {
			n++
		}
	}
	return n
}

// all are those that are there, the unfinished ones, too.
func (t *templates) all() []string {
	all, err := filepath.Glob(filepath.Join(t.host.opt.Dir, "*", templatePrefix+"*"))
	if err != nil {
		return nil // a pattern of ours
	}
	return all
}

// templateName is that of a VM's template: it is another where QEMU, the VM or the run of this host is another. The kernel and the
// initial file system are those that it is beside.
func templateName(cfg Config) (string, error) {
	st, err := os.Stat(cfg.QEMU)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // the processor may be another after it
	if err != nil {
		return "", err
	}
	hw := cfg.Hardware
	hw.Share, hw.Kernel, hw.Initrd = false, "", ""
	h := sha256.New()
	fmt.Fprintln(h, cfg.QEMU, st.Size(), st.ModTime().UnixNano(), string(boot), proto.Version, runtime.GOARCH, strings.Join(hw.Args(), " "))
	return templatePrefix + hex.EncodeToString(h.Sum(nil))[:16], nil
}

// Spoiled takes away a template that a VM could not be restored from.
func (h *Host) Spoiled(files, name, reason string) {
	if filepath.Base(name) != name || !strings.HasPrefix(name, templatePrefix) {
		return // no name of ours: whoever has taken a shim may have said it
	}
	path := filepath.Join(files, name)
	h.templates.fault(path, reason)
	if err := os.RemoveAll(path); err != nil {
		h.log.Warn("remove a template of VMs", "error", err)
	}
}
