package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// settle is the pause between samples in which the kernel gets rid of what the last one left (namespaces and links die
// in the background) and pools fill again: a sample measures one attach on a quiet host, not how many a host can take.
const settle = 60 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// version is what the binary says of itself: "bulkhead 1.2, built with …".
func version(b *testing.B, binary string) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), binary, "version", "-H", "unix:///dev/null").Output()
	if err != nil {
		b.Fatalf("ask %s for its version: %v", binary, err)
	}
	v, _, _ := strings.Cut(strings.TrimPrefix(string(out), "bulkhead "), ",")
	return v
}

// self is a command that runs this binary in a role.
func self(ctx context.Context, h *testhost.Host, role string, args ...string) *testhost.Cmd {
	c := h.Command(ctx, os.Args[0], args...)
	c.Env = append(os.Environ(), roleEnv+"="+role)
	return c
}

// remote is a worker process in a host.
type remote struct {
	b   *testing.B
	in  io.Writer
	out *bufio.Reader
}

func newRemote(b *testing.B, h *testhost.Host) *remote {
	b.Helper()
	c := self(b.Context(), h, "worker")
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		b.Fatalf("start a worker in %s: %v", h.Name(), err)
	}
	return &remote{b: b, in: in, out: bufio.NewReader(out)}
}

// do has the worker do one thing and returns how long that took.
func (r *remote) do(o order) answer {
	r.b.Helper()
	line, err := json.Marshal(o)
	if err == nil {
		_, err = r.in.Write(append(line, '\n'))
	}
	if err != nil {
		r.b.Fatalf("order %s: %v", line, err)
	}
	back, err := r.out.ReadBytes('\n')
	if err != nil {
		r.b.Fatalf("wait for the answer to %s: %v", line, err)
	}
	var a answer
	if err := json.Unmarshal(back, &a); err != nil {
		r.b.Fatalf("read the answer to %s: %v", line, err)
	}
	if a.Err != "" {
		r.b.Fatalf("%s: %s", line, a.Err)
	}
	return a
}

// daemon is the real one in a throwaway host. Its state is on the disk that temporary files are on, as that of an
// installed daemon is on a disk: a state in memory would make every change look free.
type daemon struct {
	b       *testing.B
	host    *testhost.Host
	binary  string
	dir     string
	socket  string
	http    *http.Client
	cmd     *testhost.Cmd
	log     *os.File
	started time.Duration
}

func newDaemon(b *testing.B, h *testhost.Host, binary string, flags ...string) *daemon {
	b.Helper()
	dir := b.TempDir()
	d := &daemon{b: b, host: h, binary: binary, dir: dir, socket: filepath.Join(dir, "s")}
	d.http = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
		},
		MaxIdleConnsPerHost: 16,
	}}
	var err error
	if d.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		b.Fatal(err)
	}
	d.start(flags...)
	return d
}

// start starts the daemon and waits until it answers.
func (d *daemon) start(flags ...string) {
	d.b.Helper()
	args := append([]string{
		"daemon", "--state-dir", filepath.Join(d.dir, "state"), "--socket", d.socket, "--cgroup-parent", d.host.CgroupParent(),
	}, flags...)
	d.cmd = d.host.Command(d.b.Context(), d.binary, args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	begin := time.Now()
	if err := d.cmd.Start(); err != nil {
		d.b.Fatalf("start the daemon: %v", err)
	}
	testhost.Eventually(d.b, time.Minute, func() error {
		if err := d.try(http.MethodGet, "/hcn/v2/networks", nil, nil); err != nil {
			log, _ := os.ReadFile(d.log.Name())
			return fmt.Errorf("the daemon does not answer: %w\n%s", err, log)
		}
		return nil
	})
	d.started = time.Since(begin)
}

func (d *daemon) stop() {
	d.b.Helper()
	d.http.CloseIdleConnections()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		d.b.Fatalf("stop the daemon: %v", err)
	}
	if err := d.cmd.Wait(); err != nil {
		log, _ := os.ReadFile(d.log.Name())
		d.b.Fatalf("the daemon ended with %v\n%s", err, log)
	}
}

// call is one request of the API; it must succeed.
func (d *daemon) call(method, path string, in, out any) {
	d.b.Helper()
	if err := d.try(method, path, in, out); err != nil {
		log, _ := os.ReadFile(d.log.Name())
		d.b.Fatalf("%s %s: %v\n%s", method, path, err, log[max(0, len(log)-2000):])
	}
}

func (d *daemon) try(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(d.b.Context(), method, "http://bulkhead"+path, body)
	if err != nil {
		return err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
