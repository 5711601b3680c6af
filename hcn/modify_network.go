package hcn

import "slices"

func (r *ModifyNetworkSettingRequest) applyDNS(n *HostComputeNetwork) error {
	s, err := requestSettings[Dns](r.Settings, r.RequestType)
	if err != nil {
		return err
	}
	drop := func(list, gone []string) []string {
		return slices.DeleteFunc(list, func(s string) bool { return slices.Contains(gone, s) })
	}
	add := func(list, more []string) []string { return append(drop(list, more), more...) }
	switch r.RequestType {
	case RequestTypeUpdate:
		n.Dns = s
	case RequestTypeReset:
		n.Dns = Dns{}
	case RequestTypeRemove:
		if s.Domain == n.Dns.Domain {
			n.Dns.Domain = ""
		}
		n.Dns.Search, n.Dns.ServerList, n.Dns.Options =
			drop(n.Dns.Search, s.Search), drop(n.Dns.ServerList, s.ServerList), drop(n.Dns.Options, s.Options)
	default:
		if s.Domain != "" {
			n.Dns.Domain = s.Domain
		}
		n.Dns.Search, n.Dns.ServerList, n.Dns.Options =
			add(n.Dns.Search, s.Search), add(n.Dns.ServerList, s.ServerList), add(n.Dns.Options, s.Options)
	}
	return nil
}

// applyExtension keeps the state of an extension as the policy that a create would have set it with.
func (r *ModifyNetworkSettingRequest) applyExtension(n *HostComputeNetwork) error {
	s, err := requestSettings[ExtensionNetworkRequest](r.Settings, r.RequestType)
	if err != nil {
		return err
	}
	found := false
	n.Policies = slices.DeleteFunc(n.Policies, func(p NetworkPolicy) bool {
		if p.Type != VSwitchExtension {
			return false
		}
		v, err := p.Decode()
		x, ok := v.(VSwitchExtensionPolicySetting)
		hit := err == nil && ok && (x.ExtensionID == s.Id || r.RequestType == RequestTypeReset)
		found = found || hit
		return hit
	})
	switch r.RequestType {
	case RequestTypeReset:
		return nil
	case RequestTypeRemove:
		if !found {
			return invalid(ErrSwitchExtensionNotFound, "Settings.Id", "the network has no extension %s", s.Id)
		}
		return nil
	default:
	}
	n.Policies = append(n.Policies, NewNetworkPolicy(VSwitchExtension, VSwitchExtensionPolicySetting{ExtensionID: s.Id, Enable: s.IsEnabled}))
	return nil
}

// applySubnets puts new subnets into the first ipam.
func (r *ModifyNetworkSettingRequest) applySubnets(n *HostComputeNetwork) error {
	s, err := requestSettings[SubnetNetworkRequest](r.Settings, r.RequestType)
	if err != nil {
		return err
	}
	if r.RequestType == RequestTypeReset {
		return invalid(ErrRequestUnsupported, "RequestType", "subnets cannot be reset, endpoints live in them: use Remove for those to go")
	}
	for i, sub := range s.Subnets {
		at := indexed("Settings.Subnets", i)
		if r.RequestType == RequestTypeAdd {
			if len(n.Ipams) == 0 {
				n.Ipams = []Ipam{{}}
			}
			n.Ipams[0].Subnets = append(n.Ipams[0].Subnets, sub)
			continue
		}
		k, j := n.findSubnet(sub.ID)
		if k < 0 {
			return invalid(ErrSubnetNotFound, at+".ID", "network %s has no subnet %s", n.label(), quote(string(sub.ID)))
		}
		list := n.Ipams[k].Subnets
		if r.RequestType == RequestTypeRemove {
			n.Ipams[k].Subnets = slices.Delete(list, j, j+1)
		} else {
			list[j] = sub
		}
	}
	return nil
}

func (n *HostComputeNetwork) findSubnet(id GUID) (ipam, subnet int) {
	for i := range n.Ipams {
		for j := range n.Ipams[i].Subnets {
			if !id.IsZero() && n.Ipams[i].Subnets[j].ID == id {
				return i, j
			}
		}
	}
	return -1, -1
}

func (r *ModifyNetworkSettingRequest) applyIPSubnets(n *HostComputeNetwork) error {
	s, err := requestSettings[IpSubnetNetworkRequest](r.Settings, r.RequestType)
	if err != nil {
		return err
	}
	k, j := n.findSubnet(s.SubnetId)
	if k < 0 {
		return invalid(ErrSubnetNotFound, "Settings.SubnetId", "network %s has no subnet %s", n.label(), quote(string(s.SubnetId)))
	}
	sub := &n.Ipams[k].Subnets[j]
	if r.RequestType == RequestTypeReset {
		sub.IpSubnets = nil
		return nil
	}
	for i, b := range s.IpSubnets {
		if r.RequestType == RequestTypeAdd {
			sub.IpSubnets = append(sub.IpSubnets, b)
			continue
		}
		at := slices.IndexFunc(sub.IpSubnets, func(o IpSubnet) bool { return !b.ID.IsZero() && o.ID == b.ID })
		if at < 0 {
			return invalid(ErrSubnetNotFound, indexed("Settings.IpSubnets", i)+".ID", "subnet %s has no block %s", s.SubnetId, quote(string(b.ID)))
		}
		if r.RequestType == RequestTypeRemove {
			sub.IpSubnets = slices.Delete(sub.IpSubnets, at, at+1)
		} else {
			sub.IpSubnets[at] = b
		}
	}
	return nil
}
