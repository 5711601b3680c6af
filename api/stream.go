package api

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// UpgradeProtocol is what attach and exec upgrade their HTTP connection to:
// frames in both directions, each with a header of one byte for the channel and
// four for the length of what follows, big endian.
const UpgradeProtocol = "bulkhead-stream/1"

// The channels of a stream.
const (
	ChannelStdin      byte = 0 // client → daemon
	ChannelStdout     byte = 1
	ChannelStderr     byte = 2
	ChannelResize     byte = 3 // client → daemon, a WindowSize as JSON
	ChannelCloseStdin byte = 4 // client → daemon, empty
	ChannelExit       byte = 5 // daemon → client, a WaitResult as JSON; the last frame
)

// MaxFrame bounds a frame's payload, so that a peer cannot make us allocate.
const MaxFrame = 64 << 10

// FrameWriter writes frames; it may be used by several goroutines.
type FrameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewFrameWriter writes to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// WriteFrame sends p on a channel, in as many frames as it takes.
func (f *FrameWriter) WriteFrame(channel byte, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), MaxFrame)
		buf := make([]byte, 5+n)
		buf[0] = channel
		binary.BigEndian.PutUint32(buf[1:], uint32(n))
		copy(buf[5:], p[:n])
		if _, err := f.w.Write(buf); err != nil {
			return fmt.Errorf("write stream frame: %w", err)
		}
		p = p[n:]
	}
	return nil
}

// WriteJSON sends a value on a channel.
func (f *FrameWriter) WriteJSON(channel byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode stream frame: %w", err)
	}
	return f.WriteFrame(channel, b)
}

// Channel gives a Writer of one channel.
func (f *FrameWriter) Channel(channel byte) io.Writer { return channelWriter{f, channel} }

type channelWriter struct {
	f       *FrameWriter
	channel byte
}

func (c channelWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.f.WriteFrame(c.channel, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ErrFrameTooLarge is returned for a frame longer than MaxFrame.
var ErrFrameTooLarge = errors.New("stream frame is too large")

// ReadFrame reads one frame. The payload is valid until the next call with the
// same buffer; buf may be nil.
func ReadFrame(r io.Reader, buf []byte) (channel byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, ErrFrameTooLarge
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, fmt.Errorf("read stream frame: %w", err)
	}
	return head[0], buf, nil
}
