package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

func logRuntime(t *testing.T, files map[string]string) (*Runtime, string) {
	t.Helper()
	r := &Runtime{stateDir: t.TempDir(), runDir: t.TempDir(), logSize: 1 << 20}
	id := strings.Repeat("b", 64)
	must(t, os.MkdirAll(r.logDir(id), 0o755))
	must(t, os.MkdirAll(r.exitDir(), 0o755))
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(r.logDir(id), name), []byte(text), 0o600))
	}
	return r, id
}

func at(second int, stream, tag, text string) string {
	return fmt.Sprintf("2024-01-01T00:00:%02d.000000000+00:00 %s %s %s\n", second, stream, tag, text)
}

func TestLogs(t *testing.T) {
	text := at(1, "stdout", "F", "one") + at(2, "stdout", "P", "tw") + at(2, "stderr", "F", "warn") + at(3, "stdout", "F", "o") +
		"rubbish\n" + at(4, "stdout", "F", "") + at(5, "stdout", "P", "prompt> ")
	second := func(n int) time.Time { return time.Date(2024, 1, 1, 0, 0, n, 0, time.UTC) }
	for name, c := range map[string]struct {
		opts api.LogOptions
		want string
	}{
		"all":    {api.LogOptions{Tail: -1}, "o:one|e:warn|o:two|o:|o:prompt> ~"},
		"stdout": {api.LogOptions{Tail: -1, Stdout: true}, "o:one|o:two|o:|o:prompt> ~"},
		"stderr": {api.LogOptions{Tail: -1, Stderr: true}, "e:warn"},
		"tail":   {api.LogOptions{Tail: 2}, "o:|o:prompt> ~"},
		"none":   {api.LogOptions{Tail: 0}, ""},
		"since":  {api.LogOptions{Tail: -1, Since: second(4)}, "o:|o:prompt> ~"},
		"until":  {api.LogOptions{Tail: -1, Until: second(2)}, "o:one|e:warn|o:tw~"},
		"window": {api.LogOptions{Tail: 1, Since: second(1), Until: second(3)}, "o:two"},
	} {
		t.Run(name, func(t *testing.T) {
			r, id := logRuntime(t, map[string]string{logFile: text})
			var got []string
			must(t, r.Logs(context.Background(), id, c.opts, func(l api.LogLine) error {
				s := l.Stream[3:4] + ":" + l.Line
				if l.Partial {
					s += "~"
				}
				got = append(got, s)
				return nil
			}))
			if text := strings.Join(got, "|"); text != c.want {
				t.Errorf("got %s, want %s", text, c.want)
			}
		})
	}
}

func TestLogLongLine(t *testing.T) {
	var text strings.Builder
	for range 20 {
		text.WriteString(at(1, "stdout", "P", strings.Repeat("x", 8192)))
	}
	text.WriteString(at(1, "stdout", "F", "end"))
	r, id := logRuntime(t, map[string]string{logFile: text.String()})
	total, longest, last := 0, 0, api.LogLine{}
	must(t, r.Logs(context.Background(), id, api.LogOptions{Tail: -1}, func(l api.LogLine) error {
		total, longest, last = total+len(l.Line), max(longest, len(l.Line)), l
		return nil
	}))
	if total != 20*8192+3 || longest > maxLogLine+8192 || last.Partial {
		t.Errorf("%d bytes, longest %d, last partial %v", total, longest, last.Partial)
	}
}

// TestLogRotation does what conmon does, with and without a daemon that sees it.
func TestLogRotation(t *testing.T) {
	for _, watched := range []bool{true, false} {
		r, id := logRuntime(t, nil)
		must(t, r.prepareLog(id))
		log := filepath.Join(r.logDir(id), logFile)
		var want []string
		for i := range 3 {
			f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString(at(i, "stdout", "F", fmt.Sprint(i)))
			must(t, err)
			must(t, f.Close())
			want = append(want, fmt.Sprint(i))
			if i == 2 {
				break
			}
			must(t, os.WriteFile(log+".tmp", nil, 0o600))
			must(t, os.Rename(log+".tmp", log))
			if watched {
				must(t, linkLog(r.logDir(id)))
			}
		}
		if watched {
			want = want[1:] // the current file and the one before
		} else {
			want = []string{"0", "2"} // the first was kept, the second not seen
		}
		var got []string
		must(t, r.Logs(context.Background(), id, api.LogOptions{Tail: -1}, func(l api.LogLine) error {
			got = append(got, l.Line)
			return nil
		}))
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("watched %v: got %v, want %v", watched, got, want)
		}
	}
}

func TestLogsStopWithTheirReader(t *testing.T) {
	r, id := logRuntime(t, map[string]string{logFile: at(1, "stdout", "F", "one") + at(2, "stdout", "F", "two")})
	gone, n := errors.New("gone"), 0
	err := r.Logs(context.Background(), id, api.LogOptions{Tail: -1}, func(api.LogLine) error { n++; return gone })
	if !errors.Is(err, gone) || n != 1 {
		t.Errorf("%v after %d lines", err, n)
	}
	if err := r.Logs(context.Background(), strings.Repeat("c", 64), api.LogOptions{}, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("log of nobody: %v", err)
	}
}
