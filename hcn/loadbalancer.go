package hcn

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// LoadBalancerFlags is a mask of load balancer options.
type LoadBalancerFlags uint32

// The load balancer flags.
const (
	EnableDirectServerReturn LoadBalancerFlags = 1 << iota
	LoadBalancerIPv6
)

var loadBalancerFlagNames = flagNames{{1, "EnableDirectServerReturn"}, {2, "IPv6"}}

func (f LoadBalancerFlags) String() string { return loadBalancerFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *LoadBalancerFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, loadBalancerFlagNames, "Flags", ErrInvalidParameter, b)
}

// PortMappingFlags is a mask of options of a load balancer's port.
type PortMappingFlags uint32

// The flags of a load balancer's port.
const (
	EnableInternalLoadBalancer PortMappingFlags = 1 << iota
	LocalRoutedVip
	UseMux
	EnablePreserveDip
	VipExternalIp
)

var portMappingFlagNames = flagNames{
	{1, "EnableInternalLoadBalancer"},
	{2, "LocalRoutedVip"},
	{4, "UseMux"},
	{8, "EnablePreserveDip"},
	{16, "VipExternalIp"},
	{4, "NotUsed"}, // the schema's name for UseMux
}

func (f PortMappingFlags) String() string { return portMappingFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *PortMappingFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, portMappingFlagNames, "PortMappings.Flags", ErrInvalidParameter, b)
}

// DistributionType says what a back end is chosen by. It is a number on the wire.
type DistributionType uint8

// The distribution types.
const (
	DistributionNone DistributionType = iota // each connection by its five-tuple
	DistributionSourceIPProtocol
	DistributionSourceIP
)

var distributionNames = names{"None", "SourceIPProtocol", "SourceIP"}

func (t DistributionType) String() string { return distributionNames.text(int(t)) }

// UnmarshalJSON reads a name in any letter case, or the number.
func (t *DistributionType) UnmarshalJSON(b []byte) error {
	return parseEnumJSON(t, distributionNames, "PortMappings.DistributionType", ErrInvalidParameter, b)
}

// LoadBalancerPortMapping is one port of a load balancer.
type LoadBalancerPortMapping struct {
	Protocol         Protocol         `json:",omitempty"`
	InternalPort     uint16           `json:",omitempty"`
	ExternalPort     uint16           `json:",omitempty"`
	DistributionType DistributionType `json:",omitempty"`
	Flags            PortMappingFlags `json:",omitempty"`
}

// External is the port at the virtual address: the internal one where none is given.
func (m *LoadBalancerPortMapping) External() uint16 {
	if m.ExternalPort == 0 {
		return m.InternalPort
	}
	return m.ExternalPort
}

// Behind is the port that back ends see: that of the virtual address where packets are delivered as they are.
func (m *LoadBalancerPortMapping) Behind() uint16 {
	if m.Flags&EnablePreserveDip != 0 {
		return m.External()
	}
	return m.InternalPort
}

// Opens tells that the port is for more than the endpoints of the network: for the host itself, and for who comes to it from outside.
func (m *LoadBalancerPortMapping) Opens() bool {
	return m.Flags&(EnableInternalLoadBalancer|EnablePreserveDip) == 0
}

// HostComputeLoadBalancer spreads connections to virtual addresses over endpoints.
type HostComputeLoadBalancer struct {
	ID                   GUID                      `json:",omitempty"`
	Owner                string                    `json:",omitempty"`
	Name                 string                    `json:",omitempty"`
	Version              uint64                    `json:",omitempty"`
	HostComputeNetwork   GUID                      `json:",omitempty"`
	HostComputeEndpoints []GUID                    `json:",omitempty"`
	SourceVIP            string                    `json:",omitempty"`
	FrontendVIPs         []string                  `json:",omitempty"`
	PortMappings         []LoadBalancerPortMapping `json:",omitempty"`
	Flags                LoadBalancerFlags         `json:",omitempty"`
	AdditionalParams     json.RawMessage           `json:",omitempty"`
	Health               *Health                   `json:",omitempty"`
	State                uint16                    `json:",omitempty"`
	SchemaVersion        SchemaVersion             `json:",omitzero"`
}

// HostOnlyParams are AdditionalParams with our one addition: on a network of a cluster the load balancer is this host's alone, and may
// have services and a name that those of other hosts have, too. It is for who makes the same one on each host.
const HostOnlyParams = `{"Bulkhead.HostOnly":true}`

