package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// ImportOptions say what the image made from a root file system is.
type ImportOptions struct {
	Config       Config
	Architecture string    // default the host's
	Variant      string    // of the architecture
	Created      time.Time // default now
	Annotations  map[string]string
	Progress     func(Progress)
}

// Import makes a one-layer image of a root file system's tar archive, plain or compressed with gzip or
// zstd, and gives it a name. The archive is held to the same rules as a layer that was pulled.
func (s *Store) Import(ctx context.Context, archive io.Reader, name string, opts ImportOptions) (Image, error) {
	ref, err := parseReference(name)
	if err == nil && ref.digest != "" {
		err = fmt.Errorf("%w: %s names a digest, which cannot be given to an image", ErrInvalid, ref)
	}
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	img, err := s.importAs(ctx, archive, ref.String(), opts)
	if err != nil {
		if _, cerr := s.collect(); cerr != nil {
			s.log.Warn("leftovers of a failed import stay until the store is opened again", "image", ref.String(), "error", cerr)
		}
		return Image{}, fmt.Errorf("import image %s: %w", ref, err)
	}
	return img, nil
}

func (s *Store) importAs(ctx context.Context, archive io.Reader, name string, opts ImportOptions) (Image, error) {
	in, err := s.receive(ctx, archive)
	if err != nil {
		return Image{}, err
	}
	defer os.Remove(in.file)
	unpinLayer := s.pin(in.desc.Digest.String())
	defer unpinLayer()
	if err := install(in.file, s.blobFile(in.desc.Digest.String())); err != nil {
		return Image{}, err
	}
	rawConfig, rawManifest, doc, err := s.compose(in, opts)
	if err != nil {
		return Image{}, err
	}
	img, err := decodeImage(rawManifest, rawConfig, doc, s.opts.Limits)
	if err != nil {
		return Image{}, err
	}
	unpin := s.pin(pins(img)...)
	defer unpin()
	if err := errors.Join(s.putBlob(rawConfig), s.putBlob(rawManifest)); err != nil {
		return Image{}, err
	}
	progress := newProgress(opts.Progress)
	l := img.Layers[0]
	if err := s.unpack(ctx, img, 0, &budget{limits: s.opts.Limits}, false, progress.layer(l.Digest, l.Size)); err != nil {
		return Image{}, err
	}
	img, err = s.enter(img, doc.MediaType, int64(len(rawManifest)), name)
	if err == nil {
		progress.step("", PhaseDone, img.Size, img.Size)
	}
	return img, err
}

// received is an archive in a temporary file, as the blob it will be.
type received struct {
	file   string
	desc   v1.Descriptor
	diffID v1.Hash
}

// receive writes an archive to disk. One that is compressed already stays as it is; a plain one is
// compressed quickly, since it is likely to be pushed somewhere.
func (s *Store) receive(ctx context.Context, archive io.Reader) (in received, err error) {
	f, err := os.CreateTemp(s.tmpDir(), "import-")
	if err != nil {
		return in, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	blobSum, diffSum := sha256.New(), sha256.New()
	size := counter{w: io.MultiWriter(f, blobSum)}
	bounded := &boundedReader{ctx: ctx, r: archive, left: s.opts.Limits.LayerBytes}
	br := bufio.NewReaderSize(bounded, 256<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return in, fmt.Errorf("read archive: %w", err)
	}
	if len(magic) == 0 {
		return in, refused("the archive is empty")
	}
	in = received{file: f.Name(), desc: v1.Descriptor{MediaType: types.OCILayer}}
	if bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		in.desc.MediaType = types.OCILayerZStd
	}
	if isCompressed(magic) {
		err = s.copyCompressed(ctx, &size, diffSum, br)
	} else {
		err = compressInto(&size, diffSum, br)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return in, fmt.Errorf("read archive: %w", readError(err))
	}
	in.desc.Size = size.n
	in.desc.Digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(blobSum.Sum(nil))}
	in.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(diffSum.Sum(nil))}
	return in, nil
}

func isCompressed(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) || bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// copyCompressed keeps the bytes and sums up what is in them, within the limit for a layer.
func (s *Store) copyCompressed(ctx context.Context, blob, plain io.Writer, r io.Reader) error {
	tee := io.TeeReader(r, blob)
	zr, done, err := decompress(tee)
	if err != nil {
		return err
	}
	defer done()
	bounded := &boundedReader{ctx: ctx, r: zr, left: s.opts.Limits.LayerBytes + 1024*s.opts.Limits.Files}
	if _, err := io.Copy(plain, bounded); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, tee) // what the decompressor did not want
	return err
}

func compressInto(blob, plain io.Writer, r io.Reader) error {
	zw, err := gzip.NewWriterLevel(blob, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.MultiWriter(zw, plain), r); err != nil {
		return err
	}
	return zw.Close()
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// compose writes the config and manifest of a one-layer image.
func (s *Store) compose(in received, opts ImportOptions) (rawConfig, rawManifest []byte, doc document, err error) {
	created := opts.Created
	if created.IsZero() {
		created = time.Now().UTC().Truncate(time.Second)
	}
	arch := opts.Architecture
	if arch == "" {
		arch = s.opts.Facts.Architecture
	}
	rawConfig, err = json.Marshal(v1.ConfigFile{
		OS: s.opts.Facts.OS, Architecture: arch, Variant: opts.Variant, Created: v1.Time{Time: created},
		Config: encodeConfig(opts.Config), RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{in.diffID}},
		History: []v1.History{{Created: v1.Time{Time: created}, CreatedBy: "bulkhead image import"}},
	})
	if err != nil {
		return nil, nil, doc, err
	}
	hash, err := v1.NewHash(digestOf(rawConfig))
	if err != nil {
		return nil, nil, doc, err
	}
	rawManifest, err = json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: hash, Size: int64(len(rawConfig))},
		Layers: []v1.Descriptor{in.desc}, Annotations: opts.Annotations,
	})
	if err != nil {
		return nil, nil, doc, err
	}
	doc, err = parseDocument(rawManifest, "")
	return rawConfig, rawManifest, doc, err
}
