package vm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Config is what a VM is started from.
type Config struct {
	Hardware  Hardware  `json:"hardware"`
	QEMU      string    `json:"qemu"`
	Virtiofsd Virtiofsd `json:"virtiofsd,omitzero"`
	ShareDir  string    `json:"shareDir,omitempty"`
	Disk      string    `json:"disk,omitempty"` // the file of its disk; "": it has none
	// User is who QEMU is, which needs no rights at all; 0: whoever we are.
	User uint32 `json:"user,omitempty"`
	// Groups it is in, for /dev/kvm.
	Groups []uint32 `json:"groups,omitempty"`
	// Patience is what is waited for the agent; zero: what fits the acceleration.
	Patience Patience `json:"patience,omitzero"`
	// Template is a directory to restore the VM from, which takes a fraction of a boot; "": it is booted.
	Template string `json:"template,omitempty"`
}

// nobody is the user that QEMU runs as.
const nobody = 65534

// Patience is how long a guest may be silent from its start. What it has computed says more than the time: on a busy machine an
// emulated one has been seen to take forty times its usual second, and one that spins would never come up. One that computes nothing
// at all is given up soon enough for another to be started within the time of a start.
type Patience struct {
	CPU  time.Duration `json:"cpu"`  // used by QEMU
	Time time.Duration `json:"time"` // by the clock
	Idle time.Duration `json:"idle"` // by the clock, without having computed; 0: as long as Time
}

// stirs is what a guest computes within its Idle that comes up, however small its share of the processors is.
const stirs = 100 * time.Millisecond

func (cfg Config) patience() Patience {
	switch {
	case cfg.Patience != Patience{}:
		return cfg.Patience
	case cfg.Hardware.Accel == AccelKVM, cfg.Hardware.Restore:
		return Patience{CPU: 5 * time.Second, Time: 30 * time.Second}
	}
	return Patience{CPU: 12 * time.Second, Time: 90 * time.Second, Idle: 30 * time.Second}
}

// errSilent ends a wait.
var errSilent = errors.New("the guest is silent")

// Machine is a VM that runs.
type Machine struct {
	Guest   *proto.Client
	QMP     *QMP
	Kernel  string // that the guest runs
	Spoiled error  // why its template is of no use
	qemu    *child
	share   *child
	console *tail
	memory  *os.File // the guest's
	closers []io.Closer
}

// Boot starts a VM and waits for its agent. One that does not answer is ended, and started once more: it has been seen to happen
// with no reason to be found. Nothing is left of one that could not be started. Where there is a template, the VM is restored from
// it; it is booted only if that comes to nothing.
func Boot(ctx context.Context, cfg Config) (*Machine, error) {
	if cfg.Template == "" {
		return bootTwice(ctx, cfg)
	}
	m, spoiled := restore(ctx, cfg)
	if spoiled == nil {
		return m, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start the VM: %w", spoiled)
	}
	m, err := bootTwice(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if !errors.Is(spoiled, errKilled) {
		m.Spoiled = spoiled
	}
	return m, nil
}

func bootTwice(ctx context.Context, cfg Config, more ...*os.File) (*Machine, error) {
	m, err := boot(ctx, cfg, more...)
	var silent *silentError
	if errors.As(err, &silent) && ctx.Err() == nil {
		first := err
		if m, err = boot(ctx, cfg, more...); err != nil {
			return nil, fmt.Errorf("start the VM: twice: %w (first: %w)", err, first)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start the VM: %w", err)
	}
	return m, nil
}

// silentError says that the agent did not answer.
type silentError struct {
	accel   string
	waited  time.Duration
	console string
	cause   error
}

func (e *silentError) Error() string {
	s := fmt.Sprintf("%s: the guest's agent was silent for %v", strings.ToUpper(e.accel), e.waited.Round(time.Second/10))
	if e.cause != nil {
		s = fmt.Sprintf("%s: the guest's agent did not come up: %v", strings.ToUpper(e.accel), e.cause)
	}
	if e.console != "" {
		s += "; last on its console: " + e.console
	}
	return s
}

// boot starts a VM whose kernel boots.
func boot(ctx context.Context, cfg Config, more ...*os.File) (_ *Machine, err error) {
	m := &Machine{console: &tail{}}
	defer m.closeOn(&err)
	if cfg.Hardware.Disk {
		disk, err := os.OpenFile(cfg.Disk, os.O_RDWR, 0) // QEMU may not
		if err != nil {
			return nil, fmt.Errorf("open the VM's disk: %w", err)
		}
		defer disk.Close()
		more = append([]*os.File{disk}, more...)
	}
	if cfg.Hardware.Share {
		share, err := m.startShare(ctx, cfg)
		if err != nil {
			return nil, err
		}
		defer share.Close()
		more = append([]*os.File{share}, more...)
	}
	wire, err := m.startQEMU(ctx, cfg, more...)
	if err != nil {
		return nil, err
	}
	if m.Guest, err = proto.NewClient(wire); err != nil {
		return nil, err
	}
	return m, m.greet(ctx, cfg)
}

// closeOn leaves nothing of a VM that could not be started.
func (m *Machine) closeOn(err *error) {
	if *err != nil {
		m.Close()
	}
}

// startQEMU starts it with files behind those that each has, and gives the line to the agent.
func (m *Machine) startQEMU(ctx context.Context, cfg Config, more ...*os.File) (agent *net.UnixConn, err error) {
	ours, theirs, err := socketPairs(3) // agent, QMP, console
	if err != nil {
		return nil, err
	}
	defer closeFiles(theirs)
	for _, c := range ours {
		m.closers = append(m.closers, c)
	}
	go m.console.fill(ours[2])
	if m.memory, err = newMemory(cfg.Hardware.Memory); err != nil {
		return nil, err
	}
	m.closers = append(m.closers, m.memory)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), cfg.QEMU, cfg.Hardware.Args()...)
	cmd.ExtraFiles = slices.Concat(theirs, []*os.File{m.memory}, more)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	if cfg.User != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: cfg.User, Gid: cfg.User, Groups: cfg.Groups}}
	}
	if m.qemu, err = start(cmd); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	m.QMP = NewQMP(ours[1])
	return ours[0], nil
}

