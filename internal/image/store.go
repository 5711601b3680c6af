package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// DefaultDir is where the store lives unless told otherwise.
const DefaultDir = "/var/lib/bulkhead/images"

// Options say how a store behaves. The zero value works.
type Options struct {
	Logger     *slog.Logger
	Facts      Facts               // what images are checked against; zero means HostFacts
	Limits     Limits              // zero fields take their defaults
	AuthFile   string              // credentials, in the format of Docker's config.json; default DefaultAuthFile
	LoginFile  string              // what Login writes, asked before AuthFile; default AuthFile
	Registries map[string]Registry // by host as in image names, for example docker.io or localhost:5000
	Jobs       int                 // layers fetched at a time; default 4
}

// Registry is what is known of a registry beforehand.
type Registry struct {
	// Mirrors are tried in order before the registry itself: host[:port][/prefix], with "http://" in
	// front where plain HTTP is allowed to it.
	Mirrors   []string
	PlainHTTP bool   // allow HTTP without TLS; always allowed to loopback addresses
	CAFile    string // PEM certificates trusted besides the system's
}

// Store is an open image store. Its methods may be called from several goroutines.
type Store struct {
	dir     string
	opts    Options
	log     *slog.Logger
	lock    *os.File
	working keyLocks               // one worker per blob and per layer
	syncfs  func(dir string) error // a field so that tests can count

	mu     sync.Mutex     // guards what follows, and the table in index.json
	pinned map[string]int // digests and chain IDs that work under way relies on, though no image reaches them yet
}

// Open opens the store in a directory, creating it if need be, and clears away what a killed process
// left behind. Only one process may have a store open.
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{dir: dir, opts: opts, log: opts.Logger, pinned: map[string]int{}, syncfs: syncFilesystem}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if opts.Facts.OS == "" {
		f, err := HostFacts()
		if err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
		s.opts.Facts = f
	}
	s.opts.Limits = opts.Limits.withDefaults()
	if s.opts.Jobs <= 0 {
		s.opts.Jobs = 4
	}
	if s.opts.AuthFile == "" {
		s.opts.AuthFile = DefaultAuthFile
	}
	if s.opts.LoginFile == "" {
		s.opts.LoginFile = s.opts.AuthFile
	}
	if err := s.open(); err != nil {
		if s.lock != nil {
			err = errors.Join(err, s.lock.Close())
		}
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrLocked
		}
		return fmt.Errorf("lock: %w", err)
	}
	if err := os.RemoveAll(s.tmpDir()); err != nil {
		return fmt.Errorf("clear leftovers: %w", err)
	}
	for _, d := range []string{s.tmpDir(), s.LayersDir(), s.blobDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Stat(s.indexFile()); errors.Is(err, os.ErrNotExist) {
		marker, err := json.Marshal(ispec.ImageLayout{Version: ispec.ImageLayoutVersion})
		if err != nil {
			return err
		}
		if err := s.replaceFile(filepath.Join(s.dir, "oci", ispec.ImageLayoutFile), marker); err != nil {
			return err
		}
		if err := s.writeTable(nil); err != nil {
			return err
		}
	}
	s.mu.Lock()
	_, err = s.readTable()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = s.collect()
	return err
}

// Close releases the store. Operations must have returned.
func (s *Store) Close() error {
	if err := s.lock.Close(); err != nil {
		return fmt.Errorf("close image store: %w", err)
	}
	return nil
}

// Facts are those that images are checked against.
func (s *Store) Facts() Facts { return s.opts.Facts }

// LayersDir is the directory that holds the unpacked layers.
func (s *Store) LayersDir() string { return filepath.Join(s.dir, "layers") }

func (s *Store) tmpDir() string    { return filepath.Join(s.dir, "tmp") }
func (s *Store) blobDir() string   { return filepath.Join(s.dir, "oci", "blobs", "sha256") }
func (s *Store) indexFile() string { return filepath.Join(s.dir, "oci", "index.json") }

func (s *Store) blobFile(digest string) string {
	return filepath.Join(s.blobDir(), strings.TrimPrefix(digest, "sha256:"))
}

// row is one line of the table: a manifest, and a name for it unless it has none.
type row struct {
	desc v1.Descriptor
	name string
}

