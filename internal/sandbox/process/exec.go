package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// Exit codes that shells and other engines use when a command cannot be run.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// detachedFile marks an exec directory whose process has no client to lose.
const detachedFile = "detached"

// Exec runs a further process in a running container, and waits for its end
// unless it is detached. When the context ends first, or the client cannot be
// written to, the process is killed with its descendants. A command that is not there
// or cannot be run is an error together with the exit code 127 or 126.
func (r *Runtime) Exec(ctx context.Context, id string, spec api.ExecSpec, s api.Streams) (int, error) {
	if err := checkID(id); err != nil {
		return -1, fmt.Errorf("run command in container: %w", err)
	}
	code, err := r.exec(ctx, id, spec, s)
	if err != nil {
		return code, fmt.Errorf("run the command: %w", err)
	}
	return code, nil
}

func (r *Runtime) exec(ctx context.Context, id string, spec api.ExecSpec, s api.Streams) (int, error) {
	if err := r.running(ctx, id); err != nil {
		return -1, err
	}
	r.sweepExecs(id)
	process, err := r.execProcess(ctx, id, spec)
	if err != nil {
		return -1, err
	}
	dir, err := r.makeExecDir(id, process, spec)
	if err != nil {
		return -1, err
	}
	args := append(r.monitorArgs(id, filepath.Base(dir), dir),
		"-l", "none", "-p", filepath.Join(dir, initPidFile),
		"--exec", "--exec-process-spec", filepath.Join(dir, "process.json"))
	if !spec.Detach {
		args = append(args, "--exec-attach")
	}
	switch {
	case spec.TTY:
		args = append(args, "-t")
	case spec.OpenStdin:
		args = append(args, "-i")
	}
	r.creating.RLock()
	m, err := r.newMonitor(dir, !spec.Detach, args)
	r.creating.RUnlock()
	if err != nil {
		return -1, errors.Join(err, os.RemoveAll(dir))
	}
	defer m.close()
	if spec.Detach {
		err := m.made(ctx)
		return exitOf(0, err)
	}
	defer r.endExec(id, dir)
	if !spec.OpenStdin && !spec.TTY {
		s.Stdin = nil
	}
	return exitOf(r.attendExec(ctx, m, dir, s))
}

