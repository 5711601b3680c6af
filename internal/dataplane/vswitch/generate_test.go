package vswitch

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGenerated compiles the programs again, by the lines that go generate reads, and
// compares with what is committed.
func TestGenerated(t *testing.T) {
	if _, err := exec.LookPath("clang-14"); err != nil {
		if os.Getenv("REQUIRE_CLANG") != "" {
			t.Fatal(err)
		}
		t.Skip("needs clang-14 and llvm-14 (REQUIRE_CLANG=1 makes this an error)")
	}
	for source, base := range map[string]string{"vswitch.go": "bpf_bpfel", "offload.go": "uplink_bpfel"} {
		t.Run(base, func(t *testing.T) { testGenerated(t, source, base) })
	}
}

func testGenerated(t *testing.T, file, base string) {
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(source), "//go:generate go tool bpf2go ")
	line, _, _ := strings.Cut(rest, "\n")
	if !ok {
		t.Fatal("no go:generate line")
	}
	dir := t.TempDir()
	args := append([]string{"tool", "bpf2go", "-output-dir", dir}, strings.Fields(line)...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=vswitch", "GOFILE="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{base + ".go", base + ".o"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the sources give: run go generate ./internal/dataplane/vswitch", name)
		}
	}
}
