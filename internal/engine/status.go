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
	cut     uint64           // up to here, what went is cut off
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

// setCut notes that what went up to a revision is cut off.
func (s *status) setCut(rev uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = max(s.cut, rev)
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
	return s.until(ctx, func() bool { return s.applied >= rev }, objects...)
}

// waitCut blocks until what a revision took away is cut off.
func (s *status) waitCut(ctx context.Context, rev uint64) error {
	return s.until(ctx, func() bool { return max(s.applied, s.cut) >= rev })
}

func (s *status) until(ctx context.Context, reached func() bool, objects ...object) error {
	for {
		s.mu.Lock()
		if reached() {
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