// HostOnly tells that no other host is to know of the load balancer.
func (l *HostComputeLoadBalancer) HostOnly() bool {
	if len(l.AdditionalParams) == 0 {
		return false
	}
	var p struct {
		HostOnly bool `json:"Bulkhead.HostOnly"`
	}
	return json.Unmarshal(l.AdditionalParams, &p) == nil && p.HostOnly
}

// Clone makes an independent copy.
func (l *HostComputeLoadBalancer) Clone() *HostComputeLoadBalancer {
	if l == nil {
		return nil
	}
	c := *l
	c.HostComputeEndpoints = slices.Clone(l.HostComputeEndpoints)
	c.FrontendVIPs = slices.Clone(l.FrontendVIPs)
	c.PortMappings = slices.Clone(l.PortMappings)
	c.AdditionalParams = slices.Clone(l.AdditionalParams)
	c.Health = l.Health.clone()
	return &c
}

// Validate checks a load balancer: first the schema's rules, then that it is enforced.
func (l *HostComputeLoadBalancer) Validate() error {
	if err := l.validateSchema(); err != nil {
		return err
	}
	return l.checkSupport()
}

// Defaults gives what the document leaves open.
func (l *HostComputeLoadBalancer) Defaults() {
	for i := range l.PortMappings {
		l.PortMappings[i].ExternalPort = l.PortMappings[i].External()
	}
	if l.SchemaVersion.Major == 0 {
		l.SchemaVersion = V2()
	}
}

// Ignored names the members that say nothing, and why. Clients have to send an InternalPort, and with EnablePreserveDip nothing is
// translated: Windows takes another port there, as does this.
func (l *HostComputeLoadBalancer) Ignored() (out []string) {
	for i := range l.PortMappings {
		if m := &l.PortMappings[i]; m.Behind() != m.InternalPort {
			out = append(out, fmt.Sprintf("%s.InternalPort (EnablePreserveDip: back ends see port %d)", indexed("PortMappings", i), m.Behind()))
		}
	}
	return out[:min(len(out), maxUnknown)]
}

