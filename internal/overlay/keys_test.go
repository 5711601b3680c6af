package overlay

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestKeyring: keys are made, kept for root alone, and forgotten; a damaged file is told of, and new ones take its place.
func TestKeyring(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster", fileKeys)
	k, err := openKeyring(path)
	if err != nil || len(k.Generations()) > 0 {
		t.Fatalf("an empty ring: %v, %v", k.Generations(), err)
	}
	keep := func(want bool, generations ...uint32) {
		t.Helper()
		changed, err := k.Keep(generations...)
		if err != nil || changed != want || !slices.Equal(k.Generations(), generations) {
			t.Fatalf("keep %v: %v, %v; has %v", generations, changed, err, k.Generations())
		}
	}
	keep(true, 1)
	keep(false, 1)
	first, ok := k.Private(1)
	if st, err := os.Stat(path); !ok || err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v", st, err)
	}
	if k, err = openKeyring(path); err != nil {
		t.Fatal(err)
	}
	keep(true, 1, 2)
	if again, _ := k.Private(1); again != first {
		t.Error("a key has changed")
	}
	public, err := k.Public()
	if err != nil || checkKeys(public) != nil || public[0].Port == public[1].Port || public[0].Public == public[1].Public || bytes.Equal(public[0].Public[:], first[:]) {
		t.Errorf("public: %+v, %v", public, err)
	}
	keep(true, 2)
	if _, ok := k.Private(1); ok {
		t.Error("an old key stays")
	}
	if err := os.WriteFile(path, []byte(`[{"generation":2,"private":"AAAA"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err = openKeyring(path); err == nil || len(k.Generations()) > 0 {
		t.Errorf("a damaged file: %v, %v", k.Generations(), err)
	}
	keep(true, 2)
}

// TestKeysChecked: what others show may be anything.
func TestKeysChecked(t *testing.T) {
	good := HostKey{Generation: 3, Public: plan.Key{1}, Port: 2393}
	for name, tc := range map[string]struct {
		keys []HostKey
		ok   bool
	}{
		"none":         {nil, true},
		"one":          {[]HostKey{good}, true},
		"two":          {[]HostKey{good, {4, plan.Key{2}, 2392}}, true},
		"a gap":        {[]HostKey{good, {5, plan.Key{2}, 2392}}, false},
		"three":        {[]HostKey{good, good, good}, false},
		"no port":      {[]HostKey{{3, plan.Key{1}, 0}}, false},
		"no key":       {[]HostKey{{3, plan.Key{}, 2393}}, false},
		"no end of it": {[]HostKey{{1<<30 + 1, plan.Key{1}, 2393}}, false},
	} {
		if err := checkKeys(tc.keys); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, b := InnerAddr(guid(1, 1), guid(2, 1)), InnerAddr(guid(1, 1), guid(2, 2))
	if a == b || InnerAddr(guid(1, 2), guid(2, 1)) == a || !netip.MustParsePrefix("fd00::/8").Contains(a) || a.As16()[6] != 0 {
		t.Errorf("inner addresses %s and %s", a, b)
	}
}

// TestHostChanges: what a host shows of itself changes under its lease, and nothing of its own is written anew.
func TestHostChanges(t *testing.T) {
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	shown := func() *Host {
		b.mu.Lock()
		defer b.mu.Unlock()
		if it := b.cache.hosts[a.id]; it != nil {
			return &it.v
		}
		return nil
	}
	lease := func() int64 {
		res, err := s.dial().Get(t.Context(), a.keys.host(a.id))
		if err != nil || len(res.Kvs) != 1 {
			t.Fatalf("%v, %v", res, err)
		}
		return res.Kvs[0].Lease
	}
	before := lease()
	self := a.Self()
	self.Keys = []HostKey{{Generation: 1, Public: plan.Key{7}, Port: 2393}}
	a.SetHost(self)
	eventually(t, "b sees the key", func() bool { h := shown(); return h != nil && len(h.Keys) == 1 && h.Keys[0].Public == plan.Key{7} })
	if now := lease(); now != before {
		t.Errorf("it is under the lease %x, was under %x", now, before)
	}
	if st := a.Status(); !st.Connected {
		t.Errorf("it lost its place: %s", st.Problem)
	}
	res, err := s.dial().Get(t.Context(), a.keys.host(a.id))
	if err != nil {
		t.Fatal(err)
	}
	a.SetHost(self) // nothing new
	self.Keys = []HostKey{{Generation: 1, Public: plan.Key{8}, Port: 2393}}
	a.SetHost(self)
	eventually(t, "b sees the next key", func() bool { h := shown(); return h != nil && len(h.Keys) == 1 && h.Keys[0].Public == plan.Key{8} })
	if now, err := s.dial().Get(t.Context(), a.keys.host(a.id)); err != nil || now.Kvs[0].Version != res.Kvs[0].Version+1 {
		t.Errorf("written %d times, %v", now.Kvs[0].Version-res.Kvs[0].Version, err)
	}
}
