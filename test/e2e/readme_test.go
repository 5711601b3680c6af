package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestTours runs the commands of the documents' tours, one after the other, on a host where the daemon has just been
// started and rootfs.tar lies in the directory, made as the README says. Each must succeed.
func TestTours(t *testing.T) {
	t.Parallel()
	for file, least := range map[string]int{"README.md": 20, "docs/observe.md": 14, "docs/explain.md": 14} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			runTour(t, "../../"+file, least)
		})
	}
}

func runTour(t *testing.T, file string, least int) {
	t.Helper()
	h := testhost.New(t, testhost.WithName("host"))
	h.Run(t, "sh", "-c", "rm -f /etc/resolv.conf && : >/etc/resolv.conf")
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "../../scripts/rootfs.sh", dir+"/rootfs.tar").CombinedOutput(); err != nil {
		t.Fatalf("make the image of the tours: %v\n%s", err, out)
	}
	run := func(line string) (string, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
		defer cancel()
		c := h.Command(ctx, "bash", "-c", line)
		c.Dir = dir
		c.Env = append(os.Environ(), "PATH="+made.dir+":"+os.Getenv("PATH"))
		c.WaitDelay = time.Second
		out, err := c.CombinedOutput()
		return string(out), err
	}
	daemon := h.Command(context.WithoutCancel(t.Context()), made.binary, "daemon", "--cgroup-parent", h.CgroupParent())
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Kill()
		if out, err := run("bulkhead reset --yes --cgroup-parent " + h.CgroupParent()); err != nil {
			t.Errorf("reset: %v\n%s", err, out)
		}
	})
	testhost.Eventually(t, patience, func() error { _, err := run("bulkhead info"); return err })
	lines := tour(t, file)
	if len(lines) < least {
		t.Fatalf("%s has only %d commands in its tour", file, len(lines))
	}
	for _, line := range lines {
		if out, err := run(line); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

// tour gives the commands of the blocks that follow a line "<!-- tour -->".
func tour(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, block := range strings.Split(string(text), "<!-- tour -->\n```console\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			command, ok := strings.CutPrefix(line, "$ ")
			if !ok {
				t.Fatalf("%s: a line of the tour is no command: %q", file, line)
			}
			lines = append(lines, strings.TrimSpace(command))
		}
	}
	return lines
}
