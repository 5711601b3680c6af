package hcn

import (
	"net/netip"
	"reflect"
	"slices"
)

// Addrs parses the endpoint's addresses, each with its prefix length. An address without one (before the service filled it in)
// comes with the length of a host.
func (e *HostComputeEndpoint) Addrs() ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(e.IpConfigurations))
	for i, c := range e.IpConfigurations {
		a, err := parseAddr(c.IpAddress)
		if err != nil {
			return nil, invalid(ErrInvalidIP, indexed("IpConfigurations", i)+".IpAddress", "%w", err)
		}
		bits := int(c.PrefixLength)
		if bits == 0 {
			bits = a.BitLen()
		}
		if bits > a.BitLen() {
			return nil, invalid(ErrInvalidIP, indexed("IpConfigurations", i)+".PrefixLength", "%d is above %d", bits, a.BitLen())
		}
		out = append(out, netip.PrefixFrom(a, bits))
	}
	return out, nil
}

// SettingsOf decodes all endpoint policies that have settings of type T, in order.
func SettingsOf[T any](policies []EndpointPolicy) ([]T, error) {
	var out []T
	for i, p := range policies {
		// Those of other types are not even read: there may be thousands of rules beside the one policy that is asked for.
		if endpointSettings[p.Type].shape != reflect.TypeFor[T]() {
			continue
		}
		v, err := p.Decode()
		if err != nil {
			return nil, Errorf(CodeOf(err), "%s: %w", policyPath(i), err)
		}
		out = append(out, v.(T))
	}
	return out, nil
}

// NetworkSettingsOf decodes all network policies that have settings of type T, in order.
func NetworkSettingsOf[T any](policies []NetworkPolicy) ([]T, error) {
	var out []T
	for i, p := range policies {
		if networkSettings[p.Type].shape != reflect.TypeFor[T]() {
			continue
		}
		v, err := p.Decode()
		if err != nil {
			return nil, Errorf(CodeOf(err), "%s: %w", policyPath(i), err)
		}
		out = append(out, v.(T))
	}
	return out, nil
}

// PortMappings decodes the published ports.
func (e *HostComputeEndpoint) PortMappings() ([]PortMappingPolicySetting, error) {
	return SettingsOf[PortMappingPolicySetting](e.Policies)
}

// Validate checks what can be said of an endpoint without its network: first the schema's rules, then that all of it is
// enforced on some network. ValidateFor adds what the network says.
func (e *HostComputeEndpoint) Validate() error {
	if err := e.validateSchema(); err != nil {
		return err
	}
	return e.checkSupport()
}

func (e *HostComputeEndpoint) validateSchema() error {
	if err := checkName(ErrInvalidEndpoint, e.Name); err != nil {
		return err
	}
	if err := checkText(ErrInvalidEndpoint, "Owner", e.Owner); err != nil {
		return err
	}
	if err := checkFlags(ErrInvalidEndpoint, "Flags", uint32(e.Flags), endpointFlagNames); err != nil {
		return err
	}
	if e.MacAddress != "" {
		if err := checkMAC(ErrInvalidEndpoint, "MacAddress", e.MacAddress); err != nil {
			return err
		}
	}
	if err := e.Dns.validate(ErrInvalidEndpoint, "Dns"); err != nil {
		return err
	}
	if err := checkOpaque(ErrInvalidEndpoint, e.AdditionalParams); err != nil {
		return err
	}
	if err := e.validateAddrs(); err != nil {
		return err
	}
	if err := e.validateRoutes(); err != nil {
		return err
	}
	return e.validatePolicies()
}

func (e *HostComputeEndpoint) validateAddrs() error {
	if err := checkCount(ErrInvalidEndpoint, "IpConfigurations", len(e.IpConfigurations), maxIpConfigs); err != nil {
		return err
	}
	seen := map[netip.Addr]bool{}
	for i, c := range e.IpConfigurations {
		at := indexed("IpConfigurations", i)
		if c.IpAddress == "" && !c.IpSubnetId.IsZero() {
			continue // "any address of that subnet"
		}
		a, err := parseAddr(c.IpAddress)
		if err != nil {
			return invalid(ErrInvalidIP, at+".IpAddress", "%w", err)
		}
		if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return invalid(ErrInvalidIP, at+".IpAddress", "%s is not an address for a container", a)
		}
		if int(c.PrefixLength) > a.BitLen() {
			return invalid(ErrInvalidIP, at+".PrefixLength", "%d is above %d", c.PrefixLength, a.BitLen())
		}
		if seen[a] {
			return invalid(ErrInvalidIP, at+".IpAddress", "%s is in the list twice", a)
		}
		seen[a] = true
	}
	if e.Flags&RemoteEndpoint != 0 && len(seen) == 0 {
		return invalid(ErrInvalidEndpoint, "IpConfigurations", "a remote endpoint needs the address it has on its host")
	}
	return nil
}

