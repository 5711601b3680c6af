package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// pickAddresses completes the document's addresses: none given means one of
// each family that the network has; an entry that names only a subnet gets one
// of it. What is given must be free.
func (t *txn) pickAddresses(doc *hcn.HostComputeEndpoint, n *plan.Network) error {
	if len(doc.IpConfigurations) == 0 {
		seen := map[bool]bool{}
		for _, s := range n.Doc.AllSubnets() {
			p, err := s.Prefix()
			if err != nil || seen[p.Addr().Is4()] {
				continue
			}
			a, err := t.pickAddr(n, s, "", nil)
			other := t.hasOtherSubnet(n, s, p.Addr().Is4())
			if errors.Is(err, ipam.ErrExhausted) && other {
				continue
			}
			if need, ok := errors.AsType[*needBlock](err); ok {
				if other && t.full[need.key()] {
					continue
				}
				need.elsewhere = other
			}
			if err != nil {
				return err
			}
			seen[p.Addr().Is4()] = true
			doc.IpConfigurations = append(doc.IpConfigurations, hcn.IpConfig{IpAddress: a.String(), IpSubnetId: s.ID})
		}
		return nil
	}
	for i := range doc.IpConfigurations {
		c := &doc.IpConfigurations[i]
		at := fmt.Sprintf("IpConfigurations[%d].IpAddress", i)
		if c.IpAddress == "" && n.Doc.Dhcp() {
			return hcn.Errorf(hcn.ErrInvalidIP, "%s: it is missing: the LAN of network %q gives out its addresses, so name the one that is to be fixed, or none at all", at, n.Doc.Name)
		}
		if c.IpAddress == "" {
			s, block := findSubnet(&n.Doc, c.IpSubnetId)
			if s == nil {
				return hcn.Errorf(hcn.ErrSubnetNotFound, "IpConfigurations[%d]: network %q has no subnet %s", i, n.Doc.Name, c.IpSubnetId)
			}
			a, err := t.pickAddr(n, s, block, nil)
			if err != nil {
				return err
			}
			c.IpAddress = a.String()
			continue
		}
		a, err := netip.ParseAddr(c.IpAddress)
		if err != nil {
			return hcn.Errorf(hcn.ErrInvalidIP, "%s: %w", at, err)
		}
		if err := checkBlock(n, a.Unmap()); err != nil && doc.Flags&hcn.RemoteEndpoint == 0 {
			return err
		}
		if t.isHosts(a.Unmap()) && !doc.ByHost(&n.Doc) {
			return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%s: %s is an address of this host: choose another", at, a)
		}
		if holder, ok := t.st.addrs[n.Doc.ID][a.Unmap()]; ok {
			other := t.st.endpoints[holder]
			return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%s: %s belongs to endpoint %q (%s): choose another, or delete that endpoint", at, a, other.Doc.Name, holder)
		}
	}
	return nil
}

