package cli

import (
	"bufio"
	"fmt"
	"strings"
)

// confirm asks a question that only a terminal can answer with yes.
func (a *app) confirm(question string) bool {
	if _, ok := terminal(a.Stdin); !ok {
		return false
	}
	fmt.Fprint(a.Stderr, question+" [y/N] ")
	answer, _ := bufio.NewReader(a.Stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}
