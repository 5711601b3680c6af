package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// RemoveOptions say what may be removed.
type RemoveOptions struct {
	InUse []string // IDs of images that containers were made from, running or not
	Force bool     // an ID that has several names loses them all; never removes what is in use
}

// Removed says what a removal did.
type Removed struct {
	Names  []string `json:"names"`  // no longer valid
	Images []string `json:"images"` // IDs of images that are gone
	Bytes  int64    `json:"bytes"`  // of disk space freed in blobs and unpacked layers
}

// Remove takes a name from an image; the image goes with its last name. Given an ID, the image goes.
func (s *Store) Remove(nameOrID string, opts RemoveOptions) (Removed, error) {
	out, err := s.remove(nameOrID, opts)
	if err != nil {
		return out, fmt.Errorf("remove image %s: %w", nameOrID, err)
	}
	out.Bytes, err = s.collect()
	if err != nil {
		return out, fmt.Errorf("remove image %s: %w", nameOrID, err)
	}
	return out, nil
}

func (s *Store) remove(nameOrID string, opts RemoveOptions) (Removed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows, err := s.readTable()
	if err != nil {
		return Removed{}, err
	}
	// The documents are not read: an image with damaged ones must be removable.
	desc, byName, err := match(rows, nameOrID)
	if err != nil {
		return Removed{}, err
	}
	id := desc.Digest.String()
	names := namesOf(rows, id)
	if byName != "" && len(names) > 1 {
		rows = slices.DeleteFunc(rows, func(r row) bool { return r.name == byName })
		return Removed{Names: []string{byName}}, s.writeTable(rows)
	}
	if slices.Contains(opts.InUse, id) {
		return Removed{}, fmt.Errorf("%w by a container (force takes names away, not what a container is made of): remove the container first", ErrInUse)
	}
	if len(names) > 1 && !opts.Force {
		return Removed{}, fmt.Errorf("%w, %s: remove them one by one, or force it", ErrNames, strings.Join(names, ", "))
	}
	rows = slices.DeleteFunc(rows, func(r row) bool { return r.desc.Digest == desc.Digest })
	return Removed{Names: names, Images: []string{id}}, s.writeTable(rows)
}

// PruneOptions say what to prune.
type PruneOptions struct {
	InUse []string // IDs of images that containers were made from, running or not
	All   bool     // also images with a name
}

// Prune removes images that no container uses: the nameless ones, or all.
func (s *Store) Prune(opts PruneOptions) (Removed, error) {
	out, err := s.prune(opts)
	if err == nil {
		out.Bytes, err = s.collect()
	}
	if err != nil {
		return out, fmt.Errorf("prune images: %w", err)
	}
	return out, nil
}

func (s *Store) prune(opts PruneOptions) (Removed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows, err := s.readTable()
	if err != nil {
		return Removed{}, err
	}
	var out Removed
	kept := slices.DeleteFunc(slices.Clone(rows), func(r row) bool {
		id := r.desc.Digest.String()
		if slices.Contains(opts.InUse, id) || (r.name != "" && !opts.All) {
			return false
		}
		if r.name != "" {
			out.Names = append(out.Names, r.name)
		}
		if !slices.Contains(out.Images, id) {
			out.Images = append(out.Images, id)
		}
		return true
	})
	if len(kept) == len(rows) {
		return out, nil
	}
	return out, s.writeTable(kept)
}

// pin protects blobs and layers from collection until the function returned is called.
func (s *Store) pin(keys ...string) (unpin func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.pinned[k]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range keys {
			if s.pinned[k]--; s.pinned[k] == 0 {
				delete(s.pinned, k)
			}
		}
	}
}

// collect deletes the blobs and layers that nothing reaches, and says how many bytes that freed. Under
// the lock it only renames them away; the slow part comes after.
func (s *Store) collect() (int64, error) {
	trash, err := os.MkdirTemp(s.tmpDir(), "trash-")
	if err != nil {
		return 0, fmt.Errorf("collect garbage: %w", err)
	}
	if err := s.moveGarbage(trash); err != nil {
		return 0, fmt.Errorf("collect garbage: %w", errors.Join(err, os.RemoveAll(trash)))
	}
	freed := diskUsage(trash)
	if err := os.RemoveAll(trash); err != nil {
		return 0, fmt.Errorf("collect garbage: %w", err)
	}
	return freed, nil
}

func (s *Store) moveGarbage(trash string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	blobs, layers, err := s.reachable()
	if err != nil {
		s.log.Warn("unused layers are not removed", "error", err)
		return nil
	}
	for dir, keep := range map[string]map[string]bool{s.blobDir(): blobs, s.LayersDir(): layers} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if keep[e.Name()] {
				continue
			}
			if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(trash, filepath.Base(dir)+"-"+e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// reachable lists the file names of blobs and layers that an image or work under way needs.
func (s *Store) reachable() (blobs, layers map[string]bool, err error) {
	rows, err := s.readTable()
	if err != nil {
		return nil, nil, err
	}
	blobs, layers = map[string]bool{}, map[string]bool{}
	keep := func(key string) {
		blobs[strings.TrimPrefix(key, "sha256:")] = true
		layers[layerName(key)] = true
	}
	for key := range s.pinned {
		keep(key)
	}
	for _, d := range distinct(rows) {
		keep(d.Digest.String())
		img, err := s.load(d)
		if err != nil {
			// Its layers are unknown now, and a container may run on them: delete nothing.
			return nil, nil, fmt.Errorf("image %s is unreadable, remove it first: %w", d.Digest, err)
		}
		keep(img.ConfigDigest)
		for _, l := range img.Layers {
			keep(l.Digest)
			layers[layerName(l.ChainID)] = true
		}
	}
	return blobs, layers, nil
}

// diskUsage adds up a tree's blocks; what cannot be read counts as nothing.
func diskUsage(root string) int64 {
	var total int64
	_ = filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // an estimate is enough
		}
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			total += fi.Size()
		}
		return nil
	})
	return total
}
