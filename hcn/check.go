package hcn

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds on what one document may hold. They are far above what real clients send; a document beyond them is a mistake or an
// attack, and refusing it early keeps everything after this package simple.
const (
	maxNameLength  = 253
	maxIpams       = 8
	maxSubnets     = 64 // over all ipams of a network
	maxIpSubnets   = 256
	maxRoutes      = 256
	maxPolicies    = 16384
	maxIpConfigs   = 16
	maxMacRanges   = 64
	maxDnsEntries  = 32
	maxListEntries = 4096
	maxSetValues   = 1 << 17
	maxBackends    = 4096
	maxServices    = 4096     // of a load balancer: its VIPs, each with its ports
	maxServed      = 1 << 16  // back ends over all its services
	maxOpaque      = 64 << 10 // bytes of a member that is kept as it is
)

// invalid makes the error of one field.
func invalid(code ErrorCode, path, format string, args ...any) error {
	return Errorf(code, "%s: %w", path, fmt.Errorf(format, args...))
}

func checkCount(code ErrorCode, path string, n, limit int) error {
	if n > limit {
		return invalid(code, path, "there are %d entries, %d is the limit", n, limit)
	}
	return nil
}

func checkFlags(code ErrorCode, path string, v uint32, f flagNames) error {
	if unknown := v &^ f.known(); unknown != 0 {
		return invalid(code, path, "bits 0x%x are not known: use %s", unknown, f.list())
	}
	return nil
}

// checkText guards text that ends up in terminals, logs and interface aliases.
func checkText(code ErrorCode, path, s string) error {
	if len(s) > maxNameLength {
		return invalid(code, path, "it has %d bytes, %d is the limit", len(s), maxNameLength)
	}
	if !utf8.ValidString(s) {
		return invalid(code, path, "it is not UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return invalid(code, path, "%s holds the unprintable character %q", quote(s), r)
		}
	}
	return nil
}

// checkName guards labels: they are also shown as parts of paths and addresses.
func checkName(code ErrorCode, s string) error {
	const path = "Name"
	if err := checkText(code, path, s); err != nil {
		return err
	}
	if strings.Contains(s, "/") {
		return invalid(code, path, `%s holds "/": use letters, digits, blanks and -_.()`, quote(s))
	}
	if s == "." || s == ".." || strings.TrimSpace(s) != s {
		return invalid(code, path, "%s is no name: it must not be dots alone or have blanks at its ends", quote(s))
	}
	return nil
}

// checkInterfaceText is the rule of Linux for interface names.
func checkInterfaceText(path, s string) error {
	if s == "." || s == ".." {
		return invalid(ErrInvalidPolicy, path, "%s is no name", quote(s))
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || unicode.IsSpace(r) || strings.ContainsRune("/:%", r) || r == utf8.RuneError {
			return invalid(ErrInvalidPolicy, path, "%s holds %q, which Linux does not allow in an interface name", quote(s), r)
		}
	}
	return nil
}

// checkDomain takes what can stand in DNS and in resolv.conf, underscores included.
func checkDomain(code ErrorCode, path, s string) error {
	t := strings.TrimSuffix(s, ".")
	if t == "" || len(t) > maxNameLength {
		return invalid(code, path, "%s is not a domain name", quote(s))
	}
	for label := range strings.SplitSeq(t, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return invalid(code, path, "%s is not a domain name: labels have 1 to 63 characters and no dash at their ends", quote(s))
		}
		for _, c := range []byte(label) {
			if !isAlnum(c) && c != '-' && c != '_' {
				return invalid(code, path, "%s is not a domain name: use letters, digits, - and _", quote(s))
			}
		}
	}
	return nil
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func checkMAC(code ErrorCode, path string, m MAC) error {
	if err := m.unicast(); err != nil {
		return invalid(code, path, "%w", err)
	}
	return nil
}

func checkOpaque(code ErrorCode, raw []byte) error {
	const path = "AdditionalParams"
	if len(raw) > maxOpaque {
		return invalid(code, path, "it has %d bytes, %d is the limit", len(raw), maxOpaque)
	}
	return nil
}

// validate checks a resolver setup. Everything in it is written to resolv.conf, so nothing may carry a line break.
func (d Dns) validate(code ErrorCode, path string) error {
	if d.Domain != "" {
		if err := checkDomain(code, path+".Domain", d.Domain); err != nil {
			return err
		}
	}
	for _, l := range []struct {
		name  string
		list  []string
		check func(path, s string) error
	}{
		{"Search", d.Search, func(p, s string) error { return checkDomain(code, p, s) }},
		{"ServerList", d.ServerList, func(p, s string) error { return checkServer(code, p, s) }},
		{"Options", d.Options, func(p, s string) error { return checkOption(code, p, s) }},
	} {
		if err := checkCount(code, path+"."+l.name, len(l.list), maxDnsEntries); err != nil {
			return err
		}
		for i, s := range l.list {
			if err := l.check(fmt.Sprintf("%s.%s[%d]", path, l.name, i), s); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkServer(code ErrorCode, path, s string) error {
	a, err := parseAddr(s)
	if err != nil {
		return invalid(code, path, "%w", err)
	}
	if a.IsUnspecified() || a.IsMulticast() {
		return invalid(code, path, "%s cannot be a resolver", a)
	}
	return nil
}

func checkOption(code ErrorCode, path, s string) error {
	for _, c := range []byte(s) {
		if !isAlnum(c) && !strings.ContainsRune("-_:.", rune(c)) {
			return invalid(code, path, "%s is not an option of a resolver, such as ndots:1", quote(s))
		}
	}
	if s == "" || len(s) > 64 {
		return invalid(code, path, "%s is not an option of a resolver, such as ndots:1", quote(s))
	}
	return nil
}

// parseAddr takes a plain address. Zones belong to one host, and IPv4 in IPv6 form is a second spelling that would slip past
// comparisons, so neither is taken.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, fmt.Errorf("the address is missing")
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%s is not an IP address", quote(s))
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone: leave out what follows %%", quote(s))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is an IPv4 address in IPv6 form: write %s", quote(s), a.Unmap())
	}
	return a, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, fmt.Errorf("the prefix is missing: write it like 10.1.0.0/16")
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is not a prefix like 10.1.0.0/16 or fd00:1::/64", quote(s))
	}
	return p, nil
}

// parseAddrOrPrefix takes a single address as the prefix that holds only it.
func parseAddrOrPrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return parsePrefix(s)
	}
	a, err := parseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// lastAddr is the highest address of a prefix: the broadcast address in IPv4.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
