package plan

import "net/netip"

// toService ends a way that a load balancer decides: who would get the packet without it says nothing.
func (e *explainer) toService(k Packet, from *Port, sw *Switch) {
	got := e.leg(k)
	if got == nil {
		if e.Reason == "no-backend" {
			e.Next = "bulkhead loadbalancer set NAME ENDPOINT…"
		}
		return
	}
	seen := netip.AddrPortFrom(k.Dst, k.DstPort)
	if got.Backend.IsValid() && got.Backend.Port() != 0 {
		seen = got.Backend
	}
	switch got.Verdict {
	case Delivered:
		to := e.plan.Ports[got.To]
		e.mtu(from.VNIC.MTU, to.VNIC.MTU)
		e.deliver(to, e.Src, seen, seen.Addr().String())
	case ToHost:
		host := e.plan.Ports[got.To]
		e.intoHost(from, sw, hostDevice(sw, host))
	case ToRemote:
		e.remote(from, sw)
	case ToWire:
		e.arrive("the back end %s is reached by the LAN of network %s", seen, sw.Name)
	default:
		e.Summary = "the switch judges this packet by more than an explanation holds"
	}
}
