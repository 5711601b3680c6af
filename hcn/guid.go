package hcn

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID names an object. Its canonical form is upper case with dashes and no braces: service proxies hash endpoint GUIDs in
// upper case and compare the hash with what we report (Windows HNS behaviour), so other spellings must not leave this package.
type GUID string

// zeroGUID is what a client passes for "make one for me".
const zeroGUID GUID = "00000000-0000-0000-0000-000000000000"

// ParseGUID accepts a GUID in any letter case, with or without braces, and returns its canonical form.
func ParseGUID(s string) (GUID, error) {
	t := s
	if len(t) == 38 && t[0] == '{' && t[37] == '}' {
		t = t[1:37]
	}
	if len(t) != 36 {
		return "", guidError(s)
	}
	for i := range len(t) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if t[i] != '-' {
				return "", guidError(s)
			}
		} else if !isHexDigit(t[i]) {
			return "", guidError(s)
		}
	}
	return GUID(strings.ToUpper(t)), nil
}

func guidError(s string) error {
	return Errorf(ErrGUIDConversionFailure,
		"%s is not a GUID: write 8-4-4-4-12 hexadecimal digits, with or without braces", quote(s))
}

func isHexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// NewGUID makes a random GUID (RFC 9562 version 4).
func NewGUID() GUID {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program rather than return weak bytes
	return guidOf(b, 4)
}

func guidOf(b [16]byte, version byte) GUID {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	h := strings.ToUpper(hex.EncodeToString(b[:]))
	return GUID(fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:]))
}

// SwitchOfNIC is the identity of the switch that the networks on a NIC share: it is the same as long as the NIC has its name.
func SwitchOfNIC(name string) GUID { return DerivedGUID("switch of a NIC", name) }

// DerivedGUID is the same for the same words (RFC 9562 version 8, of SHA-256): it names what must be found again by what it is.
func DerivedGUID(words ...string) GUID {
	sum := sha256.New()
	for _, w := range words {
		_, _ = fmt.Fprintf(sum, "%d:%s", len(w), w)
	}
	return guidOf([16]byte(sum.Sum(nil)), 8)
}

// IsZero reports whether g is empty or all zero; clients send both for "none".
func (g GUID) IsZero() bool { return g == "" || g == zeroGUID }

func (g GUID) String() string { return string(g) }

// Lower is the lower-case form, for file names such as that of a bound network namespace.
func (g GUID) Lower() string { return strings.ToLower(string(g)) }

// UnmarshalText normalises; JSON uses it too. An empty text is "no GUID".
func (g *GUID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*g = ""
		return nil
	}
	v, err := ParseGUID(string(b))
	if err != nil {
		return err
	}
	*g = v
	return nil
}