// attendExec connects the client before the process is made, and waits for it.
func (r *Runtime) attendExec(ctx context.Context, m *monitor, dir string, s api.Streams) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = m.attach.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var one [64]byte
	if _, err := m.attach.Read(one[:]); err != nil {
		return -1, errors.Join(errors.New("the monitor ended before it could be attached to"), ctx.Err())
	}
	conn, err := dialAttach(ctx, dir)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	if _, err := m.start.Write([]byte{0}); err != nil {
		return -1, fmt.Errorf("start command: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	carried := make(chan error, 1)
	go func() {
		err := carry(ctx, conn, s, dir)
		if err != nil {
			cancel(err) // the client is gone, so the command goes too
		}
		carried <- err
	}()
	code, err := m.exitCode(ctx)
	if err != nil {
		cancel(err)
		if lost := <-carried; lost != nil {
			err = lost // the client went away, and that is why
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return -1, err
	}
	// conmon closes the connection before it tells the code, so this is a matter
	// of a slow client.
	return code, <-carried
}

// exitCode reads both messages of an exec: the pid, then the code.
func (m *monitor) exitCode(ctx context.Context) (int, error) {
	if err := m.made(ctx); err != nil {
		return -1, err
	}
	msg, err := m.message(ctx)
	if err != nil {
		return -1, err
	}
	if msg.Message != "" {
		return -1, &RuntimeError{Message: tidy(msg.Message)}
	}
	return msg.Data, nil
}

// exitOf gives a command that cannot be run the code that a shell would.
func exitOf(code int, err error) (int, error) {
	var re *RuntimeError
	if !errors.As(err, &re) {
		return code, err
	}
	text := strings.ToLower(re.Message)
	switch {
	case strings.Contains(text, "executable file") && strings.Contains(text, "not found"),
		strings.Contains(text, "no such file or directory"):
		return exitNotFound, err
	case strings.Contains(text, "permission denied"), strings.Contains(text, "exec format error"), strings.Contains(text, "is a directory"), strings.Contains(text, "open executable"):
		return exitCannotRun, err
	}
	return code, err
}

// execProcess is the container's process document with what is asked for put in.
func (r *Runtime) execProcess(ctx context.Context, id string, e api.ExecSpec) (*specs.Process, error) {
	if len(e.Args) == 0 || e.Args[0] == "" {
		return nil, fmt.Errorf("%w: no command", ErrInvalid)
	}
	if e.Detach && e.OpenStdin {
		return nil, fmt.Errorf("%w: a detached command has no standard input", ErrInvalid)
	}
	for i, v := range e.Env {
		if !validEnv(v) {
			return nil, fmt.Errorf("%w: env[%d]: %q is not NAME=VALUE", ErrInvalid, i, v)
		}
	}
	if err := errors.Join(checkArgs("args", e.Args), checkArgs("env", e.Env)); err != nil {
		return nil, err
	}
	spec, err := r.readSpec(id)
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Terminal, p.Args, p.ConsoleSize = e.TTY, e.Args, nil
	if e.TTY {
		p.Env = defaultEnv(p.Env, "TERM", "xterm")
	}
	if e.WorkingDir != "" {
		if !path.IsAbs(e.WorkingDir) || strings.ContainsRune(e.WorkingDir, 0) {
			return nil, fmt.Errorf("%w: workingDir %q is not an absolute path", ErrInvalid, e.WorkingDir)
		}
		p.Cwd = path.Clean(e.WorkingDir)
	}
	caps := p.Capabilities.Bounding
	if e.Privileged {
		if caps, err = r.allCapabilities(id); err != nil {
			return nil, err
		}
	}
	if e.User != "" {
		u, err := r.userIn(ctx, id, e.User)
		if err != nil {
			return nil, err
		}
		p.User = specs.User{UID: u.uid, GID: u.gid, AdditionalGids: u.groups}
		p.Env = mergeEnv(p.Env, []string{"HOME=" + u.home})
	}
	p.Env = mergeEnv(p.Env, e.Env)
	p.Capabilities = processCapabilities(caps, p.User.UID)
	return p, nil
}

func (r *Runtime) makeExecDir(id string, p *specs.Process, e api.ExecSpec) (string, error) {
	var name [8]byte
	_, _ = rand.Read(name[:]) // never fails
	if r.inVM(id) {
		var err error
		if p, err = r.execByShim(id, hex.EncodeToString(name[:]), p, e); err != nil {
			return "", err
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encode process: %w", err)
	}
	dir := filepath.Join(r.bundle(id), execDir, hex.EncodeToString(name[:]))
	// Not MkdirAll: a container that is just being deleted must stay so.
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	err = os.WriteFile(filepath.Join(dir, "process.json"), data, 0o600)
	if err == nil && e.Detach {
		err = os.WriteFile(filepath.Join(dir, detachedFile), nil, 0o600)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

func (r *Runtime) execDirs(id string) []string {
	entries, _ := os.ReadDir(filepath.Join(r.bundle(id), execDir))
	var dirs []string
	for _, e := range entries {
		dirs = append(dirs, filepath.Join(r.bundle(id), execDir, e.Name()))
	}
	return dirs
}

// endExecs ends the exec processes that have a client, or all.
func (r *Runtime) endExecs(id string, all bool) {
	for _, dir := range r.execDirs(id) {
		if all || !exists(filepath.Join(dir, detachedFile)) {
			r.endExec(id, dir)
		}
	}
}

// sweepExecs takes away the directories of detached processes that ended.
func (r *Runtime) sweepExecs(id string) {
	for _, dir := range r.execDirs(id) {
		if !exists(filepath.Join(dir, detachedFile)) || !exists(filepath.Join(dir, monPidFile)) {
			continue
		}
		if m, ok := openProc(filepath.Join(dir, monPidFile), isMonitor(dir)); ok {
			m.close()
			continue
		}
		_ = os.RemoveAll(dir)
	}
}

// endExec kills what is left of an exec process and its descendants, and removes its
// directory. After an orderly end there is nothing to kill.
func (r *Runtime) endExec(id, dir string) {
	m, monitored := openProc(filepath.Join(dir, monPidFile), isMonitor(dir))
	if monitored && !m.exited() {
		if p, ok := r.execProc(id, dir, m); ok {
			r.killTree(id, p)
			p.close()
		}
		if !m.wait(context.Background(), monitorWait) {
			_ = m.signal(unix.SIGKILL)
		}
	}
	if monitored {
		m.close()
	}
	if err := os.RemoveAll(dir); err != nil {
		r.log.Warn("directory of a finished command not removed", "container", id, "error", err)
	}
}

// execProc holds the process of an exec. The runtime names it only after it runs,
// so a monitor that is alive is given time to.
func (r *Runtime) execProc(id, dir string, m *proc) (*proc, bool) {
	for deadline := time.Now().Add(monitorWait); ; waitShortly() {
		p, ok := openProc(filepath.Join(dir, initPidFile), r.inCgroup(id))
		if ok || m.exited() || time.Now().After(deadline) {
			return p, ok
		}
	}
}

// killTree kills a process with its descendants and its session, which most
// runtimes open for it: the children of a shell go with the shell.
func (r *Runtime) killTree(id string, leader *proc) {
	_ = leader.signal(unix.SIGSTOP) // it starts no more
	for range 3 {
		// Those found may have had children meanwhile.
		for _, pid := range r.treeOf(id, leader.pid) {
			if p, ok := openPid(pid, r.inCgroup(id)); ok {
				_ = p.signal(unix.SIGKILL)
				p.close()
			}
		}
	}
	_ = leader.signal(unix.SIGKILL)
}

// treeOf lists the processes of a container that descend from one, or are of the
// session it leads.
func (r *Runtime) treeOf(id string, leader int) []int {
	const parentField, sessionField = 4, 6
	pids, err := r.processes(id)
	if err != nil {
		return nil
	}
	in := map[uint64]bool{uint64(leader): true}
	var tree []int
	for grown := true; grown; {
		grown = false
		for _, pid := range pids {
			if in[uint64(pid)] {
				continue
			}
			parent, perr := procStat(pid, parentField)
			session, serr := procStat(pid, sessionField)
			if perr == nil && in[parent] || serr == nil && session == uint64(leader) {
				in[uint64(pid)], grown = true, true
				tree = append(tree, pid)
			}
		}
	}
	return tree
}
