package main

import (
	"cmp"
	"context"
	"errors"
	"io"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/image"
)

// imageStore shows the image store to the engine in the API's documents. The
// store itself knows nothing of the API.
type imageStore struct{ s *image.Store }

func (i imageStore) Pull(ctx context.Context, r api.PullRequest, progress func(api.ImageProgress)) (api.Image, error) {
	img, err := i.s.Pull(ctx, r.Reference, image.PullOptions{
		Policy: cmp.Or(image.Policy(r.Policy), image.PullAlways), Auth: credentials(r.Auth, false), Fallback: credentials(r.Auth, true),
		PlainHTTP: r.PlainHTTP, Progress: progressOf(progress),
	})
	return imageDoc(img), imageError(err)
}

func (i imageStore) Push(ctx context.Context, r api.PullRequest, progress func(api.ImageProgress)) error {
	_, err := i.s.Push(ctx, r.Reference, image.PushOptions{
		Auth: credentials(r.Auth, false), Fallback: credentials(r.Auth, true), PlainHTTP: r.PlainHTTP, Progress: progressOf(progress),
	})
	return imageError(err)
}

func (i imageStore) Import(ctx context.Context, r io.Reader, reference string, cfg api.ImageConfig) (api.Image, error) {
	img, err := i.s.Import(ctx, r, reference, image.ImportOptions{Config: image.Config{
		User: cfg.User, Env: cfg.Env, Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd, WorkingDir: cfg.WorkingDir,
		ExposedPorts: cfg.ExposedPorts, Volumes: cfg.Volumes, Labels: cfg.Labels, StopSignal: cfg.StopSignal,
	}})
	return imageDoc(img), imageError(err)
}

func (i imageStore) List() ([]api.Image, error) {
	all, err := i.s.List()
	out := make([]api.Image, len(all))
	for n, img := range all {
		out[n] = imageDoc(img)
	}
	return out, imageError(err)
}

func (i imageStore) Inspect(ref string) (api.Image, error) {
	img, err := i.s.Inspect(ref)
	return imageDoc(img), imageError(err)
}

func (i imageStore) Tag(ref, newRef string) error {
	_, err := i.s.Tag(ref, newRef)
	return imageError(err)
}

func (i imageStore) Remove(ref string, force bool, inUse []string) error {
	_, err := i.s.Remove(ref, image.RemoveOptions{Force: force, InUse: inUse})
	return imageError(err)
}

func (i imageStore) Prune(inUse []string) ([]string, error) {
	removed, err := i.s.Prune(image.PruneOptions{InUse: inUse})
	return removed.Images, imageError(err)
}

func (i imageStore) Layers(ctx context.Context, id string) ([]string, error) {
	dirs, err := i.s.Layers(ctx, id)
	return dirs, imageError(err)
}

func (i imageStore) Login(ctx context.Context, r api.LoginRequest) error {
	if r.Auth.Fallback {
		return api.Errorf(api.KindInvalid, "auth.fallback: it is for pull and push: a log-in is kept")
	}
	err := i.s.Login(ctx, r.Registry, *credentials(&r.Auth, false), image.LoginOptions{PlainHTTP: r.PlainHTTP})
	if errors.Is(err, image.ErrUnauthorized) {
		return api.Errorf(api.KindConflict, "%w", err).Hint("check user name and password; what was stored before stays")
	}
	return imageError(err)
}

func (i imageStore) Logout(registry string) error {
	err := i.s.Logout(registry)
	if errors.Is(err, image.ErrInUse) {
		return api.Errorf(api.KindConflict, "%w", err)
	}
	return imageError(err)
}

// credentials takes those of a request that are, or are not, only a fallback.
func credentials(a *api.RegistryAuth, fallback bool) *image.Credentials {
	if a == nil || a.Fallback != fallback {
		return nil
	}
	return &image.Credentials{Username: a.Username, Password: a.Password, RegistryToken: a.Token, IdentityToken: a.IdentityToken}
}

func progressOf(f func(api.ImageProgress)) func(image.Progress) {
	if f == nil {
		return nil
	}
	return func(p image.Progress) {
		f(api.ImageProgress{Layer: p.Layer, Phase: string(p.Phase), Current: p.Current, Total: p.Total})
	}
}

func imageDoc(img image.Image) api.Image {
	doc := api.Image{
		ID: img.ID, Names: img.Names, Created: img.Created, Size: img.Size,
		OS: img.OS, Architecture: img.Architecture, Variant: img.Variant, Annotations: img.Annotations,
		Config: api.ImageConfig{
			Entrypoint: img.Config.Entrypoint, Cmd: img.Config.Cmd, Env: img.Config.Env, User: img.Config.User,
			WorkingDir: img.Config.WorkingDir, ExposedPorts: img.Config.ExposedPorts, Volumes: img.Config.Volumes,
			Labels: img.Config.Labels, StopSignal: img.Config.StopSignal,
		},
	}
	for _, l := range img.Layers {
		doc.Layers = append(doc.Layers, l.DiffID)
	}
	return doc
}

// imageError gives an error of the store its kind.
func imageError(err error) error {
	var incompatible *image.IncompatibleError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &incompatible):
		return api.Errorf(api.KindUnsupported, "%w", err)
	case errors.Is(err, image.ErrNotFound):
		return api.Errorf(api.KindNotFound, "%w", err).Hint("bulkhead image ls, or bulkhead pull IMAGE")
	case errors.Is(err, image.ErrInUse):
		return api.Errorf(api.KindConflict, "%w", err).Hint("bulkhead ps -a shows the containers; bulkhead rm removes one")
	case errors.Is(err, image.ErrNames):
		return api.Errorf(api.KindConflict, "%w", err).Hint("bulkhead image rm -f takes all of them")
	case errors.Is(err, image.ErrInvalid), errors.Is(err, image.ErrRefused):
		return api.Errorf(api.KindInvalid, "%w", err)
	case errors.Is(err, image.ErrUnauthorized):
		return api.Errorf(api.KindConflict, "%w", err).Hint("bulkhead login REGISTRY, or give --creds-file")
	}
	return err
}
