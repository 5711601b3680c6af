package hcn

import "slices"

// Defaults fills in what the schema says about absent fields and needs no knowledge of the host. newID makes the IDs of
// subnets. A network that says nothing about persistence is persistent, whatever its type, and the answer's flags show it:
// Windows forgets NAT networks at a restart of the host, which its users report as a defect. A Transparent network that says nothing
// about addresses leaves them to its LAN, as on Windows: the answer's ipam shows it.
func (n *HostComputeNetwork) Defaults(newID func() GUID) {
	if n.SchemaVersion.Major == 0 {
		n.SchemaVersion = V2()
	}
	if n.Flags&(EnablePersistent|EnableNonPersistent) == 0 {
		n.Flags |= EnablePersistent
	}
	if n.Type == Transparent && len(n.Ipams) == 0 {
		n.Ipams = []Ipam{{Type: IpamDhcp}}
	}
	for _, s := range n.subnets() {
		if s.ID.IsZero() {
			s.ID = newID()
		}
		for i := range s.IpSubnets {
			if s.IpSubnets[i].ID.IsZero() {
				s.IpSubnets[i].ID = newID()
			}
		}
	}
	n.State = NetworkCreated
}

// Defaults fills in what the endpoint takes from its network: prefix lengths and subnet IDs of its addresses, routes and DNS.
// It is called after addresses were chosen. IPv4 addresses come before IPv6 ones.
func (e *HostComputeEndpoint) Defaults(n *HostComputeNetwork) {
	if e.SchemaVersion.Major == 0 {
		e.SchemaVersion = V2()
	}
	if e.HostComputeNetwork.IsZero() {
		e.HostComputeNetwork = n.ID
	}
	routes := len(e.Routes) == 0
	slices.SortStableFunc(e.IpConfigurations, func(a, b IpConfig) int { return family(a) - family(b) })
	for i := range e.IpConfigurations {
		c := &e.IpConfigurations[i]
		a, err := parseAddr(c.IpAddress)
		if err != nil {
			continue
		}
		s := n.SubnetOf(a)
		if s == nil {
			continue
		}
		if p, err := s.Prefix(); err == nil && c.PrefixLength == 0 {
			c.PrefixLength = uint8(p.Bits())
		}
		if c.IpSubnetId.IsZero() {
			c.IpSubnetId = s.ID
		}
		if routes {
			e.Routes = append(e.Routes, s.Routes...)
		}
	}
	if e.Dns.isZero() {
		e.Dns = n.Dns.clone()
	}
}

func family(c IpConfig) int {
	if a, err := parseAddr(c.IpAddress); err == nil && a.Is6() {
		return 6
	}
	return 4
}

func (d Dns) isZero() bool {
	return d.Domain == "" && len(d.Search) == 0 && len(d.ServerList) == 0 && len(d.Options) == 0
}

// Defaults fills in what the schema says about absent fields.
func (n *HostComputeNamespace) Defaults(newID func() GUID) {
	if n.SchemaVersion.Major == 0 {
		n.SchemaVersion = V2()
	}
	if n.NamespaceGuid.IsZero() {
		n.NamespaceGuid = newID()
	}
}

// ChooseID applies the ID rule of the API: a GUID beside the document wins, then the document's own, then a new one. Clients
// delete an object and create it again with the old document, and expect the same ID back.
func ChooseID(beside, inDocument GUID, newID func() GUID) GUID {
	switch {
	case !beside.IsZero():
		return beside
	case !inDocument.IsZero():
		return inDocument
	}
	return newID()
}
