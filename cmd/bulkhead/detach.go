package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// maxNotes is how many notes are read at a start; more than containers ever were on a host.
const maxNotes = 1 << 16

// detachTime is how long the API waits for what was noted. What takes longer is detached while it answers.
const detachTime = 10 * time.Second

// detachNoted detaches what plugins were told to detach while no daemon was there: each left a file in a directory, by the
// attachment's ID. The file goes last: a daemon that is killed in between finds it again. This runs before the API answers: an ADD of the
// same attachment that came in between would be undone. What it takes back, by removing the file, is not detached.
func detachNoted(ctx context.Context, dir string, detach func(context.Context, hcn.GUID) error, log *slog.Logger) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for what is to be detached: %w", err)
	}
	defer d.Close()
	entries, err := d.ReadDir(maxNotes)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("look for what is to be detached: %w", err)
	}
	for _, entry := range entries {
		if ctx.Err() != nil {
			return nil
		}
		id, err := hcn.ParseGUID(entry.Name())
		if err != nil {
			continue
		}
		note := filepath.Join(dir, entry.Name())
		if _, err := os.Lstat(note); errors.Is(err, os.ErrNotExist) { // an ADD has taken it back
			continue
		}
		if err := detach(ctx, id); err != nil && !api.IsKind(err, api.KindNotFound) {
			log.Warn("detach what a plugin noted; it stays noted", "attachment", id, "error", err)
			continue
		}
		if err := os.Remove(note); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.Warn("remove a plugin's note", "attachment", id, "error", err)
		}
	}
	return nil
}
