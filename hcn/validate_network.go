package hcn

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
)

func indexed(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func policyPath(i int) string { return indexed("Policies", i) }

// subnets yields every subnet of the network with its path in the document.
func (n *HostComputeNetwork) subnets() iter.Seq2[string, *Subnet] {
	return func(yield func(string, *Subnet) bool) {
		for i := range n.Ipams {
			for j := range n.Ipams[i].Subnets {
				if !yield(fmt.Sprintf("Ipams[%d].Subnets[%d]", i, j), &n.Ipams[i].Subnets[j]) {
					return
				}
			}
		}
	}
}

// AllSubnets lists the subnets of all ipams.
func (n *HostComputeNetwork) AllSubnets() []*Subnet {
	var out []*Subnet
	for _, s := range n.subnets() {
		out = append(out, s)
	}
	return out
}

// Prefix parses the subnet's prefix.
func (s *Subnet) Prefix() (netip.Prefix, error) {
	p, err := parsePrefix(s.IpAddressPrefix)
	if err != nil {
		return p, Errorf(ErrInvalidPrefix, "%w", err)
	}
	return p, nil
}

// Gateway is the next hop of the subnet's default route; ok is false when there is none.
func (s *Subnet) Gateway() (gw netip.Addr, ok bool) {
	for _, r := range s.Routes {
		if d, err := parsePrefix(r.DestinationPrefix); err == nil && d.Bits() == 0 {
			a, err := parseAddr(r.NextHop)
			return a, err == nil
		}
	}
	return netip.Addr{}, false
}

// VLAN is the 802.1Q tag that the subnet's policy gives, 0 for none.
func (s *Subnet) VLAN() uint16 {
	for _, p := range s.Policies {
		if p.Type != VLAN {
			continue
		}
		if v, err := decodeSettings(p.Type, p.Settings, subnetSettings); err == nil {
			if set, ok := v.(VlanPolicySetting); ok {
				return uint16(set.IsolationId)
			}
		}
	}
	return 0
}

// VSID is the virtual network of a subnet of an overlay, 0 for none.
func (s *Subnet) VSID() uint32 {
	for _, p := range s.Policies {
		if p.Type != VSID {
			continue
		}
		if v, err := decodeSettings(p.Type, p.Settings, subnetSettings); err == nil {
			if set, ok := v.(VsidPolicySetting); ok {
				return set.IsolationId
			}
		}
	}
	return 0
}

// Prefix parses the block's prefix.
func (s *IpSubnet) Prefix() (netip.Prefix, error) {
	p, err := parsePrefix(s.IpAddressPrefix)
	if err != nil {
		return p, Errorf(ErrInvalidPrefix, "%w", err)
	}
	return p, nil
}

// Parse gives the route's destination, host bits cleared, and its next hop. An unspecified next hop means on-link.
func (r Route) Parse() (dst netip.Prefix, via netip.Addr, err error) {
	dst, err = parsePrefix(r.DestinationPrefix)
	if err != nil {
		return dst, via, fmt.Errorf("DestinationPrefix: %w", err)
	}
	via, err = parseAddr(r.NextHop)
	if err != nil {
		return dst, via, fmt.Errorf("NextHop: %w", err)
	}
	if via.Is4() != dst.Addr().Is4() {
		return dst, via, fmt.Errorf("NextHop: %s is not of the family of %s", via, dst)
	}
	return dst.Masked(), via, nil
}

// Validate checks a network that is to be created or changed: first the schema's rules, then that all of it is enforced.
func (n *HostComputeNetwork) Validate() error {
	if err := n.checkTypeSupport(); err != nil {
		return err
	}
	if err := n.validateSchema(); err != nil {
		return err
	}
	return n.checkSupport()
}

// validateSchema holds for every network type, also for those that cannot be created yet.
func (n *HostComputeNetwork) validateSchema() error {
	if int(n.Type) >= len(networkTypeNames) {
		return invalid(ErrInvalidNetworkType, "Type", "%d is not known", n.Type)
	}
	if err := checkName(ErrInvalidNetwork, n.Name); err != nil {
		return err
	}
	if err := checkText(ErrInvalidNetwork, "Owner", n.Owner); err != nil {
		return err
	}
	if err := checkFlags(ErrInvalidNetwork, "Flags", uint32(n.Flags), networkFlagNames); err != nil {
		return err
	}
	if both := EnablePersistent | EnableNonPersistent; n.Flags&both == both {
		return invalid(ErrInvalidNetwork, "Flags", "EnablePersistent and EnableNonPersistent exclude each other: drop one")
	}
	if err := n.MacPool.validate("MacPool"); err != nil {
		return err
	}
	if err := n.Dns.validate(ErrInvalidNetwork, "Dns"); err != nil {
		return err
	}
	if err := checkOpaque(ErrInvalidNetwork, n.AdditionalParams); err != nil {
		return err
	}
	if err := n.validateIpams(); err != nil {
		return err
	}
	settings, err := n.validatePolicies()
	if err != nil {
		return err
	}
	return validateSets(settings)
}

func (p MacPool) validate(path string) error {
	if err := checkCount(ErrInvalidNetwork, path+".Ranges", len(p.Ranges), maxMacRanges); err != nil {
		return err
	}
	for i, r := range p.Ranges {
		at := indexed(path+".Ranges", i)
		if err := checkMAC(ErrInvalidNetwork, at+".StartMacAddress", r.StartMacAddress); err != nil {
			return err
		}
		if err := checkMAC(ErrInvalidNetwork, at+".EndMacAddress", r.EndMacAddress); err != nil {
			return err
		}
		from, _ := r.StartMacAddress.Bytes()
		to, _ := r.EndMacAddress.Bytes()
		if bytes.Compare(from[:], to[:]) > 0 {
			return invalid(ErrInvalidNetwork, at, "%s comes after %s: swap them", r.StartMacAddress, r.EndMacAddress)
		}
		// Within one vendor prefix no address of the range can be a group address.
		if from[0] != to[0] {
			return invalid(ErrInvalidNetwork, at, "%s and %s differ in the first byte: use one range per vendor prefix",
				r.StartMacAddress, r.EndMacAddress)
		}
	}
	return nil
}

// needsIpam are the types that cannot choose an address space by themselves.
var needsIpam = []NetworkType{L2Bridge, L2Tunnel, Overlay}

// dhcpTypes are the types on which somebody else may give out the addresses.
var dhcpTypes = []NetworkType{ICS, ConstrainedICS, Transparent, Mirrored}

func (n *HostComputeNetwork) validateIpams() error {
	if err := checkCount(ErrInvalidNetwork, "Ipams", len(n.Ipams), maxIpams); err != nil {
		return err
	}
	for i, ipam := range n.Ipams {
		if ipam.Type > IpamDhcp {
			return invalid(ErrInvalidNetwork, indexed("Ipams", i)+".Type", "%d is not known: use Static or Dhcp", ipam.Type)
		}
		if ipam.Type == IpamDhcp && !slices.Contains(dhcpTypes, n.Type) {
			return invalid(ErrInvalidNetwork, indexed("Ipams", i)+".Type",
				"a network of type %s has no DHCP server to ask: use Static", n.Type)
		}
	}
	subnets := n.AllSubnets()
	if len(subnets) == 0 && slices.Contains(needsIpam, n.Type) {
		return invalid(ErrInvalidNetwork, "Ipams", "a network of type %s needs a subnet: give an ipam with one", n.Type)
	}
	if err := checkCount(ErrInvalidNetwork, "Ipams: subnets", len(subnets), maxSubnets); err != nil {
		return err
	}
	seen := map[netip.Prefix]string{}
	ids := map[GUID]string{}
	for path, s := range n.subnets() {
		if err := s.validate(path, n.Type, n.Dhcp()); err != nil {
			return err
		}
		p, _ := s.Prefix() // none of one that only says in which VLAN the LAN's server is
		for o, at := range seen {
			if o.Overlaps(p) {
				return invalid(ErrInvalidSubnet, path+".IpAddressPrefix", "%s overlaps %s of %s", p, o, at)
			}
		}
		seen[p] = path
		if err := s.uniqueIDs(path, ids); err != nil {
			return err
		}
	}
	return nil
}

func (s *Subnet) uniqueIDs(path string, seen map[GUID]string) error {
	claim := func(id GUID, at string) error {
		if id.IsZero() {
			return nil
		}
		if other, ok := seen[id]; ok {
			return invalid(ErrInvalidSubnet, at+".ID", "%s is the ID of %s already: leave it out to get a new one", id, other)
		}
		seen[id] = at
		return nil
	}
	if err := claim(s.ID, path); err != nil {
		return err
	}
	for i, b := range s.IpSubnets {
		if err := claim(b.ID, indexed(path+".IpSubnets", i)); err != nil {
			return err
		}
	}
	return nil
}

// validate checks a subnet. One of a Dhcp ipam needs neither prefix nor gateway: they are what the LAN says.
func (s *Subnet) validate(path string, t NetworkType, dhcp bool) error {
	if err := checkFlags(ErrInvalidSubnet, path+".Flags", uint32(s.Flags), subnetFlagNames); err != nil {
		return err
	}
	if dhcp && s.IpAddressPrefix == "" {
		if len(s.Routes) > 0 {
			return invalid(ErrInvalidSubnet, path+".Routes", "a subnet without IpAddressPrefix has none: leave them out, the LAN says how it is left")
		}
		return s.validatePolicies(path, t)
	}
	at := path + ".IpAddressPrefix"
	p, err := parsePrefix(s.IpAddressPrefix)
	if err != nil {
		return invalid(ErrInvalidPrefix, at, "%w", err)
	}
	if err := checkSubnetPrefix(at, p); err != nil {
		return err
	}
	if err := s.validateRoutes(path, p, t, dhcp); err != nil {
		return err
	}
	if err := s.validateBlocks(path, p); err != nil {
		return err
	}
	return s.validatePolicies(path, t)
}

// checkSubnetPrefix refuses prefixes that no container can have an address in.
func checkSubnetPrefix(at string, p netip.Prefix) error {
	if p != p.Masked() {
		return invalid(ErrInvalidPrefix, at, "%s has host bits set: write %s", p, p.Masked())
	}
	a, room := p.Addr(), p.Addr().BitLen()-p.Bits()
	switch {
	case a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast() && a.Is6(), a.IsUnspecified(), a.Is4() && a.As4()[0] == 0,
		a.Is4() && a.As4()[0] >= 224:
		return invalid(ErrInvalidPrefix, at, "%s is not for hosts: use a private prefix such as 10.1.0.0/24 or fd00:1::/64", p)
	case p.Bits() < 8:
		return invalid(ErrInvalidPrefix, at, "%s is too large: use /8 or longer", p)
	case room < 2:
		return invalid(ErrInvalidSubnet, at, "%s has no room for a gateway and an endpoint: use /%d or shorter", p, p.Addr().BitLen()-2)
	}
	return nil
}

// validateRoutes also finds the gateway. Clients rely on a prefix without one being refused (Windows HNS behaviour); only a
// Private network has no gateway by nature, and where there is DHCP the LAN names it.
func (s *Subnet) validateRoutes(path string, p netip.Prefix, t NetworkType, dhcp bool) error {
	if err := checkCount(ErrInvalidSubnet, path+".Routes", len(s.Routes), maxRoutes); err != nil {
		return err
	}
	gateways := 0
	for i, r := range s.Routes {
		at := indexed(path+".Routes", i)
		dst, via, err := r.Parse()
		if err != nil {
			return invalid(ErrInvalidSubnet, at, "%w", err)
		}
		if dst.Addr().Is4() != p.Addr().Is4() {
			return invalid(ErrInvalidSubnet, at, "%s is not of the family of the subnet %s", dst, p)
		}
		if dst.Bits() > 0 {
			continue
		}
		if written, _ := parsePrefix(r.DestinationPrefix); written != dst {
			return invalid(ErrInvalidSubnet, at+".DestinationPrefix", "%s is no default route: write %s", written, dst)
		}
		if gateways++; gateways > 1 {
			return invalid(ErrInvalidSubnet, at, "the subnet has a second default route: keep one, its next hop is the gateway")
		}
		if err := checkGateway(at+".NextHop", p, via, t); err != nil {
			return err
		}
	}
	if gateways == 0 && t != Private && !dhcp {
		return invalid(ErrInvalidSubnet, path+".Routes", "there is no default route: add one to %s whose NextHop is the gateway, such as %s",
			defaultDestination(p), p.Addr().Next())
	}
	return nil
}

func defaultDestination(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "0.0.0.0/0"
	}
	return "::/0"
}

