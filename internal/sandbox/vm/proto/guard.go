package proto

import (
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
)

// guard reads along what comes from a guest, and ends with it where yamux would spend the host's memory on what our agent never does:
// a stream that the guest opens has a buffer, and a ping has a goroutine that lives for as long as the guest does not read its answer.
type guard struct {
	io.ReadWriteCloser
	head [headSize]byte
	have int    // of the head
	body uint32 // that is still to come
	said atomic.Pointer[error]
}

// The head of a yamux frame: version, type, flags (2), stream (4), length (4).
const (
	headSize = 12
	typeData = 0
	typePing = 2
	flagSYN  = 1
)

// The errors of a guest that does what it must not.
var (
	ErrPing   = errors.New("the guest pings, which its agent does not")
	ErrStream = errors.New("the guest opens a stream, which its agent does not")
)

// Read gives nothing of what has a fault in it.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(p)
	if fault := g.look(p[:n]); fault != nil {
		g.said.CompareAndSwap(nil, &fault)
		return 0, fault
	}
	return n, err
}

func (g *guard) look(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.head[g.have:], p)
		p = p[n:]
		if g.have += n; g.have < headSize {
			return nil
		}
		g.have = 0
		switch {
		case g.head[1] == typePing:
			return ErrPing
		case binary.BigEndian.Uint16(g.head[2:])&flagSYN != 0:
			return ErrStream
		case g.head[1] == typeData:
			g.body = binary.BigEndian.Uint32(g.head[8:])
		}
	}
	return nil
}

// reason is why the guest is not spoken with any more, where that was us.
func (g *guard) reason(err error) error {
	if fault := g.said.Load(); fault != nil {
		return *fault
	}
	return err
}