func (e *HostComputeEndpoint) validateRoutes() error {
	if err := checkCount(ErrInvalidEndpoint, "Routes", len(e.Routes), maxRoutes); err != nil {
		return err
	}
	for i, r := range e.Routes {
		if _, _, err := r.Parse(); err != nil {
			return invalid(ErrInvalidEndpoint, indexed("Routes", i), "%w", err)
		}
	}
	return nil
}

// singleEndpointPolicies make sense once per endpoint.
var singleEndpointPolicies = []EndpointPolicyType{
	QOS, ProviderAddress, PortName, EncapOverhead, EndpointInterfaceConstraint, InterfaceParameters, EndpointVLAN,
	Iov, InterfaceName, GatewayPriority, Aliases, IncomingQOS,
}

func (e *HostComputeEndpoint) validatePolicies() error {
	if err := checkCount(ErrInvalidEndpoint, "Policies", len(e.Policies), maxPolicies); err != nil {
		return err
	}
	seen := map[string]bool{}
	var mappings []PortMappingPolicySetting
	var outbound []OutboundNatPolicySetting
	for i, p := range e.Policies {
		at := policyPath(i)
		v, err := readPolicy(p.Type, p.Settings, at, endpointSettings)
		if err != nil {
			return err
		}
		switch s := v.(type) {
		case PortMappingPolicySetting:
			if slices.ContainsFunc(mappings, s.Repeats) {
				return invalid(ErrPortAlreadyExists, at, "port %d/%s is published by another policy of this endpoint",
					s.ExternalPort, s.Protocol)
			}
			mappings = append(mappings, s)
		case OutboundNatPolicySetting:
			if slices.ContainsFunc(outbound, s.overlaps) {
				return invalid(ErrPolicyAlreadyExists, at, "the endpoint has an OutBoundNAT without Destinations already: write the exceptions of both into one")
			}
			outbound = append(outbound, s)
		case AclPolicySetting, TierAclPolicySetting:
			if e.Flags&RemoteEndpoint != 0 {
				return invalid(ErrInvalidRemoteEndpointOperation, at, "a remote endpoint has no port to filter at: set it on the endpoint's own host")
			}
		}
		if err := checkSingle(p.Type, identity(v), at, seen); err != nil {
			return err
		}
	}
	return nil
}

func checkSingle(t EndpointPolicyType, id, at string, seen map[string]bool) error {
	key := string(t)
	if !slices.Contains(singleEndpointPolicies, t) {
		if id == "" {
			return nil
		}
		key += " " + id
	}
	if seen[key] && t == InterfaceParameters {
		return invalid(ErrInterfaceParametersAlreadyApplied, at, "remove the first one, or use Update to replace it")
	}
	if seen[key] {
		return invalid(ErrPolicyAlreadyExists, at, "the endpoint has %s already: remove that one, or use Update to replace it", key)
	}
	seen[key] = true
	return nil
}

// vfpTypes are the network types on which Windows routes in the switch, in its VFP layer. Tiers, which Windows has only there,
// are on every one of our switches.
var vfpTypes = []NetworkType{L2Bridge, L2Tunnel, Overlay}

// ValidateFor checks an endpoint against its network. Whether addresses and ports are free is for the service to say.
func (e *HostComputeEndpoint) ValidateFor(n *HostComputeNetwork) error {
	if err := e.Validate(); err != nil {
		return err
	}
	if err := e.validateSchemaFor(n); err != nil {
		return err
	}
	if err := e.checkOnMacvlan(n); err != nil {
		return err
	}
	return e.checkSupportOn(n.Type)
}