// VIPs are the virtual addresses of a document that is valid.
func (l *HostComputeLoadBalancer) VIPs() []netip.Addr {
	var out []netip.Addr
	for _, s := range l.FrontendVIPs {
		if a, err := parseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func (l *HostComputeLoadBalancer) validateSchema() error {
	const code = ErrInvalidParameter
	if err := checkName(code, l.Name); err != nil {
		return err
	}
	if err := checkText(code, "Owner", l.Owner); err != nil {
		return err
	}
	if err := checkOpaque(code, l.AdditionalParams); err != nil {
		return err
	}
	if err := checkFlags(code, "Flags", uint32(l.Flags), loadBalancerFlagNames); err != nil {
		return err
	}
	if err := checkCount(code, "HostComputeEndpoints", len(l.HostComputeEndpoints), maxBackends); err != nil {
		return err
	}
	for i, id := range l.HostComputeEndpoints {
		if id.IsZero() {
			return invalid(ErrEndpointNotFound, indexed("HostComputeEndpoints", i), "it is empty")
		}
	}
	if err := checkCount(code, "FrontendVIPs", len(l.FrontendVIPs), maxListEntries); err != nil {
		return err
	}
	for i, v := range l.FrontendVIPs {
		if _, err := parseAddr(v); err != nil {
			return invalid(ErrInvalidIP, indexed("FrontendVIPs", i), "%w", err)
		}
	}
	if err := l.checkVIPs(); err != nil {
		return err
	}
	if l.SourceVIP != "" {
		a, err := parseAddr(l.SourceVIP)
		if err != nil {
			return invalid(ErrInvalidIP, "SourceVIP", "%w", err)
		}
		if why := unfitVIP(a); why != "" {
			return invalid(ErrInvalidIP, "SourceVIP", "%s is %s: give an address of one host, or leave it out", a, why)
		}
	}
	return l.validatePorts()
}

func (l *HostComputeLoadBalancer) validatePorts() error {
	if len(l.PortMappings) == 0 {
		return invalid(ErrInvalidParameter, "PortMappings", "there is none: give at least one")
	}
	if err := checkCount(ErrInvalidParameter, "PortMappings", len(l.PortMappings), maxListEntries); err != nil {
		return err
	}
	type tuple struct {
		protocol Protocol
		port     uint16
	}
	seen := map[tuple]bool{}
	for i, m := range l.PortMappings {
		at := indexed("PortMappings", i)
		if m.Protocol != ProtocolTCP && m.Protocol != ProtocolUDP {
			return invalid(ErrInvalidPolicy, at+".Protocol", "%d cannot be balanced: use 6 for TCP or 17 for UDP", uint32(m.Protocol))
		}
		if m.InternalPort == 0 {
			return invalid(ErrInvalidInternalPort, at+".InternalPort", "set it to the port that the back ends listen on")
		}
		if err := checkFlags(ErrInvalidParameter, at+".Flags", uint32(m.Flags), portMappingFlagNames); err != nil {
			return err
		}
		external := m.External()
		if seen[tuple{m.Protocol, external}] {
			return invalid(ErrPortAlreadyExists, at, "port %d/%s is in the list twice", external, m.Protocol)
		}
		seen[tuple{m.Protocol, external}] = true
	}
	return l.checkServices()
}

// checkServices bounds what the lists make together: each VIP has each port, and each of those all back ends.
func (l *HostComputeLoadBalancer) checkServices() error {
	services := max(1, len(l.FrontendVIPs)) * len(l.PortMappings)
	if services > maxServices {
		return invalid(ErrInvalidParameter, "PortMappings", "%d ports at %d FrontendVIPs are %d services, %d is the limit: make several load balancers",
			len(l.PortMappings), len(l.FrontendVIPs), services, maxServices)
	}
	if n := services * len(l.HostComputeEndpoints); n > maxServed {
		return invalid(ErrInvalidParameter, "HostComputeEndpoints", "%d back ends of %d services (PortMappings at FrontendVIPs) are %d, %d is the limit: make several load balancers",
			len(l.HostComputeEndpoints), services, n, maxServed)
	}
	return nil
}

// checkVIPs refuses addresses that cannot be a service's.
func (l *HostComputeLoadBalancer) checkVIPs() error {
	seen := map[netip.Addr]bool{}
	for i, a := range l.VIPs() {
		at := indexed("FrontendVIPs", i)
		if why := unfitVIP(a); why != "" {
			return invalid(ErrInvalidIP, at, "%s is %s: give an address that a service can have", a, why)
		}
		if l.Flags&LoadBalancerIPv6 != 0 && a.Is4() {
			return invalid(ErrInvalidIP, at, "%s is an IPv4 address, and Flags say IPv6: leave the flag out, or give an IPv6 address", a)
		}
		if seen[a] {
			return invalid(ErrPortAlreadyExists, at, "%s is in the list twice", a)
		}
		seen[a] = true
	}
	return nil
}

// unfitVIP says what an address is that no service can have; "" for one that it can.
func unfitVIP(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "no address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "an address of many"
	case a.Is6() && a.IsLinkLocalUnicast():
		return "a link-local address"
	}
	return ""
}

// checkSupport refuses what Validate found correct but nothing enforces.
func (l *HostComputeLoadBalancer) checkSupport() error {
	for i, m := range l.PortMappings {
		at := indexed("PortMappings", i) + ".Flags"
		internal, keep := m.Flags&EnableInternalLoadBalancer != 0, m.Flags&EnablePreserveDip != 0
		if len(l.FrontendVIPs) == 0 {
			switch {
			case internal:
				return invalid(ErrInvalidPolicy, at, "EnableInternalLoadBalancer is for endpoints of the network alone, and without FrontendVIPs the host's own addresses are meant: "+
					"leave it out, or give a virtual address")
			case keep:
				return invalid(ErrRequestUnsupported, at, "EnablePreserveDip delivers packets as they are, and a back end cannot have the host's own addresses: leave it out, or give a virtual address")
			}
		}
		for _, f := range []PortMappingFlags{LocalRoutedVip, VipExternalIp} {
			switch {
			case m.Flags&f == 0:
			case internal:
				return invalid(ErrInvalidPolicy, at, "EnableInternalLoadBalancer is for endpoints of the network alone, and %s is for others, too: leave one of them out", f)
			case keep:
				return invalid(ErrRequestUnsupported, at, "%s with EnablePreserveDip is not enforced: packets of the host and of the outside are delivered to the back end's address only. "+
					"Leave one of them out", f)
			}
		}
		if m.Flags&UseMux != 0 && !keep {
			return invalid(ErrRequestUnsupported, at, "UseMux means nothing without EnablePreserveDip: no multiplexer stands before this host, leave it out")
		}
	}
	return nil
}
