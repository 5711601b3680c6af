package hcn

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// RuleMatch says which packets a rule is about, parsed. Which side Local and Remote are is as the rule was written: see
// docs/policy.md for rules that name address sets.
type RuleMatch struct {
	// Protocols by number; none stands for any.
	Protocols     []uint8
	Local, Remote AddressList
	// The ports are the endpoint's and the peer's, always.
	LocalPorts, RemotePorts []PortRange
}

// AddressList is the value of an address field: prefixes, masked, and the Ids of address sets. Both empty: any address.
type AddressList struct {
	Prefixes []netip.Prefix
	Sets     []string
}

// PortRange holds both ends.
type PortRange struct{ First, Last uint16 }

// Match parses the rule's fields. The document was validated, so an error is one of the program.
func (s AclPolicySetting) Match() (RuleMatch, error) { return s.match().parse() }

func (s AclPolicySetting) match() aclMatch {
	return aclMatch{s.Protocols, s.LocalAddresses, s.RemoteAddresses, s.LocalPorts, s.RemotePorts}
}

// Match parses the rule's fields.
func (r TierAclRule) Match() (RuleMatch, error) { return r.match().parse() }

func (r TierAclRule) match() aclMatch {
	return aclMatch{r.Protocols, r.LocalAddresses, r.RemoteAddresses, r.LocalPorts, r.RemotePorts}
}

// anyProtocol in a list of protocols makes it match all of them.
const anyProtocol = 256

func (m aclMatch) parse() (RuleMatch, error) {
	var r RuleMatch
	var err error
	if r.Protocols, err = parseProtocols(m.protocols); err != nil {
		return r, fmt.Errorf("read Protocols: %w", err)
	}
	if r.LocalPorts, err = parsePorts(m.localPorts); err != nil {
		return r, fmt.Errorf("read LocalPorts: %w", err)
	}
	if r.RemotePorts, err = parsePorts(m.remotePorts); err != nil {
		return r, fmt.Errorf("read RemotePorts: %w", err)
	}
	r.Local, r.Remote = parseAddressList(m.localAddresses), parseAddressList(m.remoteAddresses)
	return r, nil
}

func parseProtocols(s string) ([]uint8, error) {
	var out []uint8
	for _, p := range commaList(s) {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n > anyProtocol {
			return nil, fmt.Errorf("%s is not a protocol number: use 1, 2, 6, 17, 58 or 256 for any", quote(p))
		}
		if n == anyProtocol {
			return nil, nil
		}
		out = append(out, uint8(n))
	}
	return out, nil
}

func parsePorts(s string) ([]PortRange, error) {
	var out []PortRange
	for _, e := range commaList(s) {
		lo, hi, isRange := strings.Cut(e, "-")
		if !isRange {
			hi = lo
		}
		a, errA := strconv.ParseUint(strings.TrimSpace(lo), 10, 16)
		b, errB := strconv.ParseUint(strings.TrimSpace(hi), 10, 16)
		if errA != nil || errB != nil || a > b {
			return nil, fmt.Errorf("%s is not a port or a range like 80-90", quote(e))
		}
		out = append(out, PortRange{uint16(a), uint16(b)})
	}
	return out, nil
}

func parseAddressList(s string) AddressList {
	var a AddressList
	for _, e := range commaList(s) {
		if p, err := parseAddrOrPrefix(e); err == nil {
			a.Prefixes = append(a.Prefixes, p.Masked())
		} else {
			a.Sets = append(a.Sets, e)
		}
	}
	return a
}

// Prefixes are the addresses of a plain set, masked, in the order of the document.
func (s SetPolicySetting) Prefixes() ([]netip.Prefix, error) {
	if s.PolicyType != SetPolicyTypeIpSet {
		return nil, nil
	}
	list := commaList(s.Values)
	out := make([]netip.Prefix, len(list))
	for i, v := range list {
		p, err := parseAddrOrPrefix(v)
		if err != nil {
			return nil, fmt.Errorf("set %s, entry %d: %w", quote(s.Id), i+1, err)
		}
		out[i] = p.Masked()
	}
	return out, nil
}

// Members are the Ids of the plain sets that a nested set consists of.
func (s SetPolicySetting) Members() []string {
	if s.PolicyType != SetPolicyTypeNestedIpSet {
		return nil
	}
	return commaList(s.Values)
}
