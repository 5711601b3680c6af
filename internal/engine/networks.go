package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// DefaultNetworkName is the network that exists from the first start.
const DefaultNetworkName = "nat"

const (
	settingDefaultMade = "default-network-made"
	settingMachine     = "machine"
	settingSwitch      = "last-switch"
)

// waitApplied bounds how long a caller waits for the loop.
const waitApplied = 30 * time.Second

// applied waits until the loop has applied a revision. It does not follow the
// caller's context: a client that hangs up must not leave its operation half
// judged.
func (e *Engine) applied(ctx context.Context, rev uint64, objects ...object) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitApplied)
	defer cancel()
	return e.status.wait(ctx, rev, objects...)
}

// cutOff waits until what a change took away reaches nobody and is reached by
// nobody. What is left of it goes while the caller goes on: whoever takes an
// address or a port over is in a later turn of the loop.
func (e *Engine) cutOff(ctx context.Context, rev uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitApplied)
	defer cancel()
	return e.status.waitCut(ctx, rev)
}

// Networks lists the networks that match, oldest first.
func (e *Engine) Networks(f hcn.Filter) []hcn.GUID {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return listed(e.st.networks, func(n *plan.Network) (bool, uint64) { return f.MatchNetwork(&n.Doc), n.Seq })
}

// listed are the IDs of the rows that match, oldest first.
func listed[T any](rows map[hcn.GUID]*T, match func(*T) (matches bool, seq uint64)) []hcn.GUID {
	seqs := map[hcn.GUID]uint64{}
	for id, row := range rows {
		if ok, seq := match(row); ok {
			seqs[id] = seq
		}
	}
	ids := slices.AppendSeq(make([]hcn.GUID, 0, len(seqs)), maps.Keys(seqs)) // none is an empty list
	slices.SortFunc(ids, func(a, b hcn.GUID) int { return cmp.Compare(seqs[a], seqs[b]) })
	return ids
}

// Network is the document of a network.
func (e *Engine) Network(id hcn.GUID) (hcn.HostComputeNetwork, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	n := e.st.networks[id]
	if n == nil {
		return hcn.HostComputeNetwork{}, noNetwork(id)
	}
	doc := n.Doc.Clone()
	showManagement(doc, e.facts.NIC(n.Uplink))
	return *doc, nil
}

func noNetwork(id hcn.GUID) error {
	return hcn.Errorf(hcn.ErrNetworkNotFound, "no network has the ID %s: see `bulkhead network ls`", id)
}

// CreateNetwork makes a network and waits until its switch works.
func (e *Engine) CreateNetwork(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNetwork) (hcn.HostComputeNetwork, error) {
	return e.createNetwork(ctx, id, doc, 0)
}

// createNetwork makes a network that has to be confirmed within a time; 0: it stays.
func (e *Engine) createNetwork(ctx context.Context, id hcn.GUID, doc hcn.HostComputeNetwork, within time.Duration) (hcn.HostComputeNetwork, error) {
	// The route that a VPN added a moment ago counts as well.
	if err := e.refreshFacts(ctx); err != nil {
		return hcn.HostComputeNetwork{}, err
	}
	var row *plan.Network
	create := func(t *txn) (err error) {
		if row, err = t.newNetwork(id, doc, within); err == nil && within == 0 && rehearsing(ctx) == nil {
			err = checkWay(ctx, row, t.facts)
		}
		return err
	}
	around := &reach{e: e}
	if plan.OnLAN(doc.Type) && rehearsing(ctx) == nil && e.opt.Reach != nil {
		// Which NIC it is, nobody knows before; what is refused is refused here.
		if err := e.rehearse(&rehearsal{}, create); !errors.Is(err, errRehearsed) {
			return hcn.HostComputeNetwork{}, err
		}
		around = e.lookAround(ctx, row.Uplink)
	}
	rev, err := e.commitOr(ctx, create)
	if err != nil {
		return hcn.HostComputeNetwork{}, err
	}
	id = row.Doc.ID
	if err := e.applied(ctx, rev, objectsOf(&row.Doc)...); err != nil {
		e.undo(ctx, "network", string(id), func(t *txn) { t.dropNetwork(id) })
		return hcn.HostComputeNetwork{}, hcn.Errorf(hcn.ErrUnspecified, "make the switch of network %q: %w", row.Doc.Name, err)
	}
	e.opt.Step("reach")
	if gone := around.lost(context.WithoutCancel(ctx), askAfter); gone != "" {
		why := unreachable(around.nic, gone)
		e.undoNetwork(ctx, id, row.Doc.Name, why, func(*plan.Network) bool { return true })
		return hcn.HostComputeNetwork{}, hcn.Errorf(hcn.ErrDegradedOperation, "network %q is undone: %s. See what the switch outside does with several MACs on a port "+
			"(port security), or use the type L2Bridge", row.Doc.Name, why)
	}
	if row.Confirm != nil {
		e.keepWatch(id, row.Doc.Name, row.Confirm.By, around)
	}
	e.warnElsewhere(row)
	e.warnTurned("network", id, row.Doc.Name, hcn.TurnedNetworkDefaults(nil, row.Doc.Policies))
	return *row.Doc.Clone(), nil
}

