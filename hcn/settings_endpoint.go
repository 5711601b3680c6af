package hcn

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
)

// endpointSettings is the union of endpoint policies: which settings belong to which type.
var endpointSettings = map[EndpointPolicyType]settingsType{
	PortMapping:                 setting[PortMappingPolicySetting](),
	OutBoundNAT:                 setting[OutboundNatPolicySetting](),
	ACL:                         setting[AclPolicySetting](),
	TierAcl:                     setting[TierAclPolicySetting](),
	QOS:                         setting[QosPolicySetting](),
	L2Driver:                    setting[EmptySetting](),
	SDNRoute:                    setting[SDNRoutePolicySetting](),
	ProviderAddress:             setting[ProviderAddressPolicySetting](),
	L4Proxy:                     setting[L4ProxyPolicySetting](),
	L4WFPPROXY:                  setting[L4WfpProxyPolicySetting](),
	PortName:                    setting[PortnamePolicySetting](),
	EncapOverhead:               setting[EncapOverheadPolicySetting](),
	EndpointInterfaceConstraint: setting[InterfaceConstraintPolicySetting](),
	InterfaceParameters:         setting[InterfaceParametersPolicySetting](),
	EndpointVLAN:                setting[VlanPolicySetting](),
	Iov:                         setting[IovPolicySetting](),
	Encryption:                  setting[EncryptionPolicySetting](),
	InterfaceName:               setting[InterfaceNameSetting](),
	GatewayPriority:             setting[GatewayPrioritySetting](),
	Aliases:                     setting[AliasesSetting](),
	IncomingQOS:                 setting[IncomingQosSetting](),
}

// Protocol is an IP protocol number. It is a number on the wire; "TCP" and "UDP" are accepted.
type Protocol uint32

// The protocols that have ports.
const (
	ProtocolTCP  Protocol = 6
	ProtocolUDP  Protocol = 17
	ProtocolSCTP Protocol = 132
)

var protocolNames = flagNames{{6, "TCP"}, {17, "UDP"}, {132, "SCTP"}, {1, "ICMPv4"}, {2, "IGMP"}, {58, "ICMPv6"}}

func (p Protocol) String() string {
	for _, e := range protocolNames {
		if e.bit == uint32(p) {
			return e.name
		}
	}
	return strconv.FormatUint(uint64(p), 10)
}

// UnmarshalJSON reads a number or a name.
func (p *Protocol) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s, err := scalarText(b)
	if err == nil {
		if v, ok := protocolNames.bit(s); ok {
			*p = Protocol(v)
			return nil
		}
	}
	return Errorf(ErrInvalidPolicy, "Protocol %s is not known: use 6 for TCP or 17 for UDP", quote(string(b)))
}

// NatFlags is a mask of options of a port mapping or an outbound NAT.
type NatFlags uint32

// The NAT flags.
const (
	NatLocalRoutedVip NatFlags = 1 << iota
	NatIPv6
)

var natFlagNames = flagNames{{1, "LocalRoutedVip"}, {2, "IPv6"}}

func (f NatFlags) String() string { return natFlagNames.text(uint32(f)) }

// UnmarshalJSON reads a number, a name, or names joined by "," or "|".
func (f *NatFlags) UnmarshalJSON(b []byte) error {
	return parseFlagsJSON(f, natFlagNames, "Flags", ErrInvalidPolicy, b)
}

// EmptySetting belongs to policies that have no settings.
type EmptySetting struct{}

func (EmptySetting) validate(string) error { return nil }

// PortMappingPolicySetting publishes a port: packets to VIP:ExternalPort on the host go to InternalPort of the endpoint.
type PortMappingPolicySetting struct {
	Protocol     Protocol
	InternalPort uint16
	ExternalPort uint16   `json:",omitempty"` // 0: the service picks one and reports it
	VIP          string   `json:",omitempty"` // "": all host addresses; 127.0.0.1 and ::1: the host itself only
	Flags        NatFlags `json:",omitempty"`
	Scope        string   `json:",omitempty"` // ours: ScopeLAN leaves out loopback when VIP is ""
}

