package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// conmon writes one line of log for each line or read of 8 KiB, "TIME STREAM TAG
// TEXT", TAG being F for a full line and P for a part of one. When the file would
// pass its limit conmon puts an empty one in its place, and the old one is lost.
// It is not lost to us: a second link keeps it. So a log is up to three files:
//
//	container.log.1     the one before
//	container.log.next  a link of the current one, or, just after a rotation, the one before it
//	container.log       what conmon writes
const (
	logFile = "container.log"
	logNext = logFile + ".next"
	logOld  = logFile + ".1"

	maxLogLine = 64 << 10 // a longer line is given out in parts
)

// prepareLog makes room for a new run, which counts its bytes from nothing.
func (r *Runtime) prepareLog(id string) error {
	dir := r.logDir(id)
	if st, err := os.Stat(filepath.Join(dir, logFile)); err == nil && st.Size() > r.logSize/2 {
		if err := linkLog(dir); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, logFile)); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return linkLog(dir)
}

// linkLog keeps the current file against the next rotation.
func linkLog(dir string) error {
	log, next := filepath.Join(dir, logFile), filepath.Join(dir, logNext)
	a, err := os.Stat(log)
	if err != nil {
		return err
	}
	if b, err := os.Stat(next); err == nil {
		if os.SameFile(a, b) {
			return nil
		}
		if err := os.Rename(next, filepath.Join(dir, logOld)); err != nil {
			return err
		}
	}
	return os.Link(log, next)
}

// Logs gives out what a container wrote, oldest first, across its restarts. Parts
// of a line are joined. With Follow it goes on until the container has ended.
func (r *Runtime) Logs(ctx context.Context, id string, o api.LogOptions, emit func(api.LogLine) error) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("read log of container: %w", err)
	}
	if !exists(r.storage(id)) {
		return fmt.Errorf("read log of container %.12s: %w", id, ErrNotFound)
	}
	if err := r.logs(ctx, id, o, emit); err != nil {
		return fmt.Errorf("read log of container %.12s: %w", id, err)
	}
	return nil
}

func (r *Runtime) logs(ctx context.Context, id string, o api.LogOptions, emit func(api.LogLine) error) error {
	if !o.Stdout && !o.Stderr {
		o.Stdout, o.Stderr = true, true
	}
	var wake *logWake
	if o.Follow {
		var err error
		if wake, err = r.newLogWake(id); err != nil {
			return err
		}
		defer wake.close()
	}
	j := &joiner{opts: o, emit: emit, buffering: o.Tail >= 0}
	t := &tailer{dir: r.logDir(id)}
	defer t.close()
	for {
		// Whether it goes on is asked before reading: what was written before the
		// end is then certainly read.
		ended := !o.Follow || !r.alive(id)
		if err := t.read(ctx, j.line); err != nil {
			if errors.Is(err, errPastUntil) {
				return j.finish()
			}
			return err
		}
		if ended {
			return j.finish()
		}
		if err := j.caughtUp(); err != nil {
			return err
		}
		idle, err := wake.wait(ctx, j.pending())
		if err != nil {
			return err
		}
		if idle {
			if err := j.flush(); err != nil {
				return err
			}
		}
		if !o.Until.IsZero() && time.Now().After(o.Until) {
			return j.finish()
		}
	}
}

// alive tells whether a container may still write.
func (r *Runtime) alive(id string) bool {
	m, ok := r.monitorOf(id)
	if ok {
		m.close()
	}
	return ok
}

// tailer reads the files of a log one after the other, again and again.
type tailer struct {
	dir  string
	f    *os.File
	rest []byte // of a line that was not yet whole
}

func (t *tailer) close() {
	if t.f != nil {
		_ = t.f.Close()
	}
}

// read gives out the whole lines that are there now.
func (t *tailer) read(ctx context.Context, line func([]byte) error) error {
	if t.f == nil && !t.open(nil) {
		return nil // nothing was logged yet
	}
	for {
		// Look for a successor before reading to the end: its predecessor gets
		// nothing any more.
		last, err := t.last()
		if err != nil {
			return err
		}
		if err := t.drain(ctx, line); err != nil {
			return err
		}
		if last {
			return nil
		}
		t.rest = nil // conmon writes whole lines; this one was cut by a crash
		if !t.open(t.f) {
			return nil
		}
	}
}

