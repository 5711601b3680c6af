package nat

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetns runs fn where processes and sockets that it starts belong to the host's network namespace. A thread that
// entered a namespace is not put back: it ends with its goroutine.
func (a *Applier) inNetns(fn func() error) error {
	if a.netns == nil {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(a.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the host's network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
