package plan

import (
	"fmt"
	"net/netip"
)

// service is the one that a packet is for, nil for none: only containers and the host by its vNIC are served, and a proxy comes before.
func (t *tracer) service() *Service {
	k := &t.pkt
	host := t.from.Kind == PortHost
	if !host && !t.isContainer(t.from) || k.Protocol != protoTCP && k.Protocol != protoUDP ||
		!t.sw.Mode.OnLAN() && t.from.DetourOf(k.Protocol, k.Dst) != nil {
		return nil
	}
	var s *Service
	t.balancer, s = t.plan.ServiceAt(t.sw.Network, k.Protocol, netip.AddrPortFrom(k.Dst, k.DstPort), host)
	return s
}

// balance sends a packet for a service to a back end: false when there is none.
func (t *tracer) balance() bool {
	k, s := &t.pkt, t.service()
	if s == nil {
		return true
	}
	b := t.balancer
	to, ok := s.Choose(netip.AddrPortFrom(k.Src, k.SrcPort))
	if !ok {
		t.drop("load balancer", t.from.ID, "no-backend", "%s is a service of load balancer %s, which has no back end: the sender is told", s, b.title())
		return false
	}
	t.backend, t.Backend = to.Addr(), to
	how := fmt.Sprintf("%d back ends, %s", len(s.Backends), s.Spread)
	if len(s.Backends) == 1 {
		how = "its only back end"
	}
	if s.Source != nil && t.backendPort() == nil {
		t.far, t.Source = true, s.Source.Addr
		if s.Source.always {
			t.step("load balancer", t.from.ID, nil, "%s is a service of load balancer %s: to the back end %s, from %s (%s)", s, b.title(), to, s.Source.Addr, how)
		} else {
			t.step("load balancer", t.from.ID, nil, "%s is a service of load balancer %s: to the back end %s, which is not on this host and sees %s, the SourceVIP (%s)", s, b.title(), to, s.Source.Addr, how)
		}
		k.Src, k.SrcMAC, k.Dst, k.DstPort = s.Source.Addr, s.Source.MAC, to.Addr(), to.Port()
		return true
	}
	t.self = to.Addr() == k.Src && !s.Keep
	if t.self && s.Host {
		t.drop("load balancer", t.from.ID, "source-address", "%s is a service of load balancer %s: the back end %s, which it is for, is no address of the sender", s, b.title(), to)
		return false
	}
	switch {
	case s.Keep:
		t.step("load balancer", t.from.ID, nil, "%s is a service of load balancer %s: to the back end %s, as it is (%s)", s, b.title(), to.Addr(), how)
		return true
	case t.self:
		t.step("load balancer", t.from.ID, nil, "%s is a service of load balancer %s: to %s, which is the sender itself and sees %s (%s)", s, b.title(), to, s.Self, how)
		k.Src = s.Self
	default:
		t.step("load balancer", t.from.ID, nil, "%s is a service of load balancer %s: to the back end %s (%s)", s, b.title(), to, how)
	}
	k.Dst, k.DstPort = to.Addr(), to.Port()
	return true
}

// farDestination is where a packet from a source of ours goes: to another host, or by this one.
func (t *tracer) farDestination() *Port {
	if t.sw.Overlay != nil && t.plan.hopTo(t.sw, t.pkt.Dst) != nil {
		return t.elsewhere()
	}
	host := t.plan.Ports[t.sw.HostPort]
	if host == nil { // whose packet it is
		t.drop("switching", t.from.ID, "no-route", "%s is outside of network %q, which has no way to the host", t.pkt.Dst, t.sw.Name)
		return nil
	}
	t.step("switching", t.from.ID, nil, "%s is outside of network %q: by the host", t.pkt.Dst, t.sw.Name)
	return host
}

// backendPort is the port of the chosen back end, nil when that is on none here; then the packet goes as any other to its address.
func (t *tracer) backendPort() *Port {
	if t.self {
		return t.from
	}
	if !t.backend.IsValid() {
		return nil
	}
	if o := t.owner(t.backend); o != nil && o.Kind == PortContainer {
		return o
	}
	return nil
}
