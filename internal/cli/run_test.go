package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// TestRunForeground runs containers whose process is a function.
func TestRunForeground(t *testing.T) {
	for name, tc := range map[string]struct {
		args    string
		stdin   string
		process func(in io.Reader, out *api.FrameWriter)
		exit    api.WaitResult
		fail    map[string]error

		out, err string
		code     int
		asks     string // a request that must be made
		not      string // one that must not
	}{
		"output of both streams": {
			args: "x", process: func(_ io.Reader, out *api.FrameWriter) {
				fmt.Fprint(out.Channel(api.ChannelStdout), "out")
				fmt.Fprint(out.Channel(api.ChannelStderr), "err")
			},
			out: "out", err: "err", asks: "attach?stderr=true&stdin=false", not: "DELETE",
		},
		"exit code": {args: "x", exit: api.WaitResult{ExitCode: 42}, code: 42},
		"input": {
			args: "-i x", stdin: "hello", out: "HELLO", process: func(in io.Reader, out *api.FrameWriter) {
				b, _ := io.ReadAll(in)
				_, _ = out.Channel(api.ChannelStdout).Write(bytes.ToUpper(b))
			},
		},
		"removed at its end": {args: "--rm x", exit: api.WaitResult{ExitCode: 3}, code: 3, asks: "wait?condition=removed"},
		"command not found": {
			args: "x", fail: map[string]error{"start": api.Errorf(api.KindInvalid, `exec: "foo": executable file not found in $PATH`)},
			code: 127, err: "executable file not found", not: "DELETE",
		},
		"command cannot run": {
			args: "--rm x", fail: map[string]error{"start": api.Errorf(api.KindInvalid, "exec /etc: permission denied")},
			code: 126, err: "permission denied", asks: "DELETE",
		},
		"daemon fails": {
			args: "x", fail: map[string]error{"start": api.Errorf(api.KindConflict, "port 80/tcp is held by nginx (pid 7)").Hint("choose another")},
			code: 125, err: "next: choose another",
		},
		"detached":               {args: "-d x", out: strings.Repeat("f", 64) + "\n", not: "attach"},
		"detached and not found": {args: "-d --rm x", fail: map[string]error{"start": api.Errorf(api.KindInvalid, "no such file or directory")}, code: 127, err: "no such", asks: "DELETE"},
		"no terminal":            {args: "-it x", code: 125, err: "standard input is none"},
		"pull fails":             {args: "x", fail: map[string]error{"pull": api.Errorf(api.KindNotFound, "no such image")}, code: 125, err: "no such image", not: "/v1/containers"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			d.process, d.exit = tc.process, tc.exit
			for what, err := range tc.fail {
				d.fail[map[string]string{
					"start": "POST /v1/containers/" + strings.Repeat("f", 64) + "/start", "pull": "POST /v1/images",
				}[what]] = err
			}
			out, errs, code := callWith(t, d.socket, bytes.NewBufferString(tc.stdin), nil, append([]string{"run"}, strings.Fields(tc.args)...)...)
			if out != tc.out || !strings.Contains(errs, tc.err) || code != tc.code {
				t.Errorf("%q, %q, exit code %d", out, errs, code)
			}
			all := strings.Join(d.noted(), "\n")
			if !strings.Contains(all, tc.asks) || tc.not != "" && strings.Contains(all, tc.not) {
				t.Errorf("requests:\n%s", all)
			}
		})
	}
}