func checkGateway(at string, p netip.Prefix, gw netip.Addr, t NetworkType) error {
	// A physical IPv6 router is known by its link-local address; our own host port is not.
	if gw.Is6() && gw.IsLinkLocalUnicast() && t != NAT && t != Internal && t != Private {
		return nil
	}
	if !p.Contains(gw) {
		return invalid(ErrInvalidSubnet, at, "the gateway %s is outside the subnet %s", gw, p)
	}
	if gw == p.Addr() || gw.Is4() && gw == lastAddr(p) {
		return invalid(ErrInvalidSubnet, at, "%s is the network or broadcast address of %s: use another, such as %s", gw, p, p.Addr().Next())
	}
	return nil
}

func (s *Subnet) validateBlocks(path string, p netip.Prefix) error {
	if err := checkCount(ErrInvalidSubnet, path+".IpSubnets", len(s.IpSubnets), maxIpSubnets); err != nil {
		return err
	}
	var seen []netip.Prefix
	for i, b := range s.IpSubnets {
		at := indexed(path+".IpSubnets", i)
		if err := checkFlags(ErrInvalidIPSubnet, at+".Flags", uint32(b.Flags), ipSubnetFlagNames); err != nil {
			return err
		}
		if err := checkText(ErrInvalidIPSubnet, at+".Name", b.Name); err != nil {
			return err
		}
		q, err := parsePrefix(b.IpAddressPrefix)
		if err != nil {
			return invalid(ErrInvalidPrefix, at+".IpAddressPrefix", "%w", err)
		}
		if q != q.Masked() {
			return invalid(ErrInvalidPrefix, at+".IpAddressPrefix", "%s has host bits set: write %s", q, q.Masked())
		}
		if q.Bits() < p.Bits() || !p.Contains(q.Addr()) {
			return invalid(ErrInvalidIPSubnet, at+".IpAddressPrefix", "%s is not inside the subnet %s", q, p)
		}
		if slices.ContainsFunc(seen, q.Overlaps) {
			return invalid(ErrInvalidIPSubnet, at+".IpAddressPrefix", "%s overlaps another block of the subnet", q)
		}
		seen = append(seen, q)
	}
	return nil
}