// ScopeLAN publishes on every host address except the loopback ones.
const ScopeLAN = "lan"

func (s PortMappingPolicySetting) validate(path string) error {
	if s.Protocol != ProtocolTCP && s.Protocol != ProtocolUDP {
		return invalid(ErrInvalidPolicy, path+".Protocol", "%d cannot be published: use 6 for TCP or 17 for UDP", uint32(s.Protocol))
	}
	if s.InternalPort == 0 {
		return invalid(ErrInvalidInternalPort, path+".InternalPort", "set it to the port that the container listens on")
	}
	if err := checkFlags(ErrInvalidPolicy, path+".Flags", uint32(s.Flags), natFlagNames); err != nil {
		return err
	}
	if s.Scope != "" && s.Scope != ScopeLAN {
		return invalid(ErrInvalidPolicy, path+".Scope", `%s is not known: use "lan" or leave it out`, quote(s.Scope))
	}
	if s.VIP == "" {
		return nil
	}
	if s.Scope != "" {
		return invalid(ErrInvalidPolicy, path+".Scope", "it cannot be given beside VIP: the address says already who can reach the port")
	}
	a, err := parseAddr(s.VIP)
	if err != nil {
		return invalid(ErrInvalidPolicy, path+".VIP", "%w", err)
	}
	if a.IsUnspecified() || a.IsMulticast() {
		return invalid(ErrInvalidPolicy, path+".VIP", `%s is not an address to listen on: leave VIP out for all addresses`, a)
	}
	if s.Flags&NatIPv6 != 0 && a.Is4() {
		return invalid(ErrInvalidPolicy, path+".VIP", "%s is IPv4 but Flags says IPv6: drop one of them", a)
	}
	return nil
}

// Addr is the address to publish on; ok is false when it is all of them.
func (s PortMappingPolicySetting) Addr() (a netip.Addr, ok bool) {
	a, err := parseAddr(s.VIP)
	return a, err == nil
}

// IPv6Only reports whether a mapping on all addresses is meant for IPv6 alone. Without the flag it serves both families.
func (s PortMappingPolicySetting) IPv6Only() bool { return s.VIP == "" && s.Flags&NatIPv6 != 0 }

// Overlaps reports whether both claim the same port at an address they share. A port still to be picked overlaps nothing.
func (s PortMappingPolicySetting) Overlaps(o PortMappingPolicySetting) bool {
	if s.Protocol != o.Protocol || s.ExternalPort != o.ExternalPort || s.ExternalPort == 0 {
		return false
	}
	a, aOne := s.Addr()
	b, bOne := o.Addr()
	switch {
	case aOne && bOne:
		return a == b
	case aOne:
		return o.covers(a)
	case bOne:
		return s.covers(b)
	}
	return true
}

// Divides reports whether two mappings of one endpoint at all addresses, one of which is meant for IPv6 alone, divide a port: the other has
// the IPv4 addresses then.
func (s PortMappingPolicySetting) Divides(o PortMappingPolicySetting) bool {
	return s.VIP == "" && o.VIP == "" && s.IPv6Only() != o.IPv6Only() && s.Protocol == o.Protocol && s.ExternalPort == o.ExternalPort &&
		(s.ExternalPort != 0 || s.InternalPort == o.InternalPort)
}

// Repeats reports whether two mappings of one endpoint publish the same port twice.
func (s PortMappingPolicySetting) Repeats(o PortMappingPolicySetting) bool {
	return s.Overlaps(o) && !s.Divides(o)
}

// covers reports whether a mapping on all addresses includes a.
func (s PortMappingPolicySetting) covers(a netip.Addr) bool {
	return (s.Scope == "" || !a.IsLoopback()) && (!s.IPv6Only() || a.Is6())
}

// Policy wraps the settings.
func (s PortMappingPolicySetting) Policy() EndpointPolicy { return NewEndpointPolicy(PortMapping, s) }

// QosPolicySetting caps what leaves the container, in bytes (not bits) per second. 0 is no cap.
type QosPolicySetting struct {
	MaximumOutgoingBandwidthInBytes uint64
}

