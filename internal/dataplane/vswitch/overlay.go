package vswitch

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Flags of an overlay, and the port of one that has no tunnel now (bpf/lib/structs.h).
const (
	overlayHost      = 1
	overlayRoutes    = 2
	overlaySealed    = 4
	overlayNoKey     = 8
	overlayMulticast = 16
	noTunnel         = 0xffffffff
)

// routeHead is how many bits stand before the address in a key of the routes.
const routeHead = 32

// nicIndex is a NIC that a tunnel's packets come in by.
type nicIndex struct {
	name  string
	index uint32
}

// wantTunnel works out the entries of a VXLAN device. It is no port of any one switch.
func (a *Applier) wantTunnel(s *portState, port *plan.Port) {
	s.entry.Sw, s.entry.Mac, s.entry.Tunnel = 0, [6]uint8{}, uint32(port.UDPPort)
	for _, name := range port.Underlays {
		if index, err := a.dev.index(name); err == nil { // else it is gone
			s.nics = append(s.nics, nicIndex{name, index})
		}
	}
}

// tunnelIndex is that of a switch's VXLAN device; 0 on a switch that needs none.
func (a *Applier) tunnelIndex(p *plan.Plan, sw *plan.Switch) uint32 {
	if sw.Overlay == nil {
		return 0
	}
	if tunnel := p.Ports[sw.Overlay.Tunnel]; tunnel != nil {
		if index, err := a.dev.index(tunnel.Device); err == nil {
			return index
		}
	}
	return noTunnel
}

// needed tells that another port's programs are at a place, too: tunnels share NICs.
func (a *Applier) needed(pin string, except plan.PortID) bool {
	for id, s := range a.applied {
		if id != except && slices.ContainsFunc(s.nics, func(n nicIndex) bool { return underlayPin(n.name) == pin }) {
			return true
		}
	}
	return false
}

// leaveNICs takes the programs off NICs that a tunnel does not use any more.
func (a *Applier) leaveNICs(old, next *portState) error {
	var errs []error
	for _, n := range old.nics {
		h := a.hook(underlayPin(n.name), n.name, bpfProgBhFromUnderlay)
		if slices.ContainsFunc(next.nics, func(m nicIndex) bool { return m.name == n.name }) || a.needed(h.pin, old.id) {
			continue
		}
		errs = append(errs, a.att.detach(h))
		a.writes++
	}
	return errors.Join(errs...)
}

