package hcn

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// This file holds what Bulkhead adds to the HCN schema. Everything has the prefix "Bulkhead.", so that it can never meet a
// future name of the schema; clients that know HCN alone see policies of an unknown type and leave them. The one addition
// without the prefix is the optional Scope of PortMapping (see PortMappingPolicySetting).

// Our endpoint policies.
const (
	// InterfaceName sets the name of the endpoint's interface in its compartment; without it the service picks eth0, eth1, …
	InterfaceName EndpointPolicyType = "Bulkhead.InterfaceName"
	// GatewayPriority decides which endpoint of a compartment owns the default routes: the highest wins, 0 is the default.
	GatewayPriority EndpointPolicyType = "Bulkhead.GatewayPriority"
	// Aliases are further DNS names of the endpoint on its network. "*.app" is every name below app.
	Aliases EndpointPolicyType = "Bulkhead.Aliases"
	// IncomingQOS caps what the endpoint receives, as QOS caps what it sends.
	IncomingQOS EndpointPolicyType = "Bulkhead.IncomingQOS"
)

// Exclusions is our network policy: addresses that are never given out unless a client asks for exactly them.
const Exclusions NetworkPolicyType = "Bulkhead.Exclusions"

// Macvlan is our network policy, for the type Transparent: its endpoints' interfaces are macvlan devices of the NIC and no ports of a
// switch. The host does not reach them, and nothing of ours sees their frames (ADR 24). Its settings are empty.
const Macvlan NetworkPolicyType = "Bulkhead.Macvlan"

// Macvlan tells that the network's endpoints are no ports of a switch.
func (n *HostComputeNetwork) Macvlan() bool {
	return slices.ContainsFunc(n.Policies, func(p NetworkPolicy) bool { return p.Type == Macvlan })
}

// bypassed names what is refused where no switch sees the frames, by the type of policy.
const bypassed = "its endpoints are macvlan devices (policy " + string(Macvlan) + ") whose frames no switch of ours sees: leave it out, or make the network without that policy"

// checkMacvlan refuses what only a switch can do.
func (n *HostComputeNetwork) checkMacvlan() error {
	if !n.Macvlan() {
		return nil
	}
	for i, p := range n.Policies {
		if p.Type == NetworkACL || p.Type == SetPolicy || p.Type == LayerConstraint {
			return invalid(ErrRequestUnsupported, policyPath(i), "policy %s has no effect on this network: %s", p.Type, bypassed)
		}
	}
	for path, s := range n.subnets() {
		if len(s.Policies) > 0 {
			return invalid(ErrRequestUnsupported, path+"."+policyPath(0), "policy %s has no effect on this network: %s", s.Policies[0].Type, bypassed)
		}
	}
	return nil
}

// checkOnMacvlan does so for an endpoint.
func (e *HostComputeEndpoint) checkOnMacvlan(n *HostComputeNetwork) error {
	if !n.Macvlan() {
		return nil
	}
	if e.Flags&DisableInterComputeCommunication != 0 {
		return invalid(ErrRequestUnsupported, "Flags", "DisableInterComputeCommunication has no effect on network %q: %s", n.Name, bypassed)
	}
	inside := []EndpointPolicyType{EncapOverhead, InterfaceParameters, L2Driver, InterfaceName, GatewayPriority, Aliases}
	for i, p := range e.Policies {
		if !slices.Contains(inside, p.Type) {
			return invalid(ErrRequestUnsupported, policyPath(i), "policy %s has no effect on network %q: %s", p.Type, n.Name, bypassed)
		}
	}
	return nil
}

// Multicast is our network policy, without settings: broadcast and multicast reach the network's endpoints on other hosts, too.
const Multicast NetworkPolicyType = "Bulkhead.Multicast"

// NetworkEncryption is our network policy: what endpoints on different hosts send each other is encrypted, or not sent.
const NetworkEncryption NetworkPolicyType = "Bulkhead.Encryption"

// EncryptionMethodWireGuard is the only method of NetworkEncryption.
const EncryptionMethodWireGuard = "WireGuard"

// NetworkEncryptionSetting belongs to NetworkEncryption.
type NetworkEncryptionSetting struct {
	EncryptionMethodType string
}

func (s NetworkEncryptionSetting) validate(path string) error {
	if s.EncryptionMethodType != EncryptionMethodWireGuard {
		return invalid(ErrInvalidPolicy, path+".EncryptionMethodType", "%s is not known for a network: WireGuard is the only method", quote(s.EncryptionMethodType))
	}
	return nil
}

// Encrypted tells that what the network's endpoints send to other hosts is encrypted.
func (n *HostComputeNetwork) Encrypted() bool {
	return slices.ContainsFunc(n.Policies, func(p NetworkPolicy) bool { return p.Type == NetworkEncryption })
}

