package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// maxNotes is how many notes are read at a start; more than containers ever were on a host.
const maxNotes = 1 << 16

// detachNoted detaches what plugins were told to detach while no daemon was there: each left a file in a directory, by the
// attachment's ID.
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
		id, err := hcn.ParseGUID(entry.Name())
		if err != nil {
			continue
		}
		note := filepath.Join(dir, entry.Name())
		// An ADD takes its note back before it attaches. Whoever removes the file first has his way, so that nothing that was
		// attached since is detached.
		if err := os.Remove(note); errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			log.Warn("take a plugin's note", "attachment", id, "error", err)
			continue
		}
		if err := detach(ctx, id); err != nil && !api.IsKind(err, api.KindNotFound) {
			log.Warn("detach what a plugin noted; it stays noted", "attachment", id, "error", errors.Join(err, os.WriteFile(note, nil, 0o600)))
		}
	}
	return nil
}
