package api

// maxName bounds the name of a container or a volume, in bytes.
const maxName = 128

// IsName reports whether s can name a container or a volume: 1 to 128 of the letters and digits of ASCII, '_', '.' and
// '-', of which the first is a letter or digit. Such a name is safe as a part of a path and as a word of a command.
func IsName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxName
}
