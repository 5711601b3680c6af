package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestHelp walks all commands: each says what it does, at length, with an example
// that it would accept the beginning of.
func TestHelp(t *testing.T) {
	n := 0
	walk(New(Deps{}), func(cmd *cobra.Command) {
		n++
		path := cmd.CommandPath()
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s lacks Short, Long or Example", path)
		}
		if strings.HasSuffix(cmd.Short, ".") || !strings.HasPrefix(cmd.Example, "  ") {
			t.Errorf("%s: Short %q, Example %q", path, cmd.Short, cmd.Example)
		}
		if cmd.Parent() != nil && !strings.Contains(cmd.Example, " "+cmd.Name()) && !hasAlias(cmd) {
			t.Errorf("%s is not in its example: %s", path, cmd.Example)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: usage %q", path, f.Name, f.Usage)
			}
		})
	})
	if n < 80 {
		t.Errorf("the walk found only %d commands", n)
	}
}

func hasAlias(cmd *cobra.Command) bool {
	return slices.ContainsFunc(cmd.Aliases, func(a string) bool { return strings.Contains(cmd.Example, " "+a) })
}

func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, visit)
	}
}

// TestExamples runs no example, but holds that each names commands and flags that
// there are.
func TestExamples(t *testing.T) {
	walk(New(Deps{}), func(cmd *cobra.Command) {
		for line := range strings.Lines(cmd.Example) {
			_, rest, ok := strings.Cut(line, "bulkhead ")
			if !ok {
				continue
			}
			args := strings.Fields(strings.TrimSuffix(strings.TrimSpace(rest), ")"))
			target, left, err := New(Deps{}).Find(args)
			if err != nil || target.Parent() == nil || target.Name() == "help" || strings.HasPrefix(target.CommandPath(), "bulkhead completion") {
				if err != nil || target.Parent() == nil {
					t.Errorf("%s: %q names no command: %v", cmd.CommandPath(), line, err)
				}
				continue
			}
			if err := target.ParseFlags(left); err != nil {
				t.Errorf("%s: %q: %v", cmd.CommandPath(), line, err)
			} else if err := target.ValidateArgs(target.Flags().Args()); err != nil {
				t.Errorf("%s: %q: %v", cmd.CommandPath(), line, err)
			}
		}
	})
}

func TestCompletion(t *testing.T) {
	d := newDaemon(t)
	for line, want := range map[string]string{
		"stop ":                  "batch client web",
		"start ":                 "db",
		"rm d":                   "db",
		"rm db ":                 "batch client web",
		"network rm ":            "back lab nat",
		"network connect ":       "back lab nat",
		"network connect back w": "web",
		"endpoint rm sp":         "spare",
		"namespace attach ":      "client web",
		"namespace attach web s": "spare",
		"run ":                   "registry.example/tools:1 registry.example/web:1 tools",
		"run --network l":        "lab",
		"run --expose ":          "loopback lan all",
		"run --pull ":            "always missing never",
		"image tag to":           "tools",
		"inspect na":             "nat",
		"kill -s SIGU":           "SIGHUP SIGINT SIGKILL SIGQUIT SIGTERM SIGUSR1 SIGUSR2",
		"ps -o ":                 "table json name",
	} {
		args := strings.Split(line, " ")
		out, _, code := call(t, d.socket, append([]string{"__complete"}, args...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if got := strings.Join(lines[:len(lines)-1], " "); got != want || code != 0 {
			t.Errorf("%q: %q, want %q, exit code %d", line, got, want, code)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, errs, code := call(t, d.socket, "completion", shell); code != 0 || !strings.Contains(out, "bulkhead") {
			t.Errorf("completion %s: exit code %d, %s", shell, code, errs)
		}
	}
	out, _, code := call(t, "/nonexistent/socket", "__complete", "stop", "")
	if code != 0 || !strings.HasPrefix(out, ":4") {
		t.Errorf("without a daemon: %q, exit code %d", out, code)
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode 箱": "plain ünïcode 箱", "\x1b[31m": `\x1b[31m`, "a\nb\tc": `a\nb\tc`, "\x7f\u0085": `\x7f\u0085`, "\u202e\u200b": `\u202e\u200b`,
		"\xff\xfe": `\xff\xfe`, "\ufffd": `\ufffd`, "": "",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1kB", 1234567: "1.235MB", 1 << 40: "1.1TB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	if got := binarySize(3 << 29); got != "1.5GiB" {
		t.Error(got)
	}
	if got := paint("x  ", red, true); got != "\x1b[31mx\x1b[0m  " {
		t.Errorf("%q", got)
	}
}