// followsTunnel adds the ports that know a VXLAN device by its index when that changes.
func followsTunnel(p *plan.Plan, d *plan.Delta, out map[plan.PortID]*plan.Port) {
	changed := map[hcn.GUID]bool{}
	for network, c := range d.Switches {
		if c.New != nil && c.New.Overlay != nil {
			changed[network] = true
		}
	}
	for id, c := range d.Ports {
		if c.New == nil || c.New.Kind != plan.PortTunnel {
			continue
		}
		for _, sw := range p.Through(id) {
			changed[sw.Network] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	for id, port := range p.Ports {
		if changed[port.Network] && port.Kind != plan.PortTunnel {
			out[id] = port
		}
	}
}

// overlayEntries are what the maps hold of a switch.
func (a *Applier) overlayEntries(p *plan.Plan, sw *plan.Switch) (bpfOverlay, []bpfVniKey) {
	o := sw.Overlay
	e := bpfOverlay{Tunnel: a.tunnelIndex(p, sw), Mtu: uint32(o.MTU), Router: o.Router, Port: o.Port}
	if o.Host {
		e.Flags |= overlayHost
	}
	if len(o.Routes) > 0 {
		e.Flags |= overlayRoutes
	}
	if o.Multicast {
		e.Flags |= overlayMulticast
	}
	if o.Encrypted {
		e.Flags |= overlaySealed
	}
	if o.Unready {
		e.Flags |= overlayNoKey
	}
	var keys []bpfVniKey
	for _, vni := range sw.VNIs() {
		for _, a := range o.Clear { // to be refused there
			keys = append(keys, bpfVniKey{Vni: vni, Port: uint32(o.Port), To: a.As16()})
		}
	}
	if !o.Provider.IsValid() || e.Tunnel == noTunnel {
		return e, keys
	}
	e.From = o.Provider.As16()
	if index, err := a.dev.index(sw.Uplink); err == nil {
		e.Nic = index
	}
	for _, vni := range sw.VNIs() {
		keys = append(keys, bpfVniKey{Vni: vni, Port: uint32(o.Port), To: e.From})
	}
	return e, keys
}

// setOverlay writes a switch's entries; nil takes them away.
func (a *Applier) setOverlay(p *plan.Plan, number uint32, sw *plan.Switch) error {
	keep := map[bpfVniKey]bool{}
	var entry bpfOverlay
	if sw != nil && sw.Overlay != nil {
		var keys []bpfVniKey
		entry, keys = a.overlayEntries(p, sw)
		for _, k := range keys {
			keep[k] = true
		}
	}
	var errs []error
	for k, n := range a.tables.vnis.have {
		if n == number && !keep[k] {
			errs = append(errs, a.tables.vnis.drop(k))
		}
	}
	maps.DeleteFunc(a.remotes.vnis, func(_ bpfVniKey, n uint32) bool { return n == number })
	delete(a.remotes.overlays, number)
	a.remotes.regrouped[number] = true
	if sw == nil || sw.Overlay == nil {
		return errors.Join(append(errs, a.remotes.setRoutes(number, nil), a.tables.overlays.drop(number))...)
	}
	if had, ok := a.tables.overlays.have[number]; ok && had != entry {
		a.policies.changed = true
	}
	errs = append(errs, a.remotes.setRoutes(number, sw.Overlay.Routes), a.tables.overlays.set(number, entry))
	a.remotes.overlays[number] = entry
	for k := range keep {
		a.remotes.vnis[k] = number
		errs = append(errs, a.tables.vnis.set(k, number))
	}
	return errors.Join(errs...)
}

// updateOverlays applies what a delta changes of other hosts.
func (a *Applier) updateOverlays(p *plan.Plan, d *plan.Delta) error {
	var errs []error
	fail := func(network hcn.GUID, err error) {
		if err != nil {
			errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(network), Err: err})
		}
	}
	for id, c := range d.Remotes {
		if c.New == nil {
			a.about(string(c.Old.Network))
			fail(c.Old.Network, a.remotes.set(id, 0, nil))
		}
	}
	changed := map[hcn.GUID]*plan.Switch{}
	for network, c := range d.Switches {
		changed[network] = c.New
		if c.New == nil {
			a.about(string(network))
			fail(network, a.setOverlay(p, c.Old.Number, nil))
		}
	}
	for id, c := range d.Ports {
		if c.New != nil && c.New.Kind == plan.PortTunnel {
			for _, sw := range p.Through(id) {
				changed[sw.Network] = sw
			}
		}
	}
	for network, sw := range changed {
		if sw != nil {
			a.about(string(network))
			fail(network, a.setOverlay(p, sw.Number, sw))
		}
	}
	for id, c := range d.Remotes {
		if c.New == nil || p.Switches[c.New.Network] == nil {
			continue
		}
		a.about(string(c.New.Network))
		fail(c.New.Network, a.remotes.set(id, p.Switches[c.New.Network].Number, c.New))
	}
	a.weighShifts(p)
	return errors.Join(append(errs, a.remotes.regroup())...)
}

// weighShifts has flows judged again where it may be another now whether they go to this host or to another one. On a network
// without a way to this host each packet looks up who has the address; but where ports have next hops, one of those may have spoken for
// an address that is somebody's now.
func (a *Applier) weighShifts(p *plan.Plan) {
	for sw, shifted := range a.remotes.shifted {
		if shifted && (a.tables.overlays.have[sw].Flags&overlayHost != 0 || hasHops(p, sw)) {
			a.policies.changed = true
		}
	}
	clear(a.remotes.shifted)
}

func hasHops(p *plan.Plan, number uint32) bool {
	for _, port := range p.Ports {
		if sw := p.Switches[port.Network]; len(port.Hops) > 0 && sw != nil && sw.Number == number {
			return true
		}
	}
	return false
}

