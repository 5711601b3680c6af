package engine

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// claimPorts checks the endpoint's published ports against those of all
// networks, picks the ones left open, and takes them on the host. old is the row
// that is replaced.
func (t *txn) claimPorts(row, old *plan.Endpoint) error {
	owner := ownerOf(row)
	if err := t.pickPorts(row, owner); err != nil {
		return err
	}
	mine, err := row.Doc.PortMappings()
	if err != nil {
		return err
	}
	if n := t.st.networks[row.Doc.HostComputeNetwork]; len(mine) > 0 && n != nil {
		if vlan := plan.VLANOf(row, n); vlan != 0 {
			return hcn.Errorf(hcn.ErrMappingNotSupported, "port %d/%s cannot be published: %s is in VLAN %d, which the host is not in", mine[0].ExternalPort, mine[0].Protocol, owner, vlan)
		}
	}
	for i, m := range mine {
		for j := range i {
			if m.Repeats(mine[j]) {
				return hcn.Errorf(hcn.ErrPortAlreadyExists, "port %d/%s is published twice in the same document", m.ExternalPort, m.Protocol)
			}
		}
		for id := range t.st.ports[portKey{uint8(m.Protocol), m.ExternalPort}] {
			other := t.st.endpoints[id]
			if id == row.Doc.ID || other == nil {
				continue
			}
			theirs, err := other.Doc.PortMappings()
			if err != nil {
				return err
			}
			if slices.ContainsFunc(theirs, m.Overlaps) {
				return hcn.Errorf(hcn.ErrPortAlreadyExists, "port %d/%s is published by endpoint %q (%s): choose another port, or unpublish it there", m.ExternalPort, m.Protocol, other.Doc.Name, id)
			}
		}
	}
	for _, m := range mine {
		probe := &plan.Endpoint{Addrs: row.Addrs}
		probe.Doc.Policies = []hcn.EndpointPolicy{m.Policy()}
		if len(plan.Forwards(probe)) == 0 {
			return noSuchFamily(m, m.ExternalPort)
		}
	}
	had := map[hostPort]bool{}
	if old != nil {
		had = hostPorts(old)
	}
	for _, f := range plan.Forwards(row) {
		if had[hostPortOf(f)] {
			continue
		}
		if err := t.e.opt.Ports.Reserve(f, owner); err != nil {
			if errors.Is(err, plan.ErrNoHostAddress) {
				return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "VIP of the PortMapping: %w: publish on an address that the host has (`ip -brief address`), or on all", err)
			}
			return hcn.Errorf(hcn.ErrPortAlreadyExists, "%w: choose another port, or free it", err)
		}
		t.undo = append(t.undo, func() { t.e.opt.Ports.Release(f, owner) })
	}
	return nil
}

// noSuchFamily refuses a mapping that nothing of the endpoint could serve.
func noSuchFamily(m hcn.PortMappingPolicySetting, port uint16) error {
	which := "Flags of the PortMapping of %d/%s: it is for IPv6"
	if m.VIP != "" {
		which = "VIP of the PortMapping of %d/%s: it is " + m.VIP
	}
	return hcn.Errorf(hcn.ErrInvalidPolicy, which+", and the endpoint has no address of that family: publish in one that it has, or give it an address", port, m.Protocol)
}

// pickPorts chooses the host ports that the document leaves open and writes them
// into it. Mappings that follow each other with the same container port and no
// host port (the two loopback addresses) share one.
func (t *txn) pickPorts(row *plan.Endpoint, owner string) error {
	type target struct {
		proto hcn.Protocol
		port  uint16
	}
	open := map[target][]int{}
	var order []target
	for i, p := range row.Doc.Policies {
		if p.Type != hcn.PortMapping {
			continue
		}
		v, err := p.Decode()
		if err != nil {
			return err
		}
		m, ok := v.(hcn.PortMappingPolicySetting)
		if !ok || m.ExternalPort != 0 {
			continue
		}
		k := target{m.Protocol, m.InternalPort}
		if open[k] == nil {
			order = append(order, k)
		}
		open[k] = append(open[k], i)
	}
	for _, k := range order {
		probe := &plan.Endpoint{Doc: hcn.HostComputeEndpoint{}, Addrs: row.Addrs}
		for _, i := range open[k] {
			probe.Doc.Policies = append(probe.Doc.Policies, row.Doc.Policies[i])
		}
		fs := plan.Forwards(probe)
		if len(fs) == 0 {
			all, err := probe.Doc.PortMappings()
			if err != nil {
				return err
			}
			return noSuchFamily(all[0], k.port)
		}
		port, err := t.e.opt.Ports.HostPick(owner, fs...)
		if err != nil {
			if errors.Is(err, plan.ErrNoHostAddress) {
				return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "VIP of the PortMapping of %d/%s: %w: publish on an address that the host has (`ip -brief address`), or on all", k.port, k.proto, err)
			}
			return hcn.Errorf(hcn.ErrPortAlreadyExists, "pick a host port for %d/%s: %w", k.port, k.proto, err)
		}
		for _, f := range fs {
			f.Port = port
			t.undo = append(t.undo, func() { t.e.opt.Ports.Release(f, owner) })
		}
		for _, i := range open[k] {
			v, err := row.Doc.Policies[i].Decode()
			if err != nil {
				return err
			}
			m := v.(hcn.PortMappingPolicySetting)
			m.ExternalPort = port
			row.Doc.Policies[i] = m.Policy()
		}
	}
	return nil
}

// hostPort is what a reservation holds: two forwards to different places in the
// container, or of different scopes on all addresses, share one.
type hostPort struct {
	proto uint8
	bind  netip.Addr // unspecified: all addresses of the family
	port  uint16
}

func hostPortOf(f plan.Forward) hostPort {
	k := hostPort{f.Protocol, f.Bind, f.Port}
	if f.Scope != plan.ScopeAddress {
		if k.bind = netip.IPv6Unspecified(); f.Is4() {
			k.bind = netip.IPv4Unspecified()
		}
	}
	return k
}

func hostPorts(ep *plan.Endpoint) map[hostPort]bool {
	out := map[hostPort]bool{}
	for _, f := range plan.Forwards(ep) {
		out[hostPortOf(f)] = true
	}
	return out
}

// releasePorts gives back, once the change is stored, the host ports of old that
// row no longer has, unless a later change has taken them again by then. The data
// path drops them in the pass that follows.
func (t *txn) releasePorts(old, row *plan.Endpoint) {
	keep := map[hostPort]bool{}
	if row != nil {
		keep = hostPorts(row)
	}
	owner := ownerOf(old)
	for _, f := range plan.Forwards(old) {
		if keep[hostPortOf(f)] {
			continue
		}
		t.after = append(t.after, func() {
			if now := t.st.endpoints[old.Doc.ID]; now == nil || !hostPorts(now)[hostPortOf(f)] {
				t.e.opt.Ports.Release(f, owner)
			}
		})
	}
}