// undo takes back what could not be made and has the loop clean up after it. If
// it cannot be stored, it is tried again until it can: what failed must not stay.
func (e *Engine) undo(ctx context.Context, kind, id string, fn func(*txn)) {
	rev, err := e.commit(func(t *txn) error { fn(t); return nil })
	if err != nil {
		e.log.Error("undo a failed operation", "kind", kind, "id", id, "error", err)
		e.ctrs.after(undoAgain, func() { e.undo(ctx, kind, id, fn) })
		return
	}
	if err := e.applied(ctx, rev); err != nil {
		e.log.Warn("undo a failed operation", "kind", kind, "id", id, "error", err)
	}
}

// undoAgain is the wait before an undo that could not be stored is tried again.
const undoAgain = 2 * time.Second

func (t *txn) newNetwork(id hcn.GUID, in hcn.HostComputeNetwork, within time.Duration) (*plan.Network, error) {
	doc := in.Clone()
	doc.ID = hcn.ChooseID(id, doc.ID, hcn.NewGUID)
	doc.Version, doc.Health = 0, nil
	if t.st.networks[doc.ID] != nil {
		return nil, hcn.Errorf(hcn.ErrNetworkAlreadyExists, "a network with the ID %s exists: delete it first, or leave the ID out", doc.ID)
	}
	if other, ok := t.st.netNames[doc.Name]; ok && doc.Name != "" {
		return nil, hcn.Errorf(hcn.ErrNetworkAlreadyExists, "the name %q belongs to network %s: choose another name", doc.Name, other)
	}
	number := t.nextSwitch()
	if err := t.pickSubnets(doc, number); err != nil {
		return nil, err
	}
	doc.Defaults(hcn.NewGUID)
	if err := doc.Validate(); err != nil {
		return nil, err
	}
	uplink, err := t.pickUplink(doc)
	if err != nil {
		return nil, err
	}
	if err := t.checkSubnets(doc, nil); err != nil {
		return nil, err
	}
	if err := t.checkOverlay(doc, nil, uplink); err != nil {
		return nil, err
	}
	if len(doc.MacPool.Ranges) == 0 {
		r := ipam.MACPool(string(doc.ID))
		doc.MacPool.Ranges = []hcn.MacRange{{StartMacAddress: hcn.MACFrom(r.From), EndMacAddress: hcn.MACFrom(r.To)}}
	}
	mac, err := gatewayMAC(doc)
	if err != nil {
		return nil, err
	}
	if doc.Type == hcn.Overlay {
		showRouter(doc, mac)
	}
	row := &plan.Network{Doc: *doc, Seq: t.nextSeq(), Switch: number, Uplink: uplink, GatewayMAC: mac}
	if nic := t.facts.NIC(uplink); nic != nil {
		mark := t.facts.Mark(nic)
		row.NIC = &mark
	}
	if row.Confirm, err = t.confirmation(within); err != nil {
		return nil, err
	}
	t.putNetwork(doc.ID, row)
	on := networkObjects(doc.ID)
	if !t.dry {
		t.e.hub.emit(hcnEvent("network", "precreate", doc.ID, doc.Name, hcn.NotificationNetworkPreCreate))
	}
	t.tell(queued{ev: hcnEvent("network", "create", doc.ID, doc.Name, hcn.NotificationNetworkCreate), on: on, comes: &on[0]})
	return row, nil
}

// nextSwitch numbers switches without using a number again: the maps may still
// hold what a network had that is on its way out.
func (t *txn) nextSwitch() uint32 {
	last, _ := strconv.ParseUint(t.st.settings[settingSwitch], 10, 32) // "" before the first
	used := map[uint32]bool{0: true}
	for _, n := range t.st.networks {
		used[n.Switch] = true
	}
	// The tables keep the upper bits for VLANs. Half a million networks later it begins anew.
	next := func(n uint32) uint32 { return n%plan.MaxSwitch + 1 }
	n := next(uint32(last))
	for used[n] {
		n = next(n)
	}
	t.putSetting(settingSwitch, strconv.FormatUint(uint64(n), 10))
	return n
}

