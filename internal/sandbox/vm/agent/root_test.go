package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// TestHanded holds that files which the host handed over follow it, but for those that the container has changed.
func TestHanded(t *testing.T) {
	t.Parallel()
	h := handed{dir: t.TempDir(), by: map[string]*handedFiles{}}
	file := func(name, text string) proto.File { return proto.File{Name: name, Text: []byte(text)} }
	run := proto.Run{Process: "main", Place: "own", Files: []proto.File{file("hosts", "long text\n"), file("hostname", "box\n")}}
	if err := h.put(run); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(h.dir, "own", "hosts")
	before, err := os.Open(hosts) // as a mount has it
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	refresh := func(text string) error {
		return h.refresh(proto.Files{Process: "main", Files: []proto.File{file("hosts", text), file("hostname", "box\n")}})
	}
	read := func() string {
		text := make([]byte, 100)
		n, _ := before.ReadAt(text, 0)
		return string(text[:n])
	}
	if err := refresh("short\n"); err != nil || read() != "short\n" {
		t.Errorf("%q, %v", read(), err)
	}
	if err := os.WriteFile(hosts, []byte("its own\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := refresh("other\n"); err != nil || read() != "its own\n" {
		t.Errorf("what the container wrote is %q now, %v", read(), err)
	}
	if err := h.refresh(proto.Files{Process: "main", Files: []proto.File{file("passwd", "x")}}); err == nil {
		t.Error("a file was written that was not handed over")
	}
	if err := h.refresh(proto.Files{Process: "other", Files: run.Files}); err == nil {
		t.Error("files were written for a process that has none")
	}
	for _, bad := range []proto.Run{
		{Process: "a", Place: "..", Files: run.Files}, {Process: "a", Files: run.Files}, {Process: "a", Place: "p", Files: []proto.File{file("../x", "")}},
	} {
		if err := h.put(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if h.drop("main"); read() == "" {
		t.Error("an open file lost its content")
	}
	if _, err := os.Stat(hosts); !os.IsNotExist(err) {
		t.Errorf("a file of a container that has ended is there: %v", err)
	}
	if err := mountPlace("/none", "/none", proto.Run{Root: "root0", Place: "../x"}); err == nil || !strings.Contains(err.Error(), "no name") {
		t.Errorf("a place that leads elsewhere: %v", err)
	}
}

// TestOpenIn holds that what is read of a container is a file of it.
func TestOpenIn(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/etc/passwd": "inside", "/link": "inside", "/../../etc/passwd": "inside", "/pipe": "", "/etc": "", "/none": ""} {
		f, err := openIn(root, path)
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		text := make([]byte, 100)
		n, _ := f.Read(text)
		if _ = f.Close(); want == "" || string(text[:n]) != want {
			t.Errorf("%s holds %q", path, text[:n])
		}
	}
}
