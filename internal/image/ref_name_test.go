package image

import (
	"errors"
	"strings"
	"testing"
)

// TestBadName: an image name is refused with what is wrong about it.
func TestBadName(t *testing.T) {
	for name, want := range map[string]string{
		"Debian":               `write "debian"`,
		"Debian:Twelve":        `write "debian:Twelve"`,
		"two words":            "lower-case letters, digits",
		"box:two words":        "the tag after the colon",
		"box:":                 "the tag after the colon",
		"http://box":           `leave out the scheme, "http://"`,
		"box@sha256:12":        "after @ come sha256:",
		"box@md5:" + "0":       "after @ come sha256:",
		strings.Repeat("a", 2): "",
	} {
		_, err := ParseReference(name)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
