package vswitch

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Flags of an address's owner (OWNER_* in bpf/lib/structs.h).
const (
	ownerGateway  = 1
	ownerResolver = 2
	ownerGuest    = 4
)

// portState is everything that one port has in the maps, as worked out from the plan
// and the indexes of its devices.
type portState struct {
	id     plan.PortID
	kind   plan.PortKind
	device string
	index  uint32
	entry  bpfPort
	// out and in are the lists of rules, zero for none.
	out, in listKey
	macs    map[bpfMacKey]bpfDest
	addrs   map[bpfAddrKey]bpfOwner
	rates   map[bpfRateKey]bpfRate
	steers  map[bpfSteerKey]bpfSteer
	lans    map[bpfLanKey]bpfLan // of a NIC: its other switches
	nics    []nicIndex           // of a tunnel: what its packets come in by
	vnic    string               // of a guest on a LAN: what its frames are counted under
	// dest is how to reach it; member says that it gets broadcast.
	dest   bpfDest
	member bool
}

func (s *portState) equal(o *portState) bool {
	return s.index == o.index && s.device == o.device && s.entry == o.entry && s.dest == o.dest &&
		s.member == o.member && mapsEqual(s.macs, o.macs) && mapsEqual(s.addrs, o.addrs) && mapsEqual(s.rates, o.rates) &&
		mapsEqual(s.steers, o.steers) && mapsEqual(s.lans, o.lans) && slices.Equal(s.nics, o.nics)
}

func mapsEqual[K, V comparable](a, b map[K]V) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// Flags of a port (PORT_* in bpf/lib/structs.h).
const (
	portIsolated = 1
	portGuests   = 2
	portRateOut  = 4
	portRateIn   = 8
	portSteered  = 16
	portLAN      = 32
	portOneMAC   = 64
	portTunnel   = 128
	portShared   = 1 // of a NIC
)

// destGuest is PORT_GUEST: how a frame gets to a vNIC of the host's own on a LAN.
const destGuest = 5

// lanFlags say what a switch with a NIC does at it.
func lanFlags(m plan.Mode) uint8 {
	switch m {
	case plan.ModeTransparent:
		return portLAN
	case plan.ModeL2Bridge:
		return portLAN | portOneMAC
	case plan.ModeL2Tunnel:
		return portLAN | portOneMAC | portTunnel
	default:
		return 0
	}
}

// switchBits is where the VLAN begins in a switch's number (SEGMENT in bpf/lib/structs.h).
const switchBits = 20

func segment(sw uint32, vlan uint16) uint32 { return sw | uint32(vlan)<<switchBits }

func vlanOf(segment uint32) uint16 { return uint16(segment >> switchBits) }

// switchOf is the number of the network's switch. The bit above it is HALF, in the keys of flows.
func switchOf(segment uint32) uint32 { return segment & (1<<(switchBits-1) - 1) }

// wantPolicy takes the numbers of the port's lists. Their content is written with the port.
func (a *Applier) wantPolicy(s *portState, port *plan.Port) error {
	var err error
	if s.out, s.entry.Out, err = a.policies.reserve(port.Switch, port.Policy.Out); err != nil {
		return portError(port.ID, "rules for what it sends: %w", err)
	}
	if s.in, s.entry.In, err = a.policies.reserve(port.Switch, port.Policy.In); err != nil {
		return portError(port.ID, "rules for what it receives: %w", err)
	}
	if port.Policy.Isolated {
		s.entry.Flags |= portIsolated
	}
	if port.Policy.RateOut > 0 {
		s.entry.Flags |= portRateOut
		s.rates[bpfRateKey{Port: s.index, Side: rateOut}] = rate(port.Policy.RateOut)
	}
	if port.Policy.RateIn > 0 {
		s.entry.Flags |= portRateIn
		s.rates[bpfRateKey{Port: s.index, Side: rateIn}] = rate(port.Policy.RateIn)
	}
	return nil
}

