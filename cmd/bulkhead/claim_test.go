package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestOneDaemonPerHost(t *testing.T) {
	testhost.RequireRoot(t)
	log := slog.New(slog.DiscardHandler)
	testhost.New(t).Do(func() {
		first, err := claimHost(t.Context(), log)
		if err != nil || first == nil {
			t.Errorf("the first: %v, %v", first, err)
			return
		}
		want := fmt.Sprintf("process %d", os.Getpid())
		if _, err := claimHost(t.Context(), log); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the second: got %v, want an error with %q", err, want)
		}
		first.Close()
		again, err := claimHost(t.Context(), log)
		if err != nil || again == nil {
			t.Errorf("after the first: %v, %v", again, err)
			return
		}
		again.Close()
	})
}
