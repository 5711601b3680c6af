package netdev

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// registry remembers how the links look that the appliers have made or found right in the host's namespace, so that
// the watcher can tell somebody's change from our own. It decides nothing else.
type registry struct {
	mu    sync.Mutex
	links map[string]*known
}

type known struct {
	alias string
	mtu   int
	mac   plan.MAC // of a vNIC; that of a switch side is the kernel's choice
	flags uint32   // those that are on when the link is settled
	index int      // of a switch side that was just made
	// fresh: made by Devices and not yet set up by Finish, so that being down is no drift.
	fresh bool
	// settled: Finish is done with it.
	settled bool
}

// note enters a port's links, which are not settled yet.
func (r *registry) note(p *plan.Port, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links == nil {
		r.links = map[string]*known{}
	}
	enter := func(name string, k known) {
		if old := r.links[name]; old != nil && !fresh {
			k.fresh, k.settled = old.fresh, old.settled
		}
		r.links[name] = &k
	}
	const working = unix.IFF_UP | unix.IFF_LOWER_UP
	enter(p.Device, known{alias: p.Alias, mtu: p.VNIC.MTU, flags: working | unix.IFF_NOARP, fresh: fresh})
	if p.VNIC.Namespace == "" {
		enter(p.VNIC.Device, known{alias: p.VNIC.Alias, mtu: p.VNIC.MTU, mac: p.VNIC.MAC, flags: working, fresh: fresh})
	}
}

// born notes the index of a port's switch side that was just made.
func (r *registry) born(name string, index int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.links[name]; k != nil {
		k.index = index
	}
}

// newborn gives the index of a switch side that was made and not yet set up, or 0.
func (r *registry) newborn(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.links[name]; k != nil && k.fresh {
		return k.index
	}
	return 0
}

// settle marks a port as finished.
func (r *registry) settle(p *plan.Port) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range []string{p.Device, p.VNIC.Device} {
		if k := r.links[name]; k != nil && (name == p.Device || p.VNIC.Namespace == "") {
			k.fresh, k.settled = false, true
		}
	}
}

// isFresh tells whether a link was made and not yet set up.
func (r *registry) isFresh(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links[name] != nil && r.links[name].fresh
}

func (r *registry) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, name)
}

// judge says whether a link of ours, as it is now, is as it should be or under construction. ok is false for a link
// that nobody has entered.
func (r *registry) judge(l link) (right, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.links[l.name]
	if k == nil {
		return false, false
	}
	if k.settled && k.mac != (plan.MAC{}) && k.mac != l.mac {
		return false, true
	}
	return !k.settled || l.alias == k.alias && l.mtu == k.mtu && l.flags&k.flags == k.flags && l.group == groupOurs, true
}

// has tells whether a link of this name has to exist.
func (r *registry) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links[name] != nil
}