func (QosPolicySetting) validate(string) error { return nil }

// SDNRoutePolicySetting sends an endpoint's packets to a prefix to NextHop, whatever the compartment's routes say.
type SDNRoutePolicySetting struct {
	DestinationPrefix        string `json:",omitempty"`
	NextHop                  string `json:",omitempty"`
	NeedEncap                bool   `json:",omitempty"`
	AutomaticEndpointMonitor bool   `json:",omitempty"`
}

func (s SDNRoutePolicySetting) validate(path string) error {
	// Host bits may be set: clients send 169.254.169.254/24 and mean the network.
	p, err := parsePrefix(s.DestinationPrefix)
	if err != nil {
		return invalid(ErrInvalidPolicy, path+".DestinationPrefix", "%w", err)
	}
	if s.NextHop == "" {
		return nil
	}
	a, err := parseAddr(s.NextHop)
	if err != nil {
		return invalid(ErrInvalidPolicy, path+".NextHop", "%w", err)
	}
	if a.Is4() != p.Addr().Is4() {
		return invalid(ErrInvalidPolicy, path+".NextHop", "%s is not of the family of %s", a, p)
	}
	return nil
}

func (SDNRoutePolicySetting) leadsNowhere(path string) error {
	return invalid(ErrInvalidPolicy, path+".NextHop", "there is none: give one, or NeedEncap for a route to the host")
}

// validateOn refuses what a route cannot say on a network.
func (s SDNRoutePolicySetting) validateOn(n *HostComputeNetwork, path string) error {
	overlay := n.Type == Overlay
	switch hop, _ := parseAddr(s.NextHop); {
	case s.AutomaticEndpointMonitor:
		return invalid(ErrRequestUnsupported, path+".AutomaticEndpointMonitor", "nobody asks here whether a next hop lives: leave it out")
	case s.NextHop == "" && !s.NeedEncap:
		return s.leadsNowhere(path)
	case s.NextHop == "" && overlay && !n.HasHostRoute():
		return invalid(ErrInvalidPolicy, path+".NextHop", `there is none, and network %s has no way to the host: add the policy {"Type":"HostRoute","Settings":{}} to it, or give a next hop`, n.label())
	case hop.IsValid() && !overlay && !s.NeedEncap && (hop.IsLoopback() || hop.IsMulticast() || hop.IsUnspecified()):
		return invalid(ErrInvalidPolicy, path+".NextHop", "%s is no address of one machine on a LAN: give that of the one that takes the packets", hop)
	}
	return nil
}

// ProviderAddressPolicySetting is an address of the underlay: the host's own, or that of the host a remote endpoint is on.
type ProviderAddressPolicySetting struct {
	ProviderAddress string `json:",omitempty"`
}

func (s ProviderAddressPolicySetting) validate(path string) error {
	if _, err := parseAddr(s.ProviderAddress); err != nil {
		return invalid(ErrInvalidPolicy, path+".ProviderAddress", "%w", err)
	}
	return nil
}

// PortnamePolicySetting is a friendly name of the switch port.
type PortnamePolicySetting struct {
	Name string `json:",omitempty"`
}

func (s PortnamePolicySetting) validate(path string) error {
	if s.Name == "" {
		return invalid(ErrInvalidPolicy, path+".Name", "it is empty: give the port a name or drop the policy")
	}
	// The name becomes an alternative name of a Linux interface, which has this limit.
	if len(s.Name) > 127 {
		return invalid(ErrInvalidPolicy, path+".Name", "it has %d bytes, 127 is the limit", len(s.Name))
	}
	return checkInterfaceText(path+".Name", s.Name)
}

// EncapOverheadPolicySetting takes bytes off the MTU.
type EncapOverheadPolicySetting struct {
	Overhead uint16 `json:",omitempty"`
}

func (s EncapOverheadPolicySetting) validate(path string) error {
	if s.Overhead > 512 {
		return invalid(ErrInvalidPolicy, path+".Overhead", "%d bytes leave no room for packets: 512 is the limit", s.Overhead)
	}
	return nil
}