func (s *Subnet) validatePolicies(path string, t NetworkType) error {
	seen := map[SubnetPolicyType]bool{}
	for i, pol := range s.Policies {
		at := path + "." + policyPath(i)
		if err := validatePolicy(pol.Type, pol.Settings, at, subnetSettings); err != nil {
			return err
		}
		if seen[pol.Type] {
			return invalid(ErrPolicyAlreadyExists, at, "the subnet has two policies of type %s: keep one", pol.Type)
		}
		seen[pol.Type] = true
	}
	if t == Overlay && !seen[VSID] {
		return invalid(ErrInvalidSubnet, path+".Policies", `a subnet of an Overlay needs {"Type":"VSID","Settings":{"IsolationId":n}}`)
	}
	return nil
}

// validatePolicy checks type and settings of one policy.
func validatePolicy[K ~string](t K, raw []byte, path string, table map[K]settingsType) error {
	_, err := readPolicy(t, raw, path, table)
	return err
}

// readPolicy checks a policy and gives its settings.
func readPolicy[K ~string](t K, raw []byte, path string, table map[K]settingsType) (any, error) {
	v, err := decodeSettings(t, raw, table)
	if err != nil {
		e := AsError(err)
		if _, known := table[t]; known { // it is about the settings
			return nil, Errorf(e.Code, "%s.%s", path, e.Detail)
		}
		return nil, Errorf(e.Code, "%s: %s", path, e.Detail)
	}
	return v, table[t].validate(v, path+".Settings")
}

