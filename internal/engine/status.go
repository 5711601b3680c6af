package engine

import (
	"context"
	"maps"
	"sync"
)

// status tells callers how the loop did with their objects.
type status struct {
	mu      sync.Mutex
	applied uint64
	errs    map[object]error // of an object's last turn; only those that failed
	changed chan struct{}
	closed  error
}

func newStatus() *status { return &status{errs: map[object]error{}, changed: make(chan struct{})} }

// set notes a turn: the objects that had one, and the errors there were.
func (s *status) set(rev uint64, touched []object, errs map[object]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = max(s.applied, rev)
	for _, k := range touched {
		delete(s.errs, k)
	}
	maps.Copy(s.errs, errs)
	s.broadcast()
}

// replace notes that everything had a turn.
func (s *status) replace(rev uint64, errs map[object]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = max(s.applied, rev)
	s.errs = maps.Clone(errs)
	s.broadcast()
}

func (s *status) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = err
	s.broadcast()
}

func (s *status) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *status) failing() map[object]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.errs)
}

// wait blocks until the loop has applied a revision, and returns the error of
// the first of the objects that has one.
func (s *status) wait(ctx context.Context, rev uint64, objects ...object) error {
	for {
		s.mu.Lock()
		if s.applied >= rev {
			defer s.mu.Unlock()
			for _, k := range objects {
				if err := s.errs[k]; err != nil {
					return err
				}
			}
			return nil
		}
		if s.closed != nil {
			defer s.mu.Unlock()
			return s.closed
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
