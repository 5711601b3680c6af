package netdev

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// createPort makes a port that is believed to be absent. When something is in the way it falls back to looking.
func (ps *pass) createPort(p *plan.Port) error {
	switch p.Kind {
	case plan.PortTunnel:
		return ps.ensureTunnel(p)
	case plan.PortMacvlan:
		return ps.ensureMacvlan(p)
	default:
	}
	return ps.create(p, ps.ensurePort)
}

// createAnew makes a port after a look: what is in its way now is an error, or looking and making would take turns for ever.
func (ps *pass) createAnew(p *plan.Port) error {
	return ps.create(p, func(p *plan.Port) error {
		return fmt.Errorf("make %s anew: its former self is still there: %w", p.Device, unix.EEXIST)
	})
}

func (ps *pass) create(p *plan.Port, inTheWay func(*plan.Port) error) error {
	if ps.dry != nil {
		return ps.previewPair(p)
	}
	if s := ps.spareOf(p); s != nil {
		return ps.adoptSpare(p, s)
	}
	err := ps.makePair(p)
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	// It may be this port's own former life, or another's whose interface had the same name: let the dying go.
	if err := ps.n.reap.wait(ps.ctx); err != nil {
		return err
	}
	if err = ps.makePair(p); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	if l, ok, lookErr := ps.hostLink(p.Device); lookErr != nil {
		return lookErr
	} else if ok && l.ours() {
		return inTheWay(p)
	} else if ok {
		return foreignLink(l)
	}
	return taken(p, err)
}

// taken says that the name of a vNIC is somebody else's.
func taken(p *plan.Port, err error) error {
	return fmt.Errorf("%w: an interface %s that is not ours exists in %s: remove it, or choose another name",
		err, p.VNIC.Device, place(p.VNIC.Namespace))
}

func foreignLink(l link) error {
	return fmt.Errorf("a %s link %s exists that is not ours (alias %q): remove or rename it", l.kind, l.name, l.alias)
}

func place(namespace string) string {
	if namespace == "" {
		return "the host"
	}
	return namespace
}

// makePair creates the pair and gives it all that the plan says.
func (ps *pass) makePair(p *plan.Port) error {
	s, err := ps.space(p.VNIC.Home())
	if err != nil {
		return err
	}
	ps.n.known.note(p, true)
	if err := ps.n.host.write(newPair(p, s.fd, s.next)); err != nil {
		ps.n.known.forget(p.Device)
		return err
	}
	ps.forget(p.Device)
	// Both ends as they are now; only their indices may have to be asked for. An echo of the message (NLM_F_ECHO) would
	// tell too, but costs as much as the look-up by netlink.
	near := link{name: p.Device, kind: "veth", mtu: p.VNIC.MTU, group: groupOurs, flags: unix.IFF_NOARP, peer: s.next}
	if near.index, err = indexAt(ps.n.host.fd, p.Device); err != nil {
		return fmt.Errorf("find new link %s: %w", p.Device, err)
	}
	ps.n.known.born(p.Device, near.index)
	far := link{index: s.next, name: p.VNIC.Device, kind: "veth", mtu: p.VNIC.MTU, mac: p.VNIC.MAC, peer: near.index}
	if s.next != 0 {
		s.next++
	} else {
		ok := false
		if far, ok, err = s.conn.linkByName(p.VNIC.Device); err != nil || !ok {
			return fmt.Errorf("find new interface %s: %w", p.VNIC.Device, errors.Join(err, missingIf(!ok)))
		}
		near.peer = far.index
	}
	if p.VNIC.Adopted && !p.VNIC.Parked {
		if err := ps.n.within(s.fd, func() error { return ps.n.writeSettings(quietVNIC(&p.VNIC)) }); err != nil {
			return err
		}
	}
	if ps.links != nil {
		ps.links[near.name] = near
		if s.path == "" {
			ps.links[far.name] = far
		}
	}
	if p.Kind != plan.PortContainer {
		ps.born[plan.Interface{Namespace: s.path, Device: far.name}] = true
	}
	return ps.configure(p, s, near, far, nil, true)
}

func missingIf(missing bool) error {
	if missing {
		return unix.ENODEV
	}
	return nil
}

