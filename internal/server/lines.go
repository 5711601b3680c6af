package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/bulkhead-net/bulkhead/api"
)

// lines is an answer of newline-delimited JSON. It begins with the first line, so that a call that fails before is answered
// with an error as any other; one that fails later ends with the error record as its last line.
type lines struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

func newLines(w http.ResponseWriter) *lines { return &lines{w: w, rc: http.NewResponseController(w)} }

func (l *lines) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", typeNDJSON)
	}
}

// send writes a line; flush hands it to the client at once.
func (l *lines) send(v any, flush bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a line: %w", err)
	}
	l.begin()
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write a line: %w", err)
	}
	if !flush {
		return nil
	}
	return l.rc.Flush()
}

// end is the answer of the handler: the error if nothing has been sent yet.
func (l *lines) end(err error) error {
	switch {
	case err != nil && !l.begun:
		return err
	case err != nil:
		// If it is the client that went away, this fails as well, and there is nobody to tell.
		_ = l.send(apiError(err), false)
		if rec, ok := l.w.(*recorder); ok {
			rec.err = err
		}
		return nil
	}
	l.begin()
	return nil
}

// progress sends the progress of an image. The work must not wait for a slow reader: of each layer only the newest message is
// kept until it can be sent.
type progress struct {
	lines *lines
	wake  chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	pending []api.ImageProgress
	closed  bool
}

func newProgress(w http.ResponseWriter) *progress {
	p := &progress{lines: newLines(w), wake: make(chan struct{}, 1), done: make(chan struct{})}
	go p.run()
	return p
}

// report may be called by several goroutines.
func (p *progress) report(m api.ImageProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for i := range p.pending {
		if p.pending[i].Layer == m.Layer {
			p.pending[i] = m
			p.signal()
			return
		}
	}
	p.pending = append(p.pending, m)
	p.signal()
}

func (p *progress) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *progress) take() ([]api.ImageProgress, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch := p.pending
	p.pending = nil
	return batch, p.closed
}

func (p *progress) run() {
	defer close(p.done)
	for range p.wake {
		batch, closed := p.take()
		for i, m := range batch {
			if p.lines.send(m, i == len(batch)-1) != nil {
				break // the work goes on for those who come after; a client that has gone ends it by its context
			}
		}
		if closed {
			return
		}
	}
}

// close waits until what was reported has been sent. It may be called again.
func (p *progress) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.signal()
	<-p.done
}

// end sends what is left and then the last message, or the error.
func (p *progress) end(last api.ImageProgress, err error) error {
	p.close()
	if err == nil {
		err = p.lines.send(last, false)
	}
	return p.lines.end(err)
}