// syncOverlays makes all that is known of other hosts what the plan says.
func (a *Applier) syncOverlays(p *plan.Plan) error {
	numbers := map[uint32]*plan.Switch{}
	for _, sw := range p.Switches {
		if sw.Overlay != nil {
			numbers[sw.Number] = sw
		}
	}
	var errs []error
	gone := map[uint32]bool{}
	for number := range a.tables.overlays.have {
		gone[number] = numbers[number] == nil
	}
	for _, number := range a.tables.vnis.have {
		gone[number] = numbers[number] == nil
	}
	fresh := newRemotes(a.remotes.t)
	a.remotes = fresh
	for number := range gone {
		if gone[number] {
			errs = append(errs, a.setOverlay(p, number, nil))
		}
	}
	for number, sw := range numbers {
		errs = append(errs, a.setOverlay(p, number, sw))
	}
	// The one that counts comes first, so that no other is written before.
	for _, id := range slices.SortedFunc(maps.Keys(p.Remotes), func(a, b hcn.GUID) int { return cmp.Compare(b, a) }) {
		r := p.Remotes[id]
		if sw := p.Switches[r.Network]; sw != nil {
			errs = append(errs, fresh.set(id, sw.Number, r))
		}
	}
	for k := range fresh.t.floods.have {
		fresh.regrouped[k.Sw] = true
	}
	errs = append(errs, fresh.prune(), fresh.regroup())
	a.weighShifts(p)
	return errors.Join(errs...)
}

// remoteTables are the maps of what is on other hosts. They may be large, so they are read only when everything is compared.
type remoteTables struct {
	endpoints *table[bpfAddrKey, bpfRemote]
	routes    *table[bpfRouteKey, bpfRemote]
	vteps     *table[bpfAddrKey, uint32]
	floods    *table[bpfMemberKey, bpfFloodHost]
}

func newRemoteTables(o *bpfObjects, writes *int) *remoteTables {
	return &remoteTables{
		endpoints: newTable[bpfAddrKey, bpfRemote](bpfMapBhRemotesV1, o.BhRemotesV1, writes),
		routes:    newTable[bpfRouteKey, bpfRemote](bpfMapBhRoutesV2, o.BhRoutesV2, writes),
		vteps:     newTable[bpfAddrKey, uint32](bpfMapBhVtepsV1, o.BhVtepsV1, writes),
		floods:    newTable[bpfMemberKey, bpfFloodHost](bpfMapBhFloodsV1, o.BhFloodsV1, writes),
	}
}

// remotes keep those tables.
type remotes struct {
	t *remoteTables
	// of is what each endpoint has in them. claims are the endpoints that have an address: more than one for a moment, while
	// it moves, and then the one of the highest id counts, as in the plan.
	of     map[hcn.GUID]map[bpfAddrKey]bpfRemote
	claims map[bpfAddrKey][]hcn.GUID
	routes map[uint32]map[bpfRouteKey]bpfRemote
	// hosts counts what leads to each.
	hosts map[bpfAddrKey]uint32
	// overlays and vnis are what was written to those maps.
	overlays map[uint32]bpfOverlay
	vnis     map[bpfVniKey]uint32
	// differ says that somebody changed the tables.
	differ []string
	// shifted are the switches of which an address came to be, or ceased to be, elsewhere.
	shifted map[uint32]bool
	// regrouped are the switches whose group frames may have to go to other hosts than before.
	regrouped map[uint32]bool
}

func newRemotes(t *remoteTables) *remotes {
	return &remotes{
		t: t, of: map[hcn.GUID]map[bpfAddrKey]bpfRemote{}, claims: map[bpfAddrKey][]hcn.GUID{},
		routes: map[uint32]map[bpfRouteKey]bpfRemote{}, hosts: map[bpfAddrKey]uint32{},
		overlays: map[uint32]bpfOverlay{}, vnis: map[bpfVniKey]uint32{}, shifted: map[uint32]bool{}, regrouped: map[uint32]bool{},
	}
}

func (t *remoteTables) all() []roomy { return []roomy{t.endpoints, t.routes, t.vteps, t.floods} }

