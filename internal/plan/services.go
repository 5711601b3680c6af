package plan

import "net/netip"

// The host is behind the NIC of a network on a LAN, like the machines there: it has no port where the switch could choose a back end for
// what it sends. So it has a switch of its own for that, with one port, its vNIC, which is there while such a network has load balancers
// for the host or the outside. No back end is on that switch: each is one that sees a source of ours (ADR 31), by way of the host, which
// hides that behind its own address as it does for any network of ours, and sends on to the LAN (ADR 34).

// servicesMAC is that of the host's vNIC there, servicesSourceMAC that of the source.
func servicesMAC() MAC { return MAC{0x02, 0x62, 0x75, 0x6c, 0x6b, 0x69} }

func servicesSourceMAC() MAC { return MAC{0x02, 0x62, 0x75, 0x6c, 0x6b, 0x6a} }

// servicesSourceOf is as whom back ends see clients on that switch. Only the host sees it.
func servicesSourceOf(six bool) *Source {
	a := Inside(servicesSource, six)
	return &Source{Addr: a, MAC: servicesSourceMAC(), Addrs: []netip.Addr{a}, always: true}
}

// compileServices is that switch and its port, nil for none.
func (p *Plan) compileServices(f *Facts) (*Switch, *Port) {
	open := p.atServices.any()
	if !open[0] && !open[1] {
		return nil, nil
	}
	const id = ServicesNetwork
	mac, mtu := servicesMAC(), max(f.UplinkMTU, minMTU6)
	port := &Port{
		ID: HostPortID(id), Kind: PortHost, Network: id, Switch: servicesSwitch, Name: string(id), MAC: mac, LinkLocal: mac.LinkLocal(),
		VNIC: VNIC{MAC: mac, MTU: mtu, Segments: f.Segments, LinkLocal: mac.LinkLocal()},
	}
	name(port, HostVNICPrefix, "vnic", string(id), string(id))
	for i, six := range []bool{false, true} {
		if !open[i] {
			continue
		}
		source := servicesSourceOf(six)
		port.VNIC.reach(Inside(servicesSwitch, six), insideMAC())
		port.VNIC.reach(source.Addr, source.MAC)
	}
	port.KnownOn = []Interface{{Device: port.VNIC.Device}}
	return &Switch{
		Number: servicesSwitch, Network: id, Name: string(id), Mode: ModeServices, MTU: mtu, HostPort: port.ID, HostDevice: port.VNIC.Device,
	}, port
}

// reach gives the vNIC a way to an address on its link.
func (v *VNIC) reach(a netip.Addr, mac MAC) {
	v.Routes = append(v.Routes, Route{Dst: netip.PrefixFrom(a, a.BitLen())})
	v.Neighbours = append(v.Neighbours, Neighbour{Addr: a, MAC: mac})
}

func (p *Plan) recompileServices(d *Delta, f *Facts) {
	sw, port := p.compileServices(f)
	update(p.Switches, d.Switches, ServicesNetwork, sw)
	update(p.Ports, d.Ports, HostPortID(ServicesNetwork), port)
}

// onServices tells that the host reaches a load balancer by that switch.
func (b *Balancer) onServices() bool { return b != nil && b.Apart }