func (e *HostComputeEndpoint) validateSchemaFor(n *HostComputeNetwork) error {
	if !e.HostComputeNetwork.IsZero() && e.HostComputeNetwork != n.ID {
		return invalid(ErrInvalidEndpoint, "HostComputeNetwork", "the document says %s, the call %s", e.HostComputeNetwork, n.ID)
	}
	if err := e.validateAddrsFor(n); err != nil {
		return err
	}
	if err := e.validateRemote(n); err != nil {
		return err
	}
	for i, p := range e.Policies {
		switch p.Type {
		case PortMapping:
			if slices.Contains([]NetworkType{Transparent, Private, Internal}, n.Type) {
				return invalid(ErrMappingNotSupported, policyPath(i), "a network of type %s does not publish ports: use one of type NAT, L2Bridge or L2Tunnel, or an Overlay with the policy HostRoute", n.Type)
			}
		case L4Proxy:
			if err := e.validateProxy(n, p, policyPath(i)); err != nil {
				return err
			}
		case SDNRoute:
			if !slices.Contains(vfpTypes, n.Type) {
				return invalid(ErrRequestUnsupported, policyPath(i), "policy %s needs a network of type L2Bridge, L2Tunnel or Overlay, this one is %s",
					p.Type, n.Type)
			}
			v, err := p.Decode()
			if err != nil {
				return err
			}
			if s, ok := v.(SDNRoutePolicySetting); ok {
				if err := s.validateOn(n, policyPath(i)+".Settings"); err != nil {
					return err
				}
			}
		default:
		}
	}
	if err := e.validateSetsFor(n); err != nil {
		return err
	}
	return e.validateMTU(n)
}

func (e *HostComputeEndpoint) validateProxy(n *HostComputeNetwork, p EndpointPolicy, path string) error {
	v, err := p.Decode()
	if err != nil {
		return err
	}
	s, ok := v.(L4ProxyPolicySetting)
	if !ok {
		return nil
	}
	own, err := e.Addrs()
	if err != nil {
		return err
	}
	if ip := s.Proxy().Addr(); slices.ContainsFunc(own, func(a netip.Prefix) bool { return a.Addr() == ip }) {
		return invalid(ErrInvalidPolicy, path+".Settings.IP", "%s is the endpoint's own address, and a proxy's own flows do not go to it: "+
			"set the policy on the endpoints that it serves, or use L4WFPPROXY for a side-car", ip)
	}
	return s.validateOn(n, path)
}

// validateMTU keeps IPv6 alive: below 1280 the kernel takes IPv6 off the interface (RFC 8200).
func (e *HostComputeEndpoint) validateMTU(n *HostComputeNetwork) error {
	v6 := slices.ContainsFunc(n.AllSubnets(), func(s *Subnet) bool { p, err := s.Prefix(); return err == nil && p.Addr().Is6() })
	v6 = v6 || e.Leased(n) && len(n.AllSubnets()) == 0 // of both families
	parameters, err := SettingsOf[InterfaceParametersPolicySetting](e.Policies)
	if err != nil {
		return err
	}
	for _, s := range parameters {
		if v6 && s.Mtu != 0 && s.Mtu < 1280 {
			return invalid(ErrInvalidPolicy, "InterfaceParameters.Mtu", "%d is too small for the network's IPv6: use 1280 or more", s.Mtu)
		}
	}
	return nil
}

func (e *HostComputeEndpoint) validateAddrsFor(n *HostComputeNetwork) error {
	type slot struct {
		subnet *Subnet
		v6     bool
	}
	used := map[slot]bool{}
	for i, c := range e.IpConfigurations {
		at := indexed("IpConfigurations", i)
		s, err := n.subnetFor(at, c)
		if err != nil && e.Flags&RemoteEndpoint != 0 && c.IpSubnetId.IsZero() {
			continue // behind another host's router: see RemoteSubnetRoute
		}
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		p, err := s.Prefix()
		if err != nil {
			return err
		}
		if used[slot{s, p.Addr().Is6()}] {
			return invalid(ErrInvalidEndpoint, at, "the endpoint has an address in %s already: one per subnet", p)
		}
		used[slot{s, p.Addr().Is6()}] = true
		if err := c.validateIn(at, s, p); err != nil {
			return err
		}
	}
	return e.validateNextHops(n)
}

