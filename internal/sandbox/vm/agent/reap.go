package agent

import (
	"errors"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper collects the end of every process, for all that lose their parent become ours. Whoever starts one does so with the lock
// held, so that its end cannot be met before it is known.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
	// orphans ended before anybody asked for them: the first process of a container may, before its runtime has told its number. They
	// are kept for as long as a launch is under way, since numbers are used again.
	orphans  map[int]unix.WaitStatus
	order    []int
	launches int
}

const maxOrphans = 1024

func newReaper() *reaper {
	return &reaper{waiting: map[int]chan unix.WaitStatus{}, orphans: map[int]unix.WaitStatus{}}
}

// run reaps for ever.
func (r *reaper) run() {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, unix.SIGCHLD)
	for {
		r.collect()
		<-ends
	}
}

func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		r.ended(pid, st)
	}
}

func (r *reaper) ended(pid int, st unix.WaitStatus) {
	if ch := r.waiting[pid]; ch != nil {
		delete(r.waiting, pid)
		ch <- st
		return
	}
	if r.launches == 0 {
		return
	}
	if len(r.order) == maxOrphans {
		delete(r.orphans, r.order[0])
		r.order = r.order[1:]
	}
	r.orphans[pid] = st
	r.order = append(r.order, pid)
}

// launch begins a time in which a process may have to be adopted that has ended before.
func (r *reaper) launch() (over func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.launches++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.launches--; r.launches == 0 {
			clear(r.orphans)
			r.order = nil
		}
	}
}

// start starts a process and tells its end.
func (r *reaper) start(fork func() (int, error)) (<-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return nil, err
	}
	delete(r.orphans, pid) // of an earlier bearer of the number
	ch := make(chan unix.WaitStatus, 1)
	r.waiting[pid] = ch
	return ch, nil
}

// adopt tells the end of a process that another has started.
func (r *reaper) adopt(pid int) <-chan unix.WaitStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := make(chan unix.WaitStatus, 1)
	if st, over := r.orphans[pid]; over {
		delete(r.orphans, pid)
		ch <- st
		return ch
	}
	r.waiting[pid] = ch
	return ch
}
