package process

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// A container that shares the compartment of one with VM isolation is in its VM. The guest sees but one share of the host, and so the
// files of such a member are mounted below it, in the mount namespace of the shim that has the VM. They go with that namespace, or
// with the member.

// memberFile, in a member's bundle, says whose VM it is in and where its files are mounted there.
const memberFile = "member"

func isMember(cfg api.SandboxConfig) bool { return isVM(cfg) && cfg.VMOf != "" }

// memberOf reads it; "": the container has a VM of its own, or none.
func (r *Runtime) memberOf(id string) (owner, place string) {
	data, err := os.ReadFile(filepath.Join(r.bundle(id), memberFile))
	if err != nil {
		return "", ""
	}
	owner, place, _ = strings.Cut(strings.TrimSpace(string(data)), " ")
	if checkID(owner) != nil || filepath.Base(place) != place {
		return "", ""
	}
	return owner, place
}

// prepareMember mounts a member's files where the guest sees them, and gives the document of its shim.
func (r *Runtime) prepareMember(cfg api.SandboxConfig, c vm.Container) (*specs.Spec, error) {
	owner, ok := r.initOf(cfg.VMOf)
	if !ok || !r.inVM(cfg.VMOf) || !exists(filepath.Join(r.bundle(cfg.VMOf), vmDir, "control")) {
		if ok {
			owner.close()
		}
		return nil, fmt.Errorf("the VM of container %.12s, which it is to be in, does not run: start that container first", cfg.VMOf)
	}
	defer owner.close()
	suffix := make([]byte, 4)
	_, _ = rand.Read(suffix) // never fails
	place := cfg.ID[:12] + "-" + hex.EncodeToString(suffix)
	if err := writeFile(filepath.Join(r.bundle(cfg.ID), memberFile), []byte(cfg.VMOf+" "+place)); err != nil {
		return nil, err
	}
	mounts := c.MemberMounts(place)
	if err := r.mountInto(owner, filepath.Join(r.bundle(cfg.VMOf), vmRootDir), mounts); err != nil {
		return nil, fmt.Errorf("put its files into the VM of container %.12s: %w", cfg.VMOf, err)
	}
	return r.vm.PrepareMember(c, filepath.Join(r.bundle(cfg.VMOf), vmDir), place)
}

// mountInto mounts in the mount namespace of a process, whose root is a directory of ours.
func (r *Runtime) mountInto(p *proc, root string, mounts []specs.Mount) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	var trees []int
	defer func() {
		for _, fd := range trees {
			_ = unix.Close(fd)
		}
	}()
	for _, m := range mounts {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Source, err)
		}
		trees = append(trees, fd)
		attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro") {
			attr.Attr_set = unix.MOUNT_ATTR_RDONLY
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("mount %s: %w", m.Source, err)
		}
		if err := makeMountPoint(dir, strings.TrimPrefix(m.Destination, "/"), fd); err != nil {
			return err
		}
	}
	return inMountsOf(p, func() error {
		for i, m := range mounts {
			if err := unix.MoveMount(trees[i], "", unix.AT_FDCWD, m.Destination, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("mount %s: %w", m.Source, err)
			}
		}
		return nil
	})
}

// makeMountPoint makes a directory or a file, as what is to be mounted there is one.
func makeMountPoint(root *os.Root, at string, tree int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(tree, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return root.MkdirAll(at, 0o755)
	}
	if err := root.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// inMountsOf calls a function in the mount namespace of a process, on a thread that ends with it.
func inMountsOf(p *proc, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()              // and not unlocked after: nothing else may run in that namespace
		if unix.Gettid() == unix.Getpid() { // what /proc shows of us is the first thread's
			done <- inMountsOf(p, do)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(p.fd, unix.CLONE_NEWNS)
		}
		if err != nil {
			done <- fmt.Errorf("enter the mount namespace of process %d: %w", p.pid, err)
			return
		}
		done <- do()
	}()
	return <-done
}

// leaveVM takes the files of a member out of the VM that it was in. With the VM's end they are gone.
func (r *Runtime) leaveVM(id string) error {
	owner, place := r.memberOf(id)
	if owner == "" {
		return nil
	}
	at := filepath.Join("/share", vm.MembersDir, place)
	if p, ok := r.initOf(owner); ok {
		defer p.close()
		mounts, err := mountsOf(p.pid, at)
		if err == nil {
			err = inMountsOf(p, func() error {
				var errs []error
				for _, m := range slices.Backward(mounts) {
					// The guest may have files of it open for a moment yet.
					if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
						errs = append(errs, err)
					}
				}
				return errors.Join(errs...)
			})
		}
		gone := p.signal(0) != nil
		if err != nil && !gone && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take its files out of the VM of container %.12s: %w", owner, err)
		}
	}
	// There is nothing in these mount points, on the host.
	return os.RemoveAll(filepath.Join(r.bundle(owner), vmRootDir, at))
}

// checkMember refuses for a member what only the container can do that has the VM.
func (r *Runtime) checkMember(id, what string) error {
	if owner, _ := r.memberOf(id); owner != "" {
		return fmt.Errorf("%w: it is in the VM of container %.12s: %s that one, with all that is in its VM", ErrInvalid, owner, what)
	}
	return nil
}
