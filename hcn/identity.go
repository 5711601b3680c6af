package hcn

import "strings"

// identity is the key by which a policy can be named apart from its other settings, or "" if it has none and only equality of
// all settings tells two apart (HCN schema: Remove and Update).
func identity(settings any) string {
	switch s := settings.(type) {
	case SetPolicySetting:
		return "set " + s.Id
	case TierAclPolicySetting:
		return "tier " + s.Name + " " + string(s.Direction)
	case RemoteSubnetRoutePolicySetting:
		if p, err := parsePrefix(s.DestinationPrefix); err == nil {
			return "prefix " + p.Masked().String()
		}
		return "prefix " + strings.TrimSpace(s.DestinationPrefix)
	}
	return ""
}
