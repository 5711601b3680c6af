package plan

import (
	"net/netip"
	"slices"
)

// isHost tells that the host itself sends by a port. On a LAN all its vNICs are behind the NIC.
func (t *tracer) isHost(p *Port) bool {
	return p.Kind == PortHost || t.sw.Mode.OnLAN() && p.Kind == PortContainer && inHost(p)
}

// isContainer tells that a port is a compartment's.
func (t *tracer) isContainer(p *Port) bool { return p.Kind == PortContainer && !t.isHost(p) }

// isPeer tells that an endpoint is behind a port, here or on another host: isolated ones exchange nothing with it.
func (t *tracer) isPeer(p *Port) bool { return t.isContainer(p) || p.Kind == PortTunnel }

// inHost tells whether a port's vNIC is the host's own.
func inHost(p *Port) bool { return p.VNIC.Namespace == "" }

// ports are those of the switch that have MACs and addresses of their own: the
// resolver's are the host port's, where there is one.
func (t *tracer) ports() []*Port {
	var out []*Port
	for _, p := range t.plan.Ports {
		if p.Network == t.sw.Network && p.Kind != PortUplink && p.Kind != PortTunnel && p.VLAN == t.vlan() && (p.Kind != PortResolver || t.sw.HostPort == "") {
			out = append(out, p)
		}
	}
	return out
}

// owner is the port whose vNIC has an address.
func (t *tracer) owner(a netip.Addr) *Port {
	for _, p := range t.ports() {
		if slices.Contains(p.Addrs, a) || p.LinkLocal == a {
			return p
		}
	}
	return nil
}

// portAt is the port that has an address, but for those in the host's own stack.
func (t *tracer) portAt(a netip.Addr) *Port {
	if o := t.owner(a); o != nil && !inHost(o) {
		return o
	}
	return nil
}

// vlan that the packet is in: the sender's, or its tag.
func (t *tracer) vlan() uint16 {
	switch {
	case t.from == nil: // nobody's packet yet
		return 0
	case t.from.Kind == PortUplink:
		return t.pkt.VLAN
	}
	return t.from.VLAN
}

// resolverAddress tells whether port 53 of a gateway's address is the resolver's.
func (t *tracer) resolverAddress(o *Port, a netip.Addr) bool {
	return o.Kind != PortContainer && t.sw.ResolverPort != "" && slices.Contains(t.sw.DNS.Listen, a)
}
