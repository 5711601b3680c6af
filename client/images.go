package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// PullImage pulls an image and tells of its progress.
func (c *Client) PullImage(ctx context.Context, what api.PullRequest, progress func(api.ImageProgress)) (api.Image, error) {
	last, err := c.transfer(ctx, post("/v1/images", nil, what), progress)
	if err != nil {
		return api.Image{}, err
	}
	if last.Done == nil {
		return api.Image{}, api.Errorf(api.KindInternal, "pull %s: the daemon did not say how it ended", what.Reference)
	}
	return *last.Done, nil
}

// PushImage pushes an image and tells of its progress.
func (c *Client) PushImage(ctx context.Context, what api.PullRequest, progress func(api.ImageProgress)) error {
	last, err := c.transfer(ctx, post("/v1/images/push", nil, what), progress)
	if err == nil && (last.Phase != "done" || last.Layer != "") {
		return api.Errorf(api.KindInternal, "push %s: the daemon did not say how it ended", what.Reference)
	}
	return err
}

// Login has the daemon check credentials with a registry and keep them.
func (c *Client) Login(ctx context.Context, what api.LoginRequest) error {
	return c.call(ctx, post("/v1/registries", nil, what), nil)
}

// Logout has the daemon forget the credentials that Login gave it; none is success.
func (c *Client) Logout(ctx context.Context, registry string) error {
	return c.call(ctx, remove("/v1/registries/"+segment(registry), nil), nil)
}

func (c *Client) transfer(ctx context.Context, r request, progress func(api.ImageProgress)) (api.ImageProgress, error) {
	var last api.ImageProgress
	err := readLines(ctx, c, r, func(m api.ImageProgress) error {
		last = m
		if m.Error != "" {
			return api.Errorf(api.KindInternal, "%s", m.Error)
		}
		if progress != nil {
			progress(m)
		}
		return nil
	})
	return last, err
}

// ImportImage makes an image of a root file system in a tar archive.
func (c *Client) ImportImage(ctx context.Context, tar io.Reader, reference string, config api.ImageConfig) (api.Image, error) {
	var image api.Image
	b, err := json.Marshal(config)
	if err != nil {
		return image, fmt.Errorf("encode the image's configuration: %w", err)
	}
	v := url.Values{"reference": {reference}, "config": {string(b)}}
	err = c.call(ctx, request{method: http.MethodPost, path: "/v1/images/import", query: v, stream: tar}, &image)
	return image, err
}

// Images lists all images.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	var l []api.Image
	err := c.call(ctx, get("/v1/images", nil), &l)
	return l, err
}

// imagePath keeps the slashes of a reference.
func imagePath(ref string) string {
	parts := strings.Split(ref, "/")
	for i, p := range parts {
		parts[i] = segment(p)
	}
	return "/v1/images/" + strings.Join(parts, "/")
}

// Image shows an image.
func (c *Client) Image(ctx context.Context, ref string) (api.Image, error) {
	var image api.Image
	err := c.call(ctx, get(imagePath(ref), nil), &image)
	return image, err
}

// TagImage gives an image another name.
func (c *Client) TagImage(ctx context.Context, ref, newRef string) error {
	return c.call(ctx, post("/v1/images/tag", url.Values{"ref": {ref}, "name": {newRef}}, nil), nil)
}

// RemoveImage removes an image or one of its names.
func (c *Client) RemoveImage(ctx context.Context, ref string, force bool) error {
	v := url.Values{}
	if force {
		v.Set("force", "true")
	}
	return c.call(ctx, remove(imagePath(ref), v), nil)
}

// PruneImages removes the images that nothing uses or names, and lists them.
func (c *Client) PruneImages(ctx context.Context) ([]string, error) {
	var gone []string
	err := c.call(ctx, post("/v1/images/prune", nil, nil), &gone)
	return gone, err
}
