package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Places of the container in the guest.
const (
	bundleDir   = "/run/bundle"
	processDir  = "/run/processes"
	runtimeRoot = "/run/runtime"
)

// CgroupPath is the container's control group in the guest.
const CgroupPath = "/container"

// processes are those that the host has started, by the names that it gave them.
type processes struct {
	*reaper
	runtime string // the path to execute it by
	handed  handed
	mu      sync.Mutex
	by      map[string]*process
}

// process has the agent's ends of its streams. What it writes is held by the pipes until the host takes it.
type process struct {
	pid    int
	tty    *os.File // the terminal's controlling end
	stdin  *os.File
	out    [3]*os.File // by descriptor: 1 and 2
	ended  chan struct{}
	copies sync.WaitGroup
	exit   proto.Exit
}

func newProcesses(runtime string) *processes {
	return &processes{reaper: newReaper(), runtime: runtime, handed: handed{dir: HandedDir, by: map[string]*handedFiles{}}, by: map[string]*process{}}
}

func (ps *processes) reap() { ps.run() }

func (ps *processes) find(name string) (*process, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.by[name]
	if p == nil {
		return nil, fmt.Errorf("there is no process %q", name)
	}
	return p, nil
}

func (ps *processes) handle(ctx context.Context, op string, body json.RawMessage) (any, func(net.Conn), error) {
	switch op {
	case proto.OpRun:
		v, err := decode[proto.Run](body)
		if err == nil {
			err = ps.container(v)
		}
		return nil, nil, err
	case proto.OpFiles:
		v, err := decode[proto.Files](body)
		if err == nil {
			err = ps.handed.refresh(v)
		}
		return nil, nil, err
	case proto.OpExec:
		v, err := decode[proto.Exec](body)
		if err == nil {
			err = ps.exec(v)
		}
		return nil, nil, err
	case proto.OpStdio:
		v, err := decode[proto.Stdio](body)
		if err != nil {
			return nil, nil, err
		}
		carry, err := ps.stdio(v)
		return nil, carry, err
	case proto.OpDial:
		v, err := decode[proto.Dial](body)
		if err != nil {
			return nil, nil, err
		}
		carry, err := ps.dial(ctx, v)
		return nil, carry, err
	case proto.OpRead:
		v, err := decode[proto.Read](body)
		if err != nil {
			return nil, nil, err
		}
		return ps.read(v)
	case proto.OpSignal:
		v, err := decode[proto.Signal](body)
		if err == nil {
			err = ps.signal(v)
		}
		return nil, nil, err
	case proto.OpResize:
		v, err := decode[proto.Resize](body)
		if err == nil {
			err = ps.resize(v)
		}
		return nil, nil, err
	case proto.OpWait:
		v, err := decode[proto.Process](body)
		if err != nil {
			return nil, nil, err
		}
		exit, err := ps.wait(ctx, v.Process)
		return exit, nil, err
	}
	return nil, nil, fmt.Errorf("there is no request %q", op)
}

// container mounts what the host shares, or the container's disk, and has the OCI runtime make the container.
func (ps *processes) container(r proto.Run) (err error) {
	if r.Root != "" {
		if err := mountPlace("/sys/block", "/dev", r); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				leavePlace(r.Place)
			}
		}()
	} else if err := mountRoot(r); err != nil {
		return err
	}
	if err := ps.handed.put(r); err != nil {
		return err
	}
	if r.Disk != "" {
		if err := mountDisk("/sys/block", "/dev", r.Disk); err != nil {
			return err
		}
	}
	bundle := filepath.Join(bundleDir, filepath.Base(r.Process))
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), r.Spec, 0o600); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	return ps.launch(r.Process, r.TTY, r.Stdin, r.Size, func(files launchFiles) []string {
		return append([]string{"run", "--detach", "--bundle", bundle, "--pid-file", files.pid}, append(files.console, r.Process)...)
	}, ps.endOf(r, bundle))
}

// mountRoot mounts what the host shares, for the first container.
func mountRoot(r proto.Run) error {
	if _, err := os.Stat(ShareDir); err == nil {
		return nil
	}
	if err := os.MkdirAll(ShareDir, 0o755); err != nil {
		return fmt.Errorf("mount what the host shares: %w", err)
	}
	// A share that was plugged in a moment ago is not there at once.
	err := unix.Mount(r.Share, ShareDir, "virtiofs", 0, "")
	for deadline := time.Now().Add(shareWait); errors.Is(err, unix.EINVAL) && time.Now().Before(deadline); {
		pause()
		err = unix.Mount(r.Share, ShareDir, "virtiofs", 0, "")
	}
	if err != nil {
		_ = os.Remove(ShareDir)
		return fmt.Errorf("mount what the host shares: %w", err)
	}
	return nil
}

