package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An archive may hold usr/bin/tool without an entry for usr/bin, when that directory is further down.
// The overlay shows the topmost directory's mode and owner, so one made here with default ones would
// change those of /tmp or /root below; and where the layers below have a symbolic link, bin for
// usr/bin, a new directory would hide everything behind it. So before an entry is written, its parent is
// looked up in the whole stack as a running container would see it.

// tree is the stack a layer is unpacked on.
type tree struct {
	dirs  []string        // topmost first; dirs[0] is the layer being unpacked
	known map[string]bool // paths that are real directories in dirs[0]
}

func newTree(root string, lowers []string) *tree {
	return &tree{dirs: append([]string{root}, lowers...), known: map[string]bool{".": true}}
}

// place makes sure that an entry's parent directory exists, and rewrites its name to where that is.
func (t *tree) place(hdr *tar.Header) error {
	name := path.Clean(strings.TrimPrefix(hdr.Name, "/"))
	if name == "" || name == "." {
		return nil
	}
	parent, base := path.Split(name)
	parent = path.Clean(parent)
	if t.known[parent] {
		return nil
	}
	resolved, err := t.resolve(parent)
	if err != nil {
		return err
	}
	hdr.Name = path.Join(resolved, base)
	return nil
}

// wrote keeps known true after an entry was written.
func (t *tree) wrote(hdr *tar.Header) {
	name := path.Clean(strings.TrimPrefix(hdr.Name, "/"))
	dir, base := path.Split(name)
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		name = path.Join(dir, hidden)
	} else if hdr.Typeflag == tar.TypeDir {
		t.known[name] = true
		return
	}
	if t.known[name] { // a directory gave way to something else; this is rare
		t.known = map[string]bool{".": true}
	}
}

// resolve follows a directory path through the stack, makes what is missing of it in the layer being
// unpacked, and returns it free of symbolic links.
func (t *tree) resolve(p string) (string, error) {
	todo := strings.Split(p, "/")
	at, visible := ".", t.dirs
	for hops := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		if c == "" || c == "." {
			continue
		}
		if c == ".." {
			at = path.Dir(at) // stays "." at the root
			visible = t.below(at)
			continue
		}
		next := path.Join(at, c)
		found, fi, err := look(visible, next)
		if err != nil {
			return "", err
		}
		if fi != nil && fi.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(filepath.Join(found[0], next))
			if err != nil {
				return "", err
			}
			if hops++; hops > 40 {
				return "", refused("too many symbolic links in the path")
			}
			if path.IsAbs(target) {
				at, visible = ".", t.dirs
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		if fi != nil && !fi.IsDir() {
			found = nil // a directory takes its place, with nothing of the layers below in it
		}
		made, err := t.ensure(next, found, fi)
		if err != nil {
			return "", err
		}
		if !made {
			return path.Join(append([]string{next}, todo...)...), nil
		}
		at, visible = next, t.include(found)
	}
	return at, nil
}

// include puts the layer being unpacked, where the directory now exists, in front of those it was found in.
func (t *tree) include(found []string) []string {
	if len(found) > 0 && found[0] == t.dirs[0] {
		return found
	}
	return append([]string{t.dirs[0]}, found...)
}

// below finds the directories that make up a path that was resolved before.
func (t *tree) below(at string) []string {
	visible := t.dirs
	if at == "." {
		return visible
	}
	walked := "."
	for c := range strings.SplitSeq(at, "/") {
		walked = path.Join(walked, c)
		found, _, err := look(visible, walked)
		if err != nil {
			return t.dirs[:1]
		}
		visible = t.include(found)
	}
	return visible
}

// look finds a path in a stack of directories, in all of which its parent is a real directory, so that
// no symbolic link is followed here. For a directory it returns all that merge into it; for anything
// else, the one it is in; for nothing, or what a whiteout hides, a nil FileInfo.
func look(stack []string, p string) ([]string, fs.FileInfo, error) {
	var found []string
	var first fs.FileInfo
	for _, dir := range stack {
		full := filepath.Join(dir, p)
		fi, err := os.Lstat(full)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if isWhiteout(fi) {
			break
		}
		if !fi.IsDir() {
			if first == nil {
				return []string{dir}, fi, nil
			}
			break
		}
		found = append(found, dir)
		if first == nil {
			first = fi
		}
		if isOpaque(full) {
			break
		}
	}
	return found, first, nil
}

func isWhiteout(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0
}

func isOpaque(dir string) bool {
	var b [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// ensure makes a directory in the layer being unpacked, like the one that the stack shows there. Where
// this layer itself has a file or whiteout it does nothing: umoci replaces those as the specification says.
func (t *tree) ensure(p string, found []string, fi fs.FileInfo) (made bool, err error) {
	full := filepath.Join(t.dirs[0], p)
	own, err := os.Lstat(full)
	if err == nil {
		t.known[p] = own.IsDir()
		return own.IsDir(), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err := os.Mkdir(full, 0o755); err != nil {
		return false, err
	}
	if err := os.Chmod(full, 0o755); err != nil { // whatever the umask
		return false, err
	}
	t.known[p] = true
	if len(found) == 0 {
		return true, nil
	}
	if err := copyMetadata(filepath.Join(found[0], p), full, fi); err != nil {
		return false, fmt.Errorf("copy directory %s from the layer below: %w", p, err)
	}
	return true, nil
}

func copyMetadata(from, to string, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("no owner known")
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(to, fi.Mode()); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return os.Chtimes(to, fi.ModTime(), fi.ModTime())
}

func copyXattrs(from, to string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for attr := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if attr == "" || strings.HasPrefix(attr, "trusted.overlay.") || strings.HasPrefix(attr, "security.") {
			continue // belong to that layer, or to the host
		}
		size, err := unix.Lgetxattr(from, attr, value)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(to, attr, value[:size], 0); err != nil {
			return err
		}
	}
	return nil
}
