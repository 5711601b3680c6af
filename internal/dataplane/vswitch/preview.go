package vswitch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// A preview is an Update of a shadow: an applier whose tables are the mirrors of the real ones
// and have no map behind them. It runs the same code on the same state, and what would have
// been written is noted. So it cannot say anything else than an Update does.

// recorder notes what a shadow would have written.
type recorder struct {
	steps []plan.Write
	// entries are those of maps that were touched, in their order: only what is left of all
	// writes to one is told.
	entries []*touch
	at      map[[2]string]*touch
	// owner is the port or network that the writes are for.
	owner string
	// names of devices by index, those that are not there yet among them.
	names map[uint32]string
}

// touch is what becomes of an entry of a map; nil values stand for none.
type touch struct {
	owner, object, key string
	was, is            *string
}

// writes gives what was noted, by what it touches.
func (r *recorder) writes() []plan.Write {
	for _, e := range r.entries {
		w := plan.Write{Owner: e.owner, Object: e.object, Text: e.key}
		switch {
		case e.was == nil && e.is == nil, e.was != nil && e.is != nil && *e.was == *e.is:
			continue
		case e.is == nil:
			w.Sign = plan.Removes
		case e.was == nil:
			w.Sign, w.Text = plan.Adds, e.key+*e.is
		default:
			w.Sign, w.Text = plan.Changes, e.key+*e.is
		}
		r.steps = append(r.steps, w)
	}
	slices.SortStableFunc(r.steps, func(a, b plan.Write) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), cmp.Compare(b.Sign, a.Sign), strings.Compare(a.Text, b.Text))
	})
	return r.steps
}

func (r *recorder) touch(name, key string, was, is *string) {
	object := "map " + name
	e := r.at[[2]string{object, key}]
	if e == nil {
		e = &touch{object: object, key: key, was: was}
		r.at[[2]string{object, key}] = e
		r.entries = append(r.entries, e)
	}
	e.owner, e.is = r.owner, is
}

func (r *recorder) note(sign plan.Sign, object, format string, args ...any) {
	r.steps = append(r.steps, plan.Write{Owner: r.owner, Object: object, Sign: sign, Text: fmt.Sprintf(format, args...)})
}

// about says for whom the writes are that follow.
func (a *Applier) about(owner string) {
	if a.shadow != nil {
		a.shadow.owner = owner
	}
}

// cause is for whom a port's writes are: its own if it changes itself. The NIC of several networks is one port, and what
// becomes of it when another of them comes or goes is for that one.
func cause(id plan.PortID, d *plan.Delta) string {
	if _, itself := d.Ports[id]; itself {
		return string(id)
	}
	for _, network := range slices.Sorted(maps.Keys(d.Switches)) {
		c := d.Switches[network]
		if c.Old != nil && c.Old.UplinkPort == id || c.New != nil && c.New.UplinkPort == id {
			return string(network)
		}
	}
	return string(id)
}

// Preview says what an Update would write. It writes nothing.
func (a *Applier) Preview(ctx context.Context, p *plan.Plan, d *plan.Delta) ([]plan.Write, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.listed {
		return nil, errors.New("the switch has not been compared with the kernel yet: try again in a moment")
	}
	s := a.newShadow()
	err := s.update(ctx, p, d)
	return s.shadow.writes(), err
}

// newShadow copies the applier. Locked: a.mu.
func (a *Applier) newShadow() *Applier {
	r := &recorder{names: map[uint32]string{}, at: map[[2]string]*touch{}}
	for _, s := range a.applied {
		r.names[s.index] = s.device
		if s.vnic != "" {
			r.names[s.counted()] = s.vnic
		}
	}
	s := &Applier{
		log: a.log, pins: a.pins, objs: a.objs, ids: a.ids, listed: true,
		applied: maps.Clone(a.applied), byIndex: maps.Clone(a.byIndex), shadow: r,
	}
	if a.pending != nil {
		waits := *a.pending
		s.pending = &waits
	}
	s.tables = a.tables.twin(r, &s.writes)
	s.groups = readGroups(s.tables)
	s.policies = a.policies.twin(r, &s.writes)
	s.remotes = a.remotes.twin(r, &s.writes)
	s.balance = a.balance.twin(r, &s.writes)
	s.dev = &shadowDevices{real: a.dev, shadow: r}
	s.att = &shadowAttacher{real: a.att, shadow: r}
	return s
}

