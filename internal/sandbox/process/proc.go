package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A pid is a name that gets reused, so a process is held by a pidfd, and looked at
// after it is held: what we then see is what we would signal.
type proc struct {
	pid int
	fd  int
}

// openProc holds the process that a pid file names, if it is still the one meant.
func openProc(pidFile string, ours func(pid int) bool) (*proc, bool) {
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil || pid <= 1 {
		return nil, false
	}
	return openPid(pid, ours)
}

func openPid(pid int, ours func(pid int) bool) (*proc, bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false
	}
	p := &proc{pid: pid, fd: fd}
	if p.exited() || !ours(pid) {
		p.close()
		return nil, false
	}
	return p, true
}

func (p *proc) close() { _ = unix.Close(p.fd) }

func (p *proc) signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

func (p *proc) exited() bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
	return n == 1
}

// wait waits for the end of the process.
func (p *proc) wait(ctx context.Context, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for ctx.Err() == nil {
		left := time.Until(deadline)
		if left <= 0 {
			return p.exited()
		}
		// Short rounds notice the context.
		ms := min(int(left.Milliseconds())+1, 100)
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, ms); n == 1 {
			return true
		}
	}
	return p.exited()
}

// isMonitor tells whether a process is the conmon of a bundle: its command line
// names it, and nobody else's does.
func isMonitor(bundle string) func(int) bool {
	return func(pid int) bool {
		args := cmdline(pid)
		return len(args) > 0 && strings.Contains(filepath.Base(args[0]), "conmon") && hasOption(args, "-b", bundle)
	}
}

func hasOption(args []string, name, value string) bool {
	for i := 1; i < len(args); i++ {
		if args[i-1] == name && args[i] == value {
			return true
		}
	}
	return false
}

func cmdline(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
}

// inCgroup tells whether a process belongs to a container, which the kernel knows
// by the cgroup.
func (r *Runtime) inCgroup(id string) func(int) bool {
	return func(pid int) bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimRight(line, "\n")
			if strings.HasSuffix(line, "/"+id) || strings.Contains(line, "/"+id+"/") {
				return true
			}
		}
		return false
	}
}

// monitorOf holds a container's conmon.
func (r *Runtime) monitorOf(id string) (*proc, bool) {
	return openProc(filepath.Join(r.bundle(id), monPidFile), isMonitor(r.bundle(id)))
}

// initOf holds a container's first process.
func (r *Runtime) initOf(id string) (*proc, bool) {
	return openProc(filepath.Join(r.bundle(id), initPidFile), r.inCgroup(id))
}

// findMonitors looks through all processes for conmons under the run directory,
// for those whose pid file was never written.
func (r *Runtime) findMonitors() map[int]string {
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return found
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args := cmdline(pid)
		if len(args) == 0 || !strings.Contains(filepath.Base(args[0]), "conmon") {
			continue
		}
		for i := 1; i < len(args); i++ {
			if args[i-1] == "-b" && strings.HasPrefix(args[i], r.runDir+"/") {
				found[pid] = args[i]
			}
		}
	}
	return found
}

// procStat reads fields of /proc/PID/stat by their number in proc(5).
func procStat(pid int, field int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < field-2 {
		return 0, fmt.Errorf("read /proc/%d/stat: too short", pid)
	}
	return strconv.ParseUint(fields[field-3], 10, 64)
}
