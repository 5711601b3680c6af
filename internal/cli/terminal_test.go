package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// pty is a terminal with somebody at the other side.
type pty struct {
	keyboard *os.File // what is written here is typed
	terminal *os.File // what the program has

	mu     sync.Mutex
	screen bytes.Buffer
}

func newPTY(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo terminals: %v", err)
	}
	var unlock int32
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, int(unlock)); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{keyboard: master, terminal: slave}
	p.resize(t, 24, 80)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.screen.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { slave.Close(); master.Close() })
	return p
}

func (p *pty) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(p.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

func (p *pty) shown() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.screen.String()
}

// settings are the terminal's, to see that they come back.
func (p *pty) settings(t *testing.T) unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(p.terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// TestRunOnTerminal types into a container, makes the window smaller, and leaves.
func TestRunOnTerminal(t *testing.T) {
	p, d := newPTY(t), newDaemon(t)
	left := make(chan struct{})
	d.process = func(in io.Reader, out *api.FrameWriter) {
		defer close(left)
		_, _ = io.Copy(out.Channel(api.ChannelStdout), in)
	}
	before := p.settings(t)
	code := make(chan int, 1)
	go func() {
		code <- Main(t.Context(), Deps{Stdin: p.terminal, Stdout: p.terminal, Stderr: io.Discard}, []string{"-H", "unix://" + d.socket, "run", "-it", "x"})
	}()
	eventually(t, "the first size", func() bool { return slices.Contains(d.noted(), `resize {"rows":24,"cols":80}`) })
	// ctrl-c is a character here, and not a signal.
	if _, err := p.keyboard.WriteString("hi\x03"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the echo", func() bool { return strings.Contains(p.shown(), "hi\x03") })
	p.resize(t, 10, 40)
	_ = unix.Kill(os.Getpid(), unix.SIGWINCH) // the test does not have the terminal as its own
	eventually(t, "the new size", func() bool { return slices.Contains(d.noted(), `resize {"rows":10,"cols":40}`) })
	if _, err := p.keyboard.WriteString("\x10\x11"); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-code:
		if c != 0 {
			t.Errorf("exit code %d", c)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the detach keys do not detach")
	}
	<-left
	if after := p.settings(t); after != before {
		t.Errorf("the terminal was left as %+v", after)
	}
	if all := strings.Join(d.noted(), "\n"); strings.Contains(all, "DELETE") || strings.Contains(all, "kill") {
		t.Errorf("detaching is not ending:\n%s", all)
	}
}

// TestProgressOnTerminal draws bars and comes to an end, also after an error.
func TestProgressOnTerminal(t *testing.T) {
	for name, fail := range map[string]error{"done": nil, "failed": api.Errorf(api.KindUnavailable, "the registry is gone")} {
		t.Run(name, func(t *testing.T) {
			p, d := newPTY(t), newDaemon(t)
			layer := "sha256:" + strings.Repeat("a", 64)
			d.pull = []api.ImageProgress{
				{Layer: layer, Phase: "downloading", Total: 1000},
				{Layer: layer, Phase: "downloading", Current: 1000, Total: 1000},
				{Layer: layer, Phase: "unpacking", Current: 500, Total: 1000},
				{Layer: layer, Phase: "done", Current: 1000, Total: 1000},
			}
			if fail != nil {
				d.pull = append(d.pull[:1], api.ImageProgress{Error: fail.Error()})
			}
			code := make(chan int, 1)
			go func() {
				code <- Main(t.Context(), Deps{Stdin: p.terminal, Stdout: io.Discard, Stderr: p.terminal}, []string{"-H", "unix://" + d.socket, "pull", "x"})
			}()
			select {
			case c := <-code:
				if (c == 0) != (fail == nil) {
					t.Errorf("exit code %d", c)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the bars do not end")
			}
			eventually(t, "the bar", func() bool { return strings.Contains(p.shown(), "aaaaaaaaaaaa") })
		})
	}
}

func TestColours(t *testing.T) {
	d := newDaemon(t)
	for name, tc := range map[string]struct {
		env  map[string]string
		args []string
		want bool
	}{
		"terminal":   {nil, []string{"network", "ls"}, true},
		"picture":    {nil, []string{"topology"}, true},
		"NO_COLOR":   {map[string]string{"NO_COLOR": "1"}, []string{"network", "ls"}, false},
		"dumb":       {map[string]string{"TERM": "dumb"}, []string{"topology"}, false},
		"--no-color": {nil, []string{"--no-color", "topology"}, false},
	} {
		p := newPTY(t)
		env := func(k string) (string, bool) { v, ok := tc.env[k]; return v, ok }
		code := Main(t.Context(), Deps{Stdout: p.terminal, Stderr: p.terminal, Env: env}, append([]string{"-H", "unix://" + d.socket}, tc.args...))
		eventually(t, "the output", func() bool { return strings.Contains(p.shown(), "\n") })
		if got := strings.Contains(p.shown(), "\x1b["); got != tc.want || code != 0 {
			t.Errorf("%s: colours %v, exit code %d", name, got, code)
		}
	}
}
