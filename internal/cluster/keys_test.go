package cluster

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestKeys: a host has a key from the first, makes itself one of the generation that another shows, and takes the old one back some time
// after everybody was heard by the new.
func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{}
		h := newHost(t, k, filepath.Join(t.TempDir(), "cluster"))
		st := plan.SecureStatus{}
		h.keeper.status = func() plan.SecureStatus { return st }
		self, other, third := host(1, "192.0.2.1"), host(2, "192.0.2.2", "2001:db8::2"), host(3, "192.0.2.3")
		h.from = overlay.New(overlay.Config{Host: self})
		h.keys()
		if k.secure != nil {
			t.Error("keys are told before it is known what there is")
		}
		h.informed = true
		h.hosts = map[hcn.GUID]*overlay.Host{self.ID: &self, other.ID: &other, third.ID: &third}
		shown := func(generations ...uint32) (out []overlay.HostKey) {
			for _, g := range generations {
				out = append(out, overlay.HostKey{Generation: g, Public: plan.Key{byte(g)}, Port: overlay.PortOf(g)})
			}
			return out
		}
		devices := func(want ...uint32) {
			t.Helper()
			h.keys()
			var got []uint32
			for _, d := range k.secure.Devices {
				got = append(got, d.Generation)
			}
			public := h.from.Self().Keys
			if len(got) != len(want) || len(public) != len(want) {
				t.Fatalf("devices %v, keys %+v, want %v", got, public, want)
			}
			for i, g := range want {
				if got[i] != g || public[i].Generation != g {
					t.Fatalf("devices %v, keys %+v, want %v", got, public, want)
				}
			}
		}
		other.Keys = shown(1)
		devices(1)
		d := k.secure.Devices[0]
		if len(d.Peers) != 1 || d.Peers[0].Endpoint.String() != "192.0.2.2:2393" || d.Peers[0].Addr != h.inner(other.ID) || d.Peers[0].Key != (plan.Key{1}) {
			t.Errorf("peers %+v", d.Peers)
		}
		other.Keys = shown(1, 2)
		devices(1, 2)
		mine := h.from.Self().Keys[1]
		devices(1, 2)
		if h.from.Self().Keys[1] != mine {
			t.Error("it made itself another key of the same generation")
		}
		st.Devices = map[uint32]map[hcn.GUID]time.Time{1: {other.ID: time.Now()}, 2: {}}
		<-time.After(time.Minute)
		devices(1, 2) // the other was not heard by it
		st.Devices[2][other.ID] = time.Now()
		devices(1, 2)
		<-time.After(oldKeysStay)
		devices(2)
		if h.from.Self().Keys[0] != mine {
			t.Error("the new key is another one now")
		}
		// A host that does not come along is not waited for for ever.
		third.Keys = shown(2)
		other.Keys = shown(2, 3)
		devices(2, 3)
		<-time.After(oldKeysMost - time.Second)
		devices(2, 3)
		<-time.After(time.Second)
		devices(3)
		// What keeps it from encrypting is told.
		st.Problem = "UDP port 2393 is taken"
		if h.keys(); k.secure.Problem != st.Problem {
			t.Errorf("problem %q", k.secure.Problem)
		}
		h.from, h.informed = nil, false
		if h.keys(); k.secure != nil {
			t.Error("keys stay after the cluster")
		}
	})
}
