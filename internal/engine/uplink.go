package engine

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// uplinkPolicies say which NIC a network on a LAN is on. Its switch is there for good.
var uplinkPolicies = []hcn.NetworkPolicyType{hcn.NetAdapterName, hcn.NetworkInterfaceConstraint, hcn.NetworkProviderAddress, hcn.LayerConstraint}

// pickUplink chooses the NIC of a network on a LAN by what its document says, or else one
// that fits its subnets, and has the document show it.
func (t *txn) pickUplink(doc *hcn.HostComputeNetwork) (string, error) {
	if !plan.HasUplink(doc.Type) {
		return "", nil
	}
	var nic *plan.NIC
	for _, p := range doc.Policies {
		if !slices.Contains(uplinkPolicies, p.Type) {
			continue
		}
		settings, err := p.Decode()
		if err != nil {
			return "", err
		}
		named, err := t.namedNIC(p.Type, settings)
		if err != nil {
			return "", err
		}
		if nic != nil && nic.Name != named.Name {
			return "", hcn.Errorf(hcn.ErrInvalidPolicy, "the policies of network %q name two NICs, %s and %s: keep one", doc.Name, nic.Name, named.Name)
		}
		nic = named
	}
	if nic == nil {
		if nic = t.likelyNIC(doc); nic == nil {
			return "", hcn.Errorf(hcn.ErrAdapterNotFound, "network %q: no NIC of this host has an address, is up and has no switch yet: name one with the policy NetAdapterName (`ip -brief address` shows them)", doc.Name)
		}
	}
	if err := t.fitNIC(nic, doc.Type, doc.Macvlan()); err != nil {
		return "", err
	}
	if err := checkSourceMAC(doc, nic); err != nil {
		return "", err
	}
	if !slices.ContainsFunc(doc.Policies, func(p hcn.NetworkPolicy) bool { return p.Type == hcn.NetAdapterName }) {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.NetAdapterName, hcn.NetAdapterNamePolicySetting{NetworkAdapterName: nic.Name}))
	}
	showManagement(doc, nic)
	return nic.Name, nil
}

// namedNIC is the one that a policy means.
func (t *txn) namedNIC(kind hcn.NetworkPolicyType, settings any) (*plan.NIC, error) {
	switch s := settings.(type) {
	case hcn.NetAdapterNamePolicySetting:
		if strings.Contains(s.NetworkAdapterName, ",") {
			return t.nicOfTeam(s.NetworkAdapterName)
		}
		return t.nicByName(s.NetworkAdapterName)
	case hcn.InterfaceConstraintPolicySetting:
		return t.constrainedNIC(s)
	case hcn.ProviderAddressPolicySetting:
		a, err := netip.ParseAddr(s.ProviderAddress)
		if err != nil {
			return nil, hcn.Errorf(hcn.ErrInvalidPolicy, "ProviderAddress: %w", err)
		}
		for i := range t.facts.NICs {
			n := &t.facts.NICs[i]
			if slices.ContainsFunc(n.Addrs, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() }) {
				return n, nil
			}
		}
		return nil, hcn.Errorf(hcn.ErrAdapterNotFound, "ProviderAddress: no NIC of this host has the address %s: see `bulkhead nic ls`", a)
	case hcn.LayerConstraintPolicySetting:
		return t.nicOfSwitch(s.LayerId)
	}
	return nil, hcn.Errorf(hcn.ErrInvalidPolicy, "policy %s names no NIC", kind)
}

