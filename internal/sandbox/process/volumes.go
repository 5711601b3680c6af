package process

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

const (
	volumeData = "_data"
	goneVolume = ".gone-" // begins the names of directories whose volumes are removed
)

// anonymousName names a volume that belongs to one place of one container.
func anonymousName(target string) string {
	sum := sha256.Sum256([]byte(target))
	return hex.EncodeToString(sum[:16])
}

// fillVolume makes a volume that is not there yet, with what the image has at its
// target. It is filled under another name and renamed, so that a crash leaves no
// half-filled one, and of two containers that come at once one wins.
func (r *Runtime) fillVolume(rootfs string, v volumeFill) error {
	if exists(v.dir) {
		return nil
	}
	parent := filepath.Dir(v.dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := r.copyUp(rootfs, v.target, filepath.Join(tmp, volumeData)); err != nil {
		return fmt.Errorf("fill volume for %s: %w", v.target, err)
	}
	err = os.Rename(tmp, v.dir)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	return nil
}

// Volumes lists the named volumes.
func (r *Runtime) Volumes() ([]api.Volume, error) {
	entries, err := os.ReadDir(r.volumeDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var out []api.Volume
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !api.IsName(e.Name()) { // removed meanwhile, or half made
			continue
		}
		out = append(out, api.Volume{Name: e.Name(), Path: filepath.Join(r.volumeDir, e.Name(), volumeData), Created: st.ModTime().UTC()})
	}
	return out, nil
}

// RemoveVolume takes a named volume out of the list; finish removes its content.
// What a crash leaves in between goes with the next removal.
func (r *Runtime) RemoveVolume(name string) (finish func() error, err error) {
	dir := filepath.Join(r.volumeDir, name)
	if !api.IsName(name) || !exists(dir) {
		return nil, api.Errorf(api.KindNotFound, "volume %.80q does not exist", name).Hint("bulkhead volume ls")
	}
	gone, err := os.MkdirTemp(r.volumeDir, goneVolume)
	if err == nil {
		err = os.Rename(dir, filepath.Join(gone, name))
	}
	if err != nil {
		return nil, fmt.Errorf("remove volume %s: %w", name, err)
	}
	return r.removeGone, nil
}

func (r *Runtime) removeGone() error {
	left, err := filepath.Glob(filepath.Join(r.volumeDir, goneVolume+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// copyUp copies a directory of the image. The container does not run yet, so
// nobody changes the source under us.
func (r *Runtime) copyUp(rootfs, target, to string) error {
	h, err := securejoin.OpenInRoot(rootfs, target)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Mkdir(to, 0o755)
	}
	if err != nil {
		return err
	}
	defer h.Close()
	if st, err := h.Stat(); err != nil {
		return err
	} else if !st.IsDir() {
		return fmt.Errorf("%w: the image has a file there, a volume is a directory", ErrInvalid)
	}
	from := fmt.Sprintf("/proc/self/fd/%d/.", h.Fd())
	var dirs []string
	err = filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, rel)
		}
		return copyEntry(path, filepath.Join(to, rel), e.Type())
	})
	// Only now will nothing change a directory's time any more.
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = copyTimes(filepath.Join(from, dirs[i]), filepath.Join(to, dirs[i]))
	}
	return err
}

func copyEntry(from, to string, typ fs.FileMode) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	var err error
	switch typ {
	case fs.ModeDir:
		err = os.Mkdir(to, 0o700)
	case 0:
		err = copyFile(from, to)
	case fs.ModeSymlink:
		var link string
		if link, err = os.Readlink(from); err == nil {
			err = os.Symlink(link, to)
		}
	case fs.ModeNamedPipe:
		err = unix.Mkfifo(to, 0o600)
	default:
		return nil // sockets mean nothing without their server; device nodes do not belong into a volume
	}
	if err == nil {
		err = os.Lchown(to, int(st.Uid), int(st.Gid))
	}
	if err != nil || typ == fs.ModeSymlink {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	// After chown, which clears the set-uid bits.
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	return copyTimes(from, to)
}

func copyFile(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func copyTimes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs keeps file capabilities, ACLs and users' attributes.
func copyXattrs(from, to string) error {
	size, err := unix.Llistxattr(from, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(from, list); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.") || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("copy attribute %s: %w", name, err)
		}
	}
	return nil
}
