package image

import (
	"context"
	"fmt"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// PushOptions say how an image is pushed. The zero value works.
type PushOptions struct {
	To        string       // the name to push to; default the image's own
	Auth      *Credentials // nil means those of the auth files
	Fallback  *Credentials // if the auth files have none
	PlainHTTP bool         // allow HTTP without TLS
	Progress  func(Progress)
}

// Push sends an image to a registry and returns its digest there, which is its ID.
func (s *Store) Push(ctx context.Context, nameOrID string, opts PushOptions) (string, error) {
	digest, err := s.push(ctx, nameOrID, opts)
	if err != nil {
		return "", fmt.Errorf("push image %s: %w", nameOrID, err)
	}
	return digest, nil
}

func (s *Store) push(ctx context.Context, nameOrID string, opts PushOptions) (string, error) {
	s.mu.Lock()
	_, img, byName, err := s.find(nameOrID)
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	to := opts.To
	if to == "" {
		to = byName
	}
	if to == "" {
		return "", fmt.Errorf("%w: an ID does not say where to push to: give a name", ErrInvalid)
	}
	ref, err := parseReference(to)
	if err != nil {
		return "", err
	}
	if ref.digest != "" {
		return "", fmt.Errorf("%w: %s names a digest: give a name with a tag to push to", ErrInvalid, ref)
	}
	unpin := s.pin(pins(img)...)
	defer unpin()
	src := source{ref: ref, plain: opts.PlainHTTP || s.opts.Registries[ref.host].PlainHTTP, auth: opts.Auth, fallback: opts.Fallback}
	return img.ID, s.send(ctx, img, src, newProgress(opts.Progress))
}

func (s *Store) send(ctx context.Context, img Image, src source, progress *progress) error {
	repo, err := src.repository()
	if err != nil {
		return err
	}
	auth, err := s.authenticator(src)
	if err != nil {
		return err
	}
	base, err := s.transport(src.ref.host)
	if err != nil {
		return err
	}
	defer base.CloseIdleConnections()
	id, err := v1.NewHash(img.ID)
	if err != nil {
		return err
	}
	local, err := layout.Path(filepath.Join(s.dir, "oci")).Image(id)
	if err != nil {
		return err
	}
	updates := make(chan v1.Update, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates { // the library closes the channel
			progress.step("", PhaseUploading, u.Complete, u.Total)
		}
	}()
	err = remote.Write(repo.Tag(src.ref.tag), local, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithJobs(s.opts.Jobs),
		remote.WithProgress(updates),
		remote.WithTransport(guard{inner: base, registry: repo.RegistryStr(), plain: src.plain || isLoopback(src.ref.host)}))
	<-done
	if err != nil {
		return fmt.Errorf("send to %s: %w", src.ref, registryError(err))
	}
	progress.step("", PhaseDone, img.Size, img.Size)
	return nil
}
