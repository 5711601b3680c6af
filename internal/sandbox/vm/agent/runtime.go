package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sealedRuntime takes the OCI runtime into a file in memory that nobody can write to any more, and gives the path to execute it by. A
// runtime that is not in such a file copies itself into one each time, and begins anew there, lest a container write to it by
// /proc/PID/exe: emulated, that is a good part of what it takes to start a process.
func sealedRuntime(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("take the OCI runtime into memory: %w", err)
	}
	defer f.Close()
	fd, err := unix.MemfdCreate("container", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return "", fmt.Errorf("take the OCI runtime into memory: %w", err)
	}
	m := os.NewFile(uintptr(fd), "container")
	if _, err = io.Copy(m, f); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err == nil {
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // ours, which no finalizer closes
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("take the OCI runtime into memory: %w", err), m.Close())
	}
	_ = m.Close()
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

// callRuntime starts the OCI runtime with streams.
func (ps *processes) callRuntime(args []string, files [3]*os.File) (<-chan unix.WaitStatus, error) {
	return ps.start(func() (int, error) {
		return syscall.ForkExec(ps.runtime, append([]string{RuntimePath, "--root", runtimeRoot}, args...), &syscall.ProcAttr{
			Dir: "/", Env: []string{"PATH=/bin"}, Files: []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd()},
		})
	})
}
