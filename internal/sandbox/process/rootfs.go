package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const overlayMagic = 0x794c7630

// mountRootfs stacks the layers, topmost first, under the container's writable one.
func (r *Runtime) mountRootfs(id string, layers []string) error {
	if len(layers) == 0 {
		return fmt.Errorf("%w: the image has no layers", ErrInvalid)
	}
	upper, work := filepath.Join(r.storage(id), "upper"), filepath.Join(r.storage(id), "work")
	for _, d := range []string{upper, work, r.rootfs(id)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("mount root file system: %w", err)
		}
	}
	err := mountOverlay(r.rootfs(id), layers, upper, work)
	if errors.Is(err, unix.EINVAL) && onOverlay(r.stateDir) {
		return fmt.Errorf("mount root file system: %s is itself on overlayfs, which cannot hold a writable layer: "+
			"put the state directory on ext4, xfs, btrfs or tmpfs", r.stateDir)
	}
	if err != nil {
		return fmt.Errorf("mount root file system of %d layers: %w", len(layers), err)
	}
	return nil
}

// mountOverlay names directories by descriptor: mount(2) takes a page of options,
// which is soon full of paths of layers, and a path may hold a comma or a colon.
func mountOverlay(target string, layers []string, upper, work string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	ref := func(dir string) (string, error) {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return "", err
		}
		open = append(open, f)
		return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
	}
	plain := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(layers, ":"), upper, work)
	odd := strings.ContainsAny(strings.Join(append([]string{upper, work}, layers...), ""), ",:\\")
	if odd || len(plain) >= os.Getpagesize() {
		refs := make([]string, 0, len(layers)+2)
		for _, d := range append([]string{upper, work}, layers...) {
			s, err := ref(d)
			if err != nil {
				return err
			}
			refs = append(refs, s)
		}
		plain = fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(refs[2:], ":"), refs[0], refs[1])
		if len(plain) >= os.Getpagesize() {
			return fmt.Errorf("%w: too many layers", ErrInvalid)
		}
	}
	return unix.Mount("overlay", target, "overlay", 0, plain)
}

func onOverlay(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == overlayMagic
}

// unmount takes a mount point's mounts away, however many lie on each other. A
// busy one is detached and goes with its last user.
func unmount(path string) error {
	for range 16 {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EBUSY):
			if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", path, err)
			}
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // not a mount point any more
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: too many mounts on it", path)
}

// An image may hold any symbolic link. What we read or make in a root file system
// by path goes through the kernel's RESOLVE_IN_ROOT, so a link leads nowhere else.

// readInRoot reads a regular file of bounded size; fs.ErrNotExist if there is none.
func readInRoot(root, path string, limit int64) ([]byte, error) {
	h, err := securejoin.OpenInRoot(root, path)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	st, err := h.Stat()
	if err != nil {
		return nil, err
	}
	// Opening a pipe or a device can block or do worse.
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := securejoin.Reopen(h, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// makeDirInRoot makes a directory of the container, if it is not there.
func makeDirInRoot(root, path string) error {
	h, err := securejoin.OpenInRoot(root, path)
	if err == nil {
		defer h.Close()
		st, err := h.Stat()
		if err != nil {
			return err
		}
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return securejoin.MkdirAll(root, path, 0o755)
}

// modeMountPoints gives directories of the image that a tmpfs will lie on the mode that is asked for that: runc before 1.1.8 gives the tmpfs the
// mode of the directory, whatever the mount's options say.
func modeMountPoints(root string, mounts []specs.Mount) error {
	for i, m := range mounts {
		below := func(o specs.Mount) bool { return strings.HasPrefix(m.Destination, o.Destination+"/") }
		if m.Type != "tmpfs" || slices.ContainsFunc(mounts[:i], below) {
			continue
		}
		for _, o := range m.Options {
			text, is := strings.CutPrefix(o, "mode=")
			if !is {
				continue
			}
			mode, err := strconv.ParseUint(text, 8, 12)
			if err != nil {
				return fmt.Errorf("%w: tmpfs at %s: mode %q is not an octal number", ErrInvalid, m.Destination, text)
			}
			if err := modeInRoot(root, m.Destination, uint32(mode)); err != nil {
				return fmt.Errorf("set the mode of %s: %w", m.Destination, err)
			}
		}
	}
	return nil
}

func modeInRoot(root, path string, mode uint32) error {
	h, err := securejoin.OpenInRoot(root, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the runtime makes it
	}
	if err != nil {
		return err
	}
	defer h.Close()
	if st, err := h.Stat(); err != nil || !st.IsDir() {
		return err // the runtime says what is wrong with it
	}
	d, err := securejoin.Reopen(h, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Fchmod(int(d.Fd()), mode)
}

// checkMountPoints refuses an image in which a file system of the kernel would be mounted somewhere else: the runtime
// does so as well, in words that name neither the image nor what to do.
func checkMountPoints(root string) error {
	for _, name := range []string{"proc", "sys", "dev"} {
		path := filepath.Join(root, name)
		st, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it is made
		case err != nil:
			return fmt.Errorf("look at /%s of the image: %w", name, err)
		case st.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			return fmt.Errorf("%w: /%s of the image is a symbolic link (to %q), where the kernel's file system has to be mounted: "+
				"make it a directory, and build the image again", ErrInvalid, name, to)
		case !st.IsDir():
			return fmt.Errorf("%w: /%s of the image is no directory, where the kernel's file system has to be mounted: "+
				"make it one, and build the image again", ErrInvalid, name)
		}
	}
	return nil
}