// newMemory makes what a guest's memory is: a file that QEMU shares with virtiofsd, and with us, who fill it where the VM is restored.
func newMemory(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("guest memory", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the guest's memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	// QEMU, which is somebody else, opens it anew.
	if err := errors.Join(f.Chmod(0o666), f.Truncate(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("make the guest's memory: %w", err), f.Close())
	}
	return f, nil
}

// greet waits for the agent.
func (m *Machine) greet(ctx context.Context, cfg Config) error {
	seed := make([]byte, 64)
	_, _ = rand.Read(seed) // never fails
	began := time.Now()
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go m.watchdog(limited, cancel, cfg.patience())
	var w proto.Welcome
	err := m.Guest.Call(limited, proto.OpHello, proto.Hello{Version: proto.Version, Time: time.Now().UnixNano(), Entropy: seed}, &w)
	if err == nil && w.Version != proto.Version {
		return fmt.Errorf("the agent in the VM speaks version %d, this program %d: install bulkhead and bulkhead-agent of one release", w.Version, proto.Version)
	}
	if err == nil {
		m.Kernel = w.Kernel
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	waited := time.Since(began)
	ending := time.Duration(0)
	select {
	case <-m.Guest.Done(): // as QEMU ends
		ending = lostWait
	default:
	}
	silent := &silentError{accel: cfg.Hardware.Accel, waited: waited, console: m.console.lines(5)}
	select {
	case <-m.qemu.ended:
		silent.cause = errors.New(m.Why())
	case <-time.After(ending):
		if said, ok := errors.AsType[*proto.Error](err); ok {
			silent.cause = said
		}
	}
	return silent
}

// watchdog ends the wait for the agent when there is nothing to be expected any more.
func (m *Machine) watchdog(ctx context.Context, cancel context.CancelCauseFunc, p Patience) {
	end := time.NewTimer(p.Time)
	defer end.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	stirred, had := time.Now(), time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.qemu.ended:
		case <-end.C:
		case <-look.C:
			used := cpuTime(m.qemu.cmd.Process.Pid)
			if used-had >= stirs {
				stirred, had = time.Now(), used
			}
			if used < p.CPU && (p.Idle == 0 || time.Since(stirred) < p.Idle) {
				continue
			}
		}
		cancel(errSilent)
		return
	}
}

