package proto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// again is what a host says before it begins a session where another has rested. It is longer than the head of a frame, and no frame
// begins with such a version, so what is left of the session before it is never taken for it.
var again = []byte("\xffbulkhead again\xff")

// ErrRests ends a session that rested when the next one begins.
var ErrRests = errors.New("the session rests, and another begins")

// Again begins a session with a guest that rests (OpRest): it was saved then, and restored since. A client is made after it.
func Again(conn io.Writer) error {
	if _, err := conn.Write(again); err != nil {
		return fmt.Errorf("speak with the guest again: %w", err)
	}
	return nil
}

// Line is the guest's end of the byte stream, which outlives the host's end: a VM is saved with it, and whoever restores the VM has
// another. So sessions follow each other on it.
type Line struct {
	port  io.ReadWriteCloser
	after []byte // what came behind the mark of the session that begins
}

// NewLine takes over the port.
func NewLine(port io.ReadWriteCloser) *Line { return &Line{port: port} }

// Session is the next one's stream. There is one at a time.
func (l *Line) Session() *Session { return &Session{line: l} }

// Session is the stream of one session.
type Session struct {
	line    *Line
	resting atomic.Bool
	over    atomic.Bool
	seen    []byte // the end of what was skipped, which may be the beginning of the mark
}

// Rest has the session say nothing more, and skip what it is told until another begins.
func (s *Session) Rest() { s.resting.Store(true) }

// Over tells that another session is to follow this one.
func (s *Session) Over() bool { return s.over.Load() }

// Read implements io.Reader.
func (s *Session) Read(p []byte) (int, error) {
	if n := copy(p, s.line.after); n > 0 {
		s.line.after = s.line.after[n:]
		return n, nil
	}
	for {
		if s.over.Load() {
			return 0, ErrRests
		}
		n, err := s.line.port.Read(p)
		if !s.resting.Load() {
			return n, err
		}
		s.seen = append(s.seen, p[:n]...)
		if at := bytes.Index(s.seen, again); at >= 0 {
			s.line.after = bytes.Clone(s.seen[at+len(again):])
			s.over.Store(true)
			return 0, ErrRests
		}
		s.seen = bytes.Clone(s.seen[max(0, len(s.seen)-len(again)+1):])
		if err != nil {
			return 0, err
		}
	}
}

// Write implements io.Writer. What a session that rests has to say is for a host that is not there any more.
func (s *Session) Write(p []byte) (int, error) {
	if s.resting.Load() {
		return len(p), nil
	}
	return s.line.port.Write(p)
}

// Close implements io.Closer.
func (s *Session) Close() error {
	if s.resting.Load() {
		return nil
	}
	return s.line.port.Close()
}
