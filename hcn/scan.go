package hcn

import "bytes"

// These look at a JSON text without decoding it: a list of ten thousand rules is gone through for a few words of each. The text
// has been read by the decoder before, so it is valid.

// eachMember calls fn with the members of an object, names as they are written, until it returns false. It tells whether it
// went through all of them.
func eachMember(raw []byte, fn func(name, value []byte) bool) bool {
	i := skipBlanks(raw, 0)
	if i >= len(raw) || raw[i] != '{' {
		return false
	}
	for i++; i < len(raw); i++ {
		if i = skipBlanks(raw, i); i >= len(raw) || raw[i] == '}' {
			return true
		}
		start := i + 1
		end := stringEnd(raw, start)
		i = skipBlanks(raw, end+1) + 1 // behind the colon
		i = skipBlanks(raw, i)
		value := i
		if i = valueEnd(raw, i); value >= len(raw) || end > len(raw) {
			return false
		}
		if !fn(raw[start:end], raw[value:i]) {
			return false
		}
		if i = skipBlanks(raw, i); i < len(raw) && raw[i] == '}' {
			return true
		}
	}
	return false
}

// eachElement calls fn with the elements of a list.
func eachElement(raw []byte, fn func(i int, value []byte)) {
	i := skipBlanks(raw, 0)
	if i >= len(raw) || raw[i] != '[' {
		return
	}
	n := 0
	for i++; i < len(raw); i++ {
		if i = skipBlanks(raw, i); i >= len(raw) || raw[i] == ']' {
			return
		}
		value := i
		i = valueEnd(raw, i)
		fn(n, raw[value:i])
		n++
		if i = skipBlanks(raw, i); i < len(raw) && raw[i] == ']' {
			return
		}
	}
}

func skipBlanks(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\n' || raw[i] == '\t' || raw[i] == '\r') {
		i++
	}
	return i
}

// valueEnd is where the value ends that begins at i.
func valueEnd(raw []byte, i int) int {
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = stringEnd(raw, i+1)
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
			continue
		default:
			if depth > 0 {
				continue
			}
			if i+1 < len(raw) && !bytes.ContainsRune([]byte(",]} \n\t\r"), rune(raw[i+1])) {
				continue
			}
		}
		if depth < 0 {
			return i
		}
		if depth == 0 {
			return min(i+1, len(raw))
		}
	}
	return len(raw)
}

// isText tells that a value is the string s, in the spelling that needs no escapes.
func isText(value []byte, s string) bool {
	return len(value) == len(s)+2 && value[0] == '"' && value[len(value)-1] == '"' && string(value[1:len(value)-1]) == s
}
