package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Policy says when a pull asks the registry.
type Policy string

// The policies; the zero value is PullMissing.
const (
	PullAlways  Policy = "always"
	PullMissing Policy = "missing"
	PullNever   Policy = "never"
)

// PullOptions say how an image is pulled. The zero value works.
type PullOptions struct {
	Policy    Policy
	Auth      *Credentials   // for the registry itself; nil means those of the auth files
	Fallback  *Credentials   // for the registry itself, if the auth files have none
	Mirrors   []string       // instead of the registry's configured ones, if not nil; see [Registry]
	PlainHTTP bool           // allow HTTP without TLS to the registry itself
	Progress  func(Progress) // called one at a time; must not block
}

// Pull makes sure that the store has an image, fetched, verified, checked against the host's processor and unpacked,
// under the name given. If it fails, the store is as it was.
func (s *Store) Pull(ctx context.Context, name string, opts PullOptions) (Image, error) {
	ref, err := parseReference(name)
	if err != nil {
		return Image{}, fmt.Errorf("pull image: %w", err)
	}
	img, err := s.pull(ctx, ref, opts)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref reference, opts PullOptions) (Image, error) {
	facts := s.opts.Facts
	switch opts.Policy {
	case PullAlways:
	case PullMissing, PullNever, "":
		img, err := s.Inspect(ref.String())
		if err == nil {
			return img, CheckPlatform(img, facts)
		}
		if !errors.Is(err, ErrNotFound) || opts.Policy == PullNever {
			return Image{}, err
		}
	default:
		return Image{}, fmt.Errorf("%w: pull policy %q is none of always, missing, never", ErrInvalid, opts.Policy)
	}
	sources, err := s.sources(ref, opts)
	if err != nil {
		return Image{}, err
	}
	p := puller{store: s, name: ref.String(), facts: facts, progress: newProgress(opts.Progress)}
	var failures []error
	for _, src := range sources {
		img, err := p.from(ctx, src)
		if err == nil {
			return img, nil
		}
		if len(sources) > 1 {
			err = fmt.Errorf("from %s: %w", src.ref.repository(), err)
		}
		failures = append(failures, err)
		if final(ctx, err) {
			break
		}
		s.log.Warn("source of an image does not work", "source", src.ref.repository(), "image", ref.String(), "error", err)
	}
	return Image{}, errors.Join(failures...)
}

// final says whether another source could not help.
func final(ctx context.Context, err error) bool {
	var ie *IncompatibleError
	return ctx.Err() != nil || errors.As(err, &ie) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EDQUOT)
}

// puller is one pull.
type puller struct {
	store    *Store
	name     string
	facts    Facts
	progress *progress
}

func (p *puller) from(ctx context.Context, src source) (Image, error) {
	p.progress.step("", PhaseResolving, 0, 0)
	c, err := p.store.connect(ctx, src)
	if err != nil {
		return Image{}, err
	}
	defer c.close()
	rawManifest, doc, err := p.resolve(ctx, c, src.ref.identifier())
	if err != nil {
		return Image{}, err
	}
	if err := checkBlob(*doc.Config, maxDocument); err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	s := p.store
	img, err := p.fetch(ctx, c, rawManifest, doc)
	if err != nil {
		// Blobs and layers that arrived before the failure belong to no image.
		if _, cerr := s.collect(); cerr != nil {
			s.log.Warn("leftovers of a failed pull stay until the store is opened again", "image", p.name, "error", cerr)
		}
		return Image{}, err
	}
	p.progress.step("", PhaseDone, img.Size, img.Size)
	return img, nil
}

// resolve fetches the manifest for this platform, through an index if there is one.
func (p *puller) resolve(ctx context.Context, c *conn, identifier string) ([]byte, document, error) {
	for range 3 { // an index of indexes is legal, if unusual
		raw, contentType, err := c.manifest(ctx, identifier)
		if err != nil {
			return nil, document{}, err
		}
		doc, err := parseDocument(raw, contentType)
		if err != nil {
			return nil, document{}, err
		}
		if doc.Config != nil {
			return raw, doc, nil
		}
		next, err := pick(doc.Manifests, p.facts)
		if err != nil {
			return nil, document{}, err
		}
		if err := checkBlob(next, maxDocument); err != nil {
			return nil, document{}, err
		}
		identifier = next.Digest.String()
	}
	return nil, document{}, refused("index leads to an index, and so on")
}