// constrainedNIC is the one on which all that an InterfaceConstraint says holds.
func (t *txn) constrainedNIC(s hcn.InterfaceConstraintPolicySetting) (*plan.NIC, error) {
	if s.InterfaceLuid != 0 || s.InterfaceMediaType != 0 || s.InterfaceDescription != "" {
		return nil, hcn.Errorf(hcn.ErrRequestUnsupported, "InterfaceConstraint: a NIC of this host has a GUID, a name and an index: use InterfaceGuid, InterfaceAlias or InterfaceIndex (`bulkhead nic ls` shows them)")
	}
	if s.InterfaceGuid.IsZero() && s.InterfaceAlias == "" && s.InterfaceIndex == 0 {
		return nil, hcn.Errorf(hcn.ErrInvalidPolicy, "InterfaceConstraint: it names no NIC: give InterfaceGuid, InterfaceAlias or InterfaceIndex (`bulkhead nic ls` shows them)")
	}
	for i := range t.facts.NICs {
		n := &t.facts.NICs[i]
		if (s.InterfaceGuid.IsZero() || n.GUID == s.InterfaceGuid) && (s.InterfaceAlias == "" || n.Name == s.InterfaceAlias) &&
			(s.InterfaceIndex == 0 || uint32(n.Index) == s.InterfaceIndex) {
			return n, nil
		}
	}
	var wanted []string
	if !s.InterfaceGuid.IsZero() {
		wanted = append(wanted, "the GUID "+string(s.InterfaceGuid))
	}
	if s.InterfaceAlias != "" {
		wanted = append(wanted, "the name "+s.InterfaceAlias)
	}
	if s.InterfaceIndex != 0 {
		wanted = append(wanted, "the index "+strconv.FormatUint(uint64(s.InterfaceIndex), 10))
	}
	return nil, hcn.Errorf(hcn.ErrAdapterNotFound, "InterfaceConstraint: no NIC of this host has %s: see `bulkhead nic ls`", strings.Join(wanted, " and "))
}

// nicOfTeam is the bond that has exactly the NICs of a list for its members.
func (t *txn) nicOfTeam(list string) (*plan.NIC, error) {
	members := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		nic, err := t.nicByName(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		members[nic.Name] = true
	}
	masters := map[string]bool{}
	for i := range t.facts.NICs {
		if n := &t.facts.NICs[i]; members[n.Name] {
			masters[n.Master] = true
		}
	}
	for name := range masters {
		bond := t.facts.NIC(name)
		others := slices.ContainsFunc(t.facts.NICs, func(n plan.NIC) bool { return n.Master == name && !members[n.Name] })
		if bond != nil && bond.Team && len(masters) == 1 && !others {
			return bond, nil
		}
	}
	return nil, hcn.Errorf(hcn.ErrAdapterNotFound, "NetAdapterName: no bond or team of this host has the members %s and no others: make one (`ip link add bond0 type bond`), "+
		"for that would take these NICs from the host, and name it or its members", list)
}

// nicOfSwitch is the NIC whose switch has an ID: networks on one NIC share its switch.
func (t *txn) nicOfSwitch(id hcn.GUID) (*plan.NIC, error) {
	for _, n := range t.st.networks {
		if n.Uplink != "" && n.Doc.SwitchGUID() == id {
			return t.nicByName(n.Uplink)
		}
	}
	for i := range t.facts.NICs {
		if n := &t.facts.NICs[i]; hcn.SwitchOfNIC(n.Name) == id {
			return n, nil
		}
	}
	n := t.st.networks[id]
	switch {
	case n != nil && n.Uplink != "": // as versions before told it
		return t.nicByName(n.Uplink)
	case n != nil:
		return nil, hcn.Errorf(hcn.ErrLayerNotFound, "LayerConstraint: %s is network %q, whose switch is on no NIC and not shared: name the SwitchGuid of a network on a LAN, or leave the policy out", id, n.Doc.Name)
	}
	return nil, hcn.Errorf(hcn.ErrLayerNotFound, "LayerConstraint: no NIC of this host has a switch with the ID %s: a network's is in its Health.Extra.SwitchGuid (query with Flags 1)", id)
}

