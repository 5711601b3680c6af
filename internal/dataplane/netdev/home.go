package netdev

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// home is the host: the network and mount namespace of the thread that called New. For the daemon these are the
// process's own, and home costs nothing. A test makes its "host" on one thread of a process that lives elsewhere; there,
// all work that opens paths, sockets or sysctls enters the host first.
type home struct {
	net, mnt int
	process  bool // the process lives in the host
}

func openHome() (*home, error) {
	h := &home{net: -1, mnt: -1}
	var err error
	if h.net, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if h.mnt, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		h.close()
		return nil, err
	}
	if h.process, err = h.isProcess(); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// isProcess asks a thread that nobody has moved.
func (h *home) isProcess() (bool, error) {
	same := false
	err := onThread(func() error {
		for fd, path := range map[int]string{h.net: "/proc/thread-self/ns/net", h.mnt: "/proc/thread-self/ns/mnt"} {
			var a, b unix.Stat_t
			if err := unix.Fstat(fd, &a); err != nil {
				return err
			}
			if err := unix.Stat(path, &b); err != nil {
				return err
			}
			if a.Ino != b.Ino {
				return nil
			}
		}
		same = true
		return nil
	})
	return same, err
}

func (h *home) close() {
	unix.Close(h.net)
	unix.Close(h.mnt)
}

// do runs fn in the host.
func (h *home) do(fn func() error) error {
	if h.process {
		return fn()
	}
	return onDoomedThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		return fn()
	})
}

// enter moves the calling thread, which has to die afterwards, into the host.
func (h *home) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system context: %w", err)
	}
	if err := unix.Setns(h.mnt, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the host's mount namespace: %w", err)
	}
	if err := unix.Setns(h.net, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the host's network namespace: %w", err)
	}
	return nil
}

// elsewhere runs fn on a thread that may leave the host's network namespace: move does so, and the way back is taken
// here. When it fails the thread ends with its goroutine.
func (h *home) elsewhere(move, fn func() error) error {
	if !h.process {
		return onDoomedThread(func() error {
			if err := h.enter(); err != nil {
				return err
			}
			if err := move(); err != nil {
				return err
			}
			return fn()
		})
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := move()
		if err == nil {
			err = fn()
		}
		if back := unix.Setns(h.net, unix.CLONE_NEWNET); back != nil {
			// Still locked: the runtime ends the thread.
			done <- err
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// onThread runs fn on a goroutine of its own, which is not locked to a thread that its caller may have moved.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- fn()
	}()
	return <-done
}

// onDoomedThread runs fn on a thread that ends afterwards. The process's first thread cannot end, and others look at
// the process through it, so it is spared: while one goroutine sits on it, a second gets another thread.
func onDoomedThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onDoomedThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}
