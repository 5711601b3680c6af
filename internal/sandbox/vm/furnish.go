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
	const files = "RLIMIT_NOFILE"
	if !slices.ContainsFunc(s.Process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == files }) {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: files, Soft: 1 << 20, Hard: 1 << 20})
	}
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

// MakeDisk makes the file of a disk, unless it is there. It is made under another name, and takes the space of what is on it.
func MakeDisk(ctx context.Context, path string, size int64) (err error) {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the disk of a VM: %w", err)
		}
	}()
	mkfs, err := FindMkfs()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // what was cut short
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	err = errors.Join(f.Truncate(size), f.Close())
	if err != nil {
		return err
	}
	// Neither the tables nor the journal are written now: zeros are what a hole reads as.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %.300s", err, out)
	}
	if f, err = os.Open(tmp); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
