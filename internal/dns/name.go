package dns

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

var errName = errors.New("not a domain name")

// fold gives a name the form in which it is compared: lower case, no trailing
// dot; "" is the root. Only ASCII folds, as RFC 4343 says.
func fold(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := 0; i < len(name); i++ {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			b := []byte(name)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return name
}

// checkName tells whether a folded name can be put into a message.
func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return errName
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return errName
		}
	}
	return nil
}

// appendName packs a folded or unfolded name, with or without trailing dot.
func appendName(b []byte, name string) []byte {
	name = strings.TrimSuffix(name, ".")
	for name != "" {
		label, rest, _ := strings.Cut(name, ".")
		b = append(b, byte(len(label)))
		b = append(b, label...)
		name = rest
	}
	return append(b, 0)
}

// below strips a suffix of whole labels. It is false for the suffix itself.
func below(name, suffix string) (string, bool) {
	if suffix == "" {
		return "", false
	}
	head, ok := strings.CutSuffix(name, suffix)
	if !ok || len(head) < 2 || head[len(head)-1] != '.' {
		return "", false
	}
	return head[:len(head)-1], true
}

// within is true for the suffix itself and everything below it.
func within(name, suffix string) bool {
	if name == suffix {
		return suffix != ""
	}
	_, ok := below(name, suffix)
	return ok
}

// parseReverse reads a name below in-addr.arpa or ip6.arpa as the prefix that it
// stands for: a whole address, or a part of the tree above addresses. exact is
// false when labels are left over that no address has (RFC 2317 makes such
// names); the prefix then is what they are below.
func parseReverse(name string) (p netip.Prefix, exact, ok bool) {
	if head, ok := below(name, "in-addr.arpa"); ok {
		p, exact = parseReverse4(head)
		return p, exact, true
	}
	if head, ok := below(name, "ip6.arpa"); ok {
		p, exact = parseReverse6(head)
		return p, exact, true
	}
	return netip.Prefix{}, false, false
}

func parseReverse4(head string) (netip.Prefix, bool) {
	var a [4]byte
	n := 0
	for head != "" {
		label := head[strings.LastIndexByte(head, '.')+1:]
		v, err := strconv.ParseUint(label, 10, 8)
		if err != nil || n == len(a) || (len(label) > 1 && label[0] == '0') {
			return netip.PrefixFrom(netip.AddrFrom4(a), n*8), false
		}
		a[n] = byte(v)
		n++
		head = strings.TrimSuffix(head[:len(head)-len(label)], ".")
	}
	return netip.PrefixFrom(netip.AddrFrom4(a), n*8), true
}

func parseReverse6(head string) (netip.Prefix, bool) {
	var a [16]byte
	n := 0
	for i := len(head) - 1; i >= 0; i -= 2 {
		v, err := strconv.ParseUint(head[i:i+1], 16, 8)
		if err != nil || n == 32 || (i > 0 && head[i-1] != '.') {
			return netip.PrefixFrom(netip.AddrFrom16(a), n*4), false
		}
		a[n/2] |= byte(v) << (4 * (1 - n%2))
		n++
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), n*4), true
}

// reverseName is the name of a prefix in the reverse tree, of the labels that
// it fills.
func reverseName(p netip.Prefix) string {
	var b strings.Builder
	if p.Addr().Is4() {
		a := p.Addr().As4()
		for i := p.Bits()/8 - 1; i >= 0; i-- {
			b.WriteString(strconv.Itoa(int(a[i])))
			b.WriteByte('.')
		}
		return b.String() + "in-addr.arpa"
	}
	const digits = "0123456789abcdef"
	a := p.Addr().As16()
	for i := p.Bits()/4 - 1; i >= 0; i-- {
		b.WriteByte(digits[a[i/2]>>(4*(1-i%2))&15])
		b.WriteByte('.')
	}
	return b.String() + "ip6.arpa"
}
