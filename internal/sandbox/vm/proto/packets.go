package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// MaxPacket bounds what Packets carries at once.
const MaxPacket = 16 << 10

// broken is in the place of a length: what follows is the number of an error.
const broken = 0xffff

// Packets carries a socket's packets and its errors on a stream: each behind its length of two bytes.
type Packets struct {
	net.Conn
	local string
}

// NewPackets is the end that speaks with a socket elsewhere, which has that address there.
func NewPackets(stream net.Conn, local string) *Packets {
	return &Packets{Conn: stream, local: local}
}

// Write sends one packet.
func (p *Packets) Write(b []byte) (int, error) {
	if len(b) > MaxPacket {
		return 0, fmt.Errorf("write packet of %d bytes: %w: at most %d", len(b), ErrTooLarge, MaxPacket)
	}
	if _, err := p.Conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
		return 0, late(err)
	}
	return len(b), nil
}

// Fail says what is the matter with the socket. An error that is not the kernel's is EIO.
func (p *Packets) Fail(err error) error {
	_, werr := p.Conn.Write(binary.BigEndian.AppendUint16([]byte{broken >> 8, broken & 0xff}, uint16(Errno(err))))
	return werr
}

// Read is one packet, as much of it as there is room for, or the socket's error.
func (p *Packets) Read(b []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(p.Conn, head[:]); err != nil {
		return 0, late(err)
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n == broken {
		if _, err := io.ReadFull(p.Conn, head[:]); err != nil {
			return 0, late(err)
		}
		return 0, syscall.Errno(binary.BigEndian.Uint16(head[:]))
	}
	if n > MaxPacket {
		return 0, fmt.Errorf("read packet of %d bytes: %w: at most %d", n, ErrTooLarge, MaxPacket)
	}
	packet := make([]byte, n)
	if _, err := io.ReadFull(p.Conn, packet); err != nil {
		return 0, late(err)
	}
	return copy(b, packet), nil
}

// LocalAddr is the socket's.
func (p *Packets) LocalAddr() net.Addr { return elsewhere(p.local) }

type elsewhere string

func (elsewhere) Network() string  { return "elsewhere" }
func (a elsewhere) String() string { return string(a) }

// Errno is the number of a kernel's error, ETIMEDOUT where it is that time is over, or EIO.
func Errno(err error) syscall.Errno {
	if n, ok := errors.AsType[syscall.Errno](err); ok {
		return n
	}
	if errors.Is(late(err), os.ErrDeadlineExceeded) {
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}

// late gives a stream's timeout the name that one of a socket has.
func late(err error) error {
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}

// packetsLast is how long a socket lives whose other end does not end it.
const packetsLast = 30 * time.Second

// Join carries packets between a socket and a stream until either ends.
func (p *Packets) Join(socket net.Conn) {
	_ = socket.SetDeadline(time.Now().Add(packetsLast)) // cannot fail on an open socket
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, MaxPacket)
		for {
			n, err := p.Read(buf)
			if err == nil {
				_, err = socket.Write(buf[:n])
			}
			if err != nil {
				_ = socket.Close()
				return
			}
		}
	}()
	buf := make([]byte, MaxPacket)
	for {
		n, err := socket.Read(buf)
		if err == nil {
			_, err = p.Write(buf[:n])
		} else if !errors.Is(err, net.ErrClosed) {
			_ = p.Fail(err)
		}
		if err != nil {
			break
		}
	}
	_ = p.Close()
	<-done
}
