package image

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// List returns all images, newest first, each with its names. An image whose documents are damaged is
// left out and logged, so that one bad file does not hide the others.
func (s *Store) List() ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows, err := s.readTable()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Image
	for _, d := range distinct(rows) {
		img, err := s.load(d)
		if err != nil {
			s.log.Warn("image is unreadable", "image", d.Digest.String(), "error", err)
			continue
		}
		img.Names = namesOf(rows, img.ID)
		out = append(out, img)
	}
	slices.SortStableFunc(out, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Inspect finds an image by name, or by its ID or the beginning of it (four digits or more).
func (s *Store) Inspect(nameOrID string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, img, _, err := s.find(nameOrID)
	return img, err
}

// Tag gives an image one more name. The name moves if another image has it.
func (s *Store) Tag(nameOrID, newName string) (Image, error) {
	ref, err := parseReference(newName)
	if err != nil {
		return Image{}, fmt.Errorf("tag image: %w", err)
	}
	if ref.digest != "" {
		return Image{}, fmt.Errorf("tag image: %w: %q names a digest, which cannot be given to an image", ErrInvalid, newName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows, img, _, err := s.find(nameOrID)
	if err != nil {
		return Image{}, fmt.Errorf("tag image: %w", err)
	}
	rows = setName(rows, descriptorOf(rows, img.ID), ref.String())
	if err := s.writeTable(rows); err != nil {
		return Image{}, fmt.Errorf("tag image %s: %w", nameOrID, err)
	}
	img.Names = namesOf(rows, img.ID)
	return img, nil
}

// find resolves what a user wrote. byName is the full name if it was one. The caller holds mu.
func (s *Store) find(nameOrID string) (rows []row, img Image, byName string, err error) {
	rows, err = s.readTable()
	if err != nil {
		return nil, Image{}, "", err
	}
	desc, byName, err := match(rows, nameOrID)
	if err != nil {
		return nil, Image{}, "", err
	}
	img, err = s.load(desc)
	if err != nil {
		return nil, Image{}, "", fmt.Errorf("image %s: %w", nameOrID, err)
	}
	img.Names = namesOf(rows, img.ID)
	return rows, img, byName, nil
}

func match(rows []row, nameOrID string) (v1.Descriptor, string, error) {
	ref, refErr := parseReference(nameOrID)
	if refErr == nil {
		for _, r := range rows {
			if r.name == ref.String() {
				return r.desc, r.name, nil
			}
		}
	}
	var found []v1.Descriptor
	if refErr == nil && ref.digest != "" {
		// name@digest also means the image that has this digest and came from there under a tag.
		for _, r := range rows {
			if r.desc.Digest.String() == ref.digest && strings.HasPrefix(r.name, ref.repository()+":") {
				found = append(found, r.desc)
				break
			}
		}
	} else if prefix := strings.TrimPrefix(nameOrID, "sha256:"); isHex(prefix) && len(prefix) >= 4 {
		for _, d := range distinct(rows) {
			if strings.HasPrefix(d.Digest.Hex, prefix) {
				found = append(found, d)
			}
		}
	} else if refErr != nil {
		return v1.Descriptor{}, "", refErr
	}
	switch len(found) {
	case 1:
		return found[0], "", nil
	case 0:
		return v1.Descriptor{}, "", fmt.Errorf("%w: %s", ErrNotFound, nameOrID)
	}
	return v1.Descriptor{}, "", fmt.Errorf("%w: %s is the beginning of %d IDs", ErrAmbiguous, nameOrID, len(found))
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// distinct returns each manifest of the table once.
func distinct(rows []row) []v1.Descriptor {
	var out []v1.Descriptor
	seen := map[v1.Hash]bool{}
	for _, r := range rows {
		if !seen[r.desc.Digest] {
			seen[r.desc.Digest] = true
			out = append(out, r.desc)
		}
	}
	return out
}

func descriptorOf(rows []row, id string) v1.Descriptor {
	for _, r := range rows {
		if r.desc.Digest.String() == id {
			return r.desc
		}
	}
	return v1.Descriptor{}
}

func namesOf(rows []row, id string) []string {
	names := []string{}
	for _, r := range rows {
		if r.name != "" && r.desc.Digest.String() == id {
			names = append(names, r.name)
		}
	}
	slices.Sort(names)
	return names
}
