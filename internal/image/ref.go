package image

import (
	"fmt"
	"net/netip"
	"strconv"
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
				return reference{}, badName(s)
			}
			s = base[:i] + "@" + digest
		}
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return reference{}, badName(s)
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

// badName says what is wrong with an image name; the library that reads them does not.
func badName(s string) error {
	why := "write it like debian:12, registry.example:5000/team/app or NAME@sha256:…"
	base, digest, hasDigest := strings.Cut(s, "@")
	repo, tag := base, ""
	if i := strings.LastIndex(base, ":"); i > strings.LastIndex(base, "/") {
		repo, tag = base[:i], base[i+1:]
	}
	hex, isSHA := strings.CutPrefix(digest, "sha256:")
	switch {
	case strings.Contains(s, "://"):
		why = "leave out the scheme, " + strconv.Quote(s[:strings.Index(s, "://")+3])
	case hasDigest && (!isSHA || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != ""):
		why = "after @ come sha256: and 64 digits of 0-9 and a-f"
	case strings.Trim(strings.ToLower(repo), nameLetters) != "":
		why = "names of images are made of lower-case letters, digits and . _ - /"
	case repo != strings.ToLower(repo):
		why = "names of images are in lower case: write " + strconv.Quote(strings.ToLower(repo)+base[len(repo):])
	case len(base) > len(repo) && (tag == "" || len(tag) > 128 || strings.Trim(tag, tagLetters) != ""):
		why = "the tag after the colon has 1 to 128 letters, digits, dots, dashes and underscores"
	}
	return fmt.Errorf("%w: image name %.200q: %s", ErrInvalid, s, why)
}

const nameLetters = "abcdefghijklmnopqrstuvwxyz0123456789._-/:[]" // with those of a registry's address and port

const tagLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."

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
