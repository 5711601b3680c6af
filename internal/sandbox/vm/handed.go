package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Where a VM shares no directory with the host, the daemon's few files for a container (its /etc/hosts and the like) are handed over to
// the agent, and again whenever they change: the shim sees them in a directory that it may only read.

// HandedDir is where the shim finds them.
const HandedDir = "/handed"

// maxHanded bounds such a file.
const maxHanded = 256 << 10

// readHanded reads them as they are now.
func readHanded(dir string, names []string) ([]proto.File, error) {
	var out []proto.File
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, fmt.Errorf("read what the container is handed: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(f, maxHanded+1))
		_ = f.Close()
		if err == nil && len(text) > maxHanded {
			err = fmt.Errorf("%s has more than %d bytes", name, maxHanded)
		}
		if err != nil {
			return nil, fmt.Errorf("read what the container is handed: %w", err)
		}
		out = append(out, proto.File{Name: name, Text: text})
	}
	return out, nil
}

// handOver keeps a container's files as the daemon's, from those that it was started with.
func handOver(ctx context.Context, g guest, dir string, names []string, told []proto.File, log io.Writer) {
	if len(names) == 0 {
		return
	}
	var look <-chan time.Time
	changed, err := watchDir(ctx, dir)
	if err != nil { // a host has few watches for each user
		every := time.NewTicker(lookAgain)
		defer every.Stop()
		look = every.C
	}
	said := ""
	for ctx.Err() == nil {
		files, err := readHanded(dir, names)
		if err == nil && !reflect.DeepEqual(files, told) {
			limited, cancel := within(ctx, answerWait)
			err = g.Call(limited, proto.OpFiles, proto.Files{Process: mainProcess, Files: files}, nil)
			cancel()
			if err == nil {
				told = files
			}
		}
		var again <-chan time.Time
		switch {
		case err == nil:
			said = ""
		case ctx.Err() != nil:
			return
		default:
			if err.Error() != said {
				said = err.Error()
				fmt.Fprintln(log, "bulkhead: the container's files are not what the host's are:", said)
			}
			again = time.After(mirrorAgain)
		}
		select {
		case <-ctx.Done():
		case <-again:
		case <-look:
		case <-changed:
		}
	}
}

// lookAgain is how often the files are looked at where nobody tells of changes.
const lookAgain = 2 * time.Second

// watchDir tells of changes of what is in a directory, a moment after them.
func watchDir(ctx context.Context, dir string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	changed := make(chan struct{}, 1)
	go func() {
		defer f.Close()
		defer stop()
		events := make([]byte, 64<<10)
		for {
			if _, err := f.Read(events); err != nil {
				return
			}
			select {
			case changed <- struct{}{}:
			default: // somebody is about to look
			}
		}
	}()
	return changed, nil
}
