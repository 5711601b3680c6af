package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

// A host of containers is a container like any other in a VM, whose process is a daemon of ours. It has every right in the VM, and
// beside the files of its image: a disk of its own, since what the host shares can be no upper layer of the inner containers' files;
// and memory for what must not outlive the VM's kernel.

// StateDir is where the disk is in a host of containers: what its daemon keeps.
const StateDir = "/var/lib/bulkhead"

// furnish gives a host of containers what it has beside other containers. Its spec is that of a privileged one.
func (c *Container) furnish() {
	s := c.Spec
	s.Mounts = append(slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/run" || m.Destination == "/tmp" || m.Destination == StateDir
	}),
		specs.Mount{Destination: "/run", Type: "tmpfs", Source: "run", Options: []string{"nosuid", "nodev", "mode=755"}},
		specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"nosuid", "nodev", "mode=1777"}},
		specs.Mount{Destination: StateDir, Type: "bind", Source: agent.DiskDir + "/bulkhead", Options: []string{"rbind", "rprivate"}},
	)
	mode := fs.FileMode(0o600)
	root := uint32(0)
	s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, FileMode: &mode, UID: &root, GID: &root})
}

// FindMkfs finds the program that makes disks.
func FindMkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", &MissingError{What: "mkfs.ext4", Package: "e2fsprogs"}
}

// unmade ends the name of a disk that is being made, or was when the daemon died.
const unmade = ".tmp"

// MakeDisk makes the file of a disk, unless it is there. It is made under another name, and takes the space of what is on it.
func MakeDisk(ctx context.Context, path string, size int64) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeFileSystem(ctx, path, size, time.Time{}); err != nil {
		return fmt.Errorf("make the disk of a VM: %w", err)
	}
	return nil
}

// makeFileSystem makes an ext4 file system in a sparse file, which is whole when it is there, and of a time unless that is zero.
func makeFileSystem(ctx context.Context, path string, size int64, modified time.Time, options ...string) error {
	mkfs, err := FindMkfs()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + unmade
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // what was cut short
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// Neither the tables nor the journal are written now: zeros are what a hole reads as.
	args := append([]string{"-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"}, options...)
	if err := run(ctx, mkfs, append(args, tmp)...); err != nil {
		if free, ferr := freeSpace(filepath.Dir(path)); ferr == nil && free < 1<<20 {
			return fmt.Errorf("the file system of %s is full: make room there: %w", filepath.Dir(path), err)
		}
		return err
	}
	if !modified.IsZero() {
		if err := os.Chtimes(tmp, modified, modified); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// run runs a program that ends when we do.
func run(ctx context.Context, program string, args ...string) error {
	c, err := start(exec.CommandContext(ctx, program, args...))
	if err != nil {
		return err
	}
	<-c.ended
	switch {
	case c.err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: it is cut short: %w", filepath.Base(program), context.Cause(ctx))
	}
	return fmt.Errorf("%s: %s", filepath.Base(program), c.why())
}
