package plan

import "strings"

// Word is a word of a shell's command line, in quotes where it needs them: commands that are told are meant to be run, and names and IDs
// are anybody's.
func Word(s string) string {
	plain := func(r rune) bool {
		return r < 0x80 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("_-.:/@%+,=", r))
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// connect is the command that gives a party a vNIC on one more network.
func (p *Party) connect(network string) string {
	if p.Compartment == "" {
		return "bulkhead network connect " + Word(network) + " " + Word(p.Name)
	}
	name := Word(p.Name + "-" + network)
	return "bulkhead endpoint create --network " + Word(network) + " --name " + name + " && bulkhead namespace attach " + Word(p.Compartment) + " " + name
}
