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

// goneFor is how long a way is kept to a host that the cluster knows nothing of. It may have left, or be away and have had no container.
const goneFor = 30 * 24 * time.Hour

// measured keeps what a check has found of the ways to other hosts by a NIC, and gives how large packets to them may be by all that is
// kept; 0: as large as the NIC takes.
func (c *Cluster) measured(a *Agent, found []PathFound) (held int) {
	known := map[hcn.GUID]bool{}
	for _, h := range a.Status().Hosts { // those that are away, too
		known[h.ID] = true
	}
	c.mu.Lock()
	changed := c.keepPaths(known, found, time.Now())
	c.mu.Unlock()
	if changed {
		c.opt.Changed()
	}
	if len(found) > 0 {
		held = c.PathMTUs()[found[0].NIC]
	}
	return held
}

// keepPaths writes them, and tells whether that changed anything. Locked: c.mu.
func (c *Cluster) keepPaths(known map[hcn.GUID]bool, found []PathFound, now time.Time) bool {
	if c.cfg == nil {
		return false
	}
	unsure := map[hcn.GUID]bool{} // not measured to the end: the size so far is a step on the way to one
	for _, f := range found {
		unsure[f.Host] = unsure[f.Host] || !f.Done
	}
	next := *c.cfg
	next.Paths = maps.Clone(c.cfg.Paths)
	if next.Paths == nil {
		next.Paths = map[hcn.GUID]pathMTU{}
	}
	maps.DeleteFunc(next.Paths, func(id hcn.GUID, p pathMTU) bool { return !known[id] && now.Sub(p.At) > goneFor })
	for _, f := range found { // what was measured now counts, and not what was before
		if f.Size > 0 && !unsure[f.Host] {
			delete(next.Paths, f.Host)
		}
	}
	at := now.UTC().Truncate(time.Second)
	for _, f := range found {
		if had, ok := next.Paths[f.Host]; f.Size > 0 && f.Size < f.MTU && !unsure[f.Host] && (!ok || f.Size < had.Size) {
			next.Paths[f.Host] = pathMTU{NIC: f.NIC, Size: f.Size, At: at}
		}
	}
	if len(next.Paths)+len(c.cfg.Paths) == 0 {
		return false
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
