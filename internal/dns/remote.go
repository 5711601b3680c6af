package dns

import (
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// An endpoint on another host is known by its names like one here. It has no compartment on this host, so it asks nothing.

// remote is a fact, and the stand-in that the index has for it.
type remote struct {
	fact *plan.Remote
	port *plan.Port
}

const remotePrefix = "remote:"

func isRemote(p *plan.Port) bool { return strings.HasPrefix(string(p.ID), remotePrefix) }

// setRemote replaces what is known of an endpoint elsewhere; nil means that it is gone.
func (r *Resolver) setRemote(id hcn.GUID, fact *plan.Remote) error {
	old := r.remotes[id].port
	if fact == nil {
		delete(r.remotes, id)
		return r.setPort(old, nil)
	}
	stand := remotePrefix + string(id)
	port := &plan.Port{
		ID: plan.PortID(stand), Kind: plan.PortContainer, Network: fact.Network, Names: fact.Names, Addrs: fact.Addrs, MAC: fact.MAC,
		VNIC: plan.VNIC{Namespace: stand},
	}
	r.remotes[id] = remote{fact, port}
	return r.setPort(old, port)
}
