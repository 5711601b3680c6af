package hcn

import (
	"fmt"
	"strings"
)

// MAC is a hardware address as text. What a client wrote is kept and shown again as it was; addresses that we make have
// dashes and capital letters, the spelling of the HCN schema. Compare with Equal, not with ==.
type MAC string

// MACFrom spells a hardware address the way the HCN schema does.
func MACFrom(b [6]byte) MAC {
	return MAC(fmt.Sprintf("%02X-%02X-%02X-%02X-%02X-%02X", b[0], b[1], b[2], b[3], b[4], b[5]))
}

// ParseMAC accepts dashes or colons in any letter case and returns the canonical spelling.
func ParseMAC(s string) (MAC, error) {
	b, err := MAC(s).Bytes()
	if err != nil {
		return "", err
	}
	return MACFrom(b), nil
}

// Bytes parses the address.
func (m MAC) Bytes() ([6]byte, error) {
	var b [6]byte
	s := string(m)
	bad := fmt.Errorf("%s is not a MAC address: write it like 00-15-5D-01-02-03", quote(s))
	if len(s) != 17 || s[2] != '-' && s[2] != ':' {
		return b, bad
	}
	for i := range b {
		if i > 0 && s[3*i-1] != s[2] {
			return b, bad
		}
		hi, lo := s[3*i], s[3*i+1]
		if !isHexDigit(hi) || !isHexDigit(lo) {
			return b, bad
		}
		b[i] = hexValue(hi)<<4 | hexValue(lo)
	}
	return b, nil
}

func hexValue(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	default:
		return c - 'a' + 10
	}
}

// Normalize returns the canonical spelling, or m itself if it is no MAC.
func (m MAC) Normalize() MAC {
	n, err := ParseMAC(string(m))
	if err != nil {
		return m
	}
	return n
}

// Equal reports whether both are the same address, however they are spelled.
func (m MAC) Equal(o MAC) bool {
	return strings.EqualFold(string(m.Normalize()), string(o.Normalize()))
}

// Colons is the spelling of Linux tools, for example 00:15:5d:01:02:03.
func (m MAC) Colons() string {
	return strings.ToLower(strings.ReplaceAll(string(m.Normalize()), "-", ":"))
}

// unicast checks that the address can belong to an interface.
func (m MAC) unicast() error {
	b, err := m.Bytes()
	if err != nil {
		return err
	}
	if b[0]&1 != 0 {
		return fmt.Errorf("%s is a group address: the lowest bit of the first byte must be 0", quote(string(m)))
	}
	if b == [6]byte{} {
		return fmt.Errorf("%s is the all-zero address: leave the field out to have one chosen", quote(string(m)))
	}
	return nil
}
