package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/api"
)

func TestPause(t *testing.T) {
	b := newBed(t)
	paused := func(id string) bool {
		st, err := b.r.State(b.ctx(), id)
		must(t, err)
		return st.Paused
	}
	id := b.start(b.config("/bin/sh", "-c", "trap 'exit 4' TERM; while :; do echo tick; sleep 0.01; done"))
	eventually(t, "it ticks", func() bool { return b.logs(id) != "" })
	for range 2 { // what is so already stays so
		must(t, b.r.Pause(b.ctx(), id))
	}
	if !paused(id) {
		t.Fatal("it is not paused")
	}
	eventually(t, "it stands still", func() bool {
		before := len(b.logs(id))
		eventually(t, "a moment", func() bool { return b.r.cgroups.frozen(b.r.group(id)) })
		return len(b.logs(id)) == before
	})
	must(t, b.r.Kill(b.ctx(), id, "TERM"))
	if st, err := b.r.State(b.ctx(), id); err != nil || st.Status != api.StatusRunning {
		t.Errorf("a paused one took a signal: %+v, %v", st, err)
	}
	for range 2 {
		if err := b.r.Resume(b.ctx(), id); err != nil && !errors.Is(err, ErrNotRunning) {
			t.Fatal(err)
		}
	}
	if st := b.wait(id); st.ExitCode != 4 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	if err := b.r.Pause(b.ctx(), id); !errors.Is(err, ErrNotRunning) {
		t.Errorf("pause one that ended: %v", err)
	}

	other := b.startForever()
	must(t, b.r.Pause(b.ctx(), other))
	must(t, b.r.Remove(b.ctx(), other)) // a paused one can be removed
}

// TestMountPointsOfTheImage: nothing of the kernel is mounted where a link of the image leads.
func TestMountPointsOfTheImage(t *testing.T) {
	root := t.TempDir()
	if err := checkMountPoints(root); err != nil {
		t.Errorf("none of them: %v", err)
	}
	for _, name := range []string{"proc", "sys", "dev"} {
		path := filepath.Join(root, name)
		must(t, os.Symlink("/etc", path))
		err := checkMountPoints(root)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "/"+name+" of the image is a symbolic link (to \"/etc\")") || !strings.Contains(err.Error(), "make it a directory") {
			t.Errorf("a link: %v", err)
		}
		must(t, os.Remove(path))
		must(t, os.WriteFile(path, nil, 0o600))
		if err := checkMountPoints(root); !errors.Is(err, ErrInvalid) {
			t.Errorf("a file: %v", err)
		}
		must(t, os.Remove(path))
		must(t, os.Mkdir(path, 0o700))
	}
	if err := checkMountPoints(root); err != nil {
		t.Errorf("directories: %v", err)
	}
}

// TestModeOfMountPoints: a tmpfs has the mode that is asked for also on a directory of the image, and nothing else gets another mode: neither where
// a link leads, nor what is another mount's.
func TestModeOfMountPoints(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for _, dir := range []string{"tmp", "volume/sub", "plain"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o644))
	must(t, os.Symlink(outside, filepath.Join(root, "out")))
	mode := []string{"nosuid", "mode=1700"}
	must(t, modeMountPoints(root, []specs.Mount{
		{Destination: "/tmp", Type: "tmpfs", Options: mode},
		{Destination: "/plain", Type: "tmpfs"},
		{Destination: "/file", Type: "tmpfs", Options: mode},
		{Destination: "/out", Type: "tmpfs", Options: mode},
		{Destination: "/absent", Type: "tmpfs", Options: mode},
		{Destination: "/volume", Type: "bind"},
		{Destination: "/volume/sub", Type: "tmpfs", Options: mode},
	}))
	for path, want := range map[string]os.FileMode{
		filepath.Join(root, "tmp"): 0o700 | os.ModeDir | os.ModeSticky, filepath.Join(root, "plain"): 0o755 | os.ModeDir, outside: 0o755 | os.ModeDir,
		filepath.Join(root, "file"): 0o644, filepath.Join(root, "volume/sub"): 0o755 | os.ModeDir,
	} {
		st, err := os.Stat(path)
		must(t, err)
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode(), want)
		}
	}
}
