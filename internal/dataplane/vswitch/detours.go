package vswitch

import (
	"net/netip"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// wantDetours works out which flows of a port go by the host, wherever on the switch they are for: those that the host sends to
// a proxy. What is for nobody on the switch goes there anyway.
func (a *Applier) wantDetours(s *portState, p *plan.Plan, port *plan.Port) error {
	if len(port.Turns) > 0 {
		return a.wantTurns(s, p, port)
	}
	if len(port.Hops) > 0 {
		return a.wantHops(s, p, port)
	}
	if len(port.Detours) == 0 {
		return nil
	}
	host := p.Ports[p.Switches[port.Network].HostPort]
	if host == nil {
		return portError(port.ID, "send flows to a proxy: its switch has no host port")
	}
	by, err := a.byHost(host)
	if err != nil {
		return portError(port.ID, "send flows to a proxy by the host: %w", err)
	}
	s.entry.Flags |= portSteered
	for _, t := range port.Steers() {
		s.steer(t.Protocol, t.Prefix, t.ByHost, by)
	}
	return nil
}

// byHost is the way to the host's vNIC.
func (a *Applier) byHost(host *plan.Port) (bpfSteer, error) {
	index, err := a.dev.index(host.Device)
	if err != nil {
		return bpfSteer{}, err
	}
	device, err := a.dev.index(host.VNIC.Device)
	return bpfSteer{To: bpfDest{Port: index, Device: device, Kind: uint8(plan.PortHost)}, Mac: host.MAC}, err
}

// wantHops works out what SDN routes say of a port on an overlay. Where a next hop is, the program looks up.
func (a *Applier) wantHops(s *portState, p *plan.Plan, port *plan.Port) error {
	sw := p.Switches[port.Network]
	host := p.Ports[sw.HostPort]
	s.entry.Flags |= portSteered
	for _, h := range port.Hops {
		var by bpfSteer
		switch {
		case h.Via.IsValid():
			by.Hop, _ = mapped(netip.PrefixFrom(h.Via, h.Via.BitLen()))
		case host != nil && sw.Overlay != nil && sw.Overlay.Host:
			var err error
			if by, err = a.byHost(host); err != nil {
				return portError(port.ID, "send by the host: %w", err)
			}
		}
		s.steer(0, h.Prefix, true, by)
	}
	return nil
}

// steer sends what is for a prefix by the host, or where it is for.
func (s *portState) steer(protocol uint8, prefix netip.Prefix, byHost bool, by bpfSteer) {
	// IPv4 lies within IPv6 there: ::/0 shall not mean it.
	if k := steerKey(s.index, protocol, netip.PrefixFrom(netip.IPv4Unspecified(), 0)); s.steers[k] == (bpfSteer{}) {
		s.steers[k] = bpfSteer{}
	}
	k := steerKey(s.index, protocol, prefix)
	if s.steers[k] = (bpfSteer{}); byHost {
		s.steers[k] = by
	}
}

// wantTurns works out what a port on a LAN sends to the host instead of others there: by the NIC, and whatever the protocol.
func (a *Applier) wantTurns(s *portState, p *plan.Plan, port *plan.Port) error {
	nic := p.Ports[p.Switches[port.Network].UplinkPort]
	if nic == nil {
		return nil // there are no others while it is gone
	}
	index, err := a.dev.index(nic.Device)
	if err != nil {
		return portError(port.ID, "send to the host by its NIC: %w", err)
	}
	by := bpfSteer{To: bpfDest{Port: index, Device: index, Kind: uint8(plan.PortHost)}, Mac: nic.MAC}
	s.entry.Flags |= portSteered
	for _, t := range port.Turns {
		s.steer(0, t.Prefix, t.ByHost, by)
	}
	return nil
}

// steerHead is the bits of a key before its address.
const steerHead = 64

func steerKey(port uint32, protocol uint8, p netip.Prefix) bpfSteerKey {
	ip, n := mapped(p)
	return bpfSteerKey{Bits: uint32(steerHead + n), Port: port, Proto: protocol, Ip: ip}
}

// followsHost adds the ports that send flows by a host port which changes: they know its devices.
func followsHost(p *plan.Plan, d *plan.Delta, out map[plan.PortID]*plan.Port) {
	for id, c := range d.Ports {
		if c.New == nil || c.New.Kind != plan.PortHost {
			continue
		}
		for _, port := range p.Ports {
			if port.Network == c.New.Network && len(port.Detours)+len(port.Hops) > 0 && port.ID != id {
				out[port.ID] = port
			}
		}
	}
}
