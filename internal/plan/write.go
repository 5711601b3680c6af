package plan

// Sign says what becomes of the thing that a [Write] is about.
type Sign byte

// The signs, as they are printed.
const (
	Adds    Sign = '+'
	Removes Sign = '-'
	Changes Sign = '~'
)

// Action is the word for a sign: "add", "remove" or "change".
func (s Sign) Action() string {
	switch s {
	case Adds:
		return "add"
	case Removes:
		return "remove"
	case Changes:
	}
	return "change"
}

// Write is one change that an applier would make to the kernel. It is found by the same
// comparison as the change itself, and nothing is written.
type Write struct {
	// Owner is the ID of the port, network or namespace that it is for; "" for the host's.
	Owner string
	// Object is what is touched, in the words of a [Drift]: "link bhp…", "table inet bulkhead".
	Object string
	Sign   Sign
	// Text says what of it: "address 10.0.0.2/24".
	Text string
}
