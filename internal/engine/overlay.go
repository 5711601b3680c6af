package engine

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// hostReaches tells that the host has a way into a network: then its prefixes are the network's alone on this host.
func hostReaches(doc *hcn.HostComputeNetwork) bool {
	switch doc.Type {
	case hcn.Private:
		return false
	case hcn.Overlay:
		return doc.HasHostRoute()
	default:
		return true
	}
}

// showRouter has the document of an overlay say by which MAC other hosts reach its router.
func showRouter(doc *hcn.HostComputeNetwork, mac plan.MAC) {
	if !slices.ContainsFunc(doc.Policies, func(p hcn.NetworkPolicy) bool { return p.Type == hcn.DrMacAddress }) {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.DrMacAddress, hcn.DrMacAddressPolicySetting{Address: hcn.MACFrom(mac)}))
	}
}

// checkOverlay refuses an overlay network whose tunnels would not be its own: one with the VNI of another, one around its own
// underlay, one whose UDP port changes under its endpoints.
func (t *txn) checkOverlay(doc *hcn.HostComputeNetwork, old *plan.Network, uplink string) error {
	if doc.Type != hcn.Overlay {
		return nil
	}
	if old != nil && plan.Encrypted(doc) != plan.Encrypted(&old.Doc) {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "%s: whether network %q is encrypted stays as it was when it was made, for no moment may be in between: make another network", hcn.NetworkEncryption, doc.Name)
	}
	if plan.Encrypted(doc) && !t.adopting && (old == nil || !old.Cluster) {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "%s: network %q is this host's own, and hosts learn each other's keys from a cluster only: "+
			"make it there (`bulkhead cluster init`, then `bulkhead network create --type overlay --encrypted` without --vsid)", hcn.NetworkEncryption, doc.Name)
	}
	for _, s := range doc.AllSubnets() {
		for id, n := range t.st.networks {
			if id == doc.ID || n.Doc.Type != hcn.Overlay {
				continue
			}
			for _, o := range n.Doc.AllSubnets() {
				if o.VSID() == s.VSID() {
					return hcn.Errorf(hcn.ErrInvalidSubnet, "subnet %s of network %q: the virtual network %d (VSID) belongs to network %q on this host: choose another, or add the subnet there",
						s.IpAddressPrefix, doc.Name, s.VSID(), n.Doc.Name)
				}
			}
		}
		p, err := s.Prefix()
		if err != nil {
			return err
		}
		if nic := t.facts.NIC(uplink); nic != nil && old == nil {
			for _, a := range nic.Addrs {
				if a.Masked().Overlaps(p) {
					return hcn.Errorf(hcn.ErrInvalidSubnet, "subnet %s of network %q overlaps %s of %s, by which its tunnels go: choose another prefix", p, doc.Name, a.Masked(), uplink)
				}
			}
		}
	}
	if err := t.checkTunnelMTU(doc, old, uplink); err != nil || old == nil {
		return err
	}
	if was, is := plan.VXLANPort(&old.Doc), plan.VXLANPort(doc); was != is && len(t.st.byNetwork[doc.ID]) > 0 {
		return hcn.Errorf(hcn.ErrEntityHasReferences, "VxlanPort: network %q has endpoints, and their tunnels go by port %d: delete them first", doc.Name, was)
	}
	if old.Doc.HasHostRoute() && !doc.HasHostRoute() {
		return t.checkNobodyOutside(doc)
	}
	return nil
}

// checkTunnelMTU refuses a network whose tunnels carry less than its containers send at least: it would lose large packets, and
// nobody would tell. Of one that is there, which may have come to that by a change of the NIC, only new needs are refused.
func (t *txn) checkTunnelMTU(doc *hcn.HostComputeNetwork, old *plan.Network, uplink string) error {
	n := &plan.Network{Doc: *doc, Uplink: uplink}
	nic := t.facts.NIC(uplink)
	if nic == nil {
		return nil
	}
	carries, least := plan.TunnelMTU(n, t.facts), plan.LeastMTU(n)
	if carries >= least || old != nil && plan.LeastMTU(old) == least {
		return nil
	}
	return hcn.Errorf(hcn.ErrInvalidPolicy, "network %q: %s has an MTU of %d, so its tunnels carry packets of %d bytes, and the subnets need %d: raise it (`ip link set %s mtu %d`), "+
		"name another NIC with NetAdapterName, or leave out subnets of IPv6, which needs 1280", doc.Name, uplink, nic.MTU, carries, least, uplink, nic.MTU+least-carries)
}

