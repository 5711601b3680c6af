package hcn

import (
	"strconv"
	"strings"
)

// ActionType is what a rule does with a packet.
type ActionType string

// The actions. Pass belongs to tiers only: it goes on to the next tier.
const (
	ActionTypeAllow ActionType = "Allow"
	ActionTypeBlock ActionType = "Block"
	ActionTypePass  ActionType = "Pass"
)

// UnmarshalJSON reads a name in any letter case, or the number.
func (a *ActionType) UnmarshalJSON(b []byte) error {
	return parseWordJSON(a, names{"Allow", "Block", "Pass"}, "Action", b)
}

// DirectionType is seen from the endpoint.
type DirectionType string

// The directions.
const (
	DirectionTypeIn  DirectionType = "In"
	DirectionTypeOut DirectionType = "Out"
)

// UnmarshalJSON reads a name in any letter case, or the number.
func (d *DirectionType) UnmarshalJSON(b []byte) error {
	return parseWordJSON(d, names{"In", "Out"}, "Direction", b)
}

// RuleType says where a rule acts.
type RuleType string

// The rule types. A Switch rule sits at the port, out of the container's reach; a Host rule is one of the host's firewall.
const (
	RuleTypeHost   RuleType = "Host"
	RuleTypeSwitch RuleType = "Switch"
)

// UnmarshalJSON reads a name in any letter case, or the number.
func (r *RuleType) UnmarshalJSON(b []byte) error {
	return parseWordJSON(r, names{"Host", "Switch"}, "RuleType", b)
}

// parseWordJSON is the body of UnmarshalJSON of an enum that is kept as text, because "not given" differs from the first name.
func parseWordJSON[T ~string](dst *T, n names, what string, b []byte) error {
	if string(b) == "null" {
		return nil
	}
	s, err := scalarText(b)
	if err == nil && s == "" {
		*dst = ""
		return nil
	}
	v, ok := n.parse(s)
	if err != nil || !ok {
		if err != nil {
			s = string(b) // neither a text nor a number
		}
		return Errorf(ErrInvalidPolicy, "%s %s is not known: use one of %s", what, quote(s), strings.Join(n, ", "))
	}
	*dst = T(n[v])
	return nil
}

// AclPolicySetting is one packet filter rule. Lists are comma separated; an empty one matches anything.
type AclPolicySetting struct {
	Id              string        `json:",omitempty"`
	Protocols       string        `json:",omitempty"`
	Action          ActionType    `json:",omitempty"`
	Direction       DirectionType `json:",omitempty"`
	LocalAddresses  string        `json:",omitempty"`
	RemoteAddresses string        `json:",omitempty"`
	LocalPorts      string        `json:",omitempty"`
	RemotePorts     string        `json:",omitempty"`
	RuleType        RuleType      `json:",omitempty"`
	Priority        uint16        `json:",omitempty"`
}

func (s AclPolicySetting) validate(path string) error {
	if s.Action != ActionTypeAllow && s.Action != ActionTypeBlock {
		return invalid(ErrInvalidPolicy, path+".Action", "%s is not an action of an ACL: use Allow or Block", quote(string(s.Action)))
	}
	if err := checkDirection(path, s.Direction); err != nil {
		return err
	}
	if s.RuleType == RuleTypeHost && s.Priority != 0 {
		return invalid(ErrInvalidPolicy, path+".Priority", "a Host rule has none: leave it out")
	}
	return s.match().validate(path)
}

// TierAclPolicySetting is one tier: an ordered stage of rules.
type TierAclPolicySetting struct {
	Name         string        `json:",omitempty"`
	Direction    DirectionType `json:",omitempty"`
	Order        uint16        `json:",omitempty"`
	TierAclRules []TierAclRule `json:",omitempty"`
}

