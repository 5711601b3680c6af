package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What is in the directory that a root disk is made of, and so on the disk.
const (
	RootOnDisk    = "rootfs"  // the container's root file system
	VolumesOnDisk = "volumes" // those that the image asks for, which are the container's own
)

// A disk has room for twice what is on it at first, and this beside. It is a sparse file: what nobody has written takes no space.
const roomOnDisk = 16 << 30

const (
	bytesPerInode = 16 << 10
	diskJournal   = 32 // MiB. A larger one would be written all over in time, and so take its space.
	// besideFiles is what a new disk takes beside its files, at most.
	besideFiles = 64 << 20
)

// untouched is the time of a disk that no VM has got yet: it is a copy of what is there anyway, and is made anew.
func untouched() time.Time { return time.Unix(0, 0) }

// DiskInUse tells whether a container's disk is there and may have been written to, so that its files are there and nowhere else.
func DiskInUse(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && !st.ModTime().Equal(untouched())
}

// DropDisk removes a disk that no VM has written to, and what is left of one that was being made.
func DropDisk(path string) error {
	left := []string{path + unmade}
	if !DiskInUse(path) {
		left = append(left, path)
	}
	var errs []error
	for _, p := range left {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// MakeRootDisk makes the disk of a container of what is in a directory: owners, modes, times in seconds, attributes, hard links and
// device nodes are kept. It is made under another name, and is whole when it is there.
func MakeRootDisk(ctx context.Context, path, from string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the disk with the container's files: %w", err)
		}
	}()
	need, files, err := measure(ctx, from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if free, err := freeSpace(filepath.Dir(path)); err == nil && free < need+besideFiles {
		return fmt.Errorf("it takes %d MiB, and %s has %d MiB left: make room there", (need+besideFiles)>>20, filepath.Dir(path), free>>20)
	}
	size := (2*need + roomOnDisk + 1<<20 - 1) &^ (1<<20 - 1)
	inodes := max(size/bytesPerInode, 2*files)
	err = makeFileSystem(ctx, path, size, untouched(), "-b", "4096", "-N", fmt.Sprint(inodes), "-J", fmt.Sprintf("size=%d", diskJournal), "-d", from)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("to copy %d MiB takes longer than a start may: with virtiofsd (Debian: virtiofsd) nothing is copied: %w", need>>20, err)
	}
	return err
}

// measure tells how much there is below a directory. What has several names counts once.
func measure(ctx context.Context, dir string) (space, files int64, err error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("look at %s: this system does not say what it is", e.Name())
		}
		if key := (inode{st.Dev, st.Ino}); !e.IsDir() && st.Nlink > 1 {
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		files++
		const block = 4096
		space += (st.Blocks*512 + block - 1) / block * block
		if e.IsDir() {
			space += block
		}
		return nil
	})
	return space, files, err
}

func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// openDisk opens a container's disk for its VM, and notes for good that it may be written to.
func openDisk(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", path)
	}
	if err == nil {
		now := unix.NsecToTimeval(time.Now().UnixNano())
		err = unix.Futimes(int(f.Fd()), []unix.Timeval{now, now})
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