// want works out a port's entries.
func (a *Applier) want(p *plan.Plan, port *plan.Port) (*portState, error) {
	sw := p.Switches[port.Network]
	if sw == nil || sw.Number != port.Switch || sw.Number == 0 {
		return nil, portError(port.ID, "its switch %d is not in the plan", port.Switch)
	}
	index, err := a.dev.index(port.Device)
	if err != nil {
		return nil, portError(port.ID, "%w", err)
	}
	s := &portState{
		id: port.ID, kind: port.Kind, device: port.Device, index: index,
		entry: bpfPort{Sw: segment(sw.Number, port.VLAN), Mac: port.MAC, Kind: uint8(port.Kind)},
		dest:  bpfDest{Port: index, Device: index, Kind: uint8(port.Kind)},
		macs:  map[bpfMacKey]bpfDest{}, addrs: map[bpfAddrKey]bpfOwner{}, rates: map[bpfRateKey]bpfRate{},
		steers: map[bpfSteerKey]bpfSteer{},
		member: port.Kind != plan.PortResolver && port.Kind != plan.PortUplink && port.Kind != plan.PortTunnel,
	}
	if port.Kind == plan.PortTunnel {
		a.wantTunnel(s, port)
		return s, nil
	}
	s.entry.Tunnel = a.tunnelIndex(p, sw)
	s.entry.Flags |= lanFlags(sw.Mode)
	if port.Kind == plan.PortUplink {
		return s, s.wantLANs(p, port) // who is not on the switch is behind it
	}
	if err := a.wantPolicy(s, port); err != nil {
		return nil, err
	}
	if err := a.wantDetours(s, p, port); err != nil {
		return nil, err
	}
	// A frame into the host's own stack goes to the receiving side of the vNIC, the host's or an endpoint's.
	if port.VNIC.Namespace == "" {
		s.dest.Kind = uint8(plan.PortHost)
		if s.dest.Device, err = a.dev.index(port.VNIC.Device); err != nil {
			return nil, portError(port.ID, "%w", err)
		}
	}
	owner := index
	if sw.Mode.OnLAN() && isGuest(port) {
		// It is a port of the host's, which is behind the NIC with all else that it has; the NIC gets the group frames.
		s.entry.Kind, s.dest.Kind, s.member, s.vnic = uint8(plan.PortHost), destGuest, false, port.VNIC.Device
		if s.dest.Port, err = a.uplinkIndex(p, sw); err != nil {
			return nil, err
		}
		owner = s.dest.Port
	}
	if port.Kind == plan.PortHost && hasGuests(p, port.Network) {
		s.entry.Flags |= portGuests
	}
	// The resolver shares the host's MAC and addresses: they are the host's in the maps.
	if port.Kind == plan.PortResolver && sw.HostPort != "" {
		return s, nil
	}
	s.macs[bpfMacKey{Sw: s.entry.Sw, Mac: port.MAC}] = s.dest
	for _, addr := range port.Addrs {
		s.addrs[addrKey(s.entry.Sw, addr)] = bpfOwner{Port: owner, Mac: port.MAC, Flags: ownerFlags(sw, port, addr)}
	}
	if port.LinkLocal.IsValid() {
		s.addrs[addrKey(s.entry.Sw, port.LinkLocal)] = bpfOwner{Port: owner, Mac: port.MAC, Flags: ownerFlags(sw, port, port.LinkLocal)}
	}
	return s, nil
}

// uplinkIndex is that of a switch's NIC, 0 while it is gone.
func (a *Applier) uplinkIndex(p *plan.Plan, sw *plan.Switch) (uint32, error) {
	nic := p.Ports[sw.UplinkPort]
	if nic == nil {
		return 0, nil
	}
	index, err := a.dev.index(nic.Device)
	if err != nil {
		return 0, portError(nic.ID, "%w", err)
	}
	return index, nil
}

// wantLANs notes the further switches whose uplink the NIC is, in the order of their numbers.
func (s *portState) wantLANs(p *plan.Plan, nic *plan.Port) error {
	var others []*plan.Switch
	for _, sw := range p.Switches {
		if sw.UplinkPort == nic.ID && sw.Number != nic.Switch {
			others = append(others, sw)
		}
	}
	if len(others) >= plan.MaxOnNIC {
		return portError(nic.ID, "%s carries %d networks, and can carry %d", nic.Device, len(others)+1, plan.MaxOnNIC)
	}
	slices.SortFunc(others, func(a, b *plan.Switch) int { return cmp.Compare(a.Number, b.Number) })
	s.lans = map[bpfLanKey]bpfLan{}
	for i, sw := range others {
		s.entry.Flags |= portShared
		s.lans[bpfLanKey{Nic: s.index, Slot: uint32(i + 1)}] = bpfLan{Sw: sw.Number, Flags: uint32(lanFlags(sw.Mode))}
	}
	return nil
}

// counted is the index that frames of the port are counted under. A vNIC of the host's own on a LAN is the NIC in all that is
// decided, but what passes it is its own.
func (s *portState) counted() uint32 {
	if s.dest.Kind == destGuest {
		return s.dest.Device
	}
	return s.index
}

// isGuest tells that a port is that of an endpoint in the host's own stack.
func isGuest(port *plan.Port) bool {
	return port != nil && port.Kind == plan.PortContainer && port.VNIC.Namespace == ""
}

func hasGuests(p *plan.Plan, network hcn.GUID) bool {
	for _, port := range p.Ports {
		if port.Network == network && isGuest(port) {
			return true
		}
	}
	return false
}

