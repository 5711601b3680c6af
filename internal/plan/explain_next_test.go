package plan

import (
	"context"
	"os/exec"
	"testing"
)

// TestWord: a shell reads each as one word, and nothing of it as a command.
func TestWord(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"web", "", "we'ird id; $(x) é", "-x", "a b", `"`, "`id`", "*", "~", "#", "a\nb", "{\"a\":1}", "fd00::1", "a=b"} {
		got, err := exec.CommandContext(context.Background(), "sh", "-c", "printf %s. "+Word(s)).Output()
		if err != nil || string(got) != s+"." {
			t.Errorf("%q became %s, which is %q to a shell: %v", s, Word(s), got, err)
		}
	}
	if got := Word("web-1.lan:80/tcp"); got != "web-1.lan:80/tcp" {
		t.Errorf("a plain word has quotes: %s", got)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]Party{
		"bulkhead network connect 'my net' web": {Name: "web"},
		"bulkhead endpoint create --network 'my net' --name 'a-my net' && bulkhead namespace attach pod 'a-my net'": {Name: "a", Compartment: "pod"},
	} {
		if got := p.connect("my net"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
