package hcn

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// names is the spelling of an enum's values, in the order of their numbers.
type names []string

func (n names) text(v int) string {
	if v >= 0 && v < len(n) {
		return n[v]
	}
	return strconv.Itoa(v)
}

// parse accepts a name in any letter case, or the number as text.
func (n names) parse(s string) (int, bool) {
	for i, name := range n {
		if strings.EqualFold(name, s) {
			return i, true
		}
	}
	if v, err := strconv.ParseUint(s, 10, 8); err == nil && int(v) < len(n) {
		return int(v), true
	}
	return 0, false
}

// scalarText gives the text of a JSON string or number, so that enums and masks are read by one parser.
func scalarText(b []byte) (string, error) {
	if end, plain := plainText(b, 0); plain && end == len(b) {
		return string(b[1 : len(b)-1]), nil
	}
	if len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		return s, err
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return "", err
	}
	return n.String(), nil
}

// parseEnum is the body of an enum's UnmarshalText.
func parseEnum[T ~uint8](dst *T, n names, what string, code ErrorCode, s string) error {
	if s == "" {
		*dst = 0
		return nil
	}
	v, ok := n.parse(s)
	if !ok {
		return Errorf(code, "%s %s is not known: use one of %s", what, quote(s), strings.Join(n, ", "))
	}
	*dst = T(v)
	return nil
}

// parseEnumJSON is the body of an enum's UnmarshalJSON: a name or a number; null leaves the value alone, as JSON does.
func parseEnumJSON[T ~uint8](dst *T, n names, what string, code ErrorCode, b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s, err := scalarText(b)
	if err != nil {
		return Errorf(code, "%s must be a name or a number: use one of %s", what, strings.Join(n, ", "))
	}
	return parseEnum(dst, n, what, code, s)
}

// flagNames names the bits of a mask.
type flagNames []struct {
	bit  uint32
	name string
}

func (f flagNames) text(v uint32) string {
	if v == 0 {
		return "None"
	}
	var parts []string
	for _, e := range f {
		if v&e.bit != 0 {
			parts = append(parts, e.name)
			v &^= e.bit
		}
	}
	if v != 0 {
		parts = append(parts, fmt.Sprintf("0x%x", v))
	}
	return strings.Join(parts, "|")
}

func (f flagNames) known() (mask uint32) {
	for _, e := range f {
		mask |= e.bit
	}
	return mask
}

func (f flagNames) list() string {
	parts := make([]string, len(f))
	for i, e := range f {
		parts[i] = e.name
	}
	return strings.Join(parts, ", ")
}

// parse accepts a number, a name, or several of them joined by "," or "|".
func (f flagNames) parse(s string) (uint32, error) {
	var v uint32
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == '|' }) {
		part = strings.TrimSpace(part)
		bit, ok := f.bit(part)
		if !ok {
			return 0, fmt.Errorf("%s is not a flag: use a number or names out of None, %s", quote(part), f.list())
		}
		v |= bit
	}
	return v, nil
}

func (f flagNames) bit(part string) (uint32, bool) {
	if part == "" || strings.EqualFold(part, "None") {
		return 0, true
	}
	for _, e := range f {
		if strings.EqualFold(e.name, part) {
			return e.bit, true
		}
	}
	n, err := strconv.ParseUint(part, 10, 32)
	return uint32(n), err == nil
}

// parseFlagsJSON is the body of a mask's UnmarshalJSON.
func parseFlagsJSON[T ~uint32](dst *T, f flagNames, what string, code ErrorCode, b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s, err := scalarText(b)
	if err != nil {
		return Errorf(code, "%s must be a number or names out of None, %s", what, f.list())
	}
	v, err := f.parse(s)
	if err != nil {
		return Errorf(code, "%s: %w", what, err)
	}
	*dst = T(v)
	return nil
}
