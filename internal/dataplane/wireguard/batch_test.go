package wireguard

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestBatch: what waits is read at once and in its order, as much of it as there is room for; who finds nothing waits for it, or for the
// end of the device.
func TestBatch(t *testing.T) {
	h := testhost.New(t)
	var b *batchTun
	h.Do(func() {
		dev, err := tun.CreateTUN("wg0", 1400)
		if err == nil {
			b, err = newBatchTun(dev)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	for _, args := range [][]string{{"addr", "add", "192.0.2.1/24", "dev", "wg0"}, {"link", "set", "wg0", "addrgenmode", "none", "up"}} {
		h.Run(t, "ip", args...)
	}
	c, err := h.DialContext(t.Context(), "udp", "192.0.2.2:7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const offset, header = 16, 28
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	next := byte(0)
	read := func() int {
		t.Helper()
		n, err := b.Read(bufs, sizes, offset)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			p := bufs[i][offset : offset+sizes[i]]
			if len(p) != header+1000+int(next) || p[0] != 0x45 || p[header] != next {
				t.Fatalf("packet %d is %d bytes: %x", next, len(p), p[:min(len(p), header+4)])
			}
			next++
		}
		return n
	}
	send := func(from, to byte) {
		for i := from; i < to; i++ {
			payload := make([]byte, 1000+int(i))
			payload[0] = i
			if _, err := c.Write(payload); err != nil {
				t.Error(err)
			}
		}
	}
	send(0, 20)
	for _, want := range []int{8, 8, 4} {
		if n := read(); n != want {
			t.Errorf("%d packets at once, want %d", n, want)
		}
	}
	time.AfterFunc(50*time.Millisecond, func() { send(20, 21) })
	if n := read(); n != 1 {
		t.Errorf("%d packets, want the one that was waited for", n)
	}
	time.AfterFunc(50*time.Millisecond, func() { b.Close() })
	if _, err := b.Read(bufs, sizes, offset); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of a closed device: %v, want %v", err, os.ErrClosed)
	}
	if _, err := newBatchTun(b.Device); err == nil {
		t.Error("a closed device is taken over")
	}
}