// checkEncrypted refuses ways to other hosts that nobody has a key for.
func (n *HostComputeNetwork) checkEncrypted() error {
	if !n.Encrypted() {
		return nil
	}
	for i, p := range n.Policies {
		if p.Type == RemoteSubnetRoute {
			return invalid(ErrRequestUnsupported, policyPath(i), "RemoteSubnetRoute: the network is encrypted (policy %s), and routers that it could name have no key: "+
				"leave one of the two out", NetworkEncryption)
		}
	}
	return nil
}

// InterfaceNameSetting belongs to InterfaceName.
type InterfaceNameSetting struct {
	Name string
}

func (s InterfaceNameSetting) validate(path string) error {
	at := path + ".Name"
	switch {
	case s.Name == "":
		return invalid(ErrInvalidPolicy, at, "it is empty: give the interface a name or drop the policy")
	case len(s.Name) > 15:
		return invalid(ErrInvalidPolicy, at, "%s has %d bytes, Linux allows 15 for an interface", quote(s.Name), len(s.Name))
	case s.Name == "lo" || s.Name == "all" || s.Name == "default":
		return invalid(ErrInvalidPolicy, at, "%s has a meaning of its own in every compartment: choose another name", quote(s.Name))
	}
	return checkInterfaceText(at, s.Name)
}

// GatewayPrioritySetting belongs to GatewayPriority.
type GatewayPrioritySetting struct {
	Priority int
}

func (s GatewayPrioritySetting) validate(path string) error {
	if s.Priority < -1000 || s.Priority > 1000 {
		return invalid(ErrInvalidPolicy, path+".Priority", "%d is out of range: use -1000 to 1000", s.Priority)
	}
	return nil
}

// AliasesSetting belongs to Aliases.
type AliasesSetting struct {
	Names []string `json:",omitempty"`
}

func (s AliasesSetting) validate(path string) error {
	if err := checkCount(ErrInvalidPolicy, path+".Names", len(s.Names), 64); err != nil {
		return err
	}
	for i, n := range s.Names {
		// "*.app" answers for every name below app.
		if err := checkDomain(ErrInvalidPolicy, fmt.Sprintf("%s.Names[%d]", path, i), strings.TrimPrefix(n, "*.")); err != nil {
			return err
		}
	}
	return nil
}

// ExclusionsSetting belongs to Exclusions. A range is "first-last", both included.
type ExclusionsSetting struct {
	Prefixes []string `json:",omitempty"`
	Ranges   []string `json:",omitempty"`
}

// AddrRange is an inclusive range of addresses of one family.
type AddrRange struct {
	From, To netip.Addr
}

// Contains reports whether a is in the range.
func (r AddrRange) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// AddrRanges parses both lists.
func (s ExclusionsSetting) AddrRanges() ([]AddrRange, error) {
	var out []AddrRange
	for i, t := range s.Prefixes {
		p, err := parseAddrOrPrefix(t)
		if err != nil {
			return nil, fmt.Errorf("entry Prefixes[%d]: %w", i, err)
		}
		out = append(out, AddrRange{p.Masked().Addr(), lastAddr(p)})
	}
	for i, t := range s.Ranges {
		from, to, ok := strings.Cut(t, "-")
		a, errA := parseAddr(strings.TrimSpace(from))
		b, errB := parseAddr(strings.TrimSpace(to))
		if !ok || errA != nil || errB != nil || a.BitLen() != b.BitLen() || b.Less(a) {
			return nil, fmt.Errorf("entry Ranges[%d]: %s is not a range: write it like 10.0.0.10-10.0.0.20", i, quote(t))
		}
		out = append(out, AddrRange{a, b})
	}
	return out, nil
}

func (s ExclusionsSetting) validate(path string) error {
	if err := checkCount(ErrInvalidPolicy, path, len(s.Prefixes)+len(s.Ranges), maxListEntries); err != nil {
		return err
	}
	if _, err := s.AddrRanges(); err != nil {
		return invalid(ErrInvalidPolicy, path, "%w", err)
	}
	return nil
}

// IncomingQosSetting belongs to IncomingQOS. It caps what the container receives, in bytes (not bits) per second; 0 is no cap.
type IncomingQosSetting struct {
	MaximumIncomingBandwidthInBytes uint64
}

func (IncomingQosSetting) validate(string) error { return nil }

// RatePolicies are the policies that bound what an endpoint sends and receives, in bytes per second; 0 is no bound and needs none.
func RatePolicies(out, in uint64) []EndpointPolicy {
	var policies []EndpointPolicy
	if out > 0 {
		policies = append(policies, NewEndpointPolicy(QOS, QosPolicySetting{MaximumOutgoingBandwidthInBytes: out}))
	}
	if in > 0 {
		policies = append(policies, NewEndpointPolicy(IncomingQOS, IncomingQosSetting{MaximumIncomingBandwidthInBytes: in}))
	}
	return policies
}
