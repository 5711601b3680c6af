package hcn

import (
	"encoding/json"
	"slices"
)

// This file tells when rules turn the default: as soon as a direction has a rule of the switch, what no rule allows is blocked
// there. It is by design, as on Windows, and users report it as "one ACL blocks everything". So whoever stores such a change
// says so.

// TurnedDefaults are the directions in which a change of an endpoint's policies turns the default from allow to block, without
// a rule that allows the rest. The network's own rules may have turned it before.
func TurnedDefaults(before, after []EndpointPolicy) []DirectionType {
	return turned(endpointDefaults(before), endpointDefaults(after))
}

// TurnedNetworkDefaults says the same of a network's policies, for all of its endpoints.
func TurnedNetworkDefaults(before, after []NetworkPolicy) []DirectionType {
	return turned(networkDefaults(before), networkDefaults(after))
}

// defaults say of each direction whether it has rules of the switch, and whether one of them allows everything.
type defaults map[DirectionType]struct{ rules, rest bool }

func turned(before, after defaults) []DirectionType {
	var out []DirectionType
	for _, d := range []DirectionType{DirectionTypeIn, DirectionTypeOut} {
		if after[d].rules && !after[d].rest && !before[d].rules {
			out = append(out, d)
		}
	}
	return out
}

func (d defaults) add(dir DirectionType, action ActionType, m aclMatch) {
	c := d[dir]
	c.rules = true
	c.rest = c.rest || action == ActionTypeAllow && m == aclMatch{protocols: m.protocols} && slices.Contains([]string{"", "256"}, m.protocols)
	d[dir] = c
}

func (d defaults) addACL(s AclPolicySetting) {
	if s.RuleType != RuleTypeHost {
		d.add(s.Direction, s.Action, s.match())
	}
}

// addRaw adds an ACL that narrows something without decoding all of it: of thousands of rules nearly all do.
func (d defaults) addRaw(raw []byte) {
	var direction DirectionType
	narrow, unusual := false, false
	eachMember(raw, func(name, value []byte) bool {
		switch string(name) {
		case "Direction":
			direction = DirectionTypeIn
			if isText(value, string(DirectionTypeOut)) {
				direction = DirectionTypeOut
			}
			unusual = unusual || !isText(value, string(direction))
		case "RuleType":
			unusual = unusual || !isText(value, string(RuleTypeSwitch))
		case "LocalAddresses", "RemoteAddresses", "LocalPorts", "RemotePorts":
			narrow = narrow || len(value) > 2
		}
		return !unusual
	})
	if narrow && !unusual && direction != "" {
		c := d[direction]
		c.rules = true
		d[direction] = c
		return
	}
	var s AclPolicySetting
	if json.Unmarshal(raw, &s) == nil { // a policy that cannot be read is one that Validate refuses
		d.addACL(s)
	}
}

func endpointDefaults(policies []EndpointPolicy) defaults {
	d := defaults{}
	for _, p := range policies {
		if p.Type == ACL {
			d.addRaw(p.Settings)
		}
	}
	tiers, _ := SettingsOf[TierAclPolicySetting](policies)
	for _, t := range tiers {
		for _, r := range t.TierAclRules {
			d.add(t.Direction, r.TierAclRuleAction, r.match())
		}
	}
	return d
}

func networkDefaults(policies []NetworkPolicy) defaults {
	d := defaults{}
	for _, p := range policies {
		if p.Type == NetworkACL {
			d.addRaw(p.Settings)
		}
	}
	return d
}
