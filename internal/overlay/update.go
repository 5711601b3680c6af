package overlay

import (
	"net/netip"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Update is what changed since it was asked for last, as it is now. Entries are not to be changed.
type Update struct {
	// First: with it all is told that there is. What was known from before and was not told is gone.
	First bool
	// Recalled: it is what the last agent knew, and etcd has not been asked yet. Nothing is to be taken away for it.
	Recalled bool
	// Networks, Hosts and Endpoints by ID; nil is gone. Endpoints are those of other hosts.
	Networks  map[hcn.GUID]*Network
	Hosts     map[hcn.GUID]*Host
	Endpoints map[EndpointKey]*Endpoint
	// Balancers are load balancers of other hosts; nil is gone.
	Balancers map[BalancerKey]*Balancer
	// Blocks are all blocks of this host, by network; nil if they have not changed since.
	Blocks map[hcn.GUID][]netip.Prefix
}

// EndpointKey names an endpoint of a network.
type EndpointKey struct{ Network, ID hcn.GUID }

// Take gives what changed since the last call, and false while there is nothing to take: before the first snapshot,
// nothing is known but what was recalled, which does not mean that there is nothing.
func (a *Agent) Take() (Update, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := a.synced && !a.taken
	if !a.synced && !a.recalled || !first && a.cache.dirty.empty() {
		return Update{}, false
	}
	blocks := a.cache.dirty.blocks
	u := a.cache.changes()
	u.First, u.Recalled = first, !a.synced
	if a.synced && (blocks || first) {
		u.Blocks = a.blocks()
	}
	a.taken = a.synced
	return u, true
}

// changes are those since they were asked for last.
func (c *cache) changes() Update {
	d := c.take()
	u := Update{
		Networks: make(map[hcn.GUID]*Network, len(d.networks)), Hosts: make(map[hcn.GUID]*Host, len(d.hosts)),
		Endpoints: make(map[EndpointKey]*Endpoint, len(d.endpoints)), Balancers: make(map[BalancerKey]*Balancer, len(d.balancers)),
	}
	for id := range d.networks {
		u.Networks[id] = nil
		if it, _ := c.network(id); it != nil {
			n := it.v
			n.Revision = it.rev
			u.Networks[id] = &n
		}
	}
	for id := range d.hosts {
		u.Hosts[id] = nil
		if it := c.hosts[id]; it != nil {
			u.Hosts[id] = &it.v
		}
	}
	for at := range d.endpoints {
		it, _ := c.endpoint(at.network, at.id)
		key := EndpointKey{at.network, at.id}
		u.Endpoints[key] = nil
		if it != nil && it.v.Host != c.self {
			u.Endpoints[key] = &it.v
		}
	}
	for k := range d.balancers {
		u.Balancers[k] = nil
		if it := c.balancers.all[k]; it != nil && k.Host != c.self && c.balancerCounts(it) == nil {
			u.Balancers[k] = &it.v
		}
	}
	return u
}