// last tells whether the open file is the one that is being written.
func (t *tailer) last() (bool, error) {
	a, err := t.f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(filepath.Join(t.dir, logFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // removed with its container
	}
	return err == nil && os.SameFile(a, b), err
}

// open opens the file after the given one, or the oldest.
func (t *tailer) open(after *os.File) bool {
	var chain []*os.File
	var infos []os.FileInfo
	for _, name := range []string{logOld, logNext, logFile} {
		f, err := os.Open(filepath.Join(t.dir, name))
		if err != nil {
			continue
		}
		st, err := f.Stat()
		if err != nil || len(infos) > 0 && os.SameFile(infos[len(infos)-1], st) {
			_ = f.Close()
			continue
		}
		chain, infos = append(chain, f), append(infos, st)
	}
	pick := 0
	if after != nil {
		if st, err := after.Stat(); err == nil {
			for i := range infos {
				if os.SameFile(infos[i], st) {
					pick = i + 1
				}
			}
		}
		_ = after.Close()
		t.f = nil
	}
	for i, f := range chain {
		if i == pick {
			t.f = f
		} else {
			_ = f.Close()
		}
	}
	return t.f != nil
}

func (t *tailer) drain(ctx context.Context, line func([]byte) error) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := t.f.Read(buf)
		data := buf[:n]
		for {
			i := bytes.IndexByte(data, '\n')
			if i < 0 {
				break
			}
			whole := data[:i]
			if len(t.rest) > 0 {
				whole = append(t.rest, whole...)
				t.rest = nil
			}
			if err := line(whole); err != nil {
				return err
			}
			data = data[i+1:]
		}
		if len(t.rest)+len(data) <= 2*maxLogLine { // longer is none of conmon's
			t.rest = append(t.rest, data...)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var errPastUntil = errors.New("past the end asked for")

// joiner makes lines of log lines.
type joiner struct {
	opts      api.LogOptions
	emit      func(api.LogLine) error
	parts     [2]api.LogLine // of stdout and stderr, Stream empty when there is none
	buffering bool           // for Tail, until the end is reached
	last      []api.LogLine
}

func (j *joiner) line(raw []byte) error {
	l, ok := parseLogLine(string(raw))
	if !ok {
		return nil
	}
	if !j.opts.Until.IsZero() && l.Time.After(j.opts.Until) {
		return errPastUntil
	}
	p := &j.parts[0]
	if l.Stream == "stderr" {
		p = &j.parts[1]
	}
	if p.Stream == "" {
		*p = api.LogLine{Time: l.Time, Stream: l.Stream}
	}
	p.Line += l.Line
	p.Partial = l.Partial
	if l.Partial && len(p.Line) < maxLogLine {
		return nil
	}
	done := *p
	*p = api.LogLine{}
	return j.put(done)
}

func (j *joiner) put(l api.LogLine) error {
	if l.Stream == "stdout" && !j.opts.Stdout || l.Stream == "stderr" && !j.opts.Stderr {
		return nil
	}
	if l.Time.Before(j.opts.Since) {
		return nil
	}
	if !j.buffering {
		return j.emit(l)
	}
	j.last = append(j.last, l)
	if len(j.last) >= 2*j.opts.Tail+64 {
		j.last = append([]api.LogLine(nil), j.last[len(j.last)-j.opts.Tail:]...)
	}
	return nil
}

// caughtUp gives out the tail.
func (j *joiner) caughtUp() error {
	if !j.buffering {
		return nil
	}
	j.buffering = false
	tail := j.last[max(0, len(j.last)-j.opts.Tail):]
	j.last = nil
	for _, l := range tail {
		if err := j.emit(l); err != nil {
			return err
		}
	}
	return nil
}

func (j *joiner) pending() bool { return j.parts[0].Stream != "" || j.parts[1].Stream != "" }

// flush gives out lines whose end has not come, such as prompts.
func (j *joiner) flush() error {
	for i := range j.parts {
		if l := j.parts[i]; l.Stream != "" {
			j.parts[i] = api.LogLine{}
			if err := j.put(l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *joiner) finish() error {
	if err := j.flush(); err != nil {
		return err
	}
	return j.caughtUp()
}

func parseLogLine(s string) (api.LogLine, bool) {
	f := strings.SplitN(s, " ", 4)
	if len(f) < 4 || f[1] != "stdout" && f[1] != "stderr" {
		return api.LogLine{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, f[0])
	if err != nil {
		return api.LogLine{}, false
	}
	return api.LogLine{Time: at.UTC(), Stream: f[1], Line: f[3], Partial: f[2] == "P"}, true
}

// logWake waits for something to happen to a log.
type logWake struct{ f *os.File }

func (r *Runtime) newLogWake(id string) (*logWake, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("follow log: %w", err)
	}
	w := &logWake{os.NewFile(uintptr(fd), "inotify")}
	for dir, mask := range map[string]uint32{
		r.logDir(id): unix.IN_MODIFY | unix.IN_MOVED_TO | unix.IN_DELETE_SELF,
		r.exitDir():  unix.IN_MOVED_TO | unix.IN_DELETE,
	} {
		if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
			w.close()
			return nil, fmt.Errorf("follow log: %w", err)
		}
	}
	return w, nil
}

func (w *logWake) close() { _ = w.f.Close() }

// wait returns at once when something happened since the last call, and in any
// case after a second; with a part of a line in hand, soon, and says so.
func (w *logWake) wait(ctx context.Context, part bool) (idle bool, err error) {
	limit := time.Second
	if part {
		limit = 100 * time.Millisecond
	}
	if err := w.f.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return false, err
	}
	defer context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	_, err = w.f.Read(make([]byte, 4096))
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	return false, err
}
