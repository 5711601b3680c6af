package hcn

import (
	"bytes"
	"strings"
)

// A modify request is checked as part of the document that it makes, so that each rule is written once. What is wrong is then
// named by a path into that document, which its client does not know: the functions here name the place in the request, or
// say that it is in what was there before.

// pathNamer gives the text that stands for an element of the document that a request made, such as "Policies[3]"; "" leaves it.
type pathNamer func(element string) string

// inRequest renames the path that an error begins with.
func inRequest(err error, name pathNamer) error {
	e := AsError(err)
	end := 0 // of the path's last element that has a name
	text := ""
	for i, c := range []byte(e.Detail) {
		if c == ':' || c == ' ' {
			break
		}
		if c != ']' {
			continue
		}
		if t := name(e.Detail[:i+1]); t != "" {
			end, text = i+1, t
		}
	}
	if end == 0 {
		return err
	}
	return &Error{Code: e.Code, Text: e.Text, Detail: text + e.Detail[end:], cause: e.cause}
}

// samePolicy lets one function look for policies of both kinds.
type samePolicy interface{ same(other any) bool }

func (p EndpointPolicy) same(other any) bool {
	o, ok := other.(EndpointPolicy)
	return ok && p.Type == o.Type && bytes.Equal(p.Settings, o.Settings)
}

func (p NetworkPolicy) same(other any) bool {
	o, ok := other.(NetworkPolicy)
	return ok && p.Type == o.Type && bytes.Equal(p.Settings, o.Settings)
}

// policyPaths names the policies of a merged list: by their place in the request, or as the object's own.
func policyPaths[P samePolicy](merged, request []P, object string) pathNamer {
	return func(element string) string {
		for i, p := range merged {
			if policyPath(i) != element {
				continue
			}
			for j, r := range request {
				if r.same(p) {
					return "Settings." + policyPath(j)
				}
			}
			return "with this request the " + object + "'s own " + element
		}
		return ""
	}
}

// inRequest names the place in the request where an error in the network that it made comes from.
func (r *ModifyNetworkSettingRequest) inRequest(err error, made *HostComputeNetwork) error {
	switch r.ResourceType {
	case NetworkResourceTypePolicy:
		if s, e := requestSettings[PolicyNetworkRequest](r.Settings, r.RequestType); e == nil {
			return inRequest(err, policyPaths(made.Policies, s.Policies, "network"))
		}
	case NetworkResourceTypeSubnet:
		if s, e := requestSettings[SubnetNetworkRequest](r.Settings, r.RequestType); e == nil {
			return inRequest(err, r.subnetPaths(made, s.Subnets))
		}
	case NetworkResourceTypeIPSubnet:
		if s, e := requestSettings[IpSubnetNetworkRequest](r.Settings, r.RequestType); e == nil {
			return inRequest(err, blockPaths(made, s))
		}
	case NetworkResourceTypeDNS:
		if e := AsError(err); strings.HasPrefix(e.Detail, "Dns.") {
			return &Error{Code: e.Code, Text: e.Text, Detail: "Settings." + strings.TrimPrefix(e.Detail, "Dns."), cause: e.cause}
		}
	default:
	}
	return err
}

// subnetPaths names subnets. New ones are the last of the first ipam.
func (r *ModifyNetworkSettingRequest) subnetPaths(made *HostComputeNetwork, request []Subnet) pathNamer {
	return func(element string) string {
		for k := range made.Ipams {
			list := made.Ipams[k].Subnets
			for j := range list {
				if indexed(indexed("Ipams", k)+".Subnets", j) != element {
					continue
				}
				if i := j - (len(list) - len(request)); r.RequestType == RequestTypeAdd && k == 0 && i >= 0 {
					return indexed("Settings.Subnets", i)
				}
				for i, s := range request {
					if r.RequestType == RequestTypeUpdate && s.ID == list[j].ID {
						return indexed("Settings.Subnets", i)
					}
				}
				return "with this request the network's own " + element
			}
		}
		return ""
	}
}

// blockPaths names the blocks inside a subnet.
func blockPaths(made *HostComputeNetwork, request IpSubnetNetworkRequest) pathNamer {
	k, j := made.findSubnet(request.SubnetId)
	if k < 0 {
		return func(string) string { return "" }
	}
	at := indexed(indexed("Ipams", k)+".Subnets", j) + ".IpSubnets"
	return func(element string) string {
		for i, b := range made.Ipams[k].Subnets[j].IpSubnets {
			if indexed(at, i) != element {
				continue
			}
			for n, r := range request.IpSubnets {
				if !r.ID.IsZero() && r.ID == b.ID || r.ID.IsZero() && r.IpAddressPrefix == b.IpAddressPrefix {
					return indexed("Settings.IpSubnets", n)
				}
			}
			return "with this request the network's own " + element
		}
		return ""
	}
}