// shadow copies a table's mirror.
func (t *table[K, V]) twin(r *recorder, writes *int) *table[K, V] {
	return &table[K, V]{name: t.name, have: maps.Clone(t.have), writes: writes, shadow: r}
}

func (s *keySet[K, V]) twin(r *recorder, writes *int) *keySet[K, V] {
	return &keySet[K, V]{name: s.name, have: maps.Clone(s.have), writes: writes, recorder: r}
}

func (t *tables) twin(r *recorder, writes *int) *tables {
	return &tables{
		ports: t.ports.twin(r, writes), macs: t.macs.twin(r, writes), addrs: t.addrs.twin(r, writes),
		switches: t.switches.twin(r, writes), members: t.members.twin(r, writes), rates: t.rates.twin(r, writes),
		steers: t.steers.twin(r, writes), lans: t.lans.twin(r, writes),
		overlays: t.overlays.twin(r, writes), vnis: t.vnis.twin(r, writes),
		stats: t.stats.twin(r, writes), shares: t.shares.twin(r, writes), drops: t.drops.twin(r, writes), groups: t.groups.twin(r, writes),
	}
}

func (ps *policies) twin(r *recorder, writes *int) *policies {
	t := ps.t
	out := newPolicies(&policyTables{
		heads: t.heads.twin(r, writes), rules: t.rules.twin(r, writes), prefixes: t.prefixes.twin(r, writes),
		services: t.services.twin(r, writes), sets: t.sets.twin(r, writes), classes: t.classes.twin(r, writes),
		vectors: t.vectors.twin(r, writes),
	})
	twins := map[*policy]*policy{}
	for id, p := range ps.byID {
		twin := *p
		twin.vectors, twin.classes = maps.Clone(p.vectors), maps.Clone(p.classes)
		twins[p] = &twin
		out.byID[id] = &twin
	}
	for key, p := range ps.byKey {
		out.byKey[key] = twins[p]
	}
	for key, p := range ps.retired {
		out.retired[key] = twins[p]
	}
	for n, v := range ps.vectors {
		twin := *v
		out.vectors[n] = &twin
	}
	for sw, s := range ps.switches {
		twin := *s
		out.switches[sw] = &twin
	}
	return out
}

// settleShadow ends a preview as settle ends a change; what is collected later is noted at once.
func (a *Applier) settleShadow() error {
	a.about("")
	a.policies.retire()
	if a.policies.changed || a.balance.changed {
		a.shadow.note(plan.Changes, "map "+bpfMapBhConfigV1, "every flow is judged again with its next packet")
	}
	err := errors.Join(a.policies.collect(a.policies.garbage), a.balance.collect(a.balance.garbage))
	if a.policies.stale {
		err = errors.Join(err, a.policies.forgetCombinations())
	}
	return err
}

// shadowDevices gives devices that are still to be made an index that no device has.
type shadowDevices struct {
	real   devices
	shadow *recorder
	next   uint32
}

// unborn is where the indexes begin: those of the kernel are positive as an int32.
const unborn = 1 << 31

func (d *shadowDevices) index(name string) (uint32, error) {
	i, err := d.real.index(name)
	if err == nil {
		d.shadow.names[i] = name
		return i, nil
	}
	for i, known := range d.shadow.names {
		if known == name && i >= unborn {
			return i, nil
		}
	}
	d.next++
	d.shadow.names[unborn+d.next] = name
	return unborn + d.next, nil
}

func (d *shadowDevices) close() error { return nil }

// shadowAttacher looks and attaches nothing.
type shadowAttacher struct {
	real   attacher
	shadow *recorder
}

func (s *shadowAttacher) mode() AttachMode { return s.real.mode() }

func (s *shadowAttacher) ensure(h spot) (string, error) {
	if h.index < unborn {
		if ok, err := s.real.attached([]spot{h}); ok || err != nil {
			return "", err
		}
	}
	s.shadow.note(plan.Adds, "link "+h.dev, "program %s", h.title())
	return "", nil
}

