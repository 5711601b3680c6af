package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ContainerHost is what the first process of a host of containers does: it runs a daemon for as long as the container lives.
type ContainerHost struct {
	Daemon []string // the program and its arguments
	Halt   []string // what ends all containers, before the daemon is ended
	Env    []string
	Log    *slog.Logger
	cgroup string // "": where every container has it
	reaper *reaper
}

// The time that the daemon gets to end, and what is waited before one that ended is started again: more each time, unless it ran for
// a while.
const (
	daemonWait = 20 * time.Second
	firstWait  = time.Second
	longestRun = time.Minute
)

// Run returns when it was told to end, with the daemon ended. A process that is not the first of its kind would take over nobody's
// orphans, so it refuses.
func (h *ContainerHost) Run(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("this is the first process of a host of containers, which `bulkhead host create` makes; there is nothing to start by hand")
	}
	if h.cgroup == "" {
		h.cgroup = "/sys/fs/cgroup"
	}
	if err := delegate(h.cgroup); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	h.reaper = newReaper()
	go h.reaper.run()
	return h.keep(ctx)
}

// delegate makes room for the groups of containers: none may have both processes and groups with limits below it.
func delegate(root string) error {
	own := filepath.Join(root, "init")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return fmt.Errorf("make a control group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("1"), 0); err != nil {
		return fmt.Errorf("move to a control group: %w", err)
	}
	all, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the controllers of control groups: %w", err)
	}
	for name := range strings.FieldsSeq(string(all)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+name), 0); err != nil {
			return fmt.Errorf("hand down the controller %s: %w", name, err)
		}
	}
	return nil
}

// start starts a program with our own streams, and tells its end.
func (h *ContainerHost) start(args []string) (pid int, ends <-chan unix.WaitStatus, err error) {
	ends, err = h.reaper.start(func() (int, error) {
		pid, err = syscall.ForkExec(args[0], args, &syscall.ProcAttr{Dir: "/", Env: h.Env, Files: []uintptr{0, 1, 2}})
		return pid, err
	})
	if err != nil {
		err = fmt.Errorf("start %s: %w", args[0], err)
	}
	return pid, ends, err
}

// keep starts the daemon again whenever it ends.
func (h *ContainerHost) keep(ctx context.Context) error {
	for wait := firstWait; ; wait = min(2*wait, longestRun) {
		began := time.Now()
		pid, ends, err := h.start(h.Daemon)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return h.end(pid, ends)
		case st := <-ends:
			h.Log.Error("the daemon ended, and is started again", "status", st.ExitStatus(), "signal", int(st.Signal()), "in", wait)
		}
		if time.Since(began) > longestRun {
			wait = firstWait
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// end ends the containers, as a host's shutdown does, and the daemon.
func (h *ContainerHost) end(pid int, ends <-chan unix.WaitStatus) error {
	if _, halted, err := h.start(h.Halt); err != nil {
		h.Log.Error("the containers are not asked to end", "error", err)
	} else {
		<-halted
	}
	_ = unix.Kill(pid, unix.SIGTERM)
	select {
	case <-ends:
	case <-time.After(daemonWait):
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return nil
}