func ownerFlags(sw *plan.Switch, port *plan.Port, addr netip.Addr) uint8 {
	if isGuest(port) {
		return ownerGuest
	}
	if port.Kind == plan.PortContainer {
		return 0
	}
	flags := uint8(ownerGateway)
	if sw.ResolverPort != "" && slices.Contains(sw.DNS.Listen, addr) {
		flags |= ownerResolver
	}
	return flags
}

// addrKey maps IPv4 into 16 bytes, as the programs do.
func addrKey(sw uint32, addr netip.Addr) bpfAddrKey { return bpfAddrKey{Sw: sw, Ip: addr.As16()} }

// portsOf counts the ports that are ours to serve.
func portsOf(p *plan.Plan) int {
	n := len(p.Ports)
	for _, port := range p.Ports {
		if port.Kind == plan.PortMacvlan {
			n--
		}
	}
	return n
}

// sortedPorts gives the ports in a fixed order, so that two that claim the same thing
// are settled the same way each time.
func sortedPorts(p *plan.Plan) []*plan.Port {
	out := make([]*plan.Port, 0, len(p.Ports))
	for _, port := range p.Ports {
		if port.Kind != plan.PortMacvlan { // no switch sees its frames
			out = append(out, port)
		}
	}
	slices.SortFunc(out, func(a, b *plan.Port) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// wanted is what all ports of a plan need: the whole content of the maps.
type wanted struct {
	states map[plan.PortID]*portState
	ports  map[uint32]bpfPort
	macs   map[bpfMacKey]bpfDest
	addrs  map[bpfAddrKey]bpfOwner
	rates  map[bpfRateKey]bpfRate
	steers map[bpfSteerKey]bpfSteer
	lans   map[bpfLanKey]bpfLan
	counts map[uint32]bool      // indexes that frames are counted under
	groups map[uint32][]bpfDest // switch → members
	hooks  map[string]bool      // by their pins
}

func (a *Applier) wantAll(p *plan.Plan) (*wanted, []error) {
	n := len(p.Ports)
	w := &wanted{
		states: make(map[plan.PortID]*portState, n), ports: make(map[uint32]bpfPort, n),
		macs: make(map[bpfMacKey]bpfDest, n), addrs: make(map[bpfAddrKey]bpfOwner, 4*n), rates: map[bpfRateKey]bpfRate{},
		steers: map[bpfSteerKey]bpfSteer{}, lans: map[bpfLanKey]bpfLan{},
		counts: make(map[uint32]bool, n), groups: map[uint32][]bpfDest{}, hooks: make(map[string]bool, n),
	}
	var errs []error
	for _, port := range sortedPorts(p) {
		s, err := a.want(p, port)
		if err == nil {
			err = w.add(s)
		}
		if err == nil {
			for _, h := range a.spotsOf(s) {
				w.hooks[h.pin] = true
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return w, errs
}

// add takes a port in, unless another one has what it claims.
func (w *wanted) add(s *portState) error {
	if _, ok := w.ports[s.index]; ok {
		return portError(s.id, "device %s is another port's", s.device)
	}
	for k := range s.macs {
		if _, ok := w.macs[k]; ok {
			return portError(s.id, "MAC %s is another port's on switch %d", plan.MAC(k.Mac), k.Sw)
		}
	}
	for k, o := range s.addrs {
		if _, ok := w.addrs[k]; ok {
			return portError(s.id, "address %s (MAC %s) is another port's on switch %d",
				netip.AddrFrom16(k.Ip).Unmap(), plan.MAC(o.Mac), k.Sw)
		}
	}
	if s.member && len(w.groups[s.entry.Sw]) >= MaxMembers {
		return portError(s.id, "switch %d has %d ports, the most it can have", s.entry.Sw, MaxMembers)
	}
	w.states[s.id], w.ports[s.index], w.counts[s.counted()] = s, s.entry, true
	maps.Copy(w.macs, s.macs)
	maps.Copy(w.addrs, s.addrs)
	maps.Copy(w.rates, s.rates)
	maps.Copy(w.steers, s.steers)
	maps.Copy(w.lans, s.lans)
	if s.member {
		w.groups[s.entry.Sw] = append(w.groups[s.entry.Sw], s.dest)
	} else if _, ok := w.groups[s.entry.Sw]; !ok && s.entry.Sw != 0 {
		w.groups[s.entry.Sw] = nil
	}
	return nil
}

// fullMap says what E2BIG means.
func fullMap(err error, m *ebpf.Map) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) { // a trie says the latter
		return fmt.Errorf("it is full with %d entries: %w", m.MaxEntries(), err)
	}
	return err
}