func (r *remotes) list() (err error) {
	r.differ, err = listAll(r.t.all()...)
	return err
}

// differing are the maps that somebody has changed: of the tables here as the last listing found it, of the others by what was written.
func (r *remotes) differing(t *tables) []string {
	differ := slices.Clone(r.differ)
	if !maps.Equal(t.overlays.have, r.overlays) {
		differ = append(differ, t.overlays.name)
	}
	if !maps.Equal(t.vnis.have, r.vnis) {
		differ = append(differ, t.vnis.name)
	}
	return differ
}

// reach tells that what is for an address goes to another host as long as nobody here has it. After a restart the tables know that,
// and nothing else yet.
func (r *remotes) reach(k bpfAddrKey) bool {
	if _, ok := r.t.endpoints.have[k]; ok {
		return true
	}
	routes := r.routes[k.Sw]
	if len(r.routes) == 0 {
		routes = r.t.routes.have
	}
	for route := range routes {
		if route.Sw == k.Sw && netip.PrefixFrom(netip.AddrFrom16(route.Ip), int(route.Bits)-routeHead).Contains(netip.AddrFrom16(k.Ip)) {
			return true
		}
	}
	return false
}

// set makes an endpoint's entries those of the plan; nil takes them away.
func (r *remotes) set(id hcn.GUID, sw uint32, next *plan.Remote) error {
	want := map[bpfAddrKey]bpfRemote{}
	if next != nil {
		for i, a := range next.Addrs {
			r := bpfRemote{Host: next.Provider.As16(), Vni: next.VNIs[i], Mac: next.MAC}
			if next.Keyless {
				r.Host = [16]byte{} // nowhere
			}
			want[addrKey(sw, a)] = r
		}
	}
	had := r.of[id]
	var errs []error
	// The new host may send before the old one may not.
	for k, v := range want {
		errs = append(errs, r.count(k.Sw, v.Host, 1))
		if _, ok := had[k]; !ok {
			r.claims[k] = append(r.claims[k], id)
		}
	}
	if len(want) > 0 {
		r.of[id] = want
	} else {
		delete(r.of, id)
	}
	for k := range want {
		errs = append(errs, r.settle(k))
	}
	for k, v := range had {
		if _, ok := want[k]; !ok {
			r.claims[k] = slices.DeleteFunc(r.claims[k], func(o hcn.GUID) bool { return o == id })
			errs = append(errs, r.settle(k))
		}
		errs = append(errs, r.count(k.Sw, v.Host, -1))
	}
	return errors.Join(errs...)
}

// settle writes the entry of an address.
func (r *remotes) settle(k bpfAddrKey) error {
	_, had := r.t.endpoints.have[k]
	if len(r.claims[k]) == 0 {
		delete(r.claims, k)
		r.shifted[k.Sw] = r.shifted[k.Sw] || had
		return r.t.endpoints.drop(k)
	}
	r.shifted[k.Sw] = r.shifted[k.Sw] || !had
	return r.t.endpoints.set(k, r.of[slices.Max(r.claims[k])][k])
}

// count notes that so much more leads to a host.
func (r *remotes) count(sw uint32, host [16]uint8, by int) error {
	k := bpfAddrKey{Sw: sw, Ip: host}
	if r.hosts[k] += uint32(by); r.hosts[k] == 0 {
		delete(r.hosts, k)
		r.regrouped[sw] = true
		return r.t.vteps.drop(k)
	}
	r.regrouped[sw] = r.regrouped[sw] || r.hosts[k] == uint32(by)
	if _, ok := r.t.vteps.have[k]; ok {
		return nil // known; the number is ours alone
	}
	return r.t.vteps.set(k, 1)
}

// regroup writes the hosts that get group frames, of the switches of which that may have changed.
func (r *remotes) regroup() error {
	var errs []error
	for sw := range r.regrouped {
		hosts := r.groupHosts(sw)
		for i, h := range hosts {
			errs = append(errs, r.t.floods.set(bpfMemberKey{Sw: sw, Slot: uint32(i)}, h))
		}
		last := len(hosts)
		for r.t.floods.has(bpfMemberKey{Sw: sw, Slot: uint32(last)}) {
			last++
		}
		for ; last > len(hosts); last-- { // no slot before the last is ever empty
			errs = append(errs, r.t.floods.drop(bpfMemberKey{Sw: sw, Slot: uint32(last - 1)}))
		}
	}
	clear(r.regrouped)
	return errors.Join(errs...)
}

