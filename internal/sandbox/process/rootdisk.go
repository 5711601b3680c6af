package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// Without virtiofsd, the files of a container with VM isolation are on a disk: a file in its storage. It is made at a start, of the root
// file system as it is mounted on the host, and of the volumes that the image asks for, which are the container's alone. Once a VM has got
// it, what the container writes is there and nowhere else, and the container keeps it for its life. A guest may have made anything
// of it, and so this host never mounts it.

// stageDir, in a bundle, is where all that goes on a disk is mounted while it is made.
const stageDir = "stage"

// rootDisk is the file of a container's disk.
func (r *Runtime) rootDisk(id string) string { return filepath.Join(r.storage(id), "root-disk") }

// serving tells how a container has its files in its VM.
func (r *Runtime) serving(ctx context.Context, cfg api.SandboxConfig) (vm.Serving, error) {
	own := vm.DiskInUse(r.rootDisk(cfg.ID))
	keeps := vm.Serving{Disk: true, Reason: "where they have been since its first start"}
	if !isMember(cfg) {
		if own {
			return keeps, nil
		}
		return r.vm.Serving(ctx)
	}
	p, runs := r.initOf(cfg.VMOf)
	if runs {
		p.close()
	}
	switch {
	case vm.DiskInUse(r.rootDisk(cfg.VMOf)):
		if own {
			return keeps, nil
		}
		return vm.Serving{Disk: true, Reason: fmt.Sprintf("as those of container %.12s, in whose VM it is", cfg.VMOf)}, nil
	case own:
		return keeps, fmt.Errorf("%w: its files are on a disk, and the VM of container %.12s has directories of the host: give it networks of its own", ErrInvalid, cfg.VMOf)
	case runs:
		return vm.Serving{}, nil
	}
	return r.vm.Serving(ctx)
}

// diskServes refuses what cannot be on a disk.
func diskServes(cfg api.SandboxConfig, reason string) error {
	for i, m := range cfg.Spec.Mounts {
		if m.Type == "tmpfs" {
			continue
		}
		what := "the host's " + m.Source
		if m.Type == "volume" {
			what = "volume " + m.Source
		}
		return fmt.Errorf("%w: mounts[%d]: %s cannot be shared: its VM has files on disks (%s), and nothing but virtiofsd shares what the host has: "+
			"install it (Debian: virtiofsd, in Debian 12 qemu-system-common) for a daemon with --vm-files auto, leave the mount out, or use --isolation process",
			ErrInvalid, i, what, reason)
	}
	return nil
}

// leavesNoDisk refuses process isolation to a container whose files are on a disk.
func (r *Runtime) leavesNoDisk(cfg api.SandboxConfig) error {
	if isVM(cfg) || !vm.DiskInUse(r.rootDisk(cfg.ID)) {
		return nil
	}
	return fmt.Errorf("%w: isolation: its files are on a disk of its VM, which this host does not read, because a guest may have made anything of it: "+
		"keep VM isolation; or copy out what is of worth (bulkhead exec NAME tar -c -f - PATH >FILE) and make another container", ErrInvalid)
}

// giveDisk gives a container its disk where its files are to be on one.
func (r *Runtime) giveDisk(ctx context.Context, cfg api.SandboxConfig, plan mountPlan, c *vm.Container) error {
	serving, err := r.serving(ctx, cfg)
	if err != nil || !serving.Disk {
		return err
	}
	if err := diskServes(cfg, serving.Reason); err != nil {
		return err
	}
	c.RootDisk, c.OnDisk = r.rootDisk(cfg.ID), map[string]string{}
	stage := map[string]string{vm.RootOnDisk: r.rootfs(cfg.ID)}
	for _, v := range plan.fill {
		dir, name := filepath.Join(v.dir, volumeData), filepath.Join(vm.VolumesOnDisk, filepath.Base(v.dir))
		c.OnDisk[dir], stage[name] = name, dir
	}
	if vm.DiskInUse(c.RootDisk) {
		return nil
	}
	began := time.Now()
	if err := r.makeRootDisk(ctx, cfg.ID, stage); err != nil {
		return err
	}
	if took := time.Since(began); took > diskSlow {
		r.log.Info("the files of a container were copied to a disk", "container", cfg.ID, "took", took.Round(time.Second/10))
	}
	return nil
}

// diskSlow is what somebody who waits for a start would like to know the reason of.
const diskSlow = 3 * time.Second

// makeRootDisk makes a disk of directories, by what they are called there.
func (r *Runtime) makeRootDisk(ctx context.Context, id string, stage map[string]string) (err error) {
	top := filepath.Join(r.bundle(id), stageDir)
	var mounted []string
	defer func() {
		for _, at := range mounted {
			err = errors.Join(err, unmount(at))
		}
		if err == nil {
			err = os.RemoveAll(top)
		}
	}()
	for name, dir := range stage {
		at := filepath.Join(top, name)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		mounted = append(mounted, at)
	}
	return vm.MakeRootDisk(ctx, r.rootDisk(id), top)
}

// vmFilesBy tells how the VM of a container has its files; "": it has no VM.
func (r *Runtime) vmFilesBy(id string) string {
	switch {
	case !r.inVM(id):
		return ""
	case vm.DiskInUse(r.rootDisk(id)):
		return vm.FilesDisk
	}
	return vm.FilesVirtiofs
}

// userIn resolves a user of a container that runs, by the account files that it has now.
func (r *Runtime) userIn(ctx context.Context, id, name string) (account, error) {
	if r.vmFilesBy(id) != vm.FilesDisk {
		return resolveUser(r.rootfs(id), name)
	}
	return resolveUserBy(func(file string) ([]byte, error) {
		return vm.ReadFile(ctx, filepath.Join(r.bundle(id), vmDir), file, maxAccountFile)
	}, name)
}
