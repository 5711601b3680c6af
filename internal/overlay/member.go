package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// member is a member of our own etcd: Debian's etcd-server as a process of its own. It outlives the daemon, as containers do: a restart
// of the daemon costs the cluster no vote. The next daemon finds it by its pid file.
type member struct {
	dir    string // of the cluster's files
	pid    string // pid file, in the run directory
	binary string
	args   []string
	at     string // where it says that clients reach it
	log    *slog.Logger

	mu   sync.Mutex
	proc *process
}

// process is one that may not be our child.
type process struct {
	pid   int
	start string // in ticks since boot: with the pid, it names a process
}

// memberConfig is what a member is started with. It is kept: a restart needs the same.
type memberConfig struct {
	Name    string       `json:"name"`
	Addrs   []netip.Addr `json:"addrs"`
	Port    uint16       `json:"port"` // of clients; the next one is for members, the one after it for hosts that join
	Initial string       `json:"initial"`
	New     bool         `json:"new"` // it begins the cluster
	ID      uint64       `json:"id,omitempty"`
	Token   hcn.GUID     `json:"token"`
}

// DefaultPort is the first of three: etcd's clients, etcd's members, hosts that join. Not etcd's own, which Debian's service may have.
const DefaultPort = 2389

func (c *memberConfig) url(addr netip.Addr, offset uint16) string {
	return "https://" + netip.AddrPortFrom(addr, c.Port+offset).String()
}

func (c *memberConfig) peer() string { return c.url(c.Addrs[0], 1) }

func (c *memberConfig) client() string { return c.url(c.Addrs[0], 0) }

// errNoEtcd says what to install.
var errNoEtcd = errors.New("this host has no etcd program: `apt install etcd-server` (its own service is not needed: `systemctl disable --now etcd`), " +
	"or join by --etcd an etcd that runs elsewhere")

func newMember(dir, runDir string, c *memberConfig, log *slog.Logger) (*member, error) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, errNoEtcd
	}
	// By one address only: etcd does not start while an address that it is to listen on is not there.
	clients := []string{c.url(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), c.client()}
	state := "existing"
	if c.New {
		state = "new"
	}
	pki := func(name string) string { return filepath.Join(dir, name) }
	m := &member{dir: dir, pid: filepath.Join(runDir, "etcd.pid"), binary: binary, at: c.client(), log: log}
	m.args = []string{
		"--name", c.Name, "--data-dir", filepath.Join(dir, "etcd"),
		"--listen-client-urls", strings.Join(clients, ","), "--advertise-client-urls", c.client(),
		"--listen-peer-urls", c.peer(), "--initial-advertise-peer-urls", c.peer(),
		"--initial-cluster", c.Initial, "--initial-cluster-state", state, "--initial-cluster-token", c.Token.Lower(),
		"--client-cert-auth", "--trusted-ca-file", pki(fileCA), "--cert-file", pki(fileCert), "--key-file", pki(fileKey),
		"--peer-client-cert-auth", "--peer-trusted-ca-file", pki(fileCA), "--peer-cert-file", pki(fileCert), "--peer-key-file", pki(fileKey),
		// What hosts missed for an hour they read anew. An endpoint is half a kilobyte: 2 GiB are far from full.
		"--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h", "--quota-backend-bytes", "2147483648",
		"--enable-grpc-gateway=false", "--logger", "zap", "--log-level", "warn",
	}
	return m, m.addFlags()
}

// helpTimeout is for a program of 20 MB to be read from a cold disk and started on a busy host.
const helpTimeout = 30 * time.Second

// addFlags adds what is spelt differently by etcd's versions. A member may come from another of its host's addresses than its
// certificate names, as the routes of the host choose.
func (m *member) addFlags() error {
	ctx, cancel := context.WithTimeout(context.Background(), helpTimeout)
	defer cancel()
	help, err := exec.CommandContext(ctx, m.binary, "--help").CombinedOutput()
	if ctx.Err() != nil { // what it printed by then may lack the flag
		return fmt.Errorf("ask %s for its flags: no end after %s", m.binary, helpTimeout)
	}
	if err != nil && len(help) == 0 {
		return fmt.Errorf("ask %s for its flags: %w", m.binary, err)
	}
	for _, flag := range []string{"--peer-skip-client-san-verification", "--experimental-peer-skip-client-san-verification"} {
		if strings.Contains(string(help), " "+flag+" ") {
			m.args = append(m.args, flag)
			return nil
		}
	}
	return nil
}

