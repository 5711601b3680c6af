// Package testhost makes throwaway "hosts" for tests, and the cables between them.
//
//	 one test process, root
//	┌───────────────────────────────────────────────────────────────────────────────────┐
//	│ New(t) "a"                         Switch(t)                 New(t) "b"           │
//	│ ┌────────────────────────────┐    ┌──────────────┐    ┌────────────────────────┐  │
//	│ │ own net, mount, PID, UTS,  │    │ Linux bridge │    │                        │  │
//	│ │ IPC namespaces             │    │ in its own   │    │                        │  │
//	│ │   eth0 ────────────── Plug ┼────┤ namespace    ├────┼ eth0                   │  │
//	│ │   eth1 ─────────────────── Connect (veth) ──────────┼ eth1                   │  │
//	│ │                            │    └──────────────┘    │                        │  │
//	│ │ ┌ Namespace / NewNamespace │                        │ fresh: /run /proc /sys │  │
//	│ │ │ /run/netns/hns-… (a      │                        │ /sys/fs/bpf /etc       │  │
//	│ │ │ compartment, seen as a   │                        │ /var/lib               │  │
//	│ │ │ *Host of its own)        │                        │ shared: /tmp, the rest │  │
//	│ └─┴──────────────────────────┘                        └────────────────────────┘  │
//	└───────────────────────────────────────────────────────────────────────────────────┘
//
// A host is held by one small shell, which is PID 1 of the host's PID namespace and reaps orphans. Killing it kills
// everything in the host: daemons, monitors, containers. It also dies when the test process does, because its standard
// input then closes; so neither a crash nor a timeout leaves anything behind.
//
// Work gets into a host in two ways. Command starts a process there, as a direct child of the test: its PID and its
// signals are real, unlike those of an nsenter in between. Do and DoMount run a function of the test on a thread that
// has entered the host and is thrown away afterwards, for code that talks to the kernel in-process.
package testhost

import (
	"bufio"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// setupScript is what PID 1 of a host runs: it lays out the mounts, says "ready", and waits for the test to end.
//
//go:embed setup.sh
var setupScript string

// Host is a throwaway host, or (from Namespace and NewNamespace) a network namespace of one.
type Host struct {
	t      testing.TB
	name   string
	id     string
	init   *exec.Cmd
	pidfd  int
	netns  *os.File
	handle *netlink.Handle
	// path is where the namespace is bound, empty for the host's own.
	path string
	// box is shared by a host and the namespaces within it.
	box *box
	// before is what the real machine showed of ours when the host was made.
	before map[string]bool
}

// box holds the processes of a host, so that teardown can collect those that the test did not wait for: a PID
// namespace does not go away before each process that was started from outside is reaped.
type box struct {
	mu   sync.Mutex
	cmds []*Cmd
}

// Option changes how New makes a host.
type Option func(*Host)

// WithName sets the host name, by which it also appears in failures. The default is host-<random>.
func WithName(name string) Option { return func(h *Host) { h.name = name } }

// RequireRoot skips the test without root, or fails it where REQUIRE_ROOT=1 promises that root is there. It also skips
// under -short, by which "make test-unit" leaves privileged tests out when root runs it.
func RequireRoot(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root, which -short leaves out")
	}
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal("needs root, and REQUIRE_ROOT=1 forbids to skip: run it with sudo")
	}
	t.Skip("needs root: run it with sudo, or make test-root")
}

// New makes a host that lives until the test ends. Then it is torn down, and the test fails if anything outlives it.
func New(t testing.TB, opts ...Option) *Host {
	t.Helper()
	RequireRoot(t)
	id := make([]byte, 4)
	rand.Read(id)
	h := &Host{t: t, id: hex.EncodeToString(id), pidfd: -1, box: &box{}, before: ours()}
	h.name = "host-" + h.id
	for _, o := range opts {
		o(h)
	}
	if err := h.start(); err != nil {
		t.Fatalf("make test host %s: %v", h.name, err)
	}
	return h
}

