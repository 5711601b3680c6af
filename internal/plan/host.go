package plan

import "slices"

// needsHostAgain tells that ports came, went or changed for which the host may have to
// forward: those with detours on an Internal network, and gateways in the host's own stack.
func needsHostAgain(d *Delta) bool {
	for _, c := range d.Ports {
		for _, p := range []*Port{c.Old, c.New} {
			if p != nil && (len(p.Detours)+len(p.Outbound) > 0 || len(p.Forwards) > 0 || p.Kind == PortContainer && inHost(p)) {
				return true
			}
		}
	}
	return false
}

// opened counts the load balancers that the host forwards for, in IPv4 and in IPv6: there may be thousands, and none is to cost more for
// the others.
type opened struct{ v4, v6 int }

func (o *opened) add(b *Balancer, n int) {
	var v4, v6 bool
	for _, f := range b.forwards() {
		v4, v6 = v4 || f.Is4(), v6 || !f.Is4()
	}
	if v4 {
		o.v4 += n
	}
	if v6 {
		o.v6 += n
	}
}

// count notes that a load balancer came or went.
func (p *Plan) count(b *Balancer, n int) {
	p.opened.add(b, n)
	if b.onServices() {
		p.atServices.add(b, n)
	}
}

// any tells which families have some.
func (o opened) any() [2]bool { return [2]bool{o.v4 > 0, o.v6 > 0} }

// recompileHost derives what the switches together need: forwarding, and the
// resolver's compartment.
func (p *Plan) recompileHost(d *Delta) {
	var host Host
	var resolver *Namespace
	for _, s := range p.Switches {
		if s.ResolverPort != "" {
			resolver = resolverCompartment()
		}
		if s.Mode != ModeNAT {
			continue
		}
		for _, n := range s.Subnets {
			host.Forward4 = host.Forward4 || n.Prefix.Addr().Is4()
			host.Forward6 = host.Forward6 || n.Prefix.Addr().Is6()
		}
	}
	if !host.Forward4 || !host.Forward6 {
		p.forwardPorts(&host)
	}
	update(p.Namespaces, d.Namespaces, ResolverNamespace, resolver)
	d.Host = host != p.Host
	p.Host = host
}

// forwardPorts: the proxy of an Internal network may be one of its endpoints, to which
// the host sends back what comes from another one. And the host may be the gateway of
// containers with one MAC on the wire. And there are load balancers and published ports of overlays.
func (p *Plan) forwardPorts(host *Host) {
	open := p.opened.any()
	host.Forward4, host.Forward6 = host.Forward4 || open[0], host.Forward6 || open[1]
	for _, port := range p.Ports {
		sw := p.Switches[port.Network]
		for i := range port.Outbound { // the host hides them
			host.Forward4 = host.Forward4 || port.Outbound[i].Source.Is4()
			host.Forward6 = host.Forward6 || port.Outbound[i].Source.Is6()
		}
		for _, f := range port.Forwards {
			host.Forward4 = host.Forward4 || f.Is4()
			host.Forward6 = host.Forward6 || !f.Is4()
		}
		if sw != nil && sw.Mode.OneMAC() && port.Kind == PortContainer && inHost(port) {
			for _, a := range port.Addrs {
				host.Forward4 = host.Forward4 || a.Is4()
				host.Forward6 = host.Forward6 || a.Is6()
			}
		}
		if len(port.Detours) == 0 || sw == nil || sw.Mode != ModeInternal {
			continue
		}
		for i := range port.Detours {
			to := port.Detours[i].To.Addr()
			if slices.ContainsFunc(sw.Subnets, func(s Subnet) bool { return s.Gateway == to }) {
				continue
			}
			host.Forward4 = host.Forward4 || to.Is4()
			host.Forward6 = host.Forward6 || to.Is6()
		}
	}
}

func resolverCompartment() *Namespace {
	return &Namespace{ID: ResolverNamespace, Path: NamespacePath(ResolverNamespace)}
}
