package testhost

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandTimeout bounds Run and MustFail, so that a hung command names itself instead of the test timing out.
const commandTimeout = 60 * time.Second

// Cmd is an exec.Cmd whose process starts inside a host. Use its own Start, Run, Output, CombinedOutput and Wait; the
// rest (Env, Dir, pipes, Process) is that of the embedded Cmd. Process is the program itself: signals reach it, and
// its PID is valid in the test process.
type Cmd struct {
	*exec.Cmd
	h    *Host
	once sync.Once
	err  error
}

// Command prepares a program to run in the host. It is killed when ctx ends, and at the latest with the host. The working
// directory is the test's; paths that the host has of its own (see the package comment) are the host's.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), h: h}
	c.Dir, _ = os.Getwd()
	return c
}

// Start starts the program. The child inherits the namespaces of the thread that starts it.
func (c *Cmd) Start() error {
	var err error
	c.h.onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare fs: %w", err)
		}
		all := unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		if err := unix.Setns(c.h.pidfd, all); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return unix.Setns(int(c.h.netns.Fd()), unix.CLONE_NEWNET)
	}, func() { err = c.Cmd.Start() })
	if err == nil {
		c.h.box.add(c)
	}
	return err
}

// Wait waits for the program to end. It may be called several times, and by several goroutines.
func (c *Cmd) Wait() error {
	c.once.Do(func() {
		c.err = c.Cmd.Wait()
		c.h.box.remove(c)
	})
	return c.err
}

// Run starts the program and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns what it wrote to standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the program and returns what it wrote to standard output and standard error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Kill sends SIGKILL and waits until the program is gone.
func (c *Cmd) Kill() {
	_ = c.Process.Kill()
	_ = c.Wait()
}

func (b *box) add(c *Cmd) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cmds = append(b.cmds, c)
}

func (b *box) remove(c *Cmd) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, x := range b.cmds {
		if x == c {
			b.cmds = append(b.cmds[:i], b.cmds[i+1:]...)
			return
		}
	}
}

// collect waits for all programs that nobody has waited for.
func (b *box) collect() {
	b.mu.Lock()
	cmds := append([]*Cmd(nil), b.cmds...)
	b.mu.Unlock()
	for _, c := range cmds {
		_ = c.Wait()
	}
}

// Run runs a program in the host and returns its standard output without the last newline. It must succeed.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, errOut, err := h.run(t, name, args)
	if err != nil {
		t.Fatalf("%s: %s %s: %v\n%s%s", h.name, name, strings.Join(args, " "), err, out, errOut)
	}
	return out
}

// MustFail runs a program that must exit with an error, and returns its output and error output.
func (h *Host) MustFail(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, errOut, err := h.run(t, name, args)
	if err == nil {
		t.Fatalf("%s: %s %s: succeeded, want an error\n%s%s", h.name, name, strings.Join(args, " "), out, errOut)
	}
	return out + errOut
}

func (h *Host) run(t testing.TB, name string, args []string) (string, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), commandTimeout)
	defer cancel()
	c := h.Command(ctx, name, args...)
	var out, errOut strings.Builder
	c.Stdout, c.Stderr = &out, &errOut
	// A daemon that the program leaves behind holds its output; do not wait for it.
	c.WaitDelay = time.Second
	err := c.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no end after %s: %w", commandTimeout, err)
	}
	return strings.TrimSuffix(out.String(), "\n"), errOut.String(), err
}
