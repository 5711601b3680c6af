package netdev

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// registry remembers how the links look that the appliers have made or found right in the host's namespace, so that
// the watcher can tell somebody's change from our own. It decides nothing else.
type registry struct {
	mu    sync.Mutex
	links map[string]*known
	// places are the switch sides by index: the vNIC in a compartment tells it as that of its other end.
	places map[int]string
}

type known struct {
	alias    string
	mtu      int
	segments plan.Segments
	mac      plan.MAC // of a vNIC; that of a switch side is the kernel's choice
	flags    uint32   // those that are on when the link is settled
	index    int      // of a switch side
	// vnic, of a switch side whose other end is in a compartment, says what that is called.
	vnic    string
	vnicMAC plan.MAC
	ready   time.Time // when it was settled
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
			k.fresh, k.settled, k.index, k.ready = old.fresh, old.settled, old.index, old.ready
		}
		r.links[name] = &k
	}
	const working = unix.IFF_UP | unix.IFF_LOWER_UP
	side := known{alias: p.Alias, mtu: p.VNIC.MTU, segments: p.VNIC.Segments, flags: working | unix.IFF_NOARP, fresh: fresh}
	if p.VNIC.Parked {
		side.flags = unix.IFF_UP | unix.IFF_NOARP
	}
	if p.VNIC.Home() != "" {
		side.vnic, side.vnicMAC = p.VNIC.Device, p.VNIC.MAC
	}
	enter(p.Device, side)
	if p.VNIC.Namespace == "" && p.VNIC.Device != "" {
		enter(p.VNIC.Device, known{alias: p.VNIC.Alias, mtu: p.VNIC.MTU, segments: p.VNIC.Segments, mac: p.VNIC.MAC, flags: working, fresh: fresh})
	}
}

// born notes the index of a port's switch side.
func (r *registry) born(name string, index int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.links[name]; k != nil {
		if k.index != index {
			delete(r.places, k.index)
		}
		k.index = index
		if r.places == nil {
			r.places = map[int]string{}
		}
		r.places[index] = name
	}
}

// disturbed tells that a vNIC in a compartment, as an event shows it, is not as it should be. Those that were settled
// after the given time are not judged: the event may be one of their birth.
func (r *registry) disturbed(l link, before time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.links[r.places[l.peer]]
	if k == nil || k.index != l.peer || k.vnic != l.name || l.kind != "veth" || !k.settled || k.ready.After(before) {
		return false
	}
	return !l.up() || l.mtu != k.mtu || l.mac != k.vnicMAC || !l.takes(k.segments)
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
			if !k.settled {
				k.ready = time.Now()
			}
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
	if k := r.links[name]; k != nil {
		delete(r.places, k.index)
	}
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
	right = l.alias == k.alias && l.mtu == k.mtu && l.takes(k.segments) && l.flags&k.flags == k.flags && l.group == groupOurs
	return !k.settled || right, true
}

// has tells whether a link of this name has to exist.
func (r *registry) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links[name] != nil
}