// readTable reads index.json. The caller holds mu.
func (s *Store) readTable() ([]row, error) {
	raw, err := os.ReadFile(s.indexFile())
	if err != nil {
		return nil, fmt.Errorf("read image table: %w", err)
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, fmt.Errorf("read image table %s: %w", s.indexFile(), err)
	}
	rows := make([]row, 0, len(idx.Manifests))
	for _, d := range idx.Manifests {
		rows = append(rows, row{desc: d, name: d.Annotations[ispec.AnnotationRefName]})
	}
	return rows, nil
}

// writeTable replaces index.json: the moment at which images come, go and change names.
func (s *Store) writeTable(rows []row) error {
	idx := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for _, r := range rows {
		d := r.desc
		d.Annotations = nil
		if r.name != "" {
			d.Annotations = map[string]string{ispec.AnnotationRefName: r.name}
		}
		idx.Manifests = append(idx.Manifests, d)
	}
	raw, err := json.MarshalIndent(idx, "", "  ")
	if err != nil {
		return err
	}
	if err := s.replaceFile(s.indexFile(), raw); err != nil {
		return fmt.Errorf("write image table: %w", err)
	}
	return nil
}

// setName gives a manifest a name, taking it from whichever image had it. An image that lost its last
// name stays, nameless, until it is pruned: containers may run from it. The caller holds mu.
func setName(rows []row, desc v1.Descriptor, name string) []row {
	kept := make([]row, 0, len(rows)+1)
	var loser *v1.Descriptor
	for _, r := range rows {
		switch {
		case name != "" && r.name == name:
			if r.desc.Digest != desc.Digest {
				loser = &r.desc
			}
		case r.desc.Digest == desc.Digest && r.name == "":
		default:
			kept = append(kept, r)
		}
	}
	if loser != nil && !slices.ContainsFunc(kept, func(r row) bool { return r.desc.Digest == loser.Digest }) {
		kept = append(kept, row{desc: *loser})
	}
	if name != "" || !slices.ContainsFunc(kept, func(r row) bool { return r.desc.Digest == desc.Digest }) {
		kept = append(kept, row{desc: desc, name: name})
	}
	return kept
}

// replaceFile writes a file in full or not at all, even if the machine loses power.
func (s *Store) replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(s.tmpDir(), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return install(f.Name(), path)
}

// install renames a complete, synced file into place and makes the rename last.
func install(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func syncFilesystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		err = fmt.Errorf("sync %s: %w", dir, err)
		return errors.Join(err, d.Close())
	}
	return d.Close()
}

// readBlob reads a manifest or config back.
func (s *Store) readBlob(digest string) ([]byte, error) {
	f, err := os.Open(s.blobFile(digest))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	if digestOf(raw) != digest {
		return nil, fmt.Errorf("read blob %s: its content was changed on disk; remove the image and pull it again", digest)
	}
	return raw, nil
}

// load reads an image, without its names, from its manifest.
func (s *Store) load(desc v1.Descriptor) (Image, error) {
	raw, err := s.readBlob(desc.Digest.String())
	if err != nil {
		return Image{}, err
	}
	d, err := parseDocument(raw, string(desc.MediaType))
	if err != nil {
		return Image{}, err
	}
	if d.Config == nil {
		return Image{}, refused("manifest %s is not an image", desc.Digest)
	}
	config, err := s.readBlob(d.Config.Digest.String())
	if err != nil {
		return Image{}, err
	}
	// The limits of the day it was pulled applied; today's must not make it unreadable.
	return decodeImage(raw, config, d, Limits{LayerBytes: 1 << 62, Layers: 1 << 30})
}

// keyLocks lets one goroutine at a time work on a key.
type keyLocks struct {
	mu   sync.Mutex
	busy map[string]chan struct{}
}

// lock waits for a key until the context ends; the caller calls the function returned.
func (k *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.busy == nil {
			k.busy = map[string]chan struct{}{}
		}
		other, taken := k.busy[key]
		if !taken {
			mine := make(chan struct{})
			k.busy[key] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				defer k.mu.Unlock()
				delete(k.busy, key)
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