func (s *shadowAttacher) attached(hooks []spot) (bool, error) { return s.real.attached(hooks) }

func (s *shadowAttacher) detach(h hook) error {
	s.shadow.note(plan.Removes, "link "+h.dev, "program %s", h.title())
	return nil
}

func (s *shadowAttacher) prune(map[string]bool) ([]string, error) { return nil, nil }
func (s *shadowAttacher) close() error                            { return nil }

// title says which program it is, and where it is put.
func (h hook) title() string {
	if h.egress {
		return h.name + " at tc egress"
	}
	return h.name + " at tc ingress"
}

// key writes the key of an entry for people, value what follows it.
func (r *recorder) key(k any) string {
	switch k := k.(type) {
	case bpfMacKey:
		return fmt.Sprintf("%s %s", switchText(k.Sw), plan.MAC(k.Mac))
	case bpfAddrKey:
		return fmt.Sprintf("%s %s", switchText(k.Sw), netip.AddrFrom16(k.Ip).Unmap())
	case bpfMemberKey:
		return fmt.Sprintf("%s slot %d", switchText(k.Sw), k.Slot)
	case bpfLanKey:
		return fmt.Sprintf("%s further network %d", r.device(k.Nic), k.Slot)
	case bpfRateKey:
		return fmt.Sprintf("%s %s", r.device(k.Port), []string{"out", "in"}[k.Side&1])
	case bpfSteerKey:
		return fmt.Sprintf("%s protocol %d %s", r.device(k.Port), k.Proto, block(k.Ip, int(k.Bits)-steerHead))
	case bpfRuleKey:
		return fmt.Sprintf("list %08x rule %d", k.Policy, k.Index)
	case bpfPrefixKey:
		return fmt.Sprintf("list %08x %s %s", k.Policy, sideText(int(k.Side)), block(k.Ip, int(k.Bits)-prefixHead))
	case bpfServiceKey:
		return fmt.Sprintf("list %08x %s protocol %d port %d/%d", k.Policy, sideText(int(k.Side)), k.Proto, k.Port<<8|k.Port>>8, k.Bits)
	case bpfSetKey:
		return fmt.Sprintf("%s %s", switchText(k.Sw), block(k.Ip, int(k.Bits)-setHead))
	case bpfClassKey:
		return fmt.Sprintf("list %08x %s sets %08x", k.Policy, sideText(int(k.Side)), k.Class)
	case bpfVectorKey:
		return fmt.Sprintf("vector %08x piece %d", k.Vector, k.Piece)
	case bpfRouteKey:
		return fmt.Sprintf("%s %s", switchText(k.Sw), block(k.Ip, int(k.Bits)-routeHead))
	case bpfVniKey:
		return fmt.Sprintf("network %d udp %d %s", k.Vni, k.Port, netip.AddrFrom16(k.To).Unmap())
	case bpfVipKey:
		return fmt.Sprintf("%s %s %s", switchText(k.Sw), plan.ProtocolName(k.Proto), netip.AddrPortFrom(netip.AddrFrom16(k.Ip).Unmap(), k.Port))
	case bpfPlacesKey:
		return fmt.Sprintf("back ends %08x piece %d", k.Table, k.Piece)
	case bpfBackendKey:
		return fmt.Sprintf("back ends %08x number %d", k.Table, k.Backend)
	case bpfStandingKey:
		return fmt.Sprintf("back ends %08x %s", k.Table, netip.AddrPortFrom(netip.AddrFrom16(k.Ip).Unmap(), k.Port))
	case bpfDropKey:
		return fmt.Sprintf("%s %s", r.device(k.Port), Reason(k.Reason))
	}
	return fmt.Sprint(k)
}

