package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestDetachNoted: a note goes when what it asks for is done, so that a daemon which is killed meanwhile finds it again. What a plugin took
// back is not detached.
func TestDetachNoted(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := filepath.Join(t.TempDir(), "detach")
	detach := func(context.Context, hcn.GUID) error { t.Error("nothing is noted"); return nil }
	if err := detachNoted(t.Context(), dir, detach, log); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	notes := map[hcn.GUID]error{hcn.NewGUID(): nil, hcn.NewGUID(): errors.New("busy"), hcn.NewGUID(): api.Errorf(api.KindNotFound, "gone")}
	path := func(id hcn.GUID) string { return filepath.Join(dir, string(id)) }
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for id := range notes {
		write(string(id))
	}
	write("no ID")
	err := detachNoted(t.Context(), dir, func(_ context.Context, id hcn.GUID) error {
		if _, err := os.Stat(path(id)); err != nil {
			t.Errorf("while %s is detached: %v", id, err)
		}
		return notes[id]
	}, log)
	if err != nil {
		t.Error(err)
	}
	for id, failed := range notes {
		if _, err := os.Stat(path(id)); (err == nil) != (failed != nil && !api.IsKind(failed, api.KindNotFound)) {
			t.Errorf("a note whose detaching gave %v: %v", failed, err)
		}
	}
	// Of two, the plugin takes that back which is not detached yet.
	pair := []hcn.GUID{hcn.NewGUID(), hcn.NewGUID()}
	for id := range notes {
		_ = os.Remove(path(id)) // most have gone
	}
	write(string(pair[0]))
	write(string(pair[1]))
	calls := 0
	if err := detachNoted(t.Context(), dir, func(_ context.Context, id hcn.GUID) error {
		calls++
		for _, other := range pair {
			if other != id {
				return os.Remove(path(other))
			}
		}
		return nil
	}, log); err != nil || calls != 1 {
		t.Errorf("%d were detached, %v", calls, err)
	}
}