// InterfaceConstraintPolicySetting picks a host interface.
type InterfaceConstraintPolicySetting struct {
	InterfaceGuid        GUID   `json:",omitempty"`
	InterfaceLuid        uint64 `json:",omitempty"`
	InterfaceIndex       uint32 `json:",omitempty"`
	InterfaceMediaType   uint32 `json:",omitempty"`
	InterfaceAlias       string `json:",omitempty"`
	InterfaceDescription string `json:",omitempty"`
}

func (s InterfaceConstraintPolicySetting) validate(path string) error {
	if err := checkText(ErrInvalidPolicy, path+".InterfaceAlias", s.InterfaceAlias); err != nil {
		return err
	}
	return checkText(ErrInvalidPolicy, path+".InterfaceDescription", s.InterfaceDescription)
}

// InterfaceParametersPolicySetting sets the MTU.
type InterfaceParametersPolicySetting struct {
	Mtu uint16 `json:",omitempty"`
}

func (s InterfaceParametersPolicySetting) validate(path string) error {
	// 68 is the least that IPv4 allows (RFC 791); an endpoint with an IPv6 address needs 1280, which ValidateFor checks.
	if s.Mtu != 0 && s.Mtu < 68 {
		return invalid(ErrInvalidPolicy, path+".Mtu", "%d is below 68, the least that IPv4 works with", s.Mtu)
	}
	return nil
}

// VlanPolicySetting is an 802.1Q tag.
type VlanPolicySetting struct {
	IsolationId uint32
}

func (s VlanPolicySetting) validate(path string) error {
	if s.IsolationId < 1 || s.IsolationId > 4094 {
		return invalid(ErrInvalidPolicy, path+".IsolationId", "%d is not a VLAN: use 1 to 4094", s.IsolationId)
	}
	return nil
}

// IovPolicySetting asks for a virtual function of the NIC.
type IovPolicySetting struct {
	IovOffloadWeight    uint32 `json:",omitempty"`
	QueuePairsRequested uint32 `json:",omitempty"`
	InterruptModeration uint32 `json:",omitempty"`
}

func (s IovPolicySetting) validate(path string) error {
	if s.IovOffloadWeight > 100 {
		return invalid(ErrInvalidPolicy, path+".IovOffloadWeight", "%d is above 100", s.IovOffloadWeight)
	}
	return nil
}

// EncryptionPolicySetting protects traffic between endpoints.
type EncryptionPolicySetting struct {
	EncryptionMethodType  string            `json:",omitempty"`
	AuthenticationMethods []json.RawMessage `json:",omitempty"`
	Name                  string            `json:",omitempty"`
	Endpoints1            json.RawMessage   `json:",omitempty"`
	Endpoints2            json.RawMessage   `json:",omitempty"`
	ProtocolType          json.RawMessage   `json:",omitempty"`
	Endpoint1Ports        json.RawMessage   `json:",omitempty"`
	Endpoint2Ports        json.RawMessage   `json:",omitempty"`
}

func (s EncryptionPolicySetting) validate(path string) error {
	if s.EncryptionMethodType != "" && s.EncryptionMethodType != "Ipsec" {
		return invalid(ErrInvalidPolicy, path+".EncryptionMethodType", "%s is not known: Ipsec is the only method", quote(s.EncryptionMethodType))
	}
	return nil
}

func optionalAddr(path, s string) error {
	if s == "" {
		return nil
	}
	if _, err := parseAddr(s); err != nil {
		return invalid(ErrInvalidPolicy, path, "%w", err)
	}
	return nil
}

func addrsOrPrefixes(path string, list []string) error {
	if err := checkCount(ErrInvalidPolicy, path, len(list), maxListEntries); err != nil {
		return err
	}
	for i, s := range list {
		if _, err := parseAddrOrPrefix(s); err != nil {
			return invalid(ErrInvalidPolicy, fmt.Sprintf("%s[%d]", path, i), "%w", err)
		}
	}
	return nil
}
