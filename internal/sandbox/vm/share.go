package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
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

// FindVirtiofsd finds the program and which of the two it is.
func FindVirtiofsd(ctx context.Context) (Virtiofsd, error) {
	places := virtiofsdPlaces()
	if path, err := exec.LookPath("virtiofsd"); err == nil {
		places = append([]string{path}, places...)
	}
	for _, path := range places {
		if st, err := os.Stat(path); err != nil || st.IsDir() {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
		if err != nil {
			return Virtiofsd{}, fmt.Errorf("%w: %s --version: %w: %.200s", ErrUnavailable, path, err, out)
		}
		return Virtiofsd{Path: path, Rust: isRust(string(out))}, nil
	}
	return Virtiofsd{}, &MissingError{What: "virtiofsd", Package: "virtiofsd", Detail: "in Debian 12 it is part of qemu-system-common"}
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