// dropNetwork takes a network away, and its endpoints and load balancers with it.
func (t *txn) dropNetwork(id hcn.GUID) {
	old := t.st.networks[id]
	if old == nil {
		return
	}
	for lb, b := range maps.Clone(t.st.balancers) {
		if b.Network == id {
			t.dropBalancer(lb)
		}
	}
	for ep := range maps.Clone(t.st.byNetwork[id]) {
		t.dropEndpoint(ep)
	}
	t.putNetwork(id, nil)
	t.tell(queued{ev: hcnEvent("network", "delete", id, old.Doc.Name, hcn.NotificationNetworkDelete), goes: &networkObjects(id)[0]})
}

// gatewayMAC is the one that the network's policy gives, or one of its pool.
func gatewayMAC(doc *hcn.HostComputeNetwork) (plan.MAC, error) {
	s, err := hcn.NetworkSettingsOf[hcn.SourceMacAddressPolicySetting](doc.Policies)
	if err != nil {
		return plan.MAC{}, err
	}
	if len(s) > 0 && !plan.OnLAN(doc.Type) { // on a LAN it is the NIC's
		b, err := s[0].SourceMacAddress.Bytes()
		return plan.MAC(b), err
	}
	router, err := hcn.NetworkSettingsOf[hcn.DrMacAddressPolicySetting](doc.Policies)
	if err != nil {
		return plan.MAC{}, err
	}
	if len(router) > 0 {
		b, err := router[0].Address.Bytes()
		return plan.MAC(b), err
	}
	ranges, err := macRanges(doc)
	if err != nil {
		return plan.MAC{}, err
	}
	m, err := ipam.MAC(ranges, "gateway "+string(doc.ID), func([6]byte) bool { return false })
	return plan.MAC(m), err
}

func macRanges(doc *hcn.HostComputeNetwork) ([]ipam.MACRange, error) {
	var out []ipam.MACRange
	for _, r := range doc.MacPool.Ranges {
		from, err := r.StartMacAddress.Bytes()
		if err != nil {
			return nil, err
		}
		to, err := r.EndMacAddress.Bytes()
		if err != nil {
			return nil, err
		}
		out = append(out, ipam.MACRange{From: from, To: to})
	}
	return out, nil
}

// pickSubnets gives a network that names no address space a free prefix of each
// family: networks are dual-stack unless told otherwise.
func (t *txn) pickSubnets(doc *hcn.HostComputeNetwork, number uint32) error {
	if len(doc.AllSubnets()) > 0 || plan.OnLAN(doc.Type) {
		return nil // which addresses of a LAN are free is not ours to guess
	}
	for _, i := range doc.Ipams {
		if i.Type != hcn.IpamStatic {
			return nil // refused by Validate, with the reason
		}
	}
	used := t.usedPrefixes(doc)
	v4, err := ipam.FreePrefix(t.e.opt.Pools4, 24, used)
	if err != nil {
		return hcn.Errorf(hcn.ErrInvalidSubnet, "Ipams: no free IPv4 /24 in %v, which networks and routes of the host fill: name a subnet, or start the daemon with another --pool", t.e.opt.Pools4)
	}
	v6 := ipam.ULA(t.machine(), uint16(number))
	for n := uint32(1); n < 1<<16; n++ {
		if _, clash := ipam.Clash(v6, used); !clash {
			break
		}
		v6 = ipam.ULA(t.machine(), uint16(number+n))
	}
	doc.Ipams = []hcn.Ipam{{Subnets: []hcn.Subnet{subnet(v4), subnet(v6)}}}
	return nil
}

// subnet is a prefix with its first address as gateway.
func subnet(p netip.Prefix) hcn.Subnet {
	dst := "0.0.0.0/0"
	if p.Addr().Is6() {
		dst = "::/0"
	}
	return hcn.Subnet{
		IpAddressPrefix: p.String(),
		Routes:          []hcn.Route{{NextHop: p.Addr().Next().String(), DestinationPrefix: dst}},
	}
}

