package wireguard

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// virtioHeader is the length of what precedes each packet of a TUN device that has IFF_VNET_HDR (linux/virtio_net.h).
const virtioHeader = 10

// maxPacket is what a TUN device gives at most at once.
const maxPacket = 1<<16 + virtioHeader

// batchTun reads all packets that a TUN device has. wireguard-go's own reads one, or one large one of TCP that it cuts itself; but what
// comes here is VXLAN, which the kernel cuts, so that a stream would come packet by packet, each with its own turn through the
// goroutines that encrypt and send.
type batchTun struct {
	tun.Device
	raw syscall.RawConn
	mu  sync.Mutex
	buf []byte
}

// newBatchTun takes a device over that has IFF_VNET_HDR, as wireguard-go makes them, from which nobody has read.
func newBatchTun(t tun.Device) (*batchTun, error) {
	raw, err := t.File().SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reach the TUN device: %w", err)
	}
	// Nothing is left to us: neither segments nor checksums. What we write may have both all the same.
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, 0) }); err != nil || failed != nil {
		return nil, fmt.Errorf("turn off the TUN device's offloads: %w", errors.Join(err, failed))
	}
	return &batchTun{Device: t, raw: raw, buf: make([]byte, maxPacket)}, nil
}

// Read waits for a packet and takes along those behind it, as many as there is room for. It implements tun.Device.
func (b *batchTun) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var failed error
	err = b.raw.Read(func(fd uintptr) bool {
		for n < len(bufs) {
			m, err := unix.Read(int(fd), b.buf)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return n > 0
			case err != nil:
				failed = err
				return true
			}
			if m < virtioHeader || m-virtioHeader > len(bufs[n])-offset { // no packet of ours is as large
				continue
			}
			sizes[n] = copy(bufs[n][offset:], b.buf[virtioHeader:m])
			n++
		}
		return true
	})
	switch {
	case n > 0: // an error comes again
		return n, nil
	case err != nil, errors.Is(failed, unix.EBADFD): // closed, or the device was deleted
		return 0, os.ErrClosed
	}
	return 0, failed
}