// TestRunPassesSignals sends this process a signal while a container runs.
func TestRunPassesSignals(t *testing.T) {
	guard := make(chan os.Signal, 1) // the signal must not end the test whoever is late
	signal.Notify(guard, unix.SIGUSR1)
	defer signal.Stop(guard)
	d := newDaemon(t)
	d.process = func(_ io.Reader, out *api.FrameWriter) {
		fmt.Fprint(out.Channel(api.ChannelStdout), "up")
		for !slices.ContainsFunc(d.noted(), func(r string) bool { return strings.HasSuffix(r, "/kill?signal=SIGUSR1") }) {
			_ = unix.Kill(os.Getpid(), unix.SIGUSR1)
			<-time.After(time.Millisecond)
		}
	}
	d.exit = api.WaitResult{ExitCode: 9}
	if out, errs, code := call(t, d.socket, "run", "x"); out != "up" || code != 9 {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
}

func TestExec(t *testing.T) {
	d := newDaemon(t)
	d.exit = api.WaitResult{ExitCode: 5}
	d.process = func(in io.Reader, out *api.FrameWriter) {
		b, _ := io.ReadAll(in)
		_, _ = out.Channel(api.ChannelStdout).Write(b)
	}
	out, errs, code := callWith(t, d.socket, bytes.NewBufferString("in"), nil, "exec", "-i", "-e", "A=1", "web", "cat", "-e")
	if out != "in" || code != 5 {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
	if r := d.noted(); len(r) != 1 || !strings.HasSuffix(r[0], `/exec {"args":["cat","-e"],"env":["A=1"],"openStdin":true}`) {
		t.Errorf("%q", r)
	}
}

func TestStartAttached(t *testing.T) {
	d := newDaemon(t)
	d.process = func(_ io.Reader, out *api.FrameWriter) { fmt.Fprint(out.Channel(api.ChannelStdout), "again") }
	d.exit = api.WaitResult{ExitCode: 1, Error: "out of memory"}
	out, errs, code := call(t, d.socket, "start", "-a", "db")
	if out != "again" || code != 1 || !strings.Contains(errs, "out of memory") {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
	if _, errs, code := call(t, d.socket, "attach", "db"); code != 125 || !strings.Contains(errs, "bulkhead start -a -i db") {
		t.Errorf("%q, exit code %d", errs, code)
	}
}

func TestCIDFile(t *testing.T) {
	d := newDaemon(t)
	path := filepath.Join(t.TempDir(), "cid")
	if _, errs, code := call(t, d.socket, "create", "--cidfile", path, "x"); code != 0 {
		t.Fatal(errs)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != strings.Repeat("f", 64) {
		t.Errorf("%q, %v", b, err)
	}
	if _, errs, code := call(t, d.socket, "create", "--cidfile", path, "x"); code != 125 || !strings.Contains(errs, "is there already") {
		t.Errorf("%q, exit code %d", errs, code)
	}
	d.fail["POST /v1/containers"] = api.Errorf(api.KindConflict, "the name is taken")
	if _, _, code := call(t, d.socket, "create", "--cidfile", path+"2", "x"); code != 125 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(path + "2"); !os.IsNotExist(err) {
		t.Errorf("a file without a container stays: %v", err)
	}
}

func TestLogs(t *testing.T) {
	d := newDaemon(t)
	at := time.Date(2026, 1, 31, 12, 0, 0, 5, time.UTC)
	d.logs = []api.LogLine{
		{Time: at, Stream: "stdout", Line: "one"},
		{Time: at, Stream: "stdout", Line: "tw", Partial: true},
		{Time: at, Stream: "stderr", Line: "bad"},
		{Time: at, Stream: "stdout", Line: "o"},
	}
	out, errs, code := call(t, d.socket, "logs", "-t", "-f", "-n", "5", "--since", "1h", "web")
	const stamp = "2026-01-31T12:00:00.000000005Z "
	if out != stamp+"one\n"+stamp+"two\n" || errs != stamp+"bad\n" || code != 0 {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
	if r := d.noted()[0]; r != "GET /v1/containers/web/logs?follow=true&since=2026-01-31T11%3A00%3A00Z&stderr=true&stdout=true&tail=5" {
		t.Error(r)
	}
}

func TestStats(t *testing.T) {
	d := newDaemon(t)
	out, errs, code := call(t, d.socket, "stats", "--no-stream", "web")
	if code != 0 {
		t.Fatal(errs)
	}
	golden(t, "stats.txt", out)
	var b strings.Builder
	for _, line := range []string{"stats --net --no-stream web", "stats --net --no-stream -o json web", "stats --net --no-stream -o name web", "stats --rules --no-stream web", "stats --rules --no-stream -o json web", "stats --rules --net web"} {
		out, errs, code := call(t, d.socket, strings.Fields(line)...)
		writeCall(&b, line, out, errs, code)
	}
	golden(t, "stats_net.txt", b.String())
}

// TestProgress is pull without a terminal: a line when something begins or ends.
func TestProgress(t *testing.T) {
	d := newDaemon(t)
	layer := "sha256:" + strings.Repeat("a", 64)
	d.pull = []api.ImageProgress{
		{Phase: "resolving"},
		{Layer: layer, Phase: "downloading", Total: 1000},
		{Layer: layer, Phase: "downloading", Current: 500, Total: 1000},
		{Layer: layer, Phase: "done", Current: 1000, Total: 1000},
		{Layer: "sha256:\x1b[2J", Phase: "exists"},
	}
	out, errs, code := call(t, d.socket, "pull", "x")
	want := "aaaaaaaaaaaa: downloading 1kB\naaaaaaaaaaaa: done\n\\x1b[2J: exists\n"
	if errs != want || out != d.Images[0].ID+"\n" || code != 0 {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
	if out, errs, _ := call(t, d.socket, "pull", "-q", "x"); errs != "" || out == "" {
		t.Errorf("%q, %q", out, errs)
	}
}

// TestWrongInput: what is wrong is said, with what to do, and not by an exit code of 0.
func TestWrongInput(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args       []string
		what, next string
	}{
		{[]string{"completion", "tcsh"}, `no completion for the shell "tcsh"`, "bash, zsh, fish"},
		{[]string{"image", "import", dir, "x"}, "is a directory", "tar -C " + dir},
	} {
		_, errs, code := call(t, newDaemon(t).socket, c.args...)
		if code == 0 || !strings.Contains(errs, c.what) || !strings.Contains(errs, "next: ") || !strings.Contains(errs, c.next) {
			t.Errorf("%q: exit code %d, %q", c.args, code, errs)
		}
	}
	if out, _, code := call(t, newDaemon(t).socket, "completion"); code != 0 || !strings.Contains(out, "bash") {
		t.Errorf("the help of completion: exit code %d, %q", code, out)
	}
}

func TestNoDaemon(t *testing.T) {
	_, errs, code := call(t, "/nonexistent/socket", "ps")
	if code != 125 || !strings.Contains(errs, "next: ") {
		t.Errorf("%q, exit code %d", errs, code)
	}
	out, _, code := call(t, "/nonexistent/socket", "version")
	if code != 0 || !strings.Contains(out, "bulkhead 1.0.0") || !strings.Contains(out, "not reached") {
		t.Errorf("%q, exit code %d", out, code)
	}
	d := newDaemon(t)
	if out, _, _ := call(t, d.socket, "version"); !strings.Contains(out, "daemon   1.0.0, HCN version 15.4") {
		t.Errorf("%q", out)
	}
	var b bytes.Buffer
	env := func(name string) (string, bool) { return "unix://" + d.socket, name == "BULKHEAD_HOST" }
	if code := Main(context.Background(), Deps{Stdout: &b, Stderr: &b, Env: env}, []string{"network", "ls"}); code != 0 {
		t.Errorf("BULKHEAD_HOST: exit code %d: %s", code, &b)
	}
}

func TestDetachKeys(t *testing.T) {
	for in, want := range map[string]string{"": "", "ctrl-p,ctrl-q": "\x10\x11", "ctrl-a,d": "\x01d", "ctrl-@": "\x00", "ctrl-[": "\x1b"} {
		if got, err := parseDetachKeys(in); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-1", "ab", "ctrl-p,", "strg-p"} {
		_, err := parseDetachKeys(in)
		wantNext(t, err)
	}
	for in, want := range map[string]string{
		"abc": "abc", "a\x10b": "a\x10b", "a\x10\x11b": "a", "\x10\x10\x11": "\x10", "x\x10": "x\x10", "\x11\x10": "\x11\x10", "": "",
	} {
		for _, chunk := range []int{1, 2, 100} {
			d := newDetachReader(io.LimitReader(&slowReader{[]byte(in), chunk}, 1<<20), []byte{0x10, 0x11})
			got, err := io.ReadAll(d)
			gone := false
			select {
			case <-d.detached:
				gone = true
			default:
			}
			if string(got) != want || err != nil || gone != strings.Contains(in, "\x10\x11") {
				t.Errorf("%q by %d: %q, %v, detached %v", in, chunk, got, err, gone)
			}
		}
	}
}

// slowReader gives a few bytes at a time.
type slowReader struct {
	left []byte
	n    int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.n)], r.left)
	r.left = r.left[n:]
	return n, nil
}