// ensurePort compares a port with the kernel and writes the difference.
func (ps *pass) ensurePort(p *plan.Port) error {
	switch p.Kind {
	case plan.PortTunnel:
		return ps.ensureTunnel(p)
	case plan.PortMacvlan:
		return ps.ensureMacvlan(p)
	default:
	}
	s, err := ps.space(p.VNIC.Home())
	if err != nil {
		return err
	}
	if s.unborn() {
		return ps.previewPair(p)
	}
	near, ok, err := ps.hostLink(p.Device)
	switch {
	case err != nil:
		return err
	case !ok:
		ps.found(string(p.ID), "link "+p.Device, "missing")
		if err := errors.Join(ps.dropRenamed(p), ps.dropOrphan(p, s)); err != nil {
			return err
		}
		return ps.createAnew(p)
	case !near.ours():
		return foreignLink(near)
	case near.group == groupDying:
		// Cut off and not deleted yet: by our own reaper, or by a daemon that was killed before it came to that.
		return ps.replace(p, s, near)
	}
	far, ok, err := ps.linkIn(s, p.VNIC.Device)
	if err == nil && !p.VNIC.Parked {
		err = s.list()
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", place(s.path), err)
	}
	if !ok && p.VNIC.Parked {
		// Its runtime has moved it, and the engine learns where to. A vNIC that is gone would have taken its peer along.
		return ps.configureNear(p, near)
	}
	if !ok || far.kind != "veth" || far.peer != near.index || near.peer != far.index {
		// The vNIC was renamed, or moved to another namespace. A device that was in foreign hands is not taken back:
		// the pair is made anew.
		ps.found(string(p.ID), "link "+p.VNIC.Device+" in "+place(s.path), "moved away")
		return ps.replace(p, s, near)
	}
	if p.VNIC.Parked {
		return ps.configure(p, s, near, far, nil, false)
	}
	known, err := ps.neighboursOf(p, s, far)
	if err != nil {
		return fmt.Errorf("list neighbours in %s: %w", place(s.path), err)
	}
	return ps.configure(p, s, near, far, known, false)
}

// replace deletes a pair that cannot be used and makes it anew.
func (ps *pass) replace(p *plan.Port, s *space, near link) error {
	if err := ps.write(ps.n.host, string(p.ID), "link "+p.Device, deleteLink(near)); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	ps.forget(p.Device)
	s.listed = false
	return ps.createAnew(p)
}