// singleNetworkPolicies make sense once per network.
var singleNetworkPolicies = []NetworkPolicyType{
	SourceMacAddress, NetAdapterName, NetworkProviderAddress, DrMacAddress, AutomaticDNS, VxlanPort, LayerConstraint, HostRoute, Multicast, Macvlan, NetworkEncryption,
}

// validatePolicies gives the settings of the policies too: a set may hold a hundred thousand addresses, and is read once.
func (n *HostComputeNetwork) validatePolicies() ([]any, error) {
	if err := checkCount(ErrInvalidNetwork, "Policies", len(n.Policies), maxPolicies); err != nil {
		return nil, err
	}
	settings := make([]any, len(n.Policies))
	seen := map[string]bool{}
	for i, p := range n.Policies {
		v, err := readPolicy(p.Type, p.Settings, policyPath(i), networkSettings)
		if err != nil {
			return nil, err
		}
		settings[i] = v
		key := string(p.Type)
		if s, ok := v.(L4ProxyPolicySetting); ok {
			if err := s.validateOn(n, policyPath(i)); err != nil {
				return nil, err
			}
		}
		if !slices.Contains(singleNetworkPolicies, p.Type) {
			id := identity(v)
			if id == "" {
				continue
			}
			key += " " + id
		}
		if seen[key] {
			return nil, invalid(ErrPolicyAlreadyExists, policyPath(i), "the network has %s already: keep one", key)
		}
		seen[key] = true
	}
	return settings, nil
}
