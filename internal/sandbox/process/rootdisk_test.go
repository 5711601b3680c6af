package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

func TestDiskServes(t *testing.T) {
	t.Parallel()
	cfg := api.SandboxConfig{Spec: api.ContainerSpec{Mounts: []api.Mount{{Type: "tmpfs", Target: "/t"}}}}
	if err := diskServes(cfg, "why"); err != nil {
		t.Error(err)
	}
	for what, m := range map[string]api.Mount{
		"volume data":     {Type: "volume", Source: "data", Target: "/data"},
		"the host's /srv": {Type: "bind", Source: "/srv", Target: "/srv"},
	} {
		cfg.Spec.Mounts = append(cfg.Spec.Mounts[:1], m)
		err := diskServes(cfg, "virtiofsd is not installed")
		for _, want := range []string{"mounts[1]: " + what, "virtiofsd is not installed", "Debian: virtiofsd, in Debian 12 qemu-system-common"} {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want one with %q", err, want)
			}
		}
	}
}

// TestRootDisk holds the life of a container's disk: made of what the container has, dropped while no VM has got it, and kept after.
func TestRootDisk(t *testing.T) {
	b := newBed(t)
	if _, err := vm.FindMkfs(); err != nil {
		needRoot(t, "mkfs.ext4")
	}
	b.r.vm = vm.NewHost(vm.Options{Files: vm.FilesDisk})
	cfg := b.config("/bin/sh", "-c", "echo written >/file")
	cfg.Image.Volumes = []string{"/data"}
	b.file("data/of-the-image", "x")
	if out, code := b.run(cfg); code != 0 {
		t.Fatalf("%d: %s", code, out)
	}
	id, disk := cfg.ID, b.r.rootDisk(cfg.ID)
	isolated := cfg
	isolated.Spec.Isolation = isolationVM
	plan, err := b.r.planMounts(isolated)
	must(t, err)
	give := func() vm.Container {
		t.Helper()
		must(t, b.r.mountRootfs(id, isolated.Layers))
		c := vm.Container{}
		must(t, b.r.giveDisk(b.ctx(), isolated, plan, &c))
		return c
	}
	must(t, b.r.Delete(b.ctx(), id))
	c := give()
	if c.RootDisk != disk || len(c.OnDisk) != 1 {
		t.Errorf("%+v", c)
	}
	mounts, err := mountsBelow(b.r.bundle(id))
	if err != nil || len(mounts) != 1 {
		t.Errorf("mounted are %v, %v", mounts, err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.r.bundle(id), stageDir)); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if vm.DiskInUse(disk) || b.r.leavesNoDisk(cfg) != nil {
		t.Error("a disk that no VM got binds its container to VMs")
	}
	must(t, os.WriteFile(disk+".tmp", nil, 0o600)) // of a start that was cut short
	must(t, b.r.Delete(b.ctx(), id))
	for _, path := range []string{disk, disk + ".tmp"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s stays: %v", path, err)
		}
	}

	give()
	now := time.Now()
	must(t, os.Chtimes(disk, now, now)) // as a shim does
	must(t, b.r.Delete(b.ctx(), id))
	if !vm.DiskInUse(disk) {
		t.Fatal("a disk that a VM got is gone")
	}
	if _, err := b.r.Check(cfg); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "on a disk of its VM") {
		t.Errorf("back to process isolation: %v", err)
	}
	if err := b.r.Create(b.ctx(), cfg); !errors.Is(err, ErrInvalid) {
		t.Errorf("it was started without its files: %v", err)
	}
	b.r.vm = vm.NewHost(vm.Options{Files: vm.FilesVirtiofs})
	if s, err := b.r.serving(b.ctx(), isolated); err != nil || !s.Disk {
		t.Errorf("a container lost its disk: %+v, %v", s, err)
	}
	// In another's VM it has a disk if that one has.
	member := isolated
	member.ID, member.VMOf = randomHex(32), id
	if s, err := b.r.serving(b.ctx(), member); err != nil || !s.Disk || !strings.Contains(s.Reason, id[:12]) {
		t.Errorf("a member of a VM with disks: %+v, %v", s, err)
	}
	must(t, b.r.Remove(b.ctx(), id))
	if _, err := os.Lstat(disk); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the disk of a container that was removed stays: %v", err)
	}
}