// cpuTime is what a process has used.
func cpuTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const user, system = 11, 12 // after the name
	if len(fields) <= system {
		return 0
	}
	var ticks int64
	for _, f := range []string{fields[user], fields[system]} {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ, which is 100 for every program
}

// startShare starts virtiofsd and connects with it. The connection is handed to QEMU, which may then be anybody.
func (m *Machine) startShare(ctx context.Context, cfg Config) (*os.File, error) {
	dir, err := os.MkdirTemp("", "share-")
	if err != nil {
		return nil, fmt.Errorf("share files with the VM: %w", err)
	}
	defer os.RemoveAll(dir)
	addr := &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		return nil, fmt.Errorf("share files with the VM: %w", err)
	}
	defer l.Close()
	listening, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("share files with the VM: %w", err)
	}
	defer listening.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), cfg.Virtiofsd.Path, cfg.Virtiofsd.Args(3, cfg.ShareDir)...)
	cmd.ExtraFiles = []*os.File{listening}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	if m.share, err = start(cmd); err != nil {
		return nil, fmt.Errorf("start virtiofsd: %w", err)
	}
	c, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return nil, fmt.Errorf("share files with the VM: %w", err)
	}
	defer c.Close()
	return c.File()
}

// Ended is closed when QEMU has ended.
func (m *Machine) Ended() <-chan struct{} { return m.qemu.ended }

// Why says how QEMU ended, with what the guest said last.
func (m *Machine) Why() string {
	s := "QEMU ended: " + m.qemu.why()
	if m.share != nil {
		select {
		case <-m.share.ended:
			if m.share.err != nil { // else it has ended since QEMU has, and says nothing of use
				s += "; virtiofsd ended: " + m.share.why()
			}
		default:
		}
	}
	if c := m.console.lines(3); c != "" {
		s += "; last on the guest's console: " + c
	}
	return s
}

// ShareEnded is closed when virtiofsd has ended; nil without it.
func (m *Machine) ShareEnded() <-chan struct{} {
	if m.share == nil {
		return nil
	}
	return m.share.ended
}

// Close ends all of it and waits.
func (m *Machine) Close() {
	for _, c := range []*child{m.qemu, m.share} {
		if c != nil {
			c.kill()
		}
	}
	if m.Guest != nil {
		_ = m.Guest.Close()
	}
	if m.QMP != nil {
		_ = m.QMP.Close()
	}
	for _, c := range m.closers {
		_ = c.Close()
	}
}

// child is a process that ends with us.
type child struct {
	cmd    *exec.Cmd
	stderr *tail
	ended  chan struct{}
	err    error
}

// start starts a process that the kernel kills when we end. It does so when the thread ends that has started it, so that thread waits.
func start(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, stderr: &tail{}, ended: make(chan struct{})}
	cmd.Stderr = c.stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.WaitDelay = 2 * time.Second // its stderr may be open in a process that it has made
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	cmd.SysProcAttr.Setpgid = true // a terminal's signals are for the guest
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		c.err = cmd.Wait()
		close(c.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

func (c *child) why() string {
	s := "normally"
	if c.err != nil {
		s = c.err.Error()
	}
	if said := c.stderr.lines(3); said != "" {
		s += ": " + said
	}
	return s
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailSize):]...)
	if len(t.buf) > tailSize {
		t.buf = append([]byte(nil), t.buf[len(t.buf)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) fill(r io.Reader) { _, _ = io.Copy(t, r) }

// lines gives the last lines, joined, with nothing in them that a terminal would obey.
func (t *tail) lines(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for line := range bytes.Lines(t.buf) {
		text := strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r >= 0x7f {
				return -1
			}
			return r
		}, string(line)))
		if text != "" {
			out = append(out, text[:min(len(text), 200)])
		}
	}
	return strings.Join(out[max(0, len(out)-n):], " | ")
}

// socketPairs makes connected sockets: our ends, and those of a process to be started.
func socketPairs(n int) (ours []*net.UnixConn, theirs []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, c := range ours {
				_ = c.Close()
			}
			closeFiles(theirs)
		}
	}()
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return ours, theirs, fmt.Errorf("make sockets: %w", err)
		}
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), "socket"))
		f := os.NewFile(uintptr(fds[0]), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			return ours, theirs, fmt.Errorf("make sockets: %w", err)
		}
		ours = append(ours, c.(*net.UnixConn))
	}
	return ours, theirs, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
