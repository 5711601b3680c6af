package overlay

import (
	"maps"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// pathMTU is how large packets to a host may be, where a check has found that this is less than the NIC would take.
type pathMTU struct {
	NIC  string    `json:"nic"`
	Size int       `json:"size"`
	At   time.Time `json:"at"`
}

// measured keeps what a check has found of the ways to other hosts.
func (c *Cluster) measured(a *Agent, found []PathFound) {
	alive := map[hcn.GUID]bool{}
	for _, h := range a.Hosts() {
		alive[h.ID] = true
	}
	c.mu.Lock()
	changed := c.keepPaths(alive, found)
	c.mu.Unlock()
	if changed {
		c.opt.Changed()
	}
}

// keepPaths writes them, and tells whether that changed anything. Locked: c.mu.
func (c *Cluster) keepPaths(alive map[hcn.GUID]bool, found []PathFound) bool {
	if c.cfg == nil {
		return false
	}
	next := *c.cfg
	next.Paths = maps.Clone(c.cfg.Paths)
	if next.Paths == nil {
		next.Paths = map[hcn.GUID]pathMTU{}
	}
	maps.DeleteFunc(next.Paths, func(id hcn.GUID, _ pathMTU) bool { return !alive[id] })
	for _, f := range found { // what was measured now counts, and not what was before
		if f.Size > 0 {
			delete(next.Paths, f.Host)
		}
	}
	at := time.Now().UTC().Truncate(time.Second)
	for _, f := range found {
		if had, ok := next.Paths[f.Host]; f.Size > 0 && f.Size < f.MTU && (!ok || f.Size < had.Size) {
			next.Paths[f.Host] = pathMTU{NIC: f.NIC, Size: f.Size, At: at}
		}
	}
	same := maps.EqualFunc(next.Paths, c.cfg.Paths, func(a, b pathMTU) bool { return a.NIC == b.NIC && a.Size == b.Size })
	if err := c.save(&next); err != nil {
		c.log.Warn("keep what a check of the underlay has found", "error", err)
		return false
	}
	c.cfg = &next
	return !same
}

// PathMTUs are how large packets to the other hosts may be, by NIC, where that is less than the NIC would take.
func (c *Cluster) PathMTUs() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	if c.cfg == nil {
		return out
	}
	for _, p := range c.cfg.Paths {
		if had := out[p.NIC]; had == 0 || p.Size < had {
			out[p.NIC] = p.Size
		}
	}
	return out
}
