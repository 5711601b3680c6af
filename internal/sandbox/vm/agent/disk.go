package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// mountDisk mounts the disk with a serial number. What was deleted on it is given back to the host.
func mountDisk(class, dev, serial string) error {
	device, err := findDisk(class, dev, serial)
	if err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	if err := os.MkdirAll(DiskDir, 0o700); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	if err := unix.Mount(device, DiskDir, "ext4", unix.MS_NOATIME, "discard"); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(DiskDir, "bulkhead"), 0o700); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	return nil
}

func findDisk(class, dev, serial string) (string, error) {
	for deadline := time.Now().Add(shareWait); ; pause() {
		entries, _ := os.ReadDir(class)
		for _, e := range entries {
			have, err := os.ReadFile(filepath.Join(class, e.Name(), "serial"))
			if err == nil && strings.TrimSpace(string(have)) == serial {
				return filepath.Join(dev, e.Name()), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("there is no disk with the serial number %q", serial)
		}
	}
}

// dialWait is how long a program may take to accept a connection.
const dialWait = 10 * time.Second

// dial connects with a socket in the file system of a container.
func (ps *processes) dial(ctx context.Context, d proto.Dial) (func(net.Conn), error) {
	p, err := ps.find(d.Process)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(d.Path) {
		return nil, fmt.Errorf("connect to %q: it is no absolute path", d.Path)
	}
	dialer := net.Dialer{Timeout: dialWait}
	c, err := dialer.DialContext(ctx, "unix", filepath.Join("/proc", fmt.Sprint(p.pid), "root", d.Path))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.Path, cause(err))
	}
	return func(host net.Conn) { carryBoth(host, c) }, nil
}

// cause leaves out the path in the agent's own words.
func cause(err error) error {
	if op, ok := err.(*net.OpError); ok { //nolint:errorlint // what a dialer gives
		return op.Err
	}
	return err
}

// carryBoth carries between a stream, whose Close closes what we send alone, and a connection.
func carryBoth(host, c net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.Copy(c, host)
		if w, ok := c.(interface{ CloseWrite() error }); ok && err == nil {
			_ = w.CloseWrite()
			return
		}
		_ = c.Close() // nobody is there any more
	})
	wg.Go(func() {
		_, _ = io.Copy(host, c)
		_ = host.Close()
	})
	wg.Wait()
	_ = c.Close()
}
