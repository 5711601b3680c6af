package process

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// watcher sleeps in one epoll for all containers: on the pidfds of their monitors,
// whose end is the container's, and on their log directories, where a rotation has
// to be followed by a new link.
type watcher struct {
	r       *Runtime
	epoll   int
	stop    int // eventfd
	inotify int

	mu       sync.Mutex
	closed   bool
	monitors map[int32]watched // by pidfd
	logs     map[int32]string  // container by inotify watch
	subs     map[*subscriber]struct{}
	wg       sync.WaitGroup
}

type watched struct {
	id string
	p  *proc
}

// subscriber gets every exit, in its own time.
type subscriber struct {
	mu      sync.Mutex
	pending []api.SandboxExit
	wake    chan struct{}
}

func newWatcher(r *Runtime) (*watcher, error) {
	w := &watcher{
		r: r, epoll: -1, stop: -1, inotify: -1,
		monitors: map[int32]watched{}, logs: map[int32]string{}, subs: map[*subscriber]struct{}{},
	}
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
		if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
			w.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		}
	}
	for _, fd := range []int{w.stop, w.inotify} {
		if err == nil {
			err = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
		}
	}
	if err != nil {
		w.closeFDs()
		return nil, fmt.Errorf("watch containers: %w", err)
	}
	w.wg.Add(1)
	go w.run()
	return w, nil
}

func (w *watcher) closeFDs() {
	for _, fd := range []int{w.epoll, w.stop, w.inotify} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// close ends the watching and waits for everything it started.
func (w *watcher) close() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	for s := range w.subs {
		close(s.wake)
	}
	w.subs = nil
	w.mu.Unlock()
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.stop, one[:])
	w.wg.Wait()
	for _, m := range w.monitors {
		m.p.close()
	}
	w.closeFDs()
}

// add watches a container. It takes over the monitor.
func (w *watcher) add(id string, m *proc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		m.close()
		return
	}
	wd, err := unix.InotifyAddWatch(w.inotify, w.r.logDir(id), unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	if err == nil {
		w.logs[int32(wd)] = id
	} else {
		w.r.log.Warn("log of container is not watched for rotation", "container", id, "error", err)
	}
	w.monitors[int32(m.fd)] = watched{id, m}
	err = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, m.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(m.fd)})
	if err != nil {
		w.r.log.Error("container is not watched", "container", id, "error", err)
	}
}

func (w *watcher) run() {
	defer w.wg.Done()
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			w.r.log.Error("watching containers ended", "error", err)
			return
		}
		for _, e := range events[:max(n, 0)] {
			switch e.Fd {
			case int32(w.stop):
				return
			case int32(w.inotify):
				w.rotations()
			default:
				w.ended(e.Fd)
			}
		}
	}
}

// ended handles the end of a monitor, beside the loop as the container may be
// locked for a while.
func (w *watcher) ended(fd int32) {
	w.mu.Lock()
	m, ok := w.monitors[fd]
	delete(w.monitors, fd)
	for wd, id := range w.logs {
		if ok && id == m.id {
			delete(w.logs, wd)
			_, _ = unix.InotifyRmWatch(w.inotify, uint32(wd))
		}
	}
	w.mu.Unlock()
	if !ok {
		return
	}
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, int(fd), nil)
	m.p.close()
	w.wg.Go(func() {
		unlock := w.r.lock(m.id)
		w.r.settle(m.id)
		unlock()
		w.publish(api.SandboxExit{ID: m.id})
	})
}

// rotations links the logs that were begun anew.
func (w *watcher) rotations() {
	buf := make([]byte, 16<<10)
	n, err := unix.Read(w.inotify, buf)
	if err != nil {
		return
	}
	for off := 0; off+unix.SizeofInotifyEvent <= n; {
		wd := int32(binary.NativeEndian.Uint32(buf[off:]))
		length := int(binary.NativeEndian.Uint32(buf[off+12:]))
		name := strings.TrimRight(string(buf[off+16:min(off+16+length, n)]), "\x00")
		off += unix.SizeofInotifyEvent + length
		w.mu.Lock()
		id, ok := w.logs[wd]
		w.mu.Unlock()
		if ok && name == logFile {
			if err := linkLog(w.r.logDir(id)); err != nil {
				w.r.log.Warn("rotated log not kept", "container", id, "error", err)
			}
		}
	}
}

func (w *watcher) publish(e api.SandboxExit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.subs {
		s.mu.Lock()
		s.pending = append(s.pending, e)
		s.mu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Exits reports containers that end from now on, until the context does; what
// ended before, State tells. A container may be reported that is deleted by now.
func (r *Runtime) Exits(ctx context.Context) <-chan api.SandboxExit {
	out := make(chan api.SandboxExit)
	s := &subscriber{wake: make(chan struct{}, 1)}
	w := r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		close(out)
		return out
	}
	w.subs[s] = struct{}{}
	w.wg.Go(func() {
		defer close(out)
		defer func() {
			w.mu.Lock()
			delete(w.subs, s)
			w.mu.Unlock()
		}()
		s.deliver(ctx, out)
	})
	return out
}

func (s *subscriber) deliver(ctx context.Context, out chan<- api.SandboxExit) {
	for {
		s.mu.Lock()
		list := s.pending
		s.pending = nil
		s.mu.Unlock()
		for _, e := range list {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case _, open := <-s.wake:
			if !open {
				return
			}
		}
	}
}