func (t *txn) nicByName(name string) (*plan.NIC, error) {
	if nic := t.facts.NIC(name); nic != nil {
		return nic, nil
	}
	why := "see `ip link`"
	switch {
	case name == "lo":
		why = "loopback leads nowhere"
	case strings.HasPrefix(name, plan.PortPrefix), strings.HasPrefix(name, plan.HostVNICPrefix), strings.HasPrefix(name, plan.LANVNICPrefix), strings.HasPrefix(name, plan.ParkedPrefix):
		why = "vNICs of Bulkhead's own switches are none"
	}
	return nil, hcn.Errorf(hcn.ErrAdapterNotFound, "no NIC of this host is called %q: %s", name, why)
}

// fitNIC refuses one that cannot carry a switch of the type.
func (t *txn) fitNIC(nic *plan.NIC, kind hcn.NetworkType, macvlan bool) error {
	switch {
	case nic.OneMAC != "" && plan.OnLAN(kind) && !plan.OneMAC(kind):
		return hcn.Errorf(hcn.ErrAdapterNotFound, "%s cannot be the uplink of a network of type %s: %s. Use type L2Bridge, whose containers have its MAC on the wire, or another NIC", nic.Name, kind, nic.OneMAC)
	case nic.Unfit != "":
		return hcn.Errorf(hcn.ErrAdapterNotFound, "%s cannot be the uplink of a network: %s. Choose another NIC", nic.Name, nic.Unfit)
	case !nic.Up:
		return hcn.Errorf(hcn.ErrAdapterNotFound, "%s is down: `ip link set %s up`, then try again", nic.Name, nic.Name)
	}
	if kind == hcn.Overlay {
		if len(nic.Addrs) == 0 {
			return hcn.Errorf(hcn.ErrAdapterNotFound, "%s has no address for tunnels to come from: give it one (`ip address add`), or name another NIC with NetAdapterName", nic.Name)
		}
		return nil
	}
	if !macvlan && t.networksOn(nic.Name) >= plan.MaxOnNIC {
		return hcn.Errorf(hcn.ErrSharedSwitchModification, "%s is the uplink of %d networks already, and carries no more: use one of them, or another NIC", nic.Name, plan.MaxOnNIC)
	}
	return nil
}

func (t *txn) networksOn(nic string) (count int) {
	for _, n := range t.st.networks {
		if n.Uplink == nic && plan.OnLAN(n.Doc.Type) && !n.Doc.Macvlan() {
			count++
		}
	}
	return count
}

// likelyNIC is one whose address is in a subnet of the network; else that of the default
// route; else the first with an address.
func (t *txn) likelyNIC(doc *hcn.HostComputeNetwork) *plan.NIC {
	var best *plan.NIC
	rank := 0
	for i := range t.facts.NICs {
		n := &t.facts.NICs[i]
		if n.Unfit != "" || !n.Up || len(n.Addrs) == 0 ||
			plan.OnLAN(doc.Type) && (n.OneMAC != "" && !plan.OneMAC(doc.Type) || t.networksOn(n.Name) >= plan.MaxOnNIC) {
			continue
		}
		now := 1
		if n.Name == t.facts.Uplink {
			now = 2
		}
		if plan.OnLAN(doc.Type) && slices.ContainsFunc(n.Addrs, func(p netip.Prefix) bool { return doc.SubnetOf(p.Addr()) != nil }) {
			now = 3
		}
		if now > rank {
			best, rank = n, now
		}
	}
	return best
}

// showManagement puts the host's address on the NIC into the document: in a subnet of the
// network if there is one, IPv4 before IPv6.
func showManagement(doc *hcn.HostComputeNetwork, nic *plan.NIC) {
	if nic == nil || len(nic.Addrs) == 0 {
		return
	}
	best := slices.MinFunc(nic.Addrs, func(a, b netip.Prefix) int {
		rank := func(p netip.Prefix) int {
			r := 0
			if doc.SubnetOf(p.Addr()) == nil {
				r += 2
			}
			if p.Addr().Is6() {
				r++
			}
			return r
		}
		return cmp.Compare(rank(a), rank(b))
	}).Addr()
	shown := hcn.NewNetworkPolicy(hcn.NetworkProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: best.String()})
	if i := slices.IndexFunc(doc.Policies, func(p hcn.NetworkPolicy) bool { return p.Type == hcn.NetworkProviderAddress }); i >= 0 {
		set, err := hcn.NetworkSettingsOf[hcn.ProviderAddressPolicySetting](doc.Policies)
		has := func(p netip.Prefix) bool {
			return err == nil && len(set) > 0 && p.Addr().String() == set[0].ProviderAddress
		}
		if !slices.ContainsFunc(nic.Addrs, has) { // it has another address by now
			doc.Policies[i] = shown
		}
		return
	}
	doc.Policies = append(doc.Policies, shown)
}