func (h *Host) start() error {
	cmd := exec.CommandContext(context.WithoutCancel(h.t.Context()), "bash", "-c", setupScript, "testhost-init")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		// A session of its own keeps a Ctrl-C meant for the test from the host's init.
		Setsid: true,
		PidFD:  &h.pidfd,
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// The write end stays open as long as the test process: see the package comment.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start its init: %w", err)
	}
	h.init = cmd
	h.t.Cleanup(h.teardown)
	if h.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)); err != nil {
		return err
	}
	<-onDoomedThread(func() {
		if err = h.enter(); err == nil {
			err = setUp(h.name)
		}
	})
	if err == nil {
		_, err = stdin.Write([]byte("\n"))
	}
	if err != nil {
		return fmt.Errorf("set up its mounts: %w", err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("set up its mounts: %q, %w: %s", line, err, stderr.String())
	}
	return h.openHandle()
}

// openHandle binds a netlink handle to the namespace and sets its loopback up.
func (h *Host) openHandle() error {
	var err error
	h.handle, err = netlink.NewHandleAt(netns.NsHandle(h.netns.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink in it: %w", err)
	}
	lo, err := h.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find its loopback: %w", err)
	}
	if err := h.handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set its loopback up: %w", err)
	}
	return nil
}

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// PID is the host's init as the test process sees it. It has all the host's namespaces.
func (h *Host) PID() int { return h.init.Process.Pid }

// NetnsPath is a path of the host's network namespace that is valid in the test process, outside the host.
func (h *Host) NetnsPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.netns.Fd()) }

// Path is where a namespace made by NewNamespace or Namespace is bound inside the host; empty for the host itself.
func (h *Host) Path() string { return h.path }

// Netlink is a handle bound to the host's network namespace. It is closed when the test ends.
func (h *Host) Netlink() *netlink.Handle { return h.handle }

// CgroupParent is the absolute cgroup path, private to this host, below which everything it starts belongs. It is
// removed from every hierarchy at teardown. The code under test creates it.
func (h *Host) CgroupParent() string { return "/bulkhead-test-" + h.id }

// Nsenter is the command line prefix that enters the host from a shell script. A signal to the nsenter does not reach
// what it started: Command has no such gap.
func (h *Host) Nsenter() []string {
	return []string{"nsenter", "-t", fmt.Sprint(h.PID()), "-m", "-u", "-i", "-p", "--net=" + h.NetnsPath()}
}

// WriteFile writes a file as the host sees it. /etc, /run and /var/lib are the host's own.
func (h *Host) WriteFile(path, content string) {
	h.t.Helper()
	var err error
	h.DoMount(func() {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
	})
	if err != nil {
		h.t.Fatalf("%s: write %s: %v", h.name, path, err)
	}
}

// ReadFile reads a file as the host sees it.
func (h *Host) ReadFile(path string) (string, error) {
	var data []byte
	var err error
	h.DoMount(func() { data, err = os.ReadFile(path) })
	return string(data), err
}

// Namespace gives a network namespace of the host, bound at path (as the host sees it), the methods of a host. It
// holds the namespace open, also when path is deleted, until the test ends or Close is called.
func (h *Host) Namespace(path string) *Host {
	h.t.Helper()
	var f *os.File
	var err error
	h.DoMount(func() { f, err = os.Open(path) })
	if err != nil {
		h.t.Fatalf("%s: enter namespace: %v", h.name, err)
	}
	n := &Host{
		t: h.t, id: h.id, init: h.init, pidfd: h.pidfd, box: h.box,
		name: h.name + ":" + filepath.Base(path), path: path, netns: f,
	}
	n.t.Cleanup(n.Close)
	if err := n.openHandle(); err != nil {
		h.t.Fatalf("%s: %v", n.name, err)
	}
	return n
}