// groupHosts are the entries of those hosts, in the order of their slots.
func (r *remotes) groupHosts(sw uint32) []bpfFloodHost {
	o := r.overlays[sw]
	if o.Flags&overlayMulticast == 0 {
		return nil
	}
	var vni uint32
	for k, of := range r.vnis {
		if of == sw && (vni == 0 || k.Vni < vni) {
			vni = k.Vni
		}
	}
	var hosts []netip.Addr
	from := netip.AddrFrom16(o.From)
	for k := range r.hosts {
		if a := netip.AddrFrom16(k.Ip); k.Sw == sw && a.Is4In6() == from.Is4In6() && vni != 0 {
			hosts = append(hosts, a)
		}
	}
	slices.SortFunc(hosts, netip.Addr.Compare)
	hosts = hosts[:min(len(hosts), plan.MaxGroupHosts)]
	out := make([]bpfFloodHost, len(hosts))
	for i, a := range hosts {
		out[i] = bpfFloodHost{Host: a.As16(), Vni: vni}
	}
	if len(out) > 0 {
		out[0].Hosts = uint32(len(out))
	}
	return out
}

// setRoutes makes a switch's routes those of the plan.
func (r *remotes) setRoutes(sw uint32, list []plan.RemoteRoute) error {
	want := map[bpfRouteKey]bpfRemote{}
	for _, route := range list {
		bits := route.Prefix.Bits()
		if route.Prefix.Addr().Is4() {
			bits += mappedBits
		}
		k := bpfRouteKey{Bits: uint32(routeHead + bits), Sw: sw, Ip: route.Prefix.Addr().As16()}
		want[k] = bpfRemote{Host: route.Provider.As16(), Vni: route.VNI, Mac: route.Router, Router: 1}
	}
	had := r.routes[sw]
	var errs []error
	for k, v := range want {
		if _, ok := r.t.routes.have[k]; !ok {
			r.shifted[sw] = true
		}
		errs = append(errs, r.count(sw, v.Host, 1), r.t.routes.set(k, v))
	}
	for k, v := range had {
		if _, ok := want[k]; !ok {
			r.shifted[sw] = true
			errs = append(errs, r.t.routes.drop(k))
		}
		errs = append(errs, r.count(sw, v.Host, -1))
	}
	if len(want) > 0 {
		r.routes[sw] = want
	} else {
		delete(r.routes, sw)
	}
	return errors.Join(errs...)
}

// prune deletes what nothing has.
func (r *remotes) prune() error {
	routes := map[bpfRouteKey]bool{}
	for _, of := range r.routes {
		for k := range of {
			routes[k] = true
		}
	}
	stays := func(sw uint32, ok bool) bool {
		r.shifted[sw] = r.shifted[sw] || !ok
		return ok
	}
	return errors.Join(
		r.t.endpoints.keep(func(k bpfAddrKey) bool { return stays(k.Sw, len(r.claims[k]) > 0) }),
		r.t.routes.keep(func(k bpfRouteKey) bool { return stays(k.Sw, routes[k]) }),
		r.t.vteps.keep(func(k bpfAddrKey) bool { return r.hosts[k] > 0 }))
}

func (r *remotes) twin(rec *recorder, writes *int) *remotes {
	out := newRemotes(&remoteTables{
		endpoints: r.t.endpoints.twin(rec, writes), routes: r.t.routes.twin(rec, writes), vteps: r.t.vteps.twin(rec, writes), floods: r.t.floods.twin(rec, writes),
	})
	out.of, out.routes, out.hosts = maps.Clone(r.of), maps.Clone(r.routes), maps.Clone(r.hosts)
	out.overlays, out.vnis = maps.Clone(r.overlays), maps.Clone(r.vnis)
	for k, list := range r.claims {
		out.claims[k] = slices.Clone(list)
	}
	return out
}