// machine is this installation's identity, made once: ULAs follow from it.
func (t *txn) machine() string {
	if m := t.st.settings[settingMachine]; m != "" {
		return m
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	m := hex.EncodeToString(b[:])
	t.putSetting(settingMachine, m)
	return m
}

// usedByHost lists what the host itself uses: addresses, routes, resolvers.
func usedByHost(f *plan.Facts) []netip.Prefix {
	out := slices.Concat(f.HostAddrs, f.Routes)
	for _, r := range f.Resolvers {
		out = append(out, netip.PrefixFrom(r, r.BitLen()))
	}
	return slices.DeleteFunc(out, func(p netip.Prefix) bool {
		a := p.Addr()
		return p.Bits() == 0 || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsLoopback()
	})
}

// usedPrefixes are what a picked prefix avoids: those of Private networks too,
// which may be asked to overlap, but a container may be on both.
func (t *txn) usedPrefixes(except *hcn.HostComputeNetwork) []netip.Prefix {
	used := usedByHost(t.facts)
	for id, n := range t.st.networks {
		if id == except.ID {
			continue
		}
		for _, s := range n.Doc.AllSubnets() {
			if p, err := s.Prefix(); err == nil {
				used = append(used, p.Masked())
			}
		}
	}
	return used
}

// checkSubnets refuses a prefix that collides with another network or with the
// host. A network that the host does not reach may use any, and several the same. What the network has
// already stays: a route that came later must not forbid to change it.
func (t *txn) checkSubnets(doc, old *hcn.HostComputeNetwork) error {
	if !hostReaches(doc) {
		return nil
	}
	if old != nil && !hostReaches(old) {
		old = nil // up to now it was closed
	}
	has := map[netip.Prefix]bool{}
	if old != nil {
		for _, s := range old.AllSubnets() {
			if p, err := s.Prefix(); err == nil {
				has[p] = true
			}
		}
	}
	for _, s := range doc.AllSubnets() {
		if s.IpAddressPrefix == "" {
			continue // which it is the LAN says
		}
		p, err := s.Prefix()
		if err != nil {
			return err
		}
		if has[p] {
			continue
		}
		for id, n := range t.st.networks {
			if id == doc.ID || !hostReaches(&n.Doc) {
				continue
			}
			for _, o := range n.Doc.AllSubnets() {
				if q, err := o.Prefix(); err == nil && p.Overlaps(q) {
					return hcn.Errorf(hcn.ErrInvalidSubnet, "subnet %s of network %q overlaps %s of network %q: choose another prefix", p, doc.Name, q, n.Doc.Name)
				}
			}
		}
		if plan.OnLAN(doc.Type) {
			continue // the host is on that LAN too
		}
		if clash, ok := ipam.Clash(p, usedByHost(t.facts)); ok {
			return hcn.Errorf(hcn.ErrInvalidSubnet, "subnet %s of network %q overlaps %s, which the host uses as address, route or resolver: choose another prefix (`ip route` shows the host's)", p, doc.Name, clash)
		}
	}
	return nil
}

// ModifyNetwork changes a network; all of the request holds or none.
func (e *Engine) ModifyNetwork(ctx context.Context, id hcn.GUID, r *hcn.ModifyNetworkSettingRequest) error {
	e.mu.RLock()
	shared := e.st.networks[id]
	e.mu.RUnlock()
	if shared != nil && shared.Cluster && r.RequestType != hcn.RequestTypeRefresh {
		return e.modifyClusterNetwork(ctx, shared, r)
	}
	var old, row *plan.Network
	rev, err := e.commitOr(ctx, func(t *txn) error {
		old = t.st.networks[id]
		if old == nil {
			return noNetwork(id)
		}
		doc, err := r.Apply(&old.Doc, hcn.NewGUID)
		if err != nil {
			return err
		}
		if err := t.checkSubnets(doc, &old.Doc); err != nil {
			return err
		}
		if err := checkUplinkStays(&old.Doc, doc); err != nil {
			return err
		}
		if err := checkSourceMAC(doc, t.facts.NIC(old.Uplink)); err != nil {
			return err
		}
		if err := t.checkOverlay(doc, old, old.Uplink); err != nil {
			return err
		}
		if err := t.checkEndpointsStay(id, doc); err != nil {
			return err
		}
		if err := t.checkVIPsStay(id, doc, &old.Doc); err != nil {
			return err
		}
		if r.ResourceType == hcn.NetworkResourceTypePolicy {
			if err := t.checkSetsStay(old, doc); err != nil {
				return err
			}
		}
		next := *old
		next.Doc = *doc
		next.Doc.Version++
		if next.GatewayMAC, err = gatewayMAC(doc); err != nil {
			return err
		}
		if holder, ok := t.st.macs[id][next.GatewayMAC]; ok && holder != id {
			return hcn.Errorf(hcn.ErrInvalidPolicy, "SourceMacAddress: %s belongs to endpoint %s: choose another", next.GatewayMAC, holder)
		}
		row = &next
		t.putNetwork(id, row)
		t.tell(queued{ev: api.Event{Kind: "network", Action: "modify", ID: string(id), Name: old.Doc.Name}, on: networkObjects(id)})
		return nil
	})
	if err != nil {
		return err
	}
	if r.RequestType == hcn.RequestTypeRefresh {
		e.Wake("refresh of network " + string(id))
	}
	if err := e.applied(ctx, rev, objectsOf(&row.Doc)...); err != nil {
		e.undo(ctx, "network", string(id), func(t *txn) {
			if t.st.networks[id] == row { // nobody has changed or deleted it since
				t.putNetwork(id, old)
			}
		})
		return hcn.Errorf(hcn.ErrUnspecified, "change network %q: %w", old.Doc.Name, err)
	}
	e.warnTurned("network", id, row.Doc.Name, hcn.TurnedNetworkDefaults(old.Doc.Policies, row.Doc.Policies))
	return nil
}

// checkEndpointsStay refuses to take a subnet away from under its endpoints.
func (t *txn) checkEndpointsStay(id hcn.GUID, doc *hcn.HostComputeNetwork) error {
	for _, ep := range t.st.byNetwork[id] {
		if ep.Leased || ep.Doc.Flags&hcn.RemoteEndpoint != 0 {
			continue // it asks for another, or is elsewhere
		}
		for _, a := range ep.Addrs {
			if doc.SubnetOf(a.Addr()) == nil {
				return hcn.Errorf(hcn.ErrEntityHasReferences, "endpoint %q (%s) has the address %s of the subnet: delete the endpoint first", ep.Doc.Name, ep.Doc.ID, a.Addr())
			}
		}
	}
	return nil
}

// checkVIPsStay refuses a new subnet around a virtual address: the network's endpoints would look for it on the link.
func (t *txn) checkVIPsStay(id hcn.GUID, doc, old *hcn.HostComputeNetwork) error {
	for lb, b := range t.st.balancers {
		if b.Network != id {
			continue
		}
		for _, a := range b.Doc.VIPs() {
			if s := doc.SubnetOf(a); s != nil && old.SubnetOf(a) == nil {
				return hcn.Errorf(hcn.ErrInvalidSubnet, "subnet %s of network %q has the address %s of load balancer %q (%s) in it, which its endpoints would look for on the link: "+
					"choose another prefix, or give the load balancer another address", s.IpAddressPrefix, doc.Name, a, b.Doc.Name, lb)
			}
		}
	}
	return nil
}

// DeleteNetwork deletes a network, with its endpoints, as HCN clients expect.
func (e *Engine) DeleteNetwork(ctx context.Context, id hcn.GUID) error {
	e.mu.RLock()
	old := e.st.networks[id]
	var running []string
	for _, c := range e.st.containers {
		if c.Want && slices.ContainsFunc(c.Endpoints, func(ep hcn.GUID) bool {
			row := e.st.endpoints[ep]
			return row != nil && row.Doc.HostComputeNetwork == id
		}) {
			running = append(running, c.Doc.Name)
		}
	}
	e.mu.RUnlock()
	if old == nil {
		return e.orForget(ctx, "network", string(id), noNetwork(id))
	}
	if old.Cluster && rehearsing(ctx) == nil {
		return e.deleteClusterNetwork(ctx, old)
	}
	if rehearsing(ctx) == nil {
		if len(running) > 0 {
			slices.Sort(running)
			e.log.Info("a network is deleted under running containers", "network", old.Doc.Name, "containers", strings.Join(running, ","))
		}
		e.hub.emit(hcnEvent("network", "predelete", id, old.Doc.Name, hcn.NotificationNetworkPreDelete))
	}
	rev, err := e.commitOr(ctx, func(t *txn) error {
		if t.st.networks[id] == nil {
			return noNetwork(id)
		}
		t.dropNetwork(id)
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.applied(ctx, rev); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete network %q: it is deleted, and the kernel follows: %w", old.Doc.Name, err)
	}
	return nil
}

// defaultNetwork makes `nat` at the first start. Who deletes it does not get it
// back.
func (e *Engine) defaultNetwork() error {
	_, err := e.commit(func(t *txn) error {
		if t.st.settings[settingDefaultMade] != "" {
			return nil
		}
		t.putSetting(settingDefaultMade, "yes")
		if _, ok := t.st.netNames[DefaultNetworkName]; ok {
			return nil
		}
		_, err := t.newNetwork("", hcn.HostComputeNetwork{
			Name: DefaultNetworkName, Type: hcn.NAT, Owner: "bulkhead", Flags: hcn.EnablePersistent, SchemaVersion: hcn.V2(),
		}, 0)
		return err
	})
	return err
}