// NewNamespace makes a network namespace bound at /run/netns/<name> in the host.
func (h *Host) NewNamespace(name string) *Host {
	h.t.Helper()
	path := filepath.Join("/run/netns", name)
	var err error
	h.DoMount(func() { err = bindNewNetns(path) })
	if err != nil {
		h.t.Fatalf("%s: make namespace %s: %v", h.name, name, err)
	}
	return h.Namespace(path)
}

// bindNewNetns runs on a thread that is thrown away, so it need not find its way back.
func bindNewNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
}

// Close lets go of a namespace. A host of New needs no Close.
func (h *Host) Close() {
	if h.path == "" || h.netns == nil {
		return
	}
	if h.handle != nil {
		h.handle.Close()
	}
	h.netns.Close()
	h.netns = nil
}

// Do runs fn on a thread inside the host's network namespace; sockets that fn opens stay there. Mounts and paths remain
// those of the test process. Goroutines that fn starts are not in the namespace. t.Fatal works inside fn.
func (h *Host) Do(fn func()) {
	h.onThread(func() error { return unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET) }, fn)
}

// DoMount is Do inside the host's mount namespace too: /run, /run/netns, /sys/fs/bpf, /etc and /var/lib are the host's,
// and what fn mounts and pins shows there. /proc is one in which the calling thread can find itself, so that
// /proc/self and /proc/thread-self work, but process numbers are those of the test process.
func (h *Host) DoMount(fn func()) { h.onThread(h.enterMounts, fn) }

// enter moves a thread into the host's namespaces.
func (h *Host) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	if err := unix.Setns(h.pidfd, unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("setns mount: %w", err)
	}
	if err := unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns net: %w", err)
	}
	return nil
}

func (h *Host) enterMounts() error {
	if err := h.enter(); err != nil {
		return err
	}
	// The thread is not in the host's PID namespace, so the host's /proc has no /proc/self for it. Give it another one
	// in a copy of the mount namespace; all other mounts go on propagating both ways, as "/" is shared in a host.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/proc", "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make /proc private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// onThread runs enter and then fn on a thread of their own, which dies afterwards: no way back can fail.
func (h *Host) onThread(enter func() error, fn func()) {
	h.t.Helper()
	var err error
	returned := false
	<-onDoomedThread(func() {
		if err = enter(); err == nil {
			fn()
		}
		returned = true
	})
	switch {
	case err != nil:
		h.t.Fatalf("%s: enter: %v", h.name, err)
	case !returned:
		// fn called t.FailNow or t.SkipNow, which ended its goroutine; end the caller's as well.
		runtime.Goexit()
	}
}

// onDoomedThread runs fn on a locked thread that ends with it, and closes the channel then. The process's first thread
// is spared: it cannot end, so it would stay in the namespace for ever, and /proc/self shows that thread's view.
func onDoomedThread(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine occupies the first thread, another one cannot get it.
			<-onDoomedThread(fn)
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	return done
}

// teardown kills the host and checks that nothing of it is left on the machine.
func (h *Host) teardown() {
	h.t.Helper()
	nspath := fmt.Sprintf("/proc/%d/ns/pid_for_children", h.PID())
	pidns, err := os.Readlink(nspath)
	if err != nil {
		h.t.Errorf("%s: its init is gone before the test ended: %v", h.name, err)
	}
	// While it is open, its number is not given to the next test's host, which would be taken for what is left of this.
	if held, err := os.Open(nspath); err == nil {
		defer held.Close()
	}
	_ = h.init.Process.Kill()
	dead := make(chan struct{})
	go func() {
		h.box.collect()
		_ = h.init.Wait() // "signal: killed", as meant
		close(dead)
	}()
	select {
	case <-dead:
	case <-time.After(30 * time.Second):
		h.t.Errorf("%s: still alive 30 s after kill", h.name)
	}
	if h.handle != nil {
		h.handle.Close()
	}
	if h.netns != nil {
		h.netns.Close()
	}
	if h.pidfd >= 0 {
		unix.Close(h.pidfd)
	}
	for _, problem := range h.leftBehind(pidns) {
		h.t.Errorf("%s: left behind after teardown: %s", h.name, problem)
	}
}
