package bench

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newNamespace makes a network namespace bound at /run/netns/<name>. inside runs on the calling thread while it is in
// there; afterwards the thread is home again.
func newNamespace(home int, name string, inside func() error) (path string, err error) {
	path = filepath.Join("/run/netns", name)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return "", fmt.Errorf("unshare: %w", err)
	}
	err = bindHere(path)
	if err == nil && inside != nil {
		err = inside()
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		return "", fmt.Errorf("go home: %w", back)
	}
	return path, err
}

func bindHere(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return os.Remove(path)
}
