package hcn

// MaxDepth is how deep a document may nest. Real ones stay below ten levels. The decoder gives up at 10,000 by itself, which is too
// late: what is just below is stored inside a row and shown inside a list, and can then be read by nobody.
const MaxDepth = 64

// CheckDepth refuses a text that nests deeper than MaxDepth, before anybody decodes it. Whether it is JSON, the decoder says.
func CheckDepth(data []byte) error {
	depth, member := 0, ""
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			if depth++; depth > MaxDepth {
				return tooDeep(member, i)
			}
		case '}', ']':
			depth--
		case '"':
			start := i + 1
			i = stringEnd(data, start)
			if depth == 1 && isName(data, i) {
				member = string(data[start:min(i, len(data))])
			}
		}
	}
	return nil
}

// stringEnd is where the quote is that ends a string, or the end of the text.
func stringEnd(data []byte, i int) int {
	for ; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i
}

// isName tells that the string which ends at i is a member's name.
func isName(data []byte, i int) bool {
	for i++; i < len(data); i++ {
		switch data[i] {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return data[i] == ':'
	}
	return false
}

func tooDeep(member string, at int) error {
	what := "the document"
	if member != "" {
		what = "member " + quote(member)
	}
	return Errorf(ErrInvalidJSON, "%s nests deeper than %d levels (at byte %d): make it flatter, or send what is inside as a string", what, MaxDepth, at)
}