// checkUplinkStays refuses to move a network to another NIC: its containers have addresses
// of this LAN.
func checkUplinkStays(old, doc *hcn.HostComputeNetwork) error {
	of := func(d *hcn.HostComputeNetwork) []string {
		var out []string
		for _, p := range d.Policies {
			if slices.Contains(uplinkPolicies, p.Type) {
				out = append(out, string(p.Type)+string(p.Settings))
			}
		}
		slices.Sort(out)
		return out
	}
	if old.Macvlan() != doc.Macvlan() {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "network %q: whether its endpoints are macvlan devices is settled when it is made: create another network", old.Name)
	}
	if !plan.HasUplink(doc.Type) || slices.Equal(of(old), of(doc)) {
		return nil
	}
	return hcn.Errorf(hcn.ErrSharedSwitchModification, "network %q stays on the NIC that it was made on: leave NetAdapterName, InterfaceConstraint, ProviderAddress and LayerConstraint as they are, or create another network", old.Name)
}

// checkSourceMAC refuses another MAC on the wire than the NIC has. Some clients name that one.
func checkSourceMAC(doc *hcn.HostComputeNetwork, nic *plan.NIC) error {
	if !plan.OnLAN(doc.Type) || nic == nil {
		return nil
	}
	set, err := hcn.NetworkSettingsOf[hcn.SourceMacAddressPolicySetting](doc.Policies)
	if err != nil || len(set) == 0 || set[0].SourceMacAddress.Equal(hcn.MACFrom(nic.MAC)) {
		return err
	}
	return hcn.Errorf(hcn.ErrRequestUnsupported, "SourceMacAddress %s: %s is the host's and keeps its MAC, %s: name that one or leave the policy out",
		set[0].SourceMacAddress, nic.Name, hcn.MACFrom(nic.MAC))
}

// sameNIC tells whether the plan sees no difference.
func sameNIC(a, b *plan.NIC) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && a.MAC == b.MAC && a.MTU == b.MTU && a.PathMTU == b.PathMTU && a.Segments == b.Segments && slices.Equal(a.Addrs, b.Addrs)
}

// followNICs has networks go on with a NIC that has another name by now, and keeps what tells it then. A document that shows the name
// shows the new one; other words of it stay as they were said.
func (e *Engine) followNICs() {
	e.mu.RLock()
	due := false
	for _, n := range e.st.networks {
		due = due || remarked(n, &e.facts) != nil
	}
	e.mu.RUnlock()
	if !due {
		return
	}
	_, err := e.commit(func(t *txn) error {
		for id, old := range maps.Clone(t.st.networks) {
			row := remarked(old, t.facts)
			if row == nil {
				continue
			}
			t.putNetwork(id, row)
			if row.Uplink != old.Uplink {
				e.log.Warn("the NIC of a network has another name", "network", row.Doc.Name, "was", old.Uplink, "is", row.Uplink)
				t.tell(queued{ev: api.Event{Kind: "network", Action: "modify", ID: string(id), Name: row.Doc.Name}, on: networkObjects(id)})
			}
		}
		return nil
	})
	if err != nil {
		e.log.Warn("follow the NICs of networks", "error", err)
	}
}