// isHosts tells whether an address is the host's own: on a LAN it is in the same subnet.
func (t *txn) isHosts(a netip.Addr) bool {
	return slices.ContainsFunc(t.facts.HostAddrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

func (t *txn) hasOtherSubnet(n *plan.Network, than *hcn.Subnet, v4 bool) bool {
	past := false
	for _, s := range n.Doc.AllSubnets() {
		if p, err := s.Prefix(); err == nil && past && p.Addr().Is4() == v4 {
			return true
		}
		past = past || s == than
	}
	return false
}

// findSubnet looks for a subnet by its own ID or that of a block in it; a single
// subnet needs no ID.
func findSubnet(doc *hcn.HostComputeNetwork, id hcn.GUID) (*hcn.Subnet, hcn.GUID) {
	all := doc.AllSubnets()
	if id.IsZero() && len(all) == 1 {
		return all[0], ""
	}
	for _, s := range all {
		if s.ID == id {
			return s, ""
		}
		for _, b := range s.IpSubnets {
			if b.ID == id {
				return s, id
			}
		}
	}
	return nil, ""
}

// pickAddr takes a free address of a subnet: within ranges of it, or else a block of it, or else anywhere in it.
func (t *txn) pickAddr(n *plan.Network, s *hcn.Subnet, block hcn.GUID, within []ipam.Range) (netip.Addr, error) {
	prefix, err := s.Prefix()
	if err != nil {
		return netip.Addr{}, err
	}
	pool := ipam.Pool{Ranges: within}
	for _, b := range s.IpSubnets {
		if p, err := b.Prefix(); err == nil && within == nil && (block.IsZero() || b.ID == block) {
			pool.Ranges = append(pool.Ranges, netipx.RangeOfPrefix(p))
		}
	}
	if pool.Ranges == nil {
		pool.Ranges = []ipam.Range{netipx.RangeOfPrefix(prefix)}
	}
	wanted := pool.Ranges
	if n.Cluster {
		pool.Ranges = inBlocks(n, wanted)
	}
	var excluded []hcn.AddrRange
	if all, err := hcn.NetworkSettingsOf[hcn.ExclusionsSetting](n.Doc.Policies); err == nil {
		for _, x := range all {
			r, err := x.AddrRanges()
			if err != nil {
				return netip.Addr{}, err
			}
			excluded = append(excluded, r...)
		}
	}
	pool.Reserved = func(a netip.Addr) bool {
		return s.Reserved(a) != "" || t.isHosts(a) || t.st.isAvoided(lanAddr{n.Doc.ID, a}) || slices.ContainsFunc(excluded, func(r hcn.AddrRange) bool { return r.Contains(a) })
	}
	taken := t.st.addrs[n.Doc.ID]
	a, err := pool.Addr(func(a netip.Addr) bool { _, ok := taken[a]; return ok || t.st.isElsewhere(n.Doc.ID, a) }, t.st.lastAddr[prefix])
	if err != nil && n.Cluster {
		more, merr := beyondBlocks(n, wanted, excluded, slices.DeleteFunc(t.edges(s, prefix), func(a netip.Addr) bool { return !pool.Reserved(a) }))
		if merr != nil {
			return a, merr
		}
		if len(more.Ranges()) > 0 {
			return a, &needBlock{network: n.Doc.ID, name: n.Doc.Name, subnet: prefix.Masked(), wanted: more, had: n.Blocks}
		}
	}
	if err != nil {
		return a, full(n, prefix, pool, taken)
	}
	t.st.lastAddr[prefix] = a
	return a, nil
}

// edges are the addresses of a subnet that may be reserved for what they are, beside those that are excluded.
func (t *txn) edges(s *hcn.Subnet, prefix netip.Prefix) []netip.Addr {
	out := []netip.Addr{prefix.Masked().Addr(), netipx.PrefixLastIP(prefix)}
	if gw, ok := s.Gateway(); ok {
		out = append(out, gw)
	}
	for _, p := range t.facts.HostAddrs {
		out = append(out, p.Addr())
	}
	return out
}

// fullPool is told from other failures by ipam.ErrExhausted, whose text says less than its own.
type fullPool struct{ error }

func (fullPool) Is(target error) bool { return target == ipam.ErrExhausted }

func (f fullPool) Unwrap() error { return f.error }

// full says what holds all addresses of a subnet, or of its blocks.
func full[T any](n *plan.Network, prefix netip.Prefix, pool ipam.Pool, taken map[netip.Addr]T) error {
	used := 0
	for a := range taken {
		if slices.ContainsFunc(pool.Ranges, func(r ipam.Range) bool { return r.Contains(a) }) {
			used++
		}
	}
	return fullPool{hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "network %q has no free address in %s: endpoints have %d, and the others are reserved, excluded or the host's. "+
		"Delete endpoints that nobody uses (`bulkhead address ls` lists them), or add a subnet", n.Doc.Name, whichPart(prefix, pool), used)}
}

// whichPart names the subnet, and the blocks of it that addresses come from.
func whichPart(prefix netip.Prefix, pool ipam.Pool) string {
	var blocks []string
	for _, r := range pool.Ranges {
		p, ok := r.Prefix()
		if !ok || p == prefix.Masked() {
			return "subnet " + prefix.String()
		}
		blocks = append(blocks, p.String())
	}
	return strings.Join(blocks, ", ") + " of subnet " + prefix.String()
}

func (t *txn) pickMAC(doc *hcn.HostComputeEndpoint, n *plan.Network) (plan.MAC, error) {
	macs := t.st.macs[n.Doc.ID]
	if doc.MacAddress != "" {
		b, err := doc.MacAddress.Bytes()
		if err != nil {
			return plan.MAC{}, err
		}
		if holder, ok := macs[plan.MAC(b)]; ok && !doc.ByHost(&n.Doc) {
			return plan.MAC{}, hcn.Errorf(hcn.ErrInvalidEndpoint, "MacAddress: %s belongs to %s on network %q: choose another, or leave it out", doc.MacAddress, holder, n.Doc.Name)
		}
		return plan.MAC(b), nil
	}
	if addrs, err := doc.Addrs(); err == nil && n.Cluster && len(addrs) > 0 && doc.Flags&hcn.RemoteEndpoint == 0 {
		if m := clusterMAC(addrs[0].Addr()); macs[m] == "" {
			doc.MacAddress = hcn.MACFrom(m)
			return m, nil
		}
	}
	ranges, err := macRanges(&n.Doc)
	if err != nil {
		return plan.MAC{}, err
	}
	m, err := ipam.MAC(ranges, string(doc.ID), func(m [6]byte) bool { _, ok := macs[plan.MAC(m)]; return ok })
	if err != nil {
		return plan.MAC{}, hcn.Errorf(hcn.ErrInvalidEndpoint, "MacAddress: the %d endpoints of network %q use up its MacPool: delete endpoints that nobody uses, or give a MacAddress", len(t.st.byNetwork[n.Doc.ID]), n.Doc.Name)
	}
	doc.MacAddress = hcn.MACFrom(m)
	return plan.MAC(m), nil
}
