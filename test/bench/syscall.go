package bench

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call on a file descriptor that the Go scheduler does not see, again when a signal interrupts it.
// The buffer may be nil; the fourth argument is the length, or accept4's flags.
func call(number uintptr, fd int, buf *[1]byte, last int) (int, error) {
	for {
		var n uintptr
		var errno unix.Errno
		if number == unix.SYS_ACCEPT4 {
			n, _, errno = unix.RawSyscall6(number, uintptr(fd), 0, 0, uintptr(last), 0, 0)
		} else {
			n, _, errno = unix.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(buf)), uintptr(last))
		}
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}
