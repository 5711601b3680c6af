package testhost

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Captured is a frame seen on a device. Outgoing says that the host sent it through the device.
type Captured struct {
	Data     []byte
	Outgoing bool
}

// Capture collects the frames of a device until Stop, or the end of the test.
type Capture struct {
	h      *Host
	dev    string
	filter string
	fd     int
	ending atomic.Bool
	done   chan struct{}
	once   sync.Once

	mu     sync.Mutex
	frames []Captured
}

// Capture starts to collect what passes dev, in both directions, as far as its Describe line contains filter ("" is
// everything, "arp who-has", "udp 1000 > 53"). Frames that come after it returned are not missed. Checksums that the
// kernel leaves to the NIC show as bad: filter on what stands before them.
func (h *Host) Capture(dev, filter string) *Capture {
	h.t.Helper()
	c := &Capture{h: h, dev: dev, filter: filter, done: make(chan struct{})}
	var err error
	if c.fd, err = h.packetSocket(dev, unix.ETH_P_ALL); err != nil {
		h.t.Fatalf("%s: capture on %s: %v", h.name, dev, err)
	}
	h.t.Cleanup(func() { c.Stop() })
	go c.collect()
	return c
}

// packetSocket opens an AF_PACKET socket on a device; with protocol 0 it only sends.
func (h *Host) packetSocket(dev string, protocol uint16) (int, error) {
	index := h.Link(dev).Attrs().Index
	fd := -1
	var err error
	h.Do(func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	network := protocol<<8 | protocol>>8
	if err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: index}); err == nil && protocol != 0 {
		// The kernel takes a VLAN tag off the data and tells it beside. Waiting in slices lets Stop end the reader.
		if err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set up packet socket: %w", err)
	}
	return fd, nil
}

func (c *Capture) collect() {
	defer close(c.done)
	buf, oob := make([]byte, 1<<18), make([]byte, 256)
	for {
		n, oobn, _, from, err := unix.Recvmsg(c.fd, buf, oob, 0)
		switch {
		case err == unix.EAGAIN && c.ending.Load():
			return // and what came before Stop has been read
		case err == unix.EAGAIN || err == unix.EINTR || err == unix.ENETDOWN:
			continue
		case err != nil:
			return
		}
		data := withTag(append([]byte(nil), buf[:n]...), oob[:oobn])
		if c.filter != "" && !strings.Contains(Describe(data), c.filter) {
			continue
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		c.mu.Lock()
		c.frames = append(c.frames, Captured{Data: data, Outgoing: ll != nil && ll.Pkttype == unix.PACKET_OUTGOING})
		c.mu.Unlock()
	}
}

// withTag puts a VLAN tag back where it was on the wire.
func withTag(data, oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(data) < 14 {
		return data
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
		if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 {
			tag := binary.BigEndian.AppendUint16([]byte{0x81, 0}, aux.Vlan_tci)
			return append(append(append([]byte(nil), data[:12]...), tag...), data[12:]...)
		}
	}
	return data
}

// Frames lists what was seen so far.
func (c *Capture) Frames() []Captured {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Captured(nil), c.frames...)
}

// Lines lists what was seen so far as Describe has it.
func (c *Capture) Lines() []string {
	var lines []string
	for _, f := range c.Frames() {
		lines = append(lines, Describe(f.Data))
	}
	return lines
}

// Wait waits up to two seconds for a frame whose Describe line contains part, and returns the first. The test fails
// without one.
func (c *Capture) Wait(part string) Captured {
	c.h.t.Helper()
	var found Captured
	Eventually(c.h.t, 2*time.Second, func() error {
		for _, f := range c.Frames() {
			if strings.Contains(Describe(f.Data), part) {
				found = f
				return nil
			}
		}
		return fmt.Errorf("%s %s: no frame with %q among:\n%s", c.h.name, c.dev, part, strings.Join(c.Lines(), "\n"))
	})
	return found
}

// Stop ends the capture and lists what was seen.
func (c *Capture) Stop() []Captured {
	c.once.Do(func() {
		c.ending.Store(true)
		<-c.done
		unix.Close(c.fd)
	})
	return c.Frames()
}

// SendFrame puts a frame on the wire through dev, as it is.
func (h *Host) SendFrame(dev string, frame []byte) {
	h.t.Helper()
	fd, err := h.packetSocket(dev, 0)
	if err != nil {
		h.t.Fatalf("%s: send on %s: %v", h.name, dev, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, frame); err != nil {
		h.t.Fatalf("%s: send on %s: %v: %s", h.name, dev, err, Describe(frame))
	}
}
