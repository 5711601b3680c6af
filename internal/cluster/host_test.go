package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

// kernel is an engine that cannot have some networks.
type kernel struct {
	Engine
	refuses map[hcn.GUID]error
	asked   int
}

func (k *kernel) SetClusterNetworks(context.Context, []engine.ClusterNetwork) map[hcn.GUID]error {
	k.asked++
	return maps.Clone(k.refuses)
}

// TestRetry: what the engine could not do is asked of it again, and what it could is not.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{refuses: map[hcn.GUID]error{host(1).ID: context.DeadlineExceeded}}
		h, err := Open(overlay.Options{Dir: t.TempDir(), RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, func() Engine { return k }, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { h.Run(ctx); close(done) }()
		synctest.Wait()
		if k.asked != 1 || !errors.Is(h.problems[host(1).ID], context.DeadlineExceeded) {
			t.Errorf("asked %d times, problems %v", k.asked, h.problems)
		}
		<-time.After(retryNetworks)
		synctest.Wait()
		if k.asked != 2 {
			t.Errorf("asked %d times", k.asked)
		}
		k.refuses = nil
		<-time.After(2 * retryNetworks)
		synctest.Wait()
		if k.asked != 3 || len(h.problems) != 0 {
			t.Errorf("asked %d times, problems %v", k.asked, h.problems)
		}
		cancel()
		<-done
	})
}

// TestEngineErrors: that nothing is free is what the engine looks elsewhere for; its words stay.
func TestEngineErrors(t *testing.T) {
	full := errors.Join(errors.New("all 16 belong to hosts"), overlay.ErrExhausted)
	if err := asEngineError(full); !errors.Is(err, engine.ErrNoBlock) || !errors.Is(err, overlay.ErrExhausted) || err.Error() != full.Error() {
		t.Error(err)
	}
	if err := asEngineError(overlay.ErrAway); errors.Is(err, engine.ErrNoBlock) {
		t.Error(err)
	}
}

// TestRemote: who is told of without his host is nobody.
func TestRemote(t *testing.T) {
	on := host(1, "192.0.2.1", "2001:db8::1")
	ep := &overlay.Endpoint{ID: host(7).ID, Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}}
	if r, ok := remote(ep, &on, false); !ok || r.Provider != on.Addrs[1] || r.Host != "web1" {
		t.Errorf("%+v, %v", r, ok)
	}
	if _, ok := remote(ep, nil, true); ok {
		t.Error("without a host")
	}
	only := host(1, "192.0.2.1")
	if _, ok := remote(ep, &only, false); ok {
		t.Error("without an address of the family")
	}
}
