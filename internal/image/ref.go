package image

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// dockerHub is how users write the registry that names without a host mean; the library (and the
// protocol) know it as index.docker.io.
const dockerHub = "docker.io"

// reference is a name as a user may write it, completed: debian is docker.io/library/debian:latest.
type reference struct {
	host   string // registry as users write it, for example docker.io or localhost:5000
	repo   string // library/debian
	tag    string // one of tag and digest is set
	digest string
}

func (r reference) String() string {
	if r.digest != "" {
		return r.repository() + "@" + r.digest
	}
	return r.repository() + ":" + r.tag
}

func (r reference) repository() string { return r.host + "/" + r.repo }

// identifier is what the registry is asked for.
func (r reference) identifier() string {
	if r.digest != "" {
		return r.digest
	}
	return r.tag
}

// ParseReference completes an image name as it is used all over: a registry of docker.io, a "library/"
// for its official images, a tag of latest. The result is the name the store keeps.
func ParseReference(s string) (string, error) {
	r, err := parseReference(s)
	return r.String(), err
}

func parseReference(s string) (reference, error) {
	if s == "" {
		return reference{}, fmt.Errorf("%w: the image name is empty: write one like debian:12", ErrInvalid)
	}
	// name:tag@digest is legal; the digest decides.
	if base, digest, ok := strings.Cut(s, "@"); ok {
		if i := strings.LastIndex(base, ":"); i > strings.LastIndex(base, "/") {
			if _, err := name.NewTag(base); err != nil {
				return reference{}, fmt.Errorf("%w: image name %q: %w", ErrInvalid, s, err)
			}
			s = base[:i] + "@" + digest
		}
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return reference{}, fmt.Errorf("%w: image name %q: %w", ErrInvalid, s, err)
	}
	host := ref.Context().RegistryStr()
	if host == name.DefaultRegistry {
		host = dockerHub
	}
	if c := host[0]; c == '.' || c == '-' || strings.Contains(host, "..") { // the library takes ".." for a host
		return reference{}, fmt.Errorf("%w: image name %q: %q is not a registry", ErrInvalid, s, host)
	}
	r := reference{host: host, repo: ref.Context().RepositoryStr()}
	switch ref := ref.(type) {
	case name.Digest:
		if !strings.HasPrefix(ref.DigestStr(), "sha256:") {
			return reference{}, fmt.Errorf("%w: image name %q: only sha256 digests are supported", ErrInvalid, s)
		}
		r.digest = ref.DigestStr()
	case name.Tag:
		r.tag = ref.TagStr()
	}
	return r, nil
}

// isLoopback says whether a registry host, with or without port, can only be this machine. Plain HTTP
// to it leaves nothing to overhear, so it needs no permission.
func isLoopback(host string) bool {
	if ap, err := netip.ParseAddrPort(host); err == nil {
		return ap.Addr().IsLoopback()
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return a.IsLoopback()
	}
	h, _, _ := strings.Cut(host, ":")
	return h == "localhost" || strings.HasSuffix(h, ".localhost")
}
