package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	blobAttempts = 5
	stallTimeout = 45 * time.Second // a transfer that moves nothing for this long is broken off and resumed
)

// fetchBlob makes sure that a blob is in the store. It is verified on its way to disk, and a broken
// transfer goes on from where it stopped. The caller has pinned it.
func (s *Store) fetchBlob(ctx context.Context, c *conn, d v1.Descriptor, report func(Phase, int64)) error {
	digest := d.Digest.String()
	unlock, err := s.working.lock(ctx, digest)
	if err != nil {
		return err
	}
	defer unlock()
	if fi, err := os.Stat(s.blobFile(digest)); err == nil && fi.Size() == d.Size {
		return nil
	}
	f, err := os.CreateTemp(s.tmpDir(), "blob-")
	if err != nil {
		return fmt.Errorf("fetch blob %s: %w", digest, err)
	}
	defer os.Remove(f.Name())
	defer f.Close() // closed with its error below; this is for the other ways out
	dl := download{f: f, sum: sha256.New(), want: d, report: report}
	if err := dl.run(ctx, c); err != nil {
		return fmt.Errorf("fetch blob %s: %w", digest, err)
	}
	report(PhaseVerifying, d.Size)
	if got := "sha256:" + hex.EncodeToString(dl.sum.Sum(nil)); got != digest {
		return refused("blob %s has the wrong content: its digest is %s", digest, got)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("fetch blob %s: %w", digest, err)
	}
	if err := install(f.Name(), s.blobFile(digest)); err != nil {
		return fmt.Errorf("fetch blob %s: %w", digest, err)
	}
	return nil
}

// download is a blob on its way to a file; what is in the file is in the sum.
type download struct {
	f      *os.File
	sum    hash.Hash
	have   int64
	want   v1.Descriptor
	report func(Phase, int64)
}

// localError is one that another attempt cannot mend: the disk's, or the content's.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

func (dl *download) run(ctx context.Context, c *conn) error {
	for attempt, wait := 1, 200*time.Millisecond; ; attempt, wait = attempt+1, wait*3 {
		before := dl.have
		err := dl.attempt(ctx, c)
		if err == nil {
			return nil
		}
		var local localError
		if errors.As(err, &local) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) || ctx.Err() != nil {
			return err
		}
		if dl.have > before {
			attempt = 1 // it moves, if slowly
			wait = 200 * time.Millisecond
		}
		if attempt == blobAttempts {
			return fmt.Errorf("given up after %d attempts: %w", attempt, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attempt asks for what is missing.
func (dl *download) attempt(ctx context.Context, c *conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(stallTimeout, func() { cancel(fmt.Errorf("nothing arrived for %s", stallTimeout)) })
	defer stall.Stop()
	header := http.Header{}
	if dl.have > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(dl.have, 10)+"-")
	}
	resp, err := c.get(ctx, "/v2/"+c.repo.RepositoryStr()+"/blobs/"+dl.want.Digest.String(), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return stalled(ctx, err)
	}
	defer resp.Body.Close()
	if dl.have > 0 && resp.StatusCode == http.StatusOK {
		if err := dl.restart(); err != nil { // a registry that cannot resume sends all of it again
			return localError{err}
		}
	}
	if n := resp.ContentLength; n >= 0 && n != dl.want.Size-dl.have {
		return localError{refused("registry sends %d bytes; the manifest says %d", dl.have+n, dl.want.Size)}
	}
	buf := make([]byte, 128<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			stall.Reset(stallTimeout)
			if werr := dl.write(buf[:n]); werr != nil {
				return localError{werr}
			}
		}
		switch {
		case errors.Is(err, io.EOF) && dl.have == dl.want.Size:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("transfer ended after %d of %d bytes: %w", dl.have, dl.want.Size, io.ErrUnexpectedEOF)
		case err != nil:
			return stalled(ctx, err)
		}
	}
}

// stalled names the true cause when it was us who broke a request off.
func stalled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (dl *download) restart() error {
	dl.sum.Reset()
	dl.have = 0
	if err := dl.f.Truncate(0); err != nil {
		return err
	}
	_, err := dl.f.Seek(0, io.SeekStart)
	return err
}

func (dl *download) write(p []byte) error {
	if dl.have+int64(len(p)) > dl.want.Size {
		return refused("registry sends more than the %d bytes that the manifest says", dl.want.Size)
	}
	if _, err := dl.f.Write(p); err != nil {
		return err
	}
	dl.sum.Write(p)
	dl.have += int64(len(p))
	dl.report(PhaseDownloading, dl.have)
	return nil
}

// putBlob stores a document that is in memory, or already there.
func (s *Store) putBlob(raw []byte) error {
	file := s.blobFile(digestOf(raw))
	if fi, err := os.Stat(file); err == nil && fi.Size() == int64(len(raw)) {
		return nil
	}
	if err := s.replaceFile(file, raw); err != nil {
		return fmt.Errorf("store blob %s: %w", digestOf(raw), err)
	}
	return nil
}