// dropRenamed deletes the pair of a port whose switch side somebody has renamed; its vNIC would be in the way.
func (ps *pass) dropRenamed(p *plan.Port) error {
	for name, l := range ps.links {
		if l.alias == p.Alias && l.ours() && l.group == groupOurs && name != p.Device {
			delete(ps.links, name)
			if err := ps.write(ps.n.host, string(p.ID), "link "+name, deleteLink(l)); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropOrphan deletes the vNIC of a port whose switch side somebody has moved to another namespace: it would be in the way,
// and with it goes the pair, wherever its other end is.
func (ps *pass) dropOrphan(p *plan.Port, s *space) error {
	far, ok, err := ps.linkIn(s, p.VNIC.Device)
	if err != nil || !ok || far.kind != "veth" || p.VNIC.Alias == "" || far.alias != p.VNIC.Alias {
		return err
	}
	if s.path == "" {
		ps.forget(far.name)
	}
	s.listed = false
	return ps.write(s.conn, string(p.ID), "link "+far.name+" in "+place(s.path), deleteLink(far))
}

// configure writes what differs at both ends of a pair.
func (ps *pass) configure(p *plan.Port, s *space, near, far link, known []neighbour, fresh bool) error {
	if !fresh && ps.dry == nil {
		ps.n.known.note(p, false)
		ps.n.known.born(p.Device, near.index)
	}
	d := differ{ps: ps, id: string(p.ID), quiet: fresh, inside: s.path != ""}
	d.near(p, near, fresh)
	if err := ps.write(ps.n.host, d.id, "link "+p.Device, d.take()...); err != nil {
		return err
	}
	if ps.spareOf(p) == nil { // which has them
		if err := ps.ensureSettings(fresh, string(p.ID), deviceSettings(false, p.Device)); err != nil {
			return err
		}
	}
	if p.VNIC.Parked {
		d.parked(p, far)
		return ps.write(s.conn, d.id, "link "+far.name, d.take()...)
	}
	if s.path == "" {
		if err := ps.ensureSettings(fresh, string(p.ID), deviceSettings(true, far.name)); err != nil {
			return err
		}
	}
	d.far(p, s, far, known, fresh)
	return ps.write(s.conn, d.id, "link "+far.name+" in "+place(s.path), d.take()...)
}

// configureNear is configure for a vNIC that is in other hands.
func (ps *pass) configureNear(p *plan.Port, near link) error {
	ps.n.known.note(p, false)
	ps.n.known.born(p.Device, near.index)
	d := differ{ps: ps, id: string(p.ID)}
	d.near(p, near, false)
	return ps.write(ps.n.host, d.id, "link "+p.Device, d.take()...)
}

// differ collects the writes that make a device what the plan says.
type differ struct {
	ps     *pass
	id     string
	quiet  bool // nothing that is found is drift
	inside bool // the far end is in a compartment
	writes []write
}

func (d *differ) take() []write {
	w := d.writes
	d.writes = nil
	return w
}

func (d *differ) found(object, format string, args ...any) {
	if !d.quiet {
		d.ps.found(d.id, object, format, args...)
	}
}

func (d *differ) add(w write) { d.writes = append(d.writes, w) }

// near compares the switch side. Whether it is up is Finish's affair.
func (d *differ) near(p *plan.Port, l link, fresh bool) {
	object := "link " + p.Device
	var attrs []*nl.RtAttr
	var words []string
	// That of a new one comes with the message that sets it up: each is an event for all who listen.
	if l.alias != p.Alias && !fresh {
		d.found(object, "alias %q", l.alias)
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(p.Alias)))
		words = append(words, fmt.Sprintf("alias %q", p.Alias))
	}
	if l.mtu != p.VNIC.MTU {
		d.found(object, "MTU %d", l.mtu)
		attrs = append(attrs, attrUint32(unix.IFLA_MTU, uint32(p.VNIC.MTU)))
		words = append(words, fmt.Sprintf("mtu %d", p.VNIC.MTU))
	}
	if sizes := d.segments(object, p.VNIC.Segments, l); len(sizes) > 0 {
		attrs = append(attrs, sizes...)
		words = append(words, "largest segment")
	}
	if l.group != groupOurs {
		d.found(object, "group %d", l.group)
		attrs = append(attrs, attrUint32(unix.IFLA_GROUP, groupOurs))
	}
	arp := l.flags&unix.IFF_NOARP == 0
	if arp {
		d.found(object, "answering ARP")
	}
	if len(attrs) > 0 || arp {
		w := setLink("configure "+p.Device, l.index, unix.IFF_NOARP, attrs...)
		if !fresh {
			w.what = strings.Join(append(words, "no ARP"), ", ")
		}
		d.add(w)
	}
	for _, name := range l.altNames {
		if name != p.AltName {
			d.found(object, "further name %s", name)
			d.add(altName(l.index, name, unix.RTM_DELLINKPROP))
		}
	}
	if p.AltName != "" && !slices.Contains(l.altNames, p.AltName) {
		if len(l.altNames) > 0 || !fresh {
			d.found(object, "without further name %s", p.AltName)
		}
		d.add(altName(l.index, p.AltName, unix.RTM_NEWLINKPROP))
	}
}

// parked compares a vNIC that waits for its runtime: it is down, and has no address.
func (d *differ) parked(p *plan.Port, l link) {
	object := "link " + l.name
	var attrs []*nl.RtAttr
	if l.mac != p.VNIC.MAC {
		d.found(object, "MAC %s", l.mac)
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_ADDRESS, p.VNIC.MAC[:]))
	}
	if l.mtu != p.VNIC.MTU {
		d.found(object, "MTU %d", l.mtu)
		attrs = append(attrs, attrUint32(unix.IFLA_MTU, uint32(p.VNIC.MTU)))
	}
	if len(attrs) > 0 {
		d.add(setLink("configure "+l.name, l.index, 0, attrs...))
	}
}

// far compares the vNIC. Only what we set is looked at, and only what carries our mark is taken away.
func (d *differ) far(p *plan.Port, s *space, l link, known []neighbour, fresh bool) {
	v := p.VNIC
	object := "link " + v.Device + " in " + place(v.Namespace)
	var attrs []*nl.RtAttr
	var words []string
	if v.Alias != "" && l.alias != v.Alias {
		d.found(object, "alias %q", l.alias)
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(v.Alias)))
		words = append(words, fmt.Sprintf("alias %q", v.Alias))
	}
	if l.mac != v.MAC {
		d.found(object, "MAC %s", l.mac)
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_ADDRESS, v.MAC[:]))
		words = append(words, "address "+v.MAC.String())
		if !fresh {
			d.ps.born[plan.Interface{Namespace: v.Namespace, Device: v.Device}] = true // it knows nobody any more
		}
	}
	if l.mtu != v.MTU {
		d.found(object, "MTU %d", l.mtu)
		attrs = append(attrs, attrUint32(unix.IFLA_MTU, uint32(v.MTU)))
		words = append(words, fmt.Sprintf("mtu %d", v.MTU))
	}
	if sizes := d.segments(object, v.Segments, l); len(sizes) > 0 {
		attrs = append(attrs, sizes...)
		words = append(words, "largest segment")
	}
	if !l.up() {
		d.found(object, "down")
	}
	if fresh && d.ps.spareOf(p) == nil { // which was told
		d.add(noLinkLocal(v.Device, l.index))
	}
	if len(attrs) > 0 || !l.up() {
		w := setLink("configure "+v.Device, l.index, unix.IFF_UP, attrs...)
		if !fresh {
			w.what = strings.Join(append(words, "up"), ", ")
		}
		d.add(w)
	}
	var addrs []address
	var routes []route
	var neighbours []neighbour
	if !fresh {
		addrs, routes = s.addrs, s.routes
	}
	if l.mac == v.MAC { // a new MAC empties the table
		neighbours = known
	}
	d.addresses(object, v, l.index, addrs)
	d.connected(object, v, l, addrs, routes)
	d.routes(object, v, l.index, routes)
	d.loopback(object, v, l.index, routes)
	if p.Kind != plan.PortHost { // whose neighbours are an introduction
		d.neighbours(object, v.Neighbours, l.index, neighbours)
	}
}