// shareWait is how long the kernel may take to find a share, or a disk, that was plugged in.
const shareWait = 20 * time.Second

func (ps *processes) exec(e proto.Exec) error {
	spec := filepath.Join(processDir, filepath.Base(e.Process)+".spec")
	if err := os.MkdirAll(processDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(spec, e.Spec, 0o600); err != nil {
		return err
	}
	defer os.Remove(spec)
	return ps.launch(e.Process, e.TTY, e.Stdin, e.Size, func(files launchFiles) []string {
		return append([]string{"exec", "--detach", "--process", spec, "--pid-file", files.pid}, append(files.console, e.Container)...)
	}, nil)
}

// launchFiles are those by which the OCI runtime answers.
type launchFiles struct {
	pid, log string
	console  []string // options
}

// launch has the OCI runtime start a process that outlives it, and becomes ours to reap.
func (ps *processes) launch(name string, tty, stdin bool, size proto.Size, args func(launchFiles) []string, end func(*proto.Exit)) (err error) {
	if name == "" || strings.HasPrefix(name, "-") || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is no name of a process", name)
	}
	ps.mu.Lock()
	_, taken := ps.by[name]
	ps.mu.Unlock()
	if taken {
		return fmt.Errorf("there is a process %s already", name)
	}
	if err := os.MkdirAll(processDir, 0o700); err != nil {
		return err
	}
	files := launchFiles{pid: filepath.Join(processDir, name+".pid"), log: filepath.Join(processDir, name+".log")}
	defer os.Remove(files.pid)
	defer os.Remove(files.log)
	p := &process{ended: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	s, err := p.streams(tty, stdin)
	if err != nil {
		return err
	}
	defer s.close()
	var console net.Listener
	if tty {
		path := filepath.Join(processDir, name+".tty")
		var lc net.ListenConfig
		if console, err = lc.Listen(context.Background(), "unix", path); err != nil {
			return fmt.Errorf("make a terminal: %w", err)
		}
		defer console.Close()
		files.console = []string{"--console-socket", path}
	}
	defer ps.reaper.launch()()
	ends, err := ps.callRuntime(append([]string{"--log", files.log, "--log-format", "json"}, args(files)...), s.files)
	if err != nil {
		return fmt.Errorf("start the OCI runtime: %w", err)
	}
	if st := <-ends; st != 0 {
		return errors.New(runtimeMessage(files.log, st))
	}
	if tty {
		if p.tty, err = receiveTerminal(console); err != nil {
			return err
		}
		p.stdin, p.out[1] = p.tty, p.tty
		_ = setSize(p.tty, size)
	}
	text, err := os.ReadFile(files.pid)
	if err == nil {
		p.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return fmt.Errorf("read the number of the process: %w", err)
	}
	ps.mu.Lock()
	ps.by[name] = p
	ps.mu.Unlock()
	go p.attend(ps.adopt(p.pid), end)
	return nil
}

// theirs are the ends of pipes that a process gets.
type theirs struct{ files [3]*os.File }

func (t *theirs) close() {
	for i, f := range t.files {
		if f != nil && (i == 0 || f != t.files[i-1]) {
			_ = f.Close()
		}
	}
}

func (p *process) streams(tty, stdin bool) (_ *theirs, err error) {
	t := &theirs{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if tty {
		t.files = [3]*os.File{null, null, null}
		return t, nil
	}
	t.files[0] = null
	if stdin {
		_ = null.Close()
		t.files[0] = nil
		if t.files[0], p.stdin, err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	for i := 1; i <= 2; i++ {
		if p.out[i], t.files[i], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (p *process) close() {
	for _, f := range []*os.File{p.tty, p.stdin, p.out[1], p.out[2]} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// runtimeMessage is the last error that the OCI runtime has written down.
func runtimeMessage(log string, st unix.WaitStatus) string {
	f, err := os.Open(log)
	if err == nil {
		defer f.Close()
		last := ""
		for s := bufio.NewScanner(f); s.Scan(); {
			var line struct{ Level, Msg string }
			if json.Unmarshal(s.Bytes(), &line) == nil && line.Msg != "" && line.Level != "warning" && line.Level != "info" && line.Level != "debug" {
				last = line.Msg
			}
		}
		if last != "" {
			return last
		}
	}
	return fmt.Sprintf("the OCI runtime gave no reason (status %d)", st)
}

// consoleWait is how long a runtime that has succeeded may take to hand over the terminal.
const consoleWait = 10 * time.Second

// receiveTerminal takes over the controlling end of a terminal.
func receiveTerminal(l net.Listener) (*os.File, error) {
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("receive the terminal: not a unix socket")
	}
	_ = u.SetDeadline(time.Now().Add(consoleWait))
	c, err := u.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(consoleWait))
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("receive the terminal: the OCI runtime sent none")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("receive the terminal: the OCI runtime sent none")
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "tty"), nil
}

func setSize(tty *os.File, s proto.Size) error {
	if s.Rows == 0 || s.Cols == 0 {
		return nil
	}
	raw, err := tty.SyscallConn() // Fd would make it block
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
	return errors.Join(cerr, err)
}

// attend notes how a process ended.
func (p *process) attend(ends <-chan unix.WaitStatus, end func(*proto.Exit)) {
	st := <-ends
	p.exit.Code = st.ExitStatus()
	if st.Signaled() {
		p.exit.Code = 128 + int(st.Signal())
	}
	if end != nil {
		end(&p.exit)
	}
	close(p.ended)
}

func (ps *processes) wait(ctx context.Context, name string) (proto.Exit, error) {
	p, err := ps.find(name)
	if err != nil {
		return proto.Exit{}, err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		return proto.Exit{}, ctx.Err()
	}
	p.copies.Wait()
	ps.mu.Lock()
	delete(ps.by, name)
	ps.mu.Unlock()
	p.close()
	return p.exit, nil
}

// stdio carries one stream of a process.
func (ps *processes) stdio(s proto.Stdio) (func(net.Conn), error) {
	p, err := ps.find(s.Process)
	if err != nil {
		return nil, err
	}
	switch {
	case s.FD == 0 && p.stdin != nil:
		return p.input, nil
	case (s.FD == 1 || s.FD == 2) && p.out[s.FD] != nil:
		p.copies.Add(1)
		return func(c net.Conn) { defer p.copies.Done(); p.output(c, p.out[s.FD]) }, nil
	}
	return nil, fmt.Errorf("process %s has no stream %d", s.Process, s.FD)
}

func (p *process) input(c net.Conn) {
	defer c.Close()
	go func() { <-p.ended; _ = c.Close() }()
	_, err := io.Copy(p.stdin, c)
	if p.tty == nil && err == nil {
		_ = p.stdin.Close()
	}
}

// drained is how long the output of a process that has ended is waited for: what it left behind in the background may hold its pipes.
// It may write to them for ever, so no more is carried after the end than a pipe can have held at it.
const (
	drained  = 200 * time.Millisecond
	pipeMost = 1 << 20
)

func (p *process) output(c net.Conn, from *os.File) {
	defer c.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-p.ended:
			_ = from.SetReadDeadline(time.Now().Add(drained))
		case <-stop:
		}
	}()
	buf := make([]byte, 32<<10)
	for after := 0; after < pipeMost; {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := c.Write(buf[:n]); werr != nil {
				return
			}
			select {
			case <-p.ended:
				after += n
				_ = from.SetReadDeadline(time.Now().Add(drained))
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

func (ps *processes) resize(r proto.Resize) error {
	p, err := ps.find(r.Process)
	if err != nil {
		return err
	}
	if p.tty == nil {
		return fmt.Errorf("process %s has no terminal", r.Process)
	}
	return setSize(p.tty, r.Size)
}

func (ps *processes) signal(s proto.Signal) error {
	p, err := ps.find(s.Process)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	default:
	}
	if s.Signal < 1 || s.Signal > 64 {
		return fmt.Errorf("there is no signal %d", s.Signal)
	}
	if s.Tree {
		for _, pid := range descendants(p.pid) {
			_ = unix.Kill(pid, unix.Signal(s.Signal))
		}
	}
	if err := unix.Kill(p.pid, unix.Signal(s.Signal)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %s: %w", s.Process, err)
	}
	return nil
}

// descendants are the processes that come from one, or are of the session it leads.
func descendants(leader int) []int {
	type facts struct{ parent, session int }
	all := map[int]facts{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		_, after, ok := strings.Cut(string(text), ") ")
		fields := strings.Fields(after)
		if !ok || len(fields) < 4 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		session, _ := strconv.Atoi(fields[3])
		all[pid] = facts{parent, session}
	}
	in := map[int]bool{leader: true}
	var out []int
	for grown := true; grown; {
		grown = false
		for pid, f := range all {
			if !in[pid] && (in[f.parent] || f.session == leader) {
				in[pid], grown = true, true
				out = append(out, pid)
			}
		}
	}
	return out
}
