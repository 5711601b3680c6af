package engine

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Load balancers for the host and the outside: at its own addresses, where a document names no virtual one, and at virtual addresses
// that are routed to it or are its own.

// atHost are the addresses that stand for the host's own ones.
func atHost(row *plan.LoadBalancer) []netip.Addr {
	switch {
	case row.Doc.Flags&hcn.LoadBalancerIPv6 != 0:
		return []netip.Addr{netip.IPv6Unspecified()}
	case row.Only4:
		return []netip.Addr{netip.IPv4Unspecified()}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

func balancerOwner(b *plan.LoadBalancer) string { return plan.BalancerOwner(b.Doc.Name, b.Doc.ID) }

// openBalancer chooses the ports on the network's own address by which the host reaches a load balancer. A document that is for the host or the
// outside in words is refused where that cannot be; one that is so for want of others is for the endpoints then.
func (t *txn) openBalancer(row, old *plan.LoadBalancer, n *plan.Network) error {
	doc := &row.Doc
	can := plan.HostBalances(&n.Doc)
	row.Inside, row.Only4, row.Apart = nil, false, false
	for i, m := range doc.PortMappings {
		what := "PortMappings[" + itoa(i) + "].Flags: " + (m.Flags & (hcn.LocalRoutedVip | hcn.VipExternalIp)).String()
		if len(doc.FrontendVIPs) == 0 {
			what = "FrontendVIPs: without one the host's own addresses are meant"
		} else if m.Flags&(hcn.LocalRoutedVip|hcn.VipExternalIp) == 0 {
			continue
		}
		if !can {
			return hcn.Errorf(hcn.ErrRequestUnsupported, "%s, and the host sends nothing to network %q of type %s: "+
				"use one of type NAT, L2Bridge or Transparent that is in no VLAN, or an Overlay with the policy HostRoute", what, n.Doc.Name, n.Doc.Type)
		}
	}
	if len(doc.FrontendVIPs) == 0 && doc.Flags&hcn.LoadBalancerIPv6 != 0 && !slices.ContainsFunc(n.Doc.AllSubnets(), isIPv6) {
		return hcn.Errorf(hcn.ErrInvalidParameter, "Flags: they say IPv6, and network %q has no IPv6 subnet: leave the flag out, or add one", n.Doc.Name)
	}
	if can {
		row.Apart = plan.BalancesApart(&n.Doc)
		if err := t.pickInside(row, old); err != nil {
			return err
		}
	}
	t.shareFamilies(row)
	return t.frontendsFree(row)
}

func isIPv6(s *hcn.Subnet) bool {
	p, err := s.Prefix()
	return err == nil && p.Addr().Is6()
}

// pickInside keeps what a mapping had, and takes the next free port for others.
func (t *txn) pickInside(row, old *plan.LoadBalancer) error {
	had := map[plan.Frontend]uint16{}
	if old != nil && old.DoorID() == row.DoorID() && len(old.Inside) == len(old.Doc.PortMappings) {
		for i, m := range old.Doc.PortMappings {
			had[plan.Frontend{Protocol: uint8(m.Protocol), Port: m.External()}] = old.Inside[i]
		}
	}
	taken, last := t.st.inside[row.DoorID()], t.st.lastInside[row.DoorID()]
	inside, open := make([]uint16, len(row.Doc.PortMappings)), false
	for i, m := range row.Doc.PortMappings {
		if !m.Opens() {
			continue
		}
		open = true
		if inside[i] = had[plan.Frontend{Protocol: uint8(m.Protocol), Port: m.External()}]; inside[i] != 0 {
			continue
		}
		for range 1 << 16 {
			last++
			if _, used := taken[last]; last != 0 && !used {
				inside[i] = last
				break
			}
		}
		if inside[i] == 0 {
			return hcn.Errorf(hcn.ErrInvalidParameter, "PortMappings[%d]: all 65535 ports of the network's that are for the host and the outside are in use: "+
				"set EnableInternalLoadBalancer, or delete load balancers that nobody uses", i)
		}
	}
	if open {
		row.Inside, t.st.lastInside[row.DoorID()] = inside, last
	}
	return nil
}

// shareFamilies lets one load balancer have a port at the host's IPv6 addresses, whose Flags say IPv6, and another one the same at its
// others: clients make one for each family of a service.
func (t *txn) shareFamilies(row *plan.LoadBalancer) {
	if len(row.Doc.FrontendVIPs) > 0 {
		return
	}
	only6 := row.Doc.Flags&hcn.LoadBalancerIPv6 != 0
	for _, m := range row.Doc.PortMappings {
		other := t.st.balancers[t.st.frontends[plan.Frontend{Protocol: uint8(m.Protocol), Addr: netip.IPv6Unspecified(), Port: m.External()}]]
		if other == nil || other.Doc.ID == row.Doc.ID || len(other.Doc.FrontendVIPs) > 0 || (other.Doc.Flags&hcn.LoadBalancerIPv6 != 0) == only6 {
			continue
		}
		if !only6 {
			row.Only4 = true
			continue
		}
		n := t.st.networks[other.Network]
		next := *other
		next.Only4 = true
		keep := plan.BalancerForwards(&next, n)
		for _, f := range plan.BalancerForwards(other, n) {
			if !slices.Contains(keep, f) {
				t.e.opt.Ports.Release(f, balancerOwner(other))
				t.undo = append(t.undo, func() {
					if err := t.e.opt.Ports.Retake(f, balancerOwner(other)); err != nil {
						t.e.log.Warn("hold a load balancer's port", "loadbalancer", other.Doc.ID, "error", err)
					}
				})
			}
		}
		t.putBalancer(other.Doc.ID, &next)
	}
}

// claimBalancerPorts takes what a load balancer has of the host's ports beyond what it had. A virtual address that is none of the
// host's is nobody's to bind.
func (t *txn) claimBalancerPorts(row, old *plan.LoadBalancer, n *plan.Network) error {
	had := map[hostPort]bool{}
	if old != nil {
		for _, f := range plan.BalancerForwards(old, n) {
			had[hostPortOf(f)] = true
		}
	}
	owner := balancerOwner(row)
	for _, f := range plan.BalancerForwards(row, n) {
		if had[hostPortOf(f)] {
			delete(had, hostPortOf(f))
			continue
		}
		err := t.e.opt.Ports.Reserve(f, owner)
		switch {
		case errors.Is(err, plan.ErrNoHostAddress):
		case err != nil:
			return hcn.Errorf(hcn.ErrPortAlreadyExists, "PortMappings: %w: choose another ExternalPort, or free it", err)
		default:
			t.undo = append(t.undo, func() { t.e.opt.Ports.Release(f, owner) })
		}
	}
	if old != nil && len(had) > 0 {
		t.releaseBalancerPorts(old)
	}
	return nil
}

// releaseBalancerPorts gives back, once the change is stored, what the load balancer has no more by then.
func (t *txn) releaseBalancerPorts(old *plan.LoadBalancer) {
	n := t.st.networks[old.Network]
	for _, f := range plan.BalancerForwards(old, n) {
		t.after = append(t.after, func() {
			now := t.st.balancers[old.Doc.ID]
			if now == nil || !slices.ContainsFunc(plan.BalancerForwards(now, n), func(g plan.Forward) bool { return hostPortOf(g) == hostPortOf(f) }) {
				t.e.opt.Ports.Release(f, balancerOwner(old))
			}
		})
	}
}
