package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// keeper sees to this host's keys: that there are such of the cluster's generation, that the others know them, and that the old ones go
// when nobody needs them. It is of the goroutine of Host.Run alone.
type keeper struct {
	status func() plan.SecureStatus
	ring   *overlay.Keyring
	of     *overlay.Agent
	// begun is since when there are two generations; settled since when every host was heard from with the new one.
	begun, settled time.Time
	problem        string
}

const (
	// keysEvery is how often that is looked at besides whenever something changes.
	keysEvery = time.Second
	// oldKeysStay is how long the old keys stay after a handshake was made by the new ones with everybody: so long may the others go on with
	// them. oldKeysMost bounds how long a host is waited for that makes none.
	oldKeysStay = 3 * time.Second
	oldKeysMost = 10 * time.Minute
)

// keys brings them up to date.
func (h *Host) keys() {
	k := &h.keeper
	if h.from == nil || !h.informed {
		if h.from == nil && k.of != nil {
			k.of, k.ring = nil, nil
			h.engine().SetClusterKeys(nil)
		}
		return
	}
	if k.of != h.from || k.ring == nil {
		ring, err := h.member.Keyring()
		if err != nil {
			h.log.Warn("read this host's keys", "error", err)
		}
		k.of, k.ring, k.begun, k.settled = h.from, ring, time.Time{}, time.Time{}
	}
	self := h.from.Self()
	generation := max(h.generation(&self), h.rotate.Swap(0))
	keep := []uint32{generation}
	if old := generation - 1; slices.Contains(k.ring.Generations(), old) && !h.mayRetire(generation, time.Now()) {
		keep = []uint32{old, generation}
	}
	problem := ""
	changed, err := k.ring.Keep(keep...)
	if err != nil {
		problem = err.Error()
	}
	if changed {
		h.log.Info("this host's keys have changed", "generations", fmt.Sprint(keep))
	}
	public, err := k.ring.Public()
	if err != nil {
		problem = err.Error()
	}
	if self.Keys = public; err == nil {
		h.from.SetHost(self)
	}
	s := h.secure(&self, public)
	s.Problem = cmp.Or(problem, k.status().Problem)
	if s.Problem != k.problem && s.Problem != "" {
		h.log.Warn("encrypted networks have no way to other hosts", "error", s.Problem)
	}
	k.problem = s.Problem
	h.engine().SetClusterKeys(s)
}

// generation is the newest that any host has; the first one has 1.
func (h *Host) generation(self *overlay.Host) uint32 {
	g := max(1, self.Generation())
	for _, own := range h.keeper.ring.Generations() {
		g = max(g, own)
	}
	for _, o := range h.hosts {
		g = max(g, o.Generation())
	}
	return g
}

// mayRetire tells that nobody needs the keys before a generation any more.
func (h *Host) mayRetire(generation uint32, now time.Time) bool {
	k := &h.keeper
	if k.begun.IsZero() {
		k.begun = now
	}
	st := k.status()
	waits := false
	for id, o := range h.hosts {
		if id == h.from.Self().ID || len(o.Keys) == 0 {
			continue
		}
		_, heard := st.Devices[generation][id]
		waits = waits || o.Key(generation) == nil || len(st.Devices) > 0 && !heard
	}
	if waits {
		k.settled = time.Time{}
	} else if k.settled.IsZero() {
		k.settled = now
	}
	if done := !waits && now.Sub(k.settled) >= oldKeysStay; !done && now.Sub(k.begun) < oldKeysMost {
		return false
	}
	k.begun, k.settled = time.Time{}, time.Time{}
	return true
}

// secure is what the engine is told: a device for each generation, with all hosts that have a key of it.
func (h *Host) secure(self *overlay.Host, own []overlay.HostKey) *plan.Secure {
	v4 := self.Addrs[0].Is4()
	s := &plan.Secure{}
	for _, mine := range own {
		private, _ := h.keeper.ring.Private(mine.Generation)
		d := plan.SecureDevice{Generation: mine.Generation, Device: plan.SecureDeviceName(mine.Generation), Private: private, Port: mine.Port}
		for id, o := range h.hosts {
			key, at := o.Key(mine.Generation), o.Addr(v4)
			if id == self.ID || key == nil || !at.IsValid() {
				continue
			}
			d.Peers = append(d.Peers, plan.SecurePeer{Host: id, Name: o.Name, Key: key.Public, Endpoint: netip.AddrPortFrom(at, key.Port), Addr: h.inner(id)})
		}
		slices.SortFunc(d.Peers, func(a, b plan.SecurePeer) int { return cmp.Compare(a.Host, b.Host) })
		s.Devices = append(s.Devices, d)
	}
	return s
}

// inner is a host's address inside WireGuard.
func (h *Host) inner(host hcn.GUID) netip.Addr {
	return overlay.InnerAddr(h.member.ClusterID(), host)
}

// RotateClusterKeys has all hosts change their keys, and gives the generation that comes.
func (h *Host) RotateClusterKeys(_ context.Context) (uint32, error) {
	a := h.member.Agent()
	if a == nil {
		return 0, api.Errorf(api.KindConflict, "this host is in no cluster").Hint("bulkhead cluster init begins one, bulkhead join TOKEN joins one")
	}
	st := a.Status()
	if !st.Connected {
		return 0, api.Errorf(api.KindUnavailable, "the cluster is not reached, so nobody would learn of new keys: %s", st.Problem).Hint("bulkhead cluster status")
	}
	newest := newestKeys(st.Hosts)
	var busy []string
	for i := range st.Hosts {
		if h := &st.Hosts[i]; h.Alive && (len(h.Keys) != 1 || h.Generation() != newest) {
			busy = append(busy, h.Name)
		}
	}
	if len(busy) > 0 {
		return 0, api.Errorf(api.KindConflict, "keys are being changed to generation %d, and these hosts have not done so yet: %.200s", newest, strings.Join(busy, ", ")).
			Hint("wait a moment; a host that does not answer is waited for at most %s", oldKeysMost)
	}
	h.rotate.Store(newest + 1)
	h.Changed()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for { // it has begun when the others can see it
		for _, h := range a.Hosts() {
			if h.Generation() > newest {
				return newest + 1, nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, api.Errorf(api.KindUnavailable, "this host's new key is not in etcd yet").Hint("bulkhead cluster status")
		case <-tick.C:
		}
	}
}

// newestKeys is the newest generation that any host has, 0 while none has one.
func newestKeys(hosts []overlay.HostStatus) (g uint32) {
	for i := range hosts {
		g = max(g, hosts[i].Generation())
	}
	return g
}

func generations(keys []overlay.HostKey) (out []uint32) {
	for _, k := range keys {
		out = append(out, k.Generation)
	}
	return out
}