// subnetFor finds the subnet an address belongs to, by ID where one is given. A network whose addresses come from elsewhere
// has no subnets, and then any address goes.
func (n *HostComputeNetwork) subnetFor(at string, c IpConfig) (*Subnet, error) {
	if !c.IpSubnetId.IsZero() {
		for _, s := range n.subnets() {
			if s.ID == c.IpSubnetId || slices.ContainsFunc(s.IpSubnets, func(b IpSubnet) bool { return b.ID == c.IpSubnetId }) {
				return s, nil
			}
		}
		return nil, invalid(ErrSubnetNotFound, at+".IpSubnetId", "network %s has no subnet %s", n.label(), c.IpSubnetId)
	}
	a, err := parseAddr(c.IpAddress)
	if err != nil {
		return nil, invalid(ErrInvalidIP, at+".IpAddress", "%w", err)
	}
	if s := n.SubnetOf(a); s != nil {
		return s, nil
	}
	if len(n.AllSubnets()) == 0 && slices.Contains(dhcpTypes, n.Type) {
		return nil, nil
	}
	return nil, invalid(ErrInvalidIP, at+".IpAddress", "%s is in no subnet of network %s", a, n.label())
}

// SubnetOf is the subnet that holds an address, or nil.
func (n *HostComputeNetwork) SubnetOf(a netip.Addr) *Subnet {
	for _, s := range n.subnets() {
		if p, err := s.Prefix(); err == nil && p.Contains(a) {
			return s
		}
	}
	return nil
}

// label names the network in an error.
func (n *HostComputeNetwork) label() string {
	if n.Name != "" {
		return quote(n.Name)
	}
	return string(n.ID)
}

func (c IpConfig) validateIn(at string, s *Subnet, p netip.Prefix) error {
	if c.PrefixLength != 0 && int(c.PrefixLength) < p.Bits() {
		return invalid(ErrInvalidIP, at+".PrefixLength", "%d is shorter than the subnet's %d: leave it out", c.PrefixLength, p.Bits())
	}
	if c.IpAddress == "" {
		return nil
	}
	a, err := parseAddr(c.IpAddress)
	if err != nil {
		return invalid(ErrInvalidIP, at+".IpAddress", "%w", err)
	}
	if !p.Contains(a) {
		return invalid(ErrInvalidIP, at+".IpAddress", "%s is outside the subnet %s that IpSubnetId names", a, p)
	}
	for _, b := range s.IpSubnets {
		if q, err := b.Prefix(); err == nil && b.ID == c.IpSubnetId && !b.ID.IsZero() && !q.Contains(a) {
			return invalid(ErrInvalidIP, at+".IpAddress", "%s is outside the block %s that IpSubnetId names", a, q)
		}
	}
	if what := s.Reserved(a); what != "" {
		return invalid(ErrAddrInvalidOrReserved, at+".IpAddress", "%s is the %s of %s: choose another or leave it out", a, what, p)
	}
	return nil
}

// Reserved says what an address of the subnet is kept for, or nothing if it can be given out.
func (s *Subnet) Reserved(a netip.Addr) string {
	p, err := s.Prefix()
	if err != nil || !p.Contains(a) {
		return ""
	}
	gw, ok := s.Gateway()
	switch {
	case a == p.Addr():
		return "network address"
	case a.Is4() && a == lastAddr(p):
		return "broadcast address"
	case ok && a == gw && s.Flags&DoNotReserveGatewayAddress == 0:
		return "gateway"
	}
	return ""
}

// validateNextHops: on networks with our own switch a next hop outside every subnet can never be reached. Elsewhere custom
// gateways are normal.
func (e *HostComputeEndpoint) validateNextHops(n *HostComputeNetwork) error {
	if n.Type != NAT && n.Type != Internal && n.Type != Private || len(n.AllSubnets()) == 0 {
		return nil
	}
	for i, r := range e.Routes {
		_, via, err := r.Parse()
		if err != nil {
			return invalid(ErrInvalidEndpoint, indexed("Routes", i), "%w", err)
		}
		if !via.IsUnspecified() && n.SubnetOf(via) == nil {
			return invalid(ErrInvalidEndpoint, indexed("Routes", i)+".NextHop", "%s is in no subnet of network %s: it cannot be reached",
				via, n.label())
		}
	}
	return nil
}
