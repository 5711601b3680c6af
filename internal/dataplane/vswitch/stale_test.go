package vswitch

import (
	"net/netip"
	"testing"
)

// TestAddressUsedAgain gives b's addresses to another endpoint. Whoever knew b's MAC
// reaches the new one with the first packet, and is answered.
func TestAddressUsedAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		for i := range 2 {
			p.ping(p.hostA, p.b.Addrs[i])
		}
		delete(p.plan.Ports, p.b.ID)
		p.update(change(p.b, nil))
		heir := p.container(1, 12)
		heir.Addrs = p.b.Addrs
		p.devices(heir)
		p.update(change(nil, heir))
		p.up(heir)
		for i := range 2 {
			to := p.ns[heir.ID].TCPEcho(netip.AddrPortFrom(heir.Addrs[i], 0))
			if err := echo(p.hostA, to, 1<<20); err != nil {
				t.Errorf("a to the new owner of %s: %v", heir.Addrs[i], err)
			}
		}
	})
}
