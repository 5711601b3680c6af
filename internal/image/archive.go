package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// meter reports how much of a blob has been read.
type meter struct {
	r      io.Reader
	n      int64
	report func(Phase, int64)
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	m.report(PhaseUnpacking, m.n)
	return n, err
}

// errTooLong marks an archive that goes on beyond its limit.
var errTooLong = errors.New("layer unpacks to more data than its limit")

// boundedReader ends with an error at a limit, and when the context does.
type boundedReader struct {
	ctx  context.Context // a reader can be given one in no other way
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// readError marks what is the archive's fault, not the disk's or the caller's.
func readError(err error) error {
	var corrupt gzipError
	switch {
	case errors.Is(err, errTooLong), errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF),
		errors.As(err, &corrupt):
		return refused("archive is damaged or too large: %w", err)
	}
	return err
}

// gzipError wraps what the decompressors report, whose own types differ.
type gzipError struct{ error }

func (e gzipError) Unwrap() error { return e.error }

// decompress looks at the data, not at the media type, which old registries and tools get wrong.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, readError(gzipError{err})
		}
		return marked{zr}, func() { _ = zr.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, readError(gzipError{err})
		}
		return marked{zr}, zr.Close, nil
	}
	return br, func() {}, nil
}

// marked marks errors of a decompressor as such.
type marked struct{ r io.Reader }

func (m marked) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = gzipError{err}
	}
	return n, err
}