// TierAclRule is a rule in a tier.
type TierAclRule struct {
	Id                string     `json:",omitempty"`
	Protocols         string     `json:",omitempty"`
	TierAclRuleAction ActionType `json:",omitempty"`
	LocalAddresses    string     `json:",omitempty"`
	RemoteAddresses   string     `json:",omitempty"`
	LocalPorts        string     `json:",omitempty"`
	RemotePorts       string     `json:",omitempty"`
	Priority          uint16     `json:",omitempty"`
}

func (s TierAclPolicySetting) validate(path string) error {
	if s.Name == "" {
		return invalid(ErrInvalidPolicy, path+".Name", "it is empty: name and direction identify the tier")
	}
	if err := checkText(ErrInvalidPolicy, path+".Name", s.Name); err != nil {
		return err
	}
	if err := checkDirection(path, s.Direction); err != nil {
		return err
	}
	if err := checkCount(ErrInvalidPolicy, path+".TierAclRules", len(s.TierAclRules), maxPolicies); err != nil {
		return err
	}
	for i, r := range s.TierAclRules {
		p := path + ".TierAclRules[" + strconv.Itoa(i) + "]"
		if r.TierAclRuleAction == "" {
			return invalid(ErrInvalidPolicy, p+".TierAclRuleAction", "it is missing: use Allow, Block or Pass")
		}
		if err := r.match().validate(p); err != nil {
			return err
		}
	}
	return nil
}

func checkDirection(path string, d DirectionType) error {
	if d == "" {
		return invalid(ErrInvalidPolicy, path+".Direction", "it is missing: use In or Out")
	}
	return nil
}

// aclMatch is the part that rules of both kinds share.
type aclMatch struct {
	protocols, localAddresses, remoteAddresses, localPorts, remotePorts string
}

func (m aclMatch) validate(path string) error {
	protocols, err := parseProtocols(m.protocols)
	if err != nil {
		return invalid(ErrInvalidPolicy, path+".Protocols", "%w", err)
	}
	ports := len(protocols) > 0 // whether every protocol of the rule has ports
	for _, p := range protocols {
		ports = ports && (Protocol(p) == ProtocolTCP || Protocol(p) == ProtocolUDP)
	}
	for _, f := range []struct{ name, list string }{{"LocalPorts", m.localPorts}, {"RemotePorts", m.remotePorts}} {
		if err := checkPortList(path+"."+f.name, f.list); err != nil {
			return err
		}
		if f.list != "" && !ports {
			return invalid(ErrInvalidPolicy, path+"."+f.name, "ports need Protocols to be 6 (TCP), 17 (UDP) or both")
		}
	}
	if err := checkAddressList(path+".LocalAddresses", m.localAddresses); err != nil {
		return err
	}
	return checkAddressList(path+".RemoteAddresses", m.remoteAddresses)
}

// commaList splits a list as ACL fields and sets write it; blanks around entries are allowed.
func commaList(s string) []string {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	list := strings.Split(s, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

func checkPortList(path, s string) error {
	list := commaList(s)
	if err := checkCount(ErrInvalidPolicy, path, len(list), maxListEntries); err != nil {
		return err
	}
	if _, err := parsePorts(s); err != nil {
		return invalid(ErrInvalidPolicy, path, "%w", err)
	}
	return nil
}

// checkAddressList takes addresses, prefixes, and the Ids of address sets. Whether such a set exists is for the network to
// say; here an entry that looks like an address must be one.
func checkAddressList(path, s string) error {
	list := commaList(s)
	if err := checkCount(ErrInvalidPolicy, path, len(list), maxListEntries); err != nil {
		return err
	}
	for _, e := range list {
		if e == "" {
			return invalid(ErrInvalidPolicy, path, "there is an empty entry in the list: drop the comma")
		}
		if _, err := parseAddrOrPrefix(e); err != nil && strings.ContainsAny(e, "/:. ") {
			return invalid(ErrInvalidPolicy, path, "%w", err)
		}
		if err := checkText(ErrInvalidPolicy, path, e); err != nil {
			return err
		}
	}
	return nil
}
