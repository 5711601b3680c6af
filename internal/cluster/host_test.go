package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// kernel is an engine that cannot have some networks.
type kernel struct {
	Engine
	refuses map[hcn.GUID]error
	asked   int
	full    error // why it keeps no blocks
	blocks  int   // how often it was told of them
	told    int   // how often of endpoints
	secure  *plan.Secure
}

func (k *kernel) SetClusterBlocks(func() map[hcn.GUID][]netip.Prefix) error {
	k.blocks++
	return k.full
}

func (k *kernel) ChangeClusterEndpoints([]plan.Remote, []hcn.GUID) { k.told++ }

func (k *kernel) Wake(string) {}

func (k *kernel) SetClusterKeys(s *plan.Secure) { k.secure = s }

func (k *kernel) SetClusterNetworks(context.Context, []engine.ClusterNetwork) map[hcn.GUID]error {
	k.asked++
	return maps.Clone(k.refuses)
}

// TestRetry: what the engine could not do is asked of it again, and what it could is not.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{refuses: map[hcn.GUID]error{host(1).ID: context.DeadlineExceeded}}
		h, err := Open(overlay.Options{Dir: t.TempDir(), RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, func() Engine { return k }, nil, func() plan.SecureStatus { return plan.SecureStatus{} })
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

func newHost(t *testing.T, k *kernel, dir string) *Host {
	t.Helper()
	h, err := Open(overlay.Options{Dir: dir, RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, func() Engine { return k }, nil, func() plan.SecureStatus { return plan.SecureStatus{} })
	if err != nil {
		t.Fatal(err)
	}
	h.forget()
	return h
}

// TestFirst: what the cluster does not have goes when it is known what it has, and not with each thing that is told later.
func TestFirst(t *testing.T) {
	k := &kernel{}
	h := newHost(t, k, filepath.Join(t.TempDir(), "cluster"))
	a := overlay.New(overlay.Config{Host: host(1, "192.0.2.1")})
	h.from = a
	blocks := map[hcn.GUID][]netip.Prefix{}
	h.follow(t.Context(), a, overlay.Update{First: true, Blocks: blocks})
	if k.asked != 1 || k.blocks != 1 {
		t.Errorf("networks %d times, blocks %d times", k.asked, k.blocks)
	}
	other := host(2, "192.0.2.2")
	h.follow(t.Context(), a, overlay.Update{Hosts: map[hcn.GUID]*overlay.Host{other.ID: &other}})
	if k.asked != 1 || k.blocks != 1 {
		t.Errorf("with a host: networks %d times, blocks %d times", k.asked, k.blocks)
	}
}

// TestBlocksAgain: blocks that the engine could not keep it is told again, and those of a network that it can have only now.
func TestBlocksAgain(t *testing.T) {
	k := &kernel{full: errors.New("no space left on device")}
	h := newHost(t, k, filepath.Join(t.TempDir(), "cluster"))
	a := overlay.New(overlay.Config{Host: host(1, "192.0.2.1")})
	h.from = a
	h.follow(t.Context(), a, overlay.Update{Blocks: map[hcn.GUID][]netip.Prefix{}})
	h.retry(t.Context())
	k.full = nil
	h.retry(t.Context())
	h.retry(t.Context()) // nothing is owed any more
	if k.blocks != 3 || k.asked != 0 {
		t.Errorf("blocks %d times, networks %d times", k.blocks, k.asked)
	}
	k.refuses = map[hcn.GUID]error{host(7).ID: context.DeadlineExceeded}
	h.setNetworks(t.Context())
	k.refuses = nil
	if h.retry(t.Context()); k.blocks != 4 || k.asked != 2 {
		t.Errorf("a network that came late: blocks %d times, networks %d times", k.blocks, k.asked)
	}
}

// TestNoAgent: a membership that cannot start is still one: its networks and what they reach stay until it has left.
func TestNoAgent(t *testing.T) {
	k := &kernel{}
	dir := filepath.Join(t.TempDir(), "cluster")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), []byte(`{"version":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, joined := range []bool{true, false} {
		if !joined {
			if err := os.Remove(filepath.Join(dir, "cluster.json")); err != nil {
				t.Fatal(err)
			}
		}
		h := newHost(t, k, dir)
		h.from = overlay.New(overlay.Config{Host: host(1, "192.0.2.1")})
		h.take(t.Context())
		if gone := h.from == nil; gone == joined || k.asked+k.told > 0 == joined {
			t.Errorf("joined %v: networks %d times, endpoints %d times", joined, k.asked, k.told)
		}
	}
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

// TestRemote: who is told of without his host is nobody. On an encrypted network he is at an address inside, and without a key nowhere.
func TestRemote(t *testing.T) {
	h := newHost(t, &kernel{}, filepath.Join(t.TempDir(), "cluster"))
	on, secret := host(1, "192.0.2.1", "2001:db8::1"), host(8).ID
	ep := &overlay.Endpoint{ID: host(7).ID, Host: on.ID, Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}}
	if _, ok := h.remote(ep, true); ok {
		t.Error("without a host")
	}
	h.hosts[on.ID] = &on
	if r, ok := h.remote(ep, false); !ok || r.Provider != on.Addrs[1] || r.Host != "web1" || r.Keyless {
		t.Errorf("%+v, %v", r, ok)
	}
	h.nets[secret] = &overlay.Network{ID: secret, Doc: hcn.HostComputeNetwork{Type: hcn.Overlay, Policies: []hcn.NetworkPolicy{
		hcn.NewNetworkPolicy(hcn.NetworkEncryption, hcn.NetworkEncryptionSetting{EncryptionMethodType: hcn.EncryptionMethodWireGuard}),
	}}}
	ep.Network = secret
	if r, ok := h.remote(ep, true); !ok || !r.Keyless || r.Provider != h.inner(on.ID) {
		t.Errorf("encrypted, without a key: %+v, %v", r, ok)
	}
	on.Keys = []overlay.HostKey{{Generation: 1, Public: plan.Key{1}, Port: 2393}}
	if r, ok := h.remote(ep, true); !ok || r.Keyless || r.Provider != h.inner(on.ID) {
		t.Errorf("encrypted: %+v, %v", r, ok)
	}
	only := host(1, "192.0.2.1")
	h.hosts[on.ID] = &only
	if _, ok := h.remote(ep, false); ok {
		t.Error("without an address of the family")
	}
}
