package hcn

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// OutboundNatPolicySetting hides the endpoint behind an address of the host when it talks to others than Exceptions, or, with
// Destinations, when it talks to those and to none else.
type OutboundNatPolicySetting struct {
	VirtualIP        string   `json:",omitempty"` // "": the address of the interface that a packet leaves by
	Exceptions       []string `json:",omitempty"`
	Destinations     []string `json:",omitempty"`
	Flags            NatFlags `json:",omitempty"`
	MaxPortPoolUsage uint16   `json:",omitempty"`
}

// UnmarshalJSON also takes ExceptionList, the v1 name that some clients send inside v2 documents.
func (s *OutboundNatPolicySetting) UnmarshalJSON(b []byte) error {
	type plain OutboundNatPolicySetting
	w := struct {
		plain
		ExceptionList []string
		VIP           string
	}{}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*s = OutboundNatPolicySetting(w.plain)
	s.Exceptions = append(s.Exceptions, w.ExceptionList...)
	if s.VirtualIP == "" {
		s.VirtualIP = w.VIP
	}
	return nil
}

func (s OutboundNatPolicySetting) validate(path string) error {
	if err := checkFlags(ErrInvalidPolicy, path+".Flags", uint32(s.Flags), natFlagNames); err != nil {
		return err
	}
	if err := optionalAddr(path+".VirtualIP", s.VirtualIP); err != nil {
		return err
	}
	if err := addrsOrPrefixes(path+".Exceptions", s.Exceptions); err != nil {
		return err
	}
	if err := addrsOrPrefixes(path+".Destinations", s.Destinations); err != nil {
		return err
	}
	return s.validateFamily(path)
}

// validateFamily refuses entries of a family that the policy says nothing about.
func (s OutboundNatPolicySetting) validateFamily(path string) error {
	vip, hasVIP := s.Addr()
	if hasVIP && s.Flags&NatIPv6 != 0 && vip.Is4() {
		return invalid(ErrInvalidPolicy, path+".VirtualIP", "%s is IPv4 but Flags says IPv6: drop one of them", vip)
	}
	if !hasVIP && s.Flags&NatIPv6 == 0 {
		return nil
	}
	v4 := hasVIP && vip.Is4()
	for name, list := range map[string][]string{"Exceptions": s.Exceptions, "Destinations": s.Destinations} {
		for i, text := range list {
			if p, err := parseAddrOrPrefix(text); err == nil && p.Addr().Is4() != v4 {
				return invalid(ErrInvalidPolicy, fmt.Sprintf("%s.%s[%d]", path, name, i),
					"%s is not of the family that VirtualIP or Flags names: write it into a policy of its own", p)
			}
		}
	}
	return nil
}

// Addr is the address to hide behind; ok is false when it is that of the outgoing interface.
func (s OutboundNatPolicySetting) Addr() (a netip.Addr, ok bool) {
	a, err := parseAddr(s.VirtualIP)
	return a, err == nil
}

// Serves reports whether the policy says anything about a family: the one that its flags or its VirtualIP name, else those that
// its lists name, else both.
func (s OutboundNatPolicySetting) Serves(v4 bool) bool {
	if s.Flags&NatIPv6 != 0 {
		return !v4
	}
	if a, ok := s.Addr(); ok {
		return a.Is4() == v4
	}
	if len(s.Exceptions) == 0 && len(s.Destinations) == 0 {
		return true
	}
	return len(s.ExceptionsOf(v4)) > 0 || len(s.DestinationsOf(v4)) > 0
}

// General reports whether the policy is about all destinations but its exceptions.
func (s OutboundNatPolicySetting) General() bool { return len(s.Destinations) == 0 }

// ExceptionsOf are the exceptions of one family, masked.
func (s OutboundNatPolicySetting) ExceptionsOf(v4 bool) []netip.Prefix {
	return ofFamily(s.Exceptions, v4)
}

// DestinationsOf are the destinations of one family, masked.
func (s OutboundNatPolicySetting) DestinationsOf(v4 bool) []netip.Prefix {
	return ofFamily(s.Destinations, v4)
}

func ofFamily(list []string, v4 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range list {
		if p, err := parseAddrOrPrefix(text); err == nil && p.Addr().Is4() == v4 {
			out = append(out, p.Masked())
		}
	}
	return out
}

// overlaps reports whether both are about all destinations of a family: nothing would decide between them.
func (s OutboundNatPolicySetting) overlaps(o OutboundNatPolicySetting) bool {
	return s.General() && o.General() && (s.Serves(true) && o.Serves(true) || s.Serves(false) && o.Serves(false))
}

// Plain reports whether this is masquerading of everything, with nothing special asked for.
func (s OutboundNatPolicySetting) Plain() bool {
	return s.VirtualIP == "" && len(s.Exceptions) == 0 && len(s.Destinations) == 0 && s.Flags == 0 && s.MaxPortPoolUsage == 0
}

// Policy wraps the settings.
func (s OutboundNatPolicySetting) Policy() EndpointPolicy { return NewEndpointPolicy(OutBoundNAT, s) }
