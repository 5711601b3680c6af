package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addEntropy mixes the host's entropy in and has the generator seeded anew: clones of a VM would otherwise all draw the same.
func addEntropy(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/random", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info: how many bits the seed is worth, its length, the seed.
	buf := make([]byte, 8, 8+len(seed))
	binary.NativeEndian.PutUint32(buf, uint32(len(seed)*8))
	binary.NativeEndian.PutUint32(buf[4:], uint32(len(seed)))
	buf = append(buf, seed...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	const reseed = 0x5207 // RNDRESEEDCRNG
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), reseed, 0); errno != 0 {
		return fmt.Errorf("seed the generator anew: %w", errno)
	}
	return nil
}