func (r *recorder) value(v any) string {
	switch v := v.(type) {
	case bpfPort:
		list := func(side string, id uint32) string {
			if id == 0 {
				return ""
			}
			return fmt.Sprintf(" %s list %08x", side, id)
		}
		shared := ""
		if v.Flags&portShared != 0 {
			shared = " of several networks"
		}
		return fmt.Sprintf(": %s %s", switchText(v.Sw), plan.MAC(v.Mac)) + shared + list("out", v.Out) + list("in", v.In)
	case bpfDest:
		return ": " + r.device(v.Port)
	case bpfOwner:
		return fmt.Sprintf(": %s %s", r.device(v.Port), plan.MAC(v.Mac))
	case bpfVswitch:
		s := fmt.Sprintf(": members %d", v.Members)
		if v.Resolver != 0 {
			s += " resolver " + r.device(v.Resolver)
		}
		if v.Uplink != 0 {
			s += " uplink " + r.device(v.Uplink)
		}
		return s
	case bpfLan:
		return ": " + switchText(v.Sw)
	case bpfRemote:
		return fmt.Sprintf(": %s in network %d by %s", plan.MAC(v.Mac), v.Vni, netip.AddrFrom16(v.Host).Unmap())
	case bpfFloodHost:
		return fmt.Sprintf(": network %d by %s", v.Vni, netip.AddrFrom16(v.Host).Unmap())
	case bpfOverlay:
		return fmt.Sprintf(": router %s, tunnels from %s by %s", plan.MAC(v.Router), netip.AddrFrom16(v.From).Unmap(), r.device(v.Nic))
	case bpfVip:
		if v.Table == 0 {
			return ": no back end"
		}
		return fmt.Sprintf(": back ends %08x", v.Table)
	case bpfBackend:
		return ": " + netip.AddrPortFrom(netip.AddrFrom16(v.Ip).Unmap(), v.Port).String()
	case bpfRate:
		return fmt.Sprintf(": %d bytes/s", v.Bytes)
	case bpfSteer:
		if v.Hop != [16]uint8{} {
			return ": to " + netip.AddrFrom16(v.Hop).Unmap().String()
		}
		if v.To.Port == 0 {
			return ": as ever"
		}
		return ": by " + r.device(v.To.Port)
	case bpfRule:
		return fmt.Sprintf(": number %d %s", v.Number, plan.Action(v.Action))
	case bpfPolicy:
		return fmt.Sprintf(": %d rules", v.Rules)
	}
	return ""
}

func sideText(side int) string { return []string{"local", "remote"}[side&1] }

func block(ip [16]byte, n int) string {
	a := netip.AddrFrom16(ip)
	if a.Is4In6() && n >= mappedBits {
		return netip.PrefixFrom(a.Unmap(), n-mappedBits).String()
	}
	return netip.PrefixFrom(a, n).String()
}

func switchText(segment uint32) string {
	if v := vlanOf(segment); v != 0 {
		return fmt.Sprintf("switch %d vlan %d", switchOf(segment), v)
	}
	return fmt.Sprintf("switch %d", segment)
}

func (r *recorder) device(index uint32) string {
	if name := r.names[index]; name != "" {
		return name
	}
	return fmt.Sprintf("device %d", index)
}

// indexed are the maps whose key is the index of a port's device.
var indexed = []string{bpfMapBhPortsV3, bpfMapBhStatsV1, bpfMapBhSharesV4}

// keyIn is the key of an entry in the map of this name: a bare number means a device, a switch or a list.
func (r *recorder) keyIn(name string, k any) string {
	n, ok := k.(uint32)
	switch {
	case !ok:
		return r.key(k)
	case slices.Contains(indexed, name):
		return r.device(n)
	case name == bpfMapBhSwitchesV2, name == bpfMapBhOverlaysV1:
		return switchText(n)
	}
	return fmt.Sprintf("list %08x", n)
}

// put notes an entry that would be written; old is what was there, nil for nothing.
func (r *recorder) put(name string, k, old, v any) {
	is := r.value(v)
	r.touch(name, r.keyIn(name, k), r.former(old), &is)
}

// drop notes an entry that would be deleted.
func (r *recorder) drop(name string, k, old any) {
	r.touch(name, r.keyIn(name, k), r.former(old), nil)
}

func (r *recorder) former(old any) *string {
	if old == nil {
		return nil
	}
	was := r.value(old)
	return &was
}
