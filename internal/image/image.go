// Package image owns container images: it pulls them from any OCI registry, keeps them, unpacks them
// for overlayfs, and pushes, imports, lists and removes them.
//
// A store is one directory:
//
//	lock                   held by the one process that has the store open
//	oci/                   an OCI image layout: index.json is the table of images and names
//	layers/<chain>/diff    an unpacked layer, usable as an overlayfs lower directory
//	layers/<chain>/layer.json
//	tmp/                   downloads and unpacks under way; emptied when the store is opened
//
// Three rules keep it whole whatever kills the process. A blob or a layer is made in tmp and renamed
// into place when it is complete and checked. An image exists from the moment index.json names it, and
// that file is replaced by a rename. What index.json does not reach is garbage, found by listing, so
// there are no reference counts that could be wrong.
//
// Layers are kept by chain ID (the layer and all below it), not by diff ID: a layer's archive may leave
// out directories that exist further down, and their mode and owner then come from there.
package image

import (
	"errors"
	"time"
)

// Errors a caller branches on. An image that does not suit the host is an [IncompatibleError].
var (
	ErrNotFound  = errors.New("no such image")
	ErrInUse     = errors.New("image is in use")
	ErrNames     = errors.New("image has several names")
	ErrAmbiguous = errors.New("more than one image matches")
	ErrInvalid   = errors.New("invalid argument")
	// ErrRefused marks content that is malformed or hostile: a wrong digest, a path out of the root, too much data.
	ErrRefused = errors.New("image refused")
	// ErrUnauthorized is a registry's "no": credentials are missing, wrong, or not enough.
	ErrUnauthorized = errors.New("registry denies access")
	ErrLocked       = errors.New("image store is open in another process")
)

// Image is an image of the store. Its ID is the digest of its manifest, so one that was pulled by
// digest for this platform has that digest as its ID.
type Image struct {
	ID           string            `json:"id"`
	Names        []string          `json:"names"`
	ConfigDigest string            `json:"configDigest"`
	MediaType    string            `json:"mediaType"`
	Created      time.Time         `json:"created,omitzero"`
	OS           string            `json:"os"`
	Architecture string            `json:"architecture"`
	Variant      string            `json:"variant,omitempty"`
	Size         int64             `json:"size"` // manifest, config and compressed layers
	Layers       []Layer           `json:"layers"`
	Config       Config            `json:"config"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Layer is one layer of an image, base first in [Image.Layers].
type Layer struct {
	Digest    string `json:"digest"`  // of the blob as stored and sent
	DiffID    string `json:"diffID"`  // of the archive in it
	ChainID   string `json:"chainID"` // of this layer on those below it
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"` // of the blob
}

// Config is how an image says it is to be run.
type Config struct {
	User         string            `json:"user,omitempty"`
	Env          []string          `json:"env,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // "80/tcp", sorted
	Volumes      []string          `json:"volumes,omitempty"`      // sorted
	Labels       map[string]string `json:"labels,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
}

// Phase is what is happening to a layer.
type Phase string

// The phases of a pull, in their order; a push knows PhaseUploading and PhaseDone.
const (
	PhaseResolving   Phase = "resolving" // Layer is empty
	PhaseDownloading Phase = "downloading"
	PhaseVerifying   Phase = "verifying"
	PhaseUnpacking   Phase = "unpacking"
	PhaseUploading   Phase = "uploading" // Layer is empty: the registry protocol counts the image as a whole
	PhaseDone        Phase = "done"      // with an empty Layer: the whole image
)

// Progress is one step of a pull, push or import. While unpacking, Current counts bytes of the blob read.
type Progress struct {
	Layer   string `json:"layer,omitempty"` // digest
	Phase   Phase  `json:"phase"`
	Current int64  `json:"current"`
	Total   int64  `json:"total"`
}

// Limits bound what an image may ask of the host. A zero field takes the default.
type Limits struct {
	LayerBytes int64 // one layer, unpacked; default 20 GiB
	ImageBytes int64 // all layers, unpacked; default 60 GiB
	Files      int64 // entries in all layers; default 2,000,000
	Layers     int   // default 120: the most whose names fit in one page of mount options
}

// maxDocument bounds manifests, indexes and configs, which are held in memory.
const maxDocument = 4 << 20

func (l Limits) withDefaults() Limits {
	if l.LayerBytes == 0 {
		l.LayerBytes = 20 << 30
	}
	if l.ImageBytes == 0 {
		l.ImageBytes = 60 << 30
	}
	if l.Files == 0 {
		l.Files = 2_000_000
	}
	if l.Layers == 0 {
		l.Layers = 120
	}
	return l
}