// fetch brings config and layers, unpacks, and as the last step enters the image into the table.
func (p *puller) fetch(ctx context.Context, c *conn, rawManifest []byte, doc document) (Image, error) {
	s := p.store
	unpinConfig := s.pin(doc.Config.Digest.String(), digestOf(rawManifest))
	defer unpinConfig()
	if err := s.fetchBlob(ctx, c, *doc.Config, func(Phase, int64) {}); err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	rawConfig, err := s.readBlob(doc.Config.Digest.String())
	if err != nil {
		return Image{}, err
	}
	img, err := decodeImage(rawManifest, rawConfig, doc, s.opts.Limits)
	if err != nil {
		return Image{}, err
	}
	if err := CheckPlatform(img, p.facts); err != nil {
		return Image{}, err
	}
	unpin := s.pin(pins(img)...)
	defer unpin()
	if err := p.layers(ctx, c, img, doc.Layers); err != nil {
		return Image{}, err
	}
	if err := s.putBlob(rawManifest); err != nil {
		return Image{}, err
	}
	return s.enter(img, doc.MediaType, int64(len(rawManifest)), p.name)
}

// layers fetches the layers side by side, and unpacks each as soon as it and those below are there.
func (p *puller) layers(ctx context.Context, c *conn, img Image, blobs []v1.Descriptor) error {
	g, ctx := errgroup.WithContext(ctx)
	arrived := make([]chan struct{}, len(blobs))
	slots := make(chan struct{}, p.store.opts.Jobs)
	for i, d := range blobs {
		arrived[i] = make(chan struct{})
		g.Go(func() error {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return ctx.Err()
			}
			report := p.progress.layer(d.Digest.String(), d.Size)
			report(PhaseDownloading, 0)
			if err := p.store.fetchBlob(ctx, c, d, report); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(blobs), err)
			}
			close(arrived[i])
			return nil
		})
	}
	g.Go(func() error {
		b := &budget{limits: p.store.opts.Limits}
		for i, l := range img.Layers {
			select {
			case <-arrived[i]:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := p.store.unpack(ctx, img, i, b, false, p.progress.layer(l.Digest, l.Size)); err != nil {
				return err
			}
			p.progress.step(l.Digest, PhaseDone, l.Size, l.Size)
		}
		return nil
	})
	return g.Wait()
}

// enter syncs what belongs to an image and puts the image into the table under a name, or none.
func (s *Store) enter(img Image, mt types.MediaType, size int64, name string) (Image, error) {
	// One sync for all layers: until the table has the image they may be lost, afterwards they may not.
	if err := s.syncfs(s.LayersDir()); err != nil {
		return Image{}, err
	}
	digest, err := v1.NewHash(img.ID)
	if err != nil {
		return Image{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows, err := s.readTable()
	if err != nil {
		return Image{}, err
	}
	rows = setName(rows, v1.Descriptor{MediaType: mt, Digest: digest, Size: size}, name)
	if err := s.writeTable(rows); err != nil {
		return Image{}, err
	}
	img.Names = namesOf(rows, img.ID)
	return img, nil
}

// progress serializes and thins out reports.
type progress struct {
	mu   sync.Mutex
	call func(Progress)
	last map[string]time.Time // by layer and phase
}

const progressInterval = 100 * time.Millisecond

func newProgress(call func(Progress)) *progress {
	return &progress{call: call, last: map[string]time.Time{}}
}

func (p *progress) layer(digest string, total int64) func(Phase, int64) {
	return func(ph Phase, current int64) { p.step(digest, ph, current, total) }
}

// step reports the first and the last of a phase always, and in between ten times a second.
func (p *progress) step(layer string, ph Phase, current, total int64) {
	if p.call == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := layer + string(ph)
	now := time.Now()
	if last, ok := p.last[key]; ok && now.Sub(last) < progressInterval && current != total {
		return
	}
	p.last[key] = now
	p.call(Progress{Layer: layer, Phase: ph, Current: current, Total: total})
}