// remarked is the row of a network whose NIC is not as it was noted, nil for others.
func remarked(n *plan.Network, f *plan.Facts) *plan.Network {
	if n.Uplink == "" {
		return nil
	}
	nic := f.NICOf(n)
	if nic == nil {
		return nil
	}
	mark := f.Mark(nic)
	if n.Uplink == nic.Name && n.NIC != nil && *n.NIC == mark {
		return nil
	}
	row := *n
	row.NIC = &mark
	if n.Uplink == nic.Name {
		return &row
	}
	row.Uplink, row.Doc = nic.Name, *n.Doc.Clone()
	for i, p := range row.Doc.Policies {
		s, err := hcn.NetworkSettingsOf[hcn.NetAdapterNamePolicySetting](row.Doc.Policies[i : i+1])
		if p.Type == hcn.NetAdapterName && err == nil && len(s) == 1 && s[0].NetworkAdapterName == n.Uplink {
			row.Doc.Policies[i] = hcn.NewNetworkPolicy(hcn.NetAdapterName, hcn.NetAdapterNamePolicySetting{NetworkAdapterName: nic.Name})
		}
	}
	row.Doc.Version++
	return &row
}

// uplinkChecks are the doctor's lines about networks whose NIC is gone, is lent to a bridge or bond, or is not the one that has their
// subnet. Locked: e.mu.
func (e *Engine) uplinkChecks() (out []api.Check) {
	for id, n := range e.st.networks {
		if !plan.HasUplink(n.Doc.Type) || n.Uplink == "" {
			continue
		}
		name := "network " + n.Doc.Name
		nic := e.facts.NICOf(n)
		if nic == nil {
			out = append(out, api.Check{
				Name: name, Status: "fail", Detail: fmt.Sprintf("its NIC %s is gone: containers reach each other only", n.Uplink),
				Next: "bring a NIC of that name back, or delete the network and create it on another",
			})
			continue
		}
		if nic.Master != "" {
			out = append(out, api.Check{
				Name: name, Status: "warn", Detail: fmt.Sprintf("its NIC %s was made a member of %s, which takes the frames that are for the host", nic.Name, nic.Master),
				Next: fmt.Sprintf("ip link set %s nomaster, or create the network on %s", nic.Name, nic.Master),
			})
		}
		if other, p := elsewhere(&n.Doc, nic, &e.facts); other != "" {
			out = append(out, api.Check{
				Name: name, Status: "warn", Detail: foreignSubnet(p, other, nic.Name),
				Next: "bulkhead network inspect " + cmp.Or(n.Doc.Name, string(id)) + "; create it with --uplink " + other + " if that is its LAN",
			})
		}
	}
	slices.SortFunc(out, func(a, b api.Check) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func foreignSubnet(p netip.Prefix, other, nic string) string {
	return fmt.Sprintf("subnet %s is that of %s, and its containers are on the LAN of %s", p, other, nic)
}

// elsewhere names another NIC whose subnet is one of a network's on a LAN.
func elsewhere(doc *hcn.HostComputeNetwork, nic *plan.NIC, f *plan.Facts) (other string, subnet netip.Prefix) {
	if !plan.OnLAN(doc.Type) {
		return "", netip.Prefix{}
	}
	has := func(n *plan.NIC, p netip.Prefix) bool {
		return slices.ContainsFunc(n.Addrs, func(a netip.Prefix) bool { return p.Contains(a.Addr()) && a.Bits() <= p.Bits() })
	}
	for _, s := range doc.AllSubnets() {
		p, err := s.Prefix()
		if err != nil || has(nic, p) {
			continue
		}
		for i := range f.NICs {
			if n := &f.NICs[i]; n.Name != nic.Name && has(n, p) {
				return n.Name, p
			}
		}
	}
	return "", netip.Prefix{}
}

// warnElsewhere says in the log what the doctor goes on saying.
func (e *Engine) warnElsewhere(n *plan.Network) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if nic := e.facts.NIC(n.Uplink); nic != nil {
		if other, p := elsewhere(&n.Doc, nic, &e.facts); other != "" {
			e.log.Warn("a network is on another NIC than its subnet", "network", n.Doc.Name, "reason", foreignSubnet(p, other, nic.Name))
		}
	}
}
