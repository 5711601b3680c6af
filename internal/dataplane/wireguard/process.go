package wireguard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is the daemon's view of a device's process: the connection by which it is configured. The kernel tells whose socket that is, so
// no file has to name the process.
type process struct {
	device, socket string
	cl             *client
	// gone is closed when the connection breaks: the process has ended.
	gone chan struct{}
}

// find connects to a process that an earlier daemon started; nil: there is none.
func find(device, socket string) *process {
	cl, err := dial(socket)
	if err != nil {
		return nil
	}
	return &process{device: device, socket: socket, cl: cl}
}

// startTimeout is how long a process may take until it answers.
const startTimeout = 10 * time.Second

// start starts one. It ends with the device, or when it is told to.
func start(ctx context.Context, command []string, o ServeOptions, log string) (*process, error) {
	out, err := openLog(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	args := append(command[1:len(command):len(command)], "--device", o.Device, "--namespace", o.Namespace, "--socket", o.Socket, "--mtu", strconv.Itoa(o.MTU))
	cmd := exec.Command(command[0], args...) //nolint:noctx,forbidigo // it outlives the daemon on purpose
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start WireGuard's process: %w", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // else it would stay as a zombie
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if p := find(o.Device, o.Socket); p != nil {
			if _, err := p.cl.get(); err == nil {
				return p, nil
			}
			p.cl.close()
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("WireGuard's process ended at once: %s", lastLine(log))
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("wait for WireGuard's process: %w", ctx.Err())
		case <-deadline.C:
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("WireGuard's process does not answer after %s: %s", startTimeout, lastLine(log))
		case <-tick.C:
		}
	}
}

func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of WireGuard's log: %w", err)
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > 1<<20 {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open WireGuard's log: %w", err)
	}
	return f, nil
}

func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "it has no log"
	}
	lines := strings.Split(strings.TrimSpace(string(b[max(0, len(b)-2000):])), "\n")
	return lines[len(lines)-1]
}

// watch calls fn when the process ends. Its connection is for nothing else.
func (p *process) watch(home func(func() error) error, fn func()) {
	p.gone = make(chan struct{})
	var cl *client
	if err := home(func() (err error) { cl, err = dial(p.socket); return err }); err != nil {
		close(p.gone)
		go fn()
		return
	}
	go func() {
		defer cl.close()
		_, _ = cl.r.ReadByte() // nothing is ever said
		close(p.gone)
		fn()
	}()
}

func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// end has the process end, in time.
func (p *process) end() error {
	defer p.cl.close()
	if p.cl.pid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.cl.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end WireGuard's process: %w", err)
	}
	defer unix.Close(fd)
	// The pid may be another's by now; that one does not have the connection's other end.
	if p.gone != nil && !p.alive() {
		return nil
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil {
			return nil //nolint:nilerr // it has ended
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 3000); n > 0 || err != nil {
			return nil
		}
	}
	return fmt.Errorf("WireGuard's process %d does not end", p.cl.pid)
}
