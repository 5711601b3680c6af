package vm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// Virtiofsd is the program that shares a directory with a guest. There are two, with options of their own.
type Virtiofsd struct {
	Path string `json:"path"`
	Rust bool   `json:"rust,omitempty"` // the one of its own project; else the one that came with QEMU until 8.0
}

// virtiofsdPlaces are where distributions put it, outside the path.
func virtiofsdPlaces() []string {
	return []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"}
}

// virtiofsds finds the program, and remembers which of the two it is: to ask it takes longer than all else before a VM's start.
type virtiofsds struct {
	mu    sync.Mutex
	file  fs.FileInfo // that was asked; nil: none was
	found Virtiofsd
}

func (v *virtiofsds) find(ctx context.Context) (Virtiofsd, error) {
	places := virtiofsdPlaces()
	if path, err := exec.LookPath("virtiofsd"); err == nil {
		places = append([]string{path}, places...)
	}
	for _, path := range places {
		if st, err := os.Stat(path); err == nil && !st.IsDir() {
			return v.ask(ctx, path, st)
		}
	}
	return Virtiofsd{}, &MissingError{What: "virtiofsd", Package: "virtiofsd", Detail: "in Debian 12 it is part of qemu-system-common"}
}

// ask has a program say which it is, unless it is the one that said so last.
func (v *virtiofsds) ask(ctx context.Context, path string, st fs.FileInfo) (Virtiofsd, error) {
	v.mu.Lock()
	found, known := v.found, v.file != nil && v.found.Path == path && os.SameFile(v.file, st) && v.file.Size() == st.Size() && v.file.ModTime().Equal(st.ModTime())
	v.mu.Unlock()
	if known {
		return found, nil
	}
	// Not under the lock: one that hangs is its caller's trouble alone.
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return Virtiofsd{}, fmt.Errorf("%w: %s --version: %w: %.200s", ErrUnavailable, path, err, out)
	}
	found = Virtiofsd{Path: path, Rust: isRust(string(out))}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.file, v.found = st, found
	return found, nil
}

// isRust tells the two by their versions: "virtiofsd 1.13.0", and "virtiofsd version 7.2.19 (Debian …)".
func isRust(version string) bool {
	return !strings.Contains(version, "virtiofsd version")
}

// Args are its arguments, for a socket that is handed over listening.
func (v Virtiofsd) Args(fd int, dir string) []string {
	if v.Rust {
		return []string{
			"--fd", fmt.Sprint(fd), "--shared-dir", dir, "--sandbox", "chroot", "--cache", "auto", "--xattr", "--announce-submounts",
			"--inode-file-handles", "never",
		}
	}
	return []string{fmt.Sprintf("--fd=%d", fd), "-o", "source=" + dir, "-o", "sandbox=chroot,cache=auto,xattr,announce_submounts", "-f"}
}