// run keeps the member running until ctx ends, and leaves it running then.
func (m *member) run(ctx context.Context) {
	wait := time.Second
	for ctx.Err() == nil {
		begin := time.Now()
		if err := m.ensure(); err != nil {
			m.log.Warn("start etcd", "error", err)
		}
		for m.alive() && sleep(ctx, 500*time.Millisecond) {
			m.trimLog()
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Warn("etcd ended, it is started again", "log", m.logFile(), "last", m.lastWords())
		if time.Since(begin) > time.Minute {
			wait = time.Second
		}
		if !sleep(ctx, wait) {
			return
		}
		wait = min(wait*2, 30*time.Second)
	}
}

// ensure starts the member unless it runs already. One that was started for another address ends first.
func (m *member) ensure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.find(); p != nil {
		if commandHas(p.pid, m.at) {
			m.proc = p
			return nil
		}
		m.log.Info("etcd ends, to be started at another address", "address", m.at)
		p.end()
	}
	m.trimLog()
	out, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open etcd's log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(m.binary, m.args...) //nolint:noctx,forbidigo // it outlives the daemon on purpose
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"} // nothing of ETCD_…
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.binary, err)
	}
	go func() { _ = cmd.Wait() }() // else it would stay as a zombie; run sees that it ended
	start, err := startOf(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("look at etcd: %w", err)
	}
	m.proc = &process{cmd.Process.Pid, start}
	if err := os.WriteFile(m.pid, []byte(fmt.Sprintf("%d %s\n", m.proc.pid, start)), 0o600); err != nil {
		return fmt.Errorf("write etcd's pid file: %w", err)
	}
	return nil
}

func (m *member) logFile() string { return filepath.Join(m.dir, "etcd.log") }

// maxLog bounds etcd's log; when it is full, half of it goes on as etcd.log.1.
const maxLog = 8 << 20

// trimLog keeps the log within its bound. etcd has the file open for appending and goes on at its new end.
func (m *member) trimLog() {
	st, err := os.Stat(m.logFile())
	if err != nil || st.Size() <= maxLog {
		return
	}
	old, err := os.ReadFile(m.logFile())
	if err == nil {
		err = os.WriteFile(m.logFile()+".1", old[len(old)-min(len(old), maxLog/2):], 0o600)
	}
	if err = errors.Join(err, os.Truncate(m.logFile(), 0)); err != nil {
		m.log.Warn("shorten etcd's log", "error", err)
	}
}

// find looks for the member that an earlier daemon started. Locked: m.mu.
func (m *member) find() *process {
	p := readPid(m.pid)
	if p == nil || !m.isOurs(p) {
		return nil
	}
	return p
}

func readPid(path string) *process {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return nil
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || pid <= 1 {
		return nil
	}
	return &process{pid, f[1]}
}

// isOurs: a pid may be somebody else's by now.
func (m *member) isOurs(p *process) bool {
	return p.lives() && commandHas(p.pid, filepath.Join(m.dir, "etcd"))
}

func (p *process) lives() bool {
	start, err := startOf(p.pid)
	return err == nil && start == p.start
}

func commandHas(pid int, arg string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains("\x00"+string(b), "\x00"+arg+"\x00")
}

// startOf is when a process started; a zombie is none any more.
func startOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name, in parentheses, may have anything in it: what counts comes after the last of them.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", os.ErrProcessDone
	}
	return f[19], nil
}

func (m *member) alive() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc != nil && m.proc.lives()
}

// stop ends the member for good.
func (m *member) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil {
		m.proc = m.find()
	}
	if m.proc != nil {
		m.proc.end()
	}
	m.proc = nil
	_ = os.Remove(m.pid) // it may be gone with the run of the host
}

// end has a process end, in time.
func (p *process) end() {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, 5 * time.Second}, {syscall.SIGKILL, 5 * time.Second}} {
		if !p.lives() {
			return
		}
		_ = syscall.Kill(p.pid, step.signal) // it may have ended since
		for until := time.Now().Add(step.wait); p.lives() && time.Now().Before(until); {
			sleep(context.Background(), 20*time.Millisecond)
		}
	}
}

// lastWords are the end of etcd's log, for people.
func (m *member) lastWords() string {
	f, err := os.Open(m.logFile())
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(st.Size(), 2000))
	n, err := f.ReadAt(b, st.Size()-int64(len(b)))
	if err != nil && n == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	return lines[len(lines)-1]
}

// EndMember ends the etcd of a daemon that does not run, for those who remove everything.
func EndMember(dir, runDir string) {
	m := &member{dir: dir, pid: filepath.Join(runDir, "etcd.pid")}
	m.stop()
}

// MemberProcess is the process of that etcd, 0 if there is none.
func MemberProcess(dir, runDir string) int {
	m := &member{dir: dir, pid: filepath.Join(runDir, "etcd.pid")}
	if p := m.find(); p != nil {
		return p.pid
	}
	return 0
}
