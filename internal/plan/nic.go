package plan

import (
	"maps"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// firstOn is the network that has the port of a network's NIC: the oldest of those on its LAN.
func (in *Intent) firstOn(n *Network) *Network {
	if n == nil || n.Uplink == "" || !modeOf(&n.Doc).OnLAN() {
		return nil
	}
	first := n
	for _, o := range in.Networks {
		if o.Uplink == n.Uplink && modeOf(&o.Doc).OnLAN() && (o.Seq < first.Seq || o.Seq == first.Seq && o.Switch < first.Switch) {
			first = o
		}
	}
	return first
}

// withNeighbours adds the networks that share a NIC with a dirty one: which of them has its port
// may change.
func (p *Plan) withNeighbours(in *Intent, dirty map[hcn.GUID]struct{}) map[hcn.GUID]struct{} {
	nics := map[string]bool{}
	for id := range dirty {
		if sw := p.Switches[id]; sw != nil && sw.Uplink != "" {
			nics[sw.Uplink] = true
		}
		if n := in.Networks[id]; n != nil && n.Uplink != "" {
			nics[n.Uplink] = true
		}
	}
	if len(nics) == 0 {
		return dirty
	}
	out := maps.Clone(dirty)
	for id, n := range in.Networks {
		if nics[n.Uplink] {
			out[id] = struct{}{}
		}
	}
	return out
}

// MaxOnNIC is how many networks a NIC can carry (MAX_SHARED in bpf/lib/structs.h).
const MaxOnNIC = 8
