package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refused builds an error that marks content as malformed or hostile.
func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

func digestOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// document is what a registry may answer for a name: an image's manifest, or an index of several.
type document struct {
	MediaType types.MediaType   `json:"mediaType"`
	Config    *v1.Descriptor    `json:"config"`
	Layers    []v1.Descriptor   `json:"layers"`
	Manifests []v1.Descriptor   `json:"manifests"`
	Notes     map[string]string `json:"annotations"`
}

// parseDocument reads a manifest or index. A document that could be read as both is refused: two
// readers would see two different images under one digest.
func parseDocument(raw []byte, contentType string) (document, error) {
	var d document
	if len(raw) > maxDocument {
		return d, refused("manifest is larger than %d bytes", maxDocument)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return d, refused("manifest is not valid JSON: %w", err)
	}
	if d.Manifests != nil && (d.Layers != nil || d.Config != nil) {
		return d, refused("manifest is an image and an index at once")
	}
	if d.MediaType == "" {
		mt, _, _ := strings.Cut(contentType, ";")
		d.MediaType = types.MediaType(strings.TrimSpace(mt))
	}
	switch {
	case d.MediaType.IsSchema1():
		return d, refused("manifest has the obsolete schema 1; push the image again with a current tool")
	case d.MediaType.IsIndex() && d.Manifests != nil, d.MediaType.IsImage() && d.Config != nil:
		return d, nil
	}
	return d, refused("manifest has media type %q, which is not an image or does not fit its content", d.MediaType)
}

// pick chooses the manifest for a platform from an index. Where several variants run, the highest wins.
func pick(manifests []v1.Descriptor, f Facts) (v1.Descriptor, error) {
	var best *v1.Descriptor
	bestLevel := -1
	have := map[string]bool{}
	for i, m := range manifests {
		p := m.Platform
		usable := m.MediaType.IsImage() || m.MediaType.IsIndex()
		if p == nil || !usable || p.OS == "unknown" { // attestations and the like
			continue
		}
		have[p.String()] = true
		if checkPlatform(p.OS, p.Architecture, p.Variant, f) != nil {
			continue
		}
		level, _ := variantLevel(normalArch(p.Architecture), p.Variant)
		if level > bestLevel {
			best, bestLevel = &manifests[i], level
		}
	}
	if best != nil {
		return *best, nil
	}
	if len(manifests) == 1 && manifests[0].Platform == nil {
		return manifests[0], nil // its config says what it is, and is checked
	}
	return v1.Descriptor{}, &IncompatibleError{
		Field: "platform", Wanted: quoteEmpty(strings.Join(slices.Sorted(maps.Keys(have)), ", ")),
		Have: (&v1.Platform{OS: f.OS, Architecture: f.Architecture, Variant: f.Variant}).String(), Advice: "pull an image built for this platform",
	}
}

// decodeImage turns a manifest and its config, both verified by digest, into an Image, and refuses what
// could not be unpacked anyway.
func decodeImage(rawManifest, rawConfig []byte, d document, limits Limits) (Image, error) {
	if !d.Config.MediaType.IsConfig() {
		return Image{}, refused("not a container image: its config has media type %q", d.Config.MediaType)
	}
	var cf v1.ConfigFile
	if err := json.Unmarshal(rawConfig, &cf); err != nil {
		return Image{}, refused("config %s is not valid: %w", d.Config.Digest, err)
	}
	img := Image{
		ID: digestOf(rawManifest), ConfigDigest: d.Config.Digest.String(), MediaType: string(d.MediaType),
		Created: cf.Created.Time, OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant,
		Size: int64(len(rawManifest)) + int64(len(rawConfig)), Config: decodeConfig(cf.Config), Annotations: d.Notes,
	}
	if len(d.Layers) == 0 {
		return Image{}, refused("image has no layers, so there is no root file system in it")
	}
	if len(d.Layers) > limits.Layers {
		return Image{}, refused("image has %d layers; at most %d can be stacked", len(d.Layers), limits.Layers)
	}
	if len(cf.RootFS.DiffIDs) != len(d.Layers) {
		return Image{}, refused("manifest lists %d layers, but config %s lists %d", len(d.Layers), d.Config.Digest, len(cf.RootFS.DiffIDs))
	}
	chain := ""
	for i, l := range d.Layers {
		if err := checkBlob(l, limits.LayerBytes); err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if !l.MediaType.IsLayer() {
			return Image{}, refused("layer %s has the unknown media type %q", l.Digest, l.MediaType)
		}
		if cf.RootFS.DiffIDs[i].Algorithm != "sha256" {
			return Image{}, refused("layer %s: config gives diff ID %q; only sha256 is supported", l.Digest, cf.RootFS.DiffIDs[i])
		}
		diff := cf.RootFS.DiffIDs[i].String()
		chain = chainID(chain, diff)
		img.Layers = append(img.Layers, Layer{Digest: l.Digest.String(), DiffID: diff, ChainID: chain, MediaType: string(l.MediaType), Size: l.Size})
		img.Size += l.Size
	}
	return img, nil
}

// checkBlob bounds a blob before anything of it is fetched.
func checkBlob(d v1.Descriptor, limit int64) error {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != sha256.Size*2 {
		return refused("digest %q is not a sha256 digest", d.Digest)
	}
	if d.Size < 0 || d.Size > limit {
		return refused("blob %s says it has %d bytes; the limit is %d", d.Digest, d.Size, limit)
	}
	return nil
}

// chainID names a layer on the chain below it, as the OCI image specification defines it.
func chainID(below, diffID string) string {
	if below == "" {
		return diffID
	}
	return digestOf([]byte(below + " " + diffID))
}

func decodeConfig(c v1.Config) Config {
	return Config{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir,
		ExposedPorts: slices.Sorted(maps.Keys(c.ExposedPorts)), Volumes: slices.Sorted(maps.Keys(c.Volumes)),
		Labels: c.Labels, StopSignal: c.StopSignal,
	}
}

// encodeConfig is decodeConfig backwards, for images made here.
func encodeConfig(c Config) v1.Config {
	set := func(keys []string) map[string]struct{} {
		if len(keys) == 0 {
			return nil
		}
		m := map[string]struct{}{}
		for _, k := range keys {
			m[k] = struct{}{}
		}
		return m
	}
	return v1.Config{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir,
		ExposedPorts: set(c.ExposedPorts), Volumes: set(c.Volumes), Labels: c.Labels, StopSignal: c.StopSignal,
	}
}