// tunnelChecks are the doctor's lines about overlays whose NIC has become too small. Locked: e.mu.
func (e *Engine) tunnelChecks() (out []api.Check) {
	for _, n := range e.st.networks {
		nic := e.facts.NIC(n.Uplink)
		if n.Doc.Type != hcn.Overlay || nic == nil {
			continue
		}
		if carries, least := plan.TunnelMTU(n, &e.facts), plan.LeastMTU(n); carries < least {
			out = append(out, api.Check{
				Name: "network " + n.Doc.Name, Status: "warn",
				Detail: fmt.Sprintf("%s has an MTU of %d, so its tunnels carry packets of %d bytes; containers send up to %d, and what is larger is dropped (mtu)", n.Uplink, nic.MTU, carries, least),
				Next:   fmt.Sprintf("ip link set %s mtu %d", n.Uplink, nic.MTU+least-carries),
			})
		}
	}
	return out
}

// checkNobodyOutside refuses to take away the way to the host from under those that use it.
func (t *txn) checkNobodyOutside(doc *hcn.HostComputeNetwork) error {
	for _, ep := range t.st.byNetwork[doc.ID] {
		if i := slices.IndexFunc(ep.Doc.Policies, func(p hcn.EndpointPolicy) bool { return p.Type == hcn.OutBoundNAT || p.Type == hcn.PortMapping }); i >= 0 {
			return hcn.Errorf(hcn.ErrEntityHasReferences, "HostRoute: endpoint %q (%s) is by the host with the outside: remove its %s first", ep.Doc.Name, ep.Doc.ID, ep.Doc.Policies[i].Type)
		}
		byHost := func(s hcn.SDNRoutePolicySetting) bool { return s.NextHop == "" }
		own, err := hcn.SettingsOf[hcn.SDNRoutePolicySetting](ep.Doc.Policies)
		if err == nil && slices.ContainsFunc(own, byHost) {
			return hcn.Errorf(hcn.ErrEntityHasReferences, "HostRoute: endpoint %q (%s) sends by the host: remove its SDNRoute without NextHop first", ep.Doc.Name, ep.Doc.ID)
		}
		for id, r := range t.st.routesOf[ep.Doc.ID] {
			if slices.ContainsFunc(r.Doc.Routes, byHost) {
				return hcn.Errorf(hcn.ErrEntityHasReferences, "HostRoute: endpoint %q (%s) sends by the host: delete the SDN route %s first", ep.Doc.Name, ep.Doc.ID, id)
			}
		}
	}
	return nil
}

// replaceRemote takes away the document of an endpoint elsewhere whose address a local endpoint is to have: whoever keeps such
// documents hears of a move later than this host, which makes the endpoint.
func (t *txn) replaceRemote(doc *hcn.HostComputeEndpoint, n *plan.Network) {
	if n.Doc.Type != hcn.Overlay || doc.Flags&hcn.RemoteEndpoint != 0 {
		return
	}
	for _, c := range doc.IpConfigurations {
		a, err := netip.ParseAddr(c.IpAddress)
		if err != nil {
			continue // refused where it is read, or to be picked, which takes no remote one's
		}
		holder, ok := t.st.addrs[n.Doc.ID][a.Unmap()]
		if ok && t.st.endpoints[holder].Doc.Flags&hcn.RemoteEndpoint != 0 {
			if !t.dry {
				t.e.log.Info("an endpoint that was on another host is made here", "address", a.String(), "endpoint", holder)
			}
			t.dropEndpoint(holder)
		}
	}
}
