package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// mountPlace mounts the disk with a container's files at its place. Nobody writes zeros into the tables of a new file system, which
// are zeros already and take no space on the host; what was deleted is given back to it.
func mountPlace(class, dev string, r proto.Run) error {
	if err := proto.CheckName(r.Place); err != nil {
		return fmt.Errorf("mount the disk with the container's files: %w", err)
	}
	device, err := findDisk(class, dev, r.Root)
	if err != nil {
		return fmt.Errorf("mount the disk with the container's files: %w", err)
	}
	dir := filepath.Join(RootsDir, r.Place)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("mount the disk with the container's files: %w", err)
	}
	// A VM may be killed at any moment. What was written more than some two seconds before is on the disk then.
	for _, name := range []string{"dirty_expire_centisecs", "dirty_writeback_centisecs"} {
		_ = os.WriteFile(filepath.Join("/proc/sys/vm", name), []byte("100"), 0)
	}
	if err := unix.Mount(device, dir, "ext4", 0, "discard,noinit_itable,commit=1,errors=remount-ro"); err != nil {
		return fmt.Errorf("mount the disk with the container's files: %w", err)
	}
	return nil
}

// leaveWait is how long the last processes of a container may keep its disk from being unmounted.
const leaveWait = 5 * time.Second

// leavePlace writes all of a disk, and lets go of it.
func leavePlace(place string) {
	if proto.CheckName(place) != nil {
		return
	}
	dir := filepath.Join(RootsDir, place)
	err := unix.Unmount(dir, 0)
	for deadline := time.Now().Add(leaveWait); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
		pause()
		err = unix.Unmount(dir, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		unix.Sync()
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	_ = os.Remove(dir)
}

// handed are the files that the host handed over for containers, by their first processes.
type handed struct {
	dir string
	mu  sync.Mutex
	by  map[string]*handedFiles
}

// handedFiles are those of one, with what was written to each last.
type handedFiles struct {
	dir  string
	text map[string]string
}

// put writes those that a container begins with.
func (h *handed) put(r proto.Run) error {
	if len(r.Files) == 0 {
		return nil
	}
	if err := proto.CheckName(r.Place); err != nil {
		return fmt.Errorf("write the files of a container: %w", err)
	}
	f := &handedFiles{dir: filepath.Join(h.dir, r.Place), text: map[string]string{}}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return fmt.Errorf("write the files of a container: %w", err)
	}
	for _, file := range r.Files {
		err := proto.CheckName(file.Name)
		if err == nil {
			err = os.WriteFile(filepath.Join(f.dir, file.Name), file.Text, 0o644)
		}
		if err == nil {
			err = os.Chmod(filepath.Join(f.dir, file.Name), 0o644) // whatever our umask is
		}
		if err != nil {
			return fmt.Errorf("write the files of a container: %w", err)
		}
		f.text[file.Name] = string(file.Text)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.by[r.Process] = f
	return nil
}

// refresh writes what is new in place: the container has the very file, and not its name. One that the container has changed stays as
// it is.
func (h *handed) refresh(r proto.Files) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.by[r.Process]
	if f == nil {
		return fmt.Errorf("process %q was handed no files", r.Process)
	}
	var errs []error
	for _, file := range r.Files {
		was, ok := f.text[file.Name]
		if !ok {
			errs = append(errs, fmt.Errorf("process %s was handed no file %.80q", r.Process, file.Name))
			continue
		}
		if was == string(file.Text) {
			continue
		}
		if err := rewrite(filepath.Join(f.dir, file.Name), was, file.Text); err != nil {
			errs = append(errs, fmt.Errorf("write the files of a container: %w", err))
			continue
		}
		f.text[file.Name] = string(file.Text)
	}
	return errors.Join(errs...)
}

// rewrite gives a file another content, if it has what it had.
func rewrite(path, was string, text []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := io.ReadAll(io.LimitReader(f, int64(len(was))+1))
	if err != nil || string(have) != was {
		return err
	}
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// drop forgets those of a container that has ended.
func (h *handed) drop(process string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.by[process]
	if f == nil {
		return
	}
	delete(h.by, process)
	_ = os.RemoveAll(f.dir)
}

// read carries what is in a file of a container, which no link leads out of.
func (ps *processes) read(r proto.Read) (any, func(net.Conn), error) {
	p, err := ps.find(r.Process)
	if err != nil {
		return nil, nil, err
	}
	f, err := openIn(filepath.Join("/proc", fmt.Sprint(p.pid), "root"), r.Path)
	if errors.Is(err, unix.ENOENT) {
		return proto.Content{Missing: true}, func(c net.Conn) { _ = c.Close() }, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", r.Path, err)
	}
	return proto.Content{}, func(c net.Conn) {
		_, _ = io.Copy(c, f)
		_ = errors.Join(f.Close(), c.Close())
	}, nil
}

// openIn opens a regular file below a root.
func openIn(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	// Opening a pipe or a device can block or do worse.
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("it is no regular file")
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}
