package wireguard

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// What a device has and what it is to have, the same whatever the device is: a process, or the kernel's.

// keepAlive is how often a peer hears of us when there is nothing to say. With it a device shakes hands as soon as it knows a peer, and
// again when it begins anew: the peer's next packet is not lost on keys that are gone.
const keepAlive = 25

// state is what a device has.
type state struct {
	private plan.Secret
	port    uint16
	peers   map[plan.Key]peerState
}

type peerState struct {
	endpoint  netip.AddrPort
	allowed   []netip.Prefix
	keepAlive int
	handshake time.Time // zero: none yet
	// received and sent are bytes, with all that WireGuard adds.
	received, sent uint64
}

// wantedPeer is what a peer of the plan is to have.
func wantedPeer(p *plan.SecurePeer) peerState {
	return peerState{endpoint: p.Endpoint, allowed: []netip.Prefix{netip.PrefixFrom(p.Addr, p.Addr.BitLen())}, keepAlive: keepAlive}
}

// silence is how long a peer is believed to be where it was heard from last: sessions end after three minutes.
const silence = 3 * time.Minute

// same tells that nothing is to be written. A peer that is heard from other than its host's address (the routes of the host choose that)
// is believed, for only it has its key.
func (p *peerState) same(want *peerState, now time.Time) bool {
	at := p.endpoint == want.endpoint || (p.endpoint.IsValid() && now.Sub(p.handshake) < silence)
	return at && p.keepAlive == want.keepAlive && slices.Equal(p.allowed, want.allowed)
}

// change makes a device what the plan says.
type change struct {
	private *plan.Secret
	port    *uint16
	peers   []peerChange
	// found is what was wrong with it, for people.
	found []string
}

// peerChange adds a peer, has it be so, or removes it.
type peerChange struct {
	key    plan.Key
	remove bool
	peerState
}

func (c *change) empty() bool { return c.private == nil && c.port == nil && len(c.peers) == 0 }

// difference is what a device lacks or has too much.
func difference(want *plan.SecureDevice, have *state, now time.Time) *change {
	c := &change{}
	if have.private != want.Private {
		c.private = &want.Private
		c.found = append(c.found, "another private key")
	}
	if have.port != want.Port {
		c.port = &want.Port
		c.found = append(c.found, "port "+strconv.Itoa(int(have.port)))
	}
	keep := map[plan.Key]bool{}
	for i := range want.Peers {
		p := &want.Peers[i]
		keep[p.Key] = true
		w := wantedPeer(p)
		h, ok := have.peers[p.Key]
		if ok && h.same(&w, now) {
			continue
		}
		c.peers = append(c.peers, peerChange{key: p.Key, peerState: w})
		if ok {
			c.found = append(c.found, "peer "+p.Name+" changed")
		} else {
			c.found = append(c.found, "peer "+p.Name+" missing")
		}
	}
	for key := range have.peers {
		if !keep[key] {
			c.peers = append(c.peers, peerChange{key: key, remove: true})
			c.found = append(c.found, "a peer too many")
		}
	}
	return c
}