func (d *differ) addresses(object string, v plan.VNIC, index int, have []address) {
	want := slices.Clone(v.Addrs)
	if v.LinkLocal.IsValid() {
		want = append(want, netip.PrefixFrom(v.LinkLocal, 64))
	}
	// What is stale goes first: an IPv4 address that is the second of its subnet is deleted with the first.
	kept := have[:0:0]
	for _, h := range have {
		if h.index != index {
			continue
		}
		wrong := !slices.Contains(want, h.prefix) || h.flags&unix.IFA_F_NOPREFIXROUTE != 0 != hasOwnRoute(v, h.prefix)
		if h.proto == protoOurs && wrong {
			d.found(object, "address %s", h.prefix)
			d.add(changeAddress(unix.RTM_DELADDR, index, h.prefix, false))
			continue
		}
		kept = append(kept, h)
	}
	for _, a := range want {
		if !slices.ContainsFunc(kept, func(h address) bool { return h.prefix == a }) {
			d.found(object, "without address %s", a)
			d.add(changeAddress(unix.RTM_NEWADDR, index, a, hasOwnRoute(v, a)))
		}
	}
}

// hasOwnRoute tells that the plan itself routes an address's prefix on the link, so the kernel shall not.
func hasOwnRoute(v plan.VNIC, a netip.Prefix) bool {
	return slices.ContainsFunc(v.Routes, func(r plan.Route) bool { return r.Dst == a.Masked() && !r.Via.IsValid() })
}

// routes compares the main table. A stale route goes first: it may have the place of a new one.
func (d *differ) routes(object string, v plan.VNIC, index int, have []route) {
	// A link that was down, or an address that goes, has taken routes along: then "have" shows them missing, or the
	// kernel drops them after this listing and the next Sync puts them back.
	var missing []plan.Route
	missing = append(missing, v.Routes...)
	for _, h := range have {
		if h.oif != index || h.proto != protoOurs || h.table != unix.RT_TABLE_MAIN {
			continue
		}
		if i := slices.IndexFunc(missing, func(r plan.Route) bool { return sameRoute(h, r) }); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		stale := plan.Route{Dst: h.dst, Via: h.via, OnLink: h.onLink, Metric: h.metric}
		d.found(object, "route %s", routeText(stale))
		d.add(changeRoute(unix.RTM_DELROUTE, index, stale))
	}
	// A gateway must be reachable before a route may name it.
	slices.SortStableFunc(missing, func(a, b plan.Route) int { return needs(a) - needs(b) })
	for _, r := range missing {
		d.found(object, "without route %s", routeText(r))
		w := changeRoute(unix.RTM_NEWROUTE, index, r)
		if d.inPlace(have, r.Dst, unix.RT_TABLE_MAIN, metricOf(r)) {
			w.req.Flags = w.req.Flags&^unix.NLM_F_EXCL | unix.NLM_F_REPLACE
			w.words = func() (doing, what string) { return "put back route " + routeText(r), "route " + routeText(r) }
		}
		d.add(w)
	}
}

// needs ranks a route by what has to be there before it.
func needs(r plan.Route) int {
	switch {
	case !r.Via.IsValid():
		return 0
	case r.OnLink:
		return 1
	}
	return 2
}

// metricOf is the metric that the kernel keeps a route with.
func metricOf(r plan.Route) int {
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		return metric6
	}
	return r.Metric
}

func sameRoute(h route, r plan.Route) bool {
	return h.dst == r.Dst && h.via == r.Via && h.metric == metricOf(r) && h.onLink == (r.OnLink && r.Via.IsValid())
}
