package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// conmon speaks over pipes that it finds by environment variables:
//   - it reads the start pipe before it does anything (so that we can put it into a
//     cgroup), and for an attached exec once more before the process is made;
//   - on the sync pipe it writes one JSON line with the pid, or -1 and what the OCI
//     runtime said; for an exec, later, another with the exit code;
//   - on the attach pipe it writes a line once the attach socket is there.
// It daemonises itself, so it is not our child, and our end does not end it.

// monitor is a conmon that is being started.
type monitor struct {
	cmd    *exec.Cmd
	start  *os.File // we write
	sync   *os.File // we read
	attach *os.File // we read; nil without attach
	lines  *bufio.Reader
	theirs []*os.File
}

// syncMessage is a line of the sync pipe (of "--api-version 1").
type syncMessage struct {
	Data    int    `json:"data"`
	Message string `json:"message"`
}

// RuntimeError is what the OCI runtime said when it could not do its work.
type RuntimeError struct{ Message string }

func (e *RuntimeError) Error() string { return e.Message }

func (r *Runtime) newMonitor(dir string, attach bool, args []string) (_ *monitor, err error) {
	m := &monitor{cmd: exec.CommandContext(context.Background(), r.conmon, args...)} // outlives any other context
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	m.cmd.Dir = dir
	m.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe := func(name string, ours **os.File, weWrite bool) error {
		rd, wr, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("start monitor: %w", err)
		}
		theirs := wr
		*ours = rd
		if weWrite {
			*ours, theirs = wr, rd
		}
		m.theirs = append(m.theirs, theirs)
		m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, theirs)
		m.cmd.Env = append(m.cmd.Env, name+"="+strconv.Itoa(2+len(m.cmd.ExtraFiles)))
		return nil
	}
	if err = pipe("_OCI_STARTPIPE", &m.start, true); err != nil {
		return nil, err
	}
	if err = pipe("_OCI_SYNCPIPE", &m.sync, false); err != nil {
		return nil, err
	}
	if attach {
		if err = pipe("_OCI_ATTACHPIPE", &m.attach, false); err != nil {
			return nil, err
		}
	}
	m.lines = bufio.NewReaderSize(m.sync, 16<<10)
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	if err = m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	m.closeTheirs()
	r.moveMonitor(m.cmd.Process.Pid)
	_, err = m.start.Write([]byte{0})
	// The first process ends as soon as it has forked.
	if werr := m.cmd.Wait(); werr != nil {
		return nil, fmt.Errorf("start monitor: %w: %s", werr, strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	return m, nil
}

func (m *monitor) closeTheirs() {
	for _, f := range m.theirs {
		_ = f.Close()
	}
	m.theirs = nil
}

func (m *monitor) close() {
	m.closeTheirs()
	for _, f := range []*os.File{m.start, m.sync, m.attach} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// message reads one line of the sync pipe.
func (m *monitor) message(ctx context.Context) (syncMessage, error) {
	stop := context.AfterFunc(ctx, func() { _ = m.sync.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := m.lines.ReadBytes('\n')
	if ctx.Err() != nil {
		return syncMessage{}, ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		return syncMessage{}, errors.New("the monitor ended without an answer")
	}
	if err != nil {
		return syncMessage{}, fmt.Errorf("read from monitor: %w", err)
	}
	var msg syncMessage
	if err := json.Unmarshal(line, &msg); err != nil {
		// conmon does not escape everything that a runtime may say.
		return syncMessage{Data: -1, Message: string(line)}, nil
	}
	return msg, nil
}

// made waits for the message that the process was made.
func (m *monitor) made(ctx context.Context) error {
	msg, err := m.message(ctx)
	if err != nil {
		return err
	}
	if msg.Data <= 0 {
		return &RuntimeError{Message: tidy(msg.Message)}
	}
	return nil
}

// tidy makes a runtime's message of one line, without its log framing.
func tidy(s string) string {
	if _, after, ok := strings.Cut(s, "level=error msg="); ok {
		if unquoted, err := strconv.QuotedPrefix(after); err == nil {
			if text, err := strconv.Unquote(unquoted); err == nil {
				s = text
			}
		}
	}
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return "the OCI runtime gave no reason"
	}
	return s
}

// moveMonitor takes a conmon out of the daemon's systemd unit, or it would be
// killed when the unit is stopped. Resource controllers do not matter for that.
func (r *Runtime) moveMonitor(pid int) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[2] == "/" {
			continue
		}
		mount := ""
		switch f[1] {
		case "":
			mount = r.cgroups.unified
		case "name=systemd":
			mount = r.cgroups.v1[f[1]]
		}
		if mount == "" {
			continue
		}
		dir := filepath.Join(mount, r.monitorGroup())
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
		}
		if err != nil {
			r.log.Warn("container monitor stays in the daemon's cgroup", "cgroup", dir, "error", err)
		}
	}
}

func (r *Runtime) monitorGroup() string { return filepath.Join(r.cgroupParent, "monitors") }

// monitorArgs are the arguments that every conmon gets.
func (r *Runtime) monitorArgs(id, unique, bundle string) []string {
	return []string{
		"--api-version", "1", "-c", id, "-u", unique, "-b", bundle, "--full-attach", "--no-sync-log",
		"-P", filepath.Join(bundle, monPidFile), "-r", r.runtimeBinary,
		"--runtime-arg", "--root", "--runtime-arg", r.runtimeRoot(),
	}
}

// startMonitor has conmon make the container, not yet started.
func (r *Runtime) startMonitor(ctx context.Context, id string, tty, stdin bool) error {
	bundle := r.bundle(id)
	args := append(r.monitorArgs(id, id, bundle),
		"-n", id, "-p", filepath.Join(bundle, initPidFile), "--exit-dir", r.exitDir(),
		"-l", "k8s-file:"+filepath.Join(r.logDir(id), logFile), "--log-size-max", strconv.FormatInt(r.logSize, 10))
	switch {
	case tty:
		// A client that leaves a terminal may come back to it.
		args = append(args, "-t", "--leave-stdin-open")
	case stdin:
		args = append(args, "-i")
	}
	r.creating.RLock()
	defer r.creating.RUnlock()
	m, err := r.newMonitor(bundle, false, args)
	if err != nil {
		return err
	}
	defer m.close()
	err = m.made(ctx)
	return err
}
